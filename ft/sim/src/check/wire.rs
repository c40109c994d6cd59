//! What is seen on the client network.

use super::{Audit, Check, LogId};
use crate::arbiter::Arbiter;
use crate::frame::Reply;
use crate::rng::mix;
use pollux_ft::Seq;

/// Why a frame was allowed to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// The gate is open.
    Alone,
    /// It was held, and this entry of this log covers it.
    Covered(LogId, Seq),
    /// It was made before output was held.
    Before,
    /// It was held and never sealed.
    Unsealed,
}

/// The hash by which frames are compared.
pub(crate) fn frame_hash(frame: &[u8]) -> u64 {
    frame.chunks(8).fold(frame.len() as u64, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(sum, u64::from_le_bytes(word))
    })
}

impl Audit {
    /// A frame of the guest leaves machine `index`; whether it was new.
    pub(crate) fn leaves(&mut self, index: usize, frame: &[u8], why: Leave, arbiter: &Arbiter) {
        self.speaks(index);
        match why {
            Leave::Alone => self.check_alone(index, arbiter),
            Leave::Covered(log, seq) => self.check_output_rule(log, seq),
            Leave::Before => {}
            Leave::Unsealed => self.broken(Check::OutputRule, "a held frame leaves without an entry".to_owned()),
        }
        let Some(reply) = Reply::decode(frame) else {
            return self.broken(Check::ReplicasEqual, "a frame that the guest cannot have made".to_owned());
        };
        let hash = frame_hash(frame);
        match self.wire.get(reply.index as usize) {
            Some(before) if *before != hash => {
                self.broken(Check::Duplicates, format!("frame {} comes again and differs", reply.index));
            }
            Some(_) => self.repeated(index, reply.index),
            None => self.new_frame(&reply, hash),
        }
    }

    fn new_frame(&mut self, reply: &Reply, hash: u64) {
        let next = self.wire.len() as u64;
        if reply.index != next {
            return self.broken(Check::NothingLost, format!("frame {} leaves before frame {next}", reply.index));
        }
        if reply.time < self.wire_time {
            let text = format!("guest time went from {} back to {} ns", self.wire_time, reply.time);
            self.broken(Check::GuestTime, text);
        }
        self.wire_time = reply.time;
        self.wire.push(hash);
    }

    fn repeated(&mut self, machine: usize, index: u64) {
        self.duplicates += 1;
        match self.repeatable[machine].checked_sub(1) {
            Some(left) => self.repeatable[machine] = left,
            None => self.broken(Check::Duplicates, format!("frame {index} comes again without a reason")),
        }
    }

    /// So many frames are in the gate of a machine.
    pub(crate) fn gate_holds(&mut self, machine: usize, frames: usize) {
        self.gates[machine] = frames as u64;
    }

    /// A machine goes live and sends what it retained, which its predecessor may have sent. The predecessor itself, if
    /// it only stood still, may send what it holds and was acked.
    pub(crate) fn takes_over_output(&mut self, machine: usize, retained: usize) {
        self.gate_holds(machine, retained);
        self.repeatable = self.gates;
    }

    /// All that clients saw must lie in the past of whoever goes live.
    pub(super) fn check_past(&mut self, history: &[u64]) {
        let (seen, made) = (self.wire.len(), history.len());
        if made < seen {
            let text = format!("clients saw {seen} frames, the guest that goes live made {made}");
            self.broken(Check::NothingLost, text);
        } else if let Some(index) = self.wire.iter().zip(history).position(|(seen, made)| seen != made) {
            self.broken(Check::NothingLost, format!("clients saw another frame {index} than the successor made"));
        }
    }
}
