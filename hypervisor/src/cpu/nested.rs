//! Nested page tables: guest-physical to host-physical. Both vendors' have the shape of ordinary long-mode page tables;
//! only the flags in the entries differ. See: APM volume 2, 15.25; SDM volume 3, 29.3.2.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::memory::{Gpa, PAGE_SIZE};

/// Bits 12 to 51: the address in an entry of eight bytes.
pub(crate) const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// Flags of a vendor's entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Of an entry that leads to another table.
    pub table: u64,
    /// Of an entry that maps a page, without the mark of a large one.
    pub page: u64,
    /// What an entry of the lowest level has when its page was written since the flag was last taken away: the CPU's
    /// dirty flag. Where there is none it is the right to write, which [`NestedPaging::allow_write`] gives back.
    pub written: u64,
    /// Pages of 1 GiB may be used.
    pub gib_pages: bool,
    /// Instead of `page` while [`NestedPaging::guard`] is on: of a page that may be written, but not executed.
    pub data: u64,
    /// Likewise: of a page that may be executed, but not written.
    pub code: u64,
}

/// What the guest may do with a page beside reading it, while pages are guarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Write.
    Write,
    /// Execute.
    Execute,
    /// Both.
    Both,
}

/// Mark of an entry above the lowest level that maps a page.
const LARGE: u64 = 1 << 7;

const PER_TABLE: u64 = 512;
/// Bytes that one entry covers, by level: 4 KiB, 2 MiB, 1 GiB, 512 GiB.
const COVERED: [u64; 4] = [1 << 12, 1 << 21, 1 << 30, 1 << 39];

#[repr(C, align(4096))]
struct Table([u64; 512]);

const _: () = assert!(size_of::<Table>() == 4096);

/// Physical address of a table: the hypervisor's memory is identity-mapped.
fn address(table: &Table) -> u64 {
    core::ptr::from_ref(table) as u64
}

/// Tables that map guest-physical 0 to the end of guest memory, and nothing else. All of it is mapped up front, so that
/// a nested page fault always means a device.
///
/// Large pages are used wherever base and length allow. While the guest's writes are [tracked](Self::track), every page
/// of 4 KiB has an entry of its own, which tells that it was written.
pub struct NestedPaging {
    root: Box<Table>,
    /// The tables between the root and the lowest level, kept where the entries point.
    upper: Vec<Box<Table>>,
    /// Those of the lowest level, each with its first address, in order.
    lowest: Vec<(u64, Box<Table>)>,
    base: u64,
    len: u64,
    format: Format,
    tracked: bool,
    guarded: bool,
    windows: Vec<Window>,
    shown: Option<WindowNumber>,
}

/// Which of the windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowNumber(usize);

/// Memory of the host's that is seen above the guest's, now and then.
struct Window {
    /// Which entry of the table of the level below the root it is.
    index: usize,
    /// That entry's table, and those below it.
    directory: Box<Table>,
    _tables: Vec<Box<Table>>,
}

impl NestedPaging {
    /// Maps guest-physical `0 .. len` to host-physical `base ..`; `len` in whole pages, at most 512 GiB.
    #[must_use]
    pub fn new(base: u64, len: u64, format: Format) -> Self {
        let root = Box::new(Table([0; 512]));
        let mut paging = Self {
            root,
            upper: Vec::new(),
            lowest: Vec::new(),
            base,
            len,
            format,
            tracked: false,
            guarded: false,
            windows: Vec::new(),
            shown: None,
        };
        paging.build();
        paging
    }

    /// Begins to notice the guest's writes, or ends it. The CPU must forget what it has cached of these tables.
    pub fn track(&mut self, on: bool) {
        self.tracked = on;
        self.build();
    }

    /// Begins to give each page only one of the rights to be written and to be executed, or ends it. All pages may be
    /// written at first; [`allow`](Self::allow) changes that. The CPU must forget what it has cached of these tables.
    pub fn guard(&mut self, on: bool) {
        self.guarded = on;
        self.build();
    }

