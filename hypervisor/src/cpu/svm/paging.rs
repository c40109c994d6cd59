//! Other tables than the guest's own: CR3 leads to those, and what the guest would see of that exits.

use super::vmcb::{self, intercept1};
use super::{EFER_SVME, SvmVcpu};
use crate::cpu::registers::CR0_PG;
use crate::emulate::walk::{CR0_WP, Paging};
use crate::mmu::WINDOW;

/// What the guest's registers hold while others take their place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hidden {
    pub(super) cr0: u64,
    pub(super) cr3: u64,
}

impl SvmVcpu {
    pub(super) fn begin_tracking(&mut self, (base, len): (u64, u64)) {
        self.nested_paging.make_window(WINDOW.0, base, len);
        let save = &self.guest.save;
        self.walk_from(&Paging { cr0: save.cr0, cr3: save.cr3, cr4: save.cr4, efer: save.efer, beyond: 0 }, None);
    }

    pub(super) fn walk_from(&mut self, paging: &Paging, root: Option<u64>) {
        self.hidden = root.map(|_| Hidden { cr0: paging.cr0, cr3: paging.cr3 });
        self.nested_paging.show_window(root.is_some());
        let save = &mut self.guest.save;
        save.efer = paging.efer | EFER_SVME;
        save.cr4 = paging.cr4;
        // The first write to each page is to be seen, the system's too.
        save.cr0 = if root.is_some() { paging.cr0 | CR0_WP } else { paging.cr0 };
        save.cr3 = root.unwrap_or(paging.cr3);
        self.intercept(paging, root.is_some());
        self.guest.control.tlb_control = vmcb::TLB_FLUSH_ALL;
    }

    fn intercept(&mut self, paging: &Paging, walks: bool) {
        let hides_wp = paging.cr0 & (CR0_WP | CR0_PG) == CR0_PG;
        let control = &mut self.guest.control;
        // Paging begins by a write to CR0.
        let mut registers = vmcb::INTERCEPT_CR8 | vmcb::intercept_write(0);
        if walks {
            registers |= vmcb::intercept_read(3) | vmcb::intercept_write(3) | vmcb::intercept_write(4);
        }
        if hides_wp {
            registers |= vmcb::intercept_read(0);
        }
        control.intercept_cr = registers;
        control.intercept_exceptions = if walks { vmcb::INTERCEPT_PAGE_FAULT } else { 0 };
        // The other ones are not ours to change.
        control.intercept1 = control.intercept1 & !intercept1::INVLPG | intercept1::TASK_SWITCH;
        control.intercept1 |= if walks { intercept1::INVLPG } else { 0 };
    }
}
