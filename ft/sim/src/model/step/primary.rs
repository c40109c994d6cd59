//! The primary: the log, the joiner, the loss of the backup.

use super::Step;
use crate::model::rules::Broken;
use crate::model::state::{Entry, Faults, Machine, Message};
use pollux_ft::decide::{self, Bid, JoinVerdict, LastWord, LostBackup};
use pollux_ft::{NodeId, Role, Term};

impl Step<'_> {
    /// The guest sees an input and makes a frame.
    pub(in crate::model) fn append(&mut self, entry: Entry) {
        let rules = self.rules;
        let own = self.own();
        let (role, logs, holds) = {
            let (role, sent) = (own.role, own.state_sent);
            (role, decide::is_logging(role, sent), decide::holds_output(role, sent))
        };
        own.log.push(entry);
        own.applied = own.log.len();
        let (made, acked) = (own.log.len(), own.acked);
        if logs {
            self.send(Message::Entry(entry));
        }
        let released = if holds { rules.released(role, made, acked) } else { made };
        self.release(released);
        match entry {
            Entry::SwitchOver => self.own().role = Role::HandingOver,
            Entry::PowerOff if !logs => self.power_off(),
            _ => {}
        }
    }

    pub(in crate::model) fn finish_state(&mut self) {
        let own = self.own();
        own.state_sent = true;
        own.acked = own.log.len();
        let state = Message::State(own.log.clone());
        self.send(state);
    }

    pub(super) fn take_joiner(&mut self, node: NodeId, term: Term) {
        let rules = self.rules;
        let own = self.own();
        let word = if own.peer == Some(node) { LastWord::GaveUp } else { LastWord::None };
        match rules.on_join(own.role, own.term, term, word) {
            JoinVerdict::Begin => {}
            JoinVerdict::Busy | JoinVerdict::NotPrimary => return self.close(),
            JoinVerdict::Outdated => return self.beaten(term),
        }
        if self.own().role == Role::Detaching {
            self.go_alone();
        }
        if self.own().role == Role::Halted {
            return;
        }
        if let Some(joiner) = self.own().link.filter(|_| !rules.is(Broken::EarlyWordCounts)) {
            // What it said before its Hello is not heard any more.
            self.state.beats[joiner][self.me].take_if(|beat| beat.before_hello);
        }
        let own = self.own();
        own.peer = Some(node);
        (own.paired, own.silent) = (true, false);
        own.role = Role::Transferring;
        own.session.0 += 1;
        let hello = Message::Hello { node: own.node, term: own.term };
        let begin = Message::Begin { session: own.session, term: own.term, next: own.next };
        self.send(hello);
        self.send(begin);
    }

    pub(super) fn protected(&mut self) {
        self.own().role = Role::Protected;
        let peer = self.own().peer;
        let bound = |twin: &Machine| decide::is_bound(twin.bid, twin.proposed);
        let calm = |twin: &Machine| twin.role == Role::Backup && !bound(twin) && twin.link == Some(self.me);
        // A twin that thinks otherwise meanwhile is part of what went wrong before.
        if self.state.running(peer).is_some_and(calm) {
            self.state.faults = Faults::Calm;
        }
    }

    pub(super) fn take_ack(&mut self, held: usize) {
        let rules = self.rules;
        let own = self.own();
        own.acked = own.acked.max(held.min(own.log.len()));
        let (role, made, acked) = (own.role, own.log.len(), own.acked);
        let ends = own.is_powered_off() && acked == made;
        self.release(rules.released(role, made, acked));
        if ends {
            self.power_off();
        }
    }

    pub(in crate::model) fn lose_backup(&mut self, word: LastWord) {
        self.close();
        self.own().role = Role::Detaching;
        self.consider_alone(word);
    }

    pub(super) fn consider_alone(&mut self, word: LastWord) {
        let rules = self.rules;
        let own = self.own();
        let lost = rules.lost(LostBackup {
            may_be_complete: own.state_sent,
            word,
            silent: own.silent,
            term_granted: own.bid == Bid::Won,
        });
        if own.bid == Bid::None && decide::may_bid_alone(lost, true) {
            self.ask();
        }
        let term_granted = self.own().bid == Bid::Won;
        if decide::may_run_alone(LostBackup { term_granted, ..lost }) {
            self.go_alone();
        }
    }

    pub(super) fn go_alone(&mut self) {
        let rules = self.rules;
        if self.own().bid == Bid::Won {
            self.enter_next_term();
        } else {
            let own = self.own();
            own.bid = Bid::None;
            own.next = rules.after_session(own.next, own.state_sent);
        }
        let own = self.own();
        own.role = Role::Alone;
        (own.state_sent, own.silent, own.acked) = (false, false, 0);
        self.open();
        if self.own().is_powered_off() {
            self.power_off();
        }
    }

    pub(super) fn handed_over(&mut self, term: Term) {
        self.close();
        self.joins(term);
    }
}
