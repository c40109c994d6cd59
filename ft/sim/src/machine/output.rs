//! The guest's frames: into the gate, and out of it onto the client network.

use super::Machine;
use crate::check::{Check, Leave, frame_hash};
use crate::world::Env;
use pollux_nic::gate::RESERVED_FRAMES;
use pollux_nic::{FrameSink, GateMode, SendError};

/// The client card: takes frames as long as the machine goes on, and sometimes has no room.
struct Card<'a> {
    sent: Vec<Vec<u8>>,
    room: usize,
    goes_on: &'a mut dyn FnMut() -> bool,
}

impl FrameSink for Card<'_> {
    fn send(&mut self, frame: &[u8]) -> Result<(), SendError> {
        if self.sent.len() == self.room || !(self.goes_on)() {
            return Err(SendError::Full);
        }
        self.sent.push(frame.to_vec());
        Ok(())
    }

    fn flush(&mut self) {}
}

impl Machine {
    /// The guest made a frame.
    pub(crate) fn transmit(&mut self, env: &mut Env, frame: &[u8]) {
        self.history.push(frame_hash(frame));
        let outcome = self.gate.hold(frame, env.now);
        let most = env.plan.gate_frames + RESERVED_FRAMES;
        if outcome.is_err() || self.gate.held() > most {
            env.audit.broken(Check::Memory, format!("machine {}: the gate overflows: {outcome:?}", self.index));
        }
        if self.gate.mode() == GateMode::Open {
            self.release(env);
        }
    }

    /// Sends what may leave.
    pub(super) fn release(&mut self, env: &mut Env) {
        if self.gate.ready() == 0 {
            return;
        }
        let room = match env.stuck[self.index] {
            true => 0,
            false if env.rng.chance(50) => env.rng.below(3) as usize,
            false => usize::MAX,
        };
        let (mut fuse, mut blown) = (self.fuse, self.blown);
        let mut goes_on = || {
            match &mut fuse {
                Some((0, blow)) => (blown, fuse) = (Some(*blow), None),
                Some((steps, _)) => *steps -= 1,
                None => {}
            }
            blown.is_none()
        };
        let mut card = Card { sent: Vec::new(), room, goes_on: &mut goes_on };
        let alone = self.gate.mode() == GateMode::Open;
        self.gate.transmit_ready(&mut card, env.now);
        let sent = core::mem::take(&mut card.sent);
        (self.fuse, self.blown) = (fuse, blown);
        if let Some(mark) = self.gate.sent() {
            self.node.output_left(pollux_ft::Seq(mark));
        }
        for frame in sent {
            let why = self.why(&frame, alone);
            self.note(env, frame_hash(&frame), || format!("a frame leaves: {}", describe(&frame)));
            env.guest_sends(self.index, &frame, why);
        }
    }

    /// Why this frame may leave, by this machine's own books.
    fn why(&mut self, frame: &[u8], alone: bool) -> Leave {
        let index = crate::frame::Reply::decode(frame).map_or(0, |reply| reply.index);
        if alone {
            return Leave::Alone;
        }
        if index < self.unheld {
            return Leave::Before;
        }
        while self.seals.front().is_some_and(|(_, end)| *end <= index) {
            self.seals.pop_front();
        }
        match self.seals.front() {
            Some((seq, _)) => Leave::Covered(self.written(), pollux_ft::Seq(*seq)),
            None => Leave::Unsealed,
        }
    }

    pub(super) fn set_gate(&mut self, env: &mut Env, mode: GateMode) {
        if self.gate.mode() == mode {
            return;
        }
        self.note(env, mode as u64, || format!("gate {mode:?}"));
        self.gate.set_mode(mode);
        self.unsealed_since = None;
        self.seals.clear();
        self.unheld = self.history.len() as u64;
        self.show(env);
    }

    /// Everything that is held may leave, and what comes leaves at once.
    pub(super) fn open_gate(&mut self, env: &mut Env) {
        self.set_gate(env, GateMode::Open);
        self.release(env);
        if self.goes_on() {
            env.announce(self.index);
        }
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
