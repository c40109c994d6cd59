//! This machine's memory: what the firmware left usable, given out once and never taken back.
#![allow(unsafe_code)]

use core::ops::Range;
use core::slice;

use heapless::Vec;

/// Most ranges of usable memory that are kept; more are ignored.
const MAX_RANGES: usize = 32;

/// Usable physical memory, identity-mapped, not yet given out.
#[derive(Debug, Default)]
pub struct HostMemory {
    free: Vec<Range<u64>, MAX_RANGES>,
}

impl HostMemory {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a usable range.
    pub fn add(&mut self, range: Range<u64>) {
        if range.start < range.end {
            // Ranges that do not fit are memory that is not used.
            let _ = self.free.push(range);
        }
    }

    /// Takes a range out again: something lives there already.
    pub fn reserve(&mut self, taken: Range<u64>) {
        let mut left = Vec::<Range<u64>, MAX_RANGES>::new();
        for range in &self.free {
            for piece in [range.start..range.end.min(taken.start), range.start.max(taken.end)..range.end] {
                if piece.start < piece.end {
                    let _ = left.push(piece);
                }
            }
        }
        self.free = left;
    }

    /// Bytes that are left.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.free.iter().map(|range| range.end - range.start).sum()
    }

    /// The most bytes aligned to `align` (a power of two) that [`take`](Self::take) would find, in multiples of `align`.
    #[must_use]
    pub fn largest(&self, align: u64) -> u64 {
        let whole = |range: &Range<u64>| {
            let start = range.start.checked_next_multiple_of(align)?;
            Some(range.end.checked_sub(start)? & !(align - 1))
        };
        self.free.iter().filter_map(whole).max().unwrap_or(0)
    }

    /// Start of `len` bytes aligned to `align` (a power of two), from the lowest range that has them.
    pub fn take(&mut self, len: u64, align: u64) -> Option<u64> {
        let start = self.free.iter().find_map(|range| {
            let start = range.start.checked_next_multiple_of(align)?;
            (start.checked_add(len)? <= range.end).then_some(start)
        })?;
        self.reserve(start..start + len);
        Some(start)
    }

    /// Zeroed memory of `len` bytes aligned to `align`.
    ///
    /// # Safety
    /// The ranges that were added are usable RAM, identity-mapped, and used by nobody else.
    pub unsafe fn take_zeroed(&mut self, len: u64, align: u64) -> Option<&'static mut [u8]> {
        let start = self.take(len, align)?;
        // SAFETY: the range was free and is given out once; the caller vouches that it is RAM.
        let bytes = unsafe { slice::from_raw_parts_mut(start as *mut u8, len as usize) };
        bytes.fill(0);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_out_once() {
        let mut memory = HostMemory::new();
        memory.add(0x1000..0x1_0000);
        memory.add(0x10_0000..0x20_0000);
        memory.reserve(0x2000..0x3000);
        assert_eq!(memory.take(0x1000, 0x1000), Some(0x1000));
        assert_eq!(memory.take(0x1000, 0x1000), Some(0x3000));
        assert_eq!(memory.take(0x8_0000, 0x8_0000), Some(0x10_0000));
        assert_eq!(memory.take(0x20_0000, 0x1000), None);
        assert_eq!(memory.left(), 0xC000 + 0x8_0000);
    }

    #[test]
    fn the_largest_piece_can_be_taken() {
        let mut memory = HostMemory::new();
        assert_eq!(memory.largest(0x1000), 0);
        memory.add(0x1000..0x1_0000);
        assert_eq!((memory.largest(0x1000), memory.largest(0x4000), memory.largest(0x10_0000)), (0xF000, 0xC000, 0));
        memory.add(0x2F_F000..0x51_0000);
        let largest = memory.largest(0x10_0000);
        assert_eq!((largest, memory.take(largest + 0x10_0000, 0x10_0000)), (0x20_0000, None));
        assert_eq!(memory.take(largest, 0x10_0000), Some(0x30_0000));
    }
}
