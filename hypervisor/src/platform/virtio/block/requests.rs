//! Requests from the ring to the backend and back.

use alloc::boxed::Box;
use alloc::vec::Vec;

use xxhash_rust::xxh64::xxh64;

use super::super::queue::{Chain, Queue, QueueError};
use super::backend::Backend;
use super::request::{Operation, Request, SECTOR, Status};
use crate::memory::GuestMemory;
use crate::state::{State, StateError, Visitor};

/// What was done on this machine. Not part of the state: the guest cannot see it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Reads, and how many bytes.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards and writes of zeros.
    pub zeroed: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests of a kind that there is not.
    pub unsupported: u64,
}

/// A request that was begun and is not complete.
#[derive(Debug, Clone)]
struct InFlight {
    id: u64,
    chain: Box<Chain>,
    request: Request,
}

/// The end of a request in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Which one.
    pub id: u64,
    /// How it ended.
    pub status: Status,
    /// What was read, for a read that went well.
    pub data: Vec<u8>,
}

/// The requests of a disk.
#[derive(Clone)]
pub(super) struct Requests<B> {
    backend: B,
    in_flight: Vec<InFlight>,
    /// The next one's. No two have the same, whatever the driver does.
    next_id: u64,
    /// A hash of everything that was ever written, in order: it tells disks apart at once, while their contents are compared
    /// in rotation.
    written: u64,
    /// A buffer that is used again.
    spare: Vec<u8>,
    pub(super) stats: DiskStats,
}

impl<B: Backend> Requests<B> {
    pub(super) fn new(backend: B) -> Self {
        let (in_flight, spare, stats) = (Vec::new(), Vec::new(), DiskStats::default());
        Self { backend, in_flight, next_id: 0, written: 0, spare, stats }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.backend.sectors() * SECTOR
    }

    /// Forgets those in flight: nobody waits for them any more.
    pub(super) fn forget(&mut self) {
        self.in_flight.clear();
    }

    /// Begins the next request in the ring: what it cost, or nothing when there is none that can be begun.
    pub(super) fn take(
        &mut self,
        queue: &mut Queue,
        memory: &mut GuestMemory,
        chain: &mut Chain,
    ) -> Result<Option<u64>, QueueError> {
        let is_full = B::MAX_IN_FLIGHT > 0 && self.in_flight.len() >= B::MAX_IN_FLIGHT;
        if is_full || !queue.pop(memory, chain)? {
            return Ok(None);
        }
        let mut request = match Request::read(chain, memory, self.bytes(), core::mem::take(&mut self.spare))? {
            Ok(request) => request,
            Err(status) => {
                self.answer(chain, None, status, queue, memory)?;
                return Ok(Some(SECTOR));
            }
        };
        if self.in_flight.iter().any(|other| other.request.conflicts(&request)) {
            queue.unpop(1);
            return Ok(None);
        }
        self.note(&request);
        let (cost, id) = (request.cost(), self.next_id);
        self.next_id = id.wrapping_add(1);
        match self.backend.begin(id, &mut request, memory) {
            Some(status) => {
                self.answer(chain, Some(&request), status, queue, memory)?;
                self.spare = request.data;
            }
            None => self.in_flight.push(InFlight { id, chain: Box::new(chain.clone()), request }),
        }
        Ok(Some(cost))
    }

    pub(super) fn complete(
        &mut self,
        done: &Completion,
        queue: &mut Queue,
        memory: &mut GuestMemory,
    ) -> Result<(), QueueError> {
        let Some(at) = self.in_flight.iter().position(|other| other.id == done.id) else { return Ok(()) };
        let InFlight { chain, mut request, .. } = self.in_flight.remove(at);
        if request.operation == Operation::Read {
            request.data.clone_from(&done.data);
        }
        self.answer(&chain, Some(&request), done.status, queue, memory)
    }

    pub(super) fn begin_again(&mut self, memory: &mut GuestMemory) -> Vec<Completion> {
        let mut done = Vec::new();
        for InFlight { id, request, .. } in &mut self.in_flight {
            if let Some(status) = self.backend.begin(*id, request, memory) {
                done.push(Completion { id: *id, status, data: request.data.clone() });
            }
        }
        done
    }

    /// Counts a request that begins, and what it writes.
    fn note(&mut self, request: &Request) {
        let Request { operation, start, len, ref data } = *request;
        let stats = &mut self.stats;
        match operation {
            Operation::Read => (stats.reads, stats.read_bytes) = (stats.reads + 1, stats.read_bytes + len),
            Operation::Write => (stats.writes, stats.written_bytes) = (stats.writes + 1, stats.written_bytes + len),
            Operation::Flush => stats.flushes += 1,
            Operation::Zero => stats.zeroed += 1,
            Operation::Identify => {}
        }
        if let Operation::Write | Operation::Zero = operation {
            let place = [start.to_le_bytes(), len.to_le_bytes()];
            self.written = xxh64(data, xxh64(place.as_flattened(), self.written));
        }
    }

    /// Answers the driver: data, if the request went well, then the status as the last byte.
    fn answer(
        &mut self,
        chain: &Chain,
        request: Option<&Request>,
        status: Status,
        queue: &mut Queue,
        memory: &mut GuestMemory,
    ) -> Result<(), QueueError> {
        match status {
            Status::Ok => {}
            Status::Failed => self.stats.failed += 1,
            Status::Unsupported => self.stats.unsupported += 1,
        }
        let room = chain.writable_len();
        let told = |request: &&Request| matches!(request.operation, Operation::Read | Operation::Identify);
        let data = request.filter(told).filter(|_| status == Status::Ok).map_or(&[][..], |request| &request.data);
        chain.copy_to(memory, 0, data)?;
        chain.copy_to(memory, room - 1, &[status as u8])?;
        // The driver is told how many bytes from the first on were written: none that were not.
        let written = data.len() as u64 + u64::from(data.len() as u64 + 1 == room);
        queue.push_used(memory, chain, u32::try_from(written).unwrap_or(u32::MAX))
    }
}

impl<B: Backend> State for Requests<B> {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        let bytes = self.bytes();
        let mut theirs = bytes;
        v.u64(&mut theirs)?;
        if theirs != bytes {
            return Err(StateError::BadValue("the size of the disk"));
        }
        v.u64(&mut self.written)?;
        v.u64(&mut self.next_id)?;
        let mut count = self.in_flight.len() as u32;
        v.u32(&mut count)?;
        if count as usize > B::MAX_IN_FLIGHT {
            return Err(StateError::BadValue("the number of disk requests in flight"));
        }
        let empty = || InFlight { id: 0, chain: Box::default(), request: Request::empty() };
        self.in_flight.resize_with(count as usize, empty);
        self.in_flight.iter_mut().try_for_each(|InFlight { id, chain, request }| {
            v.u64(id)?;
            chain.visit(v)?;
            if chain.writable_len() == 0 {
                return Err(StateError::BadValue("a disk request without room for its status"));
            }
            request.visit(v, bytes)
        })
    }
}
