//! The parts of the CPU's state that decide how it understands what it finds.

use super::registers::{CR0_PG, Segments};

/// The part of the CPU's state that decides how instructions and addresses are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mode {
    /// Segment registers.
    pub segments: Segments,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER as the guest sees it.
    pub efer: u64,
}

/// The registers that decide how addresses are translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// Address bits that the CPU does not have: reserved in long entries. Those of a CPU that walks itself are its own
    /// business.
    pub beyond: u64,
}

impl Paging {
    /// Whether addresses are translated at all.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.cr0 & CR0_PG != 0
    }
}

impl From<&Mode> for Paging {
    fn from(mode: &Mode) -> Self {
        Self { cr0: mode.cr0, cr3: mode.cr3, cr4: mode.cr4, efer: mode.efer, beyond: 0 }
    }
}
