//! The network device. What it sends are whole frames: checksums and large segments that the driver leaves to it are
//! completed and cut here, before anybody sees them.
//! See: VIRTIO 1.2, section 5.1.

mod offload;
#[cfg(test)]
mod tests;
mod transmit;

use offload::HEADER;

use super::queue::{Buffer, Chain, MAX_SIZE, Queue, QueueError};
use super::{Device, F_EVENT_IDX, F_INDIRECT, F_VERSION_1, Signals};
use crate::memory::{Gpa, GuestMemory};
use crate::platform::access::Outputs;
use crate::state::{State, StateError, Visitor};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Longest frame, without FCS: an MTU of 1500 bytes and one VLAN tag, which is what drivers give their buffers room for.
pub const MAX_FRAME: usize = 1518;
/// Shortest frame: an Ethernet header.
pub const MIN_FRAME: usize = 14;
/// Frames that wait for receive buffers; more are dropped.
pub const MAX_BACKLOG: usize = 256;
/// Most frames that come of one notification: one of each buffer in the queue, and those that are cut from large segments.
/// The largest segment makes 1366 of the least payload with which Linux' TCP fills a frame, 48 bytes.
pub const BURST: usize = 2048;
/// Most that are cut; a segment for which there is no room then is lost, as in any queue that is full.
const MOST_CUT: usize = BURST - MAX_SIZE as usize;

const RX: u16 = 0;
const TX: u16 = 1;
/// Index of the receive queue.
const RX_INDEX: usize = RX as usize;

const F_MAC: u64 = 1 << 5;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;

/// What happened to frames. Not part of the state: the guest cannot see it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetStats {
    /// Frames handed to the guest.
    pub received: u64,
    /// Frames dropped because the driver was not ready.
    pub not_ready: u64,
    /// Frames dropped because the backlog was full.
    pub overflow: u64,
    /// Frames dropped because of their length, or because the guest's buffers were too small.
    pub bad_size: u64,
    /// Frames sent by the guest.
    pub sent: u64,
    /// Packets of the guest refused: bad length, or a header that asks for what was not agreed on or cannot be done.
    pub bad_sent: u64,
}

/// The network device.
#[derive(Clone)]
pub struct Net {
    mac: [u8; 6],
    started: bool,
    /// Those negotiated.
    features: u64,
    /// The driver told of frames.
    told: bool,
    /// It need not, since the queue is watched.
    watched: bool,
    backlog: VecDeque<Vec<u8>>,
    chain: Box<Chain>,
    frame: Box<[u8; MAX_FRAME]>,
    stats: NetStats,
}

enum Delivery {
    Done,
    /// The guest's buffers are too small for the frame. They were returned empty if the frame had to fit into one.
    TooSmall,
    NoBuffers,
}

impl Net {
    /// A device with the given MAC address.
    #[must_use]
    pub fn new(mac: [u8; 6]) -> Self {
        Self {
            mac,
            started: false,
            features: 0,
            told: false,
            watched: false,
            backlog: VecDeque::new(),
            chain: Box::default(),
            frame: Box::new([0; MAX_FRAME]),
            stats: NetStats::default(),
        }
    }

    /// The guest's MAC address.
    #[must_use]
    pub const fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Counters since this machine took up the guest.
    #[must_use]
    pub const fn stats(&self) -> NetStats {
        self.stats
    }

    /// Frames that wait for buffers.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// A frame arrives while the driver is not ready: it is dropped.
    pub fn refuse(&mut self) {
        self.stats.not_ready += 1;
    }

