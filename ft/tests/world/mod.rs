//! Two machines, a network and a client in memory. The same seed gives the same run.

pub(crate) mod guest;
pub(crate) mod machine;
pub(crate) mod net;

use machine::Machine;
use net::{Rng, Stream};
use pollux_ft::{Role, Start, Time};
use std::collections::BTreeMap;

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) machines: [Option<Machine>; 2],
    /// Newest entry that each machine ever held as a backup, also the dead.
    pub(crate) held: [u64; 2],
    streams: Vec<Stream>,
    datagrams: Vec<(u64, usize, Vec<u8>)>,
    /// Heartbeats away from machine n get through.
    pub(crate) heartbeats: [bool; 2],
    /// All that the client saw: position and content of frames.
    pub(crate) seen: BTreeMap<u64, u64>,
    pub(crate) duplicates: u64,
    pub(crate) takeovers: u64,
    nodes: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = Self {
            now: 1_000_000,
            rng: Rng(seed),
            machines: [None, None],
            held: [0; 2],
            streams: Vec::new(),
            datagrams: Vec::new(),
            heartbeats: [true; 2],
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
        self.machines[index] = Some(Machine::new(Time(self.now), start, self.nodes));
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
        let open = |machine: &Machine| machine.node.role() == Role::Alone;
        assert!(self.machines.iter().flatten().filter(|m| open(m)).count() <= 1, "two machines live");
    }

    fn connect(&mut self) {
        let now = Time(self.now);
        let [Some(a), Some(b)] = &mut self.machines else { return };
        let wanted = |m: &Machine| m.stream.is_none() && m.node.wants_connection();
        let joins = a.node.role() == Role::Joining || b.node.role() == Role::Joining;
        if wanted(a) && wanted(b) && joins && self.rng.chance(5) {
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
