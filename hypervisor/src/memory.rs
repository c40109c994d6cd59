//! Guest-physical memory behind checked accesses, and which of its pages have changed.

use core::fmt;

pub use pollux_driver::pages::{PAGE_SIZE, PageSet, is_zero};

/// A guest-physical address; any value, checked where it is used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gpa(pub u64);

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Gpa {
    /// The address `offset` bytes further on; `None` when it wraps.
    #[must_use]
    pub fn checked_add(self, offset: u64) -> Option<Self> {
        self.0.checked_add(offset).map(Self)
    }
}

/// An access that is not wholly inside guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutsideMemory {
    /// First byte of the refused access.
    pub gpa: Gpa,
    /// Its length in bytes.
    pub len: u64,
}

impl fmt::Display for OutsideMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at guest-physical {:?} are not guest memory", self.len, self.gpa)
    }
}

/// Guest RAM: guest-physical 0 to [`len`](Self::len), one contiguous piece of host memory.
///
/// The guest never runs while this is borrowed: there is one vCPU and one loop.
pub struct GuestMemory {
    ram: &'static mut [u8],
    dirty: Option<PageSet>,
}

impl GuestMemory {
    /// Takes over `ram` as the guest's memory. Its length is a multiple of [`PAGE_SIZE`].
    ///
    /// # Panics
    /// When the length is no multiple of the page size (a bug of the caller).
    pub fn new(ram: &'static mut [u8]) -> Self {
        assert!((ram.len() as u64).is_multiple_of(PAGE_SIZE), "guest memory is not a whole number of pages");
        Self { ram, dirty: None }
    }

    /// Notes from here on which pages are written through this type, and through [`mark_dirty`](Self::mark_dirty).
    /// None is dirty at first.
    pub fn track(&mut self) {
        self.dirty = Some(PageSet::new(self.pages()));
    }

    /// Ends the tracking.
    pub fn stop_tracking(&mut self) {
        self.dirty = None;
    }

    /// The page at `gpa` was written by the guest itself. Without effect when nothing is tracked.
    pub fn mark_dirty(&mut self, gpa: Gpa) {
        if let Some(dirty) = &mut self.dirty {
            dirty.insert(gpa.0 / PAGE_SIZE);
        }
    }

    /// The pages written since the tracking began or since the last call. `None` when nothing is tracked.
    pub fn take_dirty(&mut self) -> Option<PageSet> {
        let clean = PageSet::new(self.pages());
        self.dirty.as_mut().map(|dirty| core::mem::replace(dirty, clean))
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.len() / PAGE_SIZE
    }

    /// Zeroed memory of `len` bytes for tests on the host.
    #[cfg(test)]
    pub fn for_test(len: usize) -> Self {
        Self::new(alloc::vec![0; len].leak())
    }

