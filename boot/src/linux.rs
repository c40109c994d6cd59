//! The Linux/x86 boot protocol: reads `vmlinuz` files, and writes what a kernel is told.
//!
//! A `vmlinuz` (bzImage) is a real-mode program with the setup header, which nobody runs here, and a 64-bit program that
//! unpacks the kernel and jumps to it. Both that program ([`BzImage`]) and the unpacked kernel, an ELF file, are entered in
//! 64-bit mode, RSI holding the address of the zero page ([`StartParameters`]).
//!
//! See: Linux, "The Linux/x86 Boot Protocol" (Documentation/arch/x86/boot.rst), above all "64-bit Boot Protocol", and
//! "The zero page" (zero-page.rst).

mod parameters;

use core::fmt;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

pub use parameters::{MAX_COMMAND_LINE, ParameterError, SEED_BYTES, StartParameters, Written};

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
