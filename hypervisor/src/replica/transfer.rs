//! A state on its way to a new backup: memory in rounds while the guest runs on, then, the guest standing still, what
//! changed last, CPU and platform. With `transfer=stop` the guest stands still from the start.

use alloc::vec::Vec;

use pollux_ft::{AppendError, Position};
use pollux_nic::GateMode;

use super::Replica;
use super::digest::{MemoryDigest, NextDigest};
use super::rounds::{Next, Rounds};
use crate::guest::Guest;
use crate::memory::{Gpa, PAGE_SIZE, is_zero};

/// Pages in one message at most.
const RUN: u64 = 16;

/// Pages that are looked at in one turn at most: a large memory takes longer than a twin is patient, zeros or not.
pub(super) const PAGES_A_TURN: u64 = 16 << 10;

/// How long the guest stands for frames that the client card does not take, in microseconds. A card that is stuck for
/// longer, say without a cable, must not keep the guest from being protected.
const CARD_PATIENCE_US: u64 = 1_000_000;

/// A state on its way to the backup.
#[derive(Debug)]
pub(super) struct Transfer {
    rounds: Rounds,
    digest: MemoryDigest,
    /// The guest stands still from here on, since this wall time in microseconds.
    stopped_us: Option<u64>,
    /// CPU and platform; taken when all of memory was sent.
    machine: Option<Vec<u8>>,
    /// Bytes of it that were sent.
    sent: usize,
    started_us: u64,
    pages: u64,
    /// This turn's share of pages is used up, and more could be sent at once.
    more: bool,
}

impl Transfer {
    fn new(pages: u64, now_us: u64) -> Self {
        Self {
            rounds: Rounds::new(pages, now_us),
            digest: MemoryDigest::new(pages),
            stopped_us: None,
            machine: None,
            sent: 0,
            started_us: now_us,
            pages: 0,
            more: false,
        }
    }

    /// Whether the next turn can go on without waiting for anything.
    pub(super) fn has_more(&self) -> bool {
        self.more
    }

    /// Whether the guest must stand still, at an exact stop.
    pub(super) fn stops_guest(&self) -> bool {
        self.stopped_us.is_some()
    }
}

/// What a part of the transfer came to.
enum Progress {
    /// All of it was handed to the protocol.
    Complete,
    /// Another round begins, or the guest is to be stopped.
    RoundEnds,
    /// The protocol takes no more at the moment.
    Full,
    /// The protocol ended the transfer and says so in an action of its own.
    Ended,
}

impl From<AppendError> for Progress {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Full => Self::Full,
            AppendError::NotLogging => Self::Ended,
            AppendError::BadData => panic!("a part of the state of impossible length"),
        }
    }
}

impl Replica {
    pub(super) fn begin_transfer(&mut self) {
        log::info!("a backup joins: sending the state");
        let mut transfer = Transfer::new(self.guest.memory.pages(), self.now_us);
        if self.config.transfer_stops {
            transfer.stopped_us = Some(self.now_us);
        } else {
            self.guest.track_memory();
        }
        self.transfer = Some(transfer);
    }

    /// The transfer is over, one way or the other.
    pub(super) fn end_transfer(&mut self) -> Option<Transfer> {
        let transfer = self.transfer.take()?;
        self.guest.stop_tracking();
        Some(transfer)
    }

    /// Whether the guest has to wait for the transfer.
    pub(super) fn transfer_stops_guest(&self) -> bool {
        self.transfer.as_ref().is_some_and(Transfer::stops_guest)
    }

    /// Sends as much of the state as there is room for. When the transfer stops the guest, it stands at an exact stop.
    pub(super) fn transfer_step(&mut self) {
        let Some(mut transfer) = self.transfer.take() else { return };
        transfer.more = false;
        if let Some(since_us) = transfer.stopped_us {
            self.hold_output();
            if self.output_waits() && self.clock.now_us() < since_us + CARD_PATIENCE_US {
                self.transfer = Some(transfer);
                return;
            }
        }
        let mut progress = self.send_state(&mut transfer);
        while matches!(progress, Progress::RoundEnds) && !transfer.stops_guest() {
            progress = self.send_state(&mut transfer);
        }
        self.transfer = Some(transfer);
        self.push_peer();
        if let Progress::Complete = progress {
            self.transfer_done();
        }
    }

    /// From the snapshot on, output depends on a backup that does not exist yet.
    fn hold_output(&mut self) {
        if let Some(client) = &mut self.client
            && client.gate().mode() == GateMode::Open
        {
            client.nic().set_mode(GateMode::Held);
        }
        self.release();
    }

