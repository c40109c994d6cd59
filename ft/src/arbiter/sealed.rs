//! What a pair with a key says to its arbiter, and hears from it: one record each way, which nobody else can make or read.
//!
//! A question is: head, in the clear (magic, length, fingerprint of the key, nonce), body (what is asked, for which pair), and
//! tag. An answer: head (magic, length, nonce), body and tag. Both are sealed with XChaCha20-Poly1305, in each direction with a
//! key of its own, so that a question never opens as an answer; the head is covered by the tag. The answer's body repeats
//! the question: its nonce, what was asked, and for whom. The asker takes an answer to exactly what it asks now, and
//! nothing else: see [`Pending::open`].
//!
//! Each nonce is drawn at random by who seals, 24 bytes: 2^80 of them may be drawn before two are equal by a chance of 2^-32.
//! An arbiter that hears a question again answers it again, with another nonce. See: draft-irtf-cfrg-xchacha-03, 3.1.
//!
//! Both sides use this code: machines, and the program `pollux-arbiter`.

mod words;

use alloc::vec::Vec;
use core::fmt;

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use sha2::Sha256;

pub use self::words::{Call, Query, Verdict};
use super::ArbiterId;
use crate::key::{KEY_BYTES, PairKey, TAG_BYTES, derive};
use crate::mutation::Mutation;
use crate::pairing::MAX_NAME;
use crate::wire::{DecodeError, Reader};

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 24;
/// Drawn at random for one record.
pub type Nonce = [u8; NONCE_BYTES];
/// The longest text in an answer, in bytes: why there is no term. Longer ones are cut.
pub const MAX_TOLD: usize = 256;
/// The longest that a term's holder signs with: node, space and name.
pub const MAX_HOLDER: usize = 16 + 1 + MAX_NAME;
/// The longest record, in bytes.
pub const MAX_RECORD: usize = 512;

/// How records begin, with the version of this protocol.
const QUESTION: [u8; 4] = *b"PLq1";
const ANSWER: [u8; 4] = *b"PLa1";
/// Magic and length, which every record begins with.
const BEGIN: usize = 4 + 2;
const QUESTION_HEAD: usize = BEGIN + 8 + NONCE_BYTES;
const ANSWER_HEAD: usize = BEGIN + NONCE_BYTES;
const SALT: &[u8] = b"Pollux arbiter key, 1";

/// What a pair and its arbiter share.
#[derive(Clone, PartialEq, Eq)]
pub struct ArbiterKey {
    question: [u8; KEY_BYTES],
    answer: [u8; KEY_BYTES],
    fingerprint: u64,
}

impl ArbiterKey {
    /// The key made of [`PairKey::arbiter`].
    #[must_use]
    pub fn new(secret: &[u8; KEY_BYTES]) -> Self {
        let root = Hkdf::<Sha256>::new(Some(SALT), secret);
        Self {
            question: derive(&root, "question"),
            answer: derive(&root, "answer"),
            fingerprint: u64::from_le_bytes(derive(&root, "fingerprint")),
        }
    }

    /// What tells keys apart, and may be known to everybody.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

impl From<&PairKey> for ArbiterKey {
    fn from(key: &PairKey) -> Self {
        Self::new(key.arbiter())
    }
}

/// A secret is never shown.
impl fmt::Debug for ArbiterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArbiterKey({:016x})", self.fingerprint)
    }
}

/// Why a record is no question, or no answer to ours. Nothing follows from it but that somebody sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unauthentic {
    /// It is no record of this protocol.
    Malformed,
    /// It was sealed with another key, or changed.
    Tag,
    /// It answers another question: one of before.
    Nonce,
    /// It speaks of another pair.
    Pair,
    /// It speaks of another term.
    Term,
    /// It speaks of another node or machine.
    Node,
    /// It answers another kind of question.
    Query,
}

