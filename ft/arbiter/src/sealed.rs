//! Sealed questions: who may ask, and what is answered.

use std::io::{ErrorKind, Read, Write};

use pollux_ft::arbiter::sealed::{self, Nonce, Query, Received, Unauthentic, Verdict};
use pollux_ft::arbiter::{ArbiterId, holder};

use crate::keys::Keyring;
use crate::ledger::{Judgement, Ledger};
use crate::random;

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

/// What is to be done about a question of a pair that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// To answer it.
    Now,
    /// To say that there is no room for it.
    Crowded,
    /// To drop it: it was here before. A machine asks each time anew.
    Again,
}

/// Answers the question that comes by `stream`; whether one came that is new. Who has no key gets no answer, and a pair for
/// which `is_asked` has no room no term.
///
/// # Errors
/// Why it is no question of a pair that is known.
pub fn serve(
    stream: &mut (impl Read + Write),
    keys: &Keyring,
    ledger: &dyn Ledger,
    is_asked: impl FnOnce(&str, &Nonce) -> Turn,
) -> Result<bool, Unauthentic> {
    let Some(record) = receive(stream)? else { return Ok(false) };
    let pair = keys.find(sealed::fingerprint(&record)?).ok_or(Unauthentic::Tag)?;
    let received = Received::open(&pair.key, &record)?;
    let (arbiter, verdict) = match is_asked(&pair.name, received.nonce()) {
        Turn::Again => return Ok(false),
        Turn::Now => judge(&received, &pair.name, ledger),
        Turn::Crowded => (ArbiterId(0), Verdict::Refused("this arbiter is asked too much at once".to_owned())),
    };
    // Without random numbers nothing is said: a nonce must not come twice.
    if let Ok(nonce) = random::draw() {
        // The asker may have gone; it will ask again.
        let _ = stream.write_all(&received.answer(&pair.key, nonce, arbiter, &verdict));
    }
    Ok(true)
}

/// What a question of `pair` is answered with.
fn judge(received: &Received, pair: &str, ledger: &dyn Ledger) -> Judgement {
    let call = received.call();
    if call.pair != pair {
        let why = format!("this key is the pair {pair}'s, and the machine says that its pair is {}", call.pair);
        return (ArbiterId(0), Verdict::Refused(why));
    }
    match &call.query {
        Query::Term { term, node, machine } => ledger.claim(pair, *term, &holder(*node, machine)),
        Query::Look => ledger.look(pair),
    }
}
