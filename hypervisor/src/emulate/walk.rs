//! The guest's page tables. See: APM volume 2, chapter 5.
//!
//! A walk sets accessed and dirty bits as the CPU does: accessed in every entry that is used to go on, both in the leaf
//! once the access is known to be allowed. Table entries outside of RAM read as all ones, as on a bus where nobody
//! answers. Physical addresses have up to 52 bits here; what lies above the CPU's own width was already refused by it.

pub use crate::cpu::Paging;
pub(crate) use crate::cpu::nested::ADDRESS;
pub(crate) use crate::cpu::registers::{CR0_WP, CR4_PAE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_NXE};
use crate::cpu::registers::{CR4_LA57, EFER_LMA};
use crate::memory::{Gpa, GuestMemory};

pub(crate) const PRESENT: u64 = 1 << 0;
pub(crate) const WRITABLE: u64 = 1 << 1;
pub(crate) const USER: u64 = 1 << 2;
pub(crate) const ACCESSED: u64 = 1 << 5;
pub(crate) const DIRTY: u64 = 1 << 6;
pub(crate) const LARGE: u64 = 1 << 7;
pub(crate) const NO_EXECUTE: u64 = 1 << 63;

/// Bits of a page fault's error code. See: APM volume 2, 8.4.2.
pub mod error_code {
    /// The page is present: rights were violated.
    pub const PRESENT: u32 = 1 << 0;
    /// The access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// The access was made with user rights.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit is set in a table entry.
    pub const RESERVED: u32 = 1 << 3;
    /// The access was an instruction fetch (reported only with NX or SMEP).
    pub const FETCH: u32 = 1 << 4;
}

/// What is done at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessKind {
    /// Data is read.
    Read,
    /// Data is written, or read and written.
    Write,
    /// An instruction is fetched.
    Fetch,
}

/// An access and the rights it is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// What is done.
    pub kind: AccessKind,
    /// With user rights (CPL 3).
    pub user: bool,
    /// RFLAGS.AC is set, so that SMAP does not apply.
    pub smap_off: bool,
}

/// A page fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageFault {
    /// Error code, of the bits in [`error_code`].
    pub error_code: u32,
    /// The linear address, for CR2.
    pub address: u64,
}

/// Why an address was not translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalkError {
    /// The guest gets a page fault.
    PageFault(PageFault),
    /// Five-level paging, which is not implemented.
    FiveLevel,
}

/// An entry that a walk used, as the walk left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Where the table begins.
    pub table: u64,
    /// Which of its entries.
    pub index: u64,
    /// The entry, accessed and dirty bits set.
    pub entry: u64,
    /// Level of the table; 1 is the lowest.
    pub level: u32,
}

/// A way through the tables that ended at a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// The entries, from the root on; the last one maps the page.
    pub steps: heapless::Vec<Step, 4>,
    /// Where the address leads.
    pub gpa: Gpa,
}

/// Translates the linear address `gva` (canonical in long mode, 32 bits otherwise).
///
/// # Errors
/// A page fault when the page is absent, the access is not allowed or a table entry has a reserved bit set.
pub fn translate(paging: &Paging, memory: &mut GuestMemory, gva: u64, access: Access) -> Result<Gpa, WalkError> {
    if !paging.is_on() {
        return Ok(Gpa(gva & 0xFFFF_FFFF));
    }
    walk(paging, memory, gva, access).map(|walk| walk.gpa)
}

