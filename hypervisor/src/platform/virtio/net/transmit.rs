//! What the driver sends.

use super::offload::{HEADER, Large, MAX_LARGE, Work, complete_checksum};
use super::{MAX_FRAME, MIN_FRAME, MOST_CUT, Net, TX};
use crate::memory::GuestMemory;
use crate::platform::access::Outputs;
use crate::platform::virtio::Signals;
use crate::platform::virtio::queue::{Chain, Queue, QueueError};

impl Net {
    /// Sends all that is in the queue.
    pub(super) fn transmit(
        &mut self,
        queue: &mut Queue,
        memory: &mut GuestMemory,
        out: &mut dyn Outputs,
    ) -> Result<Signals, QueueError> {
        let mut room = MOST_CUT;
        // The driver cannot add buffers while we are here. It may have laid the rings over each other, so that they look full
        // for ever.
        for _ in 0..queue.size() {
            if !queue.pop(memory, &mut self.chain)? {
                break;
            }
            match self.send(room, memory, out)? {
                Some(cut) => room -= cut,
                None => self.stats.bad_sent += 1,
            }
            queue.push_used(memory, &self.chain, 0)?;
        }
        queue.want_notify(memory, true)?;
        queue.publish(memory, TX)
    }

    /// Sends what the chain holds. Returns how many frames were cut from it, at most `room`, or `None`: it is nothing that we
    /// send.
    fn send(&mut self, room: usize, memory: &GuestMemory, out: &mut dyn Outputs) -> Result<Option<usize>, QueueError> {
        let total = self.chain.readable_len();
        if total < (HEADER + MIN_FRAME) as u64 || total > (HEADER + MAX_LARGE) as u64 {
            return Ok(None);
        }
        let mut header = [0; HEADER];
        self.chain.copy_from(memory, 0, &mut header)?;
        let len = total as usize - HEADER;
        let frame = match Work::asked(&header, self.features) {
            Some(work @ Work::Cut { .. }) => return self.cut(len, work, room, memory, out),
            Some(Work::Nothing) if len <= MAX_FRAME => gather(memory, &self.chain, &mut self.frame[..len])?,
            Some(Work::Checksum { start, offset }) if len <= MAX_FRAME => {
                let frame = &mut self.frame[..len];
                self.chain.copy_from(memory, HEADER as u64, frame)?;
                if complete_checksum(frame, start, offset).is_none() {
                    return Ok(None);
                }
                frame
            }
            _ => return Ok(None),
        };
        self.stats.sent += 1;
        out.frame(frame);
        Ok(Some(0))
    }

    /// Sends a segment of `len` bytes in frames of its own.
    fn cut(
        &mut self,
        len: usize,
        work: Work,
        room: usize,
        memory: &GuestMemory,
        out: &mut dyn Outputs,
    ) -> Result<Option<usize>, QueueError> {
        let head = &mut self.frame[..len.min(MAX_FRAME)];
        self.chain.copy_from(memory, HEADER as u64, head)?;
        let Some(large) = Large::parse(head, len, work).filter(|large| large.frames() <= room) else { return Ok(None) };
        for index in 0..large.frames() {
            let (start, len) = large.part(index);
            let frame = &mut self.frame[..large.headers() + len];
            self.chain.copy_from(memory, (HEADER + start) as u64, &mut frame[large.headers()..])?;
            large.finish(index, frame);
            self.stats.sent += 1;
            out.frame(frame);
        }
        Ok(Some(large.frames()))
    }
}

/// The frame in `chain` behind the header, copied to `scratch`, which is as long, unless it lies in one piece.
fn gather<'a>(memory: &'a GuestMemory, chain: &Chain, scratch: &'a mut [u8]) -> Result<&'a [u8], QueueError> {
    match chain.readable() {
        [one] => Ok(&memory.slice(one.gpa, u64::from(one.len))?[HEADER..]),
        [first, second] if first.len as usize == HEADER => Ok(memory.slice(second.gpa, u64::from(second.len))?),
        _ => {
            chain.copy_from(memory, HEADER as u64, scratch)?;
            Ok(scratch)
        }
    }
}
