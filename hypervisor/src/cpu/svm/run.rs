//! Runs: what becomes of a limit, of the interrupt that is offered, and of faults that are no business of the guest's.
//!
//! An interrupt belongs to the run that begins at the boundary where the guest can take it: a stop comes first. The CPU
//! delivers a virtual interrupt as soon as the guest can take it, and so would at a stop. Therefore the last tick of a run
//! is entered without it, unless the guest takes it before that tick.
//!
//! [`Guard`] is for emulated CPUs that translate blocks of instructions. QEMU ends a block that a store changes, but under
//! nested paging only if the store's translation was in the TLB: a walk of the nested tables for a store makes it forget
//! the block first, and the block goes on with what were its bytes. (`mmu_translate` probes the nested translation for
//! the store without saying where it comes from.) What the TLB holds depends on exits, and these on the host.

use alloc::vec::Vec;

use super::vmcb::{self, exit};
use super::{SvmVcpu, Timed};
use crate::cpu::registers::{PENDING_STEP, RFLAGS_IF};
use crate::cpu::{Entered, Exception, Exit, Right, Vcpu};
use crate::memory::{Gpa, PAGE_SIZE};

/// Most ticks that the timer is armed for in one go.
const TIMER_MAX: u64 = 0x7FFF_0000;
/// Bits of EXITINFO1 of a nested page fault. See: APM volume 2, 15.25.6.
const FAULT_WRITE: u64 = 1 << 1;
const FAULT_FETCH: u64 = 1 << 4;
/// DR6: breakpoints that were met.
const DR6_MET: u64 = 0xF;

/// What the guard of executed pages remembers.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// The guest's RIP at the last fault, if nothing has run since.
    faulted_at: Option<u64>,
    /// Pages that may be written and executed for one tick, each with the right that stays.
    open: Vec<(Gpa, Right)>,
}

/// What one entry came to.
struct Once {
    /// `None` when it is dealt with, and the guest goes on.
    exit: Option<Exit>,
    ticks: u64,
    interrupt_taken: bool,
    exception_taken: bool,
}

impl SvmVcpu {
    /// Runs the guest for `ticks`, until it exits or until a host interrupt comes.
    pub(super) fn run(&mut self, ticks: u64) -> Entered {
        let ticks = ticks.min(TIMER_MAX);
        let mut entered = Entered { exit: Exit::Interrupted, ticks: 0, interrupt_taken: false, exception_taken: false };
        self.inject_trap();
        loop {
            let (part, offers) = self.part(ticks - entered.ticks);
            let once = self.enter_once(part, offers);
            entered.ticks += once.ticks;
            self.tsc = self.tsc.wrapping_add(once.ticks);
            entered.interrupt_taken |= once.interrupt_taken;
            entered.exception_taken |= once.exception_taken;
            let over = entered.ticks >= ticks;
            match once.exit {
                None if !over => {}
                // The part is over, and not the run.
                Some(Exit::Interrupted) if !over && once.ticks >= part && (part > 0 || once.exception_taken) => {}
                // The stop comes first.
                Some(Exit::Kept) if over => return entered,
                exit => return Entered { exit: exit.unwrap_or(Exit::Interrupted), ..entered },
            }
        }
    }

    /// A trap that waits comes before everything else.
    fn inject_trap(&mut self) {
        if self.traps == 0 || self.guest.control.event_injection & vmcb::EVENT_VALID != 0 {
            return;
        }
        let save = &mut self.guest.save;
        save.dr6 = save.dr6 & !DR6_MET | core::mem::take(&mut self.traps) & PENDING_STEP;
        self.set_shadow(false);
        self.inject(Exception::DEBUG);
    }

    /// How many ticks the next entry has of the `left` ones, and whether the waiting interrupt is offered to it.
    fn part(&self, left: u64) -> (u64, bool) {
        let alone = self.guard.as_ref().is_some_and(|guard| !guard.open.is_empty());
        let most = if alone { left.min(1) } else { left };
        let injects = self.guest.control.event_injection & vmcb::EVENT_VALID != 0;
        if self.offered.is_none() {
            (most, false)
        } else if injects {
            // Whether the guest can take an interrupt behind that is known only there.
            (0, true)
        } else if self.in_shadow() {
            // The emulated CPU does not restore the interrupt shadow at entry.
            (1, false)
        } else if self.registers.rflags & RFLAGS_IF != 0 {
            (most, true)
        } else if left > 1 {
            (most.min(left - 1), true)
        } else {
            (1, false)
        }
    }

