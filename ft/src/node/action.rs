//! What a node asks its caller to do, and why.

use crate::message::Retry;
use crate::types::{NodeId, Position, Seq, Term, Time};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Something to be done by the caller, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Primary: frames of `Output` entries up to this one may leave. Report those that did with
    /// [`Node::output_left`](super::Node::output_left).
    Release(Seq),
    /// Primary: feed the state. The guest may run meanwhile, its output leaves as before: send memory with
    /// [`Node::push_memory`](super::Node::push_memory) and [`Node::push_zero`](super::Node::push_zero) in any number of
    /// rounds, later messages replace earlier ones. In the end stop the guest, send the pages that changed since, the
    /// machine with [`Node::push_machine`](super::Node::push_machine), see to it that all output of the guest up to here
    /// has left (the backup will not make it again), and call [`Node::finish_state`](super::Node::finish_state). Then
    /// the guest runs on, with its output held.
    BeginTransfer,
    /// Primary: a backup holds the state and follows.
    Protected,
    /// Started as primary: the first term is granted, run the guest, its output may leave.
    Started {
        /// The term.
        term: Term,
    },
    /// Obtain `term` for this machine at the arbiter, and hand the answer to
    /// [`Node::arbiter_answered`](super::Node::arbiter_answered). Keep asking until there is one or this is withdrawn;
    /// to ask again for a term that this machine already has must be granted again.
    AskArbiter {
        /// The term.
        term: Term,
    },
    /// Stop asking the arbiter.
    ArbiterNotNeeded,
    /// Primary: go on without a backup; all output held may leave, and an unfinished transfer ends.
    Unprotected {
        /// Why the backup is one no more.
        reason: LossReason,
    },
    /// Primary: a former one is heard that knows nothing of this reign. Switches may have learnt from it where the guest is:
    /// tell them again. Comes with each of its heartbeats.
    OutdatedClaim {
        /// Who claims.
        node: NodeId,
        /// What it claims.
        term: Term,
    },
    /// Backup: set all guest memory to zero, state follows.
    BeginLoad,
    /// Backup: these pages of guest memory have this content.
    LoadMemory {
        /// Guest-physical address, inside guest memory, a multiple of 4096.
        gpa: u64,
        /// Whole pages.
        data: Vec<u8>,
    },
    /// Backup: this range of guest memory is zero.
    LoadZero {
        /// Guest-physical address, a multiple of 4096; the range lies inside guest memory.
        gpa: u64,
        /// Bytes, a multiple of 4096.
        len: u64,
    },
    /// Backup: the next piece of the saved vCPU and platform.
    LoadMachine(Vec<u8>),
    /// Backup: the state is complete. Check it against `digest`, then call [`Node::joined`](super::Node::joined), or
    /// [`Node::diverged`](super::Node::diverged) when it is not the same.
    StateLoaded {
        /// Where the guest stands.
        position: Position,
        /// What the primary gave to [`Node::finish_state`](super::Node::finish_state).
        digest: u64,
    },
    /// Backup: the primary is gone. Apply all that is held, run to `last`, then call
    /// [`Node::go_live`](super::Node::go_live) until it succeeds or the takeover is called off.
    TakeOver {
        /// The newest position the guest may run to.
        last: Position,
    },
    /// Backup: the primary was heard again; follow it as before.
    TakeOverCancelled,
    /// Primary that handed over: the twin runs the guest now. Throw the guest and its held output away and join.
    HandedOver {
        /// The twin's term.
        term: Term,
    },
    /// A machine that started by itself: the guest held here is out of date, as another machine reigns or will. Throw it and
    /// its held output away and join.
    Beaten {
        /// What a machine that started otherwise would have halted for.
        reason: HaltReason,
    },
    /// Backup: the guest held here is worthless; throw it away and join again.
    Abandoned {
        /// Why.
        reason: LossReason,
    },
    /// Pairing was refused, by us or by the other machine.
    Refused {
        /// What is wrong, with the values of both sides.
        reason: String,
        /// Whether trying again may help.
        retry: Retry,
    },
    /// Send what [`Node::transmit`](super::Node::transmit) still holds, close the stream, then call
    /// [`Node::disconnected`](super::Node::disconnected).
    CloseConnection,
    /// Stop the guest for good; no output may leave this machine any more.
    Halt {
        /// Why.
        reason: HaltReason,
    },
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LossReason {
    /// Nothing was heard for the time to suspicion.
    Silent,
    /// The stream was closed.
    Connection,
    /// What came along the stream was damaged or against the protocol.
    Protocol,
    /// The twin lives, but acks stopped.
    AcksStopped,
    /// The twin lives and acks, but its guest stands still.
    StandsStill,
    /// The twin lost the stream.
    TwinUnlinked,
    /// The backup gave up, with its reason.
    GaveUp(String),
    /// The backup found that its guest is not the primary's.
    Diverged(String),
    /// The twin was taken out of service in order.
    Left,
    /// The primary said that we are its backup no more.
    Dropped,
    /// The twin refused to pair.
    Refused(String),
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => f.write_str("twin silent"),
            Self::Connection => f.write_str("connection closed"),
            Self::Protocol => f.write_str("damaged or unexpected data on the log channel"),
            Self::AcksStopped => f.write_str("twin alive, but acks stopped"),
            Self::StandsStill => f.write_str("twin alive, but its guest stands still"),
            Self::TwinUnlinked => f.write_str("twin lost the connection"),
            Self::GaveUp(why) => write!(f, "twin gave up: {why}"),
            Self::Diverged(what) => write!(f, "twin diverged: {what}"),
            Self::Left => f.write_str("twin left in order"),
            Self::Dropped => f.write_str("primary let go of this backup"),
            Self::Refused(why) => write!(f, "twin refused: {why}"),
        }
    }
}

