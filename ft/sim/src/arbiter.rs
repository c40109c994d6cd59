//! The third party: one key for each term, set by the first who asks, on a disk that survives its crashes.

use crate::rng::Rng;
use pollux_ft::{NodeId, Term};
use std::collections::BTreeMap;

/// How the arbiter behaves at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// It answers.
    Well,
    /// It is down: requests are lost.
    Down,
    /// It sets keys, but its answers do not get through.
    Mute,
    /// It answers late.
    Slow,
}

/// The arbiter.
#[derive(Debug)]
pub(crate) struct Arbiter {
    pub(crate) mood: Mood,
    /// Machines that cannot reach it.
    pub(crate) cut: [bool; crate::net::MACHINES],
    terms: BTreeMap<Term, NodeId>,
    rng: Rng,
}

impl Arbiter {
    pub(crate) fn new(rng: Rng) -> Self {
        Self { mood: Mood::Well, cut: Default::default(), terms: BTreeMap::new(), rng }
    }

    /// How long a message takes, to or from the arbiter; `None`: it is lost.
    pub(crate) fn flight(&mut self, machine: usize) -> Option<u64> {
        let lost = self.cut[machine] || self.rng.chance(50);
        let slow = if self.mood == Mood::Slow { 1_500_000 } else { 4_000 };
        (!lost).then(|| 200 + self.rng.below(slow))
    }

    /// Test and set: the term's owner afterwards.
    pub(crate) fn claim(&mut self, term: Term, node: NodeId) -> NodeId {
        *self.terms.entry(term).or_insert(node)
    }

    /// The newest term that was given away.
    pub(crate) fn newest(&self) -> Term {
        self.terms.last_key_value().map_or(Term(0), |(newest, _)| *newest)
    }

    /// Who won `term`.
    pub(crate) fn winner(&self, term: Term) -> Option<NodeId> {
        self.terms.get(&term).copied()
    }

    /// Whether `node` won the newest term of all, and that lies behind `term`.
    pub(crate) fn is_newest(&self, node: NodeId, term: Term) -> bool {
        self.terms.last_key_value().is_some_and(|(newest, winner)| *newest > term && *winner == node)
    }

    /// How many terms were won.
    pub(crate) fn terms(&self) -> usize {
        self.terms.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_has_one_winner_who_may_ask_again() {
        let mut arbiter = Arbiter::new(Rng::new(0, 0));
        assert_eq!(arbiter.claim(Term(2), NodeId(7)), NodeId(7));
        assert_eq!(arbiter.claim(Term(2), NodeId(8)), NodeId(7));
        assert_eq!(arbiter.claim(Term(2), NodeId(7)), NodeId(7));
        assert_eq!(arbiter.winner(Term(3)), None);
    }
}
