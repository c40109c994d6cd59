//! Translations as a function of the guest's own instructions.
//!
//! What a processor's TLB holds depends on what nobody controls: evictions, speculative walks, exits for the host. A guest
//! can see it, in accessed and dirty bits, and in pages that it remaps without a flush. So with `mmu=tracked` the CPU never
//! walks the guest's tables. It walks tables of ours, of the same format, which lead to guest-physical addresses like the
//! guest's; below them is nested paging as ever. [`Mmu`] fills them when the guest's instruction faults for want of an
//! entry, by a walk of the guest's tables that sets accessed and dirty bits as the manual says. An entry allows writing
//! only once the guest's has its dirty bit. The CPU's own walks, speculative ones too, and its TLB know only our tables,
//! which nobody but us can see.
//!
//! The tables are thus a TLB whose contents follow from the guest's instructions. It is emptied at the architecture's
//! events only: INVLPG, and loads of CR3, CR0, CR4 and EFER that flush. Emptied in effect: an entry whose source in the
//! guest's memory is still the one that it was made from is what a new walk would come to, and stays; any other goes.
//! So a process that comes back finds its translations. A translation that the guest has changed and not flushed may be
//! used until it is, as on every processor; but on both twins alike. When the pool is used up, at an instruction that is
//! the same for both, all are forgotten. A state transfer forgets them on both sides.
//!
//! Alternatives, and why not: write-protecting the guest's tables in the nested ones and exiting at each store (with
//! AMD's nested paging each walk of the CPU's counts as a write and would exit; every instruction that can store has to
//! be emulated; bulk edits pay an exit a store). See docs/determinism.md.

mod tables;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use self::tables::{Key, Number, Tables};
use crate::cpu::registers::EFER_LMA;
use crate::emulate::walk::{
    self, ACCESSED, ADDRESS, Access, AccessKind, CR0_WP, CR4_PAE, CR4_PSE, CR4_SMAP, CR4_SMEP, DIRTY, EFER_NXE, Format,
    LARGE, NO_EXECUTE, PRESENT, Paging, Step, USER, WRITABLE, Walk, WalkError,
};
use crate::memory::{Gpa, GuestMemory, PAGE_SIZE};

/// Where the CPU finds the tables among guest-physical addresses while paging is on. The guest never reaches it: no entry
/// leads there, and without paging nothing is there. It lies below 4 GiB, for CR3 of 32 bits, and above all memory.
pub const WINDOW: Gpa = Gpa(0xF000_0000);

/// Tables in the pool: 4 MiB of them, and as much of what they were made from.
pub const TABLES: usize = 1024;

/// Where entries lead instead of to the window: to nowhere.
const NOWHERE: u64 = 1 << 35;
/// The same for entries that cannot have that bit.
pub const NOWHERE_LEGACY: u64 = 1 << 26;

/// Neighbours that are looked at when an entry is made: a CPU may fetch ahead what has its accessed bit.
const NEIGHBOURS: u64 = 16;

/// Flags of an entry that go from the guest's into ours: memory type, and large (or, in the lowest level, memory type).
const KEPT: u64 = 1 << 3 | 1 << 4 | LARGE;

/// What the option `mmu=` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// The CPU walks the guest's tables if the self-test finds that it remembers nothing of them; ours otherwise.
    #[default]
    Auto,
    /// The CPU walks the guest's tables.
    Native,
    /// It walks ours.
    Tracked,
}

/// The guest's translations.
pub struct Mmu {
    tables: Tables,
    /// How the guest's tables are read now, if paging is on; CR0.WP is the guest's.
    paging: Option<Paging>,
    root: Number,
    /// Raised at each event after which tables that are not in use may differ from the guest's.
    now: u64,
    /// A table went out of use.
    unlinked: bool,
    /// The CPU may have cached what is no more.
    stale: bool,
    /// Entries that are there for one instruction.
    open: Vec<(Number, u64)>,
    history: u64,
    beyond: u64,
}

/// What the meaning of all entries depends on.
fn role(paging: &Paging) -> (u64, u64, u64) {
    (paging.cr0 & CR0_WP, paging.cr4 & (CR4_PAE | CR4_PSE | CR4_SMEP | CR4_SMAP), paging.efer & (EFER_LMA | EFER_NXE))
}

impl Mmu {
    /// A pool of `tables`, at least one for each level and at most 1024, for a CPU whose physical addresses have
    /// `physical_bits` bits.
    #[must_use]
    pub fn new(tables: usize, physical_bits: u32) -> Self {
        Self {
            tables: Tables::new(tables),
            paging: None,
            root: 0,
            now: 1,
            unlinked: false,
            stale: false,
            open: Vec::new(),
            history: 0,
            beyond: ADDRESS & !((1 << physical_bits) - 1),
        }
    }

