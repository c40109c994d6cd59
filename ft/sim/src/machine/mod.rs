//! A machine around its node: runs the guest, holds output, carries out actions, as the hypervisor's replica does.
//!
//! A turn may end anywhere: the fuse counts steps that the world outside could notice, and when it blows, nothing
//! more happens, as if power was lost there or the machine froze.

mod actions;
mod follow;
mod live;
mod output;
mod suspicion;
mod transfer;

use crate::check::{LogId, View};
use crate::guest::Guest;
use crate::trace::Who;
use crate::world::Env;
use crate::world::event::Event;
use live::NextDigest;
use pollux_ft::flow::Throttle;
use pollux_ft::{Identity, Node, NodeId, Role, Start, Term, Time, Verdict};
use pollux_nic::{Gate, GateMode};
use std::collections::VecDeque;
use suspicion::Suspicion;
use transfer::{Loading, Transfer};

/// Longest time that a guest runs before the machine looks around, in microseconds.
const SLICE: u64 = 10_000;
/// When to look again at what was full, in microseconds.
const RETRY: u64 = 1_000;
/// How often the arbiter is asked again, in microseconds.
const ASK_AGAIN: u64 = 150_000;

/// What ends a turn early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blow {
    /// Power is lost.
    Crash,
    /// It stands still, for so many microseconds.
    Freeze(u64),
}

/// A question to the arbiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Question {
    term: Term,
    again_at: u64,
}

/// One machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) index: usize,
    /// The name of the node; a machine that starts again has another one.
    pub(crate) id: NodeId,
    pub(crate) node: Node,
    pub(crate) guest: Guest,
    pub(crate) gate: Gate,
    pub(crate) stream: Option<usize>,
    /// Frames of clients that wait for an exact stop.
    pub(crate) ingress: VecDeque<Vec<u8>>,
    /// Hashes of all frames that the guest ever made.
    history: Vec<u64>,
    /// `Output` entries: number, and how many frames the guest had made.
    seals: VecDeque<(u64, u64)>,
    /// Frames made before output was held.
    unheld: u64,
    /// Position at which the oldest frame without an `Output` entry was made.
    unsealed_since: Option<u64>,
    transfer: Option<Transfer>,
    loading: Loading,
    question: Option<Question>,
    /// A takeover is under way.
    takeover: bool,
    suspicion: Suspicion,
    throttle: Throttle,
    /// Ticks that the guest may still run in this turn.
    credit: u64,
    last_turn: u64,
    /// Ticks in a thousand microseconds.
    speed: u64,
    /// What this machine's clock shows beyond the world's, in microseconds.
    clock_offset: u64,
    /// Wall time at which guest time would be 0, in nanoseconds.
    origin: i128,
    next_clock: u64,
    next_digest: NextDigest,
    logged: (u64, u64),
    power_due: bool,
    reset_due: bool,
    switch_due: bool,
    /// The guest ended here.
    pub(crate) ended: bool,
    /// Its guest's state was damaged on purpose.
    pub(crate) flipped: bool,
    wake_at: u64,
    fuse: Option<(u32, Blow)>,
    pub(crate) blown: Option<Blow>,
}

/// What the machines of a pair say of themselves.
fn identity(node: NodeId) -> Identity {
    Identity {
        node,
        pair: "gemini".into(),
        build: "simulated".into(),
        cpu_digest: 1,
        cpu_name: "model".into(),
        counter: "ticks".into(),
        guest_memory: (crate::guest::PAGES * crate::guest::PAGE) as u64,
        guest_image: "model".into(),
    }
}

