//! What the hypervisor does around a node: runs the guest, holds output, carries out actions, checks the rules.

use super::World;
use super::arbiter::Question;
use super::guest::{Guest, PAGES};
use super::transfer::Transfer;
use pollux_ft::{
    Action, AppendError, Config, Control, EntryRef, Identity, Node, NodeId, NotLive, Position, Role, Seq, Start, Term,
    Time, Verdict,
};

pub(crate) struct Machine {
    pub(crate) node: Node,
    pub(crate) guest: Guest,
    pub(crate) stream: Option<usize>,
    pub(crate) closing: bool,
    /// Frames held: number of their `Output` entry (none yet while the log is full), position, content.
    held: Vec<(Option<u64>, u64, u64)>,
    /// Frames up to this `Output` entry may leave, when the card takes them.
    released: u64,
    pub(crate) transfer: Option<Transfer>,
    question: Option<Question>,
    /// The primary is to hand over as soon as it can.
    pub(crate) switch_over: bool,
    pub(crate) id: u64,
    loaded_machine: Vec<u8>,
    /// When the loaded state will have been checked.
    check_at: Option<(u64, u64)>,
    packet: Option<Vec<u8>>,
    next_digest: u64,
    pub(crate) power_off_at: Option<u64>,
    pub(crate) log: Vec<Action>,
}

pub(crate) fn identity(node: u64) -> Identity {
    Identity {
        node: NodeId(node),
        pair: "gemini".into(),
        build: "test".into(),
        cpu_digest: 1,
        cpu_name: "model".into(),
        counter: "ticks".into(),
        guest_memory: PAGES as u64 * 4096,
        guest_image: "guest".into(),
    }
}

pub(crate) fn config() -> Config {
    Config { send_buffer_bytes: 200 * 1024, receive_buffer_bytes: 64 * 1024, max_entries: 400, ..Config::default() }
}

impl Machine {
    pub(crate) fn new(now: Time, start: Start, config: Config, id: u64) -> Self {
        Self {
            node: Node::new(now, start, config, identity(id)).unwrap(),
            guest: if start == Start::Primary { Guest::booted() } else { Guest::empty() },
            stream: None,
            closing: false,
            held: Vec::new(),
            released: 0,
            transfer: None,
            question: None,
            switch_over: false,
            id,
            loaded_machine: Vec::new(),
            check_at: None,
            packet: None,
            next_digest: 0,
            power_off_at: None,
            log: Vec::new(),
        }
    }

    pub(crate) fn step(&mut self, world: &mut World, index: usize) {
        let now = Time(world.now);
        self.actions(world, index);
        if let Some(question) = &mut self.question {
            world.arbiter.ask(world.now, &mut world.rng, index, self.id, question);
        }
        self.send_released(world);
        self.feed();
        match self.node.role() {
            Role::Transferring if self.transfer.as_ref().is_some_and(Transfer::is_final) => {}
            role if role.runs_guest() => self.run_primary(world, now),
            Role::Backup | Role::Draining => self.run_backup(world, now),
            Role::Loading => self.check_state(world, now),
            _ => {}
        }
        self.node.tick(now);
        self.actions(world, index);
        assert!(self.node.role() == Role::Halted || self.node.next_timeout() > Some(now), "a timeout in the past");
    }

    fn client_sees(world: &mut World, position: u64, content: u64) {
        if let Some(before) = world.seen.insert(position, content) {
            assert_eq!(before, content, "a duplicate differs");
            world.duplicates += 1;
        }
    }

    /// Sends what may leave as far as the card has room, and says what has left.
    fn send_released(&mut self, world: &mut World) {
        let room = if world.rng.chance(20) { world.rng.below(2) as usize } else { usize::MAX };
        let ready = self.held.iter().take_while(|(of, ..)| of.is_some_and(|of| of <= self.released)).count();
        let sent: Vec<_> = self.held.drain(..ready.min(room)).collect();
        for (_, position, content) in &sent {
            Self::client_sees(world, *position, *content);
        }
        // Each frame has an entry of its own.
        if let Some((Some(of), ..)) = sent.last() {
            self.node.output_left(Seq(*of));
        }
    }

