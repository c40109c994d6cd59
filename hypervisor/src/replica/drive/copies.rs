//! The drive's content on its way to or from the twin, and the label that says what it is.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use pollux_driver::{CopyState, DiskOperation, DiskRequest};
use pollux_ft::{Term, Time};
use pollux_nic::Registers;
use pollux_nvme::Lost;

use super::{Drive, Job};
use crate::memory::PAGE_SIZE;
use crate::replica::label::Label;

/// Numbers of requests that are ours begin here; the guest's are below.
pub(super) const OWN: u64 = 1 << 62;
/// Bytes on their way to the drive for which the stream waits.
const MOST_STORED: u64 = 4 << 20;

/// What a request of ours is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// A block for a new backup.
    Fetch = 0,
    /// A block from the primary.
    Store = 1,
    /// The label, and the flushes around it.
    Label = 2,
}

/// Copies and labels at work.
#[derive(Debug)]
pub(in super::super) struct Copies {
    label: Label,
    /// Another machine may have all that is on it.
    shared: bool,
    /// A guest may begin its life with a disk that may be older than the twin's.
    stale: bool,
    next: u64,
    fetched: VecDeque<(u64, Option<Vec<u8>>)>,
    /// Bytes on their way to the drive.
    storing: u64,
    /// Requests for labels that have not ended.
    labelling: u32,
    /// The one that is being written was tried before, on the other copy.
    retried: bool,
    /// How the label that was written last has failed, if it has.
    unwritten: Option<Unwritten>,
    /// What is being copied, until it is complete.
    source: Option<Label>,
    /// All of it was handed over.
    handed_over: bool,
    failed: bool,
}

/// Why a label is not on the drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unwritten {
    /// Its place is bad: the other one may be good.
    Place,
    /// The drive is.
    Drive,
}

impl Copies {
    pub(super) const fn new(label: Label, stale: bool) -> Self {
        Self {
            label,
            shared: false,
            stale,
            next: OWN,
            fetched: VecDeque::new(),
            storing: 0,
            labelling: 0,
            retried: false,
            unwritten: None,
            source: None,
            handed_over: false,
            failed: false,
        }
    }

    fn number(&mut self, purpose: Purpose) -> u64 {
        self.next += 4;
        self.next | purpose as u64
    }

    /// Nothing that has ended waits to be looked at.
    pub(super) fn is_idle(&self) -> bool {
        self.fetched.is_empty()
    }

    /// Nobody waits for a copy any more.
    pub(super) fn forget(&mut self) {
        self.fetched.clear();
        (self.storing, self.source, self.handed_over) = (0, None, false);
    }

    /// A request of ours has ended.
    pub(super) fn ended(&mut self, request: &DiskRequest, data: Vec<u8>, failed: Option<Lost>) {
        let DiskRequest { id, start, len, .. } = *request;
        if let Some(why) = failed {
            log::error!("the drive failed a request of ours ({len} bytes at {start:#x}): {why}");
        }
        match id & 3 {
            0 => self.fetched.push_back((start, failed.is_none().then_some(data))),
            1 => (self.storing, self.failed) = (self.storing.saturating_sub(len), self.failed || failed.is_some()),
            _ => {
                self.labelling -= 1;
                if failed.is_some() {
                    let place = request.operation == DiskOperation::Write && !self.retried;
                    self.unwritten.get_or_insert(if place { Unwritten::Place } else { Unwritten::Drive });
                }
            }
        }
    }
}

/// Whether a request is for the label.
pub(super) const fn is_label(request: &DiskRequest) -> bool {
    is_for(request.id, Purpose::Label)
}

/// Whether a request is of ours and for this.
const fn is_for(id: u64, purpose: Purpose) -> bool {
    id >= OWN && id & 3 == purpose as u64
}

impl<R: Registers> Drive<R> {
    /// Bytes of the guest's disk.
    pub(in super::super) fn bytes(&self) -> u64 {
        self.extent.bytes
    }

    /// What is on it.
    pub(in super::super) fn label(&self) -> &Label {
        &self.copies.label
    }

    /// Writes the label, durably: after all that was begun before, and before all that will be.
    fn write_label(&mut self, now: Time) {
        (self.copies.retried, self.copies.unwritten) = (false, None);
        let behind = self.jobs.len();
        self.begin_label(behind);
        self.work(now);
    }

    /// Puts the writing of the label in place `at` of what is to be done.
    fn begin_label(&mut self, at: usize) {
        self.copies.label.sequence += 1;
        let page = self.copies.label.encode();
        let copy = self.copies.label.sequence % 2 * PAGE_SIZE;
        let start = self.extent.label - self.extent.start + copy;
        let steps =
            [(DiskOperation::Flush, 0, &[][..]), (DiskOperation::Write, start, &page), (DiskOperation::Flush, 0, &[])];
        for (at, (operation, start, data)) in (at..).zip(steps) {
            let id = self.copies.number(Purpose::Label);
            self.copies.labelling += 1;
            let request = DiskRequest { id, operation, start, len: data.len() as u64, durable: false };
            self.jobs.insert(at, Job::new(&request, data, true));
        }
    }

