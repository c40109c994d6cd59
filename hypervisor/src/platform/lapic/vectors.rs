//! A bit for each interrupt vector: the registers IRR, ISR and TMR.

use crate::state::{StateError, Visitor};

/// 256 bits, one per vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Vectors(pub(super) [u64; 4]);

impl Vectors {
    pub(super) fn set(&mut self, vector: u8, on: bool) {
        let bit = 1 << (vector & 63);
        let word = &mut self.0[usize::from(vector >> 6)];
        if on { *word |= bit } else { *word &= !bit }
    }

    pub(super) fn get(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0
    }

    pub(super) fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|word| *word != 0)?;
        Some((word as u32 * 64 + self.0[word].ilog2()) as u8)
    }

    pub(super) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    pub(super) fn dword(&self, index: u32) -> u32 {
        (self.0[(index as usize / 2) & 3] >> (32 * (index % 2))) as u32
    }

    pub(super) fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        self.0.iter_mut().try_for_each(|word| v.u64(word))
    }
}
