//! What a controller that has become ready is asked, step by step, by its admin queue.

use pollux_nic::DmaMemory;

use crate::command::{Command, admin};

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// What the controller is.
    IdentifyController,
    /// What the namespace is.
    IdentifyNamespace,
    /// One pair of I/O queues is wanted.
    WantQueues,
    /// Where completions go.
    CreateCompletionQueue,
    /// Where commands come from.
    CreateSubmissionQueue,
}

/// Number of the pair of I/O queues.
pub(crate) const IO_QUEUE: u16 = 1;
/// The feature "number of queues".
const NUMBER_OF_QUEUES: u32 = 0x07;
/// A queue's memory is in one piece; completions interrupt.
const CONTIGUOUS: u32 = 1;
const INTERRUPTS: u32 = 1 << 1;

/// What a step's command is made of.
pub(crate) struct Means<'a> {
    pub(crate) namespace: u32,
    pub(crate) identity: &'a DmaMemory,
    /// Addresses of the I/O queues for commands and for completions.
    pub(crate) queues: (u64, u64),
    pub(crate) entries: u16,
    pub(crate) interrupts: bool,
}

impl Step {
    /// The first.
    pub(crate) const FIRST: Self = Self::IdentifyController;

    pub(crate) const fn next(self) -> Option<Self> {
        match self {
            Self::IdentifyController => Some(Self::IdentifyNamespace),
            Self::IdentifyNamespace => Some(Self::WantQueues),
            Self::WantQueues => Some(Self::CreateCompletionQueue),
            Self::CreateCompletionQueue => Some(Self::CreateSubmissionQueue),
            Self::CreateSubmissionQueue => None,
        }
    }

    /// What is refused when the controller refuses it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::IdentifyController => "to say what it is",
            Self::IdentifyNamespace => "to say what its namespace is",
            Self::WantQueues => "a pair of queues",
            Self::CreateCompletionQueue => "a queue for completions",
            Self::CreateSubmissionQueue => "a queue for commands",
        }
    }

    /// See: Base Specification, 5.3, 5.4, 5.17, 5.27.
    pub(crate) fn command(self, means: &Means<'_>) -> Command {
        let identify = |namespace, what| Command {
            opcode: admin::IDENTIFY,
            namespace,
            pages: [means.identity.physical(), 0],
            words: [what, 0, 0],
        };
        let create = |opcode, address, flags| Command {
            opcode,
            pages: [address, 0],
            words: [u32::from(means.entries - 1) << 16 | u32::from(IO_QUEUE), flags, 0],
            ..Command::default()
        };
        match self {
            Self::IdentifyController => identify(0, 1),
            Self::IdentifyNamespace => identify(means.namespace, 0),
            Self::WantQueues => {
                Command { opcode: admin::SET_FEATURES, words: [NUMBER_OF_QUEUES, 0, 0], ..Command::default() }
            }
            Self::CreateCompletionQueue => {
                let flags = CONTIGUOUS | if means.interrupts { INTERRUPTS } else { 0 };
                create(admin::CREATE_COMPLETION_QUEUE, means.queues.1, flags)
            }
            Self::CreateSubmissionQueue => {
                create(admin::CREATE_SUBMISSION_QUEUE, means.queues.0, CONTIGUOUS | u32::from(IO_QUEUE) << 16)
            }
        }
    }
}
