//! The block device: a disk of 512-byte sectors with one queue.
//!
//! Requests are taken in the order of the ring. Those of a disk that takes its time are in flight then, known by numbers, until
//! [`Block::complete`] says how they ended; who begins them, and in which order, is [not decided here](pollux_driver::disk). No more
//! than [`WORK`] bytes are moved at once, so that a full ring does not keep the machine from its twin for long: the rest
//! stays in the ring and goes on [a little later](crate::platform::Platform::advance), at a time that follows from the
//! guest's own.
//! See: VIRTIO 1.2, section 5.2.

mod backend;
mod request;
mod requests;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;

use pollux_driver::{DiskEnd, DiskRequest};

use super::queue::{Chain, Queue, QueueError};
use super::{Device, F_EVENT_IDX, F_INDIRECT, F_VERSION_1, Signals};
use crate::memory::GuestMemory;
use crate::platform::access::Outputs;
use crate::state::{State, StateError, Visitor};

pub use backend::{Backend, Place, Storage};
pub use request::{MAX_DATA, MAX_ZEROED, NAME, Operation, Request, SECTOR, Status};
pub use requests::DiskStats;
use requests::Requests;

/// Bytes that are moved at once.
pub const WORK: u64 = 4 << 20;
/// Most buffers of data in one request, and most bytes in one of them: a driver that keeps to both stays below [`MAX_DATA`].
const SEG_MAX: u32 = 126;
const SIZE_MAX: u32 = 8 << 10;
/// A physical block is so many powers of two sectors: a page, which is what is sent to a new backup.
const PHYSICAL_EXPONENT: u8 = 3;

const QUEUE: u16 = 0;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// The block device.
#[derive(Clone)]
pub struct Block<B> {
    requests: Requests<B>,
    /// There may be more in the ring than was worth doing at once.
    unfinished: bool,
    chain: Box<Chain>,
}

impl<B: Backend> Block<B> {
    /// A device before its backend, of which nobody has written anything.
    #[must_use]
    pub fn new(backend: B) -> Self {
        Self { requests: Requests::new(backend), unfinished: false, chain: Box::default() }
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.requests.bytes()
    }

    /// Counters since this machine took up the guest.
    #[must_use]
    pub const fn stats(&self) -> DiskStats {
        self.requests.stats
    }

    /// Whether [`resume`](Self::resume) should be called soon.
    #[must_use]
    pub const fn is_unfinished(&self) -> bool {
        self.unfinished
    }

    /// What is left has to wait until the driver notifies again.
    pub fn give_up(&mut self) {
        self.unfinished = false;
    }

    /// Takes what is in the ring, as much as is worth doing at once.
    ///
    /// # Errors
    /// The queue is malformed.
    pub fn resume(&mut self, queues: &mut [Queue], memory: &mut GuestMemory) -> Result<Signals, QueueError> {
        self.unfinished = false;
        let Some(queue) = queues.first_mut().filter(|queue| queue.enabled()) else { return Ok(0) };
        let mut work = WORK;
        // A read may land in the rings and make them look full for ever.
        let mut most = queue.size();
        while work > 0 && most > 0 {
            let Some(cost) = self.requests.take(queue, memory, &mut self.chain)? else { break };
            (work, most) = (work.saturating_sub(cost), most - 1);
        }
        self.unfinished = work == 0 || most == 0;
        queue.want_notify(memory, true)?;
        queue.publish(memory, QUEUE)
    }

    /// Requests in flight ended.
    ///
    /// # Errors
    /// The queue is malformed. All of them have ended all the same.
    pub fn complete(
        &mut self,
        ends: &[DiskEnd],
        queues: &mut [Queue],
        memory: &mut GuestMemory,
    ) -> Result<Signals, QueueError> {
        let mut queue = queues.first_mut().filter(|queue| queue.enabled());
        let mut result = Ok(());
        for end in ends {
            // Whoever has broken the ring gets no more answers.
            let queue = if result.is_ok() { queue.as_deref_mut() } else { None };
            result = result.and(self.requests.end(end, queue, memory));
        }
        result?;
        // What had no room goes on.
        self.resume(queues, memory)
    }

    /// The next request in flight that the machine's disk does not know of.
    pub fn next_request(&mut self) -> Option<DiskRequest> {
        self.requests.next_request()
    }

    /// What the request in flight writes; nothing of one that writes zeros, or nothing.
    #[must_use]
    pub fn data(&self, id: u64) -> &[u8] {
        self.requests.data(id)
    }

    /// What the request in flight has read came from the machine's drive. The guest sees it when the request ends.
    pub fn read_came(&mut self, id: u64, data: &[u8]) {
        self.requests.read_came(id, data);
    }

    /// Whether there is one.
    #[must_use]
    pub fn has_request(&self) -> bool {
        self.requests.has_request()
    }

    /// The machine's disk knows of no request: another machine's did.
    pub fn ask_again(&mut self) {
        self.requests.ask_again();
    }

    /// Whether a request is in flight.
    #[must_use]
    pub fn is_in_flight(&self, id: u64) -> bool {
        self.requests.is_in_flight(id)
    }
}

impl<B: Backend> Device for Block<B> {
    const ID: u16 = 2;
    const CLASS: [u8; 3] = [0x01, 0x80, 0x00];
    const QUEUES: u16 = 1;
    const CONFIG_LEN: usize = 60;

    fn features(&self) -> u64 {
        let block = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_DISCARD | F_WRITE_ZEROES;
        F_VERSION_1 | F_INDIRECT | F_EVENT_IDX | block
    }

    /// See: 5.2.4, `struct virtio_blk_config`.
    fn config(&self, bytes: &mut [u8]) {
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let zeroed = ((MAX_ZEROED / SECTOR) as u32).to_le_bytes();
        put(0, &(self.bytes() / SECTOR).to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        // Offset of the first aligned block, smallest and best size of a request in blocks.
        put(24, &[PHYSICAL_EXPONENT, 0]);
        put(26, &(1u16 << PHYSICAL_EXPONENT).to_le_bytes());
        // Discards: most sectors, most segments, alignment in sectors.
        put(36, &zeroed);
        put(40, &1u32.to_le_bytes());
        put(44, &(1u32 << PHYSICAL_EXPONENT).to_le_bytes());
        // Writes of zeros: most sectors, most segments, and they may unmap.
        put(48, &zeroed);
        put(52, &1u32.to_le_bytes());
        put(56, &[1]);
    }

    fn start(&mut self, features: u64, queues: &mut [Queue], memory: &mut GuestMemory) -> Result<(), QueueError> {
        self.requests.writes_through = features & F_FLUSH == 0;
        queues.iter_mut().filter(|queue| queue.enabled()).try_for_each(|queue| queue.want_notify(memory, true))
    }

    fn notify(
        &mut self,
        index: u16,
        queues: &mut [Queue],
        memory: &mut GuestMemory,
        _: &mut dyn Outputs,
    ) -> Result<Signals, QueueError> {
        if index == QUEUE { self.resume(queues, memory) } else { Ok(0) }
    }

    fn reset(&mut self) {
        self.requests.forget();
        self.unfinished = false;
    }
}

impl<B: Backend> State for Block<B> {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        self.requests.visit(v)?;
        v.bool(&mut self.unfinished)
    }
}
