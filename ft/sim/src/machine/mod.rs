//! A machine of the simulated world: the very driver of real machines, between modelled devices.
//!
//! A turn may end anywhere: the fuse counts the boundaries at which a driver says that the world outside could notice
//! what it does next, and when it blows, nothing more happens, as if power was lost there or the machine froze.

mod devices;
mod disk;
mod observe;
mod output;
mod suspicion;

use crate::check::{LogId, View};
use crate::client::Clients;
use crate::guest::{Driven, Guest};
use crate::trace::Who;
use crate::world::Env;
use crate::world::event::Event;
use devices::Devices;
use pollux_driver::clock::RATE_ONE;
use pollux_driver::digest::Often;
use pollux_driver::marks::Waits;
use pollux_driver::pages::PAGE_SIZE;
use pollux_driver::rounds::Enough;
use pollux_driver::{Driver, Guest as _, Next, Tuning};
use pollux_ft::{Config, Identity, Meeting, Node, NodeId, Role, Span, Start, Term, Time, Verdict};

/// Longest time that a guest runs before the machine looks around, in microseconds.
const SLICE: u64 = 10_000;
/// Turns of a driver without time passing that are too many: it turns in circles.
const MOST_TURNS: u32 = 100_000;
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

/// One machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) driver: Driver<Driven>,
    pub(crate) devices: Devices,
    last_turn: u64,
    /// The guest has been running since then.
    runs: bool,
    /// Ticks in a thousand microseconds.
    speed: u64,
    wake_at: u64,
}

/// What the machines of a pair say of themselves.
pub(crate) fn identity(node: NodeId) -> Identity {
    Identity {
        node,
        pair: "gemini".into(),
        build: "simulated".into(),
        cpu_digest: 1,
        cpu_name: "model".into(),
        counter: "ticks".into(),
        guest_memory: crate::guest::PAGES * PAGE_SIZE,
        guest_image: "model".into(),
        disk: "none".into(),
        guest_mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
        guest_bridges: false,
        broken_rule: String::new(),
    }
}

/// The simulated guest is small, and a tick of it takes as long as a thousand of a real one.
fn tuning(lag_bound_ns: u64) -> Tuning {
    Tuning {
        marks: Waits {
            output_ticks: 200,
            output_frames: 4,
            horizon: Span::from_millis(20),
            untold: Span::from_millis(20),
        },
        digests: Often {
            ticks: 25_000,
            time: Span::from_millis(50),
            first_time: Span::from_millis(25),
            slice: PAGE_SIZE,
        },
        rates: RATE_ONE * 10..=RATE_ONE * 100_000,
        lag_bound_ns,
        pages_a_turn: 4,
        // No card is stuck for ever here, and no frame may be lost.
        card_patience: Span(u64::MAX),
        transfer: Enough { pause: Span::from_millis(1), few_pages: 2 },
        ..Tuning::default()
    }
}

impl Machine {
    pub(crate) fn new(env: &mut Env, index: usize, start: Start) -> Self {
        let id = NodeId(env.rng.below(1 << 32) << 16 | env.next_node());
        let clock_offset = env.rng.below(1 << 40);
        let plan = &env.plan;
        let guest = match start {
            Start::Primary | Start::Auto if plan.disk => Guest::booted(plan.busy_guest, plan.work).with_disk(),
            Start::Primary | Start::Auto => Guest::booted(plan.busy_guest, plan.work),
            Start::Backup => Guest::empty(),
        };
        let now = Time(env.now + clock_offset);
        let config = Config { protection: env.operator.medium(index), ..plan.config.clone() };
        let node = Node::new(now, start, config, identity(id)).expect("plans are checked");
        let devices = Devices::new(index, id, clock_offset, plan.gate_frames);
        Self {
            driver: Driver::new(now, node, Driven::new(guest), tuning(plan.lag_bound)),
            devices,
            last_turn: env.now,
            runs: false,
            speed: plan.speeds[index],
            wake_at: u64::MAX,
        }
    }

    pub(crate) fn node(&self) -> &Node {
        self.driver.node()
    }

    /// This machine's clock.
    fn local(&self, now: u64) -> Time {
        Time(now + self.devices.clock_offset)
    }

    /// It runs the guest, and nothing else does.
    pub(crate) fn serves(&self) -> bool {
        self.node().role().is_primary() && !self.driver.has_ended()
    }

    /// It has the guest's state, or runs it.
    pub(crate) fn holds_guest(&self) -> bool {
        let role = self.node().role();
        role.is_primary() || role.is_backup() || role == Role::Starting
    }

    /// The first primary starts; without an arbiter it is live at once.
    pub(crate) fn power_on(&mut self, env: &mut Env) {
        self.driver.start(&mut self.devices.in_world(env));
    }

    /// Whether it forgets this key when it is told to.
    pub(crate) fn forget_key(&mut self, now: u64, key: u64) -> bool {
        let now = self.local(now);
        self.driver.node_mut().forget_key(now, key).is_ok()
    }

    /// Bytes of the stream arrive; how many were taken.
    pub(crate) fn receive(&mut self, now: u64, bytes: &[u8]) -> usize {
        let now = self.local(now);
        self.driver.node_mut().receive(now, bytes)
    }

    /// A stream is there.
    pub(crate) fn connected(&mut self, now: u64, stream: usize, meeting: &Meeting) {
        self.devices.stream = Some(stream);
        let now = self.local(now);
        let node = self.driver.node_mut();
        node.connected(now, node.handshake(meeting));
    }

