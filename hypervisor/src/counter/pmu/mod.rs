//! The backend `pmu`: retired instructions, counted by the CPU's performance monitoring while the guest runs. Its overflow
//! interrupt comes late by a number of instructions that nobody promises.
//!
//! # From counts to positions
//!
//! The position that both twins must agree on is a function of the guest's instructions alone. A raw count is not: an
//! exit or an injected event may count, and how often a host interrupt ends a run differs between the twins. What each
//! kind costs, 0 or 1, is measured at boot ([`selftest`]), and [`Backend::ticks`] takes it off. What remains is one for
//! each instruction that the guest executed itself (a string instruction counts once, when it is complete), and something
//! constant for each fault that it took: the same on both twins if [`Backend::identity`] is, which contains the count of
//! a test program with faults and software interrupts.
//!
//! See: SDM volume 3B, 20.2 ("Architectural performance monitoring"); volume 3C, 26.5.2 ("Monitor trap flag").

pub mod selftest;

use alloc::format;
use alloc::string::String;

use super::skid::Policy;
use super::{Backend, Costs};
use crate::cpu::{Entered, InstructionCounter, Meter};

/// Nobody promises that the largest skid of the self-test is the largest that there is. 100 to 125 is what the debugger rr
/// has found to be enough on Intel CPUs since 2008 for overflows of another counter; 18 has been measured for this one.
pub(super) const POLICY: Policy = Policy { times: 8, least: 256 };

/// The counter of retired instructions, as the self-test found it.
#[derive(Debug, Clone)]
pub struct Pmu {
    counter: InstructionCounter,
    costs: Costs,
    /// Instructions that the test program with faults counts.
    program: u64,
}

impl Pmu {
    /// A counter with these costs, which counts `program` instructions of the test program with faults.
    pub(super) fn new(counter: InstructionCounter, costs: Costs, program: u64) -> Self {
        Self { counter, costs, program }
    }
}

impl Backend for Pmu {
    fn name(&self) -> &'static str {
        "pmu"
    }

    fn identity(&self) -> String {
        format!("pmu ({}, test program {})", self.counter.name, self.program)
    }

    fn meter(&self) -> Meter {
        Meter::Instructions
    }

    fn longest(&self) -> u64 {
        self.counter.longest
    }

    fn costs(&self) -> Costs {
        self.costs
    }

    /// # Panics
    /// When less was counted than the exit costs by itself: then what was measured at boot does not hold.
    fn ticks(&self, entered: &Entered) -> u64 {
        let cost = self.costs.of(entered);
        entered.ticks.checked_sub(cost).unwrap_or_else(|| {
            panic!(
                "{entered:?} costs {cost} by itself, and less was counted: the counter 'pmu' is not what it was at boot"
            )
        })
    }
}