    fn enter_once(&mut self, ticks: u64, offers: bool) -> Once {
        let offered = self.offered.filter(|_| offers);
        let control = &mut self.guest.control;
        control.interrupt_control = vmcb::V_INTR_MASKING;
        if let Some(vector) = offered {
            control.interrupt_control |= vmcb::V_IRQ | vmcb::V_INTR_PRIORITY_15 | vmcb::V_IGN_TPR;
            control.interrupt_vector = u32::from(vector);
        }
        let timer = self.calibration.timer_count(ticks);
        let injected = control.event_injection & vmcb::EVENT_VALID != 0;
        let before = (self.in_shadow(), self.registers.rip);
        let at_once = !injected && !before.0 && self.registers.rflags & RFLAGS_IF != 0;
        let (exit, raw) = self.enter_raw(timer);
        let ticks = raw - self.calibration.overhead;
        let taken = offered.is_some() && self.guest.control.interrupt_control & vmcb::V_IRQ == 0;
        if taken {
            self.offered = None;
        }
        let exception_taken = injected && self.guest.control.exit_interrupt_info & vmcb::EVENT_VALID == 0;
        let mut once = Once { exit: Some(exit), ticks, interrupt_taken: taken, exception_taken };
        if self.guest.control.exit_code == exit::PAGE_FAULT {
            let event = self.guest.control.exit_interrupt_info;
            once.ticks -= self.deliver_again(event, offered.filter(|_| !taken));
        }
        if self.guard.is_some() {
            self.look_after_guard(&mut once, offered.filter(|_| !taken));
        }
        if at_once && offered.is_some() && !taken && once.ticks > 0 {
            log::warn!(
                "the CPU has forgotten an interrupt that the guest at {:#x} could take, for {} ticks",
                before.1,
                once.ticks
            );
        }
        // Nothing ran, nothing was delivered: what the emulated CPU did not restore it has not saved either.
        if once.ticks == 0 && !taken && before == (true, self.registers.rip) {
            self.set_shadow(true);
        }
        once
    }

    /// Deals with a fault of the guard's, and closes what was open for an instruction that has run.
    fn look_after_guard(&mut self, once: &mut Once, waiting: Option<u8>) {
        let control = &self.guest.control;
        let (gpa, info, event) = (Gpa(control.exit_info2), control.exit_info1, control.exit_interrupt_info);
        let right = match control.exit_code {
            exit::NESTED_PAGE_FAULT if info & FAULT_FETCH != 0 => Some(Right::Execute),
            exit::NESTED_PAGE_FAULT if info & FAULT_WRITE != 0 => Some(Right::Write),
            _ => None,
        };
        let again = if right.is_some() { self.deliver_again(event, waiting) } else { 0 };
        once.ticks -= again;
        if once.ticks > 0 || once.interrupt_taken || once.exception_taken {
            self.close();
        }
        if let Some(right) = right {
            if self.keeps(gpa, right) {
                once.exit = Some(Exit::Kept);
            } else if self.open(gpa, right) {
                once.exit = None;
            }
        }
    }

    /// Keeps these rights from the guest, and no others.
    pub(super) fn keep(&mut self, pages: &[(Gpa, Right)]) -> bool {
        if self.kept == pages {
            return true;
        }
        if self.guard.is_none() && !self.guard_code(true) {
            return false;
        }
        // What is not kept any more the guard gives back when it is needed.
        self.kept = pages.to_vec();
        self.hold_back();
        true
    }

    fn hold_back(&mut self) {
        for &(page, right) in &self.kept {
            self.nested_paging.forbid(page, right);
            self.guest.control.tlb_control = vmcb::TLB_FLUSH_ALL;
        }
    }

    fn keeps(&self, gpa: Gpa, right: Right) -> bool {
        let page = Gpa(gpa.0 & !(PAGE_SIZE - 1));
        self.kept.iter().any(|&(kept, what)| kept == page && (what == right || what == Right::Both))
    }

    /// Gives a page the right that the guest lacks. Returns whether it is memory.
    fn open(&mut self, gpa: Gpa, right: Right) -> bool {
        let rip = self.registers.rip;
        let Some(guard) = &mut self.guard else { return false };
        let page = Gpa(gpa.0 & !(PAGE_SIZE - 1));
        // A second fault of an instruction: perhaps it needs of one page what the first has taken away.
        let is_kept = self.kept.iter().any(|&(kept, _)| kept == page);
        let both = guard.faulted_at == Some(rip) && !is_kept;
        if !self.nested_paging.allow(page, if both { Right::Both } else { right }) {
            return false;
        }
        guard.faulted_at = Some(rip);
        if both {
            guard.open.retain(|&(other, _)| other != page);
            guard.open.push((page, right));
        }
        self.guest.control.tlb_control = vmcb::TLB_FLUSH_ALL;
        true
    }

    /// Closes what was open for one instruction.
    pub(super) fn close(&mut self) {
        let Some(guard) = &mut self.guard else { return };
        guard.faulted_at = None;
        if guard.open.is_empty() {
            return;
        }
        for (page, right) in guard.open.drain(..) {
            self.nested_paging.allow(page, right);
        }
        self.guest.control.tlb_control = vmcb::TLB_FLUSH_ALL;
        self.hold_back();
    }

    /// Prepares the delivery of an event again that a fault of ours has interrupted. Returns the ticks that the
    /// instruction has counted which will run again for it.
    fn deliver_again(&mut self, event: u64, waiting: Option<u8>) -> u64 {
        if event & vmcb::EVENT_VALID == 0 {
            return 0;
        }
        match event & vmcb::EVENT_TYPE {
            vmcb::EVENT_SOFTWARE => 1,
            // The emulated CPU calls an interrupt an exception. It is still offered.
            _ if waiting == Some(event as u8) && self.registers.rflags & RFLAGS_IF != 0 => 0,
            vmcb::EVENT_EXCEPTION => {
                self.guest.control.event_injection = event;
                0
            }
            _ => 0,
        }
    }
}
