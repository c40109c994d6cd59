//! What a Linux kernel is told: the zero page, the tables that it begins with, and what they lead to.

use core::fmt;

use zerocopy::IntoBytes;

use super::{HEADER_AT, SetupHeader};
use crate::pvh::MemmapEntry;

/// Bytes of the zero page.
const ZERO_PAGE: usize = 4096;
/// Offsets in the zero page.
const ACPI_RSDP: usize = 0x070;
const E820_ENTRIES: usize = 0x1E8;
const E820_TABLE: usize = 0x2D0;
/// Bytes of an entry of the memory map: address, length, kind, unpadded.
const E820_ENTRY: usize = 20;
/// Most entries of the memory map.
const E820_MAX: usize = 128;
/// Identity-mapped by the page tables: 4 GiB in pages of 2 MiB.
const DIRECTORIES: usize = 4;
/// Present, writable, accessed; in the leaves also dirty and large.
const TABLE: u64 = 0x23;
const LEAF: u64 = 0xE3;
/// Offsets of what follows the zero page.
const PAGE_TABLES: usize = ZERO_PAGE;
const GDT_AT: usize = PAGE_TABLES + (2 + DIRECTORIES) * 4096;
const SETUP_DATA: usize = GDT_AT + size_of_val(&GDT);
const COMMAND_LINE: usize = SETUP_DATA + 16 + SEED_BYTES;
/// [`SetupHeader::type_of_loader`]: one without a number of its own.
const UNKNOWN_LOADER: u8 = 0xFF;
/// [`SetupHeader::loadflags`]: the kernel is loaded high.
const LOADED_HIGH: u8 = 1;
/// [`SetupHeader::vid_mode`]: as it is.
const NORMAL_MODE: u16 = 0xFFFF;
/// Type of the piece of `setup_data` that holds a seed.
const SETUP_RNG_SEED: u32 = 9;
/// The descriptors that the protocol wants: `__BOOT_CS` (0x10) and `__BOOT_DS` (0x18), flat.
const GDT: [u64; 4] = [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF];

/// Longest command line that the kernel keeps (`COMMAND_LINE_SIZE` less the end); it cuts longer ones without a word.
pub const MAX_COMMAND_LINE: usize = 2047;
/// Bytes of a seed.
pub const SEED_BYTES: usize = 32;

/// What a Linux kernel is told, ready to be laid out by [`write`](Self::write).
#[derive(Debug, Clone, Copy)]
pub struct StartParameters<'a> {
    /// The kernel's own header.
    pub header: SetupHeader,
    /// The command line.
    pub command_line: &'a str,
    /// Physical address and length of the initial ramdisk.
    pub initrd: Option<(u32, u32)>,
    /// The memory map.
    pub memory: &'a [MemmapEntry],
    /// Physical address of the ACPI RSDP structure.
    pub rsdp: u64,
    /// Random bytes for the kernel's generator, which then need not wait for others (from Linux 6.0 on).
    pub seed: &'a [u8; SEED_BYTES],
}

/// Where [`StartParameters::write`] has put what the CPU needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Physical address of the zero page, for RSI.
    pub zero_page: u64,
    /// Physical address of the page tables, for CR3.
    pub page_tables: u64,
    /// Physical address of the descriptor table.
    pub gdt: u64,
    /// Its limit.
    pub gdt_limit: u16,
}

/// [`StartParameters`] that cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterError {
    /// The command line has this many bytes, more than [`MAX_COMMAND_LINE`].
    CommandLineTooLong(usize),
    /// The command line contains a zero byte.
    ZeroInCommandLine,
    /// More pieces of memory than the zero page has room for.
    TooManyRegions,
    /// The place is not on a page boundary below 4 GiB, or is too small for this many bytes.
    BadPlace(usize),
}

