//! A running hash of what a guest has observed, and how it is told to whoever asks.

use alloc::format;
use alloc::vec::Vec;

use xxhash_rust::xxh64::xxh64;

/// A hash chain: each observation is hashed with the value before as seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Observations {
    hash: u64,
    count: u64,
}

impl Observations {
    /// Adds an observation.
    pub fn add(&mut self, bytes: &[u8]) {
        self.hash = xxh64(bytes, self.hash);
        self.count += 1;
    }

    /// Adds a number.
    pub fn add_number(&mut self, value: u64) {
        self.add(&value.to_le_bytes());
    }

    /// The hash of all observations in their order.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Number of observations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Answers a datagram: `hash?` with hash and count, anything else with itself.
    #[must_use]
    pub fn answer(&self, datagram: &[u8]) -> Vec<u8> {
        match datagram.trim_ascii_end() {
            b"hash?" => format!("{:016x} {}\n", self.hash, self.count).into_bytes(),
            _ => datagram.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_content_count() {
        let of = |list: &[u64]| {
            let mut observations = Observations::default();
            list.iter().for_each(|value| observations.add_number(*value));
            observations
        };
        assert_eq!(of(&[1, 2, 3]), of(&[1, 2, 3]));
        assert_ne!(of(&[1, 2]).hash(), of(&[2, 1]).hash());
        assert_ne!(of(&[0]).hash(), of(&[0, 0]).hash());
        let observations = of(&[7]);
        assert_eq!(observations.answer(b"hash?\n"), format!("{:016x} 1\n", observations.hash()).as_bytes());
        assert_eq!(observations.answer(b"hello"), b"hello");
    }
}
