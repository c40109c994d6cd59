//! The exact stop: how far the guest has run, and how to leave it exactly at a chosen position.
//!
//! Positions are what a [`Backend`] counts. It was tested at boot ([`selftest`]) and chosen by what the test proved
//! ([`choose`]). [`Counter`] is the way to a stop, the same for every backend: it limits an entry and says how far the
//! entry moved the guest; [`Progress`] runs the guest with it.
//!
//! # The way to a stop
//!
//! What ends a run when enough was counted may come late, by the backend's *skid*. So an exact stop has two parts. Far
//! away the end is armed a *margin* before the target, and the guest runs. Nearer than that the guest is stepped, and the
//! count compared after every step, until it is that of the target. A step may leave the count as it is (with some
//! backends the delivery of a fault, or an iteration of a string instruction that goes on): the next step goes on.
//! Where the self-test saw no skid at all the margin is 0: the end is armed at the target itself, and nothing is stepped.
//!
//! The end of a run that is late within the margin, lost, comes twice or is of another origin costs time, not exactness:
//! what counts is where the guest stands at an exit, whatever ended the run. Past the target it is fatal.
//!
//! The rules that make a stop exact:
//!
//! * a stop lands at the first instant at which the count is reached, so it is only ever armed for at least one tick
//!   further than the guest has run;
//! * an instruction that exits and is emulated is one tick, added by whoever emulates it;
//! * only an entry that cannot go past the target may reach it: a step, or a run without skid. Where the guest happens to
//!   be when something else ends a run the count does not tell: within a string instruction, or behind the delivery of a
//!   fault.

pub mod choose;
mod costs;
pub mod pmu;
pub mod selftest;
pub mod skid;
#[cfg(test)]
mod tests;
mod ticks;

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;

use pollux_ft::Position;

use crate::cpu::{Entered, Exit, Limit, Meter, Vcpu};
pub use costs::Costs;
pub use skid::Skid;
pub use ticks::Ticks;

/// Ticks that one entry may run at most; the range of every backend is larger.
const SLICE: u64 = 1 << 30;

/// What a counter saw since it was chosen; nothing, where no run may be late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// Distances in ticks between the points that ends of runs were armed for and the guest's stops.
    pub skid: Skid,
    /// Runs that went on for more than half the margin beyond that point: their end was late or lost.
    pub late: u64,
    /// Overflow interrupts when no overflow was due: they were late, came twice, or are of another origin.
    pub spurious: u64,
}

/// What counts the guest's progress, as the self-test found it.
pub trait Backend {
    /// Name, for people.
    fn name(&self) -> &'static str;

    /// What must be equal on both twins, for their positions to be comparable.
    fn identity(&self) -> String {
        self.name().to_owned()
    }

    /// What the CPU counts and ends runs with.
    fn meter(&self) -> Meter;

    /// Most ticks that the end of a run can be armed for.
    fn longest(&self) -> u64 {
        SLICE
    }

    /// What exits and events count by themselves; nothing, unless it is measured and taken off.
    fn costs(&self) -> Costs {
        Costs::default()
    }

    /// How many ticks an entry moved the guest: what was counted without what counts besides the guest's instructions.
    fn ticks(&self, entered: &Entered) -> u64;
}

/// The way to exact stops with a backend.
pub struct Counter {
    backend: Box<dyn Backend>,
    margin: u64,
    seen: Seen,
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter")
            .field("identity", &self.identity())
            .field("margin", &self.margin)
            .field("seen", &self.seen)
            .finish()
    }
}

impl Counter {
    /// A counter whose runs end less than `margin` ticks late; with 0, exactly.
    pub fn new(backend: Box<dyn Backend>, margin: u64) -> Self {
        Self { backend, margin, seen: Seen::default() }
    }