impl fmt::Display for Unauthentic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "it is no sealed record of this version",
            Self::Tag => "it was not made with the pair's key, or was changed on the way",
            Self::Nonce => "it answers another question",
            Self::Pair => "it speaks of another pair",
            Self::Term => "it speaks of another term",
            Self::Node => "it speaks of another node",
            Self::Query => "it answers another kind of question",
        })
    }
}

/// The rule that a test breaks; none without the feature `mutations`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Broken(#[cfg(feature = "mutations")] pub Option<Mutation>);

impl Broken {
    #[cfg(feature = "mutations")]
    fn is(self, rule: Mutation) -> bool {
        self.0 == Some(rule)
    }

    #[cfg(not(feature = "mutations"))]
    const fn is(self, _: Mutation) -> bool {
        false
    }
}

/// How long the record is that begins with `bytes`; `None` while that is not known.
///
/// # Errors
/// When none begins like this: nothing that follows will ever make it one.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, Unauthentic> {
    let known = bytes.len().min(4);
    if ![QUESTION, ANSWER].iter().any(|magic| magic[..known] == bytes[..known]) {
        return Err(Unauthentic::Malformed);
    }
    let Some(&[low, high]) = bytes.get(4..BEGIN) else { return Ok(None) };
    match usize::from(u16::from_le_bytes([low, high])) {
        length if (ANSWER_HEAD + TAG_BYTES..=MAX_RECORD).contains(&length) => Ok(Some(length)),
        _ => Err(Unauthentic::Malformed),
    }
}

/// The fingerprint of the key that a question says it was sealed with.
///
/// # Errors
/// When it is no question.
pub fn fingerprint(question: &[u8]) -> Result<u64, Unauthentic> {
    if !question.starts_with(&QUESTION) || question.len() < QUESTION_HEAD + TAG_BYTES {
        return Err(Unauthentic::Malformed);
    }
    Reader(&question[BEGIN..]).u64().map_err(|_| Unauthentic::Malformed)
}

/// A question that was asked and not answered yet.
#[derive(Debug, Clone)]
pub struct Pending {
    key: ArbiterKey,
    nonce: Nonce,
    call: Call,
    broken: Broken,
}

impl Pending {
    /// Asks. `nonce` was drawn at random for this question alone, also if the same was asked before. The bytes are to be
    /// sent to the arbiter.
    #[must_use]
    pub fn ask(key: &ArbiterKey, call: Call, nonce: Nonce) -> (Self, Vec<u8>) {
        let mut head = Vec::with_capacity(MAX_RECORD);
        head.extend_from_slice(&QUESTION);
        head.extend_from_slice(&[0; 2]);
        head.extend_from_slice(&key.fingerprint.to_le_bytes());
        head.extend_from_slice(&nonce);
        let record = seal(&key.question, &nonce, head, |body| call.put(body));
        (Self { key: key.clone(), nonce, call, broken: Broken::default() }, record)
    }

    /// **For tests only**: breaks a rule.
    #[must_use]
    pub fn break_rule(self, broken: Broken) -> Self {
        Self { broken, ..self }
    }

    /// The arbiter that answers, and its answer, if `record` is one to this question: made with the key, after it was asked,
    /// about the same pair, term and node.
    ///
    /// # Errors
    /// When it is not. Whoever sent it, it counts for nothing.
    pub fn open(&self, record: &[u8]) -> Result<(ArbiterId, Verdict), Unauthentic> {
        let head = record.get(..ANSWER_HEAD).filter(|head| head.starts_with(&ANSWER)).ok_or(Unauthentic::Malformed)?;
        let nonce = head[BEGIN..].try_into().expect("it is as long");
        let skips_tag = self.broken.is(Mutation::ArbiterTagNotChecked);
        let body = unseal(&self.key.answer, nonce, record, ANSWER_HEAD, skips_tag)?;
        let mut reader = Reader(&body);
        let mut read = || -> Result<_, DecodeError> {
            let read =
                (reader.array()?, Call::take(&mut reader)?, ArbiterId(reader.u64()?), Verdict::take(&mut reader)?);
            reader.finish().map(|()| read)
        };
        let (nonce, call, arbiter, verdict): (Nonce, _, _, _) = read().map_err(|_| Unauthentic::Malformed)?;
        if nonce != self.nonce && !self.broken.is(Mutation::ArbiterNonceNotCompared) {
            return Err(Unauthentic::Nonce);
        }
        self.call.check_same(&call, self.broken)?;
        Ok((arbiter, verdict))
    }
}

