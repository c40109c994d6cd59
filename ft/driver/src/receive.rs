//! A state that arrives at a new backup.

use alloc::format;
use alloc::vec::Vec;

use pollux_ft::disk::ADDRESS;
use pollux_ft::{Mutation, Position};

use crate::digest::MemoryDigest;
use crate::driver::Driver;
use crate::guest::Guest;
use crate::host::{Event, Host};
use crate::pages::{PAGE_SIZE, is_zero};
use crate::steering::FollowedSpeed;

/// What has arrived, apart from memory, which is written where it belongs.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    /// CPU and platform.
    machine: Vec<u8>,
    digest: MemoryDigest,
    /// From this page on, what has not arrived may still hold what was there before.
    old: Option<u64>,
    /// The drive's label has arrived.
    pub(crate) has_label: bool,
    /// All has arrived: where the guest stands, and the digest of its state.
    loaded: Option<(Position, u64)>,
}

impl Incoming {
    /// Whether memory is still being cleared.
    pub(crate) fn is_clearing(&self) -> bool {
        self.old.is_some()
    }

    /// Whether all has arrived, and is not complete only because the drive is at work.
    pub(crate) fn is_loaded(&self) -> bool {
        self.loaded.is_some()
    }
}

impl<G: Guest> Driver<G> {
    pub(crate) fn begin_load(&mut self, host: &mut impl Host<G>) {
        self.forget_guest(host);
        let digest = MemoryDigest::new(self.pages());
        self.incoming = Incoming { digest, old: Some(0), ..Incoming::default() };
    }

    fn pages(&self) -> u64 {
        self.guest.memory().len() as u64 / PAGE_SIZE
    }

    /// Clears up to `most` of the pages that were not received yet: a large memory takes longer than a twin is patient.
    pub(crate) fn clear_old(&mut self, most: u64) {
        let Some(first) = self.incoming.old else { return };
        let pages = self.pages();
        let end = first.saturating_add(most).min(pages);
        for page in (first..end).filter(|&page| !self.incoming.digest.is_used(page)) {
            let start = page * PAGE_SIZE;
            if !is_zero(&self.guest.memory()[start as usize..(start + PAGE_SIZE) as usize])
                && let Some(bytes) = self.guest.memory_mut(start, PAGE_SIZE)
            {
                bytes.fill(0);
            }
        }
        self.incoming.old = (end < pages).then_some(end);
    }

    pub(crate) fn load_memory(&mut self, host: &mut impl Host<G>, gpa: u64, data: &[u8]) {
        if gpa >= ADDRESS {
            return self.load_disk(host, gpa, data.len() as u64, data);
        }
        let Some(bytes) = self.guest.memory_mut(gpa, data.len() as u64) else {
            return self.does_not_fit(host, gpa, data.len() as u64);
        };
        bytes.copy_from_slice(data);
        for (page, content) in (gpa / PAGE_SIZE..).zip(data.chunks(PAGE_SIZE as usize)) {
            self.incoming.digest.set(page, content);
        }
    }

    pub(crate) fn load_zero(&mut self, host: &mut impl Host<G>, gpa: u64, len: u64) {
        if gpa >= ADDRESS {
            return self.load_disk(host, gpa, len, &[]);
        }
        let Some(bytes) = self.guest.memory_mut(gpa, len) else { return self.does_not_fit(host, gpa, len) };
        bytes.fill(0);
        (gpa / PAGE_SIZE..(gpa + len) / PAGE_SIZE).for_each(|page| self.incoming.digest.clear(page));
    }

    fn does_not_fit(&mut self, host: &mut impl Host<G>, gpa: u64, len: u64) {
        self.diverge(host, &format!("the state does not fit: {len} bytes at {gpa:#x} are not guest memory"));
    }

    pub(crate) fn load_machine(&mut self, data: &[u8]) {
        self.incoming.machine.extend_from_slice(data);
    }

    /// All of the state has arrived; what goes to a drive may still be on its way there.
    pub(crate) fn state_loaded(&mut self, host: &mut impl Host<G>, position: Position, digest: u64) {
        self.incoming.loaded = Some((position, digest));
        if host.drive_bytes() > 0 {
            if !self.incoming.has_label {
                self.diverge(host, "the state has no disk on a drive, and this machine's is one");
                return;
            }
            host.end_copy();
        }
        self.join_if_complete(host);
    }

    /// Follows the primary as soon as all of its state is here.
    pub(crate) fn join_if_complete(&mut self, host: &mut impl Host<G>) {
        if !self.incoming.is_loaded() {
            return;
        }
        match self.copy_complete(host) {
            Ok(true) => {}
            Ok(false) => return,
            Err(why) => {
                self.incoming.loaded = None;
                self.diverge(host, &why);
                return;
            }
        }
        let Some((position, digest)) = self.incoming.loaded.take() else { return };
        self.clear_old(u64::MAX);
        let incoming = core::mem::take(&mut self.incoming);
        if let Err(error) = self.guest.load(&incoming.machine) {
            self.diverge(host, &format!("the state received cannot be loaded: {error}"));
            return;
        }
        let (own, at) = (incoming.digest.with_machine(self.guest.hash()), self.guest.position());
        if own != digest || at != position {
            let details = format!(
                "the state received is not the one that was sent: hash {own:016x} at {}, should be {digest:016x} at {}",
                at.0, position.0
            );
            self.diverge(host, &details);
            return;
        }
        if self.node.config().broken(Mutation::DiskNotBegunAgain) {
            while self.guest.next_disk_request().is_some() {}
        }
        self.followed_speed = FollowedSpeed::new(self.guest.rate());
        host.retain();
        self.node.joined(self.now);
        host.observe(Event::StateComplete, self);
    }
}
