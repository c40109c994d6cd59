//! From firmware to Rust in 64-bit long mode.
//!
//! A binary that uses this crate is a 64-bit ELF at a fixed address (`link.ld`). Two kinds of loaders start it:
//! PVH loaders (QEMU's `-kernel`, Pollux itself) and Multiboot2 loaders (GRUB on BIOS and UEFI). [`entry!`] names the
//! function to call; it gets a [`BootInfo`] and, on the one processor that runs:
//!
//! * 64-bit mode, ring 0, interrupts off, no IDT; flat segments: code 0x08, data 0x10;
//! * physical memory mapped one to one: the first 4 GiB always, 512 GiB where the processor has 1 GiB pages;
//! * a stack of [`STACK_BYTES`] with an unmapped page below it.
//!
//! The binary's `build.rs` passes `link.ld` to the linker. Nothing is done about floating point: the bare-metal target
//! does not use it.
#![cfg_attr(not(test), no_std)]

pub mod command_line;
pub mod elf;
#[cfg(target_os = "none")]
mod entry;
mod info;
pub mod linux;
mod memory_map;
mod multiboot;
pub mod pvh;
mod pvh_parse;

#[cfg(target_os = "none")]
pub use entry::{BootFunction, image};
pub use info::{BootError, BootInfo, Loader, Module, PhysicalMemory};
pub use memory_map::{MAX_REGIONS, MemoryMap, Region, RegionKind, TooManyRegions};

/// Size of the boot stack in bytes.
pub const STACK_BYTES: usize = 256 * 1024;

/// Size of a page in bytes.
pub const PAGE_BYTES: u64 = 4096;

/// Most modules that are taken over from a loader.
pub const MAX_MODULES: usize = 8;

/// Names the function that the boot code calls: `fn main(info: &'static BootInfo) -> !`.
///
/// Used once per binary, at its root. When the loader's data cannot be used there is no [`BootInfo`]: the boot code
/// then panics with the [`BootError`], and so the binary's panic handler prints it. That handler must therefore be able to
/// print without anything that `main` sets up.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        const _: () = {
            // SAFETY: the name is reserved for this macro, and a binary uses the macro once; a second use is an error
            // at link time.
            #[allow(unsafe_code)]
            #[unsafe(no_mangle)]
            static POLLUX_BOOT_MAIN: $crate::BootFunction = $main;
        };
    };
}