    /// A frame arrives for the guest.
    ///
    /// # Errors
    /// The receive queue is malformed.
    pub fn receive(
        &mut self,
        frame: &[u8],
        queues: &mut [Queue],
        memory: &mut GuestMemory,
    ) -> Result<Signals, QueueError> {
        if frame.len() < MIN_FRAME || frame.len() > MAX_FRAME {
            self.stats.bad_size += 1;
            return Ok(0);
        }
        let queue = &mut queues[RX_INDEX];
        if !self.started || !queue.enabled() {
            self.stats.not_ready += 1;
            return Ok(0);
        }
        if !self.backlog.is_empty() {
            self.keep(frame);
            return Ok(0);
        }
        match self.deliver(frame, queue, memory)? {
            Delivery::NoBuffers => {
                self.keep(frame);
                queue.want_notify(memory, true)?;
                Ok(0)
            }
            Delivery::Done | Delivery::TooSmall => {
                queue.want_notify(memory, false)?;
                let signals = queue.publish(memory, RX)?;
                // One interruption for both.
                Ok(signals | Self::pay(queues, memory)?)
            }
        }
    }

    /// Writes half of a frame that [`receive`](Self::receive) will get, as DMA does that has not ended. Returns whether it did:
    /// the driver has a buffer for all of it.
    ///
    /// # Errors
    /// The receive queue is malformed.
    pub fn receive_half(
        &mut self,
        frame: &[u8],
        queues: &mut [Queue],
        memory: &mut GuestMemory,
    ) -> Result<bool, QueueError> {
        let queue = &mut queues[RX_INDEX];
        let expected = (MIN_FRAME..=MAX_FRAME).contains(&frame.len()) && self.started && queue.enabled();
        if !expected || !self.backlog.is_empty() || !queue.pop(memory, &mut self.chain)? {
            return Ok(false);
        }
        queue.unpop(1);
        let fits = capacity(&self.chain) >= (HEADER + frame.len()) as u64;
        if fits {
            scatter(memory, self.chain.writable(), 1, &frame[..frame.len() / 2], 0)?;
        }
        Ok(fits)
    }

    fn keep(&mut self, frame: &[u8]) {
        if self.backlog.len() < MAX_BACKLOG {
            self.backlog.push_back(frame.to_vec());
        } else {
            self.stats.overflow += 1;
        }
    }

    /// New receive buffers: hand out what waits.
    fn refill(&mut self, queue: &mut Queue, memory: &mut GuestMemory) -> Result<Signals, QueueError> {
        while let Some(frame) = self.backlog.pop_front() {
            if let Delivery::NoBuffers = self.deliver(&frame, queue, memory)? {
                self.backlog.push_front(frame);
                break;
            }
        }
        queue.want_notify(memory, !self.backlog.is_empty())?;
        queue.publish(memory, RX)
    }

    /// Writes one frame into as many chains as it needs (one, without mergeable buffers).
    fn deliver(&mut self, frame: &[u8], queue: &mut Queue, memory: &mut GuestMemory) -> Result<Delivery, QueueError> {
        let need = HEADER + frame.len();
        // First make sure that there is room, so that a frame is delivered whole or not at all.
        let (mut room, mut count, mut descriptors) = (0u64, 0u16, 0u16);
        while room < need as u64 && (count == 0 || self.features & F_MRG_RXBUF != 0) {
            if !queue.pop(memory, &mut self.chain)? {
                queue.unpop(count);
                // The driver cannot add to what fills its table: waiting would be for ever.
                if descriptors >= queue.size() {
                    self.stats.bad_size += 1;
                    return Ok(Delivery::TooSmall);
                }
                return Ok(Delivery::NoBuffers);
            }
            count += 1;
            descriptors = descriptors.saturating_add(self.chain.descriptors());
            room += capacity(&self.chain);
            // The common case: the one chain holds it all and is still at hand.
            if count == 1 && room >= need as u64 {
                scatter(memory, self.chain.writable(), 1, frame, 0)?;
                queue.push_used(memory, &self.chain, need as u32)?;
                self.stats.received += 1;
                return Ok(Delivery::Done);
            }
        }
        queue.unpop(count);
        let fits = room >= need as u64;
        let mut done = 0;
        for _ in 0..count {
            // A buffer may lie over the rings, so that writing the one before changed what comes next.
            if !queue.pop(memory, &mut self.chain)? {
                break;
            }
            let written = if fits { scatter(memory, self.chain.writable(), count, frame, done)? } else { 0 };
            done += written;
            queue.push_used(memory, &self.chain, written as u32)?;
        }
        if fits {
            self.stats.received += 1;
            Ok(Delivery::Done)
        } else {
            self.stats.bad_size += 1;
            Ok(Delivery::TooSmall)
        }
    }
}

