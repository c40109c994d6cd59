//! The backup: the log that it follows, and the takeover.

use super::Step;
use crate::model::rules::Broken;
use crate::model::state::{Entry, Flaw, Message};
use pollux_ft::Role;
use pollux_ft::decide::{self, Bid, OnStanding};

impl Step<'_> {
    /// The state is complete.
    pub(super) fn join(&mut self, log: Vec<Entry>) {
        let own = self.own();
        (own.applied, own.log) = (log.len(), log);
        own.role = Role::Backup;
        self.send(Message::Joined);
    }

    pub(super) fn take_entry(&mut self, entry: Entry) {
        let rules = self.rules;
        let own = self.own();
        own.log.push(entry);
        let (role, held) = (own.role, own.log.len());
        if decide::may_ack(role) {
            self.send(Message::Ack(rules.ack(held)));
        }
        if entry == Entry::SwitchOver {
            self.own().primary_left = true;
            self.consider_takeover();
        }
    }

    /// Applies the next entry.
    pub(in crate::model) fn apply(&mut self) {
        let ignored = self.rules.is(Broken::PowerOffIgnored);
        let own = self.own();
        own.applied += 1;
        if own.log[own.applied - 1] == Entry::PowerOff && !ignored {
            self.power_off();
        }
    }

    pub(super) fn consider_takeover(&mut self) {
        let rules = self.rules;
        let own = self.own();
        if decide::may_drain(rules.view(own.view())) {
            own.role = Role::Draining;
        }
    }

    pub(super) fn primary_heard(&mut self) {
        let rules = self.rules;
        let own = self.own();
        if rules.may_call_off(rules.view(own.view())) {
            own.role = Role::Backup;
            self.propose();
        }
    }

    /// A backup whose question is open hears its primary again.
    fn propose(&mut self) {
        let own = self.own();
        let linked = own.link.is_some() && own.paired;
        if !decide::may_propose(own.role, own.bid, own.next, own.proposed, linked) {
            return;
        }
        let term = decide::next_term(own.next);
        if self.state.burnt == self.burns {
            return;
        }
        self.state.burnt += 1;
        self.own().proposed = Some(term);
        self.send(Message::BidFor(term));
        if self.rules.is(Broken::BurntUnagreed) {
            self.bid_for(term);
        }
    }

    pub(super) fn commit(&mut self) {
        if !self.own().is_handed_over() {
            self.close();
        }
        self.consider_takeover();
    }

    pub(super) fn abandon(&mut self) {
        self.close();
        let term = self.own().term;
        self.joins(term);
    }

    /// Goes live, or asks for the term that it takes.
    pub(in crate::model) fn go_live(&mut self) {
        let rules = self.rules;
        let view = self.own().view();
        if self.own().bid == Bid::None && decide::may_bid(rules.view(view)) {
            if !view.primary_silent && !view.primary_left {
                self.flaw(Flaw::NeedlessBid);
            }
            self.ask();
        }
        let view = self.own().view();
        if !decide::may_go_live(rules.view(view)) {
            return;
        }
        if view.powered_off || self.state.ended {
            self.flaw(Flaw::AfterPowerOff);
        }
        if self.own().is_handed_over() {
            let term = self.own().next;
            self.send(Message::TookOver(term));
        }
        self.close();
        self.enter_next_term();
        let own = self.own();
        own.log.truncate(own.applied);
        own.role = Role::Alone;
        (own.silent, own.primary_left, own.proposed, own.acked) = (false, false, None, 0);
        self.open();
    }

    pub(super) fn take_standing(&mut self, verdict: OnStanding) {
        match verdict {
            OnStanding::Ignore => {}
            OnStanding::Follow => self.primary_heard(),
            OnStanding::Abandon => self.abandon(),
            OnStanding::Contend => {
                self.own().primary_left = true;
                self.commit();
            }
        }
    }
}
