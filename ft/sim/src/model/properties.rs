//! What must always hold in the model, and what must be possible in it.

use super::Pair;
use super::state::{Faults, Flaw, Machine, State};
use pollux_ft::Role;
use pollux_ft::decide::Bid;
use stateright::Property;

type Named = (&'static str, fn(&Pair, &State) -> bool);

const ALWAYS: [Named; 8] = [
    ("a guest is created only where there is none", |_, state| state.flaw != Some(Flaw::TwoLives)),
    ("at most one machine is live", |_, state| count(state, Machine::is_open) <= 1),
    ("only the winner of a term acts in it", |_, state| {
        state.machines.iter().all(|own| !own.role.is_primary() || state.winner(own.term) == Some(own.node))
    }),
    ("nothing that a client saw is lost", |_, state| state.flaw != Some(Flaw::Lost)),
    ("a guest that switched itself off stays off", |_, state| state.flaw != Some(Flaw::AfterPowerOff)),
    ("one fault does not lose the guest", |_, state| {
        let may_be = state.ended || matches!(state.faults, Faults::Unprotected | Faults::Many);
        may_be || state.has_guest()
    }),
    ("a backup asks for a term only if it has to", |_, state| state.flaw != Some(Flaw::NeedlessBid)),
    ("a primary that hears of a newer one gives way", |_, state| state.flaw != Some(Flaw::Superseded)),
];

const POSSIBLE: [Named; 13] = [
    ("machines that start by themselves create a guest", |_, state| state.created == 1),
    ("they create another one when it was lost", |_, state| state.created == 2),
    ("a backup goes live in a term of its own", |_, state| {
        any(state, |own| own.is_open() && own.term.0 > 1 && own.node.0 > 1)
    }),
    ("a primary goes on alone in a term of its own", |_, state| {
        any(state, |own| own.is_open() && own.term.0 > 1 && own.node.0 == 1)
    }),
    ("a guest that was taken over is protected again", |_, state| {
        any(state, |own| own.role == Role::Protected && own.term.0 > 1)
    }),
    ("a guest is protected again in the same term", |_, state| {
        any(state, |own| own.role == Role::Protected && own.term.0 == 1 && own.session.0 > 1)
    }),
    ("a term is burnt", |_, state| any(state, |own| own.is_open() && own.next.0 > own.term.0 + 1)),
    ("both machines of a pair ask for the same term", |_, state| {
        let asks = |role| any(state, |own: &Machine| own.role == role && own.bid == Bid::Asked);
        asks(Role::Detaching) && asks(Role::Draining)
    }),
    ("a takeover is called off", |_, state| {
        any(state, |own| own.role == Role::Backup && own.bid == Bid::Asked && !own.silent)
    }),
    ("a pair agrees to burn a term", |_, state| {
        let agreed = |own: &Machine| own.proposed.is_none() && own.next.0 > own.term.0 + own.session.0;
        any(state, |own| own.role == Role::Protected && agreed(own))
            && any(state, |own| own.role == Role::Backup && agreed(own))
    }),
    ("a machine that was refused a term is a backup again", |_, state| {
        any(state, |own| own.refused && own.role == Role::Backup)
    }),
    ("a machine that handed the guest over is a backup", |_, state| {
        any(state, |own| own.node.0 == 1 && own.role == Role::Backup)
    }),
    ("a backup holds what clients have not seen yet", |_, state| {
        any(state, |own| own.role.is_backup() && own.log.len() > state.wire.len())
    }),
];

/// The names of what must always hold.
pub fn always() -> impl Iterator<Item = &'static str> {
    ALWAYS.into_iter().map(|(name, _)| name)
}

/// The names of what must be possible.
pub fn possible() -> impl Iterator<Item = &'static str> {
    POSSIBLE.into_iter().map(|(name, _)| name)
}

/// Whether all that must always hold does.
pub(super) fn hold(model: &Pair, state: &State) -> bool {
    ALWAYS.iter().all(|(_, holds)| holds(model, state))
}

pub(super) fn all() -> Vec<Property<Pair>> {
    let always = ALWAYS.into_iter().map(|(name, holds)| Property::always(name, holds));
    always.chain(POSSIBLE.into_iter().map(|(name, holds)| Property::sometimes(name, holds))).collect()
}

fn any(state: &State, wanted: impl Fn(&Machine) -> bool) -> bool {
    state.machines.iter().any(wanted)
}

fn count(state: &State, wanted: impl Fn(&Machine) -> bool) -> usize {
    state.machines.iter().filter(|machine| wanted(machine)).count()
}
