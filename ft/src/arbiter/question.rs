//! One question to the arbiter, and what answers to it mean, be they sealed or an etcd's.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::json::{BadJson, Reader};
use super::sealed::{Call, Query, Verdict};
use super::{Answer, ArbiterId, Ask, Failure, Winner, base64, check_agreed};
use crate::pairing::MAX_NAME;
use crate::types::{NodeId, Term};

/// "May this node have this term?"
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pair: String,
    term: Term,
    node: NodeId,
    machine: String,
    agreed: Option<ArbiterId>,
}

impl Question {
    /// Asks for `term` of `pair` in the name of `node`, which runs on the machine called `machine`. Both names have at
    /// most [`MAX_NAME`] bytes.
    #[must_use]
    pub fn new(pair: &str, term: Term, node: NodeId, machine: &str) -> Self {
        Self { pair: pair.into(), term, node, machine: machine.into(), agreed: None }
    }

    /// Only this arbiter's answer is to count.
    #[must_use]
    pub fn of(self, agreed: Option<ArbiterId>) -> Self {
        Self { agreed, ..self }
    }

    /// The term asked for.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    fn key(&self) -> Vec<u8> {
        term_key(&self.pair, self.term).into_bytes()
    }

    /// What stands under that key if the term is ours.
    fn value(&self) -> Vec<u8> {
        holder(self.node, &self.machine).into_bytes()
    }
}

/// The name under which a term of a pair is kept.
#[must_use]
pub fn term_key(pair: &str, term: Term) -> String {
    format!("{}{}", pair_prefix(pair), term.0)
}

/// How the names of all terms of a pair begin.
#[must_use]
pub fn pair_prefix(pair: &str) -> String {
    format!("pollux/{pair}/")
}

/// How a machine signs for a term.
#[must_use]
pub fn holder(node: NodeId, machine: &str) -> String {
    format!("{node} {machine}")
}

impl Ask for Question {
    type Answer = Answer;

    fn request(&self, host: &str) -> Vec<u8> {
        let (key, value) = (base64::encode(&self.key()), base64::encode(&self.value()));
        post(
            host,
            &format!(
                "{{\"compare\":[{{\"target\":\"CREATE\",\"result\":\"EQUAL\",\"key\":\"{key}\",\"create_revision\":\"0\"}}],\
                 \"success\":[{{\"request_put\":{{\"key\":\"{key}\",\"value\":\"{value}\"}}}}],\
                 \"failure\":[{{\"request_range\":{{\"key\":\"{key}\"}}}}]}}"
            ),
        )
    }

    fn judge(&self, body: &[u8]) -> Result<Answer, Failure> {
        match Found::read(body, self.agreed)? {
            Found { succeeded: true, put: true, keys, .. } if keys.is_empty() => Ok(Answer::Granted),
            Found { succeeded: false, put: false, keys, value, .. } if keys.len() == 1 => {
                if base64::decode(&keys[0]).as_ref() != Some(&self.key()) {
                    return Err(Failure::Content("it speaks of another key"));
                }
                let value = base64::decode(&value.unwrap_or_default());
                let value = value.ok_or(Failure::Content("its value is not base64"))?;
                // We have won before, and the answer was lost.
                Ok(if value == self.value() { Answer::Granted } else { Answer::Taken { by: winner(&value) } })
            }
            _ => Err(Failure::Content("it says neither that the key was made nor who made it")),
        }
    }

    fn call(&self) -> Call {
        let (term, node, machine) = (self.term, self.node, self.machine.clone());
        Call { pair: self.pair.clone(), query: Query::Term { term, node, machine } }
    }

    fn heed(&self, arbiter: ArbiterId, verdict: Verdict) -> Result<Answer, Failure> {
        check_agreed(self.agreed, arbiter)?;
        match verdict {
            Verdict::Granted => Ok(Answer::Granted),
            Verdict::Taken(by) => Ok(Answer::Taken { by: winner(by.as_bytes()) }),
            _ => Err(Failure::Content("it says neither that the term is ours nor whose it is")),
        }
    }
}

