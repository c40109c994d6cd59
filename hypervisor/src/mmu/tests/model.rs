//! A CPU with a TLB that forgets and fetches ahead as it likes, above the tables under test; and one without any TLB.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::super::*;
use crate::cpu::registers::{CR0_PE, CR0_PG, EFER_LME};
use crate::emulate::walk::PageFault;

/// Pages of guest memory: tables and data alike.
pub const PAGES: u64 = 16;
/// Tables in the pool: few, so that it is used up now and then.
const POOL: usize = 24;
const PHYSICAL_BITS: u32 = 40;

/// An access of the program's.
#[derive(Debug, Clone, Copy)]
pub struct Touch {
    /// Where: see [`address`].
    pub page: u64,
    pub offset: u64,
    pub access: Access,
    /// What is written.
    pub value: u64,
}

/// What one instruction came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Value(u64),
    Nothing,
    Fault(PageFault),
}

/// How a program's addresses are translated.
pub trait Translator {
    fn load(&mut self, memory: &GuestMemory, paging: &Paging);
    fn translate(&mut self, memory: &mut GuestMemory, gva: u64, access: Access) -> Result<Gpa, WalkError>;
    fn invalidate(&mut self, memory: &GuestMemory, gva: u64);
}

/// Walks the guest's tables each time.
#[derive(Default)]
pub struct NoTlb(Paging);

impl Translator for NoTlb {
    fn load(&mut self, _: &GuestMemory, paging: &Paging) {
        self.0 = *paging;
    }

    fn translate(&mut self, memory: &mut GuestMemory, gva: u64, access: Access) -> Result<Gpa, WalkError> {
        walk::translate(&self.0, memory, gva, access)
    }

    fn invalidate(&mut self, _: &GuestMemory, _: u64) {}
}

