//! What a machine of the model does: the glue of `pollux_ft`'s node around the rules, without time and bytes.

mod arrive;
mod backup;
mod creation;
mod primary;

use super::rules::{Broken, Rules};
use super::state::{Faults, Flaw, Machine, Message, State};
use pollux_ft::decide::{self, Bid, LastWord, OnAnswer};
use pollux_ft::{Role, Term, Verdict};

/// One machine of a state, with all that is around it.
pub(super) struct Step<'a> {
    pub(super) rules: Rules,
    pub(super) burns: u64,
    pub(super) auto: bool,
    pub(super) state: &'a mut State,
    pub(super) me: usize,
}

impl Step<'_> {
    pub(super) fn own(&mut self) -> &mut Machine {
        &mut self.state.machines[self.me]
    }

    fn send(&mut self, message: Message) {
        let me = self.me;
        if let Some(twin) = self.own().link
            && self.state.machines[twin].link == Some(me)
        {
            self.state.queues[twin].push_back(message);
        }
    }

    /// Closes our end. What was sent is still under way; the other end hears of it when it does.
    fn close(&mut self) {
        self.own().link = None;
        self.own().paired = false;
        self.state.queues[self.me].clear();
    }

    fn flaw(&mut self, flaw: Flaw) {
        self.state.flaw.get_or_insert(flaw);
    }

    /// Frames of the first `count` entries have left.
    fn release(&mut self, count: usize) {
        let log = &self.state.machines[self.me].log;
        for (index, entry) in log.iter().take(count).enumerate() {
            match self.state.wire.get(index) {
                None => self.state.wire.push(*entry),
                Some(seen) if seen == entry => {}
                Some(_) => return self.flaw(Flaw::Lost),
            }
        }
    }

    /// Opens the gate: what clients saw must lie in the past.
    fn open(&mut self) {
        let made = self.own().log.len();
        self.release(made);
        // A guest that is alone does not outlive its machine.
        if self.state.faults == Faults::Calm {
            self.state.faults = Faults::Disturbed;
        }
        if made < self.state.wire.len() {
            self.flaw(Flaw::Lost);
        }
    }

    pub(super) fn halt(&mut self) {
        self.close();
        // Nothing else of it matters any more.
        let own = self.own();
        *own = Machine { role: Role::Halted, refused: own.refused, ..Machine::joining(own.node) };
    }

    fn power_off(&mut self) {
        self.state.ended = true;
        self.halt();
    }

    fn ask(&mut self) {
        let (node, role, next) = (self.own().node, self.own().role, self.own().next);
        if !self.rules.asks(role) {
            self.own().bid = Bid::Won;
            return;
        }
        self.own().bid = Bid::Asked;
        if self.state.winner(next).is_none() {
            self.state.requests.insert((node, next));
        }
    }

    fn enter_next_term(&mut self) {
        let own = self.own();
        own.term = own.next;
        own.next = decide::next_term(own.term);
        own.bid = Bid::None;
    }

    /// The arbiter's answer for the term that is asked for.
    pub(super) fn answered(&mut self, term: Term, verdict: Verdict) {
        let rules = self.rules;
        let own = self.own();
        match rules.on_answer(own.role, own.bid, own.next, term, verdict) {
            OnAnswer::Stale => {}
            OnAnswer::FailStop => {
                self.beaten(Term(0));
                self.own().refused = true;
            }
            OnAnswer::Start => self.create(),
            OnAnswer::RunAlone => {
                self.own().bid = Bid::Won;
                self.go_alone();
            }
            OnAnswer::TakeOver if decide::suffices(own.next, own.proposed) => {
                self.own().bid = Bid::Won;
                self.commit();
            }
            OnAnswer::TakeOver => self.bid_for(decide::next_term(term)),
        }
    }

    /// The twin proposes, or agrees, to bid for a later term.
    fn take_bid_for(&mut self, term: Term) -> bool {
        let own = self.own();
        if own.role.is_backup() {
            let known = own.proposed.is_some_and(|proposed| term <= proposed);
            own.proposed.take_if(|proposed| *proposed == term);
            if known && term > own.next {
                self.bid_for(term);
            }
            return known;
        }
        let agrees = decide::agrees(own.role, own.next, term);
        if agrees {
            own.next = term;
            self.send(Message::BidFor(term));
        }
        agrees
    }

    fn bid_for(&mut self, term: Term) {
        let own = self.own();
        (own.bid, own.next) = (Bid::None, term);
    }

    /// Goes out of service in order.
    pub(super) fn stop(&mut self) {
        self.send(Message::Leaving);
        self.halt();
    }

    /// The twin has been silent for long.
    pub(super) fn suspect(&mut self) {
        self.own().silent = true;
        match self.own().role {
            Role::Transferring | Role::Protected | Role::HandingOver => self.lose_backup(LastWord::None),
            Role::Detaching => self.consider_alone(LastWord::None),
            Role::Loading => self.abandon(),
            Role::Backup => self.consider_takeover(),
            _ => {}
        }
    }

    /// The stream is gone at our end.
    pub(super) fn link_lost(&mut self) {
        let word = if self.rules.is(Broken::StreamIsProof) { LastWord::GaveUp } else { LastWord::None };
        self.close();
        let own = self.own();
        match own.role {
            Role::Loading => self.abandon(),
            role if decide::needs_stream(role, own.handover_acked()) => self.lose_backup(word),
            _ => {}
        }
    }
}
