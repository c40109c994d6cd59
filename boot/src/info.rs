//! What a loader told us, checked.

use core::fmt;

use crate::memory_map::{MemoryMap, TooManyRegions};
use crate::{MAX_MODULES, multiboot, pvh_parse};

/// The loader's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loader {
    /// Xen's "x86/HVM direct boot ABI": QEMU's `-kernel`, Pollux.
    Pvh,
    /// Multiboot2: GRUB.
    Multiboot2,
}

/// A file that the loader put into memory for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Module {
    /// Physical address of its first byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Its name or command line; empty when the loader gave none.
    pub name: &'static str,
}

/// What a loader told us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootInfo {
    /// The loader's protocol.
    pub loader: Loader,
    /// Physical memory; image, modules and loader data are taken out of what is usable.
    pub memory: MemoryMap,
    /// The modules in the loader's order.
    pub modules: heapless::Vec<Module, MAX_MODULES>,
    /// The command line; empty when the loader gave none.
    pub command_line: &'static str,
    /// Physical address of the ACPI root pointer structure (or the loader's copy of it), when the loader named it.
    pub rsdp: Option<u64>,
}

/// The loader's data cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootError {
    /// The structure named does not lie in readable memory; its address.
    Unreadable(&'static str, u64),
    /// The boot information does not begin with its protocol's magic number or is otherwise damaged.
    Malformed(&'static str),
    /// There is no memory map.
    NoMemoryMap,
    /// The string named is not UTF-8, or has no end.
    BadString(&'static str),
    /// More than [`MAX_MODULES`] modules.
    TooManyModules,
    /// A module's bytes are not in addressable memory; its number.
    BadModule(usize),
    /// The memory map is too long.
    TooManyRegions,
    /// Firmware's boot services still run.
    BootServicesRunning,
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(what, address) => write!(f, "the loader's {what} at {address:#x} cannot be read"),
            Self::Malformed(what) => write!(f, "the loader's {what} is malformed"),
            Self::NoMemoryMap => write!(f, "the loader gave no memory map"),
            Self::BadString(what) => write!(f, "the {what} is not a terminated UTF-8 string"),
            Self::TooManyModules => write!(f, "the loader gave more than {MAX_MODULES} modules"),
            Self::BadModule(number) => write!(f, "module {number} does not lie in addressable memory"),
            Self::TooManyRegions => TooManyRegions.fmt(f),
            Self::BootServicesRunning => write!(f, "the loader left UEFI boot services running"),
        }
    }
}

impl core::error::Error for BootError {}

impl From<TooManyRegions> for BootError {
    fn from(_: TooManyRegions) -> Self {
        Self::TooManyRegions
    }
}

/// Reads physical memory; `Some` for bytes that exist and stay unchanged.
pub trait PhysicalMemory {
    /// The `len` bytes at `address`, or `None` when they cannot be read.
    fn bytes(&self, address: u64, len: usize) -> Option<&'static [u8]>;
}

impl BootInfo {
    /// Checks and takes over what a loader put at `address`. `image` is the memory of this binary: start, length.
    ///
    /// # Errors
    /// When the data is absent, malformed or too long.
    pub fn parse(
        loader: Loader,
        address: u64,
        image: (u64, u64),
        memory: &dyn PhysicalMemory,
    ) -> Result<Self, BootError> {
        match loader {
            Loader::Pvh => pvh_parse::parse(address, image, memory),
            Loader::Multiboot2 => multiboot::parse(address, image, memory),
        }
    }
}

/// Memory for tests, which begins at an address.
#[cfg(test)]
pub(crate) struct Fake(pub u64, pub &'static [u8]);

#[cfg(test)]
impl PhysicalMemory for Fake {
    fn bytes(&self, address: u64, len: usize) -> Option<&'static [u8]> {
        let start = usize::try_from(address.checked_sub(self.0)?).ok()?;
        self.1.get(start..start.checked_add(len)?)
    }
}
