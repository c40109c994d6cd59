//! Requests to the guest's disk on a drive of the machine's own: cut into commands, asked for again after a reset of the
//! controller, and put together again when all of them have ended.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use pollux_driver::{DiskEnd, DiskOperation, DiskRequest, DiskStatus};
use pollux_ft::Time;
use pollux_nic::{MmioRegion, Registers};
use pollux_nvme::{BUFFER_BYTES, COMMANDS, Condition, Data, Geometry, Lost, Nvme, Request, SubmitError};

use super::label::Label;
use crate::platform::virtio::block::SECTOR;

/// Resets of the controller that a request survives.
const MOST_RESETS: u32 = 3;
/// Most blocks that one command makes zero.
const MOST_ZEROED: u64 = 1 << 16;
/// What is written where the drive does not know how to make blocks zero.
static ZEROS: [u8; BUFFER_BYTES] = [0; BUFFER_BYTES];

mod copies;

use self::copies::{Copies, OWN};

/// Which blocks of a drive are the guest's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset of its first byte on the drive.
    pub start: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Offset of the label's first copy on the drive: behind the disk.
    pub label: u64,
}

/// A command at work, or one to be begun again.
#[derive(Debug, Clone, Copy)]
struct Piece {
    tag: u64,
    job: u64,
    /// Bytes on the guest's disk.
    start: u64,
    len: u64,
}

/// A request at work.
#[derive(Debug)]
struct Job {
    request: DiskRequest,
    /// Nothing before this byte is still to be begun for the first time.
    next: u64,
    /// What it writes, or what it has read so far.
    data: Vec<u8>,
    /// Its commands at work.
    at_work: u32,
    /// Resets that it has survived, and which was the last: one may lose many of its commands.
    resets: u32,
    last_reset: u64,
    failed: Option<Lost>,
    /// Nobody waits for it any more.
    forgotten: bool,
    /// A flush was begun.
    begun: bool,
    /// Nothing else is at work beside it: what came before has ended, and what comes after waits.
    alone: bool,
}

impl Job {
    /// One that waits; `data` is what it writes.
    fn new(request: &DiskRequest, data: &[u8], alone: bool) -> Self {
        let data = match request.operation {
            DiskOperation::Read => vec![0; request.len as usize],
            DiskOperation::Write => data.to_vec(),
            DiskOperation::Zero | DiskOperation::Flush => Vec::new(),
        };
        Self {
            request: *request,
            next: request.start,
            data,
            at_work: 0,
            resets: 0,
            last_reset: 0,
            failed: None,
            forgotten: false,
            begun: false,
            alone,
        }
    }

    const fn end(&self) -> u64 {
        self.request.start + self.request.len
    }

    /// Whether the drive makes its blocks zero by itself; what is to be durable at once is written.
    fn zeroes(&self, geometry: &Geometry) -> bool {
        geometry.can_zero && !self.request.durable
    }

    fn is_begun(&self) -> bool {
        self.failed.is_some()
            || if let DiskOperation::Flush = self.request.operation { self.begun } else { self.next == self.end() }
    }
}

/// The guest's disk on a drive.
#[derive(Debug)]
pub struct Drive<R: Registers = MmioRegion> {
    nvme: Nvme<R>,
    extent: Extent,
    jobs: Vec<Job>,
    at_work: Vec<Piece>,
    /// Pieces whose commands a reset has lost.
    again: VecDeque<Piece>,
    next_tag: u64,
    ended: VecDeque<(DiskEnd, Vec<u8>)>,
    pub(super) copies: Copies,
}

impl<R: Registers> Drive<R> {
    /// The disk on those bytes of a drive that is ready: a whole number of its blocks.
    #[must_use]
    pub fn new(nvme: Nvme<R>, extent: Extent, label: Label, stale: bool) -> Self {
        let (jobs, at_work) = (Vec::new(), Vec::with_capacity(COMMANDS));
        let (again, ended, copies) = (VecDeque::new(), VecDeque::new(), Copies::new(label, stale));
        Self { nvme, extent, jobs, at_work, again, next_tag: 0, ended, copies }
    }

    /// The machine is at work: ends of commands may interrupt it.
    pub(super) fn let_interrupt(&mut self) {
        self.nvme.let_interrupt();
    }

    /// Begins a request; `data` is what it writes.
    pub(super) fn begin(&mut self, request: &DiskRequest, data: &[u8], now: Time) {
        self.begin_job(request, data, false);
        self.work(now);
    }

