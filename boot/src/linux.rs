//! The Linux/x86 boot protocol: reads `vmlinuz` files, and writes what a kernel is told.
//!
//! A `vmlinuz` (bzImage) is a real-mode program with the setup header, which nobody runs here, and a 64-bit program that
//! unpacks the kernel and jumps to it. Both that program ([`BzImage`]) and the unpacked kernel, an ELF file, are entered in
//! 64-bit mode, RSI holding the address of the zero page ([`StartParameters`]).
//!
//! See: Linux, "The Linux/x86 Boot Protocol" (Documentation/arch/x86/boot.rst), above all "64-bit Boot Protocol", and
//! "The zero page" (zero-page.rst).

use core::fmt;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::pvh::MemmapEntry;

/// Where the setup header begins in a `vmlinuz` and in the zero page.
const HEADER_AT: usize = 0x1F1;
/// [`SetupHeader::boot_flag`].
const BOOT_FLAG: u16 = 0xAA55;
/// [`SetupHeader::header`]: "HdrS".
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// The first version whose header says whether there is a 64-bit entry: Linux 3.8.
const FIRST_VERSION: u16 = 0x020C;
/// The version that we speak: the newest, of Linux 5.5.
const VERSION: u16 = 0x020F;
/// The real-mode part's unit of length.
const SECTOR: usize = 512;
/// [`SetupHeader::xloadflags`]: there is a 64-bit entry.
const HAS_64_BIT_ENTRY: u16 = 1;
/// Where it is, from the beginning of the 64-bit program.
const ENTRY_64: u64 = 0x200;
/// Bytes of the header before its second length, and where that stands: the field `jump` is a short jump behind the header.
const HEADER_BASE: usize = 0x202;
const JUMP_OFFSET: usize = 0x201;

/// The setup header: what a `vmlinuz` says of itself, and what the kernel is told first of all.
#[repr(C, packed)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetupHeader {
    setup_sects: u8,
    root_flags: u16,
    syssize: u32,
    ram_size: u16,
    vid_mode: u16,
    root_dev: u16,
    boot_flag: u16,
    jump: u16,
    header: u32,
    version: u16,
    realmode_swtch: u32,
    start_sys_seg: u16,
    kernel_version: u16,
    type_of_loader: u8,
    loadflags: u8,
    setup_move_size: u16,
    code32_start: u32,
    ramdisk_image: u32,
    ramdisk_size: u32,
    bootsect_kludge: u32,
    heap_end_ptr: u16,
    ext_loader_ver: u8,
    ext_loader_type: u8,
    cmd_line_ptr: u32,
    initrd_addr_max: u32,
    kernel_alignment: u32,
    relocatable_kernel: u8,
    min_alignment: u8,
    xloadflags: u16,
    cmdline_size: u32,
    hardware_subarch: u32,
    hardware_subarch_data: u64,
    payload_offset: u32,
    payload_length: u32,
    setup_data: u64,
    pref_address: u64,
    init_size: u32,
    handover_offset: u32,
    kernel_info_offset: u32,
}
const _: () = assert!(size_of::<SetupHeader>() == 0x26C - HEADER_AT);

impl SetupHeader {
    /// That of a kernel which comes unpacked and so without one.
    #[must_use]
    pub fn of_unpacked() -> Self {
        let cmdline_size = MAX_COMMAND_LINE as u32;
        Self { boot_flag: BOOT_FLAG, header: HEADER_MAGIC, version: VERSION, cmdline_size, ..Self::new_zeroed() }
    }
}

/// The file is no `vmlinuz` that can be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BzImageError {
    /// It has no setup header.
    NotBzImage,
    /// It has no 64-bit entry; its version of the boot protocol.
    No64BitEntry(u16),
    /// The file ends within the real-mode program.
    Truncated,
    /// The kernel would not be in one piece below 4 GiB: where it wants to be.
    BadAddress(u64),
}

impl fmt::Display for BzImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBzImage => write!(f, "the kernel is no vmlinuz: it has no setup header"),
            Self::No64BitEntry(version) => {
                let (major, minor) = (version >> 8, version & 0xFF);
                write!(f, "the kernel has no 64-bit entry (version {major}.{minor:02} of the boot protocol)")
            }
            Self::Truncated => write!(f, "the kernel is truncated: the file ends within its real-mode part"),
            Self::BadAddress(address) => write!(f, "the kernel cannot be at {address:#x}, where it wants to be"),
        }
    }
}

impl core::error::Error for BzImageError {}

/// A checked `vmlinuz`.
#[derive(Debug, Clone, Copy)]
pub struct BzImage<'a> {
    header: SetupHeader,
    program: &'a [u8],
}

impl<'a> BzImage<'a> {
    /// Whether a file begins like a `vmlinuz`.
    #[must_use]
    pub fn is_one(file: &[u8]) -> bool {
        header_of(file).is_some()
    }

    /// Checks a file.
    ///
    /// # Errors
    /// When it is no `vmlinuz` with a 64-bit entry, or damaged.
    pub fn parse(file: &'a [u8]) -> Result<Self, BzImageError> {
        let header = header_of(file).ok_or(BzImageError::NotBzImage)?;
        if header.version < FIRST_VERSION || header.xloadflags & HAS_64_BIT_ENTRY == 0 {
            return Err(BzImageError::No64BitEntry(header.version));
        }
        // 0 sectors mean 4; the boot sector comes before them.
        let sectors = if header.setup_sects == 0 { 4 } else { usize::from(header.setup_sects) };
        let program = file.get((sectors + 1) * SECTOR..).filter(|program| program.len() as u64 > ENTRY_64);
        let image = Self { header, program: program.ok_or(BzImageError::Truncated)? };
        let start = header.pref_address;
        if image.start().checked_add(image.mem_len()).is_none_or(|end| end > 1 << 32) {
            return Err(BzImageError::BadAddress(start));
        }
        Ok(image)
    }

