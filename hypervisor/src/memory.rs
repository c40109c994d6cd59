//! Guest-physical memory behind checked accesses, and which of its pages have changed.

use core::fmt;
use core::ops::Range;

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

/// All bytes of a guest, one contiguous piece of host memory: its RAM, guest-physical 0 to [`len`](Self::len), and behind
/// it those of its disk, which the guest reaches by requests only. Both go the same way to a new backup and into digests:
/// pages of the disk that were never written are zero, and cost as little.
///
/// The guest never runs while this is borrowed: there is one vCPU and one loop.
pub struct GuestMemory {
    bytes: &'static mut [u8],
    /// Where RAM ends and the disk begins.
    ram: u64,
    dirty: Option<PageSet>,
}

impl GuestMemory {
    /// Takes over `ram` as the memory of a guest without a disk. Its length is a multiple of [`PAGE_SIZE`].
    ///
    /// # Panics
    /// When the length is no multiple of the page size (a bug of the caller).
    pub fn new(ram: &'static mut [u8]) -> Self {
        let len = ram.len() as u64;
        Self::with_disk(ram, len)
    }

    /// Takes over `bytes`: the first `ram` of them are the guest's memory, the others its disk. Both are multiples of
    /// [`PAGE_SIZE`].
    ///
    /// # Panics
    /// When they are not, or there is less than `ram` (bugs of the caller).
    pub fn with_disk(bytes: &'static mut [u8], ram: u64) -> Self {
        let len = bytes.len() as u64;
        assert!(ram.is_multiple_of(PAGE_SIZE), "guest memory is not a whole number of pages");
        assert!(len.is_multiple_of(PAGE_SIZE) && ram <= len, "the disk is not a whole number of pages");
        Self { bytes, ram, dirty: None }
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

    /// Number of pages, those of the disk included.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.bytes.len() as u64 / PAGE_SIZE
    }

    /// Zeroed memory of `len` bytes for tests on the host.
    #[cfg(test)]
    pub fn for_test(len: usize) -> Self {
        Self::new(alloc::vec![0; len].leak())
    }

    /// The same with a disk of `disk` bytes.
    #[cfg(test)]
    pub fn for_test_with_disk(len: usize, disk: usize) -> Self {
        Self::with_disk(alloc::vec![0; len + disk].leak(), len as u64)
    }