    /// Puts a request behind the others.
    pub(super) fn begin_job(&mut self, request: &DiskRequest, data: &[u8], alone: bool) {
        self.jobs.push(Job::new(request, data, alone));
    }

    /// Takes in what the drive has ended, and gives it more to do.
    pub(super) fn work(&mut self, now: Time) {
        let Self { nvme, jobs, at_work, again, .. } = self;
        let reset = nvme.faults();
        nvme.poll(now.0, |tag, result| {
            let Some(at) = at_work.iter().position(|piece| piece.tag == tag) else { return };
            let piece = at_work.swap_remove(at);
            if let Some(job) = jobs.iter_mut().find(|job| job.request.id == piece.job && job.at_work > 0)
                && job.piece_ended(&piece, result, reset)
            {
                again.push_back(piece);
            }
        });
        self.submit_all(now);
        // What has ended may have been waited for.
        while self.finish() || self.complete_copy() {
            self.mend_copies();
            self.submit_all(now);
        }
    }

    /// The next request that has ended, and what it has read.
    pub(super) fn next_end(&mut self) -> Option<(DiskEnd, Vec<u8>)> {
        self.ended.pop_front()
    }

    /// When [`work`](Self::work) should be called at the latest, if nothing interrupts.
    pub(super) fn next_look(&self) -> Option<Time> {
        if self.ended.is_empty() && self.copies.is_idle() { self.nvme.next_look().map(Time) } else { Some(Time(0)) }
    }

    /// Nobody waits for what is at work any more. What is on its way to the drive cannot be called back; whatever comes after
    /// waits for that.
    pub(super) fn forget(&mut self) {
        self.ended.clear();
        self.copies.forget();
        // What the drive says of itself stays true.
        self.forget_those(|job| !copies::is_label(&job.request));
    }

    /// Forgets some of the requests.
    fn forget_those(&mut self, which: impl Fn(&Job) -> bool) {
        let Self { jobs, again, .. } = self;
        jobs.retain_mut(|job| {
            if !which(job) {
                return true;
            }
            again.retain(|piece| piece.job != job.request.id);
            job.forgotten = true;
            job.next = job.end();
            job.begun = true;
            job.at_work > 0
        });
    }

    fn submit_all(&mut self, now: Time) {
        let geometry = match self.nvme.condition() {
            Condition::Ready(geometry) => geometry,
            Condition::Starting => return,
            Condition::GivenUp(fault) => {
                self.again.clear();
                self.jobs.iter_mut().for_each(|job| job.failed = job.failed.or(Some(Lost::Reset(fault))));
                return;
            }
        };
        if self.jobs.iter().any(|job| job.forgotten) {
            return;
        }
        while let Some(piece) = self.again.pop_front() {
            if !self.submit(piece, now) {
                self.again.push_front(piece);
                return;
            }
        }
        for at in 0..self.jobs.len() {
            if at > 0 && (self.jobs[at].alone || self.jobs[0].alone) {
                return;
            }
            while !self.jobs[at].is_begun() {
                let (piece, job) = (self.next_piece(at, &geometry), &mut self.jobs[at]);
                (job.next, job.begun) = (piece.start + piece.len, true);
                if !self.submit(piece, now) {
                    let job = &mut self.jobs[at];
                    (job.next, job.begun) = (piece.start, false);
                    return;
                }
            }
        }
    }

    /// The next piece of the job at `at`, as long as one command can have it.
    fn next_piece(&mut self, at: usize, geometry: &Geometry) -> Piece {
        let job = &self.jobs[at];
        let most = match job.request.operation {
            DiskOperation::Zero if job.zeroes(geometry) => MOST_ZEROED * u64::from(geometry.block_bytes),
            _ => u64::from(geometry.most_bytes),
        };
        self.next_tag += 1;
        let len = (job.end() - job.next).min(most);
        Piece { tag: self.next_tag, job: job.request.id, start: job.next, len }
    }