    fn build(&mut self) {
        let Self { base, len, format, tracked, guarded, .. } = *self;
        let small = tracked || guarded;
        let flags = if guarded { format.data } else { format.page };
        let flags = if tracked { flags & !format.written } else { flags };
        let mut builder = Builder { base, len, format, small, flags, upper: Vec::new(), lowest: Vec::new() };
        builder.fill(&mut self.root, 3, 0);
        (self.upper, self.lowest) = (builder.upper, builder.lowest);
        self.attach_window();
    }

    /// Prepares a window: guest-physical `gpa ..` within one GiB that has no guest memory, of `len` bytes in whole pages, to
    /// host-physical `base ..`. It is not shown yet; of several one can be.
    ///
    /// # Panics
    /// When there is guest memory, or the window does not lie within one GiB below 512 GiB (a bug of the caller).
    pub fn make_window(&mut self, gpa: u64, base: u64, len: u64) -> WindowNumber {
        let start = gpa & !(COVERED[2] - 1);
        assert!(self.len <= start && gpa + len <= start + COVERED[2] && start < COVERED[3], "no place for a window");
        let mut directory = Box::new(Table([0; 512]));
        let mut tables = Vec::new();
        for page in (0..len).step_by(COVERED[1] as usize) {
            let mut table = Box::new(Table([0; 512]));
            for at in (page..len.min(page + COVERED[1])).step_by(PAGE_SIZE as usize) {
                table.0[((gpa + at) / PAGE_SIZE % PER_TABLE) as usize] = (base + at) | self.format.page;
            }
            directory.0[((gpa + page) / COVERED[1] % PER_TABLE) as usize] = address(&table) | self.format.table;
            tables.push(table);
        }
        let index = (gpa / COVERED[2]) as usize;
        self.windows.push(Window { index, directory, _tables: tables });
        WindowNumber(self.windows.len() - 1)
    }

    /// Shows this window and no other. Returns whether that changes anything: then the CPU must forget what it has cached
    /// of these tables.
    pub fn show_window(&mut self, window: Option<WindowNumber>) -> bool {
        let changes = core::mem::replace(&mut self.shown, window) != window;
        if changes {
            self.attach_window();
        }
        changes
    }

    fn attach_window(&mut self) {
        if self.windows.is_empty() {
            return;
        }
        // The CPU may have set flags of its own.
        let below_root = self.root.0[0] & ADDRESS;
        let table = self.upper.iter_mut().find(|table| address(table) == below_root);
        let table = table.expect("the root's first entry leads to a table");
        for window in &self.windows {
            table.0[window.index] = 0;
        }
        if let Some(WindowNumber(shown)) = self.shown {
            let Window { index, directory, .. } = &self.windows[shown];
            table.0[*index] = address(directory) | self.format.table;
        }
    }

    /// Calls `written` with each page that the guest wrote since the last call, or since the tracking began. The CPU
    /// must forget what it has cached of these tables, or it will not note the next write.
    pub fn take_written(&mut self, written: &mut dyn FnMut(Gpa)) {
        let flag = self.format.written;
        for (start, table) in &mut self.lowest {
            for (page, entry) in (0..).zip(&mut table.0) {
                if *entry & flag != 0 {
                    *entry &= !flag;
                    written(Gpa(*start + page * PAGE_SIZE));
                }
            }
        }
    }

    /// Notes a write of the guest's to the page at `gpa` and allows it. Returns whether there was nothing but the
    /// tracking that forbade it.
    pub fn allow_write(&mut self, gpa: Gpa) -> bool {
        let written = self.format.written;
        let Some(entry) = self.entry(gpa) else { return false };
        let forbidden = *entry & written == 0;
        if forbidden {
            *entry |= written;
        }
        forbidden
    }