    /// Size of RAM in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.ram
    }

    /// Whether there is no memory at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ram == 0
    }

    /// All bytes: RAM, and behind it the disk.
    #[must_use]
    pub fn all(&self) -> &[u8] {
        self.bytes
    }

    /// The bytes `start .. start + len` of [`all`](Self::all), writable; `None` when they do not exist.
    pub fn all_mut(&mut self, start: u64, len: u64) -> Option<&mut [u8]> {
        let end = start.checked_add(len).filter(|&end| end <= self.bytes.len() as u64)?;
        self.touch(start, len);
        Some(&mut self.bytes[start as usize..end as usize])
    }

    /// The bytes `start .. start + len` of the disk.
    ///
    /// # Panics
    /// When the disk does not have them: whoever takes requests has checked that.
    #[must_use]
    pub fn disk(&self, start: u64, len: u64) -> &[u8] {
        &self.bytes[self.ram as usize..][start as usize..(start + len) as usize]
    }

    /// The same, writable.
    ///
    /// # Panics
    /// See [`disk`](Self::disk).
    pub fn disk_mut(&mut self, start: u64, len: u64) -> &mut [u8] {
        self.all_mut(self.ram + start, len).expect("the request lies on the disk")
    }

    /// Fills the bytes `start .. start + len` of the disk with zeros. What is zero already is only read.
    ///
    /// # Panics
    /// See [`disk`](Self::disk).
    pub fn clear_disk(&mut self, start: u64, len: u64) {
        let (mut at, end) = (start, start + len);
        while at < end {
            let next = (at + 1).next_multiple_of(PAGE_SIZE).min(end);
            if !is_zero(self.disk(at, next - at)) {
                self.disk_mut(at, next - at).fill(0);
            }
            at = next;
        }
    }

    /// The bytes `gpa .. gpa + len`.
    ///
    /// # Errors
    /// When any of them is not guest RAM.
    pub fn slice(&self, gpa: Gpa, len: u64) -> Result<&[u8], OutsideMemory> {
        let range = self.range(gpa, len)?;
        Ok(&self.bytes[range])
    }

    /// The bytes `gpa .. gpa + len`, writable.
    ///
    /// # Errors
    /// When any of them is not guest RAM.
    pub fn slice_mut(&mut self, gpa: Gpa, len: u64) -> Result<&mut [u8], OutsideMemory> {
        let range = self.range(gpa, len)?;
        self.touch(gpa.0, len);
        Ok(&mut self.bytes[range])
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

    /// Fills these bytes of RAM, whole pages, with zeros. Pages that are zero already are only read, which is cheaper.
    pub fn clear(&mut self, range: Range<u64>) {
        (range.start / PAGE_SIZE..range.end / PAGE_SIZE).for_each(|page| self.clear_page(page));
    }

    /// Fills page number `page`, which must exist, with zeros.
    pub fn clear_page(&mut self, page: u64) {
        let start = (page * PAGE_SIZE) as usize;
        let content = &mut self.bytes[start..start + PAGE_SIZE as usize];
        if !is_zero(content) {
            content.fill(0);
            if let Some(dirty) = &mut self.dirty {
                dirty.insert(page);
            }
        }
    }

    /// The pages of [`all`](Self::all) that are not all zeros, in order, each with the place of its first byte.
    pub fn used_pages(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let pages = self.bytes.chunks(PAGE_SIZE as usize).enumerate();
        pages.filter(|(_, page)| !is_zero(page)).map(|(index, page)| (index as u64 * PAGE_SIZE, page))
    }

    fn touch(&mut self, start: u64, len: u64) {
        if let Some(dirty) = &mut self.dirty
            && len > 0
        {
            (start / PAGE_SIZE..=(start + len - 1) / PAGE_SIZE).for_each(|page| dirty.insert(page));
        }
    }

    fn range(&self, gpa: Gpa, len: u64) -> Result<core::ops::Range<usize>, OutsideMemory> {
        match gpa.0.checked_add(len) {
            Some(end) if end <= self.ram => Ok(gpa.0 as usize..end as usize),
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
        let used: Vec<_> = memory.used_pages().map(|(start, _)| start).collect();
        assert_eq!(used, [0, 3 * 4096]);
        memory.clear(0..memory.len());
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
        memory.clear(0..memory.len());
        assert_eq!(dirty(&mut memory), [0, 1, 2]);
        memory.stop_tracking();
        assert_eq!(memory.take_dirty(), None);
    }

    #[test]
    fn the_disk_lies_behind_ram_and_out_of_its_reach() {
        let mut memory = GuestMemory::for_test_with_disk(2 * 4096, 3 * 4096);
        assert_eq!((memory.len(), memory.pages(), memory.all().len()), (8192, 5, 5 * 4096));
        assert!(memory.slice(Gpa(8191), 2).is_err() && memory.all_mut(4 * 4096, 4097).is_none());
        memory.track();
        memory.disk_mut(4095, 2).copy_from_slice(&[7, 8]);
        assert_eq!(memory.all()[3 * 4096 - 1..][..2], [7, 8]);
        let dirty = memory.take_dirty().unwrap();
        assert!(dirty.len() == 2 && dirty.contains(2) && dirty.contains(3));
        memory.write(Gpa(0), &[1]).unwrap();
        memory.clear(0..memory.len());
        assert_eq!(memory.used_pages().map(|(start, _)| start).collect::<Vec<_>>(), [8192, 3 * 4096]);
        // Zeros over zeros change nothing.
        memory.take_dirty();
        memory.clear_disk(4096, 2 * 4096);
        assert_eq!(memory.take_dirty().unwrap().len(), 1);
        assert_eq!((memory.disk(4095, 1)[0], memory.disk(4096, 1)[0]), (7, 0));
        memory.clear_disk(4000, 200);
        assert_eq!(memory.used_pages().count(), 0);
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
