//! Puts a guest into memory: a kernel, its command line, an initial ramdisk, and the tables of the machine.
//!
//! | guest-physical | what |
//! |---|---|
//! | 0xE0000 | ACPI tables |
//! | 0xF0000 | start info, memory map, module list, command line; for Linux the zero page and what belongs to it |
//! | as the image says | the kernel |
//! | end of RAM | the initial ramdisk |
//!
//! Linux is entered by its own boot protocol, whether it comes as `vmlinuz` or unpacked, and all others by PVH.
//!
//! See: Xen, "x86/HVM direct boot ABI"; Linux, "The Linux/x86 Boot Protocol".

use super::acpi;
use crate::memory::{Gpa, GuestMemory, OutsideMemory, PAGE_SIZE};
use core::fmt;
use pollux_boot::elf::{ImageError, KernelImage, Protocol, Segment};
use pollux_boot::linux::{self, BzImage, BzImageError, ParameterError, SEED_BYTES, SetupHeader, StartParameters};
use pollux_boot::pvh::{MEMMAP_RAM, MEMMAP_RESERVED, MemmapEntry, StartInfo, StartModule, WriteError};

/// End of low memory.
const LOW_END: u64 = 0xA_0000;
/// Where the start info goes.
const START_INFO: u64 = acpi::AREA + acpi::AREA_LEN;
/// Where memory goes on above the tables.
const HIGH_START: u64 = 0x10_0000;

/// What to load.
#[derive(Clone, Copy)]
pub struct GuestImage<'a> {
    /// The kernel: an ELF64 file with a PVH entry point, or Linux, as `vmlinuz` or as ELF64 file.
    pub kernel: &'a [u8],
    /// Its command line.
    pub command_line: &'a str,
    /// An initial ramdisk, handed over as the first module.
    pub initrd: Option<&'a [u8]>,
}

/// Where and how the guest starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryPoint {
    /// In 32-bit protected mode without paging, flat segments, interrupts off.
    Pvh {
        /// EIP.
        entry: u32,
        /// EBX: guest-physical address of the start info.
        start_info: u32,
    },
    /// In 64-bit mode, memory mapped one to one, interrupts off.
    Linux {
        /// RIP.
        entry: u64,
        /// RSI, CR3 and the descriptor table.
        parameters: linux::Written,
    },
}

