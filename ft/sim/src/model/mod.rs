//! A model of who runs the guest, checked in all orders of events within bounds.
//!
//! The machines decide by the functions of `pollux_ft::decide`, the ones that nodes ask. Around them time is gone: a
//! twin may be taken for dead at any moment, a stream may break at any moment, a heartbeat may come late, more than once
//! or never, and so may an answer of the arbiter. The log is a list of inputs, each of which makes a frame.

mod bounds;
mod event;
mod happen;
mod properties;
mod report;
mod rules;
mod state;
mod step;
mod words;

pub use bounds::{Bounds, Planned};
pub use properties::{always, possible};
pub use report::Report;
pub use rules::Broken;

use event::Event;
use rules::Rules;
use state::State;
use stateright::{Checker, HasDiscoveries, Model, Path, Property};

/// The model, whole or with a broken rule.
#[derive(Debug, Clone, Copy)]
struct Pair {
    bounds: Bounds,
    rules: Rules,
}

impl Model for Pair {
    type State = State;
    type Action = Event;

    fn init_states(&self) -> Vec<State> {
        let machines = self.bounds.machines;
        vec![if self.bounds.auto { State::cold(machines) } else { State::new(machines) }]
    }

    fn actions(&self, state: &State, events: &mut Vec<Event>) {
        // Behind a broken rule nothing is of interest.
        if self.bounds.hold(state) && properties::hold(self, state) {
            event::possible(&self.bounds, state, events);
        }
    }

    fn next_state(&self, state: &State, event: Event) -> Option<State> {
        let mut next = state.clone();
        self.happen(&mut next, event);
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

/// What a check came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Different states that were reached.
    pub states: usize,
    /// Depth at which the last of them was found; the first state has depth 1.
    pub depth: usize,
    /// What must always hold and did not, each with a way there in words: if a rule is broken, the shortest.
    pub broken: Vec<(&'static str, Vec<String>)>,
    /// What must be possible and happened.
    pub happened: Vec<&'static str>,
}

/// Checks the model within bounds; with a broken rule only up to the first thing that goes wrong.
#[must_use]
pub fn check(bounds: Bounds, broken: Option<Broken>) -> Outcome {
    let model = Pair { bounds, rules: Rules { broken } };
    let mut checker = explore(model, usize::MAX);
    // Of what is found in one go stateright names the last, not the nearest.
    while let Some(events) = broken.and_then(|_| nearest_failure(&checker)) {
        let nearer = explore(model, events);
        if nearest_failure(&nearer).is_none() {
            break;
        }
        checker = nearer;
    }
    let mut found = checker.discoveries();
    let broken = always().filter_map(|name| Some((name, way(found.remove(name)?)))).collect();
    let happened = possible().filter(|name| found.contains_key(name)).collect();
    Outcome { states: checker.unique_state_count(), depth: checker.max_depth(), broken, happened }
}

/// Goes through all states that less than `events` events lead to: breadth first and on one thread, so that ways are
/// short and always the same ones.
fn explore(model: Pair, events: usize) -> impl Checker<Pair> {
    let whole = model.rules.broken.is_none();
    let until = if whole { HasDiscoveries::AllFailures } else { HasDiscoveries::AnyFailures };
    model.checker().finish_when(until).target_max_depth(events.saturating_add(1)).spawn_bfs().join()
}

/// How many events lead to the nearest thing that is wrong.
fn nearest_failure(checker: &impl Checker<Pair>) -> Option<usize> {
    let found = checker.discoveries();
    always().filter_map(|name| Some(found.get(name)?.clone().into_actions().len())).min()
}

fn way(path: Path<State, Event>) -> Vec<String> {
    let steps = path.into_vec().into_iter();
    steps.filter_map(|(state, event)| Some(words::words(&state, event?))).collect()
}

#[cfg(test)]
mod tests;