impl Machine {
    pub(crate) fn new(env: &mut Env, index: usize, start: Start) -> Self {
        let id = NodeId(env.rng.below(1 << 32) << 16 | env.next_node());
        let clock_offset = env.rng.below(1 << 40);
        let plan = &env.plan;
        let guest = match start {
            Start::Primary => Guest::booted(plan.busy_guest, plan.work),
            Start::Backup => Guest::empty(),
        };
        let config = plan.config.clone();
        let node = Node::new(Time(env.now + clock_offset), start, config, identity(id)).expect("plans are checked");
        let mut machine = Self {
            index,
            id,
            node,
            guest,
            gate: Gate::new(plan.gate_frames, plan.gate_frames * 300),
            stream: None,
            ingress: VecDeque::new(),
            history: Vec::new(),
            seals: VecDeque::new(),
            unheld: 0,
            unsealed_since: None,
            transfer: None,
            loading: Loading::default(),
            question: None,
            takeover: false,
            suspicion: Suspicion::default(),
            throttle: Throttle::new(plan.lag_bound),
            credit: 0,
            last_turn: env.now,
            speed: plan.speeds[index],
            clock_offset,
            origin: 0,
            next_clock: 0,
            next_digest: NextDigest::default(),
            logged: (0, 0),
            power_due: false,
            reset_due: false,
            switch_due: false,
            ended: false,
            flipped: false,
            wake_at: u64::MAX,
            fuse: None,
            blown: None,
        };
        machine.start_clock(env);
        machine
    }

    /// This machine's clock.
    pub(crate) fn local(&self, env: &Env) -> Time {
        Time(env.now + self.clock_offset)
    }

    /// The log that this machine follows.
    fn followed(&self) -> LogId {
        (self.node.peer().unwrap_or_default(), self.node.session())
    }

    /// The log that this machine writes.
    fn written(&self) -> LogId {
        (self.id, self.node.session())
    }

    /// It runs the guest, and nothing else does.
    pub(crate) fn serves(&self) -> bool {
        self.node.role().is_primary() && !self.ended
    }

    /// What this machine's clock shows beyond the world's, in microseconds.
    pub(crate) fn clock_offset(&self) -> u64 {
        self.clock_offset
    }

    /// It has the guest's state, or runs it.
    pub(crate) fn holds_guest(&self) -> bool {
        let role = self.node.role();
        role.is_primary() || role.is_backup() || role == Role::Starting
    }

    /// The first primary starts; without an arbiter it is live at once.
    pub(crate) fn power_on(&mut self, env: &mut Env) {
        if self.node.role() == Role::Alone {
            self.open_gate(env);
        }
    }

    /// The arbiter's answer.
    pub(crate) fn arbiter_answered(&mut self, env: &Env, term: Term, granted: bool) {
        if self.question.is_some_and(|question| question.term == term) {
            self.question = None;
        }
        let verdict = if granted { Verdict::Granted } else { Verdict::Taken };
        self.node.arbiter_answered(self.local(env), term, verdict);
    }

    /// An operator wants the machines to change roles; whether that can be tried.
    pub(crate) fn request_switch(&mut self) -> bool {
        self.switch_due = self.node.role() == Role::Protected;
        self.switch_due
    }

    /// The guest is to be reset.
    pub(crate) fn request_reset(&mut self) -> bool {
        self.reset_due = self.serves();
        self.reset_due
    }

    /// Nothing is wrong with it, or about to go wrong.
    pub(crate) fn is_well(&self) -> bool {
        let whole = self.fuse.is_none() && self.blown.is_none() && !self.flipped;
        whole && !self.switch_due && self.question.is_none()
    }

    /// It is to end after `steps` steps that others can notice.
    pub(crate) fn light_fuse(&mut self, steps: u32, blow: Blow) {
        self.fuse = Some((steps, blow));
    }

    /// It goes on after it was frozen.
    pub(crate) fn thaw(&mut self, env: &Env) {
        self.blown = None;
        self.last_turn = env.now;
    }

    /// Whether the next step may be made.
    fn goes_on(&mut self) -> bool {
        match &mut self.fuse {
            Some((0, blow)) => {
                self.blown = Some(*blow);
                self.fuse = None;
            }
            Some((steps, _)) => *steps -= 1,
            None => {}
        }
        self.blown.is_none()
    }

