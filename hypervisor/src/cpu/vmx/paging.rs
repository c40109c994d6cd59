//! Other tables than the guest's own: CR3 leads to those, and what the guest would see of that exits.
#![allow(unsafe_code)]

use super::VmxVcpu;
use super::capabilities::{IA32E_GUEST, INVPCID};
use super::debug::EXCEPTIONS;
use super::fields::{self, GUEST_PDPTES};
use super::instructions::{self, write};
use super::setup::GUEST_VPID;
use crate::cpu::Paging;
use crate::cpu::nested::WindowNumber;
use crate::cpu::registers::{CR0_WP, CR4_PAE, EFER_LMA};
use crate::memory::PAGE_SIZE;
use crate::mmu::WINDOW;

/// Bit of the exception bitmap.
const PAGE_FAULT: u32 = 1 << 14;

/// Tables for the CPU to walk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tracking {
    /// Where they are in the host's memory.
    base: u64,
    window: WindowNumber,
    /// While they are walked: what the guest has in CR3, and whether the CPU has read the pointers of PAE paging.
    pub(super) walked: Option<Walked>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Walked {
    pub(super) cr3: u64,
    /// The root's number in the window, if its entries are pointers, which the CPU takes from the VMCS.
    pointers: Option<u64>,
}

impl VmxVcpu {
    pub(super) fn begin_tracking(&mut self, (base, len): (u64, u64)) -> bool {
        if !self.capabilities.paging_exits {
            return false;
        }
        let window = self.nested_paging.make_window(WINDOW.0, base, len);
        self.tracking = Some(Tracking { base, window, walked: None });
        // It would exit with INVLPG, and is hidden.
        self.capabilities.controls.secondary &= !INVPCID;
        write(fields::SECONDARY_CONTROLS, self.capabilities.controls.secondary);
        // All of them: the guest reads what it wrote, and each write exits that changes anything.
        write(fields::CR0_MASK, u64::MAX);
        write(fields::CR4_MASK, u64::MAX);
        true
    }

    pub(super) fn walk_from(&mut self, paging: &Paging, root: Option<u64>) {
        self.forget_mode();
        let long = paging.efer & EFER_LMA != 0;
        let walks_pointers = paging.cr4 & CR4_PAE != 0 && !long;
        if let Some(tracking) = &mut self.tracking {
            tracking.walked = root.map(|root| {
                let pointers = walks_pointers.then_some((root - WINDOW.0) / PAGE_SIZE);
                Walked { cr3: paging.cr3, pointers }
            });
        }
        if self.nested_paging.show_window(self.tracking.and_then(|tracking| root.map(|_| tracking.window))) {
            instructions::invalidate_ept(self.ept_pointer);
        }
        // The first write to each page is to be seen, the system's too.
        let cr0 = if root.is_some() { paging.cr0 | CR0_WP } else { paging.cr0 };
        let capabilities = &self.capabilities;
        write(fields::GUEST_CR0, cr0 & !capabilities.cr0_mask | capabilities.cr0_fixed);
        write(fields::CR0_SHADOW, paging.cr0);
        write(fields::GUEST_CR3, root.unwrap_or(paging.cr3));
        write(fields::GUEST_CR4, paging.cr4 & !capabilities.cr4_mask | capabilities.cr4_fixed);
        write(fields::CR4_SHADOW, paging.cr4);
        write(fields::GUEST_EFER, paging.efer);
        let entry = capabilities.controls.entry;
        write(fields::ENTRY_CONTROLS, if long { entry | IA32E_GUEST } else { entry });
        write(fields::EXCEPTION_BITMAP, EXCEPTIONS | if root.is_some() { PAGE_FAULT } else { 0 });
        if capabilities.vpid {
            instructions::invalidate_vpid(GUEST_VPID);
        }
        debug_assert!(root.is_none() || paging.is_on());
    }

    /// Whether other tables are walked than the guest's.
    pub(super) fn walks_others(&self) -> bool {
        self.tracking.is_some_and(|tracking| tracking.walked.is_some())
    }

    /// Tells the CPU the pointers of PAE paging, which it does not look for itself.
    pub(super) fn put_pointers(&self) {
        let Some(Tracking { base, walked: Some(Walked { pointers: Some(number), .. }), .. }) = self.tracking else {
            return;
        };
        for (index, field) in (0..).zip(GUEST_PDPTES) {
            // SAFETY: the first four words of a table in the pool, which stays where it is and is not written meanwhile.
            write(field, unsafe { core::ptr::read((base + number * PAGE_SIZE + 8 * index) as *const u64) });
        }
    }
}