/// A question as the arbiter has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    nonce: Nonce,
    call: Call,
}

impl Received {
    /// Opens a question that was sealed with `key`.
    ///
    /// # Errors
    /// When it was not, or is none.
    pub fn open(key: &ArbiterKey, record: &[u8]) -> Result<Self, Unauthentic> {
        if fingerprint(record)? != key.fingerprint {
            return Err(Unauthentic::Tag);
        }
        let nonce = record[QUESTION_HEAD - NONCE_BYTES..QUESTION_HEAD].try_into().expect("it is as long");
        let body = unseal(&key.question, nonce, record, QUESTION_HEAD, false)?;
        let mut reader = Reader(&body);
        let call = Call::take(&mut reader).and_then(|call| reader.finish().map(|()| call));
        Ok(Self { nonce: *nonce, call: call.map_err(|_| Unauthentic::Malformed)? })
    }

    /// Its number, which the asker drew for it alone.
    #[must_use]
    pub fn nonce(&self) -> &Nonce {
        &self.nonce
    }

    /// What is asked.
    #[must_use]
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// The answer of `arbiter`; `nonce` was drawn at random for it alone.
    #[must_use]
    pub fn answer(&self, key: &ArbiterKey, nonce: Nonce, arbiter: ArbiterId, verdict: &Verdict) -> Vec<u8> {
        let mut head = Vec::with_capacity(MAX_RECORD);
        head.extend_from_slice(&ANSWER);
        head.extend_from_slice(&[0; 2]);
        head.extend_from_slice(&nonce);
        seal(&key.answer, &nonce, head, |body| {
            body.extend_from_slice(&self.nonce);
            self.call.put(body);
            body.extend_from_slice(&arbiter.0.to_le_bytes());
            verdict.put(body);
        })
    }
}

/// Makes a record of its head and of what `write` appends.
fn seal(key: &[u8; KEY_BYTES], nonce: &Nonce, head: Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let (begin, mut record) = (head.len(), head);
    write(&mut record);
    let length = u16::try_from(record.len() + TAG_BYTES).expect("texts are cut");
    record[4..BEGIN].copy_from_slice(&length.to_le_bytes());
    let (head, body) = record.split_at_mut(begin);
    let sealed = XChaCha20Poly1305::new(key.into()).encrypt_inout_detached(&XNonce::from(*nonce), head, body.into());
    record.extend_from_slice(&sealed.expect("shorter than 256 GiB"));
    record
}

/// The body of a record with a head of so many bytes.
fn unseal(
    key: &[u8; KEY_BYTES],
    nonce: &Nonce,
    record: &[u8],
    head: usize,
    skips_tag: bool,
) -> Result<Vec<u8>, Unauthentic> {
    if length(record)? != Some(record.len()) {
        return Err(Unauthentic::Malformed);
    }
    let (head, rest) = record.split_at_checked(head).ok_or(Unauthentic::Malformed)?;
    let (body, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(Unauthentic::Malformed)?;
    let (mut body, nonce) = (body.to_vec(), XNonce::from(*nonce));
    let cipher = XChaCha20Poly1305::new(key.into());
    if skips_tag {
        // The cipher is its own inverse, but for the tag.
        let _ = cipher.encrypt_inout_detached(&nonce, head, body.as_mut_slice().into());
        return Ok(body);
    }
    match cipher.decrypt_inout_detached(&nonce, head, body.as_mut_slice().into(), &Tag::from(*tag)) {
        Ok(()) => Ok(body),
        Err(_) => Err(Unauthentic::Tag),
    }
}
