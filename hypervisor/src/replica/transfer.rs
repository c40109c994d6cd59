//! Stop and copy: the primary's guest stands still while its whole state goes to the new backup. Zero pages are not sent.

use alloc::vec::Vec;

use pollux_ft::{AppendError, Position};
use pollux_nic::GateMode;

use super::Replica;
use super::digest::{self, NextDigest};
use crate::memory::{Gpa, PAGE_SIZE, is_zero};

/// Pages in one message at most.
const RUN: u64 = 16;

/// A state on its way to the backup.
#[derive(Debug)]
pub(super) struct Transfer {
    /// Next page to look at.
    next: Gpa,
    /// CPU and platform; taken when all of memory was sent.
    machine: Option<Vec<u8>>,
    /// Bytes of it that were sent.
    sent: usize,
    started_us: u64,
    pages: u64,
}

impl Transfer {
    pub(super) fn new(now_us: u64) -> Self {
        Self { next: Gpa(0), machine: None, sent: 0, started_us: now_us, pages: 0 }
    }
}

impl Replica {
    /// Sends as much of the state as there is room for. The guest stands at an exact stop.
    pub(super) fn transfer_step(&mut self) {
        let Some(mut transfer) = self.transfer.take() else { return };
        // From the snapshot on, output depends on a backup that does not exist yet.
        if let Some(client) = &mut self.client
            && client.gate().mode() == GateMode::Open
        {
            client.release(self.now_us);
            client.nic().set_mode(GateMode::Held);
        }
        match self.send_state(&mut transfer) {
            Ok(()) => self.transfer_done(&transfer),
            Err(AppendError::Full) => {
                self.transfer = Some(transfer);
                self.push_peer();
            }
            // The protocol ended it and says so in an action of its own.
            Err(_) => {}
        }
    }

    fn send_state(&mut self, transfer: &mut Transfer) -> Result<(), AppendError> {
        let Some(peer) = &mut self.peer else { return Err(AppendError::NotLogging) };
        while transfer.next.0 < self.guest.memory.len() {
            let run = run_of_pages(&self.guest, transfer.next);
            if run.is_empty() {
                transfer.next.0 += PAGE_SIZE;
                continue;
            }
            peer.node.push_memory(transfer.next.0, run)?;
            transfer.pages += run.len() as u64 / PAGE_SIZE;
            transfer.next.0 += run.len() as u64;
        }
        if transfer.machine.is_none() {
            transfer.machine = Some(self.guest.save());
        }
        let machine = transfer.machine.as_deref().unwrap_or_default();
        while transfer.sent < machine.len() {
            let taken = peer.node.push_machine(&machine[transfer.sent..])?;
            if taken == 0 {
                return Err(AppendError::Full);
            }
            transfer.sent += taken;
        }
        let digest = digest::of_all(&mut self.guest);
        peer.node.finish_state(Position(self.guest.position()), digest)
    }

    fn transfer_done(&mut self, transfer: &Transfer) {
        let now = self.clock.now_us();
        let (logged, pause_us) = (self.guest.position(), now - transfer.started_us);
        self.figures.transfer_pages = transfer.pages;
        self.figures.transfer_bytes = transfer.pages * PAGE_SIZE + transfer.sent as u64;
        self.figures.transfer_pause_us = pause_us;
        log::info!(
            "state sent at position {logged}: {} pages, {} bytes of CPU and platform, guest stopped for {} ms",
            transfer.pages,
            transfer.sent,
            pause_us / 1000
        );
        self.logged = logged;
        self.logged_us = now;
        self.next_digest = NextDigest::default();
        self.push_peer();
    }
}

/// The pages from `start` on that are not zero, up to [`RUN`] of them; empty when the first is zero.
fn run_of_pages(guest: &crate::guest::Guest, start: Gpa) -> &[u8] {
    let pages = ((guest.memory.len() - start.0) / PAGE_SIZE).min(RUN);
    let Ok(bytes) = guest.memory.slice(start, pages * PAGE_SIZE) else { return &[] };
    let used = bytes.chunks(PAGE_SIZE as usize).take_while(|page| !is_zero(page)).count();
    &bytes[..used * PAGE_SIZE as usize]
}
