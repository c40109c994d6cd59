//! How two machines with a key begin a stream, before the first message.
//!
//! Each greets at once, in the clear: magic, protocol, fingerprints of its keys, and a number drawn for this connection. Of
//! the keys that both have that one is meant which whoever dialled named first. Then come the two messages of the module `noise`, whose prologue is all of this with the pair's name and both addresses. The
//! first one says that whoever dialled has the key and heard this very greeting: until then the other end has spent no more
//! than a hash, and what was sent on another connection is of no use. The second one says the same of who listened.
//!
//! Nothing is decided by what was said before: a greeting only tells people why two machines do not find each other.

use crate::config::Config;
use crate::key::{KEY_BYTES, MAX_KEYS, PairKey, RecordKey};
use crate::mutation::Mutation;
use crate::noise::{self, Initiator, Keys, MESSAGE};
use crate::pairing::{Mismatch, PROTOCOL};
use crate::seal::{Opener, Sealer};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv4Addr;
use hkdf::Hkdf;
use sha2::Sha256;

/// First of all.
pub(crate) const MAGIC: [u8; 4] = *b"PLXs";
/// Bytes of the number that is drawn.
const NONCE: usize = 16;
const VERSIONED: usize = MAGIC.len() + 2;
const GREETING: usize = VERSIONED + 8 * MAX_KEYS + NONCE;
const PROLOGUE: &[u8] = b"Pollux log stream";

/// Which end of a connection a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It began the connection.
    Dials,
    /// It waited for it.
    Listens,
}

/// What a connection is between, and what makes it another one than all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meeting {
    /// Address of who began it.
    pub dialer: Ipv4Addr,
    /// Address of who waited for it.
    pub listener: Ipv4Addr,
    /// Drawn at random for this connection alone, and a secret.
    pub random: [u8; 32],
}

/// Why a connection is none of this pair's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stranger {
    /// What came is no greeting of a machine with a key.
    NoGreeting,
    /// The protocol's version: ours and theirs.
    Protocol(u16, u16),
    /// Fingerprints of the keys: ours and theirs.
    Key(u64, u64),
    /// It does not have the key, or means another connection.
    NotGenuine,
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoGreeting => f.write_str("keys differ: the other end has none, or is no machine of ours"),
            Self::Protocol(ours, theirs) => Mismatch::Protocol(ours, theirs).fmt(f),
            Self::Key(ours, theirs) => Mismatch::Key(ours, theirs).fmt(f),
            Self::NotGenuine => f.write_str("the other end does not show that it has the pair's key"),
        }
    }
}

enum Stage {
    /// The other end's greeting is to come.
    Greeting,
    /// Listens: the first message is to come.
    First { prologue: Vec<u8> },
    /// Dials: the second message is to come.
    Second(Box<Initiator>),
    /// Both have the key. Without one nothing is to be shown.
    Done(Box<(Sealer, Opener)>),
    /// It came to nothing.
    Failed,
}

/// One end of a connection until both have shown that they have the key. Without a key there is nothing to show.
pub struct Handshake {
    end: End,
    pair: Vec<u8>,
    addresses: [Ipv4Addr; 2],
    /// Secrets and fingerprints of the keys, the newest one first.
    keys: Vec<([u8; KEY_BYTES], u64)>,
    /// The one of them that both ends mean; before that is known the first.
    key: usize,
    ephemeral: [u8; 32],
    greeting: [u8; GREETING],
    stage: Stage,
    received: Vec<u8>,
    queued: Vec<u8>,
    /// Rules that are broken: nothing but the key is compared; the greetings are not; tags of messages are not.
    broken: [bool; 3],
}

/// Secrets are not shown.
impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handshake({:?}, {}, {} bytes)", self.end, self.is_done(), self.received.len())
    }
}