    /// Whether frames from before the snapshot are still here. The backup will not make them again.
    pub(super) fn output_waits(&self) -> bool {
        self.client.as_ref().is_some_and(|client| client.gate().ready() > 0)
    }

    /// Sends what is left of this round; begins the next, or, when the guest stands still, finishes.
    fn send_state(&mut self, transfer: &mut Transfer) -> Progress {
        match self.send_memory(transfer) {
            Progress::Complete if transfer.stops_guest() => self.finish_state(transfer),
            Progress::Complete => {
                let changed = self.guest.take_dirty();
                let now_us = self.clock.now_us();
                if transfer.rounds.begin(changed, now_us) {
                    transfer.stopped_us = Some(now_us);
                }
                Progress::RoundEnds
            }
            other => other,
        }
    }

    fn send_memory(&mut self, transfer: &mut Transfer) -> Progress {
        let Some(peer) = &mut self.peer else { return Progress::Ended };
        let mut share = PAGES_A_TURN;
        while let Next::Pages { first, count } = transfer.rounds.next(RUN) {
            if share == 0 {
                transfer.more = true;
                return Progress::Full;
            }
            let (gpa, count, used) = run_of_equals(&self.guest, first, count);
            // Pages that were zero from the start need not be sent.
            let told = used || (first..first + count).any(|page| transfer.digest.is_used(page));
            let bytes = self.guest.memory.slice(gpa, count * PAGE_SIZE).unwrap_or_default();
            let result = match (used, told) {
                (true, _) => peer.node.push_memory(gpa.0, bytes),
                (false, true) => peer.node.push_zero(gpa.0, bytes.len() as u64),
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
            share = share.saturating_sub(count);
            transfer.pages += sent;
        }
        Progress::Complete
    }

    /// All of memory but what changed last was sent, and the guest stands still.
    fn finish_state(&mut self, transfer: &mut Transfer) -> Progress {
        if transfer.machine.is_none() {
            transfer.machine = Some(self.guest.save());
            transfer.rounds.add(&self.guest.take_dirty());
            let progress = self.send_memory(transfer);
            if !matches!(progress, Progress::Complete) {
                return progress;
            }
        }
        let Some(peer) = &mut self.peer else { return Progress::Ended };
        let machine = transfer.machine.as_deref().unwrap_or_default();
        while transfer.sent < machine.len() {
            match peer.node.push_machine(&machine[transfer.sent..]) {
                Ok(0) => return Progress::Full,
                Ok(taken) => transfer.sent += taken,
                Err(error) => return error.into(),
            }
        }
        let digest = transfer.digest.with_machine(&mut self.guest);
        match peer.node.finish_state(Position(self.guest.position()), digest) {
            Ok(()) => Progress::Complete,
            Err(error) => error.into(),
        }
    }

    fn transfer_done(&mut self) {
        let Some(transfer) = self.end_transfer() else { return };
        let now = self.clock.now_us();
        let logged = self.guest.position();
        let pause_us = now - transfer.stopped_us.unwrap_or(now);
        self.figures.transfer_pages = transfer.pages;
        self.figures.transfer_bytes = transfer.pages * PAGE_SIZE + transfer.sent as u64;
        self.figures.transfer_rounds = u64::from(transfer.rounds.round());
        self.figures.transfer_us = now - transfer.started_us;
        self.figures.transfer_pause_us = pause_us;
        log::info!(
            "state sent at position {logged}: {} pages in {} rounds and {} ms, {} bytes of CPU and platform, \
             guest stopped for {} ms",
            transfer.pages,
            transfer.rounds.round(),
            (now - transfer.started_us) / 1000,
            transfer.sent,
            pause_us / 1000
        );
        self.logged = logged;
        self.logged_us = now;
        self.next_digest = NextDigest::default();
        self.push_peer();
    }
}

/// The first of `count` pages from `first` on that are all zero, or all not: where, how many, and whether they are used.
fn run_of_equals(guest: &Guest, first: u64, count: u64) -> (Gpa, u64, bool) {
    let gpa = Gpa(first * PAGE_SIZE);
    let bytes = guest.memory.slice(gpa, count * PAGE_SIZE).unwrap_or_default();
    let mut pages = bytes.chunks(PAGE_SIZE as usize).map(is_zero);
    let zero = pages.next().unwrap_or(true);
    let equal = 1 + pages.take_while(|&other| other == zero).count() as u64;
    (gpa, equal, !zero)
}
