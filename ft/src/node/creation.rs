//! A machine that starts by itself: it joins, or creates the guest where there is none; see [`Stance`].

use super::side::{BackupSide, PrimarySide, Side};
use super::{Action, HaltReason, Node};
use crate::decide::{self, Bid, Stance, Word};
use crate::heartbeat::Heartbeat;
use crate::link::Queued;
use crate::mutation::Mutation;
use crate::types::{NodeId, Position, Role, Span, Term, Time};
use core::fmt;

/// Times to suspicion after which an entitled machine that gets no answer from the arbiter leaves it to its twin.
const PATIENCE: u64 = 10;

/// How a machine stands to the creation of a guest, and what it knows of it.
#[derive(Debug)]
pub(super) struct Creation {
    /// It started by itself: it may create a guest, and joins where others halt.
    auto: bool,
    /// It did, and its guest was never run, nor replaced by another's state.
    pristine: bool,
    stance: Stance,
    /// Number of the first heartbeat since the stance changed.
    mark: u64,
    /// Since when it has heard of no machine with a guest.
    vacant_since: Time,
    /// When it last heard any machine of the pair.
    heard: Time,
    /// When it began to ask for the guest's first term.
    asked_at: Time,
    /// Its bid for a first term was refused: another machine lives, or did after this one was started.
    refused: bool,
    /// The newest term that a machine of the pair spoke of.
    known: Term,
    /// The newest term that the arbiter gave away, once it has said so.
    newest: Option<Term>,
}

impl Creation {
    pub(super) fn new(now: Time, auto: bool) -> Self {
        let (vacant_since, heard, asked_at) = (now, now, now);
        Self {
            auto,
            pristine: auto,
            stance: Stance::Listens,
            mark: 1,
            vacant_since,
            heard,
            asked_at,
            refused: false,
            known: Term(0),
            newest: None,
        }
    }

    /// A guest was run here, or its state begins to arrive.
    pub(super) fn has_guest(&mut self) {
        self.pristine = false;
        self.stance = Stance::Listens;
    }
}

/// What a machine that is to find or create its guest waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitsFor {
    /// A sign of life of the twin, which may have the guest; an operator can declare it dead.
    Twin,
    /// To learn whether there is a machine with the guest.
    Silence,
    /// The word of the twin, which lives, that it has no guest.
    Word,
    /// The twin, which said that it creates the guest, or has the guest: to be taken in.
    Primary,
    /// The arbiter.
    Arbiter,
}

impl fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Twin => "a sign of life of the other machine, which may have the guest",
            Self::Silence => "a machine that has the guest, if there is one",
            Self::Word => "the other machine to say that it has no guest",
            Self::Primary => "the other machine to take it in as its backup",
            Self::Arbiter => "the arbiter",
        })
    }
}

impl Node {
    /// The arbiter has given away no newer term than this one.
    pub fn terms_seen(&mut self, now: Time, newest: Term) {
        let seen = &mut self.creation.newest;
        *seen = Some(seen.map_or(newest, |seen| seen.max(newest)));
        self.consider_creation(now);
        self.check();
    }

    /// Whether to find out which term is the newest that the arbiter gave away: [`Node::terms_seen`] is to be called.
    #[must_use]
    pub fn wants_newest_term(&self) -> bool {
        let creation = &self.creation;
        creation.pristine && creation.newest.is_none() && self.config.arbiter
    }

    /// What this machine waits for until it has a guest, if it started by itself.
    #[must_use]
    pub fn waits_for(&self, now: Time) -> Option<WaitsFor> {
        let heard = !decide::is_silent(now, self.creation.heard, decide::listens_for(self.config.suspect_after));
        Some(match (self.role(), self.creation.stance) {
            _ if !self.creation.auto => return None,
            (Role::Starting, _) | (Role::Joining, Stance::Entitled) => WaitsFor::Arbiter,
            (Role::Joining, Stance::YieldsTo(_)) if heard => WaitsFor::Primary,
            // Also when it was away itself and listens anew: the offer stands.
            (Role::Joining, Stance::Offers) if heard => WaitsFor::Word,
            (Role::Joining, _) if !heard => WaitsFor::Twin,
            (Role::Joining, _) if self.may_offer(now) => WaitsFor::Word,
            (Role::Joining, _) if self.wants_newest_term() => WaitsFor::Arbiter,
            (Role::Joining, _) => WaitsFor::Silence,
            _ => return None,
        })
    }

    fn may_offer(&self, now: Time) -> bool {
        let listened =
            decide::is_silent(now, self.creation.vacant_since, decide::listens_for(self.config.suspect_after));
        // Whoever cannot reach the arbiter must not bind a twin that can.
        let asked = !self.wants_newest_term() || self.config.broken(Mutation::NewestUnasked);
        self.creation.pristine && listened && asked
    }

    /// Whether it is open who creates the guest, as far as this machine is concerned.
    fn is_vacant(&self) -> bool {
        self.role() == Role::Joining || (self.role() == Role::Starting && self.creation.auto)
    }

