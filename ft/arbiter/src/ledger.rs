//! Where the terms of pairs stand, each given away once: a file of the arbiter's own, or something elsewhere.

use std::fmt;
use std::sync::Mutex;

use anyhow::Result;
use pollux_ft::Term;
use pollux_ft::arbiter::sealed::Verdict;
use pollux_ft::arbiter::{ArbiterId, pair_prefix, term_key};

use crate::service::lock;
use crate::store::Store;

/// Terms that a pair may have: a hundred a day for years, and no more than a quarter of a file that is shared.
pub const MAX_TERMS: usize = 100_000;

/// A term and who holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The term.
    pub term: u64,
    /// The winner as it signed: node id and name of the machine.
    pub winner: String,
}

/// What a question is answered with, and by whom. Who refuses need not know who it is.
pub type Judgement = (ArbiterId, Verdict);

/// Where terms stand. Whoever is told that a term is taken, or granted, will be told so for ever.
pub trait Ledger: fmt::Debug + Send + Sync {
    /// Gives the term to the one who signs as `holder`, if nobody has it: test and set.
    fn claim(&self, pair: &str, term: Term, holder: &str) -> Judgement;

    /// Whether a claim would be answered now, and the pair's newest term.
    fn look(&self, pair: &str) -> Judgement;

    /// The pair's newest term.
    ///
    /// # Errors
    /// When the terms cannot be read.
    fn newest(&self, pair: &str) -> Result<Option<Holding>>;

    /// What it is, in a few words.
    fn describe(&self) -> String;
}

/// The file of this arbiter, which nobody else writes.
impl Ledger for Mutex<Store> {
    fn claim(&self, pair: &str, term: Term, holder: &str) -> Judgement {
        let mut store = lock(self);
        (ArbiterId(store.cluster()), claim(&mut store, pair, term, holder))
    }

    fn look(&self, pair: &str) -> Judgement {
        let store = lock(self);
        let verdict = store.check_writable().map_or_else(refused, |()| well(newest_in(&store, pair)));
        (ArbiterId(store.cluster()), verdict)
    }

    fn newest(&self, pair: &str) -> Result<Option<Holding>> {
        Ok(newest_in(&lock(self), pair))
    }

    fn describe(&self) -> String {
        let store = lock(self);
        format!("{} terms in {}", store.revision() - 1, store.path().display())
    }
}

fn claim(store: &mut Store, pair: &str, term: Term, holder: &str) -> Verdict {
    let key = term_key(pair, term);
    if let Some(record) = store.get(&key) {
        return held(&record.value, holder);
    }
    if terms_of(store, pair).count() >= MAX_TERMS {
        return too_many(pair);
    }
    store.create(&key, holder).map_or_else(refused, |()| Verdict::Granted)
}

/// What the one who signs as `holder` hears of a term that stands there with this value: whoever holds it is granted it again.
pub fn held(value: &str, holder: &str) -> Verdict {
    if value == holder { Verdict::Granted } else { Verdict::Taken(value.to_owned()) }
}

/// A pair has had all that it gets.
pub fn too_many(pair: &str) -> Verdict {
    Verdict::Refused(format!("the pair {pair} has had {MAX_TERMS} terms, and no pair gets more"))
}

/// There is no term now.
pub fn refused(error: anyhow::Error) -> Verdict {
    Verdict::Refused(format!("{error:#}"))
}

/// A claim would be answered.
pub fn well(newest: Option<Holding>) -> Verdict {
    Verdict::Well(newest.map(|holding| (Term(holding.term), holding.winner)))
}

/// The keys of a pair's terms: from the first to before the second.
pub fn keys_of(pair: &str) -> [String; 2] {
    let first = pair_prefix(pair);
    // The character behind `/` is `0`.
    let end = format!("{}0", &first[..first.len() - 1]);
    [first, end]
}

/// The newest term of a pair in a store.
pub fn newest_in(store: &Store, pair: &str) -> Option<Holding> {
    newest(pair, terms_of(store, pair))
}

/// The keys and values of all terms of a pair.
fn terms_of<'a>(store: &'a Store, pair: &str) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
    let [first, end] = keys_of(pair);
    let keys = store.range(&first, None).take_while(move |(key, _)| **key < end);
    keys.map(|(key, record)| (key.as_str(), record.value.as_str()))
}

/// The newest term of a pair among keys with their values.
pub fn newest<'a>(pair: &str, keys: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Holding> {
    let [prefix, _] = keys_of(pair);
    let terms = keys.filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?.parse().ok()?, value)));
    terms.max_by_key(|(term, _)| *term).map(|(term, value)| Holding { term, winner: value.to_owned() })
}
