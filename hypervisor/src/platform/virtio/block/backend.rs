//! What a disk is made of.

use alloc::vec::Vec;

use super::request::{Operation, Request, SECTOR, Status};
use crate::memory::GuestMemory;

/// Carries out requests.
///
/// One that is done at once is complete at the position of the guest's notification: a function of the guest's state, of which
/// no log needs to know. One that takes its time keeps the request in flight, and the guest sees its end when
/// [`Block::complete`](super::Block::complete) is called, at a position that both machines know.
pub trait Backend {
    /// Most requests that may be in flight; 0 when all are done at once.
    const MAX_IN_FLIGHT: usize;

    /// Size of the disk in sectors.
    fn sectors(&self) -> u64;

    /// Begins `request`, whose range lies on the disk. What is read goes to its `data`. `None`: it is in flight from here on,
    /// known by `id`, which no other one has. It may be told of the same one again, by a successor of the machine
    /// that was told first.
    fn begin(&mut self, id: u64, request: &mut Request, memory: &mut GuestMemory) -> Option<Status>;
}

/// A disk in the machine's memory, behind the guest's RAM: it is part of the guest's state. Done at once, durable as long as
/// one of the twins lives: a flush has nothing to do.
#[derive(Debug, Clone)]
pub struct Ram {
    sectors: u64,
}

impl Ram {
    /// A disk of so many sectors, for which there is room behind RAM.
    #[must_use]
    pub const fn new(sectors: u64) -> Self {
        Self { sectors }
    }

    /// How many bytes a disk of `bytes` takes behind RAM: whole pages.
    #[must_use]
    pub const fn room(bytes: u64) -> u64 {
        bytes.next_multiple_of(crate::memory::PAGE_SIZE)
    }
}

impl Backend for Ram {
    const MAX_IN_FLIGHT: usize = 0;

    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn begin(&mut self, _: u64, request: &mut Request, memory: &mut GuestMemory) -> Option<Status> {
        let Request { operation, start, len, data } = request;
        debug_assert!(*start + *len <= self.sectors * SECTOR);
        match operation {
            Operation::Read => fill(data, memory.disk(*start, *len)),
            Operation::Write => memory.disk_mut(*start, *len).copy_from_slice(data),
            Operation::Zero => memory.clear_disk(*start, *len),
            Operation::Flush | Operation::Identify => {}
        }
        Some(Status::Ok)
    }
}

fn fill(data: &mut Vec<u8>, bytes: &[u8]) {
    data.clear();
    data.extend_from_slice(bytes);
}
