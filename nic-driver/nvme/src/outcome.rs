//! How a drive is used, and what can become of that.

use core::fmt;

use crate::command::Status;
use crate::identify::{Geometry, Unusable};

/// How a drive is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Which namespace; they are numbered from 1.
    pub namespace: u32,
    /// Microseconds that a command may take before the controller is reset.
    pub patience: u64,
    /// Whether ends of commands interrupt, from [`let_interrupt`](crate::Nvme::let_interrupt) on.
    pub interrupts: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { namespace: 1, patience: 10_000_000, interrupts: false }
    }
}

/// Why there is no driver for a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// BAR 0 has so many bytes: too few for the registers.
    RegistersTooSmall(usize),
    /// The memory for it has so many bytes, or is not aligned.
    Memory(usize),
    /// Nothing answers.
    Absent,
    /// It does not have the NVM command set.
    NoCommandSet,
    /// Its pages have at least 2 to this power bytes, and not 4096.
    PageBytes(u32),
    /// Its queues have at most so many entries.
    Entries(u32),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RegistersTooSmall(bytes) => write!(f, "BAR 0 has {bytes} bytes, too few for an NVMe controller"),
            Self::Memory(bytes) => write!(f, "the memory for its queues, {bytes} bytes, is too small or misaligned"),
            Self::Absent => f.write_str("it does not answer"),
            Self::NoCommandSet => f.write_str("it does not have the NVM command set"),
            Self::PageBytes(power) => write!(f, "its pages have at least 2^{power} bytes, and not 4096"),
            Self::Entries(entries) => write!(f, "its queues have at most {entries} entries"),
        }
    }
}

/// What went wrong with a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does not answer any more.
    Gone,
    /// It did not stop when it was told to.
    DoesNotStop,
    /// It did not become ready.
    DoesNotStart,
    /// It said that it cannot go on.
    Fatal,
    /// It is not ready any more, and nobody told it so.
    Stopped,
    /// A command did not end.
    Timeout,
    /// It ended a command that was not at work.
    UnknownCommand(u16),
    /// It told of a queue that there is not.
    UnknownQueue(u16),
    /// It told of a place in a queue that there is not.
    QueueHead(u16),
    /// It refused this.
    Refused(&'static str, Status),
    /// It is not what is needed.
    Unusable(Unusable),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("it does not answer any more"),
            Self::DoesNotStop => f.write_str("it does not stop"),
            Self::DoesNotStart => f.write_str("it does not become ready"),
            Self::Fatal => f.write_str("it reports a fatal error"),
            Self::Stopped => f.write_str("it stopped by itself"),
            Self::Timeout => f.write_str("a command did not end"),
            Self::UnknownCommand(id) => write!(f, "it ended command {id:#x}, which was not at work"),
            Self::UnknownQueue(queue) => write!(f, "it told of queue {queue}, which there is not"),
            Self::QueueHead(head) => write!(f, "it told of place {head} of a queue, which there is not"),
            Self::Refused(what, status) => write!(f, "it refused {what}: {status}"),
            Self::Unusable(why) => why.fmt(f),
        }
    }
}

/// Why a command did not go well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The drive says that it failed.
    Failed(Status),
    /// The controller was reset: whether it was carried out, wholly or in part, nobody knows.
    Reset(Fault),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(status) => status.fmt(f),
            Self::Reset(fault) => fault.fmt(f),
        }
    }
}

/// Why a command was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubmitError {
    /// As many are at work as may be.
    Full,
    /// The controller is starting, or is being reset.
    NotReady,
    /// The drive was given up.
    GivenUp,
    /// Blocks that the drive does not have, none at all, too many, or a part of one.
    OutOfRange,
    /// It does not understand such a command.
    Unsupported,
}

/// How a controller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It takes no commands yet, or not at the moment.
    Starting,
    /// It takes commands.
    Ready(Geometry),
    /// It was given up.
    GivenUp(Fault),
}
