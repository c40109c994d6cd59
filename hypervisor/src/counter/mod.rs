//! The exact stop: how far the guest has run, and how to leave it exactly at a chosen position.
//!
//! Positions are ticks of a counter that was calibrated at boot ([`selftest`]). The rules that make a stop exact:
//! a stop lands at the first instant at which the count is reached, so it is only ever armed for at least one tick
//! further than the guest has run; an instruction that exits and is emulated is one tick.

pub mod selftest;

use crate::cpu::{Entered, Exit, Limit, Vcpu};

/// Ticks that one entry may run at most; the timer's range is larger.
const SLICE: u64 = 1 << 30;

/// A way to count the guest's progress.
pub trait Counter {
    /// Name, compared when twins pair: positions of different counters are not comparable.
    fn name(&self) -> &'static str;

    /// Least distance in ticks at which a stop can be armed ahead of the current position.
    fn lead(&self) -> u64;

    /// How the next entry is limited when the target is `distance` ticks away (at least 1).
    fn limit(&self, distance: u64) -> Limit;
}

/// Ticks of the TSC, one per instruction, with a timer that fires exactly.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ticks;

impl Counter for Ticks {
    fn name(&self) -> &'static str {
        "ticks"
    }

    fn lead(&self) -> u64 {
        1
    }

    fn limit(&self, distance: u64) -> Limit {
        Limit::Exact(distance.min(SLICE))
    }
}

/// The position of a guest, and the only way to move it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    position: u64,
}

impl Progress {
    /// A guest that stands at `position`.
    #[must_use]
    pub const fn at(position: u64) -> Self {
        Self { position }
    }

    /// How far the guest has run.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Runs the guest once towards `target`, which lies ahead.
    ///
    /// # Panics
    /// When the guest ran past the target: the machine must not go on (DESIGN, "Position and exact stop").
    pub fn enter(&mut self, target: u64, counter: &dyn Counter, vcpu: &mut dyn Vcpu) -> Entered {
        assert!(target > self.position, "a stop at {target} was asked for at position {}", self.position);
        let entered = vcpu.enter(counter.limit(target - self.position));
        self.position += entered.ticks;
        self.check(target, entered.exit);
        entered
    }

    /// Runs the guest once up to the tick before `target`, or to `target` itself when a limit is late by one.
    ///
    /// # Panics
    /// As [`enter`](Self::enter).
    pub fn approach(&mut self, target: u64, counter: &dyn Counter, vcpu: &mut dyn Vcpu) -> Entered {
        assert!(target > self.position + 1, "the tick before {target} lies ahead of {}", self.position);
        let entered = vcpu.enter(counter.limit(target - 1 - self.position));
        self.position += entered.ticks;
        self.check(target, entered.exit);
        entered
    }

    /// Counts an instruction that was emulated instead of executed.
    pub fn emulated(&mut self) {
        self.position += 1;
    }

    fn check(&self, target: u64, exit: Exit) {
        assert!(
            self.position <= target,
            "the guest ran past its stop: it should be at {target} and is at {} ({exit:?}); the counter is not exact",
            self.position
        );
    }
}
