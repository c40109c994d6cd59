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

/// A disk in the machine's memory, behind the guest's RAM: it is part of the guest's state. Durable as long as one of the
/// twins lives: a flush has nothing to do.
#[derive(Debug, Clone)]
pub struct Ram {
    sectors: u64,
    most_in_flight: usize,
}

impl Ram {
    /// Requests in flight to a disk that takes its time.
    pub const IN_FLIGHT: usize = 32;

    /// A disk of so many sectors, for which there is room behind RAM; `takes_time`: somebody else says when a request ends.
    #[must_use]
    pub const fn new(sectors: u64, takes_time: bool) -> Self {
        Self { sectors, most_in_flight: if takes_time { Self::IN_FLIGHT } else { 0 } }
    }

    /// How many bytes a disk of `bytes` takes behind RAM: whole pages.
    #[must_use]
    pub const fn room(bytes: u64) -> u64 {
        bytes.next_multiple_of(crate::memory::PAGE_SIZE)
    }
}

impl Backend for Ram {
    fn most_in_flight(&self) -> usize {
        self.most_in_flight
    }

    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn carry_out(&mut self, request: &mut Request, memory: &mut GuestMemory) {
        let Request { operation, start, len, data } = request;
        debug_assert!(*start + *len <= self.sectors * SECTOR);
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
