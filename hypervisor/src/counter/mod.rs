//! The exact stop: how far the guest has run, and how to leave it exactly at a chosen position.
//!
//! Positions are ticks of a counter that was tested at boot ([`selftest`]) and chosen by what the test proved
//! ([`choose`]). A [`Counter`] arms a limit for an entry and reads how far the entry moved the guest; [`Progress`] runs
//! the guest with it. The rules that make a stop exact:
//!
//! * a stop lands at the first instant at which the count is reached, so it is only ever armed for at least one tick
//!   further than the guest has run;
//! * an instruction that exits and is emulated is one tick, added by whoever emulates it;
//! * only an entry that cannot go past its limit may reach the target. Where the guest happens to be when something else
//!   ends a run the count does not tell: within a string instruction, or behind the delivery of a fault.

pub mod choose;
pub mod pmu;
pub mod selftest;

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;

use crate::cpu::{Entered, Limit, Vcpu};

/// Ticks that one entry may run at most; the range of every counter is larger.
const SLICE: u64 = 1 << 30;

/// What a counter saw since it was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// Distances in ticks between the points that overflows were armed for and the guest's stops.
    pub skid: pmu::Skid,
    /// Runs that went on for more than half the margin beyond that point: their overflow was late or lost.
    pub late: u64,
    /// Overflow interrupts when no overflow was due: they were late, came twice, or are of another origin.
    pub spurious: u64,
}

/// A way to count the guest's progress.
pub trait Counter {
    /// Name, for people.
    fn name(&self) -> &'static str;

    /// What must be equal on both twins, for their positions to be comparable.
    fn identity(&self) -> String {
        self.name().to_owned()
    }

    /// Least distance in ticks at which a stop can be armed ahead of the current position.
    fn lead(&self) -> u64 {
        1
    }

    /// Distance in ticks from which on the guest is stepped to its target; 0 when it never is.
    fn margin(&self) -> u64 {
        0
    }

    /// How the next entry is limited when the target is `distance` ticks away (at least 1).
    fn limit(&self, distance: u64) -> Limit;

    /// How many ticks an entry with this limit moved the guest.
    fn read(&mut self, limit: Limit, entered: &Entered) -> u64;

    /// What it saw.
    fn seen(&self) -> Seen {
        Seen::default()
    }
}

/// Ticks of the TSC, one per instruction, with a timer that fires exactly.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ticks;

impl Counter for Ticks {
    fn name(&self) -> &'static str {
        "ticks"
    }

    fn limit(&self, distance: u64) -> Limit {
        Limit::Exact(distance.min(SLICE))
    }

    fn read(&mut self, _: Limit, entered: &Entered) -> u64 {
        entered.ticks
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

    /// Runs the guest once towards `target`, which lies ahead. An exit that is not the guest's own leaves it exactly at
    /// the target, or before it.
    ///
    /// # Panics
    /// When the guest ran past the target, or to it by an entry that could have gone past: the machine must not go on
    /// (DESIGN, "Position and exact stop").
    pub fn enter(&mut self, target: u64, counter: &mut dyn Counter, vcpu: &mut dyn Vcpu) -> Entered {
        assert!(target > self.position, "a stop at {target} was asked for at position {}", self.position);
        self.run(target, target, counter, vcpu)
    }

    /// Runs the guest once up to the tick before `target`, or to `target` itself when an exact limit is late by one.
    ///
    /// # Panics
    /// As [`enter`](Self::enter).
    pub fn approach(&mut self, target: u64, counter: &mut dyn Counter, vcpu: &mut dyn Vcpu) -> Entered {
        assert!(target > self.position + 1, "the tick before {target} lies ahead of {}", self.position);
        self.run(target - 1, target, counter, vcpu)
    }

    /// Runs the guest once towards `aim`, and never past `target`.
    fn run(&mut self, aim: u64, target: u64, counter: &mut dyn Counter, vcpu: &mut dyn Vcpu) -> Entered {
        let from = self.position;
        let limit = counter.limit(aim - from);
        let entered = vcpu.enter(limit);
        self.position += counter.read(limit, &entered);
        let last = if matches!(limit, Limit::Exact(_) | Limit::Step) { target } else { target - 1 };
        if self.position > last {
            panic!("{}", Overshoot { from, target, position: self.position, limit, entered, counter });
        }
        entered
    }

    /// Counts an instruction that was emulated instead of executed.
    pub fn emulated(&mut self) {
        self.position += 1;
    }
}

/// A guest that missed its stop.
struct Overshoot<'a> {
    from: u64,
    target: u64,
    position: u64,
    limit: Limit,
    entered: Entered,
    counter: &'a dyn Counter,
}

impl fmt::Display for Overshoot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, target, position, limit, entered, counter } = self;
        write!(
            f,
            "the guest ran past its stop: from {from} it should go to {target} and is at {position} ({} beyond); limit \
             {limit:?}, {entered:?}; counter '{}' with a margin of {}, {:?}: it is not exact",
            position - target,
            counter.identity(),
            counter.margin(),
            counter.seen()
        )
    }
}
