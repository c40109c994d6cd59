//! A window of virtual memory whose pages come and go, for page faults.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;

use x86_64::VirtAddr;
use x86_64::instructions::tlb;
use x86_64::registers::control::{Cr2, Cr3};

use crate::interrupts::{self, Frame};

/// First address of the window: behind what the boot page tables map.
pub const WINDOW: u64 = 512 << 30;
/// Pages in the window.
pub const PAGES: usize = 8;
const PRESENT_WRITABLE: u64 = 3;

#[repr(C, align(4096))]
struct Table(UnsafeCell<[u64; 512]>);

// SAFETY: one CPU, and each function below uses the tables alone.
unsafe impl Sync for Table {}

impl Table {
    const fn new() -> Self {
        Self(UnsafeCell::new([0; 512]))
    }

    fn set(&self, index: usize, entry: u64) {
        // SAFETY: no reference to the content exists elsewhere.
        unsafe { (*self.0.get())[index] = entry };
    }

    fn address(&self) -> u64 {
        self.0.get() as u64
    }
}

static DIRECTORY_POINTERS: Table = Table::new();
static DIRECTORY: Table = Table::new();
static PAGE_TABLE: Table = Table::new();
static CONTENT: [Table; PAGES] = [const { Table::new() }; PAGES];

/// Adds the window to the address space, all its pages absent, and maps a page when it faults.
pub fn init() {
    DIRECTORY_POINTERS.set(0, DIRECTORY.address() | PRESENT_WRITABLE);
    DIRECTORY.set(0, PAGE_TABLE.address() | PRESENT_WRITABLE);
    let root = Cr3::read().0.start_address().as_u64() as *mut u64;
    // SAFETY: entry 1 of the boot page tables' root, which maps the window's 512 GiB, is not used.
    unsafe { root.add(1).write_volatile(DIRECTORY_POINTERS.address() | PRESENT_WRITABLE) };
    interrupts::set_handler(14, page_fault);
}

fn page_fault(frame: &mut Frame) {
    let address = Cr2::read_raw();
    match address.checked_sub(WINDOW).map(|offset| (offset / 4096) as usize) {
        Some(page) if page < PAGES => PAGE_TABLE.set(page, CONTENT[page].address() | PRESENT_WRITABLE),
        _ => panic!("page fault at {address:#x}, {frame:#x?}"),
    }
}

/// Where the memory behind a page of the window is seen too, always.
#[must_use]
pub fn content(page: usize) -> u64 {
    CONTENT[page % PAGES].address()
}

/// Makes a page of the window absent again.
pub fn unmap(page: usize) {
    PAGE_TABLE.set(page % PAGES, 0);
    tlb::flush(VirtAddr::new(WINDOW + (page % PAGES) as u64 * 4096));
}