impl fmt::Display for ParameterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLineTooLong(len) => {
                write!(f, "the kernel's command line has {len} bytes; Linux takes {MAX_COMMAND_LINE}")
            }
            Self::ZeroInCommandLine => write!(f, "the kernel's command line contains a zero byte"),
            Self::TooManyRegions => write!(f, "the memory map has more than {E820_MAX} regions"),
            Self::BadPlace(need) => write!(f, "the zero page needs {need} bytes on a page boundary below 4 GiB"),
        }
    }
}

impl core::error::Error for ParameterError {}

impl StartParameters<'_> {
    /// Lays it all out in `target`, which will lie at the physical `address`: zero page, page tables, descriptors, seed and
    /// command line.
    ///
    /// # Errors
    /// When it does not fit, or the kernel could not take it.
    pub fn write(&self, address: u64, target: &mut [u8]) -> Result<Written, ParameterError> {
        let line = self.command_line.as_bytes();
        if line.len() > MAX_COMMAND_LINE {
            return Err(ParameterError::CommandLineTooLong(line.len()));
        }
        if line.contains(&0) {
            return Err(ParameterError::ZeroInCommandLine);
        }
        let need = COMMAND_LINE + line.len() + 1;
        let base = u32::try_from(address).ok().filter(|base| base.is_multiple_of(4096));
        let base = base.filter(|base| base.checked_add(need as u32).is_some());
        let (Some(base), Some(target)) = (base, target.get_mut(..need)) else {
            return Err(ParameterError::BadPlace(need));
        };
        target.fill(0);
        self.write_zero_page(base, target)?;
        write_page_tables(address + PAGE_TABLES as u64, &mut target[PAGE_TABLES..GDT_AT]);
        target[GDT_AT..SETUP_DATA].copy_from_slice(GDT.as_bytes());
        // The only piece: no next one, type, length, bytes.
        let head = [0, 0, SETUP_RNG_SEED, SEED_BYTES as u32];
        target[SETUP_DATA..SETUP_DATA + 16].copy_from_slice(head.as_bytes());
        target[SETUP_DATA + 16..COMMAND_LINE].copy_from_slice(self.seed);
        target[COMMAND_LINE..need - 1].copy_from_slice(line);
        let (page_tables, gdt) = (address + PAGE_TABLES as u64, address + GDT_AT as u64);
        Ok(Written { zero_page: address, page_tables, gdt, gdt_limit: size_of_val(&GDT) as u16 - 1 })
    }

    fn write_zero_page(&self, base: u32, page: &mut [u8]) -> Result<(), ParameterError> {
        let (ramdisk_image, ramdisk_size) = self.initrd.unwrap_or_default();
        let header = SetupHeader {
            vid_mode: NORMAL_MODE,
            type_of_loader: UNKNOWN_LOADER,
            loadflags: self.header.loadflags | LOADED_HIGH,
            ramdisk_image,
            ramdisk_size,
            cmd_line_ptr: base + COMMAND_LINE as u32,
            setup_data: u64::from(base) + SETUP_DATA as u64,
            ..self.header
        };
        page[HEADER_AT..HEADER_AT + size_of::<SetupHeader>()].copy_from_slice(header.as_bytes());
        page[ACPI_RSDP..ACPI_RSDP + 8].copy_from_slice(&self.rsdp.to_le_bytes());
        if self.memory.len() > E820_MAX {
            return Err(ParameterError::TooManyRegions);
        }
        page[E820_ENTRIES] = self.memory.len() as u8;
        let table = page[E820_TABLE..].chunks_exact_mut(E820_ENTRY);
        for (entry, region) in table.zip(self.memory) {
            // The kinds have the same numbers.
            entry.copy_from_slice(&region.as_bytes()[..E820_ENTRY]);
        }
        Ok(())
    }
}