    /// Size in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.ram.len() as u64
    }

    /// Whether there is no memory at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ram.is_empty()
    }

    /// The bytes `gpa .. gpa + len`.
    ///
    /// # Errors
    /// When any of them is not guest RAM.
    pub fn slice(&self, gpa: Gpa, len: u64) -> Result<&[u8], OutsideMemory> {
        let range = self.range(gpa, len)?;
        Ok(&self.ram[range])
    }

    /// The bytes `gpa .. gpa + len`, writable.
    ///
    /// # Errors
    /// When any of them is not guest RAM.
    pub fn slice_mut(&mut self, gpa: Gpa, len: u64) -> Result<&mut [u8], OutsideMemory> {
        let range = self.range(gpa, len)?;
        if let Some(dirty) = &mut self.dirty
            && len > 0
        {
            (gpa.0 / PAGE_SIZE..=(gpa.0 + len - 1) / PAGE_SIZE).for_each(|page| dirty.insert(page));
        }
        Ok(&mut self.ram[range])
    }

    /// Reads `N` bytes.
    ///
    /// # Errors
    /// When any of them is not guest RAM.
    pub fn read<const N: usize>(&self, gpa: Gpa) -> Result<[u8; N], OutsideMemory> {
        let mut out = [0; N];
        out.copy_from_slice(self.slice(gpa, N as u64)?);
        Ok(out)
    }

    /// Writes `data` at `gpa`.
    ///
    /// # Errors
    /// When any byte would fall outside guest RAM; nothing is written then.
    pub fn write(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), OutsideMemory> {
        self.slice_mut(gpa, data.len() as u64)?.copy_from_slice(data);
        Ok(())
    }

    /// Fills all of memory with zeros. Pages that are zero already are only read, which is cheaper.
    pub fn clear(&mut self) {
        (0..self.pages()).for_each(|page| self.clear_page(page));
    }

    /// Fills page number `page`, which must exist, with zeros.
    pub fn clear_page(&mut self, page: u64) {
        let start = (page * PAGE_SIZE) as usize;
        let content = &mut self.ram[start..start + PAGE_SIZE as usize];
        if !is_zero(content) {
            content.fill(0);
            if let Some(dirty) = &mut self.dirty {
                dirty.insert(page);
            }
        }
    }

    /// The pages that are not all zeros, in order.
    pub fn used_pages(&self) -> impl Iterator<Item = (Gpa, &[u8])> {
        let pages = self.ram.chunks(PAGE_SIZE as usize).enumerate();
        pages.filter(|(_, page)| !is_zero(page)).map(|(index, page)| (Gpa(index as u64 * PAGE_SIZE), page))
    }

    fn range(&self, gpa: Gpa, len: u64) -> Result<core::ops::Range<usize>, OutsideMemory> {
        match gpa.0.checked_add(len) {
            Some(end) if end <= self.len() => Ok(gpa.0 as usize..end as usize),
            _ => Err(OutsideMemory { gpa, len }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn zero_pages_are_told_from_used_ones() {
        let mut memory = GuestMemory::for_test(4 * 4096);
        assert_eq!(memory.used_pages().count(), 0);
        memory.write(Gpa(4095), &[1]).unwrap();
        memory.write(Gpa(3 * 4096 + 8), &[1]).unwrap();
        let used: Vec<_> = memory.used_pages().map(|(gpa, _)| gpa.0).collect();
        assert_eq!(used, [0, 3 * 4096]);
        memory.clear();
        assert_eq!(memory.used_pages().count(), 0);
        for at in 0..130 {
            let mut bytes = [0; 130];
            assert!(is_zero(&bytes));
            bytes[at] = 1;
            assert!(!is_zero(&bytes));
        }
    }

    #[test]
    fn what_is_written_is_dirty() {
        let mut memory = GuestMemory::for_test(8 * 4096);
        assert_eq!(memory.take_dirty(), None);
        memory.write(Gpa(0), &[1]).unwrap();
        memory.track();
        memory.write(Gpa(2 * 4096 - 1), &[1, 2]).unwrap();
        memory.write(Gpa(4 * 4096), &[]).unwrap();
        assert!(memory.write(Gpa(8 * 4096 - 1), &[1, 2]).is_err());
        memory.mark_dirty(Gpa(6 * 4096 + 5));
        let dirty = |memory: &mut GuestMemory| {
            let mut set = memory.take_dirty().unwrap();
            let pages: Vec<_> = (0..8).filter(|&page| set.remove(page)).collect();
            assert!(set.is_empty());
            pages
        };
        assert_eq!(dirty(&mut memory), [1, 2, 6]);
        memory.clear();
        assert_eq!(dirty(&mut memory), [0, 1, 2]);
        memory.stop_tracking();
        assert_eq!(memory.take_dirty(), None);
    }

    #[test]
    fn accesses_stay_inside() {
        let mut memory = GuestMemory::for_test(8192);
        memory.write(Gpa(8188), &[1, 2, 3, 4]).unwrap();
        assert_eq!(memory.read::<4>(Gpa(8188)).unwrap(), [1, 2, 3, 4]);
        assert!(memory.write(Gpa(8189), &[0; 4]).is_err());
        assert!(memory.slice(Gpa(u64::MAX), 2).is_err());
        assert!(memory.slice(Gpa(8192), 0).is_ok());
        assert!(memory.slice(Gpa(8193), 0).is_err());
    }
}
