//! Machines, networks, clients and an arbiter in memory. The same seed gives the same run.

mod attacker;
mod deliver;
mod env;
pub(crate) mod event;
pub(crate) mod fault;
mod operator;
mod phase;

use crate::check::Violation;
use crate::figures::Figures;
use crate::machine::{Blow, Machine};
use crate::plan::Plan;
use crate::rng::Rng;
use crate::trace::{Keep, Trace, Who};
pub(crate) use env::Env;
use event::Event;
use phase::Phase;
use pollux_ft::{Role, Start};
use std::collections::VecDeque;

/// Heartbeats that wait at a machine that is frozen; later ones are lost.
const INBOX: usize = 16;

/// A place for a machine.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) machine: Option<Machine>,
    pub(crate) frozen: bool,
    pub(crate) inbox: VecDeque<Vec<u8>>,
    dialing: bool,
    restarting: bool,
}

/// The world.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) env: Env,
    pub(crate) slots: Vec<Slot>,
    phase: Phase,
    faults: Rng,
    /// Network faults that last may overlap: only the last one's end counts.
    troubles: [u32; 2],
    /// The guest was told to switch itself off.
    ending: bool,
    /// No machine has a guest; and all lost power at once, so that none may.
    lost: bool,
    site_cut: bool,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) figures: Figures,
    pub(crate) violation: Option<Violation>,
    pub(crate) trace: Trace,
}

impl World {
    pub(crate) fn new(seed: u64, plan: Plan, keep: Keep) -> Self {
        let mut world = Self {
            slots: (0..plan.machines).map(|_| Slot::default()).collect(),
            env: Env::new(seed, plan, keep),
            phase: Phase::start(),
            faults: Rng::new(seed, 6),
            troubles: [0; 2],
            ending: false,
            lost: false,
            site_cut: false,
        };
        for index in 0..world.slots.len() {
            match (world.env.plan.auto, index) {
                (true, 1) if world.faults.chance(300) => world.restart_later(index),
                (true, _) => world.start(index, Start::Auto),
                (false, 0) => world.start(index, Start::Primary),
                (false, _) => world.start(index, Start::Backup),
            }
        }
        for client in 0..world.env.clients.count() {
            let at = world.env.rng.below(200_000);
            world.env.queue.push(at, Event::ClientTimer { client, timer: 0 });
        }
        world.env.queue.push(0, Event::Look);
        world.operate_later();
        world
    }

    pub(crate) fn start(&mut self, index: usize, start: Start) {
        let mut machine = Machine::new(&mut self.env, index, start);
        if start == Start::Primary {
            machine.power_on(&mut self.env);
        }
        self.slots[index] = Slot { machine: Some(machine), ..Slot::default() };
        self.env.wake_soon(index, 0);
    }

    /// Runs to the end.
    pub(crate) fn run(&mut self) {
        while let Some((at, event)) = self.env.queue.pop()
            && self.happen(at, event)
        {}
    }

    /// An event happens; whether the run goes on.
    pub(crate) fn happen(&mut self, at: u64, event: Event) -> bool {
        self.env.now = at;
        self.env.audit.set_now(at);
        self.env.figures.events += 1;
        if self.env.figures.events > self.env.plan.most_events {
            let text = format!("it has not ended after {} events", self.env.plan.most_events);
            self.env.audit.broken(crate::check::Check::Ends, text);
        }
        self.handle(event);
        !self.phase.is_over() && self.env.audit.violation().is_none()
    }

    /// What the run came to.
    pub(crate) fn outcome(mut self) -> Outcome {
        let env = &mut self.env;
        env.figures.seeds = 1;
        env.figures.simulated = env.now;
        env.figures.terms = env.arbiter.terms() as u64;
        env.figures.frames = env.audit.frames();
        env.figures.duplicates = env.audit.duplicates;
        env.figures.answers = env.clients.answers();
        env.figures.longest_wait = env.clients.longest_wait;
        Outcome { figures: self.env.figures, violation: self.env.audit.violation().cloned(), trace: self.env.trace }
    }