    /// Gives the page at `gpa` a right, and takes the other one away. Returns whether it is a page that is guarded. The
    /// CPU must forget what it has cached of these tables.
    pub fn allow(&mut self, gpa: Gpa, right: Right) -> bool {
        let Format { data, code, page, .. } = self.format;
        let guarded = self.guarded;
        let Some(entry) = self.entry(gpa).filter(|_| guarded) else { return false };
        let rights = match right {
            Right::Write => data,
            Right::Execute => code,
            Right::Both => page,
        };
        *entry = *entry & !(data | code | page) | rights;
        true
    }

    /// Takes a right to the page at `gpa` away. Returns whether it is a page that is guarded. The CPU must forget what it has
    /// cached of these tables.
    pub fn forbid(&mut self, gpa: Gpa, right: Right) -> bool {
        let Format { data, code, page, .. } = self.format;
        let guarded = self.guarded;
        let Some(entry) = self.entry(gpa).filter(|_| guarded) else { return false };
        if matches!(right, Right::Write | Right::Both) {
            *entry &= !(page & !code);
        }
        if matches!(right, Right::Execute | Right::Both) {
            // A flag that gives the right, or one that denies it.
            *entry = *entry & !(page & !data) | data & !page;
        }
        true
    }

    /// The entry of a page of 4 KiB that is memory.
    fn entry(&mut self, gpa: Gpa) -> Option<&mut u64> {
        let index = self.lowest.binary_search_by_key(&(gpa.0 & !(COVERED[1] - 1)), |&(start, _)| start).ok()?;
        Some(&mut self.lowest[index].1.0[(gpa.0 / PAGE_SIZE % PER_TABLE) as usize]).filter(|entry| **entry != 0)
    }

    /// Physical address of the root table, which never changes.
    #[must_use]
    pub fn root(&self) -> u64 {
        address(&self.root)
    }
}

struct Builder {
    base: u64,
    len: u64,
    format: Format,
    /// Every page has 4 KiB.
    small: bool,
    /// Of an entry that maps a page, without the mark of a large one.
    flags: u64,
    upper: Vec<Box<Table>>,
    lowest: Vec<(u64, Box<Table>)>,
}

impl Builder {
    /// Fills a table at `level` (0 is the lowest) for guest-physical addresses from `start` on.
    fn fill(&mut self, table: &mut Table, level: usize, start: u64) {
        let entries = (self.len - start).div_ceil(COVERED[level]).min(PER_TABLE);
        for index in 0..entries {
            let gpa = start + index * COVERED[level];
            table.0[index as usize] =
                if self.is_page(level, gpa) { self.page(level, gpa) } else { self.below(level - 1, gpa) };
        }
    }

    /// Makes a table for what one entry covers, and that entry.
    fn below(&mut self, level: usize, start: u64) -> u64 {
        let mut table = Box::new(Table([0; 512]));
        self.fill(&mut table, level, start);
        let entry = address(&table) | self.format.table;
        if level == 0 {
            self.lowest.push((start, table))
        } else {
            self.upper.push(table)
        }
        entry
    }

    fn page(&self, level: usize, gpa: u64) -> u64 {
        let mark = if level > 0 { LARGE } else { 0 };
        (self.base + gpa) | mark | self.flags
    }

