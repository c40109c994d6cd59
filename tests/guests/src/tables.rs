//! Page tables of a guest's own, in memory that is mapped one to one.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::ptr;

/// Flags of an entry, and the address in one of eight bytes. See: SDM volume 3, 5.5.4.
#[allow(missing_docs, reason = "the manual's names")]
mod flags {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITABLE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
}

pub use flags::*;

/// A page: a table, or what one maps.
#[repr(C, align(4096))]
pub struct Page(UnsafeCell<[u64; 512]>);

// SAFETY: one CPU, and each access is volatile.
unsafe impl Sync for Page {}

impl Page {
    /// A page of zeros.
    #[must_use]
    pub const fn new() -> Self {
        Self(UnsafeCell::new([0; 512]))
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }

    /// An entry of it, or a word.
    #[must_use]
    pub fn entry(&self, index: u64) -> Entry {
        Entry::at(self.address() + 8 * (index % 512))
    }
}

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

/// An entry of a table, or another word of memory that is mapped one to one.
#[derive(Debug, Clone, Copy)]
pub struct Entry(u64);

impl Entry {
    /// The word at an address.
    #[must_use]
    pub const fn at(address: u64) -> Self {
        Self(address)
    }

    /// Where it is.
    #[must_use]
    pub const fn place(self) -> u64 {
        self.0
    }

    /// Its value.
    #[must_use]
    pub fn get(self) -> u64 {
        // SAFETY: a word of a page that lives as long as the guest, or of the boot page tables.
        unsafe { ptr::read_volatile(self.0 as *const u64) }
    }

    /// Changes it. It must map nothing that Rust uses, or map that as before.
    pub fn set(self, value: u64) {
        // SAFETY: as for `get`; no reference to it exists.
        unsafe { ptr::write_volatile(self.0 as *mut u64, value) };
    }

    /// Takes flags away.
    pub fn clear(self, flags: u64) {
        self.set(self.get() & !flags);
    }
}