    /// The stream is gone.
    pub(crate) fn disconnected(&mut self, now: u64) {
        self.devices.stream = None;
        let now = self.local(now);
        self.driver.node_mut().disconnected(now);
    }

    /// The arbiter's answer.
    pub(crate) fn arbiter_answered(&mut self, now: u64, term: Term, granted: bool) {
        self.devices.answered(term);
        self.devices.suspicion.answered(self.devices.stream.is_some());
        let verdict = if granted { Verdict::Granted } else { Verdict::Taken };
        let now = self.local(now);
        self.driver.node_mut().arbiter_answered(now, term, verdict);
    }

    /// The arbiter says which term is the newest.
    pub(crate) fn arbiter_shows(&mut self, now: u64, newest: Term) {
        let now = self.local(now);
        self.driver.node_mut().terms_seen(now, newest);
    }

    /// An operator takes it out of service.
    pub(crate) fn stop(&mut self, env: &mut Env) {
        self.driver.stop(&mut self.devices.in_world(env));
    }

    /// An operator wants the machines to change roles; whether that can be tried.
    pub(crate) fn request_switch(&mut self) -> bool {
        self.driver.request_switch()
    }

    /// An operator types at the guest's console.
    #[cfg(test)]
    pub(crate) fn type_text(&mut self, text: &[u8]) -> Result<(), pollux_driver::NotTyped> {
        self.driver.type_text(text)
    }

    /// The guest is told to ask for a reset.
    pub(crate) fn request_reset(&mut self) -> bool {
        let serves = self.serves();
        if serves {
            self.devices.ingress.push_back(Clients::reset());
        }
        serves
    }

    /// Nothing is wrong with it, or about to go wrong.
    pub(crate) fn is_well(&self) -> bool {
        self.devices.is_well() && !self.driver.is_switch_due() && !self.driver.disk_requests().has_failed()
    }

    /// It is not about to let go of its twin: one that stood still lives on, but its primary does not know yet.
    pub(crate) fn is_close_to_its_twin(&self, now: u64, config: &Config) -> bool {
        let (now, node) = (self.local(now), self.node());
        let short = |span: Span, limit: Span| 2 * span.0 < limit.0;
        !matches!(node.role(), Role::Protected | Role::Backup)
            || (short(node.lag(now).time, config.ack_timeout)
                && short(now.since(node.last_heard()), config.suspect_after))
    }

    /// It goes on after it was frozen.
    pub(crate) fn thaw(&mut self, env: &Env) {
        self.devices.thaw();
        self.last_turn = env.now;
    }

    /// Does all that can be done now.
    pub(crate) fn turn(&mut self, env: &mut Env) {
        let elapsed = if self.runs && !self.devices.hangs { (env.now - self.last_turn).min(SLICE) } else { 0 };
        self.last_turn = env.now;
        self.driver.guest_mut().grant(elapsed * self.speed / 1000);
        self.show(env);
        let mut turns = 0;
        let next = loop {
            let next = self.driver.turn(&mut self.devices.in_world(env));
            turns += 1;
            // The guest says when it has had its time.
            if next != Next::Again || self.driver.guest().missing() > 0 || self.devices.blown().is_some() {
                break next;
            }
            assert!(turns < MOST_TURNS, "a driver that never comes to an end");
        };
        self.runs = next == Next::Again;
        self.devices.ask(env);
        self.devices.look(env, self.driver.node().wants_newest_term());
        self.show(env);
        self.plan_wake(env, next);
    }

    /// Shows the world what this machine is now.
    pub(crate) fn show(&mut self, env: &mut Env) {
        self.devices.in_world(env).show(&self.driver);
    }

    /// Asks for the next turn: when the driver wants one, or when a guest that was stopped would have come to something.
    fn plan_wake(&mut self, env: &mut Env, next: Next) {
        let wake = match next {
            Next::Again => {
                let missing = if self.devices.hangs { SLICE } else { self.driver.guest().missing() };
                Some(env.now + (missing.saturating_mul(1000) / self.speed + 1).min(SLICE))
            }
            Next::Wait(until) => until.map(|at| at.0.saturating_sub(self.devices.clock_offset)),
        };
        let node = self.node().next_timeout().map(|at| at.0.saturating_sub(self.devices.clock_offset));
        let Some(at) = [node, wake, self.devices.asks_at()].into_iter().flatten().min() else { return };
        let at = at.max(env.now + 1);
        if at < self.wake_at || self.wake_at <= env.now {
            self.wake_at = at;
            env.queue.push(at, Event::Wake { machine: self.devices.index });
        }
    }

    /// Whether an event at `now` is the wake-up that was asked for last.
    pub(crate) fn is_woken(&self, now: u64) -> bool {
        self.wake_at == now
    }
}

/// The log that a backup's node follows.
fn followed(node: &Node) -> LogId {
    (node.peer().unwrap_or_default(), node.session())
}

/// What the world sees of a machine.
fn view(devices: &Devices, node: &Node) -> View {
    View {
        node: devices.id,
        role: node.role(),
        term: node.term(),
        session: node.session(),
        peer: node.peer(),
        gate_open: devices.is_open(),
    }
}

/// A line of the trace, and numbers for its hash.
fn note(env: &mut Env, index: usize, driver: &Driver<Driven>, number: u64, text: impl FnOnce() -> String) {
    env.trace.note(env.now, Who::Machine(index), [number, driver.guest().position().0], text);
}