    /// Where the tables are in the host's memory, and how many bytes they have: what the CPU is to find at [`WINDOW`].
    #[must_use]
    pub fn place(&self) -> (u64, u64) {
        self.tables.place()
    }

    /// A digest of all that was filled and forgotten: equal on twins.
    #[must_use]
    pub fn history(&self) -> u64 {
        self.history
    }

    /// Forgets everything, as when the guest's state comes or goes.
    pub fn reset(&mut self) {
        self.tables.clear();
        self.open.clear();
        (self.paging, self.root, self.now, self.history) = (None, 0, 1, 0);
    }

    /// The guest's control registers were written, or are to be looked at anew. Returns the root that the CPU must walk from,
    /// having forgotten what it has cached; `None` without paging.
    ///
    /// # Errors
    /// Five-level paging, which is not implemented.
    pub fn load(&mut self, memory: &GuestMemory, paging: &Paging) -> Result<Option<u64>, WalkError> {
        let paging = Paging { beyond: self.beyond, ..*paging };
        if !paging.is_on() {
            self.paging = None;
            return Ok(None);
        }
        let format = Format::of(&paging)?;
        if self.paging.is_none_or(|old| role(&old) != role(&paging)) {
            self.forget_all();
        }
        self.paging = Some(paging);
        self.now += 1;
        self.root = self.make_root(format, &paging);
        self.check(format, memory, self.root);
        self.settle();
        self.stale = false;
        self.note(paging.cr3);
        Ok(Some(Tables::address(self.root)))
    }

    /// The guest's instruction faulted at `gva`, or needs to know what is there. Afterwards the CPU can go on with it.
    /// Returns the root if the CPU must forget what it has cached, and walk from there.
    ///
    /// # Errors
    /// The guest gets the fault.
    pub fn fault(&mut self, memory: &mut GuestMemory, gva: u64, access: Access) -> Result<Option<u64>, WalkError> {
        let Some(paging) = self.paging else { return Ok(None) };
        let format = Format::of(&paging)?;
        let gva = format.linear(gva);
        if self.allows(format, &paging, gva, access) {
            // The CPU had cached an older entry.
            return Ok(Some(Tables::address(self.root)));
        }
        let walk = walk::walk(&paging, memory, gva, access)?;
        if self.install(format, &paging, memory, &walk, access).is_none() {
            self.forget_all();
            self.stale = true;
            self.root = self.make_root(format, &paging);
            let installed = self.install(format, &paging, memory, &walk, access);
            assert!(installed.is_some(), "the pool of tables has less than one for each level");
        }
        self.note(gva / PAGE_SIZE);
        Ok(self.settle())
    }

    /// Where an access of the guest's next instruction leads, as the CPU would find it. Returns the address, and the root as
    /// [`fault`](Self::fault) does.
    ///
    /// # Errors
    /// The guest would get the fault.
    pub fn translate(
        &mut self,
        memory: &mut GuestMemory,
        gva: u64,
        access: Access,
    ) -> Result<(Gpa, Option<u64>), WalkError> {
        let Some(paging) = self.paging else { return Ok((Gpa(gva & 0xFFFF_FFFF), None)) };
        let format = Format::of(&paging)?;
        let root = match self.allows(format, &paging, gva, access) {
            true => None,
            false => self.fault(memory, gva, access)?,
        };
        let (at, index) = self.find(format, format.linear(gva)).expect("what was filled is there");
        let level = self.tables.key(at).level;
        // The guest's entry: ours leads elsewhere if a device, or a page that is as large, lies where the window is.
        let entry = self.tables.source(format, at, index);
        let within = (1 << format.shift(level)) - 1;
        Ok((Gpa(format.frame(entry, level) & !within | gva & within), root))
    }

    /// INVLPG. Returns the root if the CPU must forget what it has cached, and walk from there.
    pub fn invalidate(&mut self, memory: &GuestMemory, gva: u64) -> Option<u64> {
        let paging = self.paging?;
        let format = Format::of(&paging).ok()?;
        let mut at = self.root;
        for level in (1..=format.levels()).rev() {
            let index = format.index(gva, level);
            let entry = self.tables.get(format, at, index);
            if entry == 0 || self.compare(format, memory, at, index) {
                break;
            }
            match self.below(at, entry) {
                Some(child) => at = child,
                None => break,
            }
        }
        self.note(gva / PAGE_SIZE);
        self.settle()
    }

