//! Interrupt shadows and debug traps.
//!
//! Debug exceptions exit, and are injected from here. The delivery of a trap by the CPU itself comes before the timer's exit
//! and is a tick where the TSC is the counter: no guest that traps could be stopped right in front of it. And a guest whose stack
//! or tables have a breakpoint could keep the CPU busy with traps for ever (CVE-2015-8104), likewise with alignment checks
//! (CVE-2015-5307): each of them is an exit now.
#![allow(unsafe_code)]

use super::exit::{self, Event};
use super::fields;
use super::instructions::{read, write};
use super::run::Bound;
use super::{VmxVcpu, segments};
use crate::cpu::registers::{
    PENDING_DEBUG, PENDING_ENABLED, PENDING_STEP, RFLAGS_IF, RFLAGS_RF, RFLAGS_TF, Shadow, Table,
};
use crate::cpu::{Entered, Exit, ShadowSteps, StackLoad, lazy};

/// Bits of the exception bitmap: debug exceptions and alignment checks.
pub(super) const EXCEPTIONS: u32 = 1 << 1 | 1 << 17;
/// Interruptibility: blocking by STI, by MOV SS.
const BLOCKED_BY_STI: u32 = 1 << 0;
const BLOCKED_BY_MOV_SS: u32 = 1 << 1;
const SHADOW: u32 = BLOCKED_BY_STI | BLOCKED_BY_MOV_SS;
/// DR6 and exit qualification: breakpoints that were met, and all causes.
const MET: u64 = 0xF;
const CAUSES: u64 = 0x600F;
/// An access to a debug register while DR7.GD forbids it.
const ACCESS: u64 = 1 << 13;
/// DR7.GD.
const GENERAL_DETECT: u64 = 1 << 13;
/// Events that are delivered at a stop before the host is looked at.
const DELIVERIES: u32 = 8;

impl VmxVcpu {
    /// Whether a debug trap waits that no shadow blocks: it comes before an interrupt, which would take its place if it were
    /// injected. See: SDM volume 3, 28.7.3.
    fn has_trap(&self) -> bool {
        self.traps != 0 || read(fields::PENDING_DEBUG) & (PENDING_STEP | PENDING_ENABLED) != 0 && !self.after_mov_ss()
    }

    /// Whether the guest would take an interrupt before its next instruction.
    pub(super) fn can_interrupt(&self) -> bool {
        let blocked = || read(fields::INTERRUPTIBILITY) & SHADOW != 0;
        self.registers.rflags & RFLAGS_IF != 0 && !blocked() && !self.has_trap()
    }

    pub(super) fn end_shadow(&mut self) {
        let interruptibility = read(fields::INTERRUPTIBILITY);
        if interruptibility & SHADOW != 0 {
            write(fields::INTERRUPTIBILITY, interruptibility & !SHADOW);
        }
    }

    /// The shadow, and the debug traps that wait.
    pub(super) fn blocked(&self) -> (Shadow, u64) {
        (shadow(read(fields::INTERRUPTIBILITY)), (self.traps | read(fields::PENDING_DEBUG)) & PENDING_DEBUG)
    }

    /// Puts the guest into a shadow or out of it, with debug traps that wait.
    pub(super) fn block(&mut self, shadow: Shadow, debug: u64) {
        let (ours, held) = divide(shadow, self.registers.rflags, debug);
        self.traps = ours;
        write(fields::INTERRUPTIBILITY, blocking(shadow));
        write(fields::PENDING_DEBUG, held);
    }

    /// An exception exited that is no page fault: it is delivered at the next entry.
    pub(super) fn exception(&mut self) -> Exit {
        let info = read(fields::EXIT_EVENT);
        let cause = read(fields::EXIT_QUALIFICATION);
        if exit::is_nmi(info) {
            return Exit::Overflow;
        }
        if exit::is_debug(info) && cause & ACCESS == 0 {
            // At the boundary behind an instruction, where a stop may be: so it is state until then.
            let met = if cause & MET != 0 { PENDING_ENABLED } else { 0 };
            self.traps = cause & (PENDING_STEP | MET) | met;
            // A breakpoint on an instruction is a fault, and the instruction is to run when its handler comes back.
            if runs_into(cause, read(fields::GUEST_DR7)) {
                self.registers.rflags |= RFLAGS_RF;
            }
        } else {
            if exit::is_debug(info) {
                show(cause);
            }
            self.event =
                Some(Event::again(info, read(fields::EXIT_EVENT_ERROR_CODE), read(fields::EXIT_INSTRUCTION_LENGTH)));
        }
        Exit::Interrupted
    }

