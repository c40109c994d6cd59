//! A state on its way to a new backup: memory in rounds while the guest runs on, then, the guest standing still, what
//! changed last, CPU and platform. With [`Tuning::transfer_stops`](crate::Tuning::transfer_stops) it stands still from
//! the start.

use alloc::vec::Vec;

use pollux_ft::message::MAX_MEMORY;
use pollux_ft::{AppendError, Span, Time};

use crate::digest::{MemoryDigest, NextDigest};
use crate::disk::DiskRequest;
use crate::disk_copy::DiskCopy;
use crate::driver::Driver;
use crate::guest::Guest;
use crate::host::{Event, Host};
use crate::pages::{PAGE_SIZE, is_zero};
use crate::rounds::{Enough, Next, Rounds};

/// Pages in one message at most.
const RUN: u64 = MAX_MEMORY as u64 / PAGE_SIZE;

/// A state on its way to the backup.
#[derive(Debug)]
pub(crate) struct Transfer {
    rounds: Rounds,
    /// The disk, if it lies on a drive.
    disk: Option<DiskCopy>,
    digest: MemoryDigest,
    /// The guest stands still from here on, since this time.
    stopped: Option<Time>,
    /// CPU and platform; taken when all of memory was sent.
    machine: Option<Vec<u8>>,
    /// Bytes of it that were sent.
    sent: usize,
    started: Time,
    pages: u64,
    /// This turn's share of pages is used up, and more could be sent at once.
    more: bool,
}

impl Transfer {
    fn new(pages: u64, disk: u64, now: Time, enough: Enough) -> Self {
        Self {
            rounds: Rounds::new(pages, now, enough),
            disk: (disk > 0).then(|| DiskCopy::new(disk, now)),
            digest: MemoryDigest::new(pages),
            stopped: None,
            machine: None,
            sent: 0,
            started: now,
            pages: 0,
            more: false,
        }
    }

    /// Whether the next turn can go on without waiting for anything.
    pub(crate) fn has_more(&self) -> bool {
        self.more
    }

    /// A request has ended on this machine's disk.
    pub(crate) fn disk_ended(&mut self, request: &DiskRequest) {
        if let Some(disk) = &mut self.disk {
            disk.ended(request);
        }
    }

    /// Whether the guest must stand still, at an exact stop.
    fn stops_guest(&self) -> bool {
        self.stopped.is_some()
    }
}

/// What a transfer came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Pages of memory that were sent, some of them several times.
    pub pages: u64,
    /// Bytes of CPU and platform.
    pub machine: usize,
    /// Rounds over memory.
    pub rounds: u32,
    /// From the beginning.
    pub total: Span,
    /// How much of that the guest stood still.
    pub pause: Span,
}

/// What a part of the transfer came to.
enum Fed {
    /// All of it was handed to the protocol.
    Complete,
    /// Another round begins, or the guest is to be stopped.
    RoundEnds,
    /// The protocol takes no more at the moment.
    Full,
    /// The drive has not read what is next.
    Waits,
    /// The protocol ended the transfer and says so in an action of its own.
    Ended,
}

impl From<AppendError> for Fed {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Full => Self::Full,
            AppendError::NotLogging => Self::Ended,
            AppendError::BadData => panic!("a part of the state of impossible length"),
        }
    }
}

impl<G: Guest> Driver<G> {
    pub(crate) fn begin_transfer(&mut self, host: &mut impl Host<G>) {
        let pages = self.guest.memory().len() as u64 / PAGE_SIZE;
        let mut transfer = Transfer::new(pages, host.drive_bytes(), self.now, self.tuning.transfer);
        if self.tuning.transfer_stops {
            transfer.stopped = Some(self.now);
        } else {
            self.guest.track_memory();
        }
        self.transfer = Some(transfer);
    }

    /// The transfer is over, one way or the other.
    pub(crate) fn end_transfer(&mut self, host: &mut impl Host<G>) -> Option<Transfer> {
        let transfer = self.transfer.take()?;
        host.forget_fetched();
        self.guest.stop_tracking();
        Some(transfer)
    }

    /// Whether the guest has to wait for the transfer.
    pub(crate) fn transfer_stops_guest(&self) -> bool {
        self.transfer.as_ref().is_some_and(Transfer::stops_guest)
    }

    /// Sends as much of the state as there is room for. When the transfer stops the guest, it stands at an exact stop.
    pub(crate) fn transfer_step(&mut self, host: &mut impl Host<G>) {
        let Some(mut transfer) = self.transfer.take() else { return };
        transfer.more = false;
        if let Some(since) = transfer.stopped {
            // From the snapshot on, output depends on a backup that does not exist yet.
            if host.is_open() {
                host.hold();
            }
            self.release(host);
            // What was made before, the backup will not make again.
            if host.has_ready() && host.now() < since.after(self.tuning.card_patience) {
                self.transfer = Some(transfer);
                return;
            }
        }
        let mut fed = self.send_state(host, &mut transfer);
        while matches!(fed, Fed::RoundEnds) && !transfer.stops_guest() {
            fed = self.send_state(host, &mut transfer);
        }
        if transfer.disk.as_ref().is_some_and(DiskCopy::has_failed) {
            host.observe(Event::DiskFailed("a new backup cannot be given what is on it"), self);
            self.transfer = Some(transfer);
            return self.close_link(host);
        }
        self.push(host);
        // What was full may have been emptied by that.
        transfer.more |= matches!(fed, Fed::Full) && self.node.state_room() >= MAX_MEMORY;
        self.transfer = Some(transfer);
        if let Fed::Complete = fed {
            self.transfer_done(host);
        }
    }

