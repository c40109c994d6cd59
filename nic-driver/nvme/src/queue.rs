//! Submission and completion queues: memory only, no registers.

use core::sync::atomic::{Ordering, fence};

use pollux_nic::DmaMemory;

use crate::command::{COMPLETION_BYTES, Completion, SUBMISSION_BYTES, Submission};

/// Commands on their way to the controller. Whoever puts some in keeps fewer at work than there are entries, so that none is
/// overwritten that was not fetched: a command that has ended was.
#[derive(Debug)]
pub(crate) struct SubmissionQueue {
    memory: DmaMemory,
    entries: u16,
    tail: u16,
}

impl SubmissionQueue {
    /// A queue of `entries`, at least two, for which `memory` has room.
    pub(crate) fn new(memory: DmaMemory, entries: u16) -> Self {
        Self { memory, entries, tail: 0 }
    }

    pub(crate) fn physical(&self) -> u64 {
        self.memory.physical()
    }

    pub(crate) const fn entries(&self) -> u16 {
        self.entries
    }

    /// As it was made.
    pub(crate) fn restart(&mut self) {
        self.tail = 0;
    }

    /// Puts a command in; the new tail, of which the controller is to be told.
    pub(crate) fn push(&mut self, submission: &Submission) -> u16 {
        let at = usize::from(self.tail) * SUBMISSION_BYTES;
        for (index, &word) in submission.iter().enumerate() {
            self.memory.write64(at + 8 * index, word);
        }
        self.tail = (self.tail + 1) % self.entries;
        // The command is in memory before the doorbell is rung.
        fence(Ordering::Release);
        self.tail
    }
}

/// Completions on their way from the controller.
#[derive(Debug)]
pub(crate) struct CompletionQueue {
    memory: DmaMemory,
    entries: u16,
    head: u16,
    /// What the phase tag of a new entry is.
    phase: bool,
}

impl CompletionQueue {
    /// A queue of `entries`, at least two, for which `memory` has room.
    pub(crate) fn new(memory: DmaMemory, entries: u16) -> Self {
        Self { memory, entries, head: 0, phase: true }
    }

    pub(crate) fn physical(&self) -> u64 {
        self.memory.physical()
    }

    pub(crate) const fn entries(&self) -> u16 {
        self.entries
    }

    /// As it was made; the controller has stopped.
    pub(crate) fn restart(&mut self) {
        (0..usize::from(self.entries)).for_each(|at| self.memory.write64(at * COMPLETION_BYTES + 8, 0));
        (self.head, self.phase) = (0, true);
    }

    /// The next completion, if there is one.
    pub(crate) fn take(&mut self) -> Option<Completion> {
        let word = self.memory.read64(usize::from(self.head) * COMPLETION_BYTES + 8);
        if Completion::phase(word) != self.phase {
            return None;
        }
        // Data that the controller wrote before is read after.
        fence(Ordering::Acquire);
        self.head += 1;
        if self.head == self.entries {
            (self.head, self.phase) = (0, !self.phase);
        }
        Some(Completion::decode(word))
    }

    /// How far completions were taken: what the controller is to be told.
    pub(crate) const fn head(&self) -> u16 {
        self.head
    }
}
