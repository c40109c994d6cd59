//! Two machines, a network and a client in memory. The same seed gives the same run.

pub(crate) mod arbiter;
pub(crate) mod guest;
pub(crate) mod machine;
pub(crate) mod net;
mod transfer;

use arbiter::Arbiter;
use machine::Machine;
use net::{Rng, Stream};
use pollux_ft::{Config, Role, Start, Time};
use std::collections::BTreeMap;

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    config: Config,
    pub(crate) arbiter: Arbiter,
    pub(crate) machines: [Option<Machine>; 2],
    /// Newest entry that each machine ever held as a backup, also the dead.
    pub(crate) held: [u64; 2],
    streams: Vec<Stream>,
    datagrams: Vec<(u64, usize, Vec<u8>)>,
    /// Heartbeats away from machine n get through.
    pub(crate) heartbeats: [bool; 2],
    /// No stream between the machines comes about.
    apart: bool,
    /// Streams stay open and deliver nothing.
    pub(crate) stalled: bool,
    /// All that the client saw: position and content of frames.
    pub(crate) seen: BTreeMap<u64, u64>,
    pub(crate) duplicates: u64,
    pub(crate) takeovers: u64,
    nodes: u64,
}

impl World {
    /// A pair without an arbiter.
    pub(crate) fn new(seed: u64) -> Self {
        Self::with(seed, machine::config())
    }

    /// A pair that has an arbiter.
    pub(crate) fn arbitrated(seed: u64) -> Self {
        Self::with(seed, Config { arbiter: true, ..machine::config() })
    }

    pub(crate) fn with(seed: u64, config: Config) -> Self {
        let mut world = Self {
            now: 1_000_000,
            rng: Rng(seed),
            config,
            arbiter: Arbiter::default(),
            machines: [None, None],
            held: [0; 2],
            streams: Vec::new(),
            datagrams: Vec::new(),
            heartbeats: [true; 2],
            apart: false,
            stalled: false,
            seen: BTreeMap::new(),
            duplicates: 0,
            takeovers: 0,
            nodes: 0,
        };
        world.start(0, Start::Primary);
        world.start(1, Start::Backup);
        world
    }

    pub(crate) fn start(&mut self, index: usize, start: Start) {
        self.nodes += 1;
        self.machines[index] = Some(Machine::new(Time(self.now), start, self.config.clone(), self.nodes));
    }

    pub(crate) fn kill(&mut self, index: usize) {
        self.machines[index] = None;
    }

    /// Resets the newest stream; each end notices late or never.
    pub(crate) fn cut(&mut self) {
        let mut notice = || match self.rng.below(5) {
            0 => u64::MAX,
            _ => self.now + self.rng.below(500_000),
        };
        let cut = [notice(), notice()];
        if let Some(stream) = self.streams.last_mut() {
            stream.cut.get_or_insert(cut);
        }
    }

    pub(crate) fn role(&self, index: usize) -> Option<Role> {
        self.machines[index].as_ref().map(|machine| machine.node.role())
    }

    pub(crate) fn primary(&self) -> Option<usize> {
        (0..2).find(|index| self.role(*index).is_some_and(Role::is_primary))
    }

    pub(crate) fn primaries(&self) -> usize {
        (0..2).filter(|index| self.role(*index).is_some_and(Role::is_primary)).count()
    }

    /// Both know that the guest is protected.
    pub(crate) fn protected(&self) -> bool {
        let roles = [self.role(0), self.role(1)];
        roles.contains(&Some(Role::Protected)) && roles.contains(&Some(Role::Backup))
    }

    pub(crate) fn run(&mut self, micros: u64) {
        let end = self.now + micros;
        while self.now < end {
            self.step();
        }
    }

    /// Runs until `done`, at most for `micros`; whether it came true.
    pub(crate) fn run_until(&mut self, micros: u64, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + micros;
        while self.now < end && !done(self) {
            self.step();
        }
        done(self)
    }

