//! Puts a guest into memory: a PVH kernel, its command line, an initial ramdisk, and the tables of the machine.
//!
//! | guest-physical | what |
//! |---|---|
//! | 0xE0000 | ACPI tables |
//! | 0xF0000 | start info, memory map, module list, command line |
//! | as the image says | the kernel's segments |
//! | end of RAM | the initial ramdisk |
//!
//! See: Xen, "x86/HVM direct boot ABI".

use super::acpi;
use crate::memory::{Gpa, GuestMemory, OutsideMemory, PAGE_SIZE};
use core::fmt;
use pollux_boot::elf::{ImageError, PvhImage};
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
    /// The kernel: an ELF64 file with a PVH entry point.
    pub kernel: &'a [u8],
    /// Its command line.
    pub command_line: &'a str,
    /// An initial ramdisk, handed over as the first module.
    pub initrd: Option<&'a [u8]>,
}

/// Where and how the guest starts: 32-bit protected mode without paging, flat segments, interrupts off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryPoint {
    /// EIP.
    pub entry: u32,
    /// EBX: guest-physical address of the start info.
    pub start_info: u32,
}

/// Why a guest cannot be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadError {
    /// The kernel is no PVH image, or does not fit into memory.
    Image(ImageError),
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
    /// Guest memory is too small for the tables.
    Memory(OutsideMemory),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => error.fmt(f),
            Self::Overlap(gpa) => write!(
                f,
                "the image wants to be at {gpa:#x}, but {LOW_END:#x} to {HIGH_START:#x} belongs to the machine's tables"
            ),
            Self::InitrdTooLarge { len, room } => {
                write!(f, "the initial ramdisk of {len} bytes is too large: {room} bytes of guest memory are left")
            }
            Self::StartInfo(error) => error.fmt(f),
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

/// Loads `image` into `memory`, which is otherwise expected to be zero.
///
/// # Errors
/// The image is malformed or does not fit; memory may then be partly written.
pub fn load(image: &GuestImage<'_>, memory: &mut GuestMemory) -> Result<EntryPoint, LoadError> {
    let kernel = PvhImage::parse(image.kernel)?;
    kernel.check_fits(memory.len())?;
    for segment in kernel.segments() {
        if segment.gpa < HIGH_START && segment.end() > LOW_END {
            return Err(LoadError::Overlap(segment.gpa));
        }
        let target = memory.slice_mut(Gpa(segment.gpa), segment.mem_len)?;
        // The parser promises that the file part is the shorter one.
        let (file, zeroed) = target.split_at_mut(segment.file_bytes.len());
        file.copy_from_slice(segment.file_bytes);
        zeroed.fill(0);
    }
    let (_, kernel_end) = kernel.bounds();
    let module = match image.initrd {
        Some(initrd) => Some(place_initrd(initrd, kernel_end, memory)?),
        None => None,
    };

    let tables = acpi::tables();
    memory.write(tables.gpa, &tables.bytes)?;
    let map = [
        MemmapEntry::new(0, LOW_END, MEMMAP_RAM),
        MemmapEntry::new(acpi::AREA, HIGH_START - acpi::AREA, MEMMAP_RESERVED),
        MemmapEntry::new(HIGH_START, memory.len().saturating_sub(HIGH_START), MEMMAP_RAM),
    ];
    let info = StartInfo {
        command_line: image.command_line,
        modules: module.as_slice(),
        memory: &map,
        rsdp: Some(tables.rsdp.0),
    };
    info.write(START_INFO, memory.slice_mut(Gpa(START_INFO), HIGH_START - START_INFO)?)?;
    Ok(EntryPoint { entry: kernel.entry(), start_info: START_INFO as u32 })
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
