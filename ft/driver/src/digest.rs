//! State digests: a hash of CPU and platform, and of one slice of memory after the other.
//!
//! One is due after [`Often::ticks`], and after [`Often::time`] for a guest that runs but gets nowhere
//! near that. A bit that differs in CPU or platform shows at the next digest, one in memory when its slice's turn comes.
//! The first time around, with a new backup, it goes faster.

use alloc::vec::Vec;

use pollux_ft::{Position, Span, Time};
use xxhash_rust::xxh64::xxh64;

use crate::pages::is_zero;

/// How often digests are made, and how much of memory each of them takes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Often {
    /// Ticks between two digests while the guest runs. Default 2^25.
    pub ticks: u64,
    /// Wall time between two digests of a guest that runs slowly. Default 1 s.
    pub time: Span,
    /// The same until all of a new backup's memory was compared once. Default 25 ms.
    pub first_time: Span,
    /// Bytes of memory in one slice. Default 256 KiB.
    pub slice: u64,
}

impl Default for Often {
    fn default() -> Self {
        Self { ticks: 1 << 25, time: Span::from_millis(1000), first_time: Span::from_millis(25), slice: 256 << 10 }
    }
}

/// When the primary makes the next digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NextDigest {
    /// The slice whose turn it is.
    pub slice: u32,
    /// Every slice had its turn.
    all_compared: bool,
    /// Where the last digest was made.
    after: Position,
    /// Due at this position …
    pub position: Position,
    /// … or from this wall time on when the guest has run at all.
    at: Time,
}

impl NextDigest {
    /// Whether the guest, which stands at `position`, has run far or long enough.
    #[must_use]
    pub fn is_due(&self, now: Time, position: Position) -> bool {
        position >= self.position || (position > self.after && now >= self.at)
    }

    /// A digest was made at `position`, of a memory of `memory` bytes.
    pub fn made(&mut self, now: Time, position: Position, memory: u64, often: Often) {
        let slices = memory.div_ceil(often.slice).max(1);
        self.slice = ((u64::from(self.slice) + 1) % slices) as u32;
        self.all_compared |= self.slice == 0;
        self.after = position;
        self.position = position.after(often.ticks);
        self.at = now.after(if self.all_compared { often.time } else { often.first_time });
    }
}

/// The hash of slice number `slice` of `memory`, each of `size` bytes; beyond the end there is nothing.
#[must_use]
pub fn hash_slice(memory: &[u8], slice: u32, size: u64) -> u64 {
    let len = memory.len() as u64;
    let start = (u64::from(slice) * size).min(len);
    xxh64(&memory[start as usize..(start + size).min(len) as usize], 0)
}

/// A hash of all memory that is kept while pages are sent or arrive, one after the other and some repeatedly. Zero pages
/// have no part in it.
#[derive(Debug, Default)]
pub struct MemoryDigest {
    /// What each page contributes.
    pages: Vec<u64>,
    sum: u64,
}

impl MemoryDigest {
    /// Of a memory of zeros.
    #[must_use]
    pub fn new(pages: u64) -> Self {
        Self { pages: alloc::vec![0; pages as usize], sum: 0 }
    }

    /// Page number `page`, which must exist, has this content now.
    pub fn set(&mut self, page: u64, content: &[u8]) {
        self.replace(page, if is_zero(content) { 0 } else { xxh64(content, page) });
    }

    /// Whether the page is known to have a content other than zeros.
    #[must_use]
    pub fn is_used(&self, page: u64) -> bool {
        self.pages[page as usize] != 0
    }

    /// Page number `page`, which must exist, is zero now.
    pub fn clear(&mut self, page: u64) {
        self.replace(page, 0);
    }

    fn replace(&mut self, page: u64, new: u64) {
        let old = core::mem::replace(&mut self.pages[page as usize], new);
        self.sum = self.sum.wrapping_sub(old).wrapping_add(new);
    }

    /// The hash of this memory together with `machine`, that of the rest of the guest's state.
    #[must_use]
    pub fn with_machine(&self, machine: u64) -> u64 {
        machine ^ self.sum.rotate_left(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_memory_is_that_of_its_last_content() {
        let page = |value: u8| [value; 4096];
        let mut once = MemoryDigest::new(4);
        once.set(1, &page(3));
        let mut often = MemoryDigest::new(4);
        often.set(2, &page(9));
        often.set(1, &page(8));
        often.set(1, &page(3));
        assert_ne!(once.sum, often.sum);
        often.clear(2);
        assert_eq!(once.sum, often.sum);
        assert!(often.is_used(1) && !often.is_used(2));
        often.set(3, &page(0));
        assert_eq!(once.sum, often.sum);
        often.clear(1);
        often.set(2, &page(3));
        assert_ne!(once.sum, often.sum, "the same content elsewhere is another memory");
    }

    #[test]
    fn a_digest_is_of_memory_and_machine() {
        let of = |value: u8, machine| {
            let mut memory = MemoryDigest::new(1);
            memory.set(0, &[value; 4096]);
            memory.with_machine(machine)
        };
        for (value, machine) in [(0, 1), (0, u64::MAX), (7, 0), (7, u64::MAX)] {
            assert_ne!(of(value, machine), of(value, machine ^ 1));
            assert_ne!(of(value, machine), of(value + 1, machine));
        }
    }

    #[test]
    fn every_slice_has_its_turn() {
        let often = Often { slice: 100, ..Often::default() };
        let (mut next, mut seen) = (NextDigest::default(), Vec::new());
        assert!(next.is_due(Time(0), Position(0)), "the first one is due at once");
        for now in 0..6 {
            seen.push(next.slice);
            next.made(Time(now), Position(7), 250, often);
            let wait = if now < 2 { often.first_time } else { often.time };
            let due = |after: u64, ticks: u64| next.is_due(Time(now + after), Position(7 + ticks));
            assert!(!due(wait.0, 0) && !due(wait.0 - 1, 1) && due(wait.0, 1) && due(0, often.ticks));
        }
        assert_eq!(seen, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn slices_end_with_memory() {
        let memory = [1, 2, 3, 4, 5];
        assert_eq!(hash_slice(&memory, 0, 3), xxh64(&[1, 2, 3], 0));
        assert_eq!(hash_slice(&memory, 1, 2), xxh64(&[3, 4], 0));
        assert_eq!(hash_slice(&memory, 1, 3), xxh64(&[4, 5], 0));
        assert_eq!(hash_slice(&memory, 2, 3), xxh64(&[], 0));
    }
}
