//! Numbers with a meaning: a position cannot be mistaken for a sequence number.

use core::fmt;

/// Wall-clock time of this machine in microseconds; monotonic, with an origin of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

/// A length of wall-clock time in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(pub u64);

impl Span {
    /// A span of `ms` milliseconds.
    #[must_use]
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms.saturating_mul(1000))
    }
}

impl Time {
    /// The time `span` later.
    #[must_use]
    pub const fn after(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// How long ago `earlier` was; zero when it lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

/// How far the guest has run, in ticks of the exact counter. Opaque and ordered; equal counters only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub u64);

impl Position {
    /// The position `ticks` further on; stays at the end of all positions.
    #[must_use]
    pub const fn after(self, ticks: u64) -> Self {
        Self(self.0.saturating_add(ticks))
    }

    /// How many ticks ago `earlier` was; zero when it lies ahead.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Sequence number of a log entry. The first entry is 1; 0 stands for "none yet".
///
/// Numbers go on across takeovers and new backups, so that a number names one entry for the whole life of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u64);

impl Seq {
    /// The number of the next entry.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Number of a reign: whoever runs the guest alone won it first. 0 is a machine that never belonged to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Term(pub u64);

/// Which machine this is, for as long as it runs: random or derived from a NIC's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One attempt to protect a guest: from the start of a state transfer until the backup is lost.
///
/// Raised by the primary at each transfer. A backup that knows the session it followed can tell whether a heartbeat
/// speaks of that one or of an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SessionId(pub u64);

/// What a node is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Has a guest that never ran and waits for the arbiter to grant its first term.
    Starting,
    /// Runs the guest, no backup: output leaves at once.
    Alone,
    /// Runs the guest, a backup is being made: output is held from the end of the state on.
    Transferring,
    /// Runs the guest, a backup follows: output waits for acks.
    Protected,
    /// Runs the guest, the backup is out of reach but may still think that it is one: output stays held until it is
    /// known that it does not, or the arbiter granted the next term.
    Detaching,
    /// The guest stands still: it is to go on at the backup.
    HandingOver,
    /// No guest; looks for a primary.
    Joining,
    /// Receives the state; not yet good for anything.
    Loading,
    /// Follows the log.
    Backup,
    /// The primary is gone: executes the rest of the log, wins the next term, goes live.
    Draining,
    /// Out of service.
    Halted,
}

impl Role {
    /// All roles, in the order of their numbers on the wire.
    pub const ALL: [Self; 11] = [
        Self::Alone,
        Self::Transferring,
        Self::Protected,
        Self::Detaching,
        Self::Joining,
        Self::Loading,
        Self::Backup,
        Self::Draining,
        Self::Halted,
        Self::Starting,
        Self::HandingOver,
    ];

    /// Whether a machine in this role has the guest that clients talk to.
    #[must_use]
    pub const fn is_primary(self) -> bool {
        self.runs_guest() || matches!(self, Self::HandingOver)
    }

    /// Whether a machine in this role executes the guest ahead of everybody else.
    #[must_use]
    pub const fn runs_guest(self) -> bool {
        matches!(self, Self::Alone | Self::Transferring | Self::Protected | Self::Detaching)
    }

    /// Whether a machine in this role holds the complete state of the guest and follows the log.
    #[must_use]
    pub const fn is_backup(self) -> bool {
        matches!(self, Self::Backup | Self::Draining)
    }

    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Alone => 0,
            Self::Transferring => 1,
            Self::Protected => 2,
            Self::Detaching => 3,
            Self::Joining => 4,
            Self::Loading => 5,
            Self::Backup => 6,
            Self::Draining => 7,
            Self::Halted => 8,
            Self::Starting => 9,
            Self::HandingOver => 10,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_known_by_its_number() {
        for role in Role::ALL {
            assert_eq!(Role::from_code(role.code()), Some(role));
        }
        assert_eq!(Role::from_code(11), None);
    }
}
