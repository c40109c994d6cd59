//! Nested page tables: guest-physical to host-physical, in the format of ordinary long-mode page tables.
//! See: APM volume 2, 15.25.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::memory::{Gpa, PAGE_SIZE};

/// Page-table entry: present, writable, user (nested walks are user accesses).
const PRESENT_WRITE_USER: u64 = 0b111;
/// Page-directory entry: maps a 2 MiB page.
const LARGE: u64 = 1 << 7;
/// Page-table entry: the CPU wrote to the page. See: APM volume 2, 15.25.10.
const DIRTY: u64 = 1 << 6;

const LARGE_PAGE: u64 = 2 << 20;
const PER_TABLE: u64 = 512;

#[repr(C, align(4096))]
struct Table([u64; 512]);

const _: () = assert!(size_of::<Table>() == 4096);

/// Tables that map guest-physical 0 to the end of guest memory, and nothing else. All of it is mapped up front, so that
/// a nested page fault always means a device.
///
/// Large pages are used wherever base and length allow. While the guest's writes are [tracked](Self::track), every page
/// of 4 KiB has an entry of its own, whose dirty bit says that it was written.
pub struct NestedPaging {
    root: Box<Table>,
    /// The table that the root's only entry points to, kept where it is.
    _pointers: Box<Table>,
    /// One for each GiB, with an entry for each 2 MiB.
    directories: Vec<Box<Table>>,
    /// One for each 2 MiB, or none while they are not needed. A memory that large pages cannot map needs them always.
    pages: Vec<Option<Box<Table>>>,
    base: u64,
    len: u64,
}

fn table() -> Box<Table> {
    Box::new(Table([0; 512]))
}

/// Physical address of a table: the hypervisor's memory is identity-mapped.
fn address(table: &Table) -> u64 {
    core::ptr::from_ref(table) as u64
}

impl NestedPaging {
    /// Maps guest-physical `0 .. len` to host-physical `base ..`; `len` in whole pages, at most 512 GiB.
    #[must_use]
    pub fn new(base: u64, len: u64) -> Self {
        let (mut root, mut pointers) = (table(), table());
        let directories: Vec<_> = (0..len.div_ceil(PER_TABLE * LARGE_PAGE)).map(|_| table()).collect();
        for (pointer, directory) in pointers.0.iter_mut().zip(&directories) {
            *pointer = address(directory) | PRESENT_WRITE_USER;
        }
        root.0[0] = address(&pointers) | PRESENT_WRITE_USER;
        let pages = (0..len.div_ceil(LARGE_PAGE)).map(|_| None).collect();
        let mut paging = Self { root, _pointers: pointers, directories, pages, base, len };
        paging.map(false);
        paging
    }

    /// Writes the directories, with large pages where that is possible and `fine` does not forbid it.
    fn map(&mut self, fine: bool) {
        for index in 0..self.pages.len() {
            let gpa = index as u64 * LARGE_PAGE;
            let large = gpa + LARGE_PAGE <= self.len && self.base.is_multiple_of(LARGE_PAGE);
            let (entry, pages) = if large && !fine {
                ((self.base + gpa) | LARGE | PRESENT_WRITE_USER, None)
            } else {
                let pages = small_pages(self.base + gpa, (self.len - gpa).min(LARGE_PAGE));
                (address(&pages) | PRESENT_WRITE_USER, Some(pages))
            };
            self.directories[index / PER_TABLE as usize].0[index % PER_TABLE as usize] = entry;
            self.pages[index] = pages;
        }
    }

    /// Begins to notice the guest's writes, or ends it. The CPU must forget what it has cached of these tables.
    pub fn track(&mut self, on: bool) {
        self.map(on);
    }

    /// Calls `written` with each page that the guest wrote since the last call, or since the tracking began. The CPU
    /// must forget what it has cached of these tables, or it will not note the next write.
    pub fn take_dirty(&mut self, written: &mut dyn FnMut(Gpa)) {
        for (index, pages) in self.pages.iter_mut().enumerate() {
            let Some(pages) = pages else { continue };
            for (page, entry) in pages.0.iter_mut().enumerate().filter(|(_, entry)| **entry & DIRTY != 0) {
                *entry &= !DIRTY;
                written(Gpa(index as u64 * LARGE_PAGE + page as u64 * PAGE_SIZE));
            }
        }
    }

    /// Physical address of the root table, for the nested CR3.
    #[must_use]
    pub fn root(&self) -> u64 {
        address(&self.root)
    }
}

fn small_pages(base: u64, len: u64) -> Box<Table> {
    let mut pages = table();
    for index in 0..len / PAGE_SIZE {
        pages.0[index as usize] = (base + index * PAGE_SIZE) | PRESENT_WRITE_USER;
    }
    pages
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::*;

    fn entry(table: u64, index: u64) -> u64 {
        // SAFETY: `table` is the address of a live `Table`, `index` is below 512.
        unsafe { *((table & !0xFFF) as *const u64).add(index as usize) }
    }

    fn translate(paging: &NestedPaging, gpa: u64) -> Option<u64> {
        let mut table = paging.root();
        for level in (0..4).rev() {
            let found = entry(table, gpa >> (12 + 9 * level) & 511);
            if found & 1 == 0 {
                return None;
            }
            let mask = (1 << (12 + 9 * level)) - 1;
            if level == 0 || found & LARGE != 0 {
                return Some((found & 0x000F_FFFF_FFFF_F000 & !mask) | (gpa & mask));
            }
            table = found;
        }
        None
    }

    /// What the CPU does at a write.
    fn write(paging: &mut NestedPaging, gpa: u64) {
        let pages = paging.pages[(gpa / LARGE_PAGE) as usize].as_mut().expect("small pages");
        pages.0[(gpa % LARGE_PAGE / PAGE_SIZE) as usize] |= DIRTY;
    }

    #[test]
    fn written_pages_are_told_once() {
        let mut paging = NestedPaging::new(0x4000_0000, 0x40_5000);
        paging.track(true);
        for gpa in [0, 0x1F_FFFF, 0x20_0000, 0x40_4000, 0x40_4008] {
            assert_eq!(translate(&paging, gpa), Some(0x4000_0000 + gpa));
            write(&mut paging, gpa);
        }
        let mut dirty = Vec::new();
        paging.take_dirty(&mut |gpa| dirty.push(gpa.0));
        assert_eq!(dirty, [0, 0x1F_F000, 0x20_0000, 0x40_4000]);
        paging.take_dirty(&mut |gpa| panic!("{gpa:?} was told before"));
        paging.track(false);
        assert_eq!(translate(&paging, 0x20_0000), Some(0x4020_0000));
        assert!(paging.pages[..2].iter().all(Option::is_none), "large pages again");
    }

    #[test]
    fn all_of_memory_is_mapped_and_nothing_else() {
        for (base, len) in [(0x4000_0000, 0x40_0000), (0x4000_0000, 0x40_5000), (0x4000_1000, 0x20_0000)] {
            let paging = NestedPaging::new(base, len);
            for gpa in [0, 1, 0x1F_FFFF, 0x20_0000, len / 2, len - 1] {
                assert_eq!(translate(&paging, gpa), (gpa < len).then_some(base + gpa));
            }
            assert_eq!(translate(&paging, len), None);
            assert_eq!(translate(&paging, 0xFEE0_0000), None);
        }
    }
}
