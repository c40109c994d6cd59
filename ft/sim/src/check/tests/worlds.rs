//! Worlds in which something goes wrong that nobody may survive unnoticed.

use crate::check::Violation;
use crate::plan::{Faults, Plan};
use crate::rng::Rng;
use crate::run::report;
use crate::trace::Keep;
use crate::world::World;
use crate::world::event::Event;
use pollux_driver::Outlet;
use pollux_ft::heartbeat::{HEARD, Heartbeat, pair_digest};
use pollux_ft::{Mutation, NodeId, Position, Role, Seq, SessionId, Term, Time};
use pollux_nic::gate::RESERVED_FRAMES;
use pollux_nic::{Gate, GateMode};

const SEED: u64 = 1;
/// The machines: the first one runs the guest until something happens.
pub(crate) const PRIMARY: usize = 0;
pub(crate) const BACKUP: usize = 1;
/// A node that is none of theirs.
pub(crate) const STRANGER: NodeId = NodeId(77);

/// A world of two machines and an arbiter in which faults come one by one, with a rule broken if wanted.
fn world(mutation: Option<Mutation>) -> World {
    world_of(2, mutation)
}

pub(crate) fn world_of(machines: usize, mutation: Option<Mutation>) -> World {
    let mut plan = Plan::new(&mut Rng::new(SEED, 1));
    (plan.machines, plan.arbiter, plan.config.arbiter) = (machines, true, true);
    (plan.faults, plan.power_off) = (Faults::OneByOne, false);
    plan.config.mutation = mutation;
    World::new(SEED, plan, Keep::Nothing)
}

/// Runs a world, except for events that are `lost`, to its end or until `enough`.
pub(crate) fn run(
    world: &mut World,
    lost: impl Fn(&Event) -> bool,
    enough: impl Fn(&World) -> bool,
) -> Option<Violation> {
    while !enough(world)
        && let Some((at, event)) = world.env.queue.pop()
        && (lost(&event) || world.happen(at, event))
    {}
    world.env.audit.violation().cloned()
}

/// A world whose guest is protected, before the first fault.
fn protected(mutation: Option<Mutation>) -> World {
    protect(world(mutation))
}

/// Lets a world run until its guest is protected, without a fault.
pub(crate) fn protect(mut world: World) -> World {
    assert_eq!(run(&mut world, is_fault, World::is_protected), None);
    assert!(world.is_protected());
    world
}

pub(crate) fn is_fault(event: &Event) -> bool {
    matches!(event, Event::Fault)
}

/// What machine `to` makes of a heartbeat of `node` to it, in the role and term given.
pub(crate) fn hears(world: &mut World, to: usize, node: NodeId, role: Role, term: Term) -> Option<Violation> {
    let machine = world.slots[to].machine.as_mut().expect("it runs");
    let beat = Heartbeat { session: machine.node().session(), ..beat_to(machine.devices.id, node, role, term) };
    let datagram = beat.encode(&machine.node().config().protection);
    machine.hear(&mut world.env, &datagram);
    world.env.audit.violation().cloned()
}

/// A heartbeat of `node` to machine `to`.
fn beat_to(to: NodeId, node: NodeId, role: Role, term: Term) -> Heartbeat {
    Heartbeat {
        pair: pair_digest("gemini"),
        node,
        peer: to,
        counter: u64::MAX,
        heard: [to; HEARD],
        echo: 0,
        answers: 0,
        creator: NodeId(0),
        term,
        role,
        session: SessionId(0),
        linked: true,
        seq: Seq(0),
        position: Position(0),
        time: Time(0),
    }
}

fn term(world: &World) -> Term {
    world.slots[PRIMARY].machine.as_ref().expect("it runs").node().term()
}

/// The arbiter does not answer a backup whose primary crashed, and was heard again before it had asked.
pub(super) fn needed_takeover() -> Vec<Option<Violation>> {
    let judge = |is_heard: bool| {
        let mut world = protected(Some(Mutation::TakeoverNotCalledOff));
        let (primary, term) = (world.slots[PRIMARY].machine.as_ref().expect("it runs").devices.id, term(&world));
        world.crash(PRIMARY);
        let lost = |event: &Event| is_fault(event) || matches!(event, Event::ArbiterAsked { .. });
        let drains = |world: &World| world.find(|machine| machine.node().role() == Role::Draining).is_some();
        assert_eq!(run(&mut world, lost, drains), None);
        if is_heard {
            assert_eq!(hears(&mut world, BACKUP, primary, Role::Protected, term), None);
        }
        let machine = world.slots[BACKUP].machine.as_mut().expect("it runs");
        machine.devices.in_world(&mut world.env).check_suspicion(machine.driver.node());
        world.env.audit.violation().cloned()
    };
    assert_eq!(judge(false), None);
    vec![judge(true)]
}

