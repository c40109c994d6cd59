//! What is said to the arbiter and what its answers mean; the connection is the caller's.
//!
//! The arbiter is a third party with an atomic test-and-set, which gives each term to at most one node. A pair with a key
//! speaks to it in sealed records, see [`sealed`]. An etcd can be asked directly, in plain words: a piece of its v3 JSON
//! gateway over HTTP, one transaction that creates the key `pollux/PAIR/TERM` if it does not exist, and else reads it. See:
//! etcd 3.4, `rpc.proto` (`TxnRequest`) and "Why gRPC gateway". Those are neither secret nor signed: who can write to such an
//! etcd, or between it and a machine, can take terms away and hand them out twice.
//!
//! A question may be asked any number of times and over any number of connections: whoever holds the term already is
//! granted it again. So an answer that got lost does no harm, and everything that is no clear answer means: ask again.
//!
//! A [`Look`] finds out beforehand whether a question would be answered. It has an answer of another type: it can never
//! be taken for a term.

mod base64;
mod http;
mod json;
mod look;
mod question;
mod refusal;
pub mod sealed;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use self::http::Response;
pub use self::http::{HttpError, MAX_BODY, MAX_HEAD};
pub use self::look::{Look, Seen};
pub use self::question::{Question, holder, pair_prefix, term_key};
pub use self::refusal::Refusal;
use self::sealed::{ArbiterKey, Call, Nonce, Pending, Unauthentic, Verdict};
use crate::types::NodeId;

/// Which arbiter it is: the number of an etcd cluster, which all its members give and no other cluster does, or that of
/// the arbiter's own file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArbiterId(pub u64);

impl fmt::Display for ArbiterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// Who holds a term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Winner {
    /// The node; none when what stands there was not written by one of ours.
    pub node: Option<NodeId>,
    /// The machine's name, or else what stands there; printable and short.
    pub machine: String,
}

impl fmt::Display for Winner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node {
            Some(node) => write!(f, "{} (node {node})", self.machine),
            None => write!(f, "'{}', which is no machine's entry", self.machine),
        }
    }
}

/// What the arbiter said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The term is this node's.
    Granted,
    /// The term is somebody else's, for good.
    Taken {
        /// Whose.
        by: Winner,
    },
}

/// How the arbiter is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manner {
    /// In sealed records; nobody else can answer.
    Sealed(ArbiterKey),
    /// In etcd's plain words, to whoever answers.
    Etcd,
}

/// What is asked of the arbiter in one request.
pub trait Ask {
    /// What it may answer.
    type Answer;

    /// To an etcd: the bytes to be sent, on a connection of their own, to the one at `host` (`address:port`).
    #[must_use]
    fn request(&self, host: &str) -> Vec<u8>;

    /// What the body of an etcd's response says.
    ///
    /// # Errors
    /// When it is no answer to this request.
    fn judge(&self, body: &[u8]) -> Result<Self::Answer, Failure>;

    /// To be sealed: what is asked.
    #[must_use]
    fn call(&self) -> Call;

    /// What an authentic answer of `arbiter` says.
    ///
    /// # Errors
    /// When there is no term to be had, or not from this arbiter.
    fn heed(&self, arbiter: ArbiterId, verdict: Verdict) -> Result<Self::Answer, Failure>;
}

/// Why there is no answer. The question stays open: ask again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The response is not one that we understand.
    Http(HttpError),
    /// The arbiter refuses.
    Refused(Refusal),
    /// The response's body is no answer to a transaction, or none to this one.
    Content(&'static str),
    /// What came is no answer to this question by the arbiter of this pair.
    Unauthentic(Unauthentic),
    /// The connection was closed without an answer.
    Unanswered,
    /// The arbiter says why it gives no term; printable.
    Told(String),
    /// It is not the arbiter that the twins agreed on, but another one.
    Stranger {
        /// The one agreed on.
        agreed: ArbiterId,
        /// The one that answered.
        found: ArbiterId,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(error) => error.fmt(f),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Content(what) => write!(f, "the arbiter's answer is malformed: {what}"),
            Self::Unauthentic(why) => write!(f, "somebody answers who is not this pair's arbiter: {why}"),
            Self::Unanswered => f.write_str(
                "the connection was closed without an answer: whoever listens there has no key of this pair, or is no \
                 Pollux arbiter of this version (an etcd is asked with 'arbiter=etcd://…')",
            ),
            Self::Told(why) => write!(f, "the arbiter says: {why}"),
            Self::Stranger { agreed, found } => write!(
                f,
                "this is the arbiter (file or etcd cluster) {found}, and the twins agreed on {agreed}: its word does not count"
            ),
        }
    }
}

