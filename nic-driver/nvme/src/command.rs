//! Commands and completions as bits.
//! See: Base Specification, 3.3.3; NVM Command Set Specification, 3.2.

use core::fmt;

/// What is asked of a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Reads blocks.
    Read {
        /// The first one.
        block: u64,
        /// How many: at least one.
        blocks: u32,
    },
    /// Writes blocks.
    Write {
        /// The first one.
        block: u64,
        /// A whole number of blocks, at least one.
        data: &'a [u8],
        /// Whether they must be durable when the command ends.
        durable: bool,
    },
    /// Makes blocks zero.
    Zero {
        /// The first one.
        block: u64,
        /// How many: at least one.
        blocks: u32,
    },
    /// Makes durable whatever was written by commands that have ended.
    Flush,
}

/// A submission queue entry.
pub(crate) type Submission = [u64; 8];
const _: () = assert!(size_of::<Submission>() == SUBMISSION_BYTES);

/// Bytes of a submission.
pub(crate) const SUBMISSION_BYTES: usize = 64;
/// Bytes of a completion.
pub(crate) const COMPLETION_BYTES: usize = 16;

/// Operations of the admin queue.
pub(crate) mod admin {
    pub(crate) const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
    pub(crate) const CREATE_COMPLETION_QUEUE: u8 = 0x05;
    pub(crate) const IDENTIFY: u8 = 0x06;
    pub(crate) const SET_FEATURES: u8 = 0x09;
}

/// Operations of I/O queues.
pub(crate) mod io {
    pub(crate) const FLUSH: u8 = 0x00;
    pub(crate) const WRITE: u8 = 0x01;
    pub(crate) const READ: u8 = 0x02;
    pub(crate) const WRITE_ZEROES: u8 = 0x08;
}

/// Force unit access, in dword 12.
const FUA: u32 = 1 << 30;

/// A command before it has a number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) opcode: u8,
    pub(crate) namespace: u32,
    /// Addresses of the data's first page, and of the second or of the list of the others.
    pub(crate) pages: [u64; 2],
    /// Dwords 10, 11 and 12.
    pub(crate) words: [u32; 3],
}

impl Command {
    /// A command about `blocks` blocks, 1 to 65536.
    pub(crate) fn about(opcode: u8, namespace: u32, block: u64, blocks: u32, durable: bool) -> Self {
        let count = (blocks - 1) & 0xFFFF;
        let words = [block as u32, (block >> 32) as u32, count | if durable { FUA } else { 0 }];
        Self { opcode, namespace, words, ..Self::default() }
    }

    /// As the controller reads it.
    pub(crate) fn encode(&self, id: u16) -> Submission {
        let [first, second] = self.pages;
        let [ten, eleven, twelve] = self.words.map(u64::from);
        let head = u64::from(self.opcode) | u64::from(id) << 16 | u64::from(self.namespace) << 32;
        [head, 0, 0, first, second, ten | eleven << 32, twelve, 0]
    }
}

/// How a command ended: a type and a code; 0 is success.
/// See: Base Specification, 3.3.3.2.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// Whether it went well.
    #[must_use]
    pub const fn is_ok(self) -> bool {
        self.0 & 0x7FF == 0
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, code) = (self.0 >> 8 & 7, self.0 & 0xFF);
        let what = match (kind, code) {
            (0, 0x01) => "invalid operation",
            (0, 0x02) => "invalid field",
            (0, 0x04) => "data transfer error",
            (0, 0x05) => "power is lost",
            (0, 0x06) => "internal error",
            (0, 0x07 | 0x08) => "aborted",
            (0, 0x0B) => "invalid namespace",
            (0, 0x20) => "the namespace is write protected",
            (0, 0x80) => "beyond the end",
            (0, 0x81) => "capacity exceeded",
            (0, 0x82) => "the namespace is not ready",
            (2, 0x80) => "write fault",
            (2, 0x81) => "unrecovered read error",
            (2, 0x86) => "access denied",
            _ => "an error",
        };
        write!(f, "{what} (status {kind:x}/{code:02x})")
    }
}

/// A completion queue entry, as far as it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Completion {
    pub(crate) queue_head: u16,
    pub(crate) queue: u16,
    pub(crate) id: u16,
    pub(crate) status: Status,
}

impl Completion {
    /// Reads the second of the entry's two words: the first holds a result that nobody needs.
    pub(crate) const fn decode(word: u64) -> Self {
        Self {
            queue_head: word as u16,
            queue: (word >> 16) as u16,
            id: (word >> 32) as u16,
            status: Status((word >> 49) as u16),
        }
    }

    /// The phase tag of such a word.
    pub(crate) const fn phase(word: u64) -> bool {
        word >> 48 & 1 == 1
    }
}