/// The HTTP request for a transaction.
pub(super) fn post(host: &str, transaction: &str) -> Vec<u8> {
    let length = transaction.len();
    format!(
        "POST /v3/kv/txn HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{transaction}"
    )
    .into_bytes()
}

/// Who is named by a value.
fn winner(value: &[u8]) -> Winner {
    let text: String = String::from_utf8_lossy(value).chars().filter(|c| !c.is_control()).take(MAX_NAME + 17).collect();
    let ours = text.split_once(' ').filter(|(node, _)| node.len() == 16);
    match ours.and_then(|(node, machine)| Some((u64::from_str_radix(node, 16).ok()?, machine))) {
        Some((node, machine)) => Winner { node: Some(NodeId(node)), machine: machine.into() },
        None => Winner { node: None, machine: text },
    }
}

/// What stands in an answer, as far as it matters.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) header: bool,
    pub(super) arbiter: Option<ArbiterId>,
    pub(super) succeeded: bool,
    pub(super) put: bool,
    /// A range of keys was looked at, and what was found of it; of the last one the value, too.
    pub(super) range: bool,
    pub(super) keys: Vec<String>,
    value: Option<String>,
}

impl Found {
    /// Reads an answer to a transaction. If an arbiter was `agreed` on, it must not come from another one.
    pub(super) fn read(body: &[u8], agreed: Option<ArbiterId>) -> Result<Self, Failure> {
        let found = Self::try_read(body).map_err(|BadJson| Failure::Content("it is not the JSON of a transaction"))?;
        found.arbiter.map_or(Ok(()), |arbiter| check_agreed(agreed, arbiter)).map(|()| found)
    }

    fn try_read(body: &[u8]) -> Result<Self, BadJson> {
        let mut found = Self::default();
        let mut reader = Reader::new(body);
        let mut seen = (false, false);
        reader.object(|reader, name| match name {
            "succeeded" if !core::mem::replace(&mut seen.0, true) => {
                found.succeeded = reader.boolean()?;
                Ok(())
            }
            "responses" if !core::mem::replace(&mut seen.1, true) => reader.array(|reader| found.response(reader)),
            "succeeded" | "responses" => Err(BadJson),
            "header" => {
                found.header = true;
                found.header(reader)
            }
            _ => reader.skip(),
        })?;
        reader.finish()?;
        Ok(found)
    }

    /// Who answers. An arbiter without a number, or with one that is none, is any.
    fn header(&mut self, reader: &mut Reader<'_>) -> Result<(), BadJson> {
        reader.object(|reader, name| match name {
            "cluster_id" | "clusterId" => {
                self.arbiter = reader.string_if_one()?.and_then(|text| text.parse().ok()).map(ArbiterId);
                Ok(())
            }
            _ => reader.skip(),
        })
    }

    /// One of `response_put` and `response_range`, in either spelling. See: Protocol Buffers, "JSON Mapping".
    fn response(&mut self, reader: &mut Reader<'_>) -> Result<(), BadJson> {
        reader.object(|reader, name| match name {
            "response_put" | "responsePut" => {
                self.put = true;
                reader.skip()
            }
            "response_range" | "responseRange" => {
                self.range = true;
                reader.object(|reader, name| match name {
                    "kvs" => reader.array(|reader| self.pair(reader)),
                    _ => reader.skip(),
                })
            }
            _ => reader.skip(),
        })
    }

    /// One key with its value.
    fn pair(&mut self, reader: &mut Reader<'_>) -> Result<(), BadJson> {
        let (mut key, mut value) = (None, None);
        reader.object(|reader, name| {
            let field = match name {
                "key" => &mut key,
                "value" => &mut value,
                _ => return reader.skip(),
            };
            if field.is_some() {
                return Err(BadJson);
            }
            *field = Some(reader.string()?);
            Ok(())
        })?;
        self.keys.extend(key);
        self.value = value;
        Ok(())
    }
}
