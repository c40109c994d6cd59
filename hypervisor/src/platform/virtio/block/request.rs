//! Requests: what a chain asks for, checked, and as data that can be saved while the request is in flight.
//! See: VIRTIO 1.2, section 5.2.6.

use alloc::vec::Vec;

use super::super::queue::{Chain, QueueError};
use crate::memory::GuestMemory;
use crate::state::{StateError, Visitor};

/// Bytes of a sector: what the protocol counts in.
pub const SECTOR: u64 = 512;
/// Most bytes of data in one request; a longer one fails.
pub const MAX_DATA: u64 = 1 << 20;
/// Most bytes that one discard or write of zeros covers.
pub const MAX_ZEROED: u64 = 4 << 20;
/// The disk's name, padded to the length that the protocol has for it.
pub const NAME: &[u8; 20] = b"pollux-disk\0\0\0\0\0\0\0\0\0";

/// Length of what precedes the data: type, reserved, sector.
const HEADER: usize = 16;
/// Length of what a discard or a write of zeros says: sector, number of sectors, flags.
const SEGMENT: usize = 16;
/// Flag of such a segment: the sectors may be unmapped.
const UNMAP: u32 = 1;

/// Types of requests.
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// It cannot be done: it reaches beyond the disk, is no whole number of sectors, is too long, or the disk failed.
    Failed = 1,
    /// There is no such request.
    Unsupported = 2,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Read into `data`.
    Read,
    /// Write `data`.
    Write,
    /// Make durable what was written.
    Flush,
    /// Tell the disk's name, which is in `data`.
    Identify,
    /// Fill with zeros. A discard is the same: what is read from the sectors afterwards must be the same on both machines.
    Zero,
}

impl Operation {
    const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Flush, Self::Identify, Self::Zero];
}

/// A request that passed all checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub operation: Operation,
    /// First byte on the disk.
    pub start: u64,
    /// Bytes on the disk, from there on.
    pub len: u64,
    /// Data on its way; guest memory is read when the request is taken and written when it is complete, never between.
    pub data: Vec<u8>,
}

impl Request {
    /// Reads the request that `chain` holds, for a disk of `disk` bytes. `data` is a buffer to be used again.
    ///
    /// # Errors
    /// The chain is no request at all: there is no header, or no byte for the status. The inner error is the status of a
    /// request that cannot be carried out.
    pub fn read(
        chain: &Chain,
        memory: &GuestMemory,
        disk: u64,
        mut data: Vec<u8>,
    ) -> Result<Result<Self, Status>, QueueError> {
        let (sent, room) = (chain.readable_len(), chain.writable_len());
        if sent < HEADER as u64 || room == 0 {
            return Err(QueueError::NoRequest);
        }
        let mut header = [0; HEADER];
        chain.copy_from(memory, 0, &mut header)?;
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64_at(&header, 8);
        let (sent, room) = (sent - HEADER as u64, room - 1);
        data.clear();
        let (operation, range) = match kind {
            kind::IN => (Operation::Read, range(sector, room, MAX_DATA, disk)),
            kind::OUT => (Operation::Write, range(sector, sent, MAX_DATA, disk)),
            kind::FLUSH => (Operation::Flush, Ok((0, 0))),
            kind::GET_ID => (Operation::Identify, Ok((0, 0))),
            kind::DISCARD | kind::WRITE_ZEROES if sent != SEGMENT as u64 => (Operation::Zero, Err(Status::Failed)),
            kind::DISCARD | kind::WRITE_ZEROES => {
                let mut segment = [0; SEGMENT];
                chain.copy_from(memory, HEADER as u64, &mut segment)?;
                (Operation::Zero, zeroed(&segment, kind == kind::WRITE_ZEROES, disk))
            }
            _ => (Operation::Flush, Err(Status::Unsupported)),
        };
        let (start, len) = match range {
            Ok(range) => range,
            Err(status) => return Ok(Err(status)),
        };
        match operation {
            // Both lengths were checked.
            Operation::Write => {
                data.resize(len as usize, 0);
                chain.copy_from(memory, HEADER as u64, &mut data)?;
            }
            Operation::Identify => data.extend_from_slice(&NAME[..NAME.len().min(room as usize)]),
            _ => {}
        }
        Ok(Ok(Self { operation, start, len, data }))
    }

    /// How much work it is, in bytes: never nothing.
    #[must_use]
    pub fn cost(&self) -> u64 {
        self.len.max(SECTOR)
    }

    /// Shows the request to a visitor; loading checks it again, for a disk of `disk` bytes.
    pub(super) fn visit(&mut self, v: &mut dyn Visitor, disk: u64) -> Result<(), StateError> {
        let mut code = self.operation as u8;
        v.u8(&mut code)?;
        v.u64(&mut self.start)?;
        v.u64(&mut self.len)?;
        v.blob(&mut self.data, MAX_DATA as usize)?;
        let bad = StateError::BadValue("a disk request in flight");
        self.operation = *Operation::ALL.get(usize::from(code)).ok_or(bad)?;
        let most = if self.operation == Operation::Zero { MAX_ZEROED } else { MAX_DATA };
        let fits = self.start.is_multiple_of(SECTOR) && range(self.start / SECTOR, self.len, most, disk).is_ok();
        let filled = self.operation != Operation::Write || self.data.len() as u64 == self.len;
        if fits && filled { Ok(()) } else { Err(bad) }
    }

    /// A request to be loaded into.
    pub(super) const fn empty() -> Self {
        Self { operation: Operation::Flush, start: 0, len: 0, data: Vec::new() }
    }
}

/// First byte and length of `len` bytes from `sector` on, at most `most`, if a disk of `disk` bytes has them.
fn range(sector: u64, len: u64, most: u64, disk: u64) -> Result<(u64, u64), Status> {
    let start = sector.checked_mul(SECTOR).ok_or(Status::Failed)?;
    let end = start.checked_add(len).ok_or(Status::Failed)?;
    if len.is_multiple_of(SECTOR) && len <= most && end <= disk { Ok((start, len)) } else { Err(Status::Failed) }
}

/// What a segment of a discard or of a write of zeros covers.
fn zeroed(segment: &[u8; SEGMENT], may_unmap: bool, disk: u64) -> Result<(u64, u64), Status> {
    let sectors = u32::from_le_bytes([segment[8], segment[9], segment[10], segment[11]]);
    let flags = u32::from_le_bytes([segment[12], segment[13], segment[14], segment[15]]);
    if flags & !(if may_unmap { UNMAP } else { 0 }) != 0 {
        return Err(Status::Unsupported);
    }
    range(u64_at(segment, 0), u64::from(sectors) * SECTOR, MAX_ZEROED, disk)
}

fn u64_at(bytes: &[u8; 16], at: usize) -> u64 {
    bytes[at..].first_chunk().copied().map_or(0, u64::from_le_bytes)
}
