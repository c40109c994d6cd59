//! Memory shared with a device.
#![allow(unsafe_code)]

use core::ptr::NonNull;

/// A block of memory that a device may read and write at any time.
///
/// It is made from a `&'static mut` slice, so memory once given to a device cannot be taken back or used for something
/// else while the device may still write to it. The CPU's accesses are volatile words, except for byte ranges that the
/// device is known not to touch.
#[derive(Debug)]
pub struct DmaMemory {
    base: NonNull<u8>,
    len: usize,
    physical: u64,
}

// SAFETY: the value owns its memory (`new` took the only reference), which is not tied to a thread.
unsafe impl Send for DmaMemory {}

impl DmaMemory {
    /// Gives `memory` away for good; devices reach its first byte at address `physical`.
    ///
    /// # Safety
    ///
    /// `physical..physical + memory.len()` must be the addresses at which devices reach `memory`, contiguous and in
    /// the same order, for ever. On a machine with an identity map and no IOMMU: the address of the slice.
    pub unsafe fn new(physical: u64, memory: &'static mut [u8]) -> Self {
        Self { len: memory.len(), base: NonNull::from(memory).cast(), physical }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address at which devices reach the first byte.
    pub fn physical(&self) -> u64 {
        self.physical
    }

    /// Whether both the CPU's and the devices' address are multiples of `alignment`, a power of two.
    pub fn is_aligned_to(&self, alignment: usize) -> bool {
        self.base.addr().get().is_multiple_of(alignment) && self.physical.is_multiple_of(alignment as u64)
    }

    /// Splits off the first `len` bytes. `None` if there are fewer.
    pub fn split(self, len: usize) -> Option<(Self, Self)> {
        let rest = self.len.checked_sub(len)?;
        // SAFETY: `len` is at most the length of the block.
        let base = unsafe { self.base.add(len) };
        let second = Self { base, len: rest, physical: self.physical + len as u64 };
        Some((Self { len, ..self }, second))
    }

    /// Pointer to `len` bytes at `offset`. Panics when they are outside: offsets are computed by the rings from
    /// checked indices, so that would be a bug of ours.
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "outside the DMA block");
        self.base.as_ptr().wrapping_add(offset)
    }

    /// Reads the word at `offset`, a multiple of eight, as the device last wrote it.
    ///
    /// # Panics
    /// When it is outside or misaligned: a bug of the driver.
    pub fn read64(&self, offset: usize) -> u64 {
        let word = self.at(offset, 8).cast::<u64>();
        assert!(word.is_aligned(), "misaligned DMA word");
        // SAFETY: inside the block and aligned; volatile, so a concurrent write by the device is like one by hardware.
        unsafe { word.read_volatile() }
    }

    /// Writes the word at `offset`, a multiple of eight.
    ///
    /// # Panics
    /// As [`read64`](Self::read64).
    pub fn write64(&mut self, offset: usize, value: u64) {
        let word = self.at(offset, 8).cast::<u64>();
        assert!(word.is_aligned(), "misaligned DMA word");
        // SAFETY: as in `read64`.
        unsafe { word.write_volatile(value) }
    }

    /// Copies bytes from `offset`, a multiple of eight, as the device last wrote them: whatever it does meanwhile.
    pub fn copy_out(&self, offset: usize, bytes: &mut [u8]) {
        for (at, chunk) in (offset..).step_by(8).zip(bytes.chunks_mut(8)) {
            chunk.copy_from_slice(&self.read64(at).to_le_bytes()[..chunk.len()]);
        }
    }

    /// Copies bytes to `offset`, a multiple of eight; up to seven bytes behind them are cleared.
    pub fn copy_in(&mut self, offset: usize, bytes: &[u8]) {
        for (at, chunk) in (offset..).step_by(8).zip(bytes.chunks(8)) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write64(at, u64::from_le_bytes(word));
        }
    }

    /// The `len` bytes at `offset`.
    ///
    /// # Safety
    ///
    /// The device must not write to the range while the reference lives: its descriptor must be the CPU's.
    pub(crate) unsafe fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        // SAFETY: inside the block, initialised since `new`, not written to meanwhile (the caller's promise).
        unsafe { core::slice::from_raw_parts(self.at(offset, len), len) }
    }

    /// The `len` bytes at `offset`, to be written.
    ///
    /// # Safety
    ///
    /// The device must not touch the range while the reference lives: its descriptor must be the CPU's.
    pub(crate) unsafe fn bytes_mut(&mut self, offset: usize, len: usize) -> &mut [u8] {
        // SAFETY: as in `bytes`; exclusive through `&mut self`.
        unsafe { core::slice::from_raw_parts_mut(self.at(offset, len), len) }
    }

    /// The same memory as seen by the device's side of a test.
    #[cfg(test)]
    pub(crate) fn alias(&self) -> Self {
        Self { ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(len: usize) -> DmaMemory {
        let words = vec![0u64; len / 8].leak();
        // SAFETY: a `u64` slice is valid as bytes, and nobody else has the reference.
        let bytes = unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), len) };
        // SAFETY: no device ever uses the address.
        unsafe { DmaMemory::new(0x1000, bytes) }
    }

    #[test]
    fn halves_are_disjoint_and_keep_their_addresses() {
        let (mut a, mut b) = block(64).split(24).unwrap();
        assert_eq!((a.len(), a.physical(), b.len(), b.physical()), (24, 0x1000, 40, 0x1018));
        a.write64(16, 1);
        b.write64(0, 2);
        assert_eq!((a.read64(16), b.read64(0)), (1, 2));
        assert!(b.split(41).is_none());
    }

    #[test]
    fn bytes_are_copied_in_words() {
        let mut memory = block(64);
        memory.copy_in(8, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        let mut bytes = [0xFF; 13];
        memory.copy_out(8, &mut bytes);
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0, 0]);
        assert_eq!((memory.read64(0), memory.read64(24)), (0, 0));
    }

    #[test]
    #[should_panic(expected = "outside the DMA block")]
    fn words_outside_are_caught() {
        block(64).read64(64);
    }
}
