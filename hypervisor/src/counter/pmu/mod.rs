//! The counter `pmu`: retired instructions, counted by the CPU's performance monitoring while the guest runs.
//!
//! Its overflow interrupt comes late by a number of instructions that nobody promises, the *skid*. So an exact stop has
//! two parts. Far away an overflow is armed a *margin* before the target, and the guest runs. Near it, or after the
//! overflow, the guest is stepped, and the count compared after every step, until it is that of the target. A step may
//! leave the count as it is (the delivery of a fault, an iteration of a string instruction, which counts once, when it is
//! complete): the next step goes on. Only a step reaches a target: wherever a free run ends, the count alone does not say
//! whether that was the first instant at which it was reached.
//!
//! An overflow interrupt that is late, lost, comes twice or is another NMI costs time, not exactness: what counts is
//! where the guest stands at an exit, whatever ended the run. Past the margin it is fatal.
//!
//! # From counts to positions
//!
//! The position that both twins must agree on is a function of the guest's instructions alone. A raw count is not: an
//! exit or an injected event may count, and how often a host interrupt ends a run differs between the twins. What each
//! kind costs, 0 or 1, is measured at boot ([`selftest`]), and [`Counter::read`] takes it off. What remains is one for
//! each instruction that the guest executed itself, and something constant for each fault that it took: the same on both
//! twins if [`Counter::identity`] is, which contains the count of a test program with faults and software interrupts.
//!
//! See: SDM volume 3B, 20.2 ("Architectural performance monitoring"); volume 3C, 26.5.2 ("Monitor trap flag").

mod costs;
pub mod registers;
pub mod selftest;
mod skid;
#[cfg(test)]
mod tests;

use alloc::format;
use alloc::string::String;

use super::{Counter, SLICE, Seen};
use crate::cpu::{Entered, InstructionCounter, Limit};
pub use costs::Costs;
pub use skid::Skid;

/// The counter of retired instructions, as the self-test found it.
#[derive(Debug, Clone)]
pub struct Pmu {
    counter: InstructionCounter,
    margin: u64,
    costs: Costs,
    /// Instructions that the test program with faults counts.
    program: u64,
    seen: Seen,
}

impl Pmu {
    /// A counter whose overflows come less than `margin` instructions late.
    fn new(counter: InstructionCounter, margin: u64, costs: Costs, program: u64) -> Self {
        Self { counter, margin, costs, program, seen: Seen::default() }
    }

    /// What exits and events count by themselves.
    #[must_use]
    pub const fn costs(&self) -> Costs {
        self.costs
    }

    /// From here on it is the guest that is counted.
    fn forget_seen(&mut self) {
        self.seen = Seen::default();
    }

    fn note(&mut self, limit: Limit, entered: &Entered, ticks: u64) {
        use crate::cpu::Exit;
        match limit {
            Limit::Overflow(armed) if ticks >= armed => {
                self.seen.skid.note(ticks - armed);
                self.seen.late += u64::from(ticks - armed > self.margin / 2);
            }
            _ => self.seen.spurious += u64::from(entered.exit == Exit::Overflow),
        }
    }
}

impl Counter for Pmu {
    fn name(&self) -> &'static str {
        "pmu"
    }

    fn identity(&self) -> String {
        format!("pmu ({}, test program {})", self.counter.name, self.program)
    }

    fn margin(&self) -> u64 {
        self.margin
    }

    fn limit(&self, distance: u64) -> Limit {
        match distance.checked_sub(self.margin) {
            None | Some(0) => Limit::Step,
            Some(far) => Limit::Overflow(far.min(SLICE).min(self.counter.longest)),
        }
    }

    /// # Panics
    /// When less was counted than the exit costs by itself: then what was measured at boot does not hold.
    fn read(&mut self, limit: Limit, entered: &Entered) -> u64 {
        let cost = self.costs.of(entered);
        let Some(ticks) = entered.ticks.checked_sub(cost) else {
            panic!(
                "{entered:?} costs {cost} by itself, and less was counted: the counter 'pmu' is not what it was at boot"
            )
        };
        self.note(limit, entered, ticks);
        ticks
    }

    fn seen(&self) -> Seen {
        self.seen
    }
}
