//! The bid for the next term: asking the arbiter, and what follows from its answers.

use super::side::{Follower, PrimarySide, Side};
use super::{Action, HaltReason, Node};
use crate::decide::{self, Bid, OnAnswer, Verdict};
use crate::message::Message;
use crate::mutation::Mutation;
use crate::send_log::SendLog;
use crate::types::{Term, Time};

impl Node {
    /// The arbiter answered the question for `term`. Answers that nobody waits for any more are ignored.
    pub fn arbiter_answered(&mut self, now: Time, term: Term, verdict: Verdict) {
        let verdict = if self.config.broken(Mutation::TakenAsGranted) { Verdict::Granted } else { verdict };
        match decide::on_answer(self.role(), self.side.bid(), self.next, term, verdict) {
            OnAnswer::Stale => self.stats.answers_stale += 1,
            OnAnswer::FailStop => {
                self.stats.terms_lost += 1;
                self.beaten(now, HaltReason::TermTaken(term));
            }
            OnAnswer::Start => {
                self.begin_reign(now);
                self.actions.push_back(Action::Started { term });
            }
            OnAnswer::RunAlone => self.go_alone(now, Bid::Won),
            OnAnswer::TakeOver => match self.side.follower_mut() {
                Some(follower) if decide::suffices(self.next, follower.proposed) => {
                    follower.bid = Bid::Won;
                    self.commit(now);
                }
                // It is nobody else's: what is left to win is the term that was proposed.
                _ => self.bid_for(decide::next_term(self.next)),
            },
        }
        self.check();
    }

    /// The first term of a guest that never ran is ours.
    pub(super) fn begin_reign(&mut self, now: Time) {
        self.creation.has_guest();
        self.enter_next_term();
        self.side = Side::Primary(PrimarySide::alone(SendLog::default()));
        self.beats.next = now;
    }

    /// A question is open, and the primary was heard again: proposes to bid for the term behind that one.
    pub(super) fn propose(&mut self) {
        let term = decide::next_term(self.next);
        let Some(follower) = self.side.follower_mut() else { return };
        follower.proposed = Some(term);
        self.link.send(&mut self.stats, &Message::BidFor(term));
        if self.config.broken(Mutation::BurntUnagreed) {
            self.bid_for(term);
        }
    }

    /// The twin says for which term this session bids from now on: a backup proposes it, its primary agrees.
    pub(super) fn take_bid_for(&mut self, term: Term) -> bool {
        if let Some(Follower { proposed, .. }) = self.side.follower_mut() {
            let known = proposed.is_some_and(|proposed| term <= proposed);
            if *proposed == Some(term) {
                *proposed = None;
            }
            if known && term > self.next {
                self.bid_for(term);
            }
            return known;
        }
        let agrees = decide::agrees(self.role(), self.next, term);
        if agrees {
            self.next = term;
            self.link.send(&mut self.stats, &Message::BidFor(term));
        }
        agrees
    }

    /// Bids for `term` from here on; what was asked before is of no interest any more.
    fn bid_for(&mut self, term: Term) {
        self.withdraw();
        self.next = term;
        self.stats.terms_burnt += 1;
    }

    /// The term that the arbiter is being asked for.
    #[must_use]
    pub fn asks_for(&self) -> Option<Term> {
        (self.side.bid() == Bid::Asked).then_some(self.next)
    }

    /// Whether to look now and then if the arbiter would answer a bid; see [`decide::may_look_at_arbiter`].
    #[must_use]
    pub fn may_look_at_arbiter(&self) -> bool {
        self.config.arbiter && decide::may_look_at_arbiter(self.role(), self.side.bid())
    }

    /// Bids for the next term; how far the bid is then. Without an arbiter it is granted at once.
    pub(super) fn ask(&mut self) -> Bid {
        let unasked = self.role().is_backup() && self.config.broken(Mutation::LiveWithoutArbiter);
        if self.config.arbiter && !unasked {
            self.stats.terms_asked += 1;
            self.actions.push_back(Action::AskArbiter { term: self.next });
            Bid::Asked
        } else {
            Bid::Won
        }
    }

    /// The answer is of no interest any more.
    pub(super) fn withdraw(&mut self) {
        if self.side.bid() == Bid::Asked {
            self.actions.push_back(Action::ArbiterNotNeeded);
        }
        if let Some(follower) = self.side.follower_mut() {
            follower.bid = Bid::None;
        }
    }

    /// The term that was bid for is ours from here on.
    pub(super) fn enter_next_term(&mut self) {
        self.term = self.next;
        self.next = decide::next_term(self.term);
        self.stats.terms_won += 1;
    }
}
