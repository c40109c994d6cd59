//! Somebody on the log network who sees all heartbeats and sends what he likes to whom he likes, and does not have the key.
//!
//! Beside the faults, and no excuse for anything: nothing that he does may be noticed but in counters. What he sends again
//! had arrived: to carry what was lost is to be a slow network, which he may be as well.

use super::World;
use super::env::address;
use super::event::Event;
use crate::check::Check;
use crate::machine::Machine;
use crate::rng::Rng;
use pollux_ft::heartbeat::{HEARD, Heartbeat, SIZE, pair_digest};
use pollux_ft::{NodeId, Position, Protection, Role, Seq, SessionId, Term, Time};
use std::collections::VecDeque;

/// The runs with an attacker, per thousand.
const RUNS: u64 = 500;
/// Heartbeats that he keeps, of all times.
const RECORD: usize = 64;
/// Machines that he knows by their ids.
const KNOWN: usize = HEARD;
/// Beginnings of streams that he keeps, and how long they are: what a joiner says before its first message.
const OPENINGS: usize = 8;
const OPENING: usize = 78;
/// How often he comes to a door, and leads a joiner astray, per thousand.
const KNOCKS: u64 = 300;
const ASTRAY: u64 = 100;
/// A machine that there is none of.
const NOWHERE: usize = 9;
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
    /// What joiners said first, by stream.
    openings: VecDeque<(usize, Vec<u8>)>,
}

impl Attacker {
    pub(super) fn new(mut rng: Rng) -> Self {
        let is_here = rng.chance(RUNS);
        Self { rng, is_here, record: Vec::new(), known: Vec::new(), openings: VecDeque::new() }
    }

    /// A heartbeat arrives at machine `to`.
    pub(super) fn see(&mut self, to: usize, datagram: &[u8], protection: &Protection) {
        if !self.is_here {
            return;
        }
        if self.record.len() < RECORD {
            self.record.push((to, datagram.to_vec()));
        } else if self.rng.chance(100) {
            let at = self.rng.below(RECORD as u64) as usize;
            self.record[at] = (to, datagram.to_vec());
        }
        let sender = Heartbeat::decode(datagram, protection).map(|beat| beat.node);
        if let Ok(node) = sender.as_ref()
            && !self.known.contains(node)
        {
            self.known.truncate(KNOWN - 1);
            self.known.insert(0, *node);
        }
    }

    /// A joiner says something on a stream.
    pub(super) fn overhear(&mut self, stream: usize, bytes: &[u8]) {
        if !self.is_here {
            return;
        }
        if self.openings.back().is_none_or(|(last, _)| *last < stream) {
            self.openings.push_back((stream, Vec::new()));
            if self.openings.len() > OPENINGS {
                self.openings.pop_front();
            }
        }
        if let Some((_, said)) = self.openings.iter_mut().find(|(of, _)| *of == stream) {
            let missing = OPENING - said.len();
            said.extend_from_slice(&bytes[..missing.min(bytes.len())]);
        }
    }

    /// What he says at a door: what a joiner said there or elsewhere, changed or not, or what comes to his mind.
    fn knock(&mut self) -> Vec<u8> {
        let mut said = match self.openings.len() {
            0 => Vec::new(),
            count => self.openings[self.rng.below(count as u64) as usize].1.clone(),
        };
        if said.is_empty() || self.rng.chance(200) {
            return (0..self.rng.below(100)).map(|_| self.rng.below(256) as u8).collect();
        }
        if self.rng.chance(300) {
            let at = self.rng.below(said.len() as u64) as usize;
            said[at] ^= 1 << self.rng.below(8);
        }
        said
    }

    /// Whom a joiner reaches that he leads astray.
    fn leads_astray(&mut self) -> bool {
        self.is_here && self.rng.chance(ASTRAY)
    }

    /// What he sends now, and to which of so many machines.
    fn act(&mut self, machines: usize, protection: &Protection) -> Option<(usize, Vec<u8>)> {
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
                datagram = self.claim(node, false).encode(protection).to_vec();
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
            answers: u64::MAX,
            creator: node,
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
        if let Some((to, bytes)) = self.env.attacker.act(self.slots.len(), &self.env.plan.config.protection) {
            self.env.queue.push(self.env.now, Event::Forgery { to, bytes });
            self.env.figures.attacks += 1;
        }
        if self.env.plan.config.protection.is_secure() && self.env.attacker.rng.chance(KNOCKS) {
            self.knock();
        }
        let pause = self.env.attacker.rng.between(1_000, 100_000);
        self.env.queue.push(self.env.now + pause, Event::Attack);
    }

    /// He comes to a machine that listens.
    fn knock(&mut self) {
        let machines = self.slots.len() as u64;
        let [to, as_whom] = [(); 2].map(|()| self.env.attacker.rng.below(machines) as usize);
        let (said, meeting) = (self.env.attacker.knock(), self.env.meet(address(as_whom), address(to)));
        let listens = |machine: &&mut Machine| machine.node().role().is_primary() && machine.node().wants_connection();
        let Some(machine) = self.awake(to).filter(listens) else { return };
        let mut door = machine.node().handshake(&meeting);
        // He is told nothing, or that he is a stranger.
        let _ = door.receive(&said);
        if door.is_done() {
            let text = format!("machine {to} opens its door to somebody without the key");
            self.env.audit.broken(Check::Genuine, text);
        }
        self.env.figures.attacks += 1;
    }

    /// A joiner who dials machine `target` is led there, or thinks that it dials somebody else; returns whom it dials.
    pub(super) fn dialled(&mut self, target: usize) -> usize {
        let env = &mut self.env;
        let astray = env.plan.config.protection.is_secure() && self.phase.has_faults() && env.attacker.leads_astray();
        if astray { NOWHERE } else { target }
    }

    /// The machines at the ends of a stream meant each other, if they have become twins.
    pub(super) fn check_ends(&mut self, stream: usize, index: usize) {
        let astray = self.env.network.streams[stream].dialled == NOWHERE;
        let paired = |machine: &Machine| {
            let role = machine.node().role();
            machine.devices.stream == Some(stream) && matches!(role, Role::Loading | Role::Transferring)
        };
        if astray && self.slots[index].machine.as_ref().is_some_and(paired) {
            let text = format!("machine {index} has a twin on a stream that was meant for another machine");
            self.env.audit.broken(Check::Genuine, text);
        }
    }
}
