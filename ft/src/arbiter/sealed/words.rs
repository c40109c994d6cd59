//! What is asked and answered, as bytes within a record.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Broken, MAX_HOLDER, MAX_TOLD, Unauthentic};
use crate::mutation::Mutation;
use crate::pairing::MAX_NAME;
use crate::types::{NodeId, Term};
use crate::wire::{DecodeError, Reader, put_text};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// "May this node, on this machine, have this term?"
    Term {
        /// The term.
        term: Term,
        /// The node.
        node: NodeId,
        /// The machine's name, at most [`MAX_NAME`] bytes.
        machine: String,
    },
    /// "Would you give away a term now, and which was the newest of this pair?"
    Look,
}

/// What is asked, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The pair's name, at most [`MAX_NAME`] bytes.
    pub pair: String,
    /// What.
    pub query: Query,
}

impl Call {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_text(out, &self.pair, MAX_NAME);
        match &self.query {
            Query::Term { term, node, machine } => {
                out.push(1);
                out.extend_from_slice(&term.0.to_le_bytes());
                out.extend_from_slice(&node.0.to_le_bytes());
                put_text(out, machine, MAX_NAME);
            }
            Query::Look => out.push(2),
        }
    }

    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let pair = reader.text(MAX_NAME)?;
        let query = match reader.u8()? {
            1 => {
                Query::Term { term: Term(reader.u64()?), node: NodeId(reader.u64()?), machine: reader.text(MAX_NAME)? }
            }
            2 => Query::Look,
            kind => return Err(DecodeError::UnknownKind(kind)),
        };
        Ok(Self { pair, query })
    }

    /// That what answers `other` answers this, too; `broken` says which rule is not kept, for tests.
    pub(super) fn check_same(&self, other: &Self, broken: Broken) -> Result<(), Unauthentic> {
        if self.pair != other.pair {
            return Err(Unauthentic::Pair);
        }
        match (&self.query, &other.query) {
            (Query::Term { term, node, machine }, Query::Term { term: theirs, node: named, machine: on }) => match () {
                () if term != theirs && !broken.is(Mutation::ArbiterTermNotCompared) => Err(Unauthentic::Term),
                () if (node, machine) != (named, on) => Err(Unauthentic::Node),
                () => Ok(()),
            },
            (ours, theirs) if ours == theirs => Ok(()),
            _ => Err(Unauthentic::Query),
        }
    }
}

/// What the arbiter says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The term is the node's.
    Granted,
    /// The term is somebody else's, who signed so: see [`MAX_HOLDER`].
    Taken(String),
    /// A term would be given away. The newest so far, and who holds it, if there was any.
    Well(Option<(Term, String)>),
    /// There is no term now, for this reason.
    Refused(String),
}

impl Verdict {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Granted => out.push(1),
            Self::Taken(by) => {
                out.push(2);
                put_text(out, by, MAX_HOLDER);
            }
            Self::Well(None) => out.push(3),
            Self::Well(Some((term, by))) => {
                out.push(4);
                out.extend_from_slice(&term.0.to_le_bytes());
                put_text(out, by, MAX_HOLDER);
            }
            Self::Refused(why) => {
                out.push(5);
                put_text(out, why, MAX_TOLD);
            }
        }
    }

    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u8()? {
            1 => Self::Granted,
            2 => Self::Taken(reader.text(MAX_HOLDER)?),
            3 => Self::Well(None),
            4 => Self::Well(Some((Term(reader.u64()?), reader.text(MAX_HOLDER)?))),
            5 => Self::Refused(reader.text(MAX_TOLD)?),
            kind => return Err(DecodeError::UnknownKind(kind)),
        })
    }
}
