//! The PVH boot protocol: its structures in memory, and a writer for them.
//!
//! See: Xen, "x86/HVM direct boot ABI" (docs/misc/pvh) and `xen/include/public/arch-x86/hvm/start_info.h`. The guest is
//! entered in 32-bit protected mode without paging, EBX holding the address of [`HvmStartInfo`].

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`HvmStartInfo::magic`]: "xEn3" with bit 7 of the 'E' set.
pub const START_MAGIC: u32 = 0x336e_c578;

/// Type of the ELF note that holds the 32-bit physical entry point.
pub const NOTE_PHYS32_ENTRY: u32 = 18;

/// [`MemmapEntry::kind`] of RAM. All kinds have the values of BIOS's E820 call.
pub const MEMMAP_RAM: u32 = 1;
/// [`MemmapEntry::kind`] of memory that is in use.
pub const MEMMAP_RESERVED: u32 = 2;
/// [`MemmapEntry::kind`] of ACPI tables.
pub const MEMMAP_ACPI: u32 = 3;
/// [`MemmapEntry::kind`] of memory that firmware keeps across sleep.
pub const MEMMAP_NVS: u32 = 4;
/// [`MemmapEntry::kind`] of defective memory.
pub const MEMMAP_UNUSABLE: u32 = 5;

/// What EBX points at. All addresses are physical; zero means absent.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HvmStartInfo {
    /// [`START_MAGIC`].
    pub magic: u32,
    /// 1; version 0 has no memory map.
    pub version: u32,
    /// SIF_xxx flags; 0.
    pub flags: u32,
    /// Number of [`ModlistEntry`]s at `modlist_paddr`.
    pub nr_modules: u32,
    /// Address of the module list.
    pub modlist_paddr: u64,
    /// Address of the command line, a zero-terminated string.
    pub cmdline_paddr: u64,
    /// Address of the ACPI RSDP structure.
    pub rsdp_paddr: u64,
    /// Address of the memory map.
    pub memmap_paddr: u64,
    /// Number of [`MemmapEntry`]s at `memmap_paddr`.
    pub memmap_entries: u32,
    /// 0.
    pub reserved: u32,
}
const _: () = assert!(size_of::<HvmStartInfo>() == 56);

/// One module.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ModlistEntry {
    /// Address of the module's first byte.
    pub paddr: u64,
    /// Length in bytes.
    pub size: u64,
    /// Address of its command line, a zero-terminated string, or zero.
    pub cmdline_paddr: u64,
    /// 0.
    pub reserved: u64,
}
const _: () = assert!(size_of::<ModlistEntry>() == 32);

/// One piece of physical memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemmapEntry {
    /// Address of the first byte.
    pub addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// One of the `MEMMAP_` constants.
    pub kind: u32,
    /// 0.
    pub reserved: u32,
}
const _: () = assert!(size_of::<MemmapEntry>() == 24);

impl MemmapEntry {
    /// `size` bytes at `addr` that are `kind`, one of the `MEMMAP_` constants.
    #[must_use]
    pub const fn new(addr: u64, size: u64, kind: u32) -> Self {
        Self { addr, size, kind, reserved: 0 }
    }
}

/// A module for [`StartInfo`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartModule<'a> {
    /// Physical address of the module's first byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Its command line; empty for none.
    pub command_line: &'a str,
}

/// What a guest is told, ready to be laid out by [`write`](Self::write).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartInfo<'a> {
    /// The command line.
    pub command_line: &'a str,
    /// The modules; Linux takes the first as its initrd.
    pub modules: &'a [StartModule<'a>],
    /// The memory map.
    pub memory: &'a [MemmapEntry],
    /// Physical address of the ACPI RSDP structure.
    pub rsdp: Option<u64>,
}

/// A [`StartInfo`] that cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteError {
    /// The place is too small for this many bytes.
    TooSmall(usize),
    /// The place is not aligned to 8 bytes or wraps around the address space.
    BadAddress(u64),
    /// A command line contains a zero byte.
    ZeroInCommandLine,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall(need) => write!(f, "the start info needs {need} bytes, more than there are"),
            Self::BadAddress(address) => write!(f, "the start info cannot be placed at {address:#x}"),
            Self::ZeroInCommandLine => write!(f, "a command line contains a zero byte"),
        }
    }
}

