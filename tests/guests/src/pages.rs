//! A window of virtual memory whose pages come and go, for page faults.

use x86_64::VirtAddr;
use x86_64::instructions::tlb;
use x86_64::registers::control::{Cr2, Cr3};

use crate::interrupts::{self, Frame};
use crate::tables::{Entry, PRESENT, Page, WRITABLE};

/// First address of the window: behind what the boot page tables map.
pub const WINDOW: u64 = 512 << 30;
/// Pages in the window.
pub const PAGES: usize = 8;
const PRESENT_WRITABLE: u64 = PRESENT | WRITABLE;

static DIRECTORY_POINTERS: Page = Page::new();
static DIRECTORY: Page = Page::new();
static PAGE_TABLE: Page = Page::new();
static CONTENT: [Page; PAGES] = [const { Page::new() }; PAGES];

/// Adds the window to the address space, all its pages absent, and maps a page when it faults.
pub fn init() {
    DIRECTORY_POINTERS.entry(0).set(DIRECTORY.address() | PRESENT_WRITABLE);
    DIRECTORY.entry(0).set(PAGE_TABLE.address() | PRESENT_WRITABLE);
    let root = Cr3::read().0.start_address().as_u64();
    // Entry 1 of the boot page tables' root, which maps the window's 512 GiB, is not used.
    Entry::at(root + 8).set(DIRECTORY_POINTERS.address() | PRESENT_WRITABLE);
    interrupts::set_handler(14, page_fault);
}

fn page_fault(frame: &mut Frame) {
    let address = Cr2::read_raw();
    match address.checked_sub(WINDOW).map(|offset| (offset / 4096) as usize) {
        Some(page) if page < PAGES => PAGE_TABLE.entry(page as u64).set(CONTENT[page].address() | PRESENT_WRITABLE),
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
    PAGE_TABLE.entry((page % PAGES) as u64).set(0);
    tlb::flush(VirtAddr::new(WINDOW + (page % PAGES) as u64 * 4096));
}
