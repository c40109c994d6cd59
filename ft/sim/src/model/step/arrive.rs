//! What comes from other machines.

use super::Step;
use crate::model::state::{Flaw, Message};
use pollux_ft::Role;
use pollux_ft::decide::{self, Claim, LastWord, OnClaim, Stance};

impl Step<'_> {
    /// Opens a stream to a primary.
    pub(in crate::model) fn connect(&mut self, primary: usize) {
        let me = self.me;
        for (end, other) in [(me, primary), (primary, me)] {
            self.state.machines[end].link = Some(other);
            self.state.queues[end].clear();
        }
        if let Some(beat) = &mut self.state.beats[me][primary] {
            beat.before_hello = true;
        }
        let hello = Message::Hello { node: self.own().node, term: self.own().term };
        self.send(hello);
    }

    /// The next message of the stream.
    pub(in crate::model) fn read(&mut self) {
        let Some(message) = self.state.queues[self.me].pop_front() else { return };
        if self.own().paired {
            self.own().silent = false;
            self.primary_heard();
        }
        let role = self.own().role;
        match (role, message) {
            (Role::Joining, Message::Hello { term, .. }) if term < self.own().term => {
                self.send(Message::Refuse);
                self.close();
            }
            (Role::Joining, Message::Hello { node, .. }) => {
                let own = self.own();
                own.peer = Some(node);
                (own.session.0, own.paired) = (0, true);
            }
            (_, Message::Hello { node, term }) => self.take_joiner(node, term),
            (Role::Joining, Message::Begin { session, term, next }) => {
                let own = self.own();
                if !decide::may_follow(own.term, term, next) {
                    return self.link_lost();
                }
                own.role = Role::Loading;
                (own.pristine, own.stance) = (false, Stance::Listens);
                (own.session, own.term, own.next) = (session, term, next);
            }
            (Role::Loading, Message::State(log)) => self.join(log),
            (Role::Transferring, Message::Joined) => self.protected(),
            (Role::Backup | Role::Draining, Message::Entry(entry)) => self.take_entry(entry),
            (Role::Protected | Role::HandingOver, Message::Ack(held)) => self.take_ack(held),
            (Role::Transferring, Message::Refuse) => {
                self.lose_backup(LastWord::GaveUp);
            }
            (Role::Transferring | Role::Protected | Role::HandingOver, Message::Leaving) => {
                self.lose_backup(LastWord::GaveUp);
            }
            (_, Message::TookOver(term)) => {
                let own = self.own();
                if decide::may_have_taken_over(own.role, own.next, term, own.handover_acked()) {
                    self.handed_over(term);
                } else {
                    self.link_lost();
                }
            }
            (_, Message::BidFor(term)) => {
                if !self.take_bid_for(term) {
                    self.link_lost();
                }
            }
            (Role::Backup, Message::Leaving) => {
                self.own().primary_left = true;
                self.commit();
            }
            _ => self.link_lost(),
        }
    }

    /// A heartbeat arrives.
    pub(in crate::model) fn hear(&mut self, from: usize) {
        let rules = self.rules;
        let me = self.me;
        let Some(said) = self.state.beats[from][me] else { return };
        let beat = said.heartbeat();
        let auto = self.auto;
        let own = self.own();
        if own.role == Role::Halted || beat.node == own.node {
            return;
        }
        let word = said.word(own).filter(|_| auto);
        if auto {
            match word {
                Some(_) => own.heard = Some((beat.node, said.mark)),
                // It shall know that it is heard; what it says was not said to this life.
                None => {
                    own.heard = own.heard.filter(|(node, _)| *node == beat.node).or(Some((beat.node, 0)));
                    return;
                }
            }
        }
        let ours = Claim { term: own.term, node: own.node, primary: true };
        let theirs = Claim { term: beat.term, node: beat.node, primary: beat.role.is_primary() };
        match rules.on_claim(own.role, ours, theirs, own.peer == Some(beat.node)) {
            OnClaim::Ignore if own.role.is_primary() && theirs.term > ours.term => self.flaw(Flaw::Superseded),
            OnClaim::Ignore => {}
            OnClaim::HandedOver => return self.handed_over(beat.term),
            OnClaim::Yield => return self.beaten(beat.term),
        }
        if let Some(word) = word {
            self.hear_word(word);
        }
        let own = self.own();
        if own.peer != Some(beat.node) {
            return;
        }
        own.silent = false;
        if !own.role.is_primary() {
            if matches!(own.role, Role::Loading | Role::Backup | Role::Draining) {
                let standing = decide::standing(&beat, own.node, own.term, own.session);
                let verdict = rules.on_standing(standing, decide::is_bound(own.bid, own.proposed), own.next, beat.term);
                self.take_standing(verdict);
            }
            return;
        }
        let word = rules.last_word(&beat, own.node, own.session);
        let ours = beat.session == own.session && beat.peer == own.node;
        let unlinked = beat.role.is_backup() && ours && !beat.linked;
        match own.role {
            Role::Transferring | Role::Protected | Role::HandingOver if word == LastWord::GaveUp => {
                self.lose_backup(word);
            }
            role if unlinked && decide::needs_stream(role, own.handover_acked()) => {
                self.lose_backup(LastWord::None);
            }
            Role::Detaching => self.consider_alone(word),
            _ => {}
        }
    }
}