impl core::error::Error for WriteError {}

impl StartInfo<'_> {
    /// Bytes that [`write`](Self::write) needs.
    #[must_use]
    pub fn len(&self) -> usize {
        let strings: usize = self.modules.iter().map(|module| string_len(module.command_line)).sum();
        self.fixed_len() + self.command_line.len() + 1 + strings
    }

    /// Never: there is always the head.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Bytes of the head and the two tables.
    fn fixed_len(&self) -> usize {
        size_of::<HvmStartInfo>() + size_of_val(self.memory) + self.modules.len() * size_of::<ModlistEntry>()
    }

    /// Lays the start info out in `out`, which will be at physical address `address`, the head first. Returns its length.
    ///
    /// # Errors
    /// When `out` is smaller than [`len`](Self::len), `address` is not a multiple of 8, or a string contains a zero byte.
    pub fn write(&self, address: u64, out: &mut [u8]) -> Result<usize, WriteError> {
        let len = self.len();
        if !address.is_multiple_of(8) || address.checked_add(len as u64).is_none() {
            return Err(WriteError::BadAddress(address));
        }
        let out = out.get_mut(..len).ok_or(WriteError::TooSmall(len))?;
        let mut writer = Writer { address, out, at: 0, string_at: self.fixed_len() };
        let memmap_paddr = address + size_of::<HvmStartInfo>() as u64;
        let modlist_paddr = memmap_paddr + size_of_val(self.memory) as u64;
        let cmdline_paddr = writer.string(self.command_line)?;
        writer.value(&HvmStartInfo {
            magic: START_MAGIC,
            version: 1,
            flags: 0,
            nr_modules: self.modules.len() as u32,
            modlist_paddr: if self.modules.is_empty() { 0 } else { modlist_paddr },
            cmdline_paddr,
            rsdp_paddr: self.rsdp.unwrap_or(0),
            memmap_paddr,
            memmap_entries: self.memory.len() as u32,
            reserved: 0,
        });
        writer.value(self.memory);
        for module in self.modules {
            let cmdline_paddr = if module.command_line.is_empty() { 0 } else { writer.string(module.command_line)? };
            writer.value(&ModlistEntry { paddr: module.start, size: module.len, cmdline_paddr, reserved: 0 });
        }
        Ok(len)
    }
}

/// Bytes of a module's string; none when it is empty.
fn string_len(text: &str) -> usize {
    if text.is_empty() { 0 } else { text.len() + 1 }
}

/// Fills the tables from the front and the strings behind them; `out` has the exact length of both.
struct Writer<'a> {
    address: u64,
    out: &'a mut [u8],
    at: usize,
    string_at: usize,
}

impl Writer<'_> {
    fn value<T: IntoBytes + Immutable + ?Sized>(&mut self, value: &T) {
        let bytes = value.as_bytes();
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    /// Appends a string and returns its physical address.
    fn string(&mut self, text: &str) -> Result<u64, WriteError> {
        if text.contains('\0') {
            return Err(WriteError::ZeroInCommandLine);
        }
        let start = self.string_at;
        self.string_at += text.len() + 1;
        self.out[start..self.string_at - 1].copy_from_slice(text.as_bytes());
        self.out[self.string_at - 1] = 0;
        Ok(self.address + start as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals() {
        let info = StartInfo { command_line: "a", modules: &[], memory: &[], rsdp: None };
        assert_eq!(info.write(0x1000, &mut [0; 57]), Err(WriteError::TooSmall(58)));
        assert_eq!(info.write(0x1004, &mut [0; 58]), Err(WriteError::BadAddress(0x1004)));
        assert_eq!(info.write(u64::MAX - 7, &mut [0; 58]), Err(WriteError::BadAddress(u64::MAX - 7)));
        assert_eq!(info.write(0x1000, &mut [0; 58]), Ok(58));
        let info = StartInfo { command_line: "a\0b", ..info };
        assert_eq!(info.write(0x1000, &mut [0; 99]), Err(WriteError::ZeroInCommandLine));
    }
}
