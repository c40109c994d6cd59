//! Requests to the guest's disk that take their time: which may be begun, which have ended, and which of these ends are due
//! in the log; pure.
//!
//! Each machine carries out all requests, on its own disk. The guest sees the end of one when the entry that tells of it is
//! applied: on the primary once its disk has ended the request, on the backup at the same position, and not before its own
//! disk has. Requests that overlap are begun one after the other, in the order in which the guest made them; *after* means
//! that the end of the earlier one was applied.
//!
//! | whose disk failed | what happens |
//! |---|---|
//! | the primary's, with a backup | the guest is handed over, and does not hear of it: the new primary ends the request |
//! | the primary's, without one | the guest gets the error |
//! | the backup's, of a request that the primary's has done | the backup ends, and is replaced |
//! | the backup's, when the guest is handed over to it | the backup ends, and the primary keeps the guest |
//! | the backup's, of one that has failed on the primary, too | nothing: the guest gets the error on both |

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pollux_ft::disk::{self, MAX_ENDS};
use pollux_ft::{Config, EntryRef, Mutation, Time};

use crate::driver::Driver;
use crate::guest::Guest;
use crate::host::{Event, Host};

pub use pollux_ft::disk::{DiskEnd, DiskStatus};

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskOperation {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Writes zeros.
    Zero,
    /// Makes durable all that was written.
    Flush,
}

impl DiskOperation {
    /// Whether the disk is another one afterwards.
    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Zero)
    }

    const fn flushes(self) -> bool {
        matches!(self, Self::Flush)
    }
}

/// A request, without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DiskRequest {
    /// No two of a guest's life have the same; a later one has a greater one.
    pub id: u64,
    /// What it does.
    pub operation: DiskOperation,
    /// First byte on the disk.
    pub start: u64,
    /// Bytes on the disk, from there on; `start + len` is at most `u64::MAX`.
    pub len: u64,
    /// What it writes is durable when it ends: the guest has no flushes.
    pub durable: bool,
}

impl DiskRequest {
    /// Whether the two must be carried out one after the other: they overlap, and at least one of them writes. A flush comes
    /// after all that was there before it, and before all that comes after it.
    #[must_use]
    pub const fn conflicts(&self, other: &Self) -> bool {
        let flushes = self.operation.flushes() || other.operation.flushes();
        let writes = self.operation.writes() || other.operation.writes();
        flushes || writes && self.start < other.start + other.len && other.start < self.start + self.len
    }
}

/// Why an end that the log tells of cannot be applied here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReady {
    /// This machine's disk has not ended the request.
    Busy,
    /// It failed it.
    Failed(u64),
    /// The guest has not made the request.
    Unknown(u64),
}

/// A request whose end was not applied.
#[derive(Debug, Clone, Copy)]
struct Pending {
    request: DiskRequest,
    begun: bool,
    /// How it ended on this machine's disk.
    status: Option<DiskStatus>,
}

/// The requests of a guest whose ends were not applied, in the order in which it made them.
#[derive(Debug, Clone, Default)]
pub struct DiskRequests {
    pending: VecDeque<Pending>,
}

impl DiskRequests {
    /// The guest made a request.
    pub fn add(&mut self, request: DiskRequest) {
        self.pending.push_back(Pending { request, begun: false, status: None });
    }

    /// A request that may be begun, and that is from here on; call it until there is none.
    pub fn begin(&mut self, rules: &Config) -> Option<DiskRequest> {
        let unordered = rules.broken(Mutation::DiskOrderIgnored);
        let waits = |at: usize, request: &DiskRequest| {
            !unordered && self.pending.range(..at).any(|earlier| earlier.request.conflicts(request))
        };
        let may_begin = |(at, pending): (usize, &Pending)| !pending.begun && !waits(at, &pending.request);
        let at = self.pending.iter().enumerate().position(may_begin)?;
        let pending = &mut self.pending[at];
        pending.begun = true;
        Some(pending.request)
    }

    /// This machine's disk ended a request: which. One that is not pending any more is ignored.
    pub fn ended(&mut self, end: DiskEnd) -> Option<DiskRequest> {
        let pending = self.pending.iter_mut().find(|pending| pending.begun && pending.request.id == end.id)?;
        pending.status = Some(end.status);
        Some(pending.request)
    }

    /// The ends that a primary may log now, by rising numbers, with or without those that failed.
    #[must_use]
    pub fn due(&self, with_failed: bool, rules: &Config) -> Vec<DiskEnd> {
        let early = rules.broken(Mutation::DiskDoneEarly);
        let status = |pending: &Pending| pending.status.or((early && pending.begun).then_some(DiskStatus::Done));
        let ended = |pending: &Pending| Some(DiskEnd { id: pending.request.id, status: status(pending)? });
        let tells = |end: &DiskEnd| with_failed || end.status == DiskStatus::Done;
        self.pending.iter().filter_map(ended).filter(tells).take(MAX_ENDS).collect()
    }

