//! The transmit ring.
#![allow(unsafe_code)]

use core::sync::atomic::{Ordering, fence};

use super::{Layout, RingError};
use crate::DmaMemory;
use crate::frame::{MIN_WIRE_FRAME, SendError, check_length};

/// End of packet, insert the frame check sequence, report status. See: 8254x SDM, 3.3.3.1.
const COMMAND: u64 = (1 << 0 | 1 << 1 | 1 << 3) << 24;
/// Descriptor done. See: 8254x SDM, 3.3.3.2.
const DD: u64 = 1 << 32;
/// Excess collisions, late collision, transmit underrun: the frame did not leave.
const ERRORS: u64 = 0b1110 << 32;

/// What a transmit ring has seen; all counts since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TxStats {
    /// Frames queued.
    pub frames: u64,
    /// Bytes in them, without padding.
    pub bytes: u64,
    /// Frames for which the device reported an error.
    pub hardware_errors: u64,
    /// Times that a frame found the ring full.
    pub full: u64,
    /// Frames refused because of their length.
    pub invalid: u64,
}

/// A ring of frames that the device sends. It holds up to `descriptors - 1`.
#[derive(Debug)]
pub struct TxRing {
    layout: Layout,
    /// The oldest frame not known to be sent.
    oldest: u16,
    /// First descriptor that the device has not been told of.
    flushed: u16,
    /// The descriptor that gets the next frame.
    next: u16,
    stats: TxStats,
}

impl TxRing {
    /// Makes an empty ring of `descriptors` in `memory`.
    pub fn new(memory: DmaMemory, descriptors: u16) -> Result<Self, RingError> {
        let mut layout = Layout::new(memory, descriptors)?;
        for index in 0..descriptors {
            layout.write(index, 0);
        }
        Ok(Self { layout, oldest: 0, flushed: 0, next: 0, stats: TxStats::default() })
    }

    /// Address of the descriptors for the device.
    pub fn physical(&self) -> u64 {
        self.layout.memory.physical()
    }

    /// Number of descriptors.
    pub fn descriptors(&self) -> u16 {
        self.layout.descriptors
    }

    /// What the ring has seen.
    pub fn stats(&self) -> TxStats {
        self.stats
    }

    /// How many frames can be queued now. Collects what the device has sent first.
    pub fn free(&mut self) -> u16 {
        self.reclaim();
        self.room()
    }

    /// Whether frames are queued of which the device has not been told by [`tail`](Self::tail).
    pub fn is_unflushed(&self) -> bool {
        self.flushed != self.next
    }

    /// The value for the tail register; all queued frames count as handed to the device.
    pub fn tail(&mut self) -> u16 {
        self.flushed = self.next;
        // Frames and descriptors were written before the register write that hands them over.
        fence(Ordering::Release);
        self.next
    }

    /// Queues a frame of `len` bytes written by `fill`, which sees a buffer of exactly that length with old content.
    /// Frames shorter than the wire's minimum are padded with zeros.
    pub fn transmit<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> Result<R, SendError> {
        if let Err(error) = check_length(len) {
            self.stats.invalid += 1;
            return Err(error.into());
        }
        if self.room() == 0 && self.free() == 0 {
            self.stats.full += 1;
            return Err(SendError::Full);
        }
        let wire_len = len.max(MIN_WIRE_FRAME);
        // SAFETY: `next` lies outside `oldest..flushed`, the descriptors of the device, as there is room.
        let buffer = unsafe { self.layout.memory.bytes_mut(self.layout.buffer(self.next), wire_len) };
        let (frame, padding) = buffer.split_at_mut(len);
        padding.fill(0);
        let result = fill(frame);
        self.layout.write(self.next, COMMAND | wire_len as u64);
        self.next = self.layout.next(self.next);
        self.stats.frames += 1;
        self.stats.bytes += len as u64;
        Ok(result)
    }

    fn room(&self) -> u16 {
        self.layout.descriptors - 1 - self.layout.distance(self.oldest, self.next)
    }

    /// Takes back the descriptors that the device has finished. It stops at `flushed`: a DD bit on a frame that the
    /// device was not told of means nothing.
    fn reclaim(&mut self) {
        while self.oldest != self.flushed {
            let status = self.layout.status(self.oldest);
            if status & DD == 0 {
                break;
            }
            self.stats.hardware_errors += u64::from(status & ERRORS != 0);
            self.oldest = self.layout.next(self.oldest);
        }
        fence(Ordering::Acquire);
    }
}