fn capacity(chain: &Chain) -> u64 {
    chain.writable().iter().map(|buffer| u64::from(buffer.len)).sum()
}

/// Writes header and frame, from byte `done` of both together, into `buffers`. Returns the number of bytes written.
fn scatter(
    memory: &mut GuestMemory,
    buffers: &[Buffer],
    chains: u16,
    frame: &[u8],
    done: usize,
) -> Result<usize, QueueError> {
    let mut header = [0; HEADER];
    header[10..].copy_from_slice(&chains.to_le_bytes());
    let mut position = done;
    for buffer in buffers {
        let (mut gpa, mut room) = (buffer.gpa, buffer.len as usize);
        for (part, start) in [(&header[..], 0), (frame, HEADER)] {
            let rest = position.checked_sub(start).and_then(|skip| part.get(skip..)).unwrap_or(&[]);
            let rest = &rest[..rest.len().min(room)];
            memory.write(gpa, rest)?;
            position += rest.len();
            room -= rest.len();
            // Cannot wrap: the write above proved that this much is in memory.
            gpa = Gpa(gpa.0 + rest.len() as u64);
        }
    }
    Ok(position - done)
}

impl Device for Net {
    const ID: u16 = 1;
    const CLASS: [u8; 3] = [0x02, 0x00, 0x00];
    const QUEUES: u16 = 2;
    const CONFIG_LEN: usize = 8;

    fn features(&self) -> u64 {
        F_VERSION_1 | F_INDIRECT | F_EVENT_IDX | F_MAC | F_MRG_RXBUF | F_STATUS | offload::FEATURES
    }

    fn config(&self, bytes: &mut [u8]) {
        bytes[..6].copy_from_slice(&self.mac);
        // Link up.
        bytes[6..8].copy_from_slice(&[1, 0]);
    }

    fn start(&mut self, features: u64, queues: &mut [Queue], memory: &mut GuestMemory) -> Result<(), QueueError> {
        self.started = true;
        self.features = features;
        for (index, queue) in queues.iter_mut().enumerate().filter(|(_, queue)| queue.enabled()) {
            queue.want_notify(memory, index != RX_INDEX)?;
        }
        Ok(())
    }

    fn notify(
        &mut self,
        index: u16,
        queues: &mut [Queue],
        memory: &mut GuestMemory,
        out: &mut dyn Outputs,
    ) -> Result<Signals, QueueError> {
        match queues.get_mut(usize::from(index)) {
            Some(queue) if index == RX && queue.enabled() => self.refill(queue, memory),
            Some(queue) if index == TX && queue.enabled() => {
                self.told = true;
                self.transmit(queue, memory, out)?;
                queue.publish(memory, TX)
            }
            _ => Ok(0),
        }
    }

    fn reset(&mut self) {
        self.started = false;
        self.features = 0;
        (self.told, self.watched) = (false, false);
        self.backlog.clear();
    }
}

impl State for Net {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.bytes(&mut self.mac)?;
        v.bool(&mut self.started)?;
        v.u64(&mut self.features)?;
        v.bool(&mut self.told)?;
        v.bool(&mut self.watched)?;
        let mut count = self.backlog.len() as u32;
        v.u32(&mut count)?;
        if count as usize > MAX_BACKLOG {
            return Err(StateError::BadValue("the number of waiting frames"));
        }
        self.backlog.resize(count as usize, Vec::new());
        self.backlog.iter_mut().try_for_each(|frame| v.blob(frame, MAX_FRAME))
    }
}