/// Why a node ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HaltReason {
    /// The guest switched itself off.
    PoweredOff,
    /// This machine was taken out of service in order.
    Stopped,
    /// The arbiter gave this term to another machine, which runs the guest or will; start this one as its backup.
    TermTaken(Term),
    /// Another primary exists, or existed, with this newer (or better) claim: our guest is out of date.
    Superseded(Term),
    /// Our guest is not the primary's; with details.
    Diverged(String),
    /// This backup must not follow its primary any longer; with the reason.
    GaveUp(String),
    /// The machine that this one wanted to follow is not its twin; with the reason.
    Refused(String),
    /// The primary is gone, and this machine only follows, see [`Config::follows_only`](crate::Config::follows_only).
    OnlyFollows,
}

impl fmt::Display for HaltReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Stopped => f.write_str("stopped in order"),
            Self::TermTaken(term) => {
                write!(f, "the arbiter gave term {} to another machine: start this one as its backup", term.0)
            }
            Self::Superseded(term) => write!(f, "superseded by a primary of term {}", term.0),
            Self::Diverged(what) => write!(f, "diverged from the primary: {what}"),
            Self::GaveUp(why) => write!(f, "gave up: {why}"),
            Self::Refused(why) => write!(f, "pairing refused: {why}"),
            Self::OnlyFollows => f.write_str("the primary is gone, and this machine only follows"),
        }
    }
}

/// Why something was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendError {
    /// A buffer is full: stop the guest, try again after the next input.
    Full,
    /// There is no session to append to: nothing needs to be logged, or the transfer has ended.
    NotLogging,
    /// The data exceeds [`crate::entry::MAX_DATA`]; for memory: not whole pages, or more than 16.
    BadData,
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "log buffer full",
            Self::NotLogging => "no session",
            Self::BadData => "data of an impossible length",
        })
    }
}

/// A takeover that has come to its end: this machine is the primary now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakenOver {
    /// The term that was won.
    pub term: Term,
    /// The primary handed the guest over.
    pub planned: bool,
    /// When the primary gave its last sign of life.
    pub heard: Time,
    /// When it was given up.
    pub suspected: Time,
    /// When all of the log had been executed.
    pub drained: Time,
}

/// Why a backup may not go live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotLive {
    /// It is not taking over, or no longer: the primary was heard again, or the guest powered off.
    NotTakingOver,
    /// Entries are left, or the guest does not stand at the end of the log.
    NotDrained,
    /// The arbiter has not yet granted the next term.
    NotGranted,
}

impl fmt::Display for NotLive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotTakingOver => "no takeover is under way",
            Self::NotDrained => "the log is not drained",
            Self::NotGranted => "the arbiter has not granted the next term",
        })
    }
}