pub(super) fn gives_way() -> Vec<Option<Violation>> {
    let judge = |mutation| {
        let mut world = protected(mutation);
        let newer = Term(term(&world).0 + 1);
        hears(&mut world, PRIMARY, STRANGER, Role::Alone, newer)
    };
    assert_eq!(judge(None), None);
    vec![judge(Some(Mutation::SupersededGoesOn))]
}

pub(super) fn sign_of_life() -> Vec<Option<Violation>> {
    let judge = |mutation| {
        let mut world = protected(mutation);
        world.env.now += 1;
        hears(&mut world, PRIMARY, STRANGER, Role::Joining, Term(0))
    };
    assert_eq!(judge(None), None);
    vec![judge(Some(Mutation::AnyHeartbeatCounts))]
}

/// A claim that names somebody else than those who live: of a former life.
pub(super) fn genuine() -> Vec<Option<Violation>> {
    let judge = |mutation| {
        let mut world = protected(mutation);
        let newer = Term(term(&world).0 + 1);
        let beat = beat_to(STRANGER, STRANGER, Role::Alone, newer);
        let machine = world.slots[PRIMARY].machine.as_mut().expect("it runs");
        let datagram = beat.encode(&machine.node().config().protection);
        machine.hear(&mut world.env, &datagram);
        world.env.audit.violation().cloned()
    };
    assert_eq!(judge(None), None);
    vec![judge(Some(Mutation::EchoNotCompared))]
}

/// A backup has more entries to apply than the plan allows, or keeps more frames.
pub(super) fn memory() -> Vec<Option<Violation>> {
    let mut backlog = protected(None);
    backlog.env.plan.config.max_entries = 0;
    let backlog = run(&mut backlog, is_fault, |_| false);

    let World { env, slots, .. } = &mut protected(None);
    let most = env.plan.gate_frames + RESERVED_FRAMES;
    let machine = slots[BACKUP].machine.as_mut().expect("it runs");
    machine.devices.gate = Gate::new(most, most * 300);
    machine.devices.gate.set_mode(GateMode::Retained);
    for _ in 0..most {
        machine.devices.in_world(env).transmit(&[0; 60]);
    }
    assert_eq!(env.audit.violation(), None);
    machine.devices.in_world(env).transmit(&[0; 60]);
    vec![backlog, env.audit.violation().cloned()]
}

pub(super) fn survival() -> Vec<Option<Violation>> {
    let mut world = protected(None);
    world.crash(PRIMARY);
    world.crash(BACKUP);
    vec![run(&mut world, is_fault, |_| false)]
}

/// No answer reaches a client.
pub(super) fn service() -> Vec<Option<Violation>> {
    let lost = |event: &Event| is_fault(event) || matches!(event, Event::ToClient { .. });
    vec![run(&mut world(None), lost, |_| false)]
}

/// No machine finds a primary to join.
pub(super) fn protection() -> Vec<Option<Violation>> {
    let lost = |event: &Event| is_fault(event) || matches!(event, Event::Dial { .. });
    vec![run(&mut world(None), lost, |_| false)]
}

/// A backup counts as damaged, and nothing is there for digests to find.
pub(super) fn flip_found() -> Vec<Option<Violation>> {
    let mut world = protected(None);
    world.env.plan.duration = u64::MAX;
    world.slots[BACKUP].machine.as_mut().expect("it runs").devices.flipped = true;
    vec![run(&mut world, is_fault, |_| false)]
}

pub(super) fn no_panic() -> Vec<Option<Violation>> {
    vec![report(SEED, world(None), |_| panic!("on purpose")).violation]
}

/// The world stands still in time, and something happens all along.
pub(super) fn ends() -> Vec<Option<Violation>> {
    let mut world = world(None);
    world.env.plan.most_events = 100;
    vec![run(&mut world, is_fault, |_| false)]
}