/// One table of the highest level, one below it, and four directories of 2 MiB pages.
fn write_page_tables(address: u64, target: &mut [u8]) {
    let mut put = |index: usize, entry: u64| target[index * 8..index * 8 + 8].copy_from_slice(&entry.to_le_bytes());
    put(0, (address + 4096) | TABLE);
    for directory in 0..DIRECTORIES {
        put(512 + directory, (address + (2 + directory as u64) * 4096) | TABLE);
    }
    for page in 0..DIRECTORIES * 512 {
        put(2 * 512 + page, (page as u64) << 21 | LEAF);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pvh::{MEMMAP_RAM, MEMMAP_RESERVED};

    const MAP: [MemmapEntry; 2] =
        [MemmapEntry::new(0, 0xA_0000, MEMMAP_RAM), MemmapEntry::new(0xE_0000, 0x2_0000, MEMMAP_RESERVED)];

    fn parameters(command_line: &str) -> StartParameters<'_> {
        let header = SetupHeader::of_unpacked();
        let initrd = Some((0x80_0000, 0x1234));
        StartParameters { header, command_line, initrd, memory: &MAP, rsdp: 0xE_0000, seed: &[7; 32] }
    }

    #[test]
    fn everything_stands_where_the_kernel_looks() {
        const BASE: u64 = 0xF_0000;
        let mut target = vec![0xAA; 0x1_0000];
        let written = parameters("console=ttyS0").write(BASE, &mut target).unwrap();
        let u32_at = |at: usize| u32::from_le_bytes(target[at..at + 4].try_into().unwrap());
        let u64_at = |at: u64| u64::from_le_bytes(target[(at - BASE) as usize..][..8].try_into().unwrap());
        assert_eq!(written.zero_page, BASE);
        assert_eq!((u32_at(0x218), u32_at(0x21C)), (0x80_0000, 0x1234));
        assert_eq!(u64_at(BASE + 0x70), 0xE_0000);
        let line = u32_at(0x228) as usize - BASE as usize;
        assert_eq!(&target[line..line + 14], b"console=ttyS0\0");
        assert_eq!((target[0x1E8], u32_at(0x2D0 + 16), u32_at(0x2D0 + 20)), (2, MEMMAP_RAM, 0xE_0000));
        assert_eq!((u32_at(0x2D0 + 28), u32_at(0x2D0 + 36)), (0x2_0000, MEMMAP_RESERVED));
        let data = u64_at(BASE + 0x250);
        assert_eq!((u64_at(data), u64_at(data + 8)), (0, 9 | 32 << 32));
        assert_eq!(u64_at(data + 40), 0x0707_0707_0707_0707);
        // Any address below 4 GiB is mapped to itself.
        for address in [0, 0x1000, 0x1234_5678, 0xFFFF_FFFF_u64] {
            let level4 = u64_at(written.page_tables);
            let level3 = u64_at((level4 & !0xFFF) + (address >> 30) * 8);
            let level2 = u64_at((level3 & !0xFFF) + (address >> 21 & 511) * 8);
            assert_eq!((level2 & 0xE3, level2 & !0xFFF), (0xE3, address & !0x1F_FFFF), "{address:#x}");
        }
        assert_eq!((u64_at(written.gdt + 0x10), written.gdt_limit), (0x00AF_9B00_0000_FFFF, 31));
    }

    #[test]
    fn what_the_kernel_cannot_take_is_refused() {
        let mut target = vec![0; 0x1_0000];
        let mut error = |line: &str, address| parameters(line).write(address, &mut target).unwrap_err();
        assert_eq!(error(&"x".repeat(2048), 0), ParameterError::CommandLineTooLong(2048));
        assert_eq!(error("a\0b", 0), ParameterError::ZeroInCommandLine);
        let need = COMMAND_LINE + 2;
        assert_eq!(error("a", 8), ParameterError::BadPlace(need));
        assert_eq!(error("a", 1 << 32), ParameterError::BadPlace(need));
        assert_eq!(error("a", 0xFFFF_F000), ParameterError::BadPlace(need));
        assert_eq!(parameters("a").write(0, &mut target[..need - 1]), Err(ParameterError::BadPlace(need)));
        assert!(parameters("a").write(0, &mut target[..need]).is_ok());
        let many = StartParameters { memory: &[MAP[0]; 129], ..parameters("a") };
        assert_eq!(many.write(0, &mut target), Err(ParameterError::TooManyRegions));
    }
}
