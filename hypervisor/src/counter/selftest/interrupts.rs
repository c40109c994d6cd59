//! An interrupt and a stop at one boundary: the stop comes first, and leaves no trace.

use super::{Bench, HANDLER, HLT, NONSENSE, Report, Want, trial};
use crate::cpu::Exit;
use crate::cpu::registers::{RFLAGS_FIXED, RFLAGS_IF, gpr};

/// Programs of which each instruction counts in AX or CX, and whether they begin with interrupts on. They come to a state
/// in which an interrupt is taken by all ways that there are.
const PROGRAMS: [(&[u8], bool); 7] = [
    // sti; inc ax, three times; hlt
    (&[0xFB, 0x40, 0x40, 0x40, HLT], false),
    // push 0x202; popf; inc ax, three times; hlt
    (&[0x68, 0x02, 0x02, 0x9D, 0x40, 0x40, 0x40, HLT], false),
    // push 0x202; push 0; push 0x1009; iret; (0x1009:) inc ax, three times; hlt
    (&[0x68, 0x02, 0x02, 0x6A, 0x00, 0x68, 0x09, 0x10, 0xCF, 0x40, 0x40, 0x40, HLT], false),
    // sti; int 0x41 (counts in DX); inc ax, twice; hlt
    (&[0xFB, 0xCD, 0x41, 0x40, 0x40, HLT], false),
    // sti; ud2 (skipped); inc ax, twice; hlt
    (&[0xFB, 0x0F, 0x0B, 0x40, 0x40, HLT], false),
    // inc ax; mov ss, bx; inc ax, three times; hlt
    (&[0x40, 0x8E, 0xD3, 0x40, 0x40, 0x40, HLT], true),
    // mov di, 0x3000; mov cx, 5; rep stosb; inc ax; hlt
    (&[0xBF, 0x00, 0x30, 0xB9, 0x05, 0x00, 0xF3, 0xAA, 0x40, HLT], true),
];

/// How a run ended: ticks, and AX, CX and DX.
type End = (u64, [u64; 3]);

impl Bench<'_> {
    /// Checks that the guest takes an interrupt at the same position wherever it was stopped, and never at a stop.
    pub(in crate::counter) fn interrupts_at_stops(&mut self, report: &mut Report) {
        let (mut runs, mut other, mut taken) = (0_u64, 0_u64, 0_u64);
        for program in PROGRAMS {
            let Some((length, _)) = self.interrupted(program, None, None, &mut taken) else {
                other = NONSENSE;
                break;
            };
            for arrival in 0..length {
                let end = self.interrupted(program, Some(arrival), None, &mut taken);
                let last = end.map_or(0, |(ticks, _)| ticks);
                for stop in arrival + 1..=last {
                    runs += 1;
                    other += u64::from(self.interrupted(program, Some(arrival), Some(stop), &mut taken) != end);
                }
                other += u64::from(end.is_none());
            }
        }
        report.check("runs with an interrupt and a stop", Want::AtLeast(PROGRAMS.len() as u64), runs);
        report.check("those that end otherwise than without the stop", Want::Is(0), other);
        report.check("interrupts that were taken at a stop", Want::Is(0), taken);
    }

    /// Runs a program to its end; an interrupt arrives at one position, and the guest is stopped at another. Counts in
    /// `taken` when it has been taken at just that stop.
    fn interrupted(
        &mut self,
        (code, enabled): (&[u8], bool),
        arrival: Option<u64>,
        stop: Option<u64>,
        taken: &mut u64,
    ) -> Option<End> {
        trial::place_events(self.stand, code);
        if enabled {
            self.registers().rflags = RFLAGS_FIXED | RFLAGS_IF;
        }
        let mut position = 0;
        for (target, arrives) in [(arrival, true), (stop, false)] {
            let Some(distance) = target.and_then(|target| target.checked_sub(position)) else { continue };
            let (exit, ticks) = self.run(distance);
            position += ticks;
            if exit.is_some() {
                return self.end(exit, position);
            }
            if arrives {
                self.stand.vcpu().offer_interrupt(Some(super::VECTOR));
            } else {
                // A limit may be late by a tick in a shadow, which the guest's own stops take care of.
                *taken += u64::from(ticks == distance && self.registers().rip == HANDLER);
            }
        }
        let (exit, ticks) = self.run(u64::MAX);
        self.end(exit, position + ticks)
    }

    fn end(&mut self, exit: Option<Exit>, position: u64) -> Option<End> {
        let gpr = &self.registers().gpr;
        (exit == Some(Exit::Hlt)).then_some((position, [gpr[gpr::RAX], gpr[gpr::RCX], gpr[gpr::RDX]]))
    }
}
