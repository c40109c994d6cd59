//! What a machine is, and what it has as that: what belongs to one side does not exist on the other.

use super::LossReason;
use crate::decide::Bid;
use crate::replay_log::ReplayLog;
use crate::send_log::SendLog;
use crate::types::{Position, Role, Seq, Term, Time};

/// What a machine is.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one, and it stays where it is")]
pub(super) enum Side {
    /// It has the guest that clients talk to, or is to start it.
    Primary(PrimarySide),
    /// It follows a primary, or looks for one.
    Backup(BackupSide),
    /// It is out of service.
    Halted,
}

impl Side {
    pub(super) fn role(&self) -> Role {
        match self {
            Self::Primary(primary) => primary.role(),
            Self::Backup(BackupSide::Joining) => Role::Joining,
            Self::Backup(BackupSide::Loading { .. } | BackupSide::Loaded(_)) => Role::Loading,
            Self::Backup(BackupSide::Following(Follower { takeover: None, .. })) => Role::Backup,
            Self::Backup(BackupSide::Following(_)) => Role::Draining,
            Self::Halted => Role::Halted,
        }
    }

    pub(super) fn primary(&self) -> Option<&PrimarySide> {
        if let Self::Primary(primary) = self { Some(primary) } else { None }
    }

    pub(super) fn primary_mut(&mut self) -> Option<&mut PrimarySide> {
        if let Self::Primary(primary) = self { Some(primary) } else { None }
    }

    pub(super) fn follower(&self) -> Option<&Follower> {
        if let Self::Backup(BackupSide::Following(follower)) = self { Some(follower) } else { None }
    }

    pub(super) fn follower_mut(&mut self) -> Option<&mut Follower> {
        if let Self::Backup(BackupSide::Following(follower)) = self { Some(follower) } else { None }
    }

    /// The log that arrives here, as soon as it is known behind which entry it goes on.
    pub(super) fn replay(&self) -> Option<&ReplayLog> {
        match self {
            Self::Backup(BackupSide::Loaded(replay) | BackupSide::Following(Follower { replay, .. })) => Some(replay),
            _ => None,
        }
    }

    pub(super) fn replay_mut(&mut self) -> Option<&mut ReplayLog> {
        match self {
            Self::Backup(BackupSide::Loaded(replay) | BackupSide::Following(Follower { replay, .. })) => Some(replay),
            _ => None,
        }
    }

    /// How far the bid for the next term is.
    pub(super) fn bid(&self) -> Bid {
        match self {
            Self::Primary(PrimarySide { phase: Phase::Starting | Phase::Detaching { asked: true, .. }, .. }) => {
                Bid::Asked
            }
            Self::Backup(BackupSide::Following(follower)) => follower.bid,
            _ => Bid::None,
        }
    }
}

/// Whoever has the guest that clients talk to, or is to start it.
#[derive(Debug)]
pub(super) struct PrimarySide {
    /// The log. As long as nobody follows it only knows how entries were numbered.
    pub(super) log: SendLog,
    /// The entry with which the guest ends.
    pub(super) power_off: Option<Seq>,
    pub(super) phase: Phase,
}

/// How a primary stands to its backup.
#[derive(Debug)]
pub(super) enum Phase {
    /// The guest never ran: the arbiter is asked for its first term.
    Starting,
    /// There is none.
    Alone,
    /// The state of the guest is being fed.
    Sending,
    /// All of it was fed; this many bytes up to its end have not been handed to the stream yet.
    Sent { unsent: usize },
    /// It follows.
    Protected,
    /// The guest goes over to it with this entry.
    HandingOver { entry: Seq },
    /// It is lost, but may be complete: it is not known yet that it takes nothing over.
    Detaching {
        /// Why it is being let go.
        loss: LossReason,
        /// The arbiter is being asked for the next term.
        asked: bool,
    },
}

impl PrimarySide {
    /// One that has no backup, whose next entry comes behind those of `log`.
    pub(super) fn alone(log: SendLog) -> Self {
        Self { log, power_off: None, phase: Phase::Alone }
    }

    pub(super) fn starting() -> Self {
        Self { phase: Phase::Starting, ..Self::alone(SendLog::default()) }
    }

    pub(super) fn role(&self) -> Role {
        match self.phase {
            Phase::Starting => Role::Starting,
            Phase::Alone => Role::Alone,
            Phase::Sending | Phase::Sent { .. } => Role::Transferring,
            Phase::Protected => Role::Protected,
            Phase::HandingOver { .. } => Role::HandingOver,
            Phase::Detaching { .. } => Role::Detaching,
        }
    }

    /// Whether all state was fed.
    pub(super) fn state_sent(&self) -> bool {
        !matches!(self.phase, Phase::Starting | Phase::Alone | Phase::Sending)
    }

    /// Whether the end of the state has left, so that there may be a complete backup.
    pub(super) fn state_left(&self) -> bool {
        self.state_sent() && !matches!(self.phase, Phase::Sent { unsent: 1.. })
    }

    /// The backup says that it has the log up to `received`: whether that is all it is to go live with.
    pub(super) fn hands_over_by(&self, received: Seq) -> bool {
        matches!(self.phase, Phase::HandingOver { entry } if entry <= received)
    }
}

/// Whoever follows a primary, or looks for one.
#[derive(Debug)]
pub(super) enum BackupSide {
    /// It has no guest and looks for a primary.
    Joining,
    /// The state arrives.
    Loading {
        /// Bytes of CPU and platform so far.
        machine_bytes: usize,
    },
    /// All of it arrived and is being checked by the caller; the log behind it arrives already.
    Loaded(ReplayLog),
    /// It has the complete state and follows the log.
    Following(Follower),
}

/// A complete backup.
#[derive(Debug)]
pub(super) struct Follower {
    pub(super) replay: ReplayLog,
    pub(super) ack_due: Option<Time>,
    /// What the newest ack said of the guest: entries applied, and where it stood.
    pub(super) acked: (Seq, Position),
    /// The primary said in order that it has the guest no more, or let go of us when we had asked already.
    pub(super) primary_left: bool,
    /// The newest term that was proposed to bid for, until the primary has agreed.
    pub(super) proposed: Option<Term>,
    pub(super) bid: Bid,
    /// The primary is gone: the guest is being taken over.
    pub(super) takeover: Option<Takeover>,
}

impl Follower {
    pub(super) fn new(replay: ReplayLog) -> Self {
        Self {
            ack_due: None,
            acked: (Seq(0), Position(0)),
            primary_left: replay.handed_over,
            proposed: None,
            bid: Bid::None,
            takeover: None,
            replay,
        }
    }

    pub(super) fn ack_within(&mut self, due: Time) {
        self.ack_due = Some(self.ack_due.map_or(due, |earlier| earlier.min(due)));
    }
}

/// A takeover under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Takeover {
    /// When the primary gave its last sign of life, and when it was given up.
    pub(super) heard: Time,
    pub(super) suspected: Time,
    /// When all of the log had been executed.
    pub(super) drained: Option<Time>,
}