    /// Whether something is open to the next instruction that must be [closed](Self::close) behind it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Ends what was open to one instruction. Returns the root if the CPU must forget what it has cached, and walk from there.
    pub fn close(&mut self) -> Option<u64> {
        let format = Format::of(&self.paging?).ok()?;
        for (at, index) in core::mem::take(&mut self.open) {
            self.tables.remove(format, at, index);
            self.stale = true;
        }
        self.settle()
    }

    fn forget_all(&mut self) {
        self.tables.clear();
        self.open.clear();
        self.note(u64::MAX);
    }

    fn note(&mut self, what: u64) {
        self.history = (self.history ^ what).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
    }

    /// What an operation has left to do.
    fn settle(&mut self) -> Option<u64> {
        if core::mem::take(&mut self.unlinked) {
            // What is not in use will be compared before it is used again.
            self.now += 1;
        }
        core::mem::take(&mut self.stale).then(|| Tables::address(self.root))
    }

    fn make_root(&mut self, format: Format, paging: &Paging) -> Number {
        let key =
            Key { table: format.root(paging.cr3), level: format.levels(), rights: WRITABLE | USER, no_execute: false };
        self.tables.find_or_make(key, self.now).unwrap_or_else(|| {
            self.forget_all();
            self.tables.find_or_make(key, self.now).expect("an empty pool has a table")
        })
    }

    /// The table that a present entry of table `at` leads to, if it does not map a page.
    fn below(&self, at: Number, entry: u64) -> Option<Number> {
        let level = self.tables.key(at).level;
        // Only entries that map pages have the flag; whether the guest's had a meaning was seen when it was made.
        (level > 1 && entry & LARGE == 0).then(|| Tables::child(entry))
    }

    /// Takes an entry out unless the guest's is still what it was. Returns whether it went.
    fn compare(&mut self, format: Format, memory: &GuestMemory, at: Number, index: u64) -> bool {
        let key = self.tables.key(at);
        if format.entry(memory, key.table, index) == self.tables.source(format, at, index) {
            return false;
        }
        let entry = self.tables.get(format, at, index);
        self.unlinked |= self.below(at, entry).is_some();
        self.tables.remove(format, at, index);
        self.stale = true;
        true
    }

    /// Compares a table and all below it with the guest's, unless that was done since the last event.
    fn check(&mut self, format: Format, memory: &GuestMemory, at: Number) {
        if !self.tables.begin_check(at, self.now) {
            return;
        }
        let Key { table, level, .. } = self.tables.key(at);
        let mut from = 0;
        // What is not memory reads as what nothing was made from, or never changes.
        while let Some(index) = memory
            .slice(Gpa(table), format.entries(level) * format.entry_size())
            .ok()
            .and_then(|guests| self.tables.next_changed(format, at, guests, from))
        {
            from = index + 1;
            self.compare(format, memory, at, index);
        }
        from = 0;
        while level > 1
            && let Some(index) = self.tables.next_present(at, from)
        {
            from = index + 1;
            let entry = self.tables.get(format, at, index);
            if let Some(child) = self.below(at, entry) {
                self.check(format, memory, child);
            }
        }
    }

    /// Whether our tables allow an access already.
    fn allows(&self, format: Format, paging: &Paging, gva: u64, access: Access) -> bool {
        let paging = Paging { cr0: paging.cr0 | CR0_WP, ..*paging };
        self.find(format, gva).is_some_and(|(at, index)| {
            let entry = self.tables.get(format, at, index);
            access.allowed(&paging, entry, entry & NO_EXECUTE != 0)
        })
    }

    /// The table and the index of our entry for a page.
    fn find(&self, format: Format, gva: u64) -> Option<(Number, u64)> {
        let mut at = self.root;
        for level in (1..=format.levels()).rev() {
            let index = format.index(gva, level);
            let entry = self.tables.get(format, at, index);
            if entry == 0 {
                return None;
            }
            match self.below(at, entry) {
                Some(child) => at = child,
                None => return Some((at, index)),
            }
        }
        None
    }

    /// Enters a walk. `None` when there are no tables left.
    fn install(
        &mut self,
        format: Format,
        paging: &Paging,
        memory: &GuestMemory,
        walk: &Walk,
        access: Access,
    ) -> Option<()> {
        let (mut at, mut rights, mut no_execute) = (self.root, WRITABLE | USER, false);
        let (last, upper) = walk.steps.split_last()?;
        for (step, next) in upper.iter().zip(&walk.steps[1..]) {
            if !format.is_pointer(step.level) {
                rights &= step.entry;
                no_execute |= step.entry & NO_EXECUTE != 0;
            }
            let key = Key { table: next.table, level: next.level, rights, no_execute };
            at = self.link(format, memory, at, step, key)?;
        }
        self.enter_page(format, paging, at, last, Some(access));
        self.enter_neighbours(format, paging, memory, at, last);
        Some(())
    }

