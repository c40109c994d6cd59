//! What a disk is made of.

use alloc::vec::Vec;

use super::request::{Operation, Request, SECTOR};
use crate::memory::GuestMemory;

/// Carries out requests.
///
/// Those that are done at once are complete at the position of the guest's notification: a function of the guest's state, of
/// which no log needs to know. Those that take their time are in flight, and are carried out when
/// [`Block::complete`](super::Block::complete) is called, at a position that both machines know.
pub trait Backend {
    /// Most requests that may be in flight; 0 when all are done at once.
    fn most_in_flight(&self) -> usize;

    /// Size of the disk in sectors.
    fn sectors(&self) -> u64;

    /// Carries out `request`, whose range lies on the disk. What is read goes to its `data`.
    fn carry_out(&mut self, request: &mut Request, memory: &mut GuestMemory);
}

/// Where a disk's bytes lie, and who says when a request ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the machine's memory, behind the guest's RAM: part of the guest's state. Durable as long as one of the twins lives:
    /// a flush has nothing to do. Requests are done at once.
    Memory,
    /// There, too, and somebody else says when a request ends.
    TimedMemory,
    /// On a drive of the machine's own, which does all: requests are done when they end, and what they read was
    /// [handed in](super::Block::read_came) before.
    Drive,
}

/// A disk.
#[derive(Debug, Clone)]
pub struct Storage {
    sectors: u64,
    place: Place,
}

impl Storage {
    /// Requests in flight to a disk that takes its time.
    pub const IN_FLIGHT: usize = 32;

    /// A disk of so many sectors, for which there is room where it lies.
    #[must_use]
    pub const fn new(sectors: u64, place: Place) -> Self {
        Self { sectors, place }
    }

    /// How many bytes a disk of `bytes` takes behind RAM: whole pages.
    #[must_use]
    pub const fn room(bytes: u64) -> u64 {
        bytes.next_multiple_of(crate::memory::PAGE_SIZE)
    }
}

impl Backend for Storage {
    fn most_in_flight(&self) -> usize {
        if self.place == Place::Memory { 0 } else { Self::IN_FLIGHT }
    }

    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn carry_out(&mut self, request: &mut Request, memory: &mut GuestMemory) {
        let Request { operation, start, len, data } = request;
        debug_assert!(*start + *len <= self.sectors * SECTOR);
        if self.place == Place::Drive {
            let has_read = *operation != Operation::Read || data.len() as u64 == *len;
            assert!(has_read, "a read ends before its data has come");
            return;
        }
        match operation {
            Operation::Read => fill(data, memory.disk(*start, *len)),
            Operation::Write => memory.disk_mut(*start, *len).copy_from_slice(data),
            Operation::Zero => memory.clear_disk(*start, *len),
            Operation::Flush | Operation::Identify => {}
        }
    }
}

fn fill(data: &mut Vec<u8>, bytes: &[u8]) {
    data.clear();
    data.extend_from_slice(bytes);
}
