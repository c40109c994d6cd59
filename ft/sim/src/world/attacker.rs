//! Somebody on the log network who sees all heartbeats and sends what he likes to whom he likes, and does not have the key.
//!
//! Beside the faults, and no excuse for anything: nothing that he does may be noticed but in counters. What he sends again
//! had arrived: to carry what was lost is to be a slow network, which he may be as well.

use super::World;
use super::event::Event;
use crate::plan::PROTECTION;
use crate::rng::Rng;
use pollux_ft::heartbeat::{HEARD, Heartbeat, SIZE, pair_digest};
use pollux_ft::{NodeId, Position, Protection, Role, Seq, SessionId, Term, Time};

/// The runs with an attacker, per thousand.
const RUNS: u64 = 500;
/// Heartbeats that he keeps, of all times.
const RECORD: usize = 64;
/// Machines that he knows by their ids.
const KNOWN: usize = HEARD;
/// What he seals with.
const GUESS: Protection = Protection::Checksum(1);

/// He, and what he has seen.
#[derive(Debug)]
pub(crate) struct Attacker {
    rng: Rng,
    is_here: bool,
    /// With the machines that took them.
    record: Vec<(usize, Vec<u8>)>,
    known: Vec<NodeId>,
}

impl Attacker {
    pub(super) fn new(mut rng: Rng) -> Self {
        let is_here = rng.chance(RUNS);
        Self { rng, is_here, record: Vec::new(), known: Vec::new() }
    }

    /// A heartbeat arrives at machine `to`.
    pub(super) fn see(&mut self, to: usize, datagram: &[u8]) {
        if !self.is_here {
            return;
        }
        if self.record.len() < RECORD {
            self.record.push((to, datagram.to_vec()));
        } else if self.rng.chance(100) {
            let at = self.rng.below(RECORD as u64) as usize;
            self.record[at] = (to, datagram.to_vec());
        }
        let sender = Heartbeat::decode(datagram, &PROTECTION).map(|beat| beat.node);
        if let Ok(node) = sender.as_ref()
            && !self.known.contains(node)
        {
            self.known.truncate(KNOWN - 1);
            self.known.insert(0, *node);
        }
    }

    /// What he sends now, and to which of so many machines.
    fn act(&mut self, machines: usize) -> Option<(usize, Vec<u8>)> {
        let recorded = (self.rng.below(RECORD as u64) as usize) % self.record.len().max(1);
        let (to, mut datagram) = self.record.get(recorded)?.clone();
        let any = self.rng.below(machines as u64) as usize;
        match self.rng.below(6) {
            0..2 => return Some((to, datagram)),
            2 => {
                let at = self.rng.below(datagram.len() as u64) as usize;
                datagram[at] ^= 1 << self.rng.below(8);
            }
            3 => datagram.truncate(self.rng.below(SIZE as u64) as usize),
            4 => {
                let node = self.rng.pick(&self.known);
                datagram = self.claim(node, true).encode(&GUESS).to_vec();
            }
            // He saw the pair in a former life, in later terms: it began anew, and so did its arbiter.
            _ => {
                let node = NodeId(u64::MAX - self.rng.below(100));
                datagram = self.claim(node, false).encode(&PROTECTION).to_vec();
            }
        }
        Some((any, datagram))
    }

    /// The claim of `node`, which names those who live now if `of_today`.
    fn claim(&mut self, node: NodeId, of_today: bool) -> Heartbeat {
        let mut heard = [NodeId(u64::MAX); HEARD];
        if of_today {
            heard.iter_mut().zip(&self.known).for_each(|(place, node)| *place = *node);
        }
        Heartbeat {
            pair: pair_digest("gemini"),
            node,
            peer: self.rng.pick(&self.known),
            counter: self.rng.below(1 << 40),
            heard,
            echo: self.rng.below(1000),
            term: Term(self.rng.below(60)),
            role: self.rng.pick(&Role::ALL),
            session: SessionId(self.rng.below(4)),
            linked: self.rng.chance(500),
            seq: Seq(0),
            position: Position(0),
            time: Time(0),
        }
    }
}

impl World {
    /// The attacker sends something.
    pub(super) fn attack(&mut self) {
        if !self.phase.has_faults() || !self.env.attacker.is_here {
            return;
        }
        if let Some((to, bytes)) = self.env.attacker.act(self.slots.len()) {
            self.env.queue.push(self.env.now, Event::Forgery { to, bytes });
            self.env.figures.attacks += 1;
        }
        let pause = self.env.attacker.rng.between(1_000, 100_000);
        self.env.queue.push(self.env.now + pause, Event::Attack);
    }
}
