//! A machine that starts by itself: it joins, or creates the guest where there is none.

use super::Step;
use crate::model::rules::Broken;
use crate::model::state::{Faults, Flaw, Machine};
use pollux_ft::decide::{self, Bid, Stance, Word};
use pollux_ft::{Role, Term};

impl Step<'_> {
    /// Throws away what it holds and looks for a primary.
    pub(super) fn joins(&mut self, term: Term) {
        let own = self.own();
        let Machine { session, peer, refused, mark, heard, .. } = *own;
        *own = Machine { term, session, peer, refused, mark, heard, ..Machine::joining(own.node) };
        if self.auto {
            self.own().mark += 1;
        }
    }

    /// Another machine reigns in this term, or 0: it will, and that is not spoken of.
    pub(super) fn beaten(&mut self, term: Term) {
        if !self.auto {
            return self.halt();
        }
        self.close();
        let Machine { role, term: known, .. } = *self.own();
        if role == Role::Starting {
            let own = self.own();
            (own.role, own.stance, own.bid, own.listened) = (Role::Joining, Stance::Listens, Bid::None, false);
            own.mark += 1;
        } else {
            self.joins(known.max(term));
        }
    }

    /// What another machine says of the creation of a guest.
    pub(super) fn hear_word(&mut self, word: Word) {
        let rules = self.rules;
        let own = self.own();
        if !own.is_vacant() {
            return;
        }
        if decide::has_guest(word.role) && !rules.is(Broken::GuestUnheard) {
            own.listened = false;
        }
        let (me, may_offer) = (own.node, own.pristine && own.listened);
        let stance = rules.on_word(me, own.stance, may_offer, word);
        self.take_stance(stance);
    }

    fn take_stance(&mut self, stance: Stance) {
        let own = self.own();
        if stance != own.stance {
            own.stance = stance;
            own.mark += 1;
        }
        if stance != Stance::Entitled && own.role == Role::Starting {
            (own.role, own.bid) = (Role::Joining, Bid::None);
        }
        if stance == Stance::Entitled && own.role == Role::Joining && own.pristine {
            self.bid_to_create();
        }
    }

    fn bid_to_create(&mut self) {
        self.close();
        let newest = self.state.decided().max().unwrap_or(Term(0));
        let own = self.own();
        own.next = decide::first_term(Term(1), own.term, newest);
        own.role = Role::Starting;
        self.ask();
    }

    /// The first term of a guest is this machine's.
    pub(super) fn create(&mut self) {
        self.enter_next_term();
        let me = self.me;
        let held = |(other, machine): (usize, &Machine)| other != me && decide::has_guest(machine.role);
        if self.state.machines.iter().enumerate().any(held) {
            self.flaw(Flaw::TwoLives);
        }
        self.state.wire.clear();
        self.state.faults = Faults::Unprotected;
        self.state.created += 1;
        let own = self.own();
        own.role = Role::Alone;
        (own.pristine, own.stance, own.log, own.applied) = (false, Stance::Listens, Vec::new(), 0);
        self.open();
    }

    /// It has listened for long, and with this rule broken needs nobody's word.
    pub(in crate::model) fn listened(&mut self) {
        self.own().listened = true;
        if self.rules.is(Broken::CreatesUnasked) {
            self.take_stance(Stance::Entitled);
        }
    }
}
