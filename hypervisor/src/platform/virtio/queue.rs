//! The device's side of a split virtqueue.
//!
//! Whatever the rings hold, every call ends: a chain has at most as many descriptors as the queue, and no more chains
//! are taken than the queue has entries. Every address is checked when it is used.
//! See: VIRTIO 1.2, section 2.7.

use super::Signals;
use crate::memory::{Gpa, GuestMemory, OutsideMemory};
use crate::state::{State, StateError, Visitor};
use core::fmt;
use heapless::Vec;

/// Largest size of a queue in entries.
pub const MAX_SIZE: u16 = 256;

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// Why a queue is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueError {
    /// A ring, table or buffer is not in guest memory.
    Outside(OutsideMemory),
    /// The driver claims more available buffers than the queue has entries.
    TooManyAvailable,
    /// A descriptor index is not below the table's size.
    BadIndex(u16),
    /// A chain is longer than the queue, or loops.
    ChainTooLong,
    /// An indirect descriptor that was not negotiated, is nested, or has a bad length.
    BadIndirect,
    /// A readable descriptor after a writable one.
    BadOrder,
    /// A chain that is too short to be a request and to be answered.
    NoRequest,
}

impl From<OutsideMemory> for QueueError {
    fn from(error: OutsideMemory) -> Self {
        Self::Outside(error)
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside(error) => error.fmt(f),
            Self::TooManyAvailable => f.write_str("more buffers available than the queue has entries"),
            Self::BadIndex(index) => write!(f, "descriptor index {index} is outside its table"),
            Self::ChainTooLong => f.write_str("a descriptor chain is longer than the queue"),
            Self::BadIndirect => f.write_str("an indirect descriptor is malformed or was not negotiated"),
            Self::BadOrder => f.write_str("a readable descriptor follows a writable one"),
            Self::NoRequest => f.write_str("a descriptor chain has no room for a request's header or status"),
        }
    }
}

/// One buffer of a chain, as the driver claims it; not yet known to be in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// First byte.
    pub gpa: Gpa,
    /// Length in bytes.
    pub len: u32,
}

/// The buffers of one request: scratch space that is reused from request to request.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    head: u16,
    /// Descriptors of the queue's own table.
    descriptors: u16,
    buffers: Vec<Buffer, { MAX_SIZE as usize }>,
    readable: usize,
}

impl Chain {
    /// The buffers that the device may read.
    #[must_use]
    pub fn readable(&self) -> &[Buffer] {
        &self.buffers[..self.readable]
    }

    /// The buffers that the device may write.
    #[must_use]
    pub fn writable(&self) -> &[Buffer] {
        &self.buffers[self.readable..]
    }

    /// The descriptor that it begins with, by which the driver knows it.
    #[must_use]
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// How many descriptors of the queue's table it takes, of which there are as many as the queue has entries; 0 for one
    /// that was loaded.
    #[must_use]
    pub const fn descriptors(&self) -> u16 {
        self.descriptors
    }

    /// How many bytes the device may read.
    #[must_use]
    pub fn readable_len(&self) -> u64 {
        total(self.readable())
    }

    /// How many bytes the device may write.
    #[must_use]
    pub fn writable_len(&self) -> u64 {
        total(self.writable())
    }

    /// Copies what lies at `skip` among the readable bytes, as far as there is any.
    ///
    /// # Errors
    /// A buffer is not in guest memory.
    pub fn copy_from(&self, memory: &GuestMemory, skip: u64, bytes: &mut [u8]) -> Result<(), QueueError> {
        let mut done = 0;
        for (gpa, len) in pieces(self.readable(), skip, bytes.len() as u64) {
            bytes[done..done + len as usize].copy_from_slice(memory.slice(gpa?, len)?);
            done += len as usize;
        }
        Ok(())
    }

    /// Copies `bytes` to where `skip` is among the writable bytes, as far as there is room.
    ///
    /// # Errors
    /// A buffer is not in guest memory.
    pub fn copy_to(&self, memory: &mut GuestMemory, skip: u64, bytes: &[u8]) -> Result<(), QueueError> {
        let mut done = 0;
        for (gpa, len) in pieces(self.writable(), skip, bytes.len() as u64) {
            memory.write(gpa?, &bytes[done..done + len as usize])?;
            done += len as usize;
        }
        Ok(())
    }
}

fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.len)).sum()
}

/// Where the bytes `skip .. skip + len` of `buffers` lie, none of the pieces empty.
fn pieces(buffers: &[Buffer], skip: u64, len: u64) -> impl Iterator<Item = (Result<Gpa, QueueError>, u64)> {
    let mut position = 0;
    buffers.iter().filter_map(move |buffer| {
        let start = position;
        position += u64::from(buffer.len);
        let (from, to) = (skip.max(start), (skip + len).min(position));
        (from < to).then(|| (at(buffer.gpa.0, from - start), to - from))
    })
}

