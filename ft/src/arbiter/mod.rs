//! What is said to the arbiter and what its answers mean; the connection is the caller's.
//!
//! The arbiter is a third party with an atomic test-and-set, which gives each term to at most one node. It speaks a
//! piece of etcd's v3 JSON gateway over HTTP: one transaction that creates the key `pollux/PAIR/TERM` if it does not
//! exist, and else reads it. See: etcd 3.4, `rpc.proto` (`TxnRequest`) and "Why gRPC gateway".
//!
//! A question may be asked any number of times and over any number of connections: whoever holds the term already is
//! granted it again. So an answer that got lost does no harm, and everything that is no clear answer means: ask again.
//!
//! Nothing here is secret or signed: who can write to the arbiter, or between it and a machine, can take terms away
//! and hand them out twice.

mod base64;
mod http;
mod json;
mod question;
#[cfg(test)]
mod tests;

use alloc::string::String;
use core::fmt;

use self::http::Response;
pub use self::http::{HttpError, MAX_BODY, MAX_HEAD};
pub use self::question::Question;
use crate::types::NodeId;

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

/// Why there is no answer. The question stays open: ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The response is not one that we understand.
    Http(HttpError),
    /// The response's body is no answer to a transaction, or none to this one.
    Content(&'static str),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(error) => error.fmt(f),
            Self::Content(what) => write!(f, "the arbiter's answer is malformed: {what}"),
        }
    }
}

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Self {
        Self::Http(error)
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
    pub fn receive(&mut self, question: &Question, bytes: &[u8]) -> Result<Option<Answer>, Failure> {
        if self.response.receive(bytes)? { question.judge(self.response.body()).map(Some) } else { Ok(None) }
    }

    /// The arbiter has closed the connection.
    ///
    /// # Errors
    /// When the response is not complete, or is no answer.
    pub fn closed(&mut self, question: &Question) -> Result<Answer, Failure> {
        self.response.closed()?;
        question.judge(self.response.body())
    }
}
