//! Guest-physical memory behind checked accesses.

use core::fmt;

/// Size of a page in bytes.
pub const PAGE_SIZE: u64 = 4096;

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
}

impl GuestMemory {
    /// Takes over `ram` as the guest's memory. Its length is a multiple of [`PAGE_SIZE`].
    ///
    /// # Panics
    /// When the length is no multiple of the page size (a bug of the caller).
    pub fn new(ram: &'static mut [u8]) -> Self {
        assert!((ram.len() as u64).is_multiple_of(PAGE_SIZE), "guest memory is not a whole number of pages");
        Self { ram }
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
        for page in self.ram.chunks_mut(PAGE_SIZE as usize) {
            if !is_zero(page) {
                page.fill(0);
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

/// Whether all of `bytes` are zero. Looks at 64 bytes at a time.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    let empty = |block: &[u8; 64]| {
        let (words, _) = block.as_chunks::<8>();
        words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0
    };
    blocks.iter().all(empty) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

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
