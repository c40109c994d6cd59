//! What lies around the machines: networks, clients, the arbiter, and the one who sees everything.

use super::attacker::Attacker;
use super::event::{Event, Queue};
use super::operator::Operator;
use crate::arbiter::Arbiter;
use crate::check::{Audit, Leave};
use crate::client::Clients;
use crate::figures::Figures;
use crate::frame::{NO_CLIENT, Reply};
use crate::net::{MACHINES, Network};
use crate::plan::Plan;
use crate::rng::Rng;
use crate::trace::{Keep, Trace};
use pollux_ft::{Meeting, NodeId, PairKey, Protection, Term};
use std::net::Ipv4Addr;

/// Everything but the machines.
#[derive(Debug)]
pub(crate) struct Env {
    pub(crate) now: u64,
    pub(crate) plan: Plan,
    pub(crate) rng: Rng,
    pub(crate) queue: Queue,
    pub(crate) network: Network,
    pub(crate) arbiter: Arbiter,
    pub(crate) clients: Clients,
    pub(crate) audit: Audit,
    pub(crate) trace: Trace,
    pub(crate) figures: Figures,
    pub(crate) attacker: Attacker,
    pub(crate) operator: Operator,
    /// The machine that the switch of the client network sends frames for the guest to.
    pub(crate) port: Option<usize>,
    /// Machines whose client card takes no frames at the moment.
    pub(crate) stuck: [bool; MACHINES],
    /// Machines whose disk is slow at the moment.
    pub(crate) slow: [bool; MACHINES],
    /// Of what machines draw that nobody may guess.
    secrets: Rng,
    nodes: u64,
}

/// Runs whose machines have a key, and ciphers at work, per thousand. The others protect their words by a checksum, which
/// costs less, and which no attacker there looks at.
const RUNS_WITH_KEY: u64 = 200;
/// Each byte of the first key.
const FIRST_KEY: u8 = 7;

/// Address of a machine on the log network.
pub(super) fn address(machine: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, machine as u8)
}

impl Env {
    pub(crate) fn new(seed: u64, mut plan: Plan, keep: Keep) -> Self {
        let mut secrets = Rng::new(seed, 8);
        if secrets.chance(RUNS_WITH_KEY) {
            plan.config.protection = Protection::from(PairKey::new(&[FIRST_KEY; 32]));
        }
        Self {
            secrets,
            now: 0,
            rng: Rng::new(seed, 2),
            queue: Queue::default(),
            network: Network::new(plan.quality, Rng::new(seed, 3)),
            arbiter: Arbiter::new(Rng::new(seed, 4)),
            clients: Clients::new(plan.clients, plan.think, Rng::new(seed, 5)),
            audit: Audit::new(plan.arbiter),
            trace: Trace::new(keep),
            figures: Figures::default(),
            attacker: Attacker::new(Rng::new(seed, 7)),
            operator: Operator::new(Rng::new(seed, 9), &plan.config.protection, FIRST_KEY),
            port: None,
            stuck: [false; MACHINES],
            slow: [false; MACHINES],
            nodes: 0,
            plan,
        }
    }

    /// The number of the next node that starts.
    pub(crate) fn next_node(&mut self) -> u64 {
        self.nodes += 1;
        self.nodes
    }

    /// What a connection is to `machine`.
    pub(super) fn meeting(&mut self, stream: usize, machine: usize) -> Meeting {
        let stream = &self.network.streams[stream];
        let listener = if stream.ends[0] == machine { stream.dialled } else { machine };
        let dialer = stream.ends[0];
        self.meet(address(dialer), address(listener))
    }

    /// A new connection.
    pub(super) fn meet(&mut self, dialer: Ipv4Addr, listener: Ipv4Addr) -> Meeting {
        let random = core::array::from_fn(|_| self.secrets.below(256) as u8);
        Meeting { dialer, listener, random }
    }

    pub(crate) fn wake_soon(&mut self, machine: usize, after: u64) {
        self.queue.push(self.now + after, Event::Nudge { machine });
    }

    /// Heartbeats go to every other machine.
    pub(crate) fn send_datagram(&mut self, from: usize, bytes: &[u8]) {
        for to in (0..self.plan.machines).filter(|to| *to != from) {
            for after in self.network.datagram(from, to).into_iter().flatten() {
                self.queue.push(self.now + after, Event::Datagram { to, bytes: bytes.to_vec() });
            }
        }
    }

    /// Hands bytes to a stream, which takes what its window has room for; `all`: they are its last.
    pub(crate) fn send_bytes(&mut self, stream: usize, from: usize, bytes: &[u8], all: bool) -> usize {
        let (count, arrivals) = self.network.push(self.now, stream, from, bytes, all);
        if count > 0 {
            let end = self.network.streams[stream].end(from);
            for at in arrivals {
                self.queue.push(at, Event::Bytes { stream, end });
            }
        }
        count
    }

    /// Closes a stream in order.
    pub(crate) fn close_stream(&mut self, stream: usize, from: usize) {
        let end = self.network.streams[stream].end(from);
        let at = self.network.close(self.now, stream, end);
        self.queue.push(at, Event::Bytes { stream, end });
    }

    pub(crate) fn ask_arbiter(&mut self, machine: usize, node: NodeId, term: Term) {
        if let Some(after) = self.arbiter.flight(machine) {
            self.queue.push(self.now + after, Event::ArbiterAsked { machine, node, term });
        }
    }

    pub(crate) fn look_at_arbiter(&mut self, machine: usize, node: NodeId) {
        if let Some(after) = self.arbiter.flight(machine) {
            self.queue.push(self.now + after, Event::ArbiterLooked { machine, node });
        }
    }

    /// The date, by everybody's clock: finer than seconds, so that each moment has its own.
    pub(crate) const fn date(&self) -> u64 {
        self.now
    }

    /// Machine `index` creates a guest: for clients all begins anew.
    pub(crate) fn creates_guest(&mut self, index: usize) {
        self.audit.creates(index);
        self.clients.begin_anew();
        self.figures.created += 1;
    }

    /// A frame of the guest leaves the client card of a machine.
    pub(crate) fn guest_sends(&mut self, machine: usize, frame: &[u8], why: Leave) {
        self.audit.leaves(machine, frame, why, &self.arbiter);
        self.port = Some(machine);
        let Some(reply) = Reply::decode(frame).filter(|reply| reply.client != NO_CLIENT) else { return };
        for _ in 0..self.copies() {
            let at = self.now + self.rng.between(100, 3_000);
            self.queue.push(at, Event::ToClient { life: self.audit.lives(), client: reply.client as usize, reply });
        }
    }

    /// A client sends a frame to the guest.
    pub(crate) fn client_sends(&mut self, frame: &[u8]) {
        for _ in 0..self.copies() {
            let at = self.now + self.rng.between(100, 3_000);
            self.queue.push(at, Event::ToGuest { life: self.audit.lives(), frame: frame.to_vec() });
        }
    }

    /// How often a frame arrives on the client network.
    fn copies(&mut self) -> usize {
        match self.rng.below(100) {
            0 => 0,
            1 => 2,
            _ => 1,
        }
    }

    /// The switch learns where the guest is.
    pub(crate) fn announce(&mut self, machine: usize) {
        self.audit.speaks(machine);
        if !self.stuck[machine] && self.copies() > 0 {
            self.figures.announcements += 1;
            self.port = Some(machine);
        }
    }
}