    fn actions(&mut self, world: &mut World, index: usize) {
        while let Some(action) = self.node.poll_action() {
            self.act(world, index, &action);
            if !matches!(action, Action::Release(_) | Action::LoadMemory { .. } | Action::LoadMachine(_)) {
                self.log.push(action);
            }
        }
    }

    fn act(&mut self, world: &mut World, index: usize, action: &Action) {
        match action {
            Action::Release(seq) => {
                assert!(world.held[1 - index] >= seq.0, "released before the backup held it");
                self.released = seq.0;
                self.send_released(world);
            }
            Action::Unprotected { .. } => {
                self.transfer = None;
                for (_, position, content) in self.held.drain(..) {
                    Self::client_sees(world, position, content);
                }
            }
            Action::BeginTransfer => {
                self.released = 0;
                self.guest.dirty.clear();
                self.transfer = Some(Transfer::new(world.rng.chance(50)));
            }
            Action::AskArbiter { term } => self.question = Some(Question { term: *term, at: world.now }),
            Action::ArbiterNotNeeded => {
                assert!(self.question.take().is_some(), "a question was withdrawn that nobody asked");
            }
            Action::HandedOver { .. } => {
                self.guest = Guest::empty();
                self.held.clear();
            }
            Action::BeginLoad => {
                self.guest = Guest::empty();
                self.loaded_machine.clear();
                self.check_at = None;
            }
            Action::LoadMemory { gpa, data } => self.guest.load(*gpa, data),
            Action::LoadZero { gpa, len } => self.guest.load(*gpa, &vec![0; *len as usize]),
            Action::LoadMachine(data) => self.loaded_machine.extend_from_slice(data),
            Action::StateLoaded { position, digest } => {
                let words: Vec<u64> = self
                    .loaded_machine
                    .chunks_exact(8)
                    .map(|raw| u64::from_le_bytes(raw.try_into().unwrap()))
                    .collect();
                (self.guest.chain, self.guest.position) = (words[0], position.0);
                self.guest.sent = words[1..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
                self.check_at = Some((world.now + world.rng.below(60_000), *digest));
            }
            Action::Abandoned { .. } => self.guest = Guest::empty(),
            Action::CloseConnection => self.closing = self.stream.is_some(),
            _ => {}
        }
    }

    fn check_state(&mut self, world: &World, now: Time) {
        if let Some((at, digest)) = self.check_at
            && at <= world.now
        {
            assert_eq!(self.guest.digest(), digest, "the state changed on its way");
            self.check_at = None;
            self.node.joined(now);
        }
    }

    /// Logs an entry and applies it; `false`: the log is full, the guest must wait.
    fn input(&mut self, now: Time, entry: EntryRef<'_>) -> bool {
        match self.node.append(now, Position(self.guest.position), entry) {
            Err(AppendError::Full) => return false,
            Err(AppendError::BadData) => panic!("bad data"),
            Ok(_) | Err(AppendError::NotLogging) => {}
        }
        assert!(self.guest.apply(&entry));
        true
    }

    fn run_primary(&mut self, world: &mut World, now: Time) {
        if !self.retry_outputs(world, now) {
            return;
        }
        if self.packet.is_none() && world.rng.chance(20) {
            let len = world.rng.below(1500);
            self.packet = Some((0..len).map(|byte| (byte ^ world.now) as u8).collect());
        }
        if let Some(packet) = self.packet.take()
            && !self.input(now, EntryRef::PacketIn(&packet))
        {
            self.packet = Some(packet);
            return;
        }
        if world.rng.chance(10) && !self.input(now, EntryRef::Clock { base_ns: world.now, rate: 1 << 32 }) {
            return;
        }
        if self.guest.position >= self.next_digest {
            let slice = world.rng.below(PAGES as u64) as u32;
            let entry = EntryRef::Digest { machine: self.guest.chain, slice, memory: self.guest.slice(slice) };
            if !self.input(now, entry) {
                return;
            }
            self.next_digest = self.guest.position + 200;
        }
        if self.power_off_at.is_some_and(|at| at <= self.guest.position) {
            let _ = self.node.append(now, Position(self.guest.position), EntryRef::Control(Control::PowerOff));
            return;
        }
        if self.switch_over {
            self.switch_over = self.node.switch_over(now, Position(self.guest.position)).is_err();
            return;
        }
        for _ in 0..world.rng.below(30) {
            let frame = self.guest.tick();
            self.node.progress(Position(self.guest.position));
            if let Some(content) = frame {
                self.held.push((None, self.guest.position, content));
                if !self.retry_outputs(world, now) {
                    return;
                }
            }
        }
        let _ = self.node.append(now, Position(self.guest.position), EntryRef::Horizon);
    }

    /// Asks for the `Output` entry of the frame that has none yet.
    fn retry_outputs(&mut self, world: &mut World, now: Time) -> bool {
        let Some((number @ None, position, _)) = self.held.last_mut() else { return true };
        match self.node.append(now, Position(*position), EntryRef::Output) {
            Ok(seq) => *number = Some(seq.0),
            Err(AppendError::Full) => return false,
            Err(_) => {
                assert!(!self.node.holds_output(), "output would leave without the backup's ack");
                let (_, position, content) = self.held.pop().unwrap();
                Self::client_sees(world, position, content);
            }
        }
        true
    }

    fn run_backup(&mut self, world: &mut World, now: Time) {
        let limit = self.node.run_limit().unwrap().0;
        if self.node.next_record().is_some() || self.guest.position < limit {
            let early = self.node.went_live(now, Position(self.guest.position));
            assert_eq!(early, Err(self.not_drained()), "live before the log is drained");
        }
        let mut budget = world.rng.below(40);
        loop {
            let target = self.node.next_record().map_or(limit, |record| record.position.0);
            assert!(target <= limit);
            while self.guest.position < target && budget > 0 {
                self.guest.tick();
                budget -= 1;
            }
            self.node.progress(Position(self.guest.position));
            if self.guest.position < target {
                return;
            }
            let Some(record) = self.node.next_record() else { break };
            assert!(self.guest.apply(&record.entry.borrow()), "the backup differs at {target}");
            self.node.applied(now, Position(target));
            if self.node.role() == Role::Halted {
                return;
            }
        }
        if self.node.role() == Role::Draining && self.node.went_live(now, Position(limit)).is_ok() {
            self.live(world, limit);
        }
    }

    fn not_drained(&self) -> NotLive {
        if self.node.role() == Role::Draining { NotLive::NotDrained } else { NotLive::NotTakingOver }
    }

    /// The arbiter's answer reaches this machine.
    pub(crate) fn answered(&mut self, now: Time, term: Term, verdict: Verdict) {
        if self.question.is_some_and(|question| question.term == term) {
            self.question = None;
        }
        self.node.arbiter_answered(now, term, verdict);
    }

    /// What the client saw must lie in our past, and what it may not have seen is sent now.
    fn live(&mut self, world: &mut World, last: u64) {
        world.takeovers += 1;
        self.next_digest = last;
        for (position, content) in &world.seen {
            assert!(*position <= last, "the client saw output from {position}, we go live at {last}");
            let ours = self.guest.sent.binary_search(&(*position, *content));
            assert!(ours.is_ok(), "the client saw output at {position} that we did not make");
        }
        let released = self.node.released().position.0;
        for (position, content) in self.guest.sent.clone() {
            if position > released {
                Self::client_sees(world, position, content);
            }
            assert_eq!(world.seen.get(&position), Some(&content), "output at {position} was lost");
        }
    }
}
