//! The guest's frames: into the gate, and out of it onto the client network.

use super::devices::{Fuse, InWorld, Seal};
use crate::check::{Check, Leave, frame_hash};
use crate::trace::Who;
use pollux_driver::Outlet;
use pollux_ft::{Position, Seq};
use pollux_nic::gate::RESERVED_FRAMES;
use pollux_nic::{FrameSink, GateMode, Mark, SendError};

/// The client card: takes frames as long as the machine goes on, and sometimes has no room.
struct Card<'a> {
    sent: Vec<Vec<u8>>,
    room: usize,
    fuse: &'a mut Fuse,
}

impl FrameSink for Card<'_> {
    fn send(&mut self, frame: &[u8]) -> Result<(), SendError> {
        if self.sent.len() == self.room || !self.fuse.goes_on() {
            return Err(SendError::Full);
        }
        self.sent.push(frame.to_vec());
        Ok(())
    }

    fn flush(&mut self) {}
}

impl InWorld<'_> {
    fn set_gate(&mut self, mode: GateMode) {
        let own = &mut *self.own;
        if own.gate.mode() == mode {
            return;
        }
        self.env.trace.note(self.env.now, Who::Machine(own.index), [mode as u64, 0], || format!("gate {mode:?}"));
        own.gate.set_mode(mode);
        own.seals.clear();
        own.unheld = own.history.len() as u64;
    }

    /// Why this frame may leave, by this machine's own books.
    fn why(&mut self, frame: &[u8]) -> Leave {
        let index = crate::frame::Reply::decode(frame).map_or(0, |reply| reply.index);
        let own = &mut *self.own;
        if own.is_open() {
            return Leave::Alone;
        }
        if index < own.unheld {
            return Leave::Before;
        }
        while own.seals.front().is_some_and(|seal| seal.end <= index) {
            own.seals.pop_front();
        }
        match own.seals.front() {
            Some(Seal { log, seq, .. }) => Leave::Covered(*log, *seq),
            None => Leave::Unsealed,
        }
    }
}

impl Outlet for InWorld<'_> {
    fn transmit(&mut self, frame: &[u8]) {
        self.own.history.push(frame_hash(frame));
        let outcome = self.own.gate.hold(frame, self.env.now);
        let most = self.env.plan.gate_frames + RESERVED_FRAMES;
        if outcome.is_err() || self.own.gate.held() > most {
            let text = format!("machine {}: the gate overflows: {outcome:?}", self.own.index);
            self.env.audit.broken(Check::Memory, text);
        }
        if self.own.is_open() {
            self.release();
        }
    }

    fn console(&mut self, _: &[u8]) {}

    fn close(&mut self) {
        self.set_gate(GateMode::Closed);
    }

    fn retain(&mut self) {
        self.set_gate(GateMode::Retained);
    }

    fn hold(&mut self) {
        self.set_gate(GateMode::Held);
    }

    fn open(&mut self) {
        self.set_gate(GateMode::Open);
        self.release();
        self.announce();
    }

    fn announce(&mut self) {
        if self.own.fuse.goes_on() {
            self.env.announce(self.own.index);
        }
    }

    fn sent(&self) -> Option<Seq> {
        self.own.gate.sent().map(Seq)
    }

    fn is_open(&self) -> bool {
        self.own.is_open()
    }

    fn is_full(&self) -> bool {
        self.own.gate.is_full()
    }

    fn has_ready(&self) -> bool {
        self.own.gate.ready() > 0
    }

    fn unsealed(&self) -> usize {
        self.own.gate.unsealed()
    }

    fn guest_at(&mut self, position: Position) {
        self.own.gate.guest_at(position.0);
    }

    fn unsealed_since(&self) -> Option<Position> {
        self.own.gate.unsealed_since().map(Position)
    }

    fn seal(&mut self, entry: Seq) {
        self.own.gate.seal(Mark::Seq(entry.0));
        let (log, end) = (self.own.log, self.own.history.len() as u64);
        self.own.seals.push_back(Seal { log, seq: entry, end });
    }

    fn seal_at(&mut self, position: Position) {
        self.own.gate.seal(Mark::Position(position.0));
    }

    fn acked(&mut self, entry: Seq) {
        self.own.gate.acked(entry.0);
    }

    fn released(&mut self, position: Position) {
        self.own.gate.released(position.0);
    }

    fn release(&mut self) {
        if self.own.gate.ready() == 0 {
            return;
        }
        let room = match self.env.stuck[self.own.index] {
            true => 0,
            false if self.env.rng.chance(50) => self.env.rng.below(3) as usize,
            false => usize::MAX,
        };
        let mut card = Card { sent: Vec::new(), room, fuse: &mut self.own.fuse };
        self.own.gate.transmit_ready(&mut card, self.env.now);
        for frame in core::mem::take(&mut card.sent) {
            let (why, who) = (self.why(&frame), Who::Machine(self.own.index));
            let text = || format!("a frame leaves: {}", describe(&frame));
            self.env.trace.note(self.env.now, who, [frame_hash(&frame), 0], text);
            self.env.guest_sends(self.own.index, &frame, why);
        }
    }

    fn has_input(&self) -> bool {
        !self.own.ingress.is_empty()
    }

    fn next_input(&mut self) -> Option<Vec<u8>> {
        self.own.ingress.pop_front()
    }

    fn recycle(&mut self, _: Vec<u8>) {}

    fn put_back(&mut self, frame: Vec<u8>) {
        self.own.ingress.push_front(frame);
    }

    fn forget_input(&mut self) {
        self.own.ingress.clear();
    }
}

/// A frame in words.
pub(crate) fn describe(frame: &[u8]) -> String {
    match crate::frame::Reply::decode(frame) {
        Some(reply) if reply.client == crate::frame::NO_CLIENT => format!("frame {}, unasked", reply.index),
        Some(reply) => {
            let (index, client, number, value) = (reply.index, reply.client, reply.number, reply.value);
            format!("frame {index}, to client {client} for request {number}: {value}")
        }
        None => format!("{} bytes that are no frame of the guest", frame.len()),
    }
}