    /// Sees to what has failed: a label is tried once more, in its other place; whatever waits for one that is not written, or
    /// belongs to a copy that is lost, is not done.
    pub(super) fn mend_copies(&mut self) {
        if let Some(why) = self.copies.unwritten
            && self.copies.labelling > 0
        {
            self.forget_those(|job| is_label(&job.request));
            self.copies.labelling = 0;
            if why == Unwritten::Place {
                (self.copies.retried, self.copies.unwritten) = (true, None);
                self.begin_label(0);
            }
        }
        self.copies.failed |= self.copies.unwritten.is_some();
        if self.copies.failed && self.copies.storing > 0 {
            self.forget_those(|job| is_for(job.request.id, Purpose::Store));
            self.copies.storing = 0;
        }
    }

    /// Says on the drive that the copy is complete, as soon as all of it was written.
    pub(super) fn complete_copy(&mut self) -> bool {
        let Copies { storing: 0, labelling: 0, handed_over: true, failed: false, .. } = self.copies else {
            return false;
        };
        let Some(source) = self.copies.source.take() else { return false };
        self.copies.label.end_copy(&source);
        (self.copies.shared, self.copies.handed_over) = (true, false);
        (self.copies.retried, self.copies.unwritten) = (false, None);
        let behind = self.jobs.len();
        self.begin_label(behind);
        true
    }

    /// The guest lives here alone from here on, in `term`; `creates`: it begins its life.
    ///
    /// # Errors
    /// Why it must not with this disk.
    pub(in super::super) fn reign(
        &mut self,
        term: Term,
        creates: bool,
        generation: u64,
        now: Time,
    ) -> Result<(), String> {
        if creates {
            self.copies.label.may_begin(term.0, self.copies.stale)?;
        }
        // As long as nobody else has what it is, it need not be told from anything.
        if creates || core::mem::take(&mut self.copies.shared) {
            self.copies.shared = false;
            self.copies.label.reign(term.0, generation);
            self.write_label(now);
        }
        Ok(())
    }

    /// How far the drive is with saying so.
    pub(in super::super) fn reign_state(&self) -> CopyState {
        if self.copies.unwritten.is_some() {
            CopyState::Failed
        } else if self.copies.labelling > 0 {
            CopyState::Busy
        } else {
            CopyState::Done
        }
    }

    /// Another machine may have all that is on it from here on.
    pub(in super::super) fn share(&mut self) {
        self.copies.shared = true;
    }

    /// Begins to read a block.
    pub(in super::super) fn fetch(&mut self, start: u64, len: u64, now: Time) {
        let id = self.copies.number(Purpose::Fetch);
        self.begin(&DiskRequest { id, operation: DiskOperation::Read, start, len, durable: false }, &[], now);
    }

    /// The next block that was read, or could not be.
    pub(in super::super) fn fetched(&mut self) -> Option<(u64, Option<Vec<u8>>)> {
        self.copies.fetched.pop_front()
    }

    /// Nobody waits for blocks that are being read.
    pub(in super::super) fn forget_fetched(&mut self) {
        self.copies.fetched.clear();
        self.forget_those(|job| is_for(job.request.id, Purpose::Fetch));
    }

    /// What is on it is replaced by what is on the one with this label.
    ///
    /// # Errors
    /// Why it must not be; nothing was written.
    pub(in super::super) fn begin_copy(&mut self, label: &[u8], now: Time) -> Result<(), String> {
        let source = Label::decode(label).ok_or("the label of the other machine's disk is damaged")?;
        self.copies.label.may_become(&source)?;
        self.copies.label.begin_copy();
        (self.copies.source, self.copies.handed_over, self.copies.failed) = (Some(source), false, false);
        self.write_label(now);
        Ok(())
    }

    /// Writes a block of the copy: `data`, or zeros. Without one, or if it has failed, nothing is written.
    pub(in super::super) fn store(&mut self, start: u64, len: u64, data: &[u8], now: Time) {
        if self.copies.source.is_none() || self.copies.failed {
            return;
        }
        let id = self.copies.number(Purpose::Store);
        let operation = if data.is_empty() { DiskOperation::Zero } else { DiskOperation::Write };
        self.copies.storing += len;
        // A later round's must not overtake an earlier one's.
        let request = DiskRequest { id, operation, start, len, durable: false };
        let overlaps = self.jobs.iter().any(|job| job.request.conflicts(&request));
        self.begin_job(&request, data, overlaps);
        self.work(now);
    }

    /// Whether more is on its way to the drive than should be.
    pub(in super::super) fn is_behind(&self) -> bool {
        self.copies.storing > MOST_STORED
    }

    /// The copy is complete, but for what is on its way. The drive says so when that is on it.
    pub(in super::super) fn end_copy(&mut self, now: Time) {
        self.copies.handed_over = true;
        self.work(now);
    }

    /// How far that is.
    pub(in super::super) fn copy_state(&self) -> CopyState {
        if self.copies.failed {
            CopyState::Failed
        } else if self.copies.source.is_some() || self.copies.labelling > 0 {
            CopyState::Busy
        } else {
            CopyState::Done
        }
    }
}
