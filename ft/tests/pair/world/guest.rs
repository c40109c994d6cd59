//! A guest as a hash chain: its state depends on every tick it ran and every entry it saw, in order.

use pollux_ft::EntryRef;
use std::collections::BTreeSet;

pub(crate) const PAGES: usize = 128;
const WORDS: usize = PAGES * 512;

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Guest {
    pub(crate) position: u64,
    pub(crate) chain: u64,
    pub(crate) memory: Vec<u64>,
    /// Pages written since somebody last looked.
    pub(crate) dirty: BTreeSet<usize>,
    /// Every frame it ever sent: position and content. Part of the check, not of the state.
    pub(crate) sent: Vec<(u64, u64)>,
}

pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let x = (a ^ b.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ (x >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

impl Guest {
    /// A guest that was just booted, with something in every page but the last.
    pub(crate) fn booted() -> Self {
        let memory = (0..WORDS as u64).map(|word| if word < WORDS as u64 - 512 { mix(word, 7) } else { 0 }).collect();
        Self { memory, ..Self::empty() }
    }

    pub(crate) fn empty() -> Self {
        Self { position: 0, chain: 0, memory: vec![0; WORDS], dirty: BTreeSet::new(), sent: Vec::new() }
    }

    /// Executes one tick; the content of a frame if it sends one.
    pub(crate) fn tick(&mut self) -> Option<u64> {
        self.position += 1;
        self.chain = mix(self.chain, self.position);
        if !(self.chain >> 20).is_multiple_of(97) {
            return None;
        }
        self.sent.push((self.position, self.chain));
        Some(self.chain)
    }

    /// Sees an entry; `false` when it is a digest that does not match.
    pub(crate) fn apply(&mut self, entry: &EntryRef<'_>) -> bool {
        let seen = match *entry {
            EntryRef::Digest { machine, slice, memory } => {
                return machine == self.chain && memory == self.slice(slice);
            }
            EntryRef::PacketIn(data) | EntryRef::ConsoleIn(data) => {
                data.iter().fold(data.len() as u64, |sum, byte| mix(sum, u64::from(*byte)))
            }
            EntryRef::Clock { base_ns, rate } => mix(base_ns, rate),
            _ => 0,
        };
        self.chain = mix(self.chain, seen);
        let word = self.chain as usize % WORDS;
        self.memory[word] = seen;
        self.dirty.insert(word / 512);
        // Now and then a page becomes zero again.
        if self.chain.is_multiple_of(5) {
            self.memory[word / 512 * 512..][..512].fill(0);
        }
        true
    }

    pub(crate) fn slice(&self, slice: u32) -> u64 {
        let start = slice as usize % PAGES * 512;
        self.memory[start..start + 512].iter().fold(0, |sum, word| mix(sum, *word))
    }

    pub(crate) fn digest(&self) -> u64 {
        self.memory.iter().fold(mix(self.chain, self.position), |sum, word| mix(sum, *word))
    }

    pub(crate) fn page(&self, page: usize) -> Vec<u8> {
        self.memory[page * 512..][..512].iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    pub(crate) fn load(&mut self, gpa: u64, data: &[u8]) {
        let start = gpa as usize / 8;
        for (word, raw) in self.memory[start..].iter_mut().zip(data.chunks_exact(8)) {
            *word = u64::from_le_bytes(raw.try_into().unwrap());
        }
    }
}