/// Why a guest cannot be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadError {
    /// The kernel is no image that can be started, or does not fit into memory.
    Image(ImageError),
    /// The kernel is a `vmlinuz` that cannot be started.
    BzImage(BzImageError),
    /// The kernel is neither ELF nor `vmlinuz`.
    UnknownKind,
    /// The kernel wants memory at this address, which the machine's own tables take.
    Overlap(u64),
    /// Kernel and ramdisk together do not fit.
    InitrdTooLarge {
        /// Length of the ramdisk in bytes.
        len: u64,
        /// Bytes that are free for it.
        room: u64,
    },
    /// The start info cannot be written; in practice the command line is too long.
    StartInfo(WriteError),
    /// What Linux is told cannot be written; in practice the command line is too long.
    Parameters(ParameterError),
    /// Guest memory is too small for the tables.
    Memory(OutsideMemory),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => error.fmt(f),
            Self::BzImage(error) => error.fmt(f),
            Self::UnknownKind => write!(f, "the kernel is neither an ELF file nor a Linux vmlinuz"),
            Self::Overlap(gpa) => write!(
                f,
                "the image wants to be at {gpa:#x}, but {LOW_END:#x} to {HIGH_START:#x} belongs to the machine's tables"
            ),
            Self::InitrdTooLarge { len, room } => {
                write!(f, "the initial ramdisk of {len} bytes is too large: {room} bytes of guest memory are left")
            }
            Self::StartInfo(error) => error.fmt(f),
            Self::Parameters(error) => error.fmt(f),
            Self::Memory(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for LoadError {}

impl From<ImageError> for LoadError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl From<BzImageError> for LoadError {
    fn from(error: BzImageError) -> Self {
        Self::BzImage(error)
    }
}

impl From<ParameterError> for LoadError {
    fn from(error: ParameterError) -> Self {
        Self::Parameters(error)
    }
}

impl From<WriteError> for LoadError {
    fn from(error: WriteError) -> Self {
        Self::StartInfo(error)
    }
}

impl From<OutsideMemory> for LoadError {
    fn from(error: OutsideMemory) -> Self {
        Self::Memory(error)
    }
}

/// A kernel that was looked at.
enum Kernel<'a> {
    Elf(KernelImage<'a>),
    BzImage(BzImage<'a>),
}

impl<'a> Kernel<'a> {
    fn parse(file: &'a [u8]) -> Result<Self, LoadError> {
        if BzImage::is_one(file) {
            return Ok(Self::BzImage(BzImage::parse(file)?));
        }
        match KernelImage::parse(file) {
            Ok(image) => Ok(Self::Elf(image)),
            Err(ImageError::NotElf) => Err(LoadError::UnknownKind),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts it into memory; the first free address behind it.
    fn place(&self, memory: &mut GuestMemory) -> Result<u64, LoadError> {
        match self {
            Self::Elf(image) => {
                image.check_fits(memory.len())?;
                image.segments().try_for_each(|segment| place_segment(&segment, memory))?;
                Ok(image.bounds().1)
            }
            Self::BzImage(image) => {
                let segment = Segment { gpa: image.start(), file_bytes: image.program(), mem_len: image.mem_len() };
                if segment.end() > memory.len() {
                    return Err(ImageError::OutsideMemory(segment.end()).into());
                }
                place_segment(&segment, memory)?;
                Ok(segment.end())
            }
        }
    }

    fn entry(&self) -> u64 {
        match self {
            Self::Elf(image) => image.entry().into(),
            Self::BzImage(image) => image.entry(),
        }
    }

    /// The header to tell it of, if it is Linux.
    fn linux_header(&self) -> Option<SetupHeader> {
        match self {
            Self::Elf(image) if image.protocol() == Protocol::Linux => Some(SetupHeader::of_unpacked()),
            Self::Elf(_) => None,
            Self::BzImage(image) => Some(image.header()),
        }
    }
}

/// Loads `image` into `memory`, which is otherwise expected to be zero. `seed` is for the kernel's random numbers, if it is
/// one that takes a seed.
///
/// # Errors
/// The image is malformed or does not fit; memory may then be partly written.
pub fn load(
    image: &GuestImage<'_>,
    seed: &[u8; SEED_BYTES],
    memory: &mut GuestMemory,
) -> Result<EntryPoint, LoadError> {
    let kernel = Kernel::parse(image.kernel)?;
    let kernel_end = kernel.place(memory)?;
    let initrd = image.initrd.map(|initrd| place_initrd(initrd, kernel_end, memory)).transpose()?;
    let tables = acpi::tables();
    memory.write(tables.gpa, &tables.bytes)?;
    let map = [
        MemmapEntry::new(0, LOW_END, MEMMAP_RAM),
        MemmapEntry::new(acpi::AREA, HIGH_START - acpi::AREA, MEMMAP_RESERVED),
        MemmapEntry::new(HIGH_START, memory.len().saturating_sub(HIGH_START), MEMMAP_RAM),
    ];
    let (command_line, rsdp) = (image.command_line, tables.rsdp.0);
    let target = memory.slice_mut(Gpa(START_INFO), HIGH_START - START_INFO)?;
    if let Some(header) = kernel.linux_header() {
        // RAM ends below 4 GiB.
        let initrd = initrd.map(|module| (module.start as u32, module.len as u32));
        let parameters = StartParameters { header, command_line, initrd, memory: &map, rsdp, seed };
        return Ok(EntryPoint::Linux { entry: kernel.entry(), parameters: parameters.write(START_INFO, target)? });
    }
    let info = StartInfo { command_line, modules: initrd.as_slice(), memory: &map, rsdp: Some(rsdp) };
    info.write(START_INFO, target)?;
    // The entry point is that of an ELF file, below 4 GiB.
    Ok(EntryPoint::Pvh { entry: kernel.entry() as u32, start_info: START_INFO as u32 })
}

fn place_segment(segment: &Segment<'_>, memory: &mut GuestMemory) -> Result<(), LoadError> {
    if segment.gpa < HIGH_START && segment.end() > LOW_END {
        return Err(LoadError::Overlap(segment.gpa));
    }
    let target = memory.slice_mut(Gpa(segment.gpa), segment.mem_len)?;
    // The parsers promise that the file part is the shorter one.
    let (file, zeroed) = target.split_at_mut(segment.file_bytes.len());
    file.copy_from_slice(segment.file_bytes);
    zeroed.fill(0);
    Ok(())
}

/// Places the ramdisk at the end of RAM, on a page boundary.
fn place_initrd<'a>(initrd: &[u8], kernel_end: u64, memory: &mut GuestMemory) -> Result<StartModule<'a>, LoadError> {
    let len = initrd.len() as u64;
    let lowest = kernel_end.max(HIGH_START).next_multiple_of(PAGE_SIZE);
    let room = memory.len().saturating_sub(lowest);
    if len > room {
        return Err(LoadError::InitrdTooLarge { len, room });
    }
    // RAM is whole pages and so is `lowest`: rounding down stays above it.
    let start = (memory.len() - len) / PAGE_SIZE * PAGE_SIZE;
    memory.write(Gpa(start), initrd)?;
    Ok(StartModule { start, len, command_line: "" })
}