    /// Does all that can be done now.
    pub(crate) fn turn(&mut self, env: &mut Env) {
        let elapsed = env.now - self.last_turn;
        self.credit = (elapsed * self.speed / 1000).min(SLICE * self.speed / 1000);
        self.last_turn = env.now;
        self.show(env);
        self.release(env);
        self.do_actions(env);
        let now = self.local(env);
        if self.blown.is_none() && self.node.next_timeout().is_some_and(|at| at <= now) {
            self.node.tick(now);
            self.do_actions(env);
        }
        let wake = match self.node.role() {
            _ if self.ended => None,
            Role::Backup | Role::Draining => self.follow_step(env),
            Role::Loading => self.check_loaded(env),
            role if role.runs_guest() => self.live_step(env),
            _ => None,
        };
        self.do_actions(env);
        self.ask(env);
        self.push(env);
        self.show(env);
        self.plan_wake(env, wake);
    }

    /// Sends what the node has to say.
    fn push(&mut self, env: &mut Env) {
        let now = self.local(env);
        while self.goes_on()
            && let Some(datagram) = self.node.poll_datagram(now)
        {
            env.send_datagram(self.index, &datagram);
        }
        if let Some(stream) = self.stream
            && self.goes_on()
        {
            let sent = env.send_bytes(stream, self.index, self.node.transmit(), false);
            self.node.transmitted(sent);
        }
    }

    /// Asks the arbiter, again and again until it answers.
    fn ask(&mut self, env: &mut Env) {
        let Some(question) = self.question.filter(|question| question.again_at <= env.now) else { return };
        if self.goes_on() {
            let again_at = env.now + ASK_AGAIN;
            self.question = Some(Question { again_at, ..question });
            env.ask_arbiter(self.index, self.id, question.term);
        }
    }

    /// Shows the world what this machine is now.
    pub(crate) fn show(&mut self, env: &mut Env) {
        let view = View {
            node: self.id,
            role: self.node.role(),
            term: self.node.term(),
            session: self.node.session(),
            peer: self.node.peer(),
            gate_open: self.gate.mode() == GateMode::Open,
        };
        env.audit.look(self.index, Some(view), &env.arbiter);
        env.audit.gate_holds(self.index, self.gate.held());
        if self.node.role().is_backup() {
            env.audit.holds(self.followed(), self.node.newest());
        }
        self.check_memory(env);
    }

    fn check_memory(&self, env: &mut Env) {
        let config = &env.plan.config;
        let queued = self.node.transmit().len();
        if queued > config.send_buffer_bytes + pollux_ft::seal::MAX_SEALED {
            let text = format!("machine {} has {queued} bytes to send", self.index);
            env.audit.broken(crate::check::Check::Memory, text);
        }
        let most = config.max_entries as usize;
        let follows = self.node.role().is_backup() && !self.flipped;
        let backlog = if follows { env.audit.backlog(self.followed()) } else { 0 };
        if backlog > most {
            let text = format!("machine {} has {backlog} entries to apply, at most {most} are allowed", self.index);
            env.audit.broken(crate::check::Check::Memory, text);
        }
    }

    /// Asks for the next turn: at `wake`, or when the node wants one.
    fn plan_wake(&mut self, env: &mut Env, wake: Option<u64>) {
        let node = self.node.next_timeout().map(|at| at.0.saturating_sub(self.clock_offset));
        let asks = self.question.map(|question| question.again_at);
        let Some(at) = [node, wake, asks].into_iter().flatten().min() else { return };
        let at = at.max(env.now + 1);
        if at < self.wake_at || self.wake_at <= env.now {
            self.wake_at = at;
            env.queue.push(at, Event::Wake { machine: self.index });
        }
    }

    /// Whether an event at `now` is the wake-up that was asked for last.
    pub(crate) fn is_woken(&self, now: u64) -> bool {
        self.wake_at == now
    }

    fn note(&self, env: &mut Env, number: u64, text: impl FnOnce() -> String) {
        env.trace.note(env.now, Who::Machine(self.index), [number, self.guest.position()], text);
    }
}
