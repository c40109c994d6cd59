//! The NIC of the host in user space: two queues of frames.

use std::collections::VecDeque;

use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use crate::net::frame::MAX_UNTAGGED;

/// Frames that wait for the stack, at most; it is polled after every few.
const MAX_INPUT: usize = 4096;
/// Buffers kept for reuse.
const MAX_SPARE: usize = 256;

/// Frames to and from the stack.
#[derive(Debug, Default)]
pub struct Queues {
    input: VecDeque<Vec<u8>>,
    output: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
}

impl Queues {
    /// A frame for the stack; false if too many wait.
    pub fn push(&mut self, frame: &[u8]) -> bool {
        if self.input.len() >= MAX_INPUT {
            return false;
        }
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(frame);
        self.input.push_back(buffer);
        true
    }

    /// Whether the stack has something to read.
    pub fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// A frame from the stack. Give it back to [`Self::recycle`].
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        self.output.pop_front()
    }

    /// Takes back a buffer.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < MAX_SPARE {
            self.spare.push(buffer);
        }
    }
}

impl Device for Queues {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _timestamp: Instant) -> Option<(RxToken, TxToken<'_>)> {
        // The token owns the frame, because the stack answers through the other token while it reads.
        let frame = self.input.pop_front()?;
        Some((RxToken(frame), TxToken(self)))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<TxToken<'_>> {
        Some(TxToken(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_UNTAGGED;
        capabilities
    }
}

/// A received frame.
pub struct RxToken(Vec<u8>);

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

/// Room for a frame.
pub struct TxToken<'a>(&'a mut Queues);

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut buffer = self.0.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.resize(length, 0);
        let result = write(&mut buffer);
        self.0.output.push_back(buffer);
        result
    }
}
