//! Stories of what the arbiter says, and of somebody in between who has no key.

use super::{BACKUP, PRIMARY, holds};
use pollux_ft::arbiter::sealed::{ArbiterKey, Broken, Call, Nonce, Pending, Query, Received, Verdict};
use pollux_ft::arbiter::{ArbiterId, holder};
use pollux_ft::key::TAG_BYTES;
use pollux_ft::{Mutation, NodeId, PairKey, Term};

const ARBITER: ArbiterId = ArbiterId(5);

fn key() -> ArbiterKey {
    ArbiterKey::from(&PairKey::new(&[1; 32]))
}

fn ask(query: Query, nonce: u8, mutation: Option<Mutation>) -> (Pending, Vec<u8>) {
    let (pending, question) = Pending::ask(&key(), Call { pair: "gemini".into(), query }, [nonce; 24]);
    (pending.break_rule(Broken(mutation)), question)
}

fn term(term: u64, node: NodeId) -> Query {
    Query::Term { term: Term(term), node, machine: "castor".into() }
}

/// What the arbiter answers; it never draws a nonce twice.
fn answer(question: &[u8], nonce: Nonce, verdict: &Verdict) -> Vec<u8> {
    Received::open(&key(), question).expect("it is genuine").answer(&key(), nonce, ARBITER, verdict)
}

fn is(pending: &Pending, record: &[u8], verdict: &Verdict) -> bool {
    pending.open(record).is_ok_and(|(_, said)| said == *verdict)
}

/// "Taken" is made into "granted", by who knows where which byte is: the cipher alone does not keep anybody from that.
pub(super) fn a_refusal_is_changed_on_the_way(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let (pending, question) = ask(term(2, BACKUP), 1, mutation);
    let by = holder(PRIMARY, "pollux");
    let taken = answer(&question, [2; 24], &Verdict::Taken(by.clone()));
    let verdict = taken.len() - TAG_BYTES - by.len() - 2;
    let mut forged = [&taken[..=verdict], &[0; TAG_BYTES]].concat();
    forged[verdict] ^= 3;
    let length = (forged.len() as u16).to_le_bytes();
    forged[4..6].copy_from_slice(&length);
    holds(!is(&pending, &forged, &Verdict::Granted), "a term that another machine has is granted")
}

/// An arbiter that is full is said to be well, by who recorded what it said before.
pub(super) fn a_good_answer_is_sent_again(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let (_, before) = ask(Query::Look, 1, mutation);
    let well = answer(&before, [2; 24], &Verdict::Well(None));
    let (now, _) = ask(Query::Look, 3, mutation);
    holds(!is(&now, &well, &Verdict::Well(None)), "an arbiter that is full looks well")
}

/// A machine whose random numbers repeat asks for another term with the same nonce.
pub(super) fn a_nonce_comes_twice(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let (_, before) = ask(term(2, BACKUP), 1, mutation);
    let granted = answer(&before, [2; 24], &Verdict::Granted);
    let (now, _) = ask(term(3, BACKUP), 1, mutation);
    holds(!is(&now, &granted, &Verdict::Granted), "a term is granted for the one before")
}
