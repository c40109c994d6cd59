//! The third party: gives each term to whoever asks first. Questions and answers take their time and get lost.

use super::net::Rng;
use pollux_ft::{Term, Verdict};
use std::collections::BTreeMap;

/// Time until a machine that got no answer asks again.
const RETRY: u64 = 40_000;

/// A question on its way, or its answer.
struct Letter {
    at: u64,
    machine: usize,
    node: u64,
    term: Term,
    answer: Option<Verdict>,
}

#[derive(Default)]
pub(crate) struct Arbiter {
    pub(crate) winners: BTreeMap<u64, u64>,
    letters: Vec<Letter>,
    /// Machines that are cut off from it.
    pub(crate) cut_off: [bool; 2],
    /// It decides, but its answers do not arrive.
    pub(crate) mute: bool,
}

/// A machine's side: what it asks for, and when it asks next.
#[derive(Clone, Copy)]
pub(crate) struct Question {
    pub(crate) term: Term,
    pub(crate) at: u64,
}

impl Arbiter {
    pub(crate) fn ask(&mut self, now: u64, rng: &mut Rng, machine: usize, node: u64, question: &mut Question) {
        if question.at > now {
            return;
        }
        question.at = now + RETRY;
        if !self.cut_off[machine] && !rng.chance(20) {
            let at = now + rng.below(15_000);
            self.letters.push(Letter { at, machine, node, term: question.term, answer: None });
        }
    }

    /// Decides what arrived; the answers that arrive at machines: which, the node asked for, its term and verdict.
    pub(crate) fn run(&mut self, now: u64, rng: &mut Rng) -> Vec<(usize, u64, Term, Verdict)> {
        let mut arrived = Vec::new();
        for mut letter in self.letters.extract_if(.., |letter| letter.at <= now).collect::<Vec<_>>() {
            if let Some(verdict) = letter.answer {
                arrived.push((letter.machine, letter.node, letter.term, verdict));
                continue;
            }
            let winner = *self.winners.entry(letter.term.0).or_insert(letter.node);
            letter.answer = Some(if winner == letter.node { Verdict::Granted } else { Verdict::Taken });
            letter.at = now + rng.below(15_000);
            if !self.mute && !self.cut_off[letter.machine] && !rng.chance(20) {
                self.letters.push(letter);
            }
        }
        arrived
    }
}