impl Handshake {
    pub(crate) fn new(config: &Config, pair: &str, end: End, meeting: &Meeting) -> Self {
        let broken = [Mutation::PrologueIgnored, Mutation::GreetingIgnored, Mutation::StreamTagNotChecked]
            .map(|rule| config.broken(rule));
        let keys = config.protection.keys().map(|key: &PairKey| (*key.stream(), key.fingerprint())).collect();
        Self::with(keys, broken, pair, end, meeting)
    }

    /// With a recorder, which has keys of its own.
    pub(crate) fn of_recorder(keys: &[RecordKey], pair: &str, end: End, meeting: &Meeting) -> Self {
        let keys = keys.iter().take(MAX_KEYS).map(|key| (key.secret, key.fingerprint)).collect();
        Self::with(keys, [false; 3], pair, end, meeting)
    }

    /// By one of these secrets, which have those fingerprints.
    fn with(keys: Vec<([u8; KEY_BYTES], u64)>, broken: [bool; 3], pair: &str, end: End, meeting: &Meeting) -> Self {
        let mut this = Self {
            end,
            pair: pair.into(),
            addresses: [meeting.dialer, meeting.listener],
            keys,
            key: 0,
            ephemeral: [0; 32],
            greeting: [0; GREETING],
            stage: Stage::Done(Box::new((Sealer::default(), Opener::default().break_check(broken[2])))),
            received: Vec::new(),
            queued: Vec::new(),
            broken,
        };
        if !this.keys.is_empty() {
            this.begin(&meeting.random);
        }
        this
    }

    fn begin(&mut self, random: &[u8; 32]) {
        let drawn = Hkdf::<Sha256>::new(None, random);
        let mut nonce = [0; NONCE];
        drawn.expand(b"nonce", &mut nonce).expect("shorter than 255 hashes");
        drawn.expand(b"ephemeral", &mut self.ephemeral).expect("shorter than 255 hashes");
        let fingerprints = self.fingerprints().map(u64::to_le_bytes);
        let fields: [&[u8]; 4] = [&MAGIC, &PROTOCOL.to_le_bytes(), fingerprints.as_flattened(), &nonce];
        self.queued = fields.concat();
        self.greeting.copy_from_slice(&self.queued);
        self.stage = Stage::Greeting;
    }

    fn fingerprints(&self) -> [u64; MAX_KEYS] {
        core::array::from_fn(|at| self.keys.get(at).map_or(0, |key| key.1))
    }

    /// The fingerprint of the key that both ends mean, once it [is done](Self::is_done); 0 is none.
    pub(crate) fn key(&self) -> u64 {
        self.fingerprints()[self.key]
    }

