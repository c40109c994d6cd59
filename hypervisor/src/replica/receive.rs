//! A state that arrives at a new backup.

use alloc::format;
use alloc::vec::Vec;

use pollux_ft::{Position, Time};
use pollux_nic::GateMode;

use super::Replica;
use super::digest::MemoryDigest;
use crate::memory::{Gpa, PAGE_SIZE};

/// What has arrived, apart from memory, which is written where it belongs.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// CPU and platform.
    machine: Vec<u8>,
    digest: MemoryDigest,
    /// From this page on, what has not arrived may still hold what was there before.
    old: Option<u64>,
}

impl Incoming {
    /// Whether memory is still being cleared.
    pub(super) fn is_clearing(&self) -> bool {
        self.old.is_some()
    }
}

impl Replica {
    pub(super) fn begin_load(&mut self) {
        log::info!("receiving the guest's state");
        self.set_gate(GateMode::Closed);
        (self.power_due, self.switch_due) = (None, false);
        let digest = MemoryDigest::new(self.guest.memory.pages());
        self.incoming = Incoming { machine: Vec::new(), digest, old: Some(0) };
    }

    /// Clears up to `most` of the pages that were not received yet: a large memory takes longer than a twin is patient.
    pub(super) fn clear_old(&mut self, most: u64) {
        let Some(first) = self.incoming.old else { return };
        let pages = self.guest.memory.pages();
        let end = first.saturating_add(most).min(pages);
        (first..end).filter(|&page| !self.incoming.digest.is_used(page)).for_each(|page| {
            self.guest.memory.clear_page(page);
        });
        self.incoming.old = (end < pages).then_some(end);
    }

    pub(super) fn load_memory(&mut self, gpa: Gpa, data: &[u8]) {
        if let Err(error) = self.guest.memory.write(gpa, data) {
            return self.diverge(&format!("the state does not fit: {error}"));
        }
        for (page, content) in (gpa.0 / PAGE_SIZE..).zip(data.chunks(PAGE_SIZE as usize)) {
            self.incoming.digest.set(page, content);
        }
    }

    pub(super) fn load_zero(&mut self, gpa: Gpa, len: u64) {
        match self.guest.memory.slice_mut(gpa, len) {
            Ok(range) => range.fill(0),
            Err(error) => return self.diverge(&format!("the state does not fit: {error}")),
        }
        (gpa.0 / PAGE_SIZE..(gpa.0 + len) / PAGE_SIZE).for_each(|page| self.incoming.digest.clear(page));
    }

    pub(super) fn load_machine(&mut self, data: &[u8]) {
        self.incoming.machine.extend_from_slice(data);
    }

    pub(super) fn state_loaded(&mut self, position: Position, digest: u64) {
        self.clear_old(u64::MAX);
        let incoming = core::mem::take(&mut self.incoming);
        if let Err(error) = self.guest.load(&incoming.machine) {
            return self.diverge(&format!("the state received cannot be loaded: {error}"));
        }
        let own = incoming.digest.with_machine(&mut self.guest);
        if own != digest || self.guest.position() != position.0 {
            return self.diverge(&format!(
                "the state received is not the one that was sent: hash {own:016x} at {}, should be {digest:016x} at {}",
                self.guest.position(),
                position.0
            ));
        }
        log::info!("state complete at position {}: following the log", position.0);
        self.set_gate(GateMode::Retained);
        if let Some(peer) = &mut self.peer {
            peer.node.joined(Time(self.now_us));
        }
    }
}