    /// Whether the drive takes it. One that it refuses has failed.
    fn submit(&mut self, piece: Piece, now: Time) -> bool {
        let Condition::Ready(geometry) = self.nvme.condition() else { return false };
        let Some(job) = self.jobs.iter_mut().find(|job| job.request.id == piece.job) else { return true };
        let (bytes, durable) = (u64::from(geometry.block_bytes), job.request.durable);
        let (block, blocks) = ((self.extent.start + piece.start) / bytes, (piece.len / bytes) as u32);
        let command = match job.request.operation {
            DiskOperation::Read => Request::Read { block, blocks },
            DiskOperation::Write => Request::Write { block, data: job.part(&piece), durable },
            DiskOperation::Zero if job.zeroes(&geometry) => Request::Zero { block, blocks },
            DiskOperation::Zero => Request::Write { block, data: &ZEROS[..piece.len as usize], durable },
            DiskOperation::Flush => Request::Flush,
        };
        match self.nvme.submit(command, piece.tag, now.0) {
            Ok(()) => {
                job.at_work += 1;
                self.at_work.push(piece);
                true
            }
            Err(SubmitError::Full | SubmitError::NotReady | SubmitError::GivenUp) => false,
            Err(error @ (SubmitError::OutOfRange | SubmitError::Unsupported)) => {
                panic!("a request of {} bytes at {:#x} is none for this drive: {error:?}", piece.len, piece.start)
            }
        }
    }

    /// Takes out the requests that have ended; whether there were any.
    fn finish(&mut self) -> bool {
        let before = self.jobs.len();
        let Self { jobs, again, ended, copies, .. } = self;
        jobs.retain_mut(|job| {
            if job.at_work > 0 || !job.is_begun() || again.iter().any(|piece| piece.job == job.request.id) {
                return true;
            }
            if job.forgotten {
                return false;
            }
            let DiskRequest { id, operation, start, len, .. } = job.request;
            if id >= OWN {
                copies.ended(&job.request, core::mem::take(&mut job.data), job.failed);
                return false;
            }
            if let Some(why) = job.failed {
                log::error!("the drive failed request {id} ({operation:?}, {len} bytes at {start:#x}): {why}");
                ended.push_back((DiskEnd { id, status: DiskStatus::Failed }, Vec::new()));
            } else {
                let read = if operation == DiskOperation::Read { core::mem::take(&mut job.data) } else { Vec::new() };
                ended.push_back((DiskEnd { id, status: DiskStatus::Done }, read));
            }
            false
        });
        self.jobs.len() < before
    }
}

impl Job {
    /// The bytes of a piece.
    fn part(&mut self, piece: &Piece) -> &mut [u8] {
        let at = (piece.start - self.request.start) as usize;
        &mut self.data[at..at + piece.len as usize]
    }

    /// One of its commands has ended, after so many resets; whether it is to be begun again.
    fn piece_ended(&mut self, piece: &Piece, result: Result<Data<'_>, Lost>, reset: u64) -> bool {
        self.at_work -= 1;
        match result {
            Ok(data) => {
                if self.request.operation == DiskOperation::Read {
                    data.copy_to(self.part(piece));
                }
                false
            }
            // What it asks for may be done twice: nothing that overlaps with it was begun since.
            Err(Lost::Reset(_)) if self.survives(reset) && !self.forgotten && self.failed.is_none() => true,
            Err(lost) => {
                self.failed = self.failed.or(Some(lost));
                false
            }
        }
    }
}

impl Job {
    /// Whether it goes on after that reset.
    fn survives(&mut self, reset: u64) -> bool {
        if core::mem::replace(&mut self.last_reset, reset) != reset {
            self.resets += 1;
        }
        self.resets <= MOST_RESETS
    }
}

/// Which part of a region of `bytes` bytes is the guest's disk, if it is to have `wanted` bytes or all that there are. What lies
/// behind it is kept for us.
///
/// # Errors
/// There is not so much.
pub fn guest_bytes(bytes: u64, wanted: Option<u64>) -> Result<u64, TooSmall> {
    const PAGE: u64 = 4096;
    let room = bytes.saturating_sub(RESERVED) / PAGE * PAGE;
    match wanted.unwrap_or(room) {
        0 => Err(TooSmall { room, wanted: SECTOR }),
        wanted if wanted > room => Err(TooSmall { room, wanted }),
        wanted => Ok(wanted),
    }
}

/// Bytes at the end of a region that are ours: nothing of the guest's lies there.
pub const RESERVED: u64 = 1 << 20;

/// A region is too small for the guest's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooSmall {
    /// What there is room for.
    pub room: u64,
    /// What was wanted.
    pub wanted: u64,
}

#[cfg(test)]
mod tests;
