//! What each event does.

use super::Pair;
use super::event::Event;
use super::state::{Entry, Machine, State, automatic_node};
use super::step::Step;
use pollux_ft::decide::LastWord;
use pollux_ft::{NodeId, Term, Verdict};

impl Pair {
    fn at<'a>(&self, state: &'a mut State, me: usize) -> Step<'a> {
        Step { rules: self.rules, burns: self.bounds.burns, auto: self.bounds.auto, state, me }
    }

    pub(super) fn happen(&self, state: &mut State, event: Event) {
        note_trouble(state, event);
        match event {
            Event::Input(me) => {
                let seen = Entry::Input(state.machines[me].node);
                self.at(state, me).append(seen);
            }
            Event::PowerOff(me) => self.at(state, me).append(Entry::PowerOff),
            Event::SwitchOver(me) => self.at(state, me).append(Entry::SwitchOver),
            Event::FinishState(me) => self.at(state, me).finish_state(),
            Event::Connect(me, other) => self.at(state, me).connect(other),
            Event::Read(me) => self.at(state, me).read(),
            Event::LinkLost(me) => self.at(state, me).link_lost(),
            Event::Beat(from, to) => state.beats[from][to] = Some(state.machines[from].beat()),
            Event::Hear(from, to) => self.at(state, to).hear(from),
            Event::Suspect(me) => self.at(state, me).suspect(),
            Event::AcksStopped(me) => self.at(state, me).lose_backup(LastWord::None),
            Event::Apply(me) => self.at(state, me).apply(),
            Event::GoLive(me) => self.at(state, me).go_live(),
            Event::Claim(node, term) => claim(state, node, term),
            Event::Answer(me, term) => self.answer(state, me, term),
            Event::Listened(me) => self.at(state, me).listened(),
            Event::Crash(me) => self.at(state, me).halt(),
            Event::Stop(me) => self.at(state, me).stop(),
            Event::Restart(me) => {
                state.nodes += 1;
                let refused = state.machines[me].refused;
                state.machines[me] = if self.bounds.auto {
                    Machine { refused, ..Machine::automatic(automatic_node(state.nodes - 1)) }
                } else {
                    Machine { refused, ..Machine::joining(NodeId(state.nodes)) }
                };
            }
        }
    }

    fn answer(&self, state: &mut State, me: usize, term: Term) {
        let won = state.winner(term) == Some(state.machines[me].node);
        self.at(state, me).answered(term, if won { Verdict::Granted } else { Verdict::Taken });
    }
}

/// The arbiter's test and set: who asks later is refused, so that its question needs no event of its own.
fn claim(state: &mut State, node: NodeId, term: Term) {
    state.winners[term.0 as usize] = Some(node);
    state.requests.retain(|(_, asked)| *asked != term);
}

/// Counts what goes wrong by this event.
fn note_trouble(state: &mut State, event: Event) {
    match event {
        // Once its backup has asked for the term, the guest is as good as there, and nowhere else.
        Event::SwitchOver(_) | Event::AcksStopped(_) => state.disturbed(),
        Event::LinkLost(me) if state.machines[me].link.is_some_and(|twin| state.machines[twin].link == Some(me)) => {
            state.disturbed();
        }
        Event::Suspect(me) if state.running(state.machines[me].peer).is_some() => state.disturbed(),
        Event::Crash(_) | Event::Stop(_) => state.failed(),
        _ => {}
    }
}