impl State for Chain {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        let (mut readable, mut count) = (self.readable as u32, self.buffers.len() as u32);
        v.u16(&mut self.head)?;
        v.u32(&mut readable)?;
        v.u32(&mut count)?;
        if count > u32::from(MAX_SIZE) || readable > count {
            return Err(StateError::BadValue("the length of a descriptor chain"));
        }
        self.readable = readable as usize;
        // As many as were checked to fit.
        let _ = self.buffers.resize(count as usize, Buffer { gpa: Gpa(0), len: 0 });
        self.buffers.iter_mut().try_for_each(|buffer| {
            v.u64(&mut buffer.gpa.0)?;
            v.u32(&mut buffer.len)
        })
    }
}

/// One split virtqueue.
#[derive(Debug, Clone)]
pub struct Queue {
    size: u16,
    enabled: bool,
    desc: u64,
    driver: u64,
    device: u64,
    event_idx: bool,
    indirect: bool,
    next_avail: u16,
    next_used: u16,
    /// The used index when interrupts were last considered.
    signalled: u16,
}

impl Default for Queue {
    fn default() -> Self {
        Self::new()
    }
}

impl Queue {
    /// A disabled queue of the largest size.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            size: MAX_SIZE,
            enabled: false,
            desc: 0,
            driver: 0,
            device: 0,
            event_idx: false,
            indirect: false,
            next_avail: 0,
            next_used: 0,
            signalled: 0,
        }
    }

    /// Size in entries.
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Sets the size; ignored when it is no power of two from 1 to [`MAX_SIZE`].
    pub(super) fn set_size(&mut self, size: u16) {
        if size.is_power_of_two() && size <= MAX_SIZE {
            self.size = size;
        }
    }

    /// Whether the driver enabled the queue.
    #[must_use]
    pub const fn enabled(&self) -> bool {
        self.enabled
    }

    pub(super) fn enable(&mut self, features: u64) {
        self.enabled = true;
        self.event_idx = features & super::F_EVENT_IDX != 0;
        self.indirect = features & super::F_INDIRECT != 0;
    }

    /// Addresses of descriptor table, driver area and device area, for the transport.
    pub(super) const fn addresses(&self) -> [u64; 3] {
        [self.desc, self.driver, self.device]
    }

    pub(super) fn address_mut(&mut self, index: usize) -> &mut u64 {
        match index {
            0 => &mut self.desc,
            1 => &mut self.driver,
            _ => &mut self.device,
        }
    }

    /// Takes the next available chain into `chain`; `false` when there is none.
    ///
    /// # Errors
    /// The rings or the chain are malformed.
    pub fn pop(&mut self, memory: &GuestMemory, chain: &mut Chain) -> Result<bool, QueueError> {
        let available = read_u16(memory, self.driver, 2)?;
        let waiting = available.wrapping_sub(self.next_avail);
        if waiting == 0 {
            return Ok(false);
        }
        if waiting > self.size {
            return Err(QueueError::TooManyAvailable);
        }
        let slot = u64::from(self.next_avail & (self.size - 1));
        chain.head = read_u16(memory, self.driver, 4 + 2 * slot)?;
        self.walk(memory, chain)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(true)
    }

    /// Whether the driver has made a chain available that was not taken.
    ///
    /// # Errors
    /// The ring is not in memory.
    pub fn has_available(&self, memory: &GuestMemory) -> Result<bool, QueueError> {
        Ok(read_u16(memory, self.driver, 2)? != self.next_avail)
    }

    /// Gives back the last `count` chains popped, so that they are popped again.
    pub fn unpop(&mut self, count: u16) {
        self.next_avail = self.next_avail.wrapping_sub(count);
    }

    fn walk(&self, memory: &GuestMemory, chain: &mut Chain) -> Result<(), QueueError> {
        chain.buffers.clear();
        chain.readable = 0;
        chain.descriptors = 0;
        let (mut table, mut entries, mut nested) = (self.desc, self.size, false);
        let mut index = chain.head;
        loop {
            if index >= entries {
                return Err(QueueError::BadIndex(index));
            }
            chain.descriptors = chain.descriptors.saturating_add(u16::from(!nested));
            let raw = memory.read::<16>(at(table, 16 * u64::from(index))?)?;
            let gpa = u64::from_le_bytes([raw[0], raw[1], raw[2], raw[3], raw[4], raw[5], raw[6], raw[7]]);
            let len = u32::from_le_bytes([raw[8], raw[9], raw[10], raw[11]]);
            let flags = u16::from_le_bytes([raw[12], raw[13]]);
            let next = u16::from_le_bytes([raw[14], raw[15]]);
            if flags & DESC_INDIRECT != 0 {
                // The table must end the chain (2.7.5.3.1), and be a whole number of descriptors.
                let count = u16::try_from(len / 16).map_err(|_| QueueError::BadIndirect)?;
                if !self.indirect || nested || flags & DESC_NEXT != 0 || len % 16 != 0 || count == 0 {
                    return Err(QueueError::BadIndirect);
                }
                (table, entries, nested, index) = (gpa, count, true, 0);
                continue;
            }
            if chain.buffers.len() >= usize::from(self.size) {
                return Err(QueueError::ChainTooLong);
            }
            if flags & DESC_WRITE == 0 {
                if chain.readable != chain.buffers.len() {
                    return Err(QueueError::BadOrder);
                }
                chain.readable += 1;
            }
            chain.buffers.push(Buffer { gpa: Gpa(gpa), len }).map_err(|_| QueueError::ChainTooLong)?;
            if flags & DESC_NEXT == 0 {
                return Ok(());
            }
            index = next;
        }
    }

    /// Returns `chain` to the driver with `written` bytes in it. It becomes visible with [`publish`](Self::publish).
    ///
    /// # Errors
    /// The used ring is not in memory.
    pub fn push_used(&mut self, memory: &mut GuestMemory, chain: &Chain, written: u32) -> Result<(), QueueError> {
        let slot = u64::from(self.next_used & (self.size - 1));
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(chain.head).to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        memory.write(at(self.device, 4 + 8 * slot)?, &element)?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    /// Shows the used chains to the driver, whom [`publish`](Self::publish) is to interrupt later, if it still wants that.
    ///
    /// # Errors
    /// The used ring is not in memory.
    pub fn show(&mut self, memory: &mut GuestMemory) -> Result<(), QueueError> {
        write_u16(memory, self.device, 2, self.next_used)
    }

    /// Whether chains were shown of which no interrupt was considered.
    #[must_use]
    pub const fn owes_interrupt(&self) -> bool {
        self.signalled != self.next_used
    }

    /// Shows the used chains to the driver. Returns the bit of queue `index` when the driver wants an interrupt.
    ///
    /// # Errors
    /// The rings are not in memory.
    pub fn publish(&mut self, memory: &mut GuestMemory, index: u16) -> Result<Signals, QueueError> {
        let (old, new) = (self.signalled, self.next_used);
        if old == new {
            return Ok(0);
        }
        write_u16(memory, self.device, 2, new)?;
        self.signalled = new;
        let wanted = if self.event_idx {
            // See: 2.7.10, vring_need_event.
            let event = read_u16(memory, self.driver, 4 + 2 * u64::from(self.size))?;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            read_u16(memory, self.driver, 0)? & AVAIL_NO_INTERRUPT == 0
        };
        Ok(if wanted { 1 << index } else { 0 })
    }

    /// Asks the driver to notify about the next buffer it makes available, or not to.
    ///
    /// # Errors
    /// The used ring is not in memory.
    pub fn want_notify(&mut self, memory: &mut GuestMemory, wanted: bool) -> Result<(), QueueError> {
        if self.event_idx {
            // What the driver has made available it does not tell of again, whether it was taken or did not suffice. It can
            // make at most `size` buffers available before we take one: that index is out of reach.
            let event = match wanted {
                true => read_u16(memory, self.driver, 2)?,
                false => self.next_avail.wrapping_add(self.size),
            };
            write_u16(memory, self.device, 4 + 8 * u64::from(self.size), event)
        } else {
            write_u16(memory, self.device, 0, if wanted { 0 } else { USED_NO_NOTIFY })
        }
    }
}

fn at(base: u64, offset: u64) -> Result<Gpa, QueueError> {
    Gpa(base).checked_add(offset).ok_or(QueueError::Outside(OutsideMemory { gpa: Gpa(base), len: offset }))
}

fn read_u16(memory: &GuestMemory, base: u64, offset: u64) -> Result<u16, QueueError> {
    Ok(u16::from_le_bytes(memory.read(at(base, offset)?)?))
}

fn write_u16(memory: &mut GuestMemory, base: u64, offset: u64, value: u16) -> Result<(), QueueError> {
    Ok(memory.write(at(base, offset)?, &value.to_le_bytes())?)
}

impl State for Queue {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.u16(&mut self.size)?;
        v.bool(&mut self.enabled)?;
        v.u64(&mut self.desc)?;
        v.u64(&mut self.driver)?;
        v.u64(&mut self.device)?;
        v.bool(&mut self.event_idx)?;
        v.bool(&mut self.indirect)?;
        v.u16(&mut self.next_avail)?;
        v.u16(&mut self.next_used)?;
        v.u16(&mut self.signalled)?;
        if self.size.is_power_of_two() && self.size <= MAX_SIZE {
            Ok(())
        } else {
            Err(StateError::BadValue("a queue's size"))
        }
    }
}