    pub(crate) fn step(&mut self) {
        self.now += 200 + self.rng.below(1500);
        self.connect();
        self.deliver();
        for index in 0..2 {
            let Some(mut machine) = self.machines[index].take() else { continue };
            machine.step(self, index);
            self.transmit(&mut machine, index);
            if machine.node.role().is_backup() {
                self.held[index] = self.held[index].max(machine.node.newest().0);
            }
            self.machines[index] = Some(machine);
        }
        self.check_reign();
    }

    /// At most one machine is live, in a term that is its own.
    fn check_reign(&self) {
        let live = || self.machines.iter().flatten().filter(|machine| machine.node.role() == Role::Alone);
        assert!(live().count() <= 1, "two machines live");
        if !self.config.arbiter {
            return;
        }
        for machine in live() {
            let winner = self.arbiter.winners.get(&machine.node.term().0);
            assert_eq!(winner, Some(&machine.id), "live in a term of somebody else");
        }
    }

    /// Cuts the two machines off from each other, or joins them again.
    pub(crate) fn partition(&mut self, cut: bool) {
        self.heartbeats = [!cut; 2];
        self.apart = cut;
        if cut {
            self.cut();
        }
    }

    fn connect(&mut self) {
        let now = Time(self.now);
        let [Some(a), Some(b)] = &mut self.machines else { return };
        let wanted = |m: &Machine| m.stream.is_none() && m.node.wants_connection();
        let joins = a.node.role() == Role::Joining || b.node.role() == Role::Joining;
        if wanted(a) && wanted(b) && joins && !self.apart && self.rng.chance(5) {
            self.streams.push(Stream::default());
            for machine in [a, b] {
                machine.stream = Some(self.streams.len() - 1);
                machine.node.connected(now);
            }
        }
    }

    fn transmit(&mut self, machine: &mut Machine, index: usize) {
        while let Some(datagram) = machine.node.poll_datagram(Time(self.now)) {
            if self.heartbeats[index] && !self.rng.chance(10) {
                let delay = if self.rng.chance(5) { 250_000 } else { 3_000 };
                self.datagrams.push((self.now + self.rng.below(delay), 1 - index, datagram.to_vec()));
            }
        }
        let Some(id) = machine.stream else { return };
        let pipe = &mut self.streams[id].pipes[index];
        let ready = machine.node.transmit();
        let mut count = ready.len();
        if !machine.closing {
            count = count.min(pipe.room()).min(1 + self.rng.below(40_000) as usize);
        }
        if count > 0 {
            pipe.push(self.now + self.rng.below(4_000), &ready[..count]);
            machine.node.transmitted(count);
        }
        if core::mem::take(&mut machine.closing) {
            pipe.closed = true;
            machine.stream = None;
            machine.node.disconnected(Time(self.now));
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        for (index, node, term, verdict) in self.arbiter.run(now, &mut self.rng) {
            if let Some(machine) = self.machines[index].as_mut().filter(|machine| machine.id == node) {
                machine.answered(Time(now), term, verdict);
            }
        }
        for (_, to, datagram) in self.datagrams.extract_if(.., |(at, ..)| *at <= now) {
            if let Some(machine) = &mut self.machines[to] {
                machine.node.heartbeat_received(Time(now), &datagram);
            }
        }
        for index in 0..2 {
            let Some(machine) = &mut self.machines[index] else { continue };
            let Some(id) = machine.stream else { continue };
            let stream = &mut self.streams[id];
            if let Some(cut) = stream.cut {
                if cut[index] <= now {
                    machine.stream = None;
                    machine.node.disconnected(Time(now));
                }
                continue;
            }
            if self.stalled {
                continue;
            }
            let pipe = &mut stream.pipes[1 - index];
            while let Some((at, mut piece)) = pipe.pieces.pop_front() {
                let taken = if at <= now { machine.node.receive(Time(now), &piece) } else { 0 };
                pipe.in_flight -= taken;
                piece.drain(..taken);
                if !piece.is_empty() {
                    pipe.pieces.push_front((at, piece));
                    break;
                }
            }
            if pipe.closed && pipe.pieces.is_empty() {
                machine.stream = None;
                machine.node.disconnected(Time(now));
            }
        }
    }
}