    /// Whether something has ended that a primary may log.
    #[must_use]
    pub fn is_due(&self, with_failed: bool) -> bool {
        let tells = |status| with_failed || status == DiskStatus::Done;
        self.pending.iter().any(|pending| pending.status.is_some_and(tells))
    }

    /// Whether this machine's disk has failed one.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.pending.iter().any(|pending| pending.status == Some(DiskStatus::Failed))
    }

    /// Whether a backup may apply `ends`, which the primary has logged.
    ///
    /// # Errors
    /// Why not.
    pub fn ready(&self, ends: &[DiskEnd], rules: &Config) -> Result<(), NotReady> {
        for end in ends {
            let pending = self.pending.iter().find(|pending| pending.request.id == end.id);
            match pending.ok_or(NotReady::Unknown(end.id))?.status {
                None if !rules.broken(Mutation::DiskNotAwaited) => return Err(NotReady::Busy),
                Some(DiskStatus::Failed)
                    if end.status == DiskStatus::Done && !rules.broken(Mutation::DiskErrorIgnored) =>
                {
                    return Err(NotReady::Failed(end.id));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The guest has seen these ends.
    pub fn applied(&mut self, ends: &[DiskEnd]) {
        self.pending.retain(|pending| ends.iter().all(|end| end.id != pending.request.id));
    }

    /// The guest has seen this entry.
    pub(crate) fn saw(&mut self, entry: &EntryRef<'_>) {
        if let EntryRef::DiskDone(data) = entry {
            self.applied(&disk::decode(data).unwrap_or_default());
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

impl<G: Guest> Driver<G> {
    /// Takes in what the guest asked of its disk, and what this machine's disk has ended; begins what may be begun.
    pub(crate) fn poll_disk(&mut self, host: &mut impl Host<G>) {
        while let Some(request) = self.guest.next_disk_request() {
            self.disk.add(request);
        }
        if self.disk.is_empty() {
            return;
        }
        let mut read = Vec::new();
        while let Some(end) = host.poll_disk(&mut read) {
            // What was read is no part of the guest's state before the guest sees it.
            self.guest.disk_read_came(end.id, &read);
            if let (Some(request), Some(transfer)) = (self.disk.ended(end), &mut self.transfer) {
                transfer.disk_ended(&request);
            }
        }
        while let Some(request) = self.disk.begin(self.node.config()) {
            host.begin_on_disk(&request, self.guest.disk_data(request.id));
        }
    }

    /// When a disk at work should be looked at again.
    pub(crate) fn disk_ends_at(&self, host: &impl Host<G>) -> Option<Time> {
        if self.disk.is_empty() && self.transfer.is_none() && !self.incoming.is_loaded() && self.reign.is_none() {
            None
        } else {
            host.disk_ends_at()
        }
    }

    /// Whether errors of this machine's disk are the guest's: not while the twin's disk may do better.
    pub(crate) fn tells_disk_errors(&self) -> bool {
        !self.is_protected() || self.node.config().broken(Mutation::DiskErrorTold)
    }

    /// Hands the guest over if this machine's disk fails and the twin's may not.
    pub(crate) fn yield_to_better_disk(&mut self, host: &mut impl Host<G>) {
        if self.disk.has_failed() && !self.tells_disk_errors() && !self.switch_due {
            self.switch_due = true;
            host.observe(Event::DiskFailed("the guest is handed over"), self);
        }
    }

    /// Whether a backup may apply the entry with this data now: `false` as long as its disk is at work. The error says why
    /// this guest cannot be the primary's.
    pub(crate) fn awaits_disk(&mut self, host: &mut impl Host<G>, data: &[u8]) -> Result<bool, String> {
        self.poll_disk(host);
        let ends = disk::decode(data).map_err(|error| format!("{error}"))?;
        match self.disk.ready(&ends, self.node.config()) {
            Ok(()) => Ok(true),
            Err(NotReady::Busy) => Ok(false),
            Err(NotReady::Failed(_)) => {
                self.give_up_for_disk(host);
                Ok(false)
            }
            Err(NotReady::Unknown(id)) => Err(format!("disk request {id} was never made")),
        }
    }

    /// This backup's disk has failed what the primary's has done, or may do: the primary goes on without it.
    pub(crate) fn give_up_for_disk(&mut self, host: &mut impl Host<G>) {
        const WHY: &str = "the disk failed what the primary's has done";
        host.observe(Event::DiskFailed("this backup ends"), self);
        self.guest_ends(host, WHY);
        self.node.give_up(WHY);
    }

    /// Nothing is known any more of what the guest asked of its disk: there is none here, or another one.
    pub(crate) fn forget_disk(&mut self, host: &mut impl Host<G>) {
        self.disk = DiskRequests::default();
        host.forget_disk();
    }
}

#[cfg(test)]
mod tests;
