//! What the driver sends.

use super::offload::{HEADER, Large, MAX_LARGE, Work, complete_checksum};
use super::{MAX_FRAME, MIN_FRAME, MOST_CUT, Net, TX};
use crate::memory::GuestMemory;
use crate::platform::access::Outputs;
use crate::platform::virtio::Signals;
use crate::platform::virtio::queue::{Chain, Queue, QueueError};

/// So many bytes are no mere answer: who sends them waits for the interrupt to send more.
const MUCH: u64 = 16 << 10;

/// What was taken from the queue.
pub(super) struct Sent {
    packets: u16,
    bytes: u64,
}

impl Net {
    /// Sends what is in the queue, of which the driver did not tell: how many packets. An interrupt for little can wait, and is
    /// owed then: [`pay`](Self::pay).
    ///
    /// # Errors
    /// The queue is malformed.
    pub fn look(
        &mut self,
        queues: &mut [Queue],
        memory: &mut GuestMemory,
        out: &mut dyn Outputs,
    ) -> Result<(u16, Signals), QueueError> {
        let Some(queue) = queues.get_mut(usize::from(TX)).filter(|queue| queue.enabled()) else { return Ok((0, 0)) };
        if !queue.has_available(memory)? {
            return Ok((0, 0));
        }
        let sent = self.transmit(queue, memory, out)?;
        if sent.bytes >= MUCH || sent.packets >= queue.size() / 4 {
            return Ok((sent.packets, queue.publish(memory, TX)?));
        }
        queue.show(memory)?;
        Ok((sent.packets, 0))
    }

    /// Whether the driver was not interrupted for packets that were sent, though it may want to be.
    pub fn owes(queues: &[Queue]) -> bool {
        queues.get(usize::from(TX)).is_some_and(|queue| queue.enabled() && queue.owes_interrupt())
    }

    /// The interrupt that is owed, if the driver still wants it.
    ///
    /// # Errors
    /// The queue is malformed.
    pub fn pay(queues: &mut [Queue], memory: &mut GuestMemory) -> Result<Signals, QueueError> {
        match queues.get_mut(usize::from(TX)) {
            Some(queue) if queue.enabled() => queue.publish(memory, TX),
            _ => Ok(0),
        }
    }

    /// From now on the queue is watched, so that the driver need not tell of frames; or not. Nothing may lie in it.
    ///
    /// # Errors
    /// The queue is malformed.
    pub fn set_watched(
        &mut self,
        watched: bool,
        queues: &mut [Queue],
        memory: &mut GuestMemory,
    ) -> Result<Signals, QueueError> {
        self.watched = watched;
        match queues.get_mut(usize::from(TX)) {
            Some(queue) if queue.enabled() => queue.want_notify(memory, !watched).map(|()| 0),
            _ => Ok(0),
        }
    }

    /// Whether the driver was told that it need not tell.
    #[must_use]
    pub const fn is_watched(&self) -> bool {
        self.watched
    }

    /// Whether the driver told of frames since the last call.
    pub const fn take_told(&mut self) -> bool {
        core::mem::replace(&mut self.told, false)
    }

    /// Sends all that is in the queue.
    pub(super) fn transmit(
        &mut self,
        queue: &mut Queue,
        memory: &mut GuestMemory,
        out: &mut dyn Outputs,
    ) -> Result<Sent, QueueError> {
        let mut sent = Sent { packets: 0, bytes: 0 };
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
            sent.packets += 1;
            sent.bytes += self.chain.readable_len();
        }
        queue.want_notify(memory, !self.watched)?;
        Ok(sent)
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
