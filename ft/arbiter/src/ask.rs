//! Asks an arbiter elsewhere, in sealed words, which terms it has given.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pollux_ft::arbiter::sealed::{self, Call, Pending, Query, Verdict};

use crate::keys::Pair;
use crate::ledger::Holding;
use crate::random;

/// How long it may take to connect, and to be silent.
const PATIENCE: Duration = Duration::from_secs(5);

/// The newest term that the arbiter at `address` has given to a machine of `pair`.
///
/// # Errors
/// When nobody answers there who has the pair's key.
pub fn newest_at(address: SocketAddr, pair: &Pair) -> Result<Option<Holding>> {
    match ask(address, pair, Query::Look).with_context(|| format!("cannot ask the arbiter at {address}"))? {
        Verdict::Well(newest) => Ok(newest.map(|(term, winner)| Holding { term: term.0, winner })),
        Verdict::Refused(why) => bail!("the arbiter at {address} says: {why}"),
        other => bail!("the arbiter at {address} answers with {other:?}"),
    }
}

fn ask(address: SocketAddr, pair: &Pair, query: Query) -> Result<Verdict> {
    let call = Call { pair: pair.name.clone(), query };
    let (pending, question) = Pending::ask(&pair.key, call, random::draw()?);
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&question)?;
    let mut answer = Vec::new();
    stream.take(sealed::MAX_RECORD as u64).read_to_end(&mut answer)?;
    ensure!(
        !answer.is_empty(),
        "it closes the connection without an answer: it has no key of this pair, or is no Pollux arbiter (an etcd is \
         etcd://{address})"
    );
    match pending.open(&answer) {
        Ok((_, verdict)) => Ok(verdict),
        Err(why) => bail!("somebody answers who is not this pair's arbiter: {why}"),
    }
}