    /// Takes bytes that came along the connection, and no more of them than are its own; returns how many.
    ///
    /// # Errors
    /// When the other end is not of this pair. The connection is of no use then.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<usize, Stranger> {
        let mut taken = 0;
        while let Some(missing) = self.needs().checked_sub(self.received.len()) {
            let some = missing.min(bytes.len() - taken);
            if some == 0 {
                break;
            }
            self.received.extend_from_slice(&bytes[taken..taken + some]);
            taken += some;
            self.advance().inspect_err(|_| self.stage = Stage::Failed)?;
        }
        Ok(taken)
    }

    /// How many bytes this stage takes.
    fn needs(&self) -> usize {
        match self.stage {
            Stage::Greeting => GREETING,
            Stage::First { .. } | Stage::Second(_) => MESSAGE,
            Stage::Done(_) | Stage::Failed => 0,
        }
    }

    fn advance(&mut self) -> Result<(), Stranger> {
        let known = self.received.len().min(MAGIC.len());
        if matches!(self.stage, Stage::Greeting) && self.received[..known] != MAGIC[..known] {
            return Err(Stranger::NoGreeting);
        }
        // As soon as it is known: another version's greeting may be shorter.
        if let (Stage::Greeting, Some(&[.., low, high])) = (&self.stage, self.received.first_chunk::<VERSIONED>())
            && let protocol = u16::from_le_bytes([low, high])
            && protocol != PROTOCOL
        {
            return Err(Stranger::Protocol(PROTOCOL, protocol));
        }
        if self.received.len() < self.needs() {
            return Ok(());
        }
        let received = core::mem::take(&mut self.received);
        self.stage = match core::mem::replace(&mut self.stage, Stage::Failed) {
            Stage::Greeting => self.greeted(received.first_chunk().expect("it is whole"))?,
            Stage::First { prologue } => {
                let first = received.first_chunk().expect("it is whole");
                let answer = noise::respond(&self.keys[self.key].0, &prologue, &self.ephemeral, first);
                let (second, keys) = answer.ok_or(Stranger::NotGenuine)?;
                self.queued.extend_from_slice(&second);
                self.done(keys)
            }
            Stage::Second(initiator) => {
                let second = received.first_chunk().expect("it is whole");
                self.done(initiator.finish(second).ok_or(Stranger::NotGenuine)?)
            }
            stage => stage,
        };
        Ok(())
    }

    fn greeted(&mut self, theirs: &[u8; GREETING]) -> Result<Stage, Stranger> {
        let (prints, _) = theirs[VERSIONED..].as_chunks::<8>();
        let named: [u64; MAX_KEYS] = core::array::from_fn(|at| u64::from_le_bytes(prints[at]));
        let ours = self.fingerprints();
        let [dialer, listener] = match self.end {
            End::Dials => [ours, named],
            End::Listens => [named, ours],
        };
        let common = dialer.into_iter().find(|key| *key != 0 && listener.contains(key));
        let found = common.and_then(|key| ours.iter().position(|other| *other == key));
        self.key = found.ok_or(Stranger::Key(ours[0], named[0]))?;
        let prologue = self.prologue(theirs);
        Ok(match self.end {
            End::Listens => Stage::First { prologue },
            End::Dials => {
                let (initiator, first) = noise::initiate(&self.keys[self.key].0, &prologue, self.ephemeral);
                self.queued.extend_from_slice(&first);
                Stage::Second(Box::new(initiator))
            }
        })
    }

    /// What both ends must mean alike.
    fn prologue(&self, theirs: &[u8; GREETING]) -> Vec<u8> {
        let [dialer, listener] = match self.end {
            End::Dials => [&self.greeting, theirs],
            End::Listens => [theirs, &self.greeting],
        };
        let [all, greetings, _] = self.broken;
        let addresses = self.addresses.map(|address| address.octets());
        let fields: [&[u8]; 6] =
            [PROLOGUE, &[self.pair.len() as u8], &self.pair, addresses.as_flattened(), dialer, listener];
        fields[..if all {
            0
        } else if greetings {
            4
        } else {
            6
        }]
            .concat()
    }

    fn done(&self, keys: Keys) -> Stage {
        let (ours, theirs) = match self.end {
            End::Dials => (keys.initiator, keys.responder),
            End::Listens => (keys.responder, keys.initiator),
        };
        Stage::Done(Box::new((Sealer::new(ours), Opener::new(theirs).break_check(self.broken[2]))))
    }

    /// Bytes to be sent; report what was taken with [`transmitted`](Self::transmitted).
    #[must_use]
    pub fn transmit(&self) -> &[u8] {
        &self.queued
    }

    /// The first `count` bytes of [`transmit`](Self::transmit) are on their way.
    pub fn transmitted(&mut self, count: usize) {
        self.queued.drain(..count);
    }

    /// Whether the other end has shown that it has the key, or there is none.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done(_))
    }

    /// What protects the messages from here on, once it is done; with what is still to be sent before them.
    pub(crate) fn finish(&mut self) -> Option<(Sealer, Opener)> {
        match core::mem::replace(&mut self.stage, Stage::Failed) {
            Stage::Done(ends) => Some(*ends),
            stage => {
                self.stage = stage;
                None
            }
        }
    }

    /// What is to be sent, which is taken over.
    pub(crate) fn take_queued(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.queued)
    }
}