/// If an arbiter was `agreed` on, only its word counts.
fn check_agreed(agreed: Option<ArbiterId>, found: ArbiterId) -> Result<(), Failure> {
    match agreed {
        Some(agreed) if agreed != found => Err(Failure::Stranger { agreed, found }),
        _ => Ok(()),
    }
}

/// One try: the answer to one question on a connection of its own. The default is one of an etcd.
#[derive(Debug, Default)]
pub struct Try(Form);

#[derive(Debug)]
enum Form {
    Etcd(Response),
    Sealed(Box<Hearing>),
}

/// A sealed question, and what has come of its answer.
#[derive(Debug)]
struct Hearing {
    pending: Pending,
    record: Vec<u8>,
}

impl Default for Form {
    fn default() -> Self {
        Self::Etcd(Response::default())
    }
}

impl Try {
    /// Begins one: with the bytes to be sent, to the arbiter at `host` (`address:port`). `nonce` was drawn at random for it.
    #[must_use]
    pub fn begin<A: Ask>(ask: &A, manner: &Manner, host: &str, nonce: Nonce) -> (Self, Vec<u8>) {
        match manner {
            Manner::Etcd => (Self::default(), ask.request(host)),
            Manner::Sealed(key) => {
                let (pending, question) = Pending::ask(key, ask.call(), nonce);
                (Self(Form::Sealed(Box::new(Hearing { pending, record: Vec::new() }))), question)
            }
        }
    }

    /// Takes received bytes, in pieces of any length. `None`: more must come. What follows an answer is ignored.
    ///
    /// # Errors
    /// When this response will never be an answer: close the connection.
    pub fn receive<A: Ask>(&mut self, ask: &A, bytes: &[u8]) -> Result<Option<A::Answer>, Failure> {
        match &mut self.0 {
            Form::Etcd(response) => match response.receive(bytes) {
                Ok(true) => ask.judge(response.body()).map(Some),
                Ok(false) => Ok(None),
                Err(error) => Err(refused(response, error)),
            },
            Form::Sealed(hearing) => {
                let Hearing { pending, record } = &mut **hearing;
                record.extend_from_slice(&bytes[..bytes.len().min(sealed::MAX_RECORD - record.len())]);
                let Some(length) = sealed::length(record).map_err(Failure::Unauthentic)? else { return Ok(None) };
                let Some(record) = record.get(..length) else { return Ok(None) };
                let (arbiter, verdict) = pending.open(record).map_err(Failure::Unauthentic)?;
                match verdict {
                    Verdict::Refused(why) => Err(Failure::Told(printable(&why))),
                    verdict => ask.heed(arbiter, verdict).map(Some),
                }
            }
        }
    }

    /// The arbiter has closed the connection.
    ///
    /// # Errors
    /// When the response is not complete, or is no answer.
    pub fn closed<A: Ask>(&mut self, ask: &A) -> Result<A::Answer, Failure> {
        match &mut self.0 {
            Form::Etcd(response) => match response.closed() {
                Ok(()) => ask.judge(response.body()),
                Err(error) => Err(refused(response, error)),
            },
            Form::Sealed(_) => Err(Failure::Unanswered),
        }
    }
}

fn refused(response: &Response, error: HttpError) -> Failure {
    match error {
        HttpError::Status(status) => Failure::Refused(Refusal::new(status, response.body())),
        error => Failure::Http(error),
    }
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}
