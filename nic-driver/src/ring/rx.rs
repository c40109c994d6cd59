//! The receive ring.
#![allow(unsafe_code)]

use core::sync::atomic::{Ordering, fence};

use super::{Layout, RingError};
use crate::DmaMemory;
use crate::frame::{FrameError, check_length};

/// Descriptor done: the device has filled the buffer. See: 8254x SDM, 3.2.3.1.
const DD: u64 = 1 << 32;
/// End of packet: the frame ends in this buffer.
const EOP: u64 = 1 << 33;
/// CRC or alignment, symbol, sequence, carrier extension and data errors. Not the checksum errors: checksum offload
/// is off. See: 8254x SDM, 3.2.3.2.
const ERRORS: u64 = 0x97 << 40;

/// What a receive ring has seen; all counts since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RxStats {
    /// Good frames handed out.
    pub frames: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Frames dropped because the device flagged an error.
    pub hardware_errors: u64,
    /// Frames dropped because they were shorter than an Ethernet header.
    pub too_short: u64,
    /// Frames dropped because they were longer than the longest frame.
    pub too_long: u64,
    /// Frames dropped because they did not end in their first buffer.
    pub fragmented: u64,
}

/// A ring of buffers that the device fills.
///
/// One descriptor always stays with the CPU, so that a full ring differs from an empty one: the device owns up to
/// `descriptors - 1`.
#[derive(Debug)]
pub struct RxRing {
    layout: Layout,
    /// The descriptor that the device fills next, as far as the CPU knows.
    next: u16,
    /// Value of `next` when the tail was last taken.
    returned: u16,
    /// In the middle of a frame that spans buffers: drop until its end.
    skipping: bool,
    stats: RxStats,
}

impl RxRing {
    /// Makes a ring of `descriptors` in `memory`, with all buffers free.
    pub fn new(memory: DmaMemory, descriptors: u16) -> Result<Self, RingError> {
        let mut layout = Layout::new(memory, descriptors)?;
        for index in 0..descriptors {
            layout.write(index, 0);
        }
        Ok(Self { layout, next: 0, returned: 0, skipping: false, stats: RxStats::default() })
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
    pub fn stats(&self) -> RxStats {
        self.stats
    }

    /// How many buffers the CPU has read but not given back by [`tail`](Self::tail).
    pub fn unreturned(&self) -> u16 {
        self.layout.distance(self.returned, self.next)
    }

    /// The value for the tail register; buffers read so far count as given back.
    pub fn tail(&mut self) -> u16 {
        self.returned = self.next;
        // The descriptors were made ready before the register write that hands them over.
        fence(Ordering::Release);
        if self.next == 0 { self.layout.descriptors - 1 } else { self.next - 1 }
    }

    /// Whether a good frame waits. Drops and counts bad ones in front of it.
    pub fn is_ready(&mut self) -> bool {
        self.front().is_some()
    }

    /// Hands the next good frame to `f`. Bad ones in front of it are dropped and counted.
    pub fn receive<R>(&mut self, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let len = self.front()?;
        // SAFETY: the device has set DD on this descriptor (`front`) and gets it back only after `recycle` and `tail`,
        // which need `&mut self`; the length is within the buffer.
        let result = f(unsafe { self.layout.memory.bytes(self.layout.buffer(self.next), len) });
        self.stats.frames += 1;
        self.stats.bytes += len as u64;
        self.recycle();
        Some(result)
    }

    /// Length of the frame in the front descriptor, after dropping bad ones. Looks at no more descriptors than the
    /// ring has between two calls of `tail`: recycled ones have DD clear.
    fn front(&mut self) -> Option<usize> {
        while self.unreturned() < self.layout.descriptors - 1 {
            if self.layout.status(self.next) & DD == 0 {
                return None;
            }
            // The device writes DD last: only now are the other fields and the buffer valid.
            fence(Ordering::Acquire);
            match self.check(self.layout.status(self.next)) {
                Some(len) => return Some(len),
                None => self.recycle(),
            }
        }
        None
    }

    /// Length of a good frame; bad ones are counted.
    fn check(&mut self, status: u64) -> Option<usize> {
        let end = status & EOP != 0;
        if self.skipping || !end {
            // Counted once, at its first buffer.
            self.stats.fragmented += u64::from(!self.skipping);
            self.skipping = !end;
            return None;
        }
        if status & ERRORS != 0 {
            self.stats.hardware_errors += 1;
            return None;
        }
        let len = usize::from(status as u16);
        match check_length(len) {
            Ok(()) => return Some(len),
            Err(FrameError::TooShort(_)) => self.stats.too_short += 1,
            Err(FrameError::TooLong(_)) => self.stats.too_long += 1,
        }
        None
    }

    /// Makes the front descriptor ready for the device again.
    fn recycle(&mut self) {
        self.layout.write(self.next, 0);
        self.next = self.layout.next(self.next);
    }
}
