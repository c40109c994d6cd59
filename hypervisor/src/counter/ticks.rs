//! The backend `ticks`: the TSC, where it advances by one for each instruction, with a timer that counts the same way.
//!
//! The world switch reads the TSC on both sides and takes off what it costs itself. How late the timer is differs: QEMU's
//! APIC timer (SVM) and the preemption timer (VMX) of a Bochs that looks at its timers behind every instruction are
//! exact; a Bochs that runs decoded instructions in one go looks at them only behind such a run, and is late by its rest.

use super::Backend;
use super::skid::Policy;
use crate::cpu::{Entered, Meter};

/// How late a timer can be follows from the emulator's structure, and the self-test's programs have runs as long as they
/// can get: all that can happen is seen there. The double is for what was not thought of.
pub(super) const POLICY: Policy = Policy { times: 2, least: 0 };

/// Ticks of the TSC, one per instruction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ticks;

impl Backend for Ticks {
    fn name(&self) -> &'static str {
        "ticks"
    }

    fn meter(&self) -> Meter {
        Meter::Tsc
    }

    fn ticks(&self, entered: &Entered) -> u64 {
        entered.ticks
    }
}
