//! Memory shared with the controller: queues, and a buffer for each command that may be at work.

use pollux_nic::DmaMemory;

use crate::queue::{CompletionQueue, SubmissionQueue};

/// Bytes of a page, as the controller is told.
pub(crate) const PAGE: usize = 4096;
/// Commands that may be at work.
pub const COMMANDS: usize = 32;
/// Bytes of the buffer of each: the most data of one command.
pub const BUFFER_BYTES: usize = 128 << 10;
/// Alignment of the memory that a driver needs.
pub const DMA_ALIGNMENT: usize = PAGE;

/// Entries of the I/O queues, if the controller has so many.
pub(crate) const ENTRIES: u16 = 64;
/// Entries of the admin queues: one command is at work there.
pub(crate) const ADMIN_ENTRIES: u16 = 4;

/// Room for the list of a buffer's pages but the first. Such a list must not cross a page of its own.
const LIST_BYTES: usize = 256;
const LISTS: usize = COMMANDS * LIST_BYTES;
/// Pages of the queues and of what controllers say of themselves.
const FIXED_PAGES: usize = 5;

const _: () = assert!((BUFFER_BYTES / PAGE - 1) * 8 <= LIST_BYTES && PAGE.is_multiple_of(LIST_BYTES));
const _: () = assert!(LISTS.is_multiple_of(PAGE) && ENTRIES as usize * 64 <= PAGE && COMMANDS < ENTRIES as usize);

/// Memory that a driver needs, in bytes.
pub const DMA_BYTES: usize = FIXED_PAGES * PAGE + LISTS + COMMANDS * BUFFER_BYTES;

/// All of the memory, in parts.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) admin: (SubmissionQueue, CompletionQueue),
    pub(crate) io: (SubmissionQueue, CompletionQueue),
    /// What controller and namespace say of themselves.
    pub(crate) identity: DmaMemory,
    pub(crate) buffers: Buffers,
}

impl Shared {
    /// Divides `memory` up; `None` if it is too small. I/O queues have `entries`, at most [`ENTRIES`].
    pub(crate) fn new(memory: DmaMemory, entries: u16) -> Option<Self> {
        let (admin_submissions, rest) = memory.split(PAGE)?;
        let (admin_completions, rest) = rest.split(PAGE)?;
        let (submissions, rest) = rest.split(PAGE)?;
        let (completions, rest) = rest.split(PAGE)?;
        let (identity, rest) = rest.split(PAGE)?;
        let (lists, rest) = rest.split(LISTS)?;
        let (data, _) = rest.split(COMMANDS * BUFFER_BYTES)?;
        Some(Self {
            admin: (
                SubmissionQueue::new(admin_submissions, ADMIN_ENTRIES),
                CompletionQueue::new(admin_completions, ADMIN_ENTRIES),
            ),
            io: (SubmissionQueue::new(submissions, entries), CompletionQueue::new(completions, entries)),
            identity,
            buffers: Buffers::new(lists, data),
        })
    }
}

/// The buffers of commands, by slot.
#[derive(Debug)]
pub(crate) struct Buffers {
    lists: u64,
    data: DmaMemory,
}

impl Buffers {
    /// Writes the lists of their pages, once for all.
    fn new(mut lists: DmaMemory, data: DmaMemory) -> Self {
        for slot in 0..COMMANDS {
            for page in 1..BUFFER_BYTES / PAGE {
                let address = data.physical() + (slot * BUFFER_BYTES + page * PAGE) as u64;
                lists.write64(slot * LIST_BYTES + (page - 1) * 8, address);
            }
        }
        Self { lists: lists.physical(), data }
    }

    /// Where the controller finds the first `len` bytes of a slot's buffer, at most [`BUFFER_BYTES`].
    /// See: Base Specification, 4.1.1.
    pub(crate) fn pages(&self, slot: usize, len: usize) -> [u64; 2] {
        let first = self.data.physical() + (slot * BUFFER_BYTES) as u64;
        let second = match len.div_ceil(PAGE) {
            0 | 1 => 0,
            2 => first + PAGE as u64,
            _ => self.lists + (slot * LIST_BYTES) as u64,
        };
        [first, second]
    }

    pub(crate) fn fill(&mut self, slot: usize, data: &[u8]) {
        self.data.copy_in(slot * BUFFER_BYTES, data);
    }

    pub(crate) fn data(&self, slot: usize, len: usize) -> Data<'_> {
        Data { memory: &self.data, start: slot * BUFFER_BYTES, len }
    }
}

/// What a command has read; nothing of one that reads nothing.
#[derive(Debug, Clone, Copy)]
pub struct Data<'a> {
    memory: &'a DmaMemory,
    start: usize,
    len: usize,
}

impl Data<'_> {
    /// How many bytes there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the first bytes out.
    ///
    /// # Panics
    /// When more are wanted than there are: a bug of ours.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        assert!(bytes.len() <= self.len, "more bytes than were read");
        self.memory.copy_out(self.start, bytes);
    }
}
