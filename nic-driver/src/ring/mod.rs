//! Descriptor rings of the e1000 family: memory only, no registers.
//!
//! Both rings use legacy descriptors, which all members of the family understand: a buffer address and a word of
//! length, command and status. A descriptor belongs to the device from the moment the tail register passes it until
//! the device sets its DD bit. Whatever the device writes is checked; buffer addresses are never read back but
//! computed from the index, so that a corrupted ring cannot lead the CPU elsewhere.
//!
//! See: 8254x SDM (317453), 3.2.3 and 3.3.3; 82574L datasheet, 7.1 and 7.2.

mod rx;
mod tx;

pub use rx::{RxRing, RxStats};
pub use tx::{TxRing, TxStats};

/// Size of a descriptor in bytes.
pub const DESCRIPTOR_BYTES: usize = 16;
/// Size and alignment of a frame's buffer in bytes. A power of two, so that none crosses a page of 64 KiB.
pub const BUFFER_BYTES: usize = 2048;

const _: () = assert!(BUFFER_BYTES >= crate::frame::MAX_FRAME && BUFFER_BYTES.is_power_of_two());

/// Memory that a ring of `descriptors` needs, in bytes: the descriptors, then the buffers.
pub const fn ring_bytes(descriptors: u16) -> usize {
    buffers_offset(descriptors) + descriptors as usize * BUFFER_BYTES
}

/// Offset of the first buffer in a ring's memory, in bytes.
const fn buffers_offset(descriptors: u16) -> usize {
    (descriptors as usize * DESCRIPTOR_BYTES).next_multiple_of(BUFFER_BYTES)
}

/// Why memory cannot hold a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingError {
    /// Ring lengths are multiples of eight from 8 to 4096. See: 8254x SDM, 13.4.27 (RDLEN) and 13.4.38 (TDLEN).
    Length(u16),
    /// The memory is shorter than [`ring_bytes`]; its length in bytes.
    TooSmall(usize),
    /// The memory is not aligned to [`BUFFER_BYTES`].
    Misaligned,
}

/// Descriptors and buffers in DMA memory: what both rings share.
#[derive(Debug)]
struct Layout {
    memory: crate::DmaMemory,
    descriptors: u16,
}

impl Layout {
    fn new(memory: crate::DmaMemory, descriptors: u16) -> Result<Self, RingError> {
        if !(8..=4096).contains(&descriptors) || !descriptors.is_multiple_of(8) {
            return Err(RingError::Length(descriptors));
        }
        if memory.len() < ring_bytes(descriptors) {
            return Err(RingError::TooSmall(memory.len()));
        }
        if !memory.is_aligned_to(BUFFER_BYTES) {
            return Err(RingError::Misaligned);
        }
        Ok(Self { memory, descriptors })
    }

    fn next(&self, index: u16) -> u16 {
        if index + 1 == self.descriptors { 0 } else { index + 1 }
    }

    /// Steps from `from` forward to `to`.
    fn distance(&self, from: u16, to: u16) -> u16 {
        if to >= from { to - from } else { self.descriptors - from + to }
    }

    /// Second word of a descriptor: length, command, status, errors.
    fn status(&self, index: u16) -> u64 {
        self.memory.read64(index as usize * DESCRIPTOR_BYTES + 8)
    }

    /// Writes both words of a descriptor; the address is always that of its own buffer.
    fn write(&mut self, index: u16, status: u64) {
        let buffer = self.memory.physical() + self.buffer(index) as u64;
        self.memory.write64(index as usize * DESCRIPTOR_BYTES, buffer);
        self.memory.write64(index as usize * DESCRIPTOR_BYTES + 8, status);
    }

    /// Offset of a descriptor's buffer in the memory.
    fn buffer(&self, index: u16) -> usize {
        buffers_offset(self.descriptors) + index as usize * BUFFER_BYTES
    }
}