    /// A single step waits, and with it what a shadow has held back.
    pub(super) fn add_step(&mut self) {
        self.traps |= PENDING_STEP | read(fields::PENDING_DEBUG) & PENDING_DEBUG;
        write(fields::PENDING_DEBUG, 0);
    }

    /// The exception that a trap makes which waits no more. See: SDM volume 3, 18.2.3.
    pub(super) fn take_trap(&mut self) -> Option<Event> {
        let traps = core::mem::take(&mut self.traps);
        if traps == 0 {
            return None;
        }
        show(traps);
        self.end_shadow();
        Some(Event::DEBUG)
    }
}

/// What a debug exception says in DR6 and DR7.
fn show(causes: u64) {
    lazy::set_dr6(lazy::dr6() & !MET | causes & CAUSES);
    write(fields::GUEST_DR7, read(fields::GUEST_DR7) & !GENERAL_DETECT);
}

/// The shadow in the interruptibility state.
const fn shadow(interruptibility: u32) -> Shadow {
    match (interruptibility & BLOCKED_BY_STI != 0, interruptibility & BLOCKED_BY_MOV_SS != 0) {
        (_, true) => Shadow::MovSs,
        (true, false) => Shadow::Sti,
        (false, false) => Shadow::None,
    }
}

/// The interruptibility state of a guest in a shadow.
const fn blocking(shadow: Shadow) -> u32 {
    match shadow {
        Shadow::None => 0,
        Shadow::Sti => BLOCKED_BY_STI,
        Shadow::MovSs => BLOCKED_BY_MOV_SS,
    }
}

/// Of the debug traps that wait, those that are ours to deliver at the next entry, and those that the CPU holds back until the
/// shadow is over. An STI holds none back. A single step waits in a shadow if there is one to come, and else not, as VM entry
/// insists. See: SDM volume 3, 28.3.1.5.
const fn divide(shadow: Shadow, rflags: u64, debug: u64) -> (u64, u64) {
    let with_step = if rflags & RFLAGS_TF != 0 { debug | PENDING_STEP } else { debug & !PENDING_STEP };
    match shadow {
        Shadow::None => (debug, 0),
        Shadow::Sti => (with_step, 0),
        Shadow::MovSs => (0, with_step),
    }
}

impl ShadowSteps for VmxVcpu {
    fn deliver(&mut self) -> Entered {
        let mut delivered =
            Entered { exit: Exit::Interrupted, ticks: 0, interrupt_taken: false, exception_taken: false };
        // One that comes again at each delivery must not keep the host away.
        for _ in 0..DELIVERIES {
            if delivered.exit != Exit::Interrupted || delivered.ticks > 0 || !self.has_event() {
                break;
            }
            let next = self.enter_within(Bound::Ticks(0));
            delivered = Entered {
                interrupt_taken: delivered.interrupt_taken || next.interrupt_taken,
                exception_taken: delivered.exception_taken || next.exception_taken,
                ..next
            };
        }
        delivered
    }

    fn has_event(&self) -> bool {
        self.event.is_some() || self.has_trap() || (self.offered.is_some() && self.can_interrupt())
    }

    fn gdtr(&self) -> Table {
        Table { base: read(fields::GUEST_GDTR_BASE), limit: read(fields::GUEST_GDTR_LIMIT) as u16 }
    }

    fn after_mov_ss(&self) -> bool {
        read(fields::INTERRUPTIBILITY) & BLOCKED_BY_MOV_SS != 0
    }

    fn breaks_at(&self, linear: u64) -> bool {
        breaks_at(linear, read(fields::GUEST_DR7), lazy::debug_registers())
    }

    fn begin_shadow(&mut self, stack: Option<StackLoad>) {
        self.forget_mode();
        let Some(stack) = stack else {
            return self.block(Shadow::Sti, 0);
        };
        let met = stack.operand.map_or(0, |operand| {
            let (met, is_enabled) = read_at(operand, read(fields::GUEST_DR7), lazy::debug_registers());
            met | if is_enabled { PENDING_ENABLED } else { 0 }
        });
        self.block(Shadow::MovSs, met);
        segments::set(fields::SS, &stack.segment);
    }
}