    /// Who is to create the guest, as this machine says to others.
    pub(super) fn creator(&self) -> NodeId {
        if self.is_vacant() { self.creation.stance.creator(self.identity.node) } else { NodeId(0) }
    }

    /// A machine of the pair lives, or did: its heartbeat need not have been made just now, nor be under a key that we have.
    /// That puts a creation without the other's word off, and does nothing else.
    pub(super) fn machine_heard(&mut self, now: Time) {
        self.creation.heard = now;
    }

    /// A heartbeat that was made just now.
    pub(super) fn hear_word(&mut self, now: Time, beat: &Heartbeat) {
        if !self.is_vacant() {
            return;
        }
        let me = self.identity.node;
        let unheard = self.config.broken(Mutation::GuestUnheard) && decide::has_guest(beat.role);
        if decide::has_guest(beat.role) && !unheard {
            self.creation.vacant_since = now;
        }
        // What a machine says of its term is known, whatever it is now.
        let current = (beat.heard[0] == me && beat.answers >= self.creation.mark)
            || self.config.broken(Mutation::OldPromiseCounts);
        let role = if unheard { Role::Joining } else { beat.role };
        let creator = if unheard { me } else { beat.creator };
        let word = Word { node: beat.node, role, creator, current };
        let may_offer = self.may_offer(now) || (unheard && self.creation.pristine);
        self.creation.known = self.creation.known.max(beat.term);
        let stance = decide::on_word(me, self.creation.stance, may_offer, word);
        self.take_stance(now, stance);
    }

    fn take_stance(&mut self, now: Time, stance: Stance) {
        if stance != self.creation.stance {
            self.creation.stance = stance;
            self.creation.mark = self.beats.counter + 1;
            self.beats.next = now;
        }
        if stance != Stance::Entitled && self.role() == Role::Starting {
            self.withdraw();
            self.side = Side::Backup(BackupSide::Joining);
        }
        self.consider_creation(now);
    }

    /// Time has passed.
    pub(super) fn tick_creation(&mut self, now: Time, stopped: bool) {
        if stopped {
            // Who stood still has not listened.
            (self.creation.vacant_since, self.creation.heard) = (now, now);
        }
        if self.role() == Role::Starting && self.creation.auto {
            let patience = Span(self.config.suspect_after.0.saturating_mul(PATIENCE));
            if now.since(self.creation.asked_at) >= patience {
                // The twin, which is bound by its promise, may have a way to the arbiter. A term that is granted late is burnt.
                self.creation.newest = None;
                self.take_stance(now, Stance::Listens);
            }
            return;
        }
        if self.role() != Role::Joining {
            return;
        }
        let alone = !self.creation.refused
            && self.config.alone_after.is_some_and(|after| now.since(self.creation.heard) >= after);
        let unasked = self.config.broken(Mutation::CreatesUnasked);
        if self.may_offer(now) && (alone || unasked) {
            self.take_stance(now, Stance::Entitled);
        }
        self.consider_creation(now);
    }

    /// Bids for the first term of a guest that this machine is entitled to create.
    fn consider_creation(&mut self, now: Time) {
        if self.creation.stance != Stance::Entitled || self.role() != Role::Joining || !self.creation.auto {
            return;
        }
        let needless = !self.config.arbiter || self.config.broken(Mutation::NewestUnasked);
        let newest = if needless { Some(Term(0)) } else { self.creation.newest };
        let Some(newest) = newest else { return };
        self.close_link(Queued::Dropped);
        self.creation.asked_at = now;
        self.next = decide::first_term(self.config.first_term, self.term.max(self.creation.known), newest);
        self.side = Side::Primary(PrimarySide::starting());
        self.beats.next = now;
        if self.ask() == Bid::Won {
            self.begin_reign(now);
            self.actions.push_back(Action::Started { term: self.term });
        }
    }

    /// The arbiter gave a term to another machine, or another one reigns: what is held here is out of date. A machine that
    /// started by itself joins; another one halts, for a person to see.
    ///
    /// Whoever was refused a term does not speak of it: the winner may not reign yet, and takes the word of a newer reign for
    /// the end of its own guest.
    pub(super) fn beaten(&mut self, now: Time, reason: HaltReason) {
        if !self.creation.auto {
            return self.end(reason);
        }
        self.end_copies(&reason);
        self.close_link(Queued::Dropped);
        if self.role() == Role::Starting {
            // Others were given away since the arbiter was asked.
            (self.creation.newest, self.creation.refused) = (None, true);
        } else {
            if let HaltReason::Superseded(term) = reason {
                self.term = self.term.max(term);
            }
            self.actions.push_back(Action::Beaten { reason });
        }
        self.side = Side::Backup(BackupSide::Joining);
        self.position = Position(0);
        self.begin_joining(now);
    }

    /// It has no guest any more, and looks for one.
    pub(super) fn begin_joining(&mut self, now: Time) {
        self.creation.vacant_since = now;
        self.take_stance(now, Stance::Listens);
        self.creation.mark = self.beats.counter + 1;
        self.beats.next = now;
    }
}
