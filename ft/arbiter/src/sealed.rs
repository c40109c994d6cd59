//! Sealed questions: who may ask, and what is answered.

use std::io::{ErrorKind, Read, Write};
use std::sync::Mutex;

use pollux_ft::Term;
use pollux_ft::arbiter::sealed::{self, Query, Received, Unauthentic, Verdict};
use pollux_ft::arbiter::{ArbiterId, holder, term_key};

use crate::keys::Keyring;
use crate::random;
use crate::service::{newest_in, terms_of};
use crate::store::Store;

/// Terms that a pair may have: a hundred a day for years, and no more than a quarter of a file that is shared.
const MAX_TERMS: usize = 100_000;

/// Receives one question; none if the connection ends or breaks before.
fn receive(stream: &mut impl Read) -> Result<Option<Vec<u8>>, Unauthentic> {
    let (mut record, mut buffer) = (Vec::new(), [0; sealed::MAX_RECORD]);
    loop {
        let length = sealed::length(&record)?;
        match length {
            Some(length) if record.len() == length => return Ok(Some(record)),
            // What follows a question is none of it.
            Some(length) if record.len() > length => return Err(Unauthentic::Malformed),
            _ => {}
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => record.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Ok(None),
        }
    }
}

/// Answers the question that comes by `stream`; whether one came. Who has no key gets no answer.
///
/// # Errors
/// Why it is no question of a pair that is known.
pub fn serve(stream: &mut (impl Read + Write), keys: &Keyring, store: &Mutex<Store>) -> Result<bool, Unauthentic> {
    let Some(record) = receive(stream)? else { return Ok(false) };
    let pair = keys.find(sealed::fingerprint(&record)?).ok_or(Unauthentic::Tag)?;
    let received = Received::open(&pair.key, &record)?;
    let (arbiter, verdict) = judge(&received, &pair.name, store);
    // Without random numbers nothing is said: a nonce must not come twice.
    if let Ok(nonce) = random::draw() {
        // The asker may have gone; it will ask again.
        let _ = stream.write_all(&received.answer(&pair.key, nonce, arbiter, &verdict));
    }
    Ok(true)
}

/// What a question of `pair` is answered with.
fn judge(received: &Received, pair: &str, store: &Mutex<Store>) -> (ArbiterId, Verdict) {
    let call = received.call();
    let mut store = crate::service::lock(store);
    let verdict = match &call.query {
        _ if call.pair != pair => Verdict::Refused(format!(
            "this key is the pair {pair}'s, and the machine says that its pair is {}",
            call.pair
        )),
        Query::Term { term, node, machine } => claim(&mut store, pair, *term, &holder(*node, machine)),
        Query::Look => {
            let newest = newest_in(&store, pair).map(|holding| (Term(holding.term), holding.winner));
            store.check_writable().map_or_else(refused, |()| Verdict::Well(newest))
        }
    };
    (ArbiterId(store.cluster()), verdict)
}

/// Test and set.
fn claim(store: &mut Store, pair: &str, term: Term, holder: &str) -> Verdict {
    let key = term_key(pair, term);
    if let Some(record) = store.get(&key) {
        return if record.value == holder { Verdict::Granted } else { Verdict::Taken(record.value.clone()) };
    }
    if terms_of(store, pair).count() >= MAX_TERMS {
        return Verdict::Refused(format!("the pair {pair} has had {MAX_TERMS} terms, and no pair gets more"));
    }
    store.create(&key, holder).map_or_else(refused, |()| Verdict::Granted)
}

fn refused(error: anyhow::Error) -> Verdict {
    Verdict::Refused(format!("{error:#}"))
}