/// The way that [`translate`] takes with paging on.
///
/// # Errors
/// As there.
pub fn walk(paging: &Paging, memory: &mut GuestMemory, gva: u64, access: Access) -> Result<Walk, WalkError> {
    let format = Format::of(paging)?;
    let gva = format.linear(gva);
    let fault = |bits| WalkError::PageFault(PageFault { error_code: access.error_code(paging) | bits, address: gva });
    let mut table = format.root(paging.cr3);
    let mut rights = WRITABLE | USER;
    let mut no_execute = false;
    let mut steps = heapless::Vec::new();
    let mut note = |step| steps.push(step).expect("there are no more levels than places");
    for level in (1..=format.levels()).rev() {
        let index = format.index(gva, level);
        let address = format.address(table, index);
        let entry = format.read(memory, address);
        if entry & PRESENT == 0 {
            return Err(fault(0));
        }
        let leaf = format.is_leaf(paging, level, entry);
        if entry & format.reserved(paging, level, leaf) != 0 {
            return Err(fault(error_code::PRESENT | error_code::RESERVED));
        }
        if format.is_pointer(level) {
            note(Step { table, index, entry, level });
            table = entry & ADDRESS;
            continue;
        }
        rights &= entry;
        no_execute |= entry & NO_EXECUTE != 0;
        if !leaf {
            format.set(memory, address, entry, ACCESSED);
            note(Step { table, index, entry: entry | ACCESSED, level });
            table = entry & ADDRESS;
            continue;
        }
        if !access.allowed(paging, rights, no_execute) {
            return Err(fault(error_code::PRESENT));
        }
        let bits = if access.kind == AccessKind::Write { ACCESSED | DIRTY } else { ACCESSED };
        format.set(memory, address, entry, bits);
        note(Step { table, index, entry: entry | bits, level });
        let within = (1 << format.shift(level)) - 1;
        return Ok(Walk { steps, gpa: Gpa(format.frame(entry, level) & !within | gva & within) });
    }
    unreachable!("level 1 is always a leaf")
}

impl Access {
    fn error_code(self, paging: &Paging) -> u32 {
        let no_execute = paging.cr4 & CR4_PAE != 0 && paging.efer & EFER_NXE != 0;
        let kind = match self.kind {
            AccessKind::Write => error_code::WRITE,
            AccessKind::Fetch if no_execute || paging.cr4 & CR4_SMEP != 0 => error_code::FETCH,
            _ => 0,
        };
        kind | if self.user { error_code::USER } else { 0 }
    }

    /// Whether rights of all levels together allow this access. See: APM volume 2, 5.6.
    #[must_use]
    pub fn allowed(self, paging: &Paging, rights: u64, no_execute: bool) -> bool {
        let user_page = rights & USER != 0;
        let read_only = rights & WRITABLE == 0;
        if self.user && !user_page {
            return false;
        }
        match self.kind {
            AccessKind::Fetch => !no_execute && (self.user || !user_page || paging.cr4 & CR4_SMEP == 0),
            _ if !self.user && user_page && paging.cr4 & CR4_SMAP != 0 && !self.smap_off => false,
            AccessKind::Write => !read_only || (!self.user && paging.cr0 & CR0_WP == 0),
            AccessKind::Read => true,
        }
    }
}

/// The three formats of page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Two levels, entries of four bytes.
    Legacy,
    /// Three levels, entries of eight bytes, 32-bit addresses.
    Pae,
    /// Four levels.
    Long,
}

impl Format {
    /// That of tables that are used with paging on.
    ///
    /// # Errors
    /// Five levels.
    pub fn of(paging: &Paging) -> Result<Self, WalkError> {
        Ok(match (paging.efer & EFER_LMA != 0, paging.cr4 & CR4_PAE != 0) {
            (true, _) if paging.cr4 & CR4_LA57 != 0 => return Err(WalkError::FiveLevel),
            (true, _) => Self::Long,
            (false, true) => Self::Pae,
            (false, false) => Self::Legacy,
        })
    }

    /// Where the root begins.
    #[must_use]
    pub const fn root(self, cr3: u64) -> u64 {
        match self {
            Self::Legacy => cr3 & 0xFFFF_F000,
            Self::Pae => cr3 & 0xFFFF_FFE0,
            Self::Long => cr3 & ADDRESS,
        }
    }

    /// The bits that a linear address has.
    #[must_use]
    pub const fn linear(self, gva: u64) -> u64 {
        if matches!(self, Self::Long) { gva } else { gva & 0xFFFF_FFFF }
    }

    /// Level of the root.
    #[must_use]
    pub const fn levels(self) -> u32 {
        match self {
            Self::Legacy => 2,
            Self::Pae => 3,
            Self::Long => 4,
        }
    }

    /// Entries of a table of `level`.
    #[must_use]
    pub const fn entries(self, level: u32) -> u64 {
        match self {
            Self::Legacy => 1024,
            Self::Pae if level == 3 => 4,
            _ => 512,
        }
    }

