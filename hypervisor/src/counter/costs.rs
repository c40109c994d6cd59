//! What exits and events count by themselves.

use core::fmt;

use crate::cpu::{EXIT_KINDS, Entered, Exit};

/// Counts by kind of exit and event, each 0 or 1.
///
/// Kinds of exit that no test program can provoke (such as a triple fault) cost what CPUID costs. Were that wrong, the
/// positions of both twins would be so alike: what matters for their equality are the exits that are not the guest's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Costs {
    exits: [Option<u8>; EXIT_KINDS.len()],
    interrupt: u8,
    exception: u8,
}

/// A second measurement that differs from the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Contradiction;

impl Costs {
    /// Notes what exits of this kind cost.
    pub(super) fn note(&mut self, exit: Exit, cost: u8) -> Result<(), Contradiction> {
        match self.exits[exit.kind()].replace(cost) {
            Some(before) if before != cost => Err(Contradiction),
            _ => Ok(()),
        }
    }

    /// Notes what the delivery of an interrupt costs.
    pub(super) fn note_interrupt(&mut self, cost: u8) {
        self.interrupt = cost;
    }

    /// Notes what the delivery of an injected exception costs.
    pub(super) fn note_exception(&mut self, cost: u8) {
        self.exception = cost;
    }

    /// What the exit costs.
    pub(super) fn exit(&self, exit: Exit) -> u8 {
        self.exits[exit.kind()].or(self.exits[Exit::Cpuid.kind()]).unwrap_or(0)
    }

    /// Names of the exits and events that count, for people; none on most CPUs.
    pub fn counting(&self) -> impl Iterator<Item = &'static str> {
        let exits = EXIT_KINDS.into_iter().zip(self.exits.map(Option::unwrap_or_default));
        let events = [("injected interrupt", self.interrupt), ("injected exception", self.exception)];
        exits.chain(events).filter(|(_, cost)| *cost > 0).map(|(name, _)| name)
    }

    /// What all that happened at one entry costs.
    #[must_use]
    pub fn of(&self, entered: &Entered) -> u64 {
        let events = u64::from(entered.interrupt_taken) * u64::from(self.interrupt)
            + u64::from(entered.exception_taken) * u64::from(self.exception);
        events + u64::from(self.exit(entered.exit))
    }
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, cost) in EXIT_KINDS.iter().zip(self.exits) {
            match cost {
                Some(cost) => write!(f, "{name} {cost}, ")?,
                None => write!(f, "{name} not measured, ")?,
            }
        }
        write!(f, "injected interrupt {}, injected exception {}", self.interrupt, self.exception)
    }
}
