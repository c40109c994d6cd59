//! Access to a device's registers.
#![allow(unsafe_code)]

use core::ptr::NonNull;

/// A window of 32-bit registers. Offsets are in bytes and multiples of four.
///
/// Reads may have side effects on the device (for example clear a cause register).
pub trait Registers {
    /// Reads the register at `offset`.
    fn read32(&self, offset: usize) -> u32;

    /// Writes the register at `offset`.
    fn write32(&mut self, offset: usize, value: u32);

    /// Length of the window in bytes.
    fn len(&self) -> usize;

    /// Whether the window is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Registers mapped into memory, accessed with volatile loads and stores.
#[derive(Debug)]
pub struct MmioRegion {
    base: NonNull<u32>,
    len: usize,
}

// SAFETY: the region is owned by this value alone (see `new`), and device registers are not tied to a thread.
unsafe impl Send for MmioRegion {}

impl MmioRegion {
    /// Takes the `len` bytes of registers at virtual address `base`. `None` if `base` is null or not a multiple of
    /// four.
    ///
    /// # Safety
    ///
    /// The range must be mapped as device memory (uncached), readable and writable, for as long as the value lives,
    /// and nothing else may access it meanwhile.
    pub unsafe fn new(base: *mut u8, len: usize) -> Option<Self> {
        let base = NonNull::new(base.cast::<u32>())?;
        base.is_aligned().then_some(Self { base, len })
    }

    /// Address of the register at `offset`. Panics when the offset is outside: a bug of the driver.
    fn register(&self, offset: usize) -> *mut u32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.len, "register {offset:#x} outside the region");
        self.base.as_ptr().wrapping_byte_add(offset)
    }
}

impl Registers for MmioRegion {
    fn read32(&self, offset: usize) -> u32 {
        // SAFETY: the address is aligned and inside the region (`register`), which is mapped (`new`).
        unsafe { self.register(offset).read_volatile() }
    }

    fn write32(&mut self, offset: usize, value: u32) {
        // SAFETY: as in `read32`.
        unsafe { self.register(offset).write_volatile(value) }
    }

    fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_words_at_byte_offsets() {
        let mut words = [1u32, 2, 3, 4];
        // SAFETY: the array outlives the region and is not touched beside it.
        let mut region = unsafe { MmioRegion::new(words.as_mut_ptr().cast(), 16) }.unwrap();
        assert_eq!(region.read32(8), 3);
        region.write32(12, 9);
        assert_eq!(region.read32(12), 9);
        assert_eq!(words, [1, 2, 3, 9]);
    }

    #[test]
    fn bad_bases_are_refused() {
        // SAFETY: refused regions are never accessed.
        assert!(unsafe { MmioRegion::new(core::ptr::null_mut(), 16) }.is_none());
        // SAFETY: as above.
        assert!(unsafe { MmioRegion::new(core::ptr::without_provenance_mut(2), 16) }.is_none());
    }

    #[test]
    #[should_panic(expected = "outside the region")]
    fn offsets_outside_are_caught() {
        let mut words = [0u32; 4];
        // SAFETY: the array outlives the region.
        let region = unsafe { MmioRegion::new(words.as_mut_ptr().cast(), 16) }.unwrap();
        region.read32(16);
    }
}