    /// Bytes of an entry.
    #[must_use]
    pub const fn entry_size(self) -> u64 {
        if matches!(self, Self::Legacy) { 4 } else { 8 }
    }

    /// Lowest address bit that selects an entry of tables of `level`.
    #[must_use]
    pub const fn shift(self, level: u32) -> u32 {
        12 + (level - 1) * if matches!(self, Self::Legacy) { 10 } else { 9 }
    }

    /// Where an entry is.
    const fn address(self, table: u64, index: u64) -> Gpa {
        Gpa(table + index * self.entry_size())
    }

    /// Which entry of a table of `level` an address uses.
    #[must_use]
    pub fn index(self, gva: u64, level: u32) -> u64 {
        (gva >> self.shift(level)) & (self.entries(level) - 1)
    }

    /// A page directory pointer of PAE: no rights, no accessed bit.
    #[must_use]
    pub fn is_pointer(self, level: u32) -> bool {
        self == Self::Pae && level == 3
    }

    /// Whether a present entry maps a page.
    #[must_use]
    pub fn is_leaf(self, paging: &Paging, level: u32, entry: u64) -> bool {
        level == 1 || (entry & LARGE != 0 && self.has_large_pages(paging, level))
    }

    /// An entry that leads on, or maps a page, without a walk setting any bit but the dirty one.
    #[must_use]
    pub fn is_used(self, paging: &Paging, level: u32, entry: u64) -> bool {
        let wanted = if self.is_pointer(level) { PRESENT } else { PRESENT | ACCESSED };
        entry & wanted == wanted && entry & self.reserved(paging, level, self.is_leaf(paging, level, entry)) == 0
    }

    /// The entry of a table in the guest's memory.
    #[must_use]
    pub fn entry(self, memory: &GuestMemory, table: u64, index: u64) -> u64 {
        self.read(memory, self.address(table, index))
    }

    fn has_large_pages(self, paging: &Paging, level: u32) -> bool {
        match self {
            Self::Legacy => level == 2 && paging.cr4 & CR4_PSE != 0,
            Self::Pae => level == 2,
            Self::Long => level == 2 || level == 3,
        }
    }

    /// The bits that must be clear in a present entry.
    #[must_use]
    pub fn reserved(self, paging: &Paging, level: u32, leaf: bool) -> u64 {
        if self == Self::Legacy {
            // PSE-36: bit 21 is the only one that a 4 MiB page leaves.
            return if leaf && level == 2 { 1 << 21 } else { 0 };
        }
        let no_execute = if paging.efer & EFER_NXE == 0 { NO_EXECUTE } else { 0 };
        let high = if self == Self::Pae { 0x7FF0_0000_0000_0000 } else { 0 };
        let low = match (self, level) {
            (Self::Pae, 3) => return NO_EXECUTE | high | 0x1E6 | paging.beyond,
            (Self::Long, 4) => LARGE,
            // Bit 12 of a large page is its PAT bit.
            (_, 2 | 3) if leaf => ((1 << self.shift(level)) - 1) & !0x1FFF,
            _ => 0,
        };
        no_execute | high | low | paging.beyond
    }

    /// The page that a leaf maps; low bits are not masked for large pages.
    #[must_use]
    pub fn frame(self, entry: u64, level: u32) -> u64 {
        match (self, level) {
            // PSE-36: bits 13 to 20 are address bits 32 to 39.
            (Self::Legacy, 2) => entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32,
            (Self::Legacy, _) => entry & 0xFFFF_F000,
            _ => entry & ADDRESS,
        }
    }

    fn read(self, memory: &GuestMemory, address: Gpa) -> u64 {
        if self == Self::Legacy {
            memory.read(address).map_or(0xFFFF_FFFF, |bytes| u64::from(u32::from_le_bytes(bytes)))
        } else {
            memory.read(address).map_or(u64::MAX, u64::from_le_bytes)
        }
    }

    /// Sets `bits` in the entry, unless they are set. All of them are in its lowest byte.
    fn set(self, memory: &mut GuestMemory, address: Gpa, entry: u64, bits: u64) {
        if entry & bits != bits {
            // Nothing to set where nobody answers.
            let _ = memory.write(address, &[(entry | bits) as u8]);
        }
    }
}
