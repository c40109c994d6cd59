//! Requests from the ring to the backend and back.

use alloc::boxed::Box;
use alloc::vec::Vec;

use pollux_driver::{DiskEnd, DiskOperation, DiskRequest, DiskStatus};
use xxhash_rust::xxh64::xxh64;

use super::super::queue::{Chain, Queue, QueueError};
use super::WORK;
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

/// A request that was taken and is not complete.
#[derive(Debug, Clone)]
struct InFlight {
    id: u64,
    /// Who is to be answered: nobody since the device was reset. What was asked is done all the same, in its order.
    chain: Option<Box<Chain>>,
    request: Request,
    /// What the machine's drive has read for it. Not part of the state: the twin reads for itself.
    read: Option<Vec<u8>>,
}

/// The requests of a disk.
#[derive(Clone)]
pub(super) struct Requests<B> {
    backend: B,
    /// By rising numbers.
    in_flight: Vec<InFlight>,
    /// The next one's. No two have the same, whatever the driver does.
    next_id: u64,
    /// The next one that is to be asked of the machine's disk. Not part of the state.
    unasked: u64,
    /// The driver has no flushes: what it writes is durable when it ends. See: 5.2.6.2.
    pub(super) writes_through: bool,
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
        Self { backend, in_flight, next_id: 0, unasked: 0, writes_through: false, written: 0, spare, stats }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.backend.sectors() * SECTOR
    }

    /// Nobody waits for those in flight any more.
    pub(super) fn forget(&mut self) {
        self.in_flight.iter_mut().for_each(|request| request.chain = None);
    }

    /// Whether no more may be in flight.
    fn is_full(&self) -> bool {
        let (most, count) = (self.backend.most_in_flight(), self.in_flight.len());
        // What their ends will cost: all of them may end in one entry.
        let bytes = || self.in_flight.iter().map(|one| one.request.len).sum::<u64>();
        most > 0 && (count >= most || bytes() >= WORK)
    }

    /// Takes the next request from the ring: what it cost, or nothing when there is none that can be taken.
    pub(super) fn take(
        &mut self,
        queue: &mut Queue,
        memory: &mut GuestMemory,
        chain: &mut Chain,
    ) -> Result<Option<u64>, QueueError> {
        if self.is_full() || !queue.pop(memory, chain)? {
            return Ok(None);
        }
        let mut request = match Request::read(chain, memory, self.bytes(), core::mem::take(&mut self.spare))? {
            Ok(request) => request,
            Err(status) => {
                self.answer(chain, None, status, queue, memory)?;
                return Ok(Some(SECTOR));
            }
        };
        self.note(&request);
        let cost = request.cost();
        if self.backend.most_in_flight() == 0 || request.operation == Operation::Identify {
            self.backend.carry_out(&mut request, memory);
            self.answer(chain, Some(&request), Status::Ok, queue, memory)?;
            self.spare = request.data;
        } else {
            let (id, chain) = (self.next_id, Some(Box::new(chain.clone())));
            self.in_flight.push(InFlight { id, chain, request, read: None });
            self.next_id += 1;
        }
        Ok(Some(cost))
    }

    /// The next request in flight that was not asked for yet, as the machine's disk gets to know it.
    pub(super) fn next_request(&mut self) -> Option<DiskRequest> {
        let InFlight { id, request, .. } = self.in_flight.iter().find(|one| one.id >= self.unasked)?;
        self.unasked = id + 1;
        let operation = match request.operation {
            Operation::Read | Operation::Identify => DiskOperation::Read,
            Operation::Write => DiskOperation::Write,
            Operation::Zero => DiskOperation::Zero,
            Operation::Flush => DiskOperation::Flush,
        };
        let durable = self.writes_through && operation.writes();
        Some(DiskRequest { id: *id, operation, start: request.start, len: request.len, durable })
    }

    /// Whether there is one.
    pub(super) fn has_request(&self) -> bool {
        self.in_flight.last().is_some_and(|one| one.id >= self.unasked)
    }

    /// All in flight are to be asked for again.
    pub(super) fn ask_again(&mut self) {
        self.unasked = 0;
        self.in_flight.iter_mut().for_each(|one| one.read = None);
    }

    /// What a request in flight writes.
    pub(super) fn data(&self, id: u64) -> &[u8] {
        let found = self.in_flight.iter().find(|one| one.id == id && one.request.operation == Operation::Write);
        found.map_or(&[], |one| &one.request.data)
    }

    /// What a request in flight has read.
    pub(super) fn read_came(&mut self, id: u64, data: &[u8]) {
        let reads = |one: &&mut InFlight| one.id == id && one.request.operation == Operation::Read;
        if let Some(one) = self.in_flight.iter_mut().find(reads) {
            one.read = Some(data.to_vec());
        }
    }

    pub(super) fn is_in_flight(&self, id: u64) -> bool {
        self.in_flight.iter().any(|one| one.id == id)
    }

    /// Ends a request in flight: carries it out, unless the disk failed it, and answers in `queue`, if there is one.
    pub(super) fn end(
        &mut self,
        end: &DiskEnd,
        queue: Option<&mut Queue>,
        memory: &mut GuestMemory,
    ) -> Result<(), QueueError> {
        let Some(at) = self.in_flight.iter().position(|one| one.id == end.id) else { return Ok(()) };
        let InFlight { chain, mut request, read, .. } = self.in_flight.remove(at);
        let status = match end.status {
            DiskStatus::Done => {
                if let Some(read) = read {
                    request.data = read;
                }
                self.backend.carry_out(&mut request, memory);
                Status::Ok
            }
            DiskStatus::Failed => Status::Failed,
        };
        match (chain, queue) {
            (Some(chain), Some(queue)) => self.answer(&chain, Some(&request), status, queue, memory),
            _ => Ok(()),
        }
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
        v.bool(&mut self.writes_through)?;
        v.u64(&mut self.next_id)?;
        let mut count = self.in_flight.len() as u32;
        v.u32(&mut count)?;
        if count as usize > self.backend.most_in_flight() {
            return Err(StateError::BadValue("the number of disk requests in flight"));
        }
        let empty = || InFlight { id: 0, chain: None, request: Request::empty(), read: None };
        self.in_flight.resize_with(count as usize, empty);
        let mut least = 0;
        for InFlight { id, chain, request, .. } in &mut self.in_flight {
            v.u64(id)?;
            if *id < least || *id >= self.next_id.min(MOST_REQUESTS) {
                return Err(StateError::BadValue("the number of a disk request in flight"));
            }
            least = *id + 1;
            visit_chain(chain, v)?;
            request.visit(v, bytes)?;
        }
        if self.next_id > MOST_REQUESTS { Err(StateError::BadValue("the number of disk requests")) } else { Ok(()) }
    }
}

/// Requests of a guest's life that nobody makes: one each nanosecond for a century.
const MOST_REQUESTS: u64 = 1 << 62;

fn visit_chain(chain: &mut Option<Box<Chain>>, v: &mut dyn Visitor) -> Result<(), StateError> {
    let mut has_chain = chain.is_some();
    v.bool(&mut has_chain)?;
    if !has_chain {
        *chain = None;
        return Ok(());
    }
    let chain = chain.get_or_insert_default();
    chain.visit(v)?;
    if chain.writable_len() == 0 {
        return Err(StateError::BadValue("a disk request without room for its status"));
    }
    Ok(())
}
