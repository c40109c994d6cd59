//! Clock reads without an exit: what the guest reads must be what it would be told at an exit, wherever it was stopped.

use super::{Bench, CODE, HLT, NONSENSE, NOP, Report, Want, trial};
use crate::cpu::registers::gpr;
use crate::cpu::{Exit, LentTsc};

/// mov cx, 3; 1: rdtsc; add ebx, eax; add ebx, edx; rol ebx, 3; nop; int 0x41; ud2 (skipped); mov di, 0x3000; push cx;
/// mov cx, 5; rep stosb; pop cx; rdtsc; add ebx, eax; loop 1b; hlt
#[rustfmt::skip]
const PROGRAM: [u8; 38] = [
    0xB9, 3, 0, 0x0F, 0x31, 0x66, 0x01, 0xC3, 0x66, 0x01, 0xD3, 0x66, 0xC1, 0xC3, 3, NOP, 0xCD, 0x41, 0x0F, 0x0B,
    0xBF, 0x00, 0x30, 0x51, 0xB9, 5, 0, 0xF3, 0xAA, 0x59, 0x0F, 0x31, 0x66, 0x01, 0xC3, 0xE2, 0xDE, HLT,
];
/// The TSC at the start: its lower half overflows on the way.
const START: u64 = 0x7_FFFF_FFC0;
/// Length of RDTSC.
const RDTSC_LEN: u64 = 2;

impl Bench<'_> {
    /// Checks clock reads without an exit. Returns whether this CPU has any.
    pub(in crate::counter) fn clock_reads(&mut self, report: &mut Report) -> bool {
        if !self.stand.vcpu().lend_tsc(Some(LentTsc { now: 0, aux: 0 })) {
            return false;
        }
        let told = self.read_clock(false, None);
        let (ticks, sum) = told.unwrap_or((0, NONSENSE));
        let got = |run: Option<(u64, u64)>| run.unwrap_or((NONSENSE, NONSENSE));
        let free = got(self.read_clock(true, None));
        report.check("6 clock reads without an exit: ticks", Want::Is(ticks), free.0);
        report.check("the sum that the guest makes of them", Want::Is(sum), free.1);
        let other = (1..ticks).filter(|&stop| self.read_clock(true, Some(stop)) != told).count() as u64;
        report.check("the same, stopped at each tick: other ends", Want::Is(0), other);
        self.stand.vcpu().lend_tsc(None);
        told.is_some()
    }

    /// Runs the program, with a stop on the way: its ticks, and the sum of what it read. `lent` says whether it reads the
    /// clock without an exit.
    fn read_clock(&mut self, lent: bool, stop: Option<u64>) -> Option<(u64, u64)> {
        trial::place_events(self.stand, &PROGRAM);
        let mut position = 0;
        for target in stop.into_iter().chain([u64::MAX]) {
            while position < target {
                let now = START + position;
                self.stand.vcpu().lend_tsc(lent.then_some(LentTsc { now, aux: 0 }));
                let (exit, ticks) = self.enter(target - position);
                position += ticks;
                match exit {
                    Exit::Hlt => return Some((position, self.registers().gpr[gpr::RBX])),
                    Exit::Rdtsc if !lent => {
                        let (tsc, registers) = (START + position, self.registers());
                        registers.gpr[gpr::RAX] = tsc & u64::from(u32::MAX);
                        registers.gpr[gpr::RDX] = tsc >> 32;
                        registers.rip += RDTSC_LEN;
                        position += 1;
                    }
                    exit if exit.is_own() => return None,
                    _ => {}
                }
            }
        }
        None
    }
}

const _: () = assert!(CODE + (PROGRAM.len() as u64) < 0x2000, "behind it is what the program stores");
