//! What can happen in a state of the model.

use super::bounds::{Bounds, Planned};
use super::state::State;
use pollux_ft::decide::Bid;
use pollux_ft::{NodeId, Role, Term};

/// What can happen. Machines are numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The guest of a primary sees an input.
    Input(usize),
    /// The guest of a primary switches itself off.
    PowerOff(usize),
    /// A primary hands over to its backup.
    SwitchOver(usize),
    /// A primary has sent its whole state.
    FinishState(usize),
    /// A joiner opens a stream to a primary.
    Connect(usize, usize),
    /// The next message of its stream reaches a machine.
    Read(usize),
    /// A machine finds its stream broken.
    LinkLost(usize),
    /// A machine sends a heartbeat to another one.
    Beat(usize, usize),
    /// The heartbeat that is under way between them arrives.
    Hear(usize, usize),
    /// A machine has not heard of its twin for long.
    Suspect(usize),
    /// A primary has got no acks for long.
    AcksStopped(usize),
    /// A backup applies the next entry.
    Apply(usize),
    /// A backup that drained its log asks for the term, or goes live.
    GoLive(usize),
    /// A question reaches the arbiter.
    Claim(NodeId, Term),
    /// The arbiter's answer for a term reaches a machine.
    Answer(usize, Term),
    /// A machine loses power.
    Crash(usize),
    /// A machine leaves in order.
    Stop(usize),
    /// A machine that is off is switched on.
    Restart(usize),
    /// A machine that started by itself has heard of no guest for long.
    Listened(usize),
}

/// All that can happen in `state`.
pub(super) fn possible(bounds: &Bounds, state: &State, events: &mut Vec<Event>) {
    for me in 0..bounds.machines {
        if state.machines[me].role != Role::Halted {
            of_machine(bounds, state, me, events);
        } else if state.nodes < bounds.machines as u64 + bounds.restarts && !state.ended {
            events.push(Event::Restart(me));
        }
    }
    events.extend(state.requests.iter().map(|(node, term)| Event::Claim(*node, *term)));
}

fn of_machine(bounds: &Bounds, state: &State, me: usize, events: &mut Vec<Event>) {
    let own = &state.machines[me];
    of_guest(bounds, state, me, events);
    if !state.queues[me].is_empty() {
        events.push(Event::Read(me));
    }
    if own.link.is_some() {
        events.push(Event::LinkLost(me));
    }
    if own.role == Role::Joining && own.pristine && !own.listened {
        events.push(Event::Listened(me));
    }
    let in_session = !matches!(own.role, Role::Alone | Role::Joining | Role::Starting);
    if in_session && !own.silent {
        events.push(Event::Suspect(me));
    }
    if matches!(own.role, Role::Protected | Role::HandingOver) && own.acked < own.log.len() {
        events.push(Event::AcksStopped(me));
    }
    if own.role.is_backup() && own.applied < own.log.len() {
        events.push(Event::Apply(me));
    }
    if own.role == Role::Draining {
        events.push(Event::GoLive(me));
    }
    if own.bid == Bid::Asked {
        events.extend(state.decided().map(|term| Event::Answer(me, term)));
    }
    events.push(Event::Crash(me));
    if bounds.plans(Planned::Stop) {
        events.push(Event::Stop(me));
    }
    for other in (0..bounds.machines).filter(|other| *other != me) {
        between(bounds, state, me, other, events);
    }
}

fn of_guest(bounds: &Bounds, state: &State, me: usize, events: &mut Vec<Event>) {
    let own = &state.machines[me];
    if own.role.runs_guest() && !own.is_powered_off() {
        if own.inputs() < bounds.inputs {
            events.push(Event::Input(me));
        }
        if bounds.plans(Planned::PowerOff) {
            events.push(Event::PowerOff(me));
        }
        if bounds.plans(Planned::SwitchOver) && own.role == Role::Protected {
            events.push(Event::SwitchOver(me));
        }
    }
    if own.role == Role::Transferring && !own.state_sent {
        events.push(Event::FinishState(me));
    }
}

fn between(bounds: &Bounds, state: &State, me: usize, other: usize, events: &mut Vec<Event>) {
    let (own, theirs) = (&state.machines[me], &state.machines[other]);
    let listens = matches!(theirs.role, Role::Alone | Role::Detaching) && theirs.link.is_none();
    if own.role == Role::Joining && own.link.is_none() && listens {
        events.push(Event::Connect(me, other));
    }
    // All that a machine which is no primary has to say is for its twin, or for whoever takes it for one.
    let twins = own.peer == Some(theirs.node) || theirs.peer == Some(own.node);
    let concerned = twins || bounds.auto || (own.role.is_primary() && own.peer.is_some());
    if concerned && state.beats[me][other] != Some(own.beat()) {
        events.push(Event::Beat(me, other));
    }
    if state.beats[other][me].is_some() {
        events.push(Event::Hear(other, me));
    }
}