    /// Physical address of the 64-bit program: where the kernel will be when it is unpacked.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.header.pref_address
    }

    /// Bytes of memory from there on that are needed until the kernel has its memory map.
    #[must_use]
    pub fn mem_len(&self) -> u64 {
        u64::from(self.header.init_size).max(self.program.len() as u64)
    }

    /// The 64-bit program.
    #[must_use]
    pub fn program(&self) -> &'a [u8] {
        self.program
    }

    /// Physical address at which execution begins.
    #[must_use]
    pub fn entry(&self) -> u64 {
        self.start() + ENTRY_64
    }

    /// The setup header, for [`StartParameters`].
    #[must_use]
    pub fn header(&self) -> SetupHeader {
        self.header
    }
}

/// The setup header of a `vmlinuz`, as far as it reaches; zero behind.
fn header_of(file: &[u8]) -> Option<SetupHeader> {
    let end = HEADER_BASE + usize::from(*file.get(JUMP_OFFSET)?);
    let bytes = file.get(HEADER_AT..end)?;
    let mut header = SetupHeader::new_zeroed();
    let len = bytes.len().min(size_of::<SetupHeader>());
    header.as_mut_bytes()[..len].copy_from_slice(&bytes[..len]);
    let (flag, magic) = (header.boot_flag, header.header);
    (flag == BOOT_FLAG && magic == HEADER_MAGIC).then_some(header)
}

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
    use proptest::prelude::*;

    use super::*;
    use crate::pvh::{MEMMAP_RAM, MEMMAP_RESERVED};

    /// A `vmlinuz` with two sectors of real-mode code and a program of `len` bytes.
    fn vmlinuz(len: usize) -> Vec<u8> {
        let header = SetupHeader {
            setup_sects: 2,
            jump: u16::from_le_bytes([0xEB, (0x26C - HEADER_BASE) as u8]),
            pref_address: 0x100_0000,
            init_size: 0x20_0000,
            xloadflags: HAS_64_BIT_ENTRY,
            ..SetupHeader::of_unpacked()
        };
        let mut file = vec![0; 3 * SECTOR];
        file[HEADER_AT..HEADER_AT + size_of::<SetupHeader>()].copy_from_slice(header.as_bytes());
        file.resize(3 * SECTOR + len, 0xCC);
        file
    }

    #[test]
    fn the_program_is_found() {
        let mut file = vmlinuz(0x201);
        let image = BzImage::parse(&file).unwrap();
        assert_eq!((image.start(), image.mem_len(), image.entry()), (0x100_0000, 0x20_0000, 0x100_0200));
        assert_eq!(image.program(), [0xCC; 0x201]);
        assert_eq!({ image.header().version }, VERSION);
        // A header that ends early has no handover offset.
        file[0x264..0x26C].fill(0xFF);
        file[JUMP_OFFSET] = (0x264 - HEADER_BASE) as u8;
        assert_eq!({ BzImage::parse(&file).unwrap().header().handover_offset }, 0);
        // No number of sectors means 4.
        file[HEADER_AT] = 0;
        file.resize(5 * SECTOR + 0x300, 0xAB);
        assert_eq!(BzImage::parse(&file).unwrap().program(), [0xAB; 0x300]);
    }

    #[test]
    fn other_files_are_refused() {
        let good = vmlinuz(0x201);
        let refused = |file: &[u8]| BzImage::parse(file).map(|_| ()).unwrap_err();
        assert_eq!(refused(b"#!/bin/sh"), BzImageError::NotBzImage);
        assert_eq!(refused(&good[..good.len() - 1]), BzImageError::Truncated);
        assert_eq!(refused(&good[..3 * SECTOR - 1]), BzImageError::Truncated);
        let with = |at: usize, byte: u8| {
            let mut file = good.clone();
            file[at] = byte;
            BzImage::parse(&file).map(|_| ()).unwrap_err()
        };
        assert_eq!(with(0x1FE, 0), BzImageError::NotBzImage);
        assert_eq!(with(0x202, 0), BzImageError::NotBzImage);
        assert_eq!(with(0x206, 11), BzImageError::No64BitEntry(0x20B));
        assert_eq!(with(0x236, 0), BzImageError::No64BitEntry(0x20F));
        assert_eq!(with(0x25C, 1), BzImageError::BadAddress(0x1_0100_0000));
        assert_eq!(with(0x25F, 0xFF), BzImageError::BadAddress(0xFF00_0000_0100_0000));
    }

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

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            changes in prop::collection::vec((HEADER_AT..0x26C, any::<u8>()), 0..12),
            len in 0usize..2200,
        ) {
            let mut file = vmlinuz(0x240);
            for (at, byte) in changes {
                file[at] = byte;
            }
            let file = &file[..len.min(file.len())];
            if let Ok(image) = BzImage::parse(file) {
                prop_assert!(image.start() + image.mem_len() <= 1 << 32);
                prop_assert!(image.program().len() as u64 <= image.mem_len());
                prop_assert!((image.start()..image.start() + image.program().len() as u64).contains(&image.entry()));
            }
        }
    }
}