    /// The machine in a slot if it has power and is not frozen.
    fn awake(&mut self, index: usize) -> Option<&mut Machine> {
        let slot = &mut self.slots[index];
        if slot.frozen { None } else { slot.machine.as_mut() }
    }

    /// Gives a machine its turn, and sees to what came of it.
    pub(crate) fn turn(&mut self, index: usize) {
        if self.slots[index].frozen {
            return;
        }
        let Some(machine) = &mut self.slots[index].machine else { return };
        machine.turn(&mut self.env);
        match machine.devices.blown() {
            Some(Blow::Crash) => self.crash(index),
            Some(Blow::Freeze(span)) => self.freeze(index, span),
            None => self.after_turn(index),
        }
    }

    fn after_turn(&mut self, index: usize) {
        let Some(machine) = &self.slots[index].machine else { return };
        let dials = machine.devices.stream.is_none()
            && machine.node().wants_connection()
            && !machine.node().role().is_primary();
        let halted = machine.driver.has_ended() && machine.node().role() == Role::Halted;
        if dials && !self.slots[index].dialing {
            self.slots[index].dialing = true;
            let at = self.env.now + self.env.rng.between(5_000, 100_000);
            self.env.queue.push(at, Event::Dial { machine: index });
        }
        if halted {
            self.restart_later(index);
        }
    }

    /// Somebody switches a machine on again after a while.
    fn restart_later(&mut self, index: usize) {
        if !core::mem::replace(&mut self.slots[index].restarting, true) {
            let at = self.env.now + self.env.rng.between(100_000, 2_000_000);
            self.env.queue.push(at, Event::Restart { machine: index });
        }
    }

    /// Power is lost.
    pub(crate) fn crash(&mut self, index: usize) {
        let Some(machine) = self.slots[index].machine.take() else { return };
        self.note(Who::Machine(index), 100, || "CRASHES".to_owned());
        self.slots[index] = Slot::default();
        self.env.audit.look(index, None, &self.env.arbiter);
        if let Some(stream) = machine.devices.stream {
            self.break_stream(stream);
        }
        self.restart_later(index);
    }

    /// A machine stands still.
    pub(crate) fn freeze(&mut self, index: usize, span: u64) {
        self.note(Who::Machine(index), 101, || format!("FREEZES for {} ms", span / 1000));
        self.slots[index].frozen = true;
        self.env.queue.push(self.env.now + span, Event::Thaw { machine: index });
    }

    /// What is under way on a stream is cut at any byte. One end hears of it soon or late, as TCP would tell the one
    /// that sends; the other perhaps never.
    pub(crate) fn break_stream(&mut self, stream: usize) {
        self.env.network.break_off(stream);
        let sure = self.env.rng.below(2) as usize;
        for end in 0..2 {
            let machine = self.env.network.streams[stream].ends[end];
            let after = match self.env.rng.below(4) {
                0 | 1 if end != sure => continue,
                2 => self.env.rng.below(5_000),
                _ => self.env.rng.below(500_000),
            };
            self.env.queue.push(self.env.now + after, Event::Reset { stream, machine });
        }
    }

    pub(crate) fn note(&mut self, who: Who, number: u64, text: impl FnOnce() -> String) {
        self.env.trace.note(self.env.now, who, [number, 0], text);
    }

    /// The machine that runs the guest, if there is one.
    pub(crate) fn primary(&self) -> Option<usize> {
        self.find(Machine::serves)
    }

    pub(crate) fn find(&self, wanted: impl Fn(&Machine) -> bool) -> Option<usize> {
        self.slots.iter().position(|slot| slot.machine.as_ref().is_some_and(&wanted))
    }

    /// The guest is protected, and both machines know it.
    pub(crate) fn is_protected(&self) -> bool {
        let primary = self.find(|machine| machine.node().role() == Role::Protected && machine.serves());
        primary.is_some()
            && self.find(|machine| machine.node().role() == Role::Backup && !machine.devices.hangs).is_some()
    }
}