/// What is left to chance in a CPU.
pub struct Chance(pub u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Walks the tables under test, and caches what it finds.
pub struct Tlb {
    pub mmu: Mmu,
    paging: Paging,
    root: u64,
    /// Entries with all rights along the way, and the level of the last.
    cached: BTreeMap<u64, (u64, u32)>,
    chance: Chance,
    pub fills: u64,
}

impl Tlb {
    pub fn new(chance: u64) -> Self {
        Self {
            mmu: Mmu::new(POOL, PHYSICAL_BITS),
            paging: Paging::default(),
            root: 0,
            cached: BTreeMap::new(),
            chance: Chance(chance),
            fills: 0,
        }
    }

    fn walk_from(&mut self, root: Option<u64>) {
        if let Some(root) = root {
            self.root = root;
            self.cached.clear();
        }
    }

    /// The CPU's walk: of the tables in the window, nowhere else.
    fn walk(&self, gva: u64) -> Option<(u64, u32)> {
        let format = Format::of(&self.paging).ok()?;
        let (mut table, mut rights, mut no_execute) = (self.root, WRITABLE | USER, 0);
        for level in (1..=format.levels()).rev() {
            assert!(table >= WINDOW.0 && table < WINDOW.0 + POOL as u64 * PAGE_SIZE, "a walk of {table:#x}");
            let entry = self.mmu.tables.get(format, Tables::child(table), format.index(gva, level));
            if entry & PRESENT == 0 {
                return None;
            }
            let leaf = format.is_leaf(&self.paging, level, entry);
            assert_eq!(entry & format.reserved(&self.paging, level, leaf), 0, "{entry:#x}");
            if !format.is_pointer(level) {
                rights &= entry;
                no_execute |= entry & NO_EXECUTE;
                assert_ne!(entry & ACCESSED, 0, "the CPU would write");
            }
            if leaf {
                assert_ne!(entry & DIRTY, 0, "the CPU would write");
                return Some((entry & !(WRITABLE | USER) | rights | no_execute, level));
            }
            table = entry & ADDRESS;
        }
        None
    }

    /// What happens between two steps of an instruction that nobody asked for.
    fn happens(&mut self) {
        let page = address(self.chance.below(64));
        match self.chance.below(8) {
            0 => self.cached.clear(),
            1 | 2 => drop(self.cached.remove(&(page / PAGE_SIZE))),
            3 | 4 => {
                let format = Format::of(&self.paging).unwrap();
                let page = format.linear(page);
                if let Some(found) = self.walk(page) {
                    self.cached.insert(page / PAGE_SIZE, found);
                }
            }
            _ => {}
        }
    }
}

impl Translator for Tlb {
    fn load(&mut self, memory: &GuestMemory, paging: &Paging) {
        let root = self.mmu.load(memory, paging).unwrap();
        self.paging = *paging;
        self.walk_from(root);
        assert!(root.is_some());
    }

    fn translate(&mut self, memory: &mut GuestMemory, gva: u64, access: Access) -> Result<Gpa, WalkError> {
        let format = Format::of(&self.paging)?;
        let gva = format.linear(gva);
        let hardware = Paging { cr0: self.paging.cr0 | CR0_WP, ..self.paging };
        // Behind the instruction before this one.
        let root = self.mmu.close();
        self.walk_from(root);
        for _ in 0..4 {
            self.happens();
            let found = match self.cached.get(&(gva / PAGE_SIZE)) {
                Some(&found) => Some(found),
                None => self.walk(gva),
            };
            if let Some((entry, level)) =
                found.filter(|&(entry, _)| access.allowed(&hardware, entry, entry & NO_EXECUTE != 0))
            {
                self.cached.insert(gva / PAGE_SIZE, (entry, level));
                let within = (1 << format.shift(level)) - 1;
                return Ok(Gpa(format.frame(entry, level) & !within | gva & within));
            }
            self.fills += 1;
            let root = self.mmu.fault(memory, gva, access)?;
            self.walk_from(root);
        }
        panic!("the instruction does not get on at {gva:#x}");
    }

    fn invalidate(&mut self, memory: &GuestMemory, gva: u64) {
        let root = self.mmu.invalidate(memory, gva);
        self.walk_from(root);
    }
}

/// A guest of which only memory, control registers and accesses matter.
pub struct World<T> {
    pub memory: GuestMemory,
    pub paging: Paging,
    pub translator: T,
}

impl<T: Translator> World<T> {
    /// Tables that lead to one another and to themselves.
    pub fn new(format: Format, translator: T) -> Self {
        let (cr4, efer) = match format {
            Format::Legacy => (CR4_PSE, 0),
            Format::Pae => (CR4_PAE, EFER_NXE),
            Format::Long => (CR4_PAE, EFER_LME | EFER_LMA | EFER_NXE),
        };
        let mut memory = GuestMemory::for_test((PAGES * PAGE_SIZE) as usize);
        for table in 0..PAGES {
            for index in 0..4 {
                let entry = ((table * 5 + index * 3 + 1) % PAGES) * PAGE_SIZE + flags(format, 0x67);
                put(format, &mut memory, table * PAGE_SIZE, index, entry);
            }
        }
        let paging = Paging {
            cr0: CR0_PE | CR0_PG | CR0_WP,
            cr3: PAGE_SIZE,
            cr4,
            efer,
            beyond: ADDRESS & !((1 << PHYSICAL_BITS) - 1),
        };
        let mut world = Self { memory, paging, translator };
        world.reload();
        world
    }

    pub fn format(&self) -> Format {
        Format::of(&self.paging).unwrap()
    }

    pub fn reload(&mut self) {
        self.translator.load(&self.memory, &self.paging);
    }

    pub fn touch(&mut self, touch: &Touch) -> Seen {
        let gva = address(touch.page) + touch.offset % 8 * 8;
        match self.translator.translate(&mut self.memory, gva, touch.access) {
            Ok(gpa) if touch.access.kind == AccessKind::Write => {
                let _ = self.memory.write(gpa, &touch.value.to_le_bytes());
                Seen::Nothing
            }
            Ok(gpa) => Seen::Value(self.memory.read(gpa).map_or(u64::MAX, u64::from_le_bytes)),
            Err(WalkError::PageFault(fault)) => Seen::Fault(fault),
            Err(WalkError::FiveLevel) => panic!("there are four"),
        }
    }

    /// The linear addresses of all pages whose translation uses an entry, whatever its rights are.
    pub fn users(&self, at: Gpa) -> Vec<u64> {
        let format = self.format();
        let uses = |&gva: &u64| {
            let mut table = format.root(self.paging.cr3);
            for level in (1..=format.levels()).rev() {
                let index = format.index(gva, level);
                if table + index * format.entry_size() == at.0 {
                    return true;
                }
                let entry = format.entry(&self.memory, table, index);
                if entry & PRESENT == 0 || format.is_leaf(&self.paging, level, entry) {
                    return false;
                }
                table = entry & ADDRESS;
            }
            false
        };
        (0..64).map(address).filter(uses).collect()
    }
}

/// Address of a page that is reached by the first entries of each level.
pub fn address(page: u64) -> u64 {
    let bit = |bit: u64| page >> bit & 1;
    bit(0) << 12 | bit(1) << 21 | bit(2) << 22 | bit(3) << 30 | bit(4) << 39 | bit(5) << 13
}

/// An entry's flags, without those that a pointer of PAE reserves.
pub fn flags(format: Format, flags: u64) -> u64 {
    if format == Format::Pae { flags & !0x1E6 } else { flags }
}

pub fn put(format: Format, memory: &mut GuestMemory, table: u64, index: u64, entry: u64) {
    let size = format.entry_size();
    memory.write(Gpa(table + index * size), &entry.to_le_bytes()[..size as usize]).unwrap();
}