    /// The table for `key` behind an entry of table `at`.
    fn link(&mut self, format: Format, memory: &GuestMemory, at: Number, step: &Step, key: Key) -> Option<Number> {
        let old = self.tables.get(format, at, step.index);
        let old_child = if old == 0 { None } else { self.below(at, old) };
        let child = match old_child {
            Some(child) if self.tables.key(child) == key => child,
            _ => self.tables.find_or_make(key, self.now)?,
        };
        if old_child != Some(child) {
            if old != 0 {
                self.stale = true;
                self.now += 1;
            }
            self.check(format, memory, child);
        }
        let flags = if format.is_pointer(step.level) { PRESENT } else { PRESENT | WRITABLE | USER | ACCESSED };
        self.tables.set(format, at, step.index, Tables::address(child) | flags, step.entry);
        Some(child)
    }

    /// Enters a page into table `at`.
    fn enter_page(&mut self, format: Format, paging: &Paging, at: Number, step: &Step, access: Option<Access>) {
        let key = self.tables.key(at);
        let entry = page(format, paging, &key, step.entry, access);
        let old = self.tables.get(format, at, step.index);
        if old != 0 && old != entry {
            self.stale = true;
            self.unlinked |= self.below(at, old).is_some();
        }
        self.tables.set(format, at, step.index, entry, step.entry);
        let protects = paging.cr4 & (CR4_SMAP | CR4_SMEP) != 0;
        if protects && access.is_some_and(|access| lends(paging, access, &key, step.entry)) {
            self.open.push((at, step.index));
        }
    }

    /// Enters what lies near and could be walked without setting a bit.
    fn enter_neighbours(&mut self, format: Format, paging: &Paging, memory: &GuestMemory, at: Number, step: &Step) {
        let first = step.index & !(NEIGHBOURS - 1);
        for index in first..first + NEIGHBOURS {
            if self.tables.get(format, at, index) != 0 {
                continue;
            }
            let entry = format.entry(memory, step.table, index);
            if format.is_used(paging, step.level, entry) && format.is_leaf(paging, step.level, entry) {
                self.enter_page(format, paging, at, &Step { index, entry, ..*step }, None);
            }
        }
    }
}

/// Whether a page of the user's becomes the system's. Without CR0.WP the system may write to pages that are read-only. The
/// CPU runs with it, to see the first write to each: the page is then the system's until the user comes back to it; with
/// SMAP or SMEP, which would not protect it any more, for one instruction.
fn lends(paging: &Paging, access: Access, key: &Key, entry: u64) -> bool {
    let rights = key.rights & entry & (WRITABLE | USER);
    paging.cr0 & CR0_WP == 0 && rights == USER && !access.user && access.kind == AccessKind::Write
}

/// Our entry for a page: `entry` is the guest's, in a table reached as `key` says.
fn page(format: Format, paging: &Paging, key: &Key, entry: u64, access: Option<Access>) -> u64 {
    let rights = key.rights & entry;
    let (user, writable) = (rights & USER != 0, rights & WRITABLE != 0);
    let no_execute = key.no_execute || entry & NO_EXECUTE != 0;
    let dirty = entry & DIRTY != 0;
    let mut flags = PRESENT | ACCESSED | DIRTY;
    let lent = access.is_some_and(|access| lends(paging, access, key, entry));
    let system_writes = paging.cr0 & CR0_WP == 0 && !writable && (!user || lent);
    if dirty && (writable || system_writes) {
        flags |= WRITABLE;
    }
    if user && !system_writes {
        flags |= USER;
    }
    if no_execute {
        flags |= NO_EXECUTE;
    }
    let address = match format {
        Format::Legacy => 0xFFFF_F000,
        _ => ADDRESS,
    };
    elsewhere(format, key.level, entry) ^ (entry & (address | KEPT) | flags)
}

/// What is to change in the address of a page so that it does not lie in the window.
fn elsewhere(format: Format, level: u32, entry: u64) -> u64 {
    let size = 1 << format.shift(level);
    let start = format.frame(entry, level) & !(size - 1);
    let end = WINDOW.0 + TABLES as u64 * PAGE_SIZE;
    match format {
        _ if start >= end || start + size <= WINDOW.0 => 0,
        Format::Legacy => NOWHERE_LEGACY,
        _ => NOWHERE,
    }
}
