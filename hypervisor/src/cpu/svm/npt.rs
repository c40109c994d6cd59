//! Nested page tables: guest-physical to host-physical, in the format of ordinary long-mode page tables.
//! See: APM volume 2, 15.25.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// Page-table entry: present, writable, user (nested walks are user accesses).
const PRESENT_WRITE_USER: u64 = 0b111;
/// Page-directory entry: maps a 2 MiB page.
const LARGE: u64 = 1 << 7;

const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
const PER_TABLE: u64 = 512;

#[repr(C, align(4096))]
struct Table([u64; 512]);

const _: () = assert!(size_of::<Table>() == 4096);

/// Tables that map guest-physical 0 to the end of guest memory, and nothing else. All of it is mapped up front, so that
/// a nested page fault always means a device.
pub struct NestedPaging {
    root: Box<Table>,
    // The tables below the root, kept where the entries point.
    _tables: Vec<Box<Table>>,
}

fn table() -> Box<Table> {
    Box::new(Table([0; 512]))
}

/// Physical address of a table: the hypervisor's memory is identity-mapped.
fn address(table: &Table) -> u64 {
    core::ptr::from_ref(table) as u64
}

impl NestedPaging {
    /// Maps guest-physical `0 .. len` to host-physical `base ..`; `len` in whole pages, at most 512 GiB. Uses large
    /// pages wherever `base` and `len` allow.
    #[must_use]
    pub fn new(base: u64, len: u64) -> Self {
        let mut root = table();
        let mut pointers = table();
        let mut tables = Vec::new();
        for gib in 0..len.div_ceil(PER_TABLE * LARGE_PAGE) {
            let mut directory = table();
            for index in 0..PER_TABLE {
                let gpa = (gib * PER_TABLE + index) * LARGE_PAGE;
                if gpa >= len {
                    break;
                }
                directory.0[index as usize] = if gpa + LARGE_PAGE <= len && base.is_multiple_of(LARGE_PAGE) {
                    (base + gpa) | LARGE | PRESENT_WRITE_USER
                } else {
                    let pages = small_pages(base + gpa, (len - gpa).min(LARGE_PAGE));
                    let entry = address(&pages) | PRESENT_WRITE_USER;
                    tables.push(pages);
                    entry
                };
            }
            pointers.0[gib as usize] = address(&directory) | PRESENT_WRITE_USER;
            tables.push(directory);
        }
        root.0[0] = address(&pointers) | PRESENT_WRITE_USER;
        tables.push(pointers);
        Self { root, _tables: tables }
    }

    /// Physical address of the root table, for the nested CR3.
    #[must_use]
    pub fn root(&self) -> u64 {
        address(&self.root)
    }
}

fn small_pages(base: u64, len: u64) -> Box<Table> {
    let mut pages = table();
    for index in 0..len / PAGE {
        pages.0[index as usize] = (base + index * PAGE) | PRESENT_WRITE_USER;
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