/// The data breakpoints that a read of `operand` meets, bits 0 to 3, and whether one of them is enabled.
/// See: SDM volume 3, 18.2.4 and 18.2.5.
fn read_at((at, size): (u64, u8), dr7: u64, addresses: [u64; 4]) -> (u64, bool) {
    let (mut met, mut enabled) = (0, false);
    for (index, address) in addresses.into_iter().enumerate() {
        let (kind, length) = (dr7 >> (16 + 4 * index) & 3, [1, 2, 8, 4][(dr7 >> (18 + 4 * index) & 3) as usize]);
        let first = address & !(length - 1);
        // Only breakpoints on reads and writes: 1 is for writes, 2 for ports.
        let overlaps = first.wrapping_sub(at) < u64::from(size) || at.wrapping_sub(first) < length;
        if kind == 3 && overlaps {
            met |= 1 << index;
            enabled |= dr7 >> (2 * index) & 3 != 0;
        }
    }
    (met, enabled)
}

/// Whether one of the breakpoints that were met is enabled and on an instruction.
fn runs_into(met: u64, dr7: u64) -> bool {
    (0..4).any(|index| met >> index & 1 != 0 && is_on_instruction(index, dr7))
}

/// Whether a breakpoint is enabled and on an instruction.
fn is_on_instruction(index: usize, dr7: u64) -> bool {
    dr7 >> (2 * index) & 3 != 0 && dr7 >> (16 + 4 * index) & 0xF == 0
}

/// Whether an instruction breakpoint is enabled at `linear`. See: SDM volume 3, 18.2.4.
fn breaks_at(linear: u64, dr7: u64, addresses: [u64; 4]) -> bool {
    (0..4).any(|index| is_on_instruction(index, dr7) && addresses[index] == linear)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruction_breakpoints_are_told_from_data_ones() {
        let addresses = [0x1000, 0x2000, 0x3000, 0x4000];
        assert!(breaks_at(0x2000, 1 << 2, addresses));
        assert!(breaks_at(0x2000, 1 << 3, addresses));
        assert!(!breaks_at(0x2000, 1 << 2 | 1 << 20, addresses));
        assert!(!breaks_at(0x2000, 1 << 0, addresses));
        assert!(!breaks_at(0x1001, 1 << 0, addresses));
        assert!(runs_into(1 << 1, 1 << 2) && !runs_into(1 << 0, 1 << 2) && !runs_into(1 << 1, 1 << 2 | 1 << 20));
    }

    #[test]
    fn a_shadow_keeps_its_kind() {
        for kind in [Shadow::None, Shadow::Sti, Shadow::MovSs] {
            assert_eq!(shadow(blocking(kind)), kind);
        }
        assert_eq!(divide(Shadow::Sti, RFLAGS_TF, 0), (PENDING_STEP, 0), "it comes before the next instruction");
        assert_eq!(divide(Shadow::Sti, 0, 0), (0, 0));
        assert_eq!(divide(Shadow::MovSs, 0, PENDING_STEP | 0x1001), (0, 0x1001));
        assert_eq!(divide(Shadow::MovSs, RFLAGS_TF, 0x1001), (0, PENDING_STEP | 0x1001));
        assert_eq!(divide(Shadow::None, 0, PENDING_STEP), (PENDING_STEP, 0));
    }

    #[test]
    fn data_breakpoints_on_an_operand_are_met() {
        let addresses = [0x1000, 0x2006, 0x3000, 0x2003];
        // Reads and writes of two bytes, of eight, of four; the last one of one byte. Breakpoint 2 is for writes.
        let dr7 = 0x7_u64 << 16 | 0xB << 20 | 0xD << 24 | 0x3 << 28;
        let read = |at, size, enabled: u64| read_at((at, size), dr7 | enabled, addresses);
        assert_eq!(read(0x1001, 2, 1 << 0), (1 << 0, true));
        assert_eq!(read(0x1002, 2, 1 << 0), (0, false));
        assert_eq!(read(0xFFF, 2, 1 << 0), (1 << 0, true));
        assert_eq!(read(0xFFE, 2, 1 << 0), (0, false));
        assert_eq!(read(0x2003, 2, 0), (1 << 1 | 1 << 3, false), "disabled ones are met, too");
        assert_eq!(read(0x2003, 2, 1 << 7), (1 << 1 | 1 << 3, true));
        assert_eq!(read(0x3000, 2, 0xFF), (0, false));
    }
}
