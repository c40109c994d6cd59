//! The rules, checked all along a run by somebody who sees everything.
//!
//! Nothing here asks a node what it thinks it may do. What a machine logged, held, ran and sent is noted by the world
//! around it, and compared with what the others did.

mod live;
mod sessions;
mod wire;

use crate::arbiter::Arbiter;
use crate::net::MACHINES;
use pollux_ft::{NodeId, Role, SessionId, Term};
use sessions::Session;
use std::collections::BTreeMap;
use std::fmt;
pub(crate) use wire::{Leave, frame_hash};

/// What must always hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// A held frame leaves only when the twin holds the log up to it.
    OutputRule,
    /// A frame leaves an open gate only if no replica could still go live.
    AloneRule,
    /// At most one machine has its gate open.
    OneLive,
    /// A guest is created only where no machine has one.
    OneLife,
    /// One machine acts in a term, the one that won it at the arbiter.
    OneTermOneNode,
    /// Once a successor is live, nothing leaves its former primary in the guest's name.
    Successor,
    /// What was on the client wire is in the past of whoever goes live, and no frame is left out.
    NothingLost,
    /// A frame that comes again is bit for bit the same, and no more come again than the twins held at the takeover.
    Duplicates,
    /// Guest time never runs backwards on the client wire.
    GuestTime,
    /// Replies are unique, without gaps, and in the order of real time.
    ClientHistory,
    /// After the same entries at the same positions, twins are equal.
    ReplicasEqual,
    /// A backup goes live only at the end of the log that it holds.
    Drained,
    /// A backup asks for the next term only while its primary is silent, and goes live only after that, or when it was let
    /// go of.
    NeededTakeover,
    /// A primary that hears of a newer reign gives way.
    GivesWay,
    /// Only what its twin says is a sign of the twin's life to a machine.
    SignOfLife,
    /// Only a heartbeat that was made with the key, since this machine started, and after all before it, changes anything.
    Genuine,
    /// The guest sees the end of a disk request when this machine's disk has ended it, and none of its errors while the
    /// twin's disk may do better.
    Disk,
    /// A backup never runs beyond the newest entry it holds.
    Horizon,
    /// A guest with a backup does not run on when the backup lags by more than the bound.
    Lag,
    /// Buffers and queues stay within their bounds.
    Memory,
    /// A guest that switched itself off is not taken over.
    PowerOff,
    /// One fault alone does not lose the guest.
    Survival,
    /// Once faults stop, every client is answered.
    Service,
    /// Once faults stop, the guest is protected again.
    Protection,
    /// A bit that is turned in a backup's guest is found.
    FlipFound,
    /// Nothing panics.
    NoPanic,
    /// A run comes to its end.
    Ends,
}

impl Check {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::OutputRule,
        Self::AloneRule,
        Self::OneLive,
        Self::OneLife,
        Self::OneTermOneNode,
        Self::Successor,
        Self::NothingLost,
        Self::Duplicates,
        Self::GuestTime,
        Self::ClientHistory,
        Self::ReplicasEqual,
        Self::Drained,
        Self::NeededTakeover,
        Self::GivesWay,
        Self::SignOfLife,
        Self::Genuine,
        Self::Disk,
        Self::Horizon,
        Self::Lag,
        Self::Memory,
        Self::PowerOff,
        Self::Survival,
        Self::Service,
        Self::Protection,
        Self::FlipFound,
        Self::NoPanic,
        Self::Ends,
    ];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OutputRule => "output-rule",
            Self::AloneRule => "alone-rule",
            Self::OneLive => "one-live",
            Self::OneLife => "one-life",
            Self::OneTermOneNode => "one-term-one-node",
            Self::Successor => "successor",
            Self::NothingLost => "nothing-lost",
            Self::Duplicates => "duplicates",
            Self::GuestTime => "guest-time",
            Self::ClientHistory => "client-history",
            Self::ReplicasEqual => "replicas-equal",
            Self::Drained => "drained",
            Self::NeededTakeover => "needed-takeover",
            Self::GivesWay => "gives-way",
            Self::SignOfLife => "sign-of-life",
            Self::Genuine => "genuine",
            Self::Disk => "disk",
            Self::Horizon => "horizon",
            Self::Lag => "lag",
            Self::Memory => "memory",
            Self::PowerOff => "power-off",
            Self::Survival => "survival",
            Self::Service => "service",
            Self::Protection => "protection",
            Self::FlipFound => "flip-found",
            Self::NoPanic => "no-panic",
            Self::Ends => "ends",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A rule was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub check: Check,
    /// When, in microseconds of simulated time.
    pub at: u64,
    /// How.
    pub text: String,
}

/// What the world sees of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) node: NodeId,
    pub(crate) role: Role,
    pub(crate) term: Term,
    pub(crate) session: SessionId,
    pub(crate) peer: Option<NodeId>,
    pub(crate) gate_open: bool,
}

/// A log: that of one session of one primary.
pub(crate) type LogId = (NodeId, SessionId);

/// The one who sees everything.
#[derive(Debug)]
pub(crate) struct Audit {
    now: u64,
    violation: Option<Violation>,
    /// Whether machines have an arbiter at all.
    arbitrated: bool,
    views: [Option<View>; MACHINES],
    /// Hashes of the guest's frames that were on the client wire, by index.
    wire: Vec<u64>,
    /// Frames of guests that are no more, and how many guests were created by machines that started by themselves.
    former: u64,
    lives: u64,
    wire_time: u64,
    /// Frames in the machines' gates, and how many each may still send again since the last takeover.
    gates: [u64; MACHINES],
    repeatable: [u64; MACHINES],
    sessions: BTreeMap<LogId, Session>,
    reigns: BTreeMap<Term, NodeId>,
    powered_off: bool,
    pub(crate) duplicates: u64,
}

impl Audit {
    pub(crate) fn new(arbitrated: bool) -> Self {
        Self {
            now: 0,
            violation: None,
            arbitrated,
            views: [None; MACHINES],
            wire: Vec::new(),
            former: 0,
            lives: 0,
            wire_time: 0,
            gates: [0; MACHINES],
            repeatable: [0; MACHINES],
            sessions: BTreeMap::new(),
            reigns: BTreeMap::new(),
            powered_off: false,
            duplicates: 0,
        }
    }

    pub(crate) fn set_now(&mut self, now: u64) {
        self.now = now;
    }

    /// Notes a broken rule; only the first counts.
    pub(crate) fn broken(&mut self, check: Check, text: String) {
        let at = self.now;
        self.violation.get_or_insert(Violation { check, at, text });
    }

    pub(crate) fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// Frames of the guest that were on the client wire.
    pub(crate) fn frames(&self) -> u64 {
        self.former + self.wire.len() as u64
    }

    /// Guests that were created by machines that started by themselves.
    pub(crate) fn lives(&self) -> u64 {
        self.lives
    }

    /// Looks at a machine again; `None`: it has no power.
    pub(crate) fn look(&mut self, index: usize, view: Option<View>, arbiter: &Arbiter) {
        if view.is_none() {
            self.gates[index] = 0;
        }
        if self.views[index] != view {
            self.views[index] = view;
            self.check_live(index, arbiter);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