    /// Sends what is left of this round; begins the next, or, when the guest stands still, finishes.
    fn send_state(&mut self, host: &mut impl Host<G>, transfer: &mut Transfer) -> Fed {
        match self.send_disk(host, transfer) {
            Fed::Complete => {}
            other => return other,
        }
        match self.send_memory(transfer) {
            Fed::Complete if transfer.stops_guest() => self.finish_state(host, transfer),
            Fed::Complete => {
                let (changed, now) = (self.guest.take_dirty(), host.now());
                let few = transfer.disk.as_mut().is_none_or(|disk| disk.begin_round(now));
                if transfer.rounds.begin(changed, now) && few {
                    transfer.stopped = Some(now);
                }
                Fed::RoundEnds
            }
            other => other,
        }
    }

    /// Sends what is left of this round over the disk.
    fn send_disk(&mut self, host: &mut impl Host<G>, transfer: &mut Transfer) -> Fed {
        let Some(disk) = &mut transfer.disk else { return Fed::Complete };
        match disk.send(&mut self.node, host) {
            Ok(true) => Fed::Complete,
            // The drive is at work.
            Ok(false) => Fed::Waits,
            Err(error) => error.into(),
        }
    }

    fn send_memory(&mut self, transfer: &mut Transfer) -> Fed {
        let mut share = self.tuning.pages_a_turn;
        while let Next::Pages { first, count } = transfer.rounds.next(RUN) {
            if share == 0 {
                transfer.more = true;
                return Fed::Full;
            }
            let (bytes, used) = run_of_equals(self.guest.memory(), first, count.min(share));
            let count = bytes.len() as u64 / PAGE_SIZE;
            // Pages that were zero from the start need not be sent.
            let told = used || (first..first + count).any(|page| transfer.digest.is_used(page));
            let result = match (used, told) {
                (true, _) => self.node.push_memory(first * PAGE_SIZE, bytes),
                (false, true) => self.node.push_zero(first * PAGE_SIZE, bytes.len() as u64),
                (false, false) => Ok(()),
            };
            if let Err(error) = result {
                return error.into();
            }
            for (page, content) in (first..).zip(bytes.chunks(PAGE_SIZE as usize)) {
                transfer.digest.set(page, content);
            }
            let sent = if used { count } else { 0 };
            transfer.rounds.done(first, count, sent);
            share -= count;
            transfer.pages += sent;
        }
        Fed::Complete
    }

    /// All of memory but what changed last was sent, and the guest stands still.
    fn finish_state(&mut self, host: &mut impl Host<G>, transfer: &mut Transfer) -> Fed {
        if transfer.machine.is_none() {
            transfer.machine = Some(self.guest.save());
            transfer.rounds.add(&self.guest.take_dirty());
            if let Some(disk) = &mut transfer.disk {
                disk.add_changed();
            }
            let fed = match self.send_disk(host, transfer) {
                Fed::Complete => self.send_memory(transfer),
                other => other,
            };
            if !matches!(fed, Fed::Complete) {
                return fed;
            }
        }
        let machine = transfer.machine.as_deref().unwrap_or_default();
        while transfer.sent < machine.len() {
            match self.node.push_machine(&machine[transfer.sent..]) {
                Ok(0) => return Fed::Full,
                Ok(taken) => transfer.sent += taken,
                Err(error) => return error.into(),
            }
        }
        let digest = transfer.digest.with_machine(self.guest.hash());
        match self.node.finish_state(self.guest.position(), digest) {
            Ok(()) => Fed::Complete,
            Err(error) => error.into(),
        }
    }

    fn transfer_done(&mut self, host: &mut impl Host<G>) {
        let Some(transfer) = self.end_transfer(host) else { return };
        host.drive_shared();
        let now = host.now();
        self.marks.logged(now, self.guest.position());
        self.next_digest = NextDigest::default();
        let sent = Sent {
            pages: transfer.pages,
            machine: transfer.sent,
            rounds: transfer.rounds.round(),
            total: now.since(transfer.started),
            pause: now.since(transfer.stopped.unwrap_or(now)),
        };
        host.observe(Event::StateSent(sent), self);
        self.push(host);
    }
}

/// The first of `count` pages from `first` on that are all zero, or all not: their bytes, and whether they are used.
fn run_of_equals(memory: &[u8], first: u64, count: u64) -> (&[u8], bool) {
    let bytes = &memory[(first * PAGE_SIZE) as usize..((first + count) * PAGE_SIZE) as usize];
    let mut pages = bytes.chunks(PAGE_SIZE as usize).map(is_zero);
    let zero = pages.next().unwrap_or(true);
    let equal = 1 + pages.take_while(|&other| other == zero).count();
    (&bytes[..equal * PAGE_SIZE as usize], !zero)
}
