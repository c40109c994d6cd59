//! What is said to the arbiter and what its answers mean; the connection is the caller's.
//!
//! The arbiter is a third party with an atomic test-and-set, which gives each term to at most one node. It speaks a
//! piece of etcd's v3 JSON gateway over HTTP: one transaction that creates the key `pollux/PAIR/TERM` if it does not
//! exist, and else reads it. See: etcd 3.4, `rpc.proto` (`TxnRequest`) and "Why gRPC gateway".
//!
//! A question may be asked any number of times and over any number of connections: whoever holds the term already is
//! granted it again. So an answer that got lost does no harm, and everything that is no clear answer means: ask again.
//!
//! A [`Look`] finds out beforehand whether a question would be answered. It has an answer of another type: it can never
//! be taken for a term.
//!
//! Nothing here is secret or signed: who can write to the arbiter, or between it and a machine, can take terms away
//! and hand them out twice.

mod base64;
mod http;
mod json;
mod look;
mod question;
mod refusal;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use self::http::Response;
pub use self::http::{HttpError, MAX_BODY, MAX_HEAD};
pub use self::look::Look;
pub use self::question::Question;
pub use self::refusal::Refusal;
use crate::types::NodeId;

/// Which arbiter it is: the number of an etcd cluster, which all its members give and no other cluster does.
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

/// What is asked of the arbiter in one request.
pub trait Ask {
    /// What it may answer.
    type Answer;

    /// The bytes to be sent, on a connection of their own, to the arbiter at `host` (`address:port`).
    #[must_use]
    fn request(&self, host: &str) -> Vec<u8>;

    /// What the body of a response says.
    ///
    /// # Errors
    /// When it is no answer to this request.
    fn judge(&self, body: &[u8]) -> Result<Self::Answer, Failure>;
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
            Self::Stranger { agreed, found } => write!(
                f,
                "this is the arbiter (etcd cluster) {found}, and the twins agreed on {agreed}: its word does not count"
            ),
        }
    }
}

/// One try: the response to one request on a connection of its own.
#[derive(Debug, Default)]
pub struct Try {
    response: Response,
}

impl Try {
    /// Takes received bytes, in pieces of any length. `None`: more must come. What follows an answer is ignored.
    ///
    /// # Errors
    /// When this response will never be an answer: close the connection.
    pub fn receive<A: Ask>(&mut self, ask: &A, bytes: &[u8]) -> Result<Option<A::Answer>, Failure> {
        let complete = self.response.receive(bytes).map_err(|error| self.failure(error))?;
        if complete { ask.judge(self.response.body()).map(Some) } else { Ok(None) }
    }

    /// The arbiter has closed the connection.
    ///
    /// # Errors
    /// When the response is not complete, or is no answer.
    pub fn closed<A: Ask>(&mut self, ask: &A) -> Result<A::Answer, Failure> {
        self.response.closed().map_err(|error| self.failure(error))?;
        ask.judge(self.response.body())
    }

    fn failure(&self, error: HttpError) -> Failure {
        match error {
            HttpError::Status(status) => Failure::Refused(Refusal::new(status, self.response.body())),
            error => Failure::Http(error),
        }
    }
}