    /// The backend's name, for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.backend.name()
    }

    /// What must be equal on both twins, for their positions to be comparable.
    #[must_use]
    pub fn identity(&self) -> String {
        self.backend.identity()
    }

    /// What counts.
    #[must_use]
    pub fn meter(&self) -> Meter {
        self.backend.meter()
    }

    /// What exits and events count by themselves.
    #[must_use]
    pub fn costs(&self) -> Costs {
        self.backend.costs()
    }

    /// Distance in ticks from which on the guest is stepped to its target; 0 when it never is.
    #[must_use]
    pub fn margin(&self) -> u64 {
        self.margin
    }

    /// Whether the guest is stepped the last ticks to its target.
    #[must_use]
    pub fn steps(&self) -> bool {
        self.margin > 0
    }

    /// What it saw.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen
    }

    /// From here on it is the guest that is counted.
    fn forget_seen(&mut self) {
        self.seen = Seen::default();
    }

    /// How the next entry is limited when the target is `distance` ticks away (at least 1).
    #[must_use]
    pub fn limit(&self, distance: u64) -> Limit {
        let meter = self.meter();
        match distance.checked_sub(self.margin) {
            None | Some(0) => Limit::Step(meter),
            Some(far) => Limit::After(meter, far.min(SLICE).min(self.backend.longest())),
        }
    }

    /// Whether an entry with this limit cannot go past the target that it was limited for.
    fn is_sure(&self, limit: Limit) -> bool {
        matches!(limit, Limit::Step(_)) || !self.steps()
    }

    /// How many ticks an entry with this limit moved the guest.
    pub fn read(&mut self, limit: Limit, entered: &Entered) -> u64 {
        let ticks = self.backend.ticks(entered);
        if self.steps() {
            self.note(limit, entered.exit, ticks);
        }
        ticks
    }

    fn note(&mut self, limit: Limit, exit: Exit, ticks: u64) {
        match limit {
            Limit::After(_, armed) if ticks >= armed => {
                self.seen.skid.note(ticks - armed);
                self.seen.late += u64::from(ticks - armed > self.margin / 2);
            }
            _ => self.seen.spurious += u64::from(exit == Exit::Overflow),
        }
    }
}

/// The position of a guest, and the only way to move it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    position: Position,
}

impl Progress {
    /// A guest that stands at `position`.
    #[must_use]
    pub const fn at(position: Position) -> Self {
        Self { position }
    }

    /// How far the guest has run.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.position
    }

    /// Runs the guest once towards `target`, which lies ahead. An exit that is not the guest's own leaves it exactly at
    /// the target, or before it.
    ///
    /// # Panics
    /// When the guest ran past the target, or to it by an entry that could have gone past: the machine must not go on
    /// (ARCHITECTURE, "Invariants").
    pub fn enter(&mut self, target: Position, counter: &mut Counter, vcpu: &mut dyn Vcpu) -> Entered {
        assert!(target > self.position, "a stop at {target} was asked for at position {}", self.position);
        self.run(target, target, counter, vcpu)
    }

    /// Runs the guest once up to the tick before `target`, or to `target` itself when a limit without skid is late by one.
    ///
    /// # Panics
    /// As [`enter`](Self::enter).
    pub fn approach(&mut self, target: Position, counter: &mut Counter, vcpu: &mut dyn Vcpu) -> Entered {
        assert!(target > self.position.after(1), "the tick before {target} lies ahead of {}", self.position);
        self.run(Position(target.0 - 1), target, counter, vcpu)
    }

    /// Runs the guest once towards `aim`, and never past `target`.
    fn run(&mut self, aim: Position, target: Position, counter: &mut Counter, vcpu: &mut dyn Vcpu) -> Entered {
        let from = self.position;
        let limit = counter.limit(aim.since(from));
        let entered = vcpu.enter(limit);
        self.position = self.position.after(counter.read(limit, &entered));
        let last = if counter.is_sure(limit) { target } else { Position(target.0 - 1) };
        if self.position > last {
            panic!("{}", Overshoot { from, target, position: self.position, limit, entered, counter });
        }
        entered
    }

    /// Lets the guest take the event that is injected, and nothing else.
    ///
    /// # Panics
    /// When an instruction ran.
    pub fn deliver(&mut self, counter: &mut Counter, vcpu: &mut dyn Vcpu) -> Entered {
        let limit = if counter.steps() { Limit::Step(counter.meter()) } else { Limit::After(counter.meter(), 0) };
        let entered = vcpu.enter(limit);
        let ticks = counter.read(limit, &entered);
        assert_eq!(ticks, 0, "an event was to be delivered at {}, and it ran: {entered:?}", self.position);
        entered
    }

    /// Counts an instruction that was emulated instead of executed.
    pub fn emulated(&mut self) {
        self.position = self.position.after(1);
    }
}

/// A guest that missed its stop.
struct Overshoot<'a> {
    from: Position,
    target: Position,
    position: Position,
    limit: Limit,
    entered: Entered,
    counter: &'a Counter,
}

impl fmt::Display for Overshoot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, target, position, limit, entered, counter } = self;
        write!(
            f,
            "the guest ran past its stop: from {from} it should go to {target} and is at {position} ({} beyond); limit \
             {limit:?}, {entered:?}; counter '{}' with a margin of {}, {:?}: it is not exact",
            position.since(*target),
            counter.identity(),
            counter.margin(),
            counter.seen()
        )
    }
}
