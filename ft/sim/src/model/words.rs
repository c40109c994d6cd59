//! A way through the model in words.

use super::event::Event;
use super::state::{Message, State};
use crate::trace::Who;
use pollux_ft::Role;
use pollux_ft::decide::Bid;

/// What `event` is in `state`.
pub(super) fn words(state: &State, event: Event) -> String {
    let own = |me: usize| &state.machines[me];
    let name = Who::Machine;
    match event {
        Event::Input(me) => format!("the guest on {} sees an input and makes a frame", name(me)),
        Event::PowerOff(me) => format!("the guest on {} switches itself off", name(me)),
        Event::SwitchOver(me) => format!("{} hands the guest over", name(me)),
        Event::FinishState(me) => format!("{} has sent the whole state", name(me)),
        Event::Connect(me, other) => format!("{} opens a stream to {}", name(me), name(other)),
        Event::Read(me) => format!("{} reads {}", name(me), state.queues[me].front().map_or("nothing", message)),
        Event::LinkLost(me) => format!("{} finds its stream broken", name(me)),
        Event::Beat(from, to) => format!("{} sends a heartbeat to {} as {:?}", name(from), name(to), own(from).role),
        Event::Hear(from, to) => {
            let role = state.beats[from][to].map_or(Role::Halted, |beat| beat.heartbeat().role);
            format!("{} hears the heartbeat of {} as {role:?}", name(to), name(from))
        }
        Event::Suspect(me) => format!("{} has not heard of its twin for long", name(me)),
        Event::AcksStopped(me) => format!("{} has got no acks for long", name(me)),
        Event::Apply(me) => format!("{} applies the next entry", name(me)),
        Event::GoLive(me) if own(me).bid == Bid::None => {
            format!("{} wants to go live in term {}", name(me), own(me).next.0)
        }
        Event::GoLive(me) => format!("{} goes live in term {}", name(me), own(me).next.0),
        Event::Claim(node, term) => format!("the arbiter gives term {} to node {}", term.0, node.0),
        Event::Answer(me, term) => {
            let verdict = if state.winner(term) == Some(own(me).node) { "granted" } else { "taken" };
            format!("{} hears that term {} is {verdict}", name(me), term.0)
        }
        Event::Crash(me) => format!("{} loses power", name(me)),
        Event::Stop(me) => format!("{} is stopped in order", name(me)),
        Event::Restart(me) => format!("{} is switched on again", name(me)),
        Event::Listened(me) => format!("{} has listened for long", name(me)),
    }
}

fn message(message: &Message) -> &'static str {
    match message {
        Message::Hello { .. } => "a Hello",
        Message::Begin { .. } => "that a session begins",
        Message::State(_) => "the state",
        Message::Joined => "that its backup is complete",
        Message::Entry(_) => "an entry",
        Message::Ack(_) => "an ack",
        Message::Refuse => "a refusal",
        Message::Leaving => "a farewell",
        Message::TookOver(_) => "that the guest was taken over",
        Message::BidFor(_) => "for which term to bid",
    }
}
