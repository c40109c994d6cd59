//! Other tables than the guest's own: CR3 leads to those, and what the guest would see of that exits.
//!
//! There are two kinds: those of tracked paging, see [`crate::mmu`], and flat ones for a guest without paging. The latter
//! change nothing that the guest could see, and are there for QEMU 8.0 to 9.1 (Ubuntu 24.04 has 8.2.2): it leaves nested
//! paging out while CR0.PG is clear. See: QEMU's commit b56617bbcb; for CR0.PG without CR0.PE, APM volume 2, 15.19.

use alloc::boxed::Box;

use super::vmcb::{self, intercept1};
use super::{EFER_SVME, SvmVcpu};
use crate::cpu::Paging;
use crate::cpu::nested::{NestedPaging, WindowNumber};
use crate::cpu::registers::{CR0_PG, CR0_WP, CR4_PAE, CR4_PCIDE, CR4_PGE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_LME};
use crate::memory::PAGE_SIZE;
use crate::mmu::{NOWHERE_LEGACY, WINDOW};

/// Page table of one level that leads from each of the first 4 GiB to itself, in pages of 4 MiB. The one in which it lies
/// itself leads to nowhere.
#[repr(C, align(4096))]
pub(super) struct Flat([u32; 1024]);

const _: () = assert!(size_of::<Flat>() as u64 == PAGE_SIZE);

impl Flat {
    const SHIFT: u32 = 22;

    fn new() -> Box<Self> {
        // Present, writable, for the user, too; accessed, dirty; a page.
        const FLAGS: u64 = 0b1110_0111;
        let entry = |index: usize| {
            let address = (index as u64) << Self::SHIFT;
            let hidden = if address == WINDOW.0 { NOWHERE_LEGACY } else { 0 };
            ((address | FLAGS) ^ hidden) as u32
        };
        Box::new(Self(core::array::from_fn(entry)))
    }
}

/// Tables of ours, and what the guest's registers hold while those are walked.
pub(super) struct Others {
    pub(super) hidden: Option<Paging>,
    flat: WindowNumber,
    tracked: Option<WindowNumber>,
    _flat: Box<Flat>,
}

impl Others {
    pub(super) fn new(nested_paging: &mut NestedPaging) -> Self {
        let table = Flat::new();
        let flat = nested_paging.make_window(WINDOW.0, core::ptr::from_ref(&*table) as u64, PAGE_SIZE);
        Self { hidden: None, flat, tracked: None, _flat: table }
    }
}

/// Bits of CR4 with a meaning for the flat table, which the guest does not mean.
const FOR_PAGES: u64 = CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP;

impl SvmVcpu {
    pub(super) fn begin_tracking(&mut self, (base, len): (u64, u64)) {
        self.others.tracked = Some(self.nested_paging.make_window(WINDOW.0, base, len));
        // It is hidden then. See: APM volume 3, "INVPCID".
        let features = raw_cpuid::CpuId::new().get_extended_feature_info();
        if features.is_some_and(|features| features.has_invpcid()) {
            self.guest.control.intercept3 |= vmcb::INTERCEPT_INVPCID;
        }
    }

    /// The guest's registers hold this, and the CPU walks from `root`; without one it walks the guest's tables, or flat ones
    /// if the guest has no paging.
    pub(super) fn walk_from(&mut self, paging: &Paging, root: Option<u64>) {
        let flat = !paging.is_on();
        debug_assert!(root.is_none() || !flat);
        self.others.hidden = (root.is_some() || flat).then_some(*paging);
        let (window, real) = match root {
            // The first write to each page is to be seen, the system's too.
            Some(root) => (self.others.tracked, Paging { cr0: paging.cr0 | CR0_WP, cr3: root, ..*paging }),
            None if flat => (Some(self.others.flat), flat_registers(paging)),
            None => (None, *paging),
        };
        self.nested_paging.show_window(window);
        let save = &mut self.guest.save;
        (save.cr0, save.cr3, save.cr4, save.efer) = (real.cr0, real.cr3, real.cr4, real.efer | EFER_SVME);
        self.intercept(paging, root.is_some());
        self.guest.control.tlb_control = vmcb::TLB_FLUSH_ALL;
    }

    /// The guest's control registers.
    pub(super) fn paging(&self) -> Paging {
        let save = &self.guest.save;
        let real =
            Paging { cr0: save.cr0, cr3: save.cr3, cr4: save.cr4, efer: save.efer & !EFER_SVME, ..Paging::default() };
        self.others.hidden.unwrap_or(real)
    }

    /// The guest's EFER becomes this; LME and LMA stay.
    pub(super) fn set_efer(&mut self, efer: u64) {
        let real = match &mut self.others.hidden {
            Some(hidden) => {
                hidden.efer = efer;
                if hidden.is_on() { efer } else { flat_registers(hidden).efer }
            }
            None => efer,
        };
        self.guest.save.efer = real | EFER_SVME;
    }

    fn intercept(&mut self, paging: &Paging, tracked: bool) {
        let flat = !paging.is_on();
        let mut registers = vmcb::INTERCEPT_CR8 | vmcb::intercept_write(0);
        if tracked || flat {
            registers |= vmcb::intercept_read(3) | vmcb::intercept_write(3) | vmcb::intercept_write(4);
            // Also where the guest may see CR0 as it is: QEMU 10 looks at this bit alone for reads of all of them.
            registers |= vmcb::intercept_read(0);
        }
        if flat {
            registers |= vmcb::intercept_read(4);
        }
        let control = &mut self.guest.control;
        control.intercept_cr = registers;
        control.intercept_exceptions = if tracked { vmcb::INTERCEPT_PAGE_FAULT } else { 0 };
        // The other ones are not ours to change.
        control.intercept1 &= !(intercept1::INVLPG | intercept1::TASK_SWITCH);
        control.intercept1 |= if tracked { intercept1::INVLPG } else { 0 };
        // It would load CR3.
        control.intercept1 |= if tracked || flat { intercept1::TASK_SWITCH } else { 0 };
    }
}

/// What the CPU's registers hold while a guest has no paging.
fn flat_registers(paging: &Paging) -> Paging {
    Paging {
        cr0: paging.cr0 | CR0_PG,
        cr3: WINDOW.0,
        cr4: paging.cr4 & !FOR_PAGES | CR4_PSE,
        efer: paging.efer & !EFER_LME,
        ..*paging
    }
}