    /// Whether one page at `level` can map `gpa`.
    fn is_page(&self, level: usize, gpa: u64) -> bool {
        let fits = self.base.is_multiple_of(COVERED[level]) && gpa + COVERED[level] <= self.len;
        match level {
            0 => true,
            1 => fits && !self.small,
            2 => fits && !self.small && self.format.gib_pages,
            _ => false,
        }
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::*;

    const NPT: Format =
        Format { table: 0b111, page: 0b111, written: 1 << 6, gib_pages: false, data: 0b111 | 1 << 63, code: 0b101 };
    const EPT: Format = Format {
        table: 0b111,
        page: 0b111 | 6 << 3,
        written: 1 << 9,
        gib_pages: true,
        data: 0b011 | 6 << 3,
        code: 0b101 | 6 << 3,
    };
    /// Of a CPU without dirty flags.
    const OLD_EPT: Format = Format { written: 1 << 1, ..EPT };

    fn entry(table: u64, index: u64) -> u64 {
        // SAFETY: `table` is the address of a live `Table`, `index` is below 512.
        unsafe { *((table & 0x000F_FFFF_FFFF_F000) as *const u64).add(index as usize) }
    }

    /// Host-physical address, flags of the last entry and its level.
    fn translate(paging: &NestedPaging, gpa: u64) -> Option<(u64, u64, usize)> {
        let mut table = paging.root();
        for level in (0..4).rev() {
            let found = entry(table, gpa / COVERED[level] % PER_TABLE);
            if found & 1 == 0 {
                return None;
            }
            let mask = COVERED[level] - 1;
            if level == 0 || found & LARGE != 0 {
                return Some(((found & 0x000F_FFFF_FFFF_F000 & !mask) | (gpa & mask), found & 0xFFF & !LARGE, level));
            }
            assert_eq!(found & 0xFFF, 0b111);
            table = found;
        }
        None
    }

    /// What the CPU, or the hypervisor for it, does at a write.
    fn write(paging: &mut NestedPaging, gpa: u64) {
        assert!(paging.allow_write(Gpa(gpa)), "{gpa:#x} was not written before");
        assert!(!paging.allow_write(Gpa(gpa | 8)));
    }

    #[test]
    fn written_pages_are_told_once() {
        for format in [NPT, EPT, OLD_EPT] {
            let mut paging = NestedPaging::new(0x4000_0000, 0x40_5000, format);
            let root = paging.root();
            assert!(!paging.allow_write(Gpa(0)), "nothing is tracked");
            paging.track(true);
            for gpa in [0, 0x1F_FFF0, 0x20_0000, 0x40_4000] {
                let unwritten = Some((0x4000_0000 + gpa, format.page & !format.written, 0));
                assert_eq!(translate(&paging, gpa), unwritten);
                write(&mut paging, gpa);
            }
            assert!(!paging.allow_write(Gpa(0x40_5000)), "this is no memory");
            let mut dirty = Vec::new();
            paging.take_written(&mut |gpa| dirty.push(gpa.0));
            assert_eq!(dirty, [0, 0x1F_F000, 0x20_0000, 0x40_4000]);
            paging.take_written(&mut |gpa| panic!("{gpa:?} was told before"));
            write(&mut paging, 0x20_0000);
            paging.track(false);
            assert_eq!(translate(&paging, 0x20_0000), Some((0x4020_0000, format.page, 1)), "large pages again");
            assert_eq!(paging.root(), root);
        }
    }

    #[test]
    fn a_window_is_seen_while_it_is_shown() {
        const AT: u64 = 0xF000_0000;
        for format in [NPT, EPT] {
            let mut paging = NestedPaging::new(0x4000_0000, 0x40_0000, format);
            let window = Some(paging.make_window(AT, 0x1234_5000, 0x40_0000));
            let other = Some(paging.make_window(AT, 0x6789_0000, 0x1000));
            assert_eq!(translate(&paging, AT), None);
            // The CPU marks what it walked.
            paging.root.0[0] |= 1 << 5;
            assert!(paging.show_window(window) && !paging.show_window(window));
            for tracked in [true, false] {
                paging.track(tracked);
                assert_eq!(translate(&paging, AT + 0x3F_F008), Some((0x1274_4008, format.page, 0)));
                assert_eq!((translate(&paging, AT - 1), translate(&paging, AT + 0x40_0000)), (None, None));
                assert_eq!(translate(&paging, 8).map(|found| found.0), Some(0x4000_0008));
            }
            assert!(paging.show_window(other));
            assert_eq!(translate(&paging, AT), Some((0x6789_0000, format.page, 0)));
            assert_eq!(translate(&paging, AT + 0x1000), None);
            assert!(paging.show_window(None));
            assert_eq!(translate(&paging, AT), None);
        }
    }

    #[test]
    fn a_guarded_page_is_written_or_executed() {
        let address = |paging: &NestedPaging, gpa| {
            let table = (0..3).fold(paging.root(), |table, level| entry(table, gpa / COVERED[3 - level] % PER_TABLE));
            entry(table, gpa / COVERED[0] % PER_TABLE)
        };
        for format in [NPT, EPT] {
            let mut paging = NestedPaging::new(0x4000_0000, 0x40_0000, format);
            assert!(!paging.allow(Gpa(0x1000), Right::Execute), "nothing is guarded");
            paging.guard(true);
            assert_eq!(address(&paging, 0x20_1000), 0x4020_1000 | format.data);
            for (right, flags) in
                [(Right::Execute, format.code), (Right::Both, format.page), (Right::Write, format.data)]
            {
                assert!(paging.allow(Gpa(0x20_1008), right));
                assert_eq!(address(&paging, 0x20_1000), 0x4020_1000 | flags, "{right:?}");
                assert_eq!(address(&paging, 0x20_2000), 0x4020_2000 | format.data, "only that page");
            }
            assert!(!paging.allow(Gpa(0x40_0000), Right::Write), "this is no memory");
            let neither = format.data & format.code | format.data & !format.page;
            for (forbidden, left) in
                [(Right::Execute, format.data), (Right::Write, format.code), (Right::Both, neither)]
            {
                paging.allow(Gpa(0x20_1000), Right::Both);
                assert!(paging.forbid(Gpa(0x20_1008), forbidden) && paging.forbid(Gpa(0x20_1008), forbidden));
                assert_eq!(address(&paging, 0x20_1000), 0x4020_1000 | left, "{forbidden:?}");
            }
            assert!(!paging.forbid(Gpa(0x40_0000), Right::Write), "this is no memory");
            paging.track(true);
            assert_eq!(address(&paging, 0x20_1000), 0x4020_1000 | format.data & !format.written);
            paging.track(false);
            paging.guard(false);
            assert_eq!(translate(&paging, 0x20_1000), Some((0x4020_1000, format.page, 1)), "large pages again");
        }
    }

    #[test]
    fn all_of_memory_is_mapped_and_nothing_else() {
        for format in [NPT, EPT] {
            for (base, len) in [(0x4000_0000, 0x40_0000), (0x4000_0000, 0x40_5000), (0x4000_1000, 0x20_0000)] {
                let paging = NestedPaging::new(base, len, format);
                for gpa in [0, 1, 0x1F_FFFF, 0x20_0000, len / 2, len - 1] {
                    let found = translate(&paging, gpa).map(|(hpa, flags, _)| (hpa, flags));
                    assert_eq!(found, (gpa < len).then_some((base + gpa, format.page)));
                }
                assert_eq!(translate(&paging, len), None);
                assert_eq!(translate(&paging, 0xFEE0_0000), None);
            }
        }
    }

    #[test]
    fn pages_are_as_large_as_can_be() {
        let level = |base, len, gpa, format| translate(&NestedPaging::new(base, len, format), gpa).map(|found| found.2);
        assert_eq!(level(1 << 30, 3 << 29, 0, EPT), Some(2));
        assert_eq!(level(1 << 30, 3 << 29, 1 << 30, EPT), Some(1));
        assert_eq!(level(1 << 30, 1 << 30, 0, NPT), Some(1));
        assert_eq!(level(1 << 21, 1 << 30, 0, EPT), Some(1));
        assert_eq!(level(1 << 21, (1 << 21) + 4096, 1 << 21, EPT), Some(0));
        assert_eq!(level(4096, 1 << 21, 0, EPT), Some(0));
    }
}
