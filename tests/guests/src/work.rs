//! Computation on memory, without input and with a result that depends on all of it.

use alloc::vec;
use alloc::vec::Vec;

/// Depth of the recursion in a round.
const DEPTH: u32 = 64;

/// Words of memory and a state, each worked into the other.
#[derive(Debug)]
pub struct Work {
    words: Vec<u64>,
    state: u64,
}

impl Work {
    /// Work on `words` words, at least one; a round takes some six instructions for each.
    #[must_use]
    pub fn new(words: usize) -> Self {
        Self { words: vec![0; words.max(1)], state: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Goes once over all words.
    pub fn round(&mut self) {
        self.state = fill(&mut self.words, self.state);
        self.state ^= visit(&self.words, self.state, DEPTH);
    }

    /// The words.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// What all rounds have come to.
    #[must_use]
    pub fn state(&self) -> u64 {
        self.state
    }
}

/// xorshift64 over all words.
#[inline(never)]
fn fill(words: &mut [u64], mut state: u64) -> u64 {
    for word in words {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *word = word.wrapping_add(state);
    }
    state
}

/// Follows the words as if they were indices, by recursion.
#[inline(never)]
fn visit(words: &[u64], at: u64, depth: u32) -> u64 {
    let word = words[(at % words.len() as u64) as usize];
    if depth == 0 { word } else { word.rotate_left(depth) ^ visit(words, word, depth - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_go_on_and_can_be_repeated() {
        let states = |words| {
            let mut work = Work::new(words);
            [(); 3].map(|()| {
                work.round();
                work.state()
            })
        };
        let first = states(100);
        assert!(first[0] != first[1] && first[1] != first[2]);
        assert_eq!(states(100), first);
        assert_ne!(states(0), first);
    }
}
