//! The pair's key, and how it protects datagrams. How it protects the stream: see [`crate::handshake`]; the words to and from
//! the arbiter: [`crate::arbiter::sealed`].
//!
//! Each use has a key of its own, derived from the pair's by HKDF-SHA-256 (RFC 5869) under a name: what is learnt or broken
//! in one place says nothing about another. Datagrams are sealed by XChaCha20-Poly1305, whose nonce of 24 bytes has room
//! for the sender's id, another one at each start, and the datagram's number: no pair of them comes twice under one key.
//! See: RFC 8439; draft-irtf-cfrg-xchacha-03.

use alloc::boxed::Box;
use alloc::vec::Vec;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use core::fmt;
use hkdf::Hkdf;
use sha2::Sha256;
use xxhash_rust::xxh64::xxh64;

/// Bytes of a pair's key.
pub const KEY_BYTES: usize = 32;
/// Bytes by which a datagram is known to be genuine.
pub const TAG_BYTES: usize = 16;
/// Sets our uses of a key apart from everybody else's.
const SALT: &[u8] = b"Pollux pair key, 1";

/// The secret that the two machines of a pair share, as far as it is used.
#[derive(Clone, PartialEq, Eq)]
pub struct PairKey {
    heartbeat: [u8; KEY_BYTES],
    stream: [u8; KEY_BYTES],
    arbiter: [u8; KEY_BYTES],
    record: [u8; KEY_BYTES],
    fingerprint: u64,
}

impl PairKey {
    /// The pair's key; `secret` is drawn at random, once for a pair.
    #[must_use]
    pub fn new(secret: &[u8; KEY_BYTES]) -> Self {
        let root = Hkdf::<Sha256>::new(Some(SALT), secret);
        Self {
            heartbeat: derive(&root, "heartbeat"),
            stream: derive(&root, "stream"),
            arbiter: derive(&root, "arbiter"),
            record: derive(&root, "record"),
            fingerprint: u64::from_le_bytes(derive(&root, "fingerprint")),
        }
    }

    /// The secret of each stream's handshake.
    pub(crate) fn stream(&self) -> &[u8; KEY_BYTES] {
        &self.stream
    }

    /// What the pair shares with its arbiter. Who has it alone can neither read the pair's stream nor make its heartbeats.
    #[must_use]
    pub fn arbiter(&self) -> &[u8; KEY_BYTES] {
        &self.arbiter
    }

    /// What tells two keys apart, and may be known to everybody; never 0, which is no key.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint.max(1)
    }

    fn record(&self) -> RecordKey {
        RecordKey { secret: self.record, fingerprint: self.fingerprint() }
    }
}

/// The most keys that are valid at a time.
pub const MAX_KEYS: usize = 2;

/// The keys of a pair: one, and, while it changes from one to another, both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    newest: PairKey,
    older: Option<Box<PairKey>>,
}

impl Keys {
    /// The newest one first.
    pub fn iter(&self) -> impl Iterator<Item = &PairKey> {
        core::iter::once(&self.newest).chain(self.older.as_deref())
    }
}

/// Why a pair's keys stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyError {
    /// The pair has none.
    Insecure,
    /// It is one of them already.
    Known(u64),
    /// There are two already: their fingerprints.
    Changing([u64; MAX_KEYS]),
    /// None of them has this fingerprint.
    Unknown(u64),
    /// There is no other one.
    Last(u64),
    /// The other machine is heard, and has not shown lately that it has this one.
    NotShown(u64),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Insecure => f.write_str("this pair has no key ('insecure=on')"),
            Self::Known(key) => write!(f, "this machine has the key {key:016x} already"),
            Self::Changing([newest, older]) => {
                write!(
                    f,
                    "this machine has two keys, {newest:016x} and {older:016x}: one of them must be forgotten first"
                )
            }
            Self::Unknown(key) => write!(f, "this machine has no key {key:016x}"),
            Self::Last(key) => write!(f, "this machine has no other key than {key:016x}"),
            Self::NotShown(key) => {
                write!(f, "the other machine does not show that it has the key {key:016x}: give it that key first")
            }
        }
    }
}

/// What a pair shares with whoever records it. Who has it alone can neither read the pair's stream nor be a machine of it.
#[derive(Clone, PartialEq, Eq)]
pub struct RecordKey {
    pub(crate) secret: [u8; KEY_BYTES],
    pub(crate) fingerprint: u64,
}

/// A secret is never shown.
impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordKey({:016x})", self.fingerprint)
    }
}

pub(crate) fn derive<const N: usize>(root: &Hkdf<Sha256>, name: &str) -> [u8; N] {
    let mut out = [0; N];
    root.expand(name.as_bytes(), &mut out).expect("shorter than 255 hashes");
    out
}

/// A secret is never shown.
impl fmt::Debug for PairKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PairKey({:016x})", self.fingerprint)
    }
}

/// What protects that which one machine says to the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protection {
    /// The pair's key, or both while it changes: nobody else can say it, nor read it.
    Key(Keys),
    /// A checksum that begins with this number: against damage, and against nobody who knows the number. For pairs that
    /// want no key, and for simulations, whose attackers do not look.
    Checksum(u64),
}

impl Default for Protection {
    fn default() -> Self {
        Self::Checksum(0)
    }
}

impl From<PairKey> for Protection {
    fn from(newest: PairKey) -> Self {
        Self::Key(Keys { newest, older: None })
    }
}

impl Protection {
    /// Adds a key, which is the newest one from now on.
    ///
    /// # Errors
    /// When there is none, or no room for another one, or it is there already.
    pub fn add(&mut self, key: PairKey) -> Result<(), KeyError> {
        let fingerprints = self.fingerprints();
        match self {
            Self::Checksum(_) => Err(KeyError::Insecure),
            Self::Key(_) if fingerprints.contains(&key.fingerprint()) => Err(KeyError::Known(key.fingerprint())),
            Self::Key(Keys { older: Some(_), .. }) => Err(KeyError::Changing(fingerprints)),
            Self::Key(Keys { newest, older }) => {
                *older = Some(Box::new(core::mem::replace(newest, key)));
                Ok(())
            }
        }
    }

    /// Removes the key with this fingerprint.
    ///
    /// # Errors
    /// When it is not there, or is the only one.
    pub fn remove(&mut self, fingerprint: u64) -> Result<(), KeyError> {
        self.other_than(fingerprint)?;
        if let Self::Key(keys) = self
            && let Some(older) = keys.older.take()
            && keys.newest.fingerprint() == fingerprint
        {
            keys.newest = *older;
        }
        Ok(())
    }

    /// The fingerprint of the key that is left without the one that has this fingerprint.
    ///
    /// # Errors
    /// When that is not there, or is the only one.
    pub fn other_than(&self, fingerprint: u64) -> Result<u64, KeyError> {
        match self.fingerprints() {
            [0, _] => Err(KeyError::Insecure),
            [newest, 0] if newest == fingerprint => Err(KeyError::Last(fingerprint)),
            [newest, older] if newest == fingerprint => Ok(older),
            [newest, older] if older == fingerprint && older != 0 => Ok(newest),
            _ => Err(KeyError::Unknown(fingerprint)),
        }
    }

    /// The keys, the newest one first; none at all without.
    pub fn keys(&self) -> impl Iterator<Item = &PairKey> {
        let keys = match self {
            Self::Key(keys) => Some(keys),
            Self::Checksum(_) => None,
        };
        keys.into_iter().flat_map(Keys::iter)
    }

    /// How many ways there are to say a thing: one for each key.
    pub(crate) fn count(&self) -> usize {
        self.keys().count().max(1)
    }

    /// Whether it is one against people.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        matches!(self, Self::Key(_))
    }

    /// The newest key's [fingerprint](PairKey::fingerprint); 0 is no key.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.fingerprints()[0]
    }

    /// Those of all keys, the newest one's first, and zeros behind them.
    #[must_use]
    pub fn fingerprints(&self) -> [u64; MAX_KEYS] {
        let mut keys = self.keys().map(PairKey::fingerprint);
        core::array::from_fn(|_| keys.next().unwrap_or(0))
    }

    /// What it gives to a recorder, if there is a key.
    #[must_use]
    pub fn records(&self) -> Vec<RecordKey> {
        self.keys().map(PairKey::record).collect()
    }

    /// Seals `body`, datagram number `counter` of `sender`, under key number `under`, and returns its tag, which also
    /// covers `head`.
    ///
    /// The same `sender` must never say two things by the same `counter`.
    pub(crate) fn seal(
        &self,
        under: usize,
        (sender, counter): (u64, u64),
        head: &[u8],
        body: &mut [u8],
    ) -> [u8; TAG_BYTES] {
        match self {
            Self::Key(keys) => {
                let key = keys.iter().nth(under).unwrap_or(&keys.newest);
                let sealed = cipher(key).encrypt_inout_detached(&nonce(sender, counter), head, body.into());
                sealed.expect("shorter than 256 GiB").into()
            }
            Self::Checksum(start) => checksum(*start, head, body),
        }
    }

    /// Opens what [`seal`](Self::seal) sealed, and says under which key; none, and `body` of no use, when somebody else did.
    pub(crate) fn open(
        &self,
        (sender, counter): (u64, u64),
        head: &[u8],
        body: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Option<usize> {
        match self {
            Self::Key(keys) => {
                let (nonce, tag) = (nonce(sender, counter), Tag::from(*tag));
                let sealed = body.to_vec();
                keys.iter().position(|key| {
                    body.copy_from_slice(&sealed);
                    cipher(key).decrypt_inout_detached(&nonce, head, (&mut *body).into(), &tag).is_ok()
                })
            }
            Self::Checksum(start) => (checksum(*start, head, body) == *tag).then_some(0),
        }
    }
}

fn cipher(key: &PairKey) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&key.heartbeat.into())
}

fn nonce(sender: u64, counter: u64) -> XNonce {
    let mut nonce = XNonce::default();
    nonce[..8].copy_from_slice(&sender.to_le_bytes());
    nonce[8..16].copy_from_slice(&counter.to_le_bytes());
    nonce
}

fn checksum(start: u64, head: &[u8], body: &[u8]) -> [u8; TAG_BYTES] {
    let mut tag = [0; TAG_BYTES];
    tag[..8].copy_from_slice(&xxh64(body, xxh64(head, start)).to_le_bytes());
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<_> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    /// See: draft-irtf-cfrg-xchacha-03, A.3.1.
    #[test]
    fn the_cipher_gives_the_published_answer() {
        let key: [u8; 32] = core::array::from_fn(|index| 0x80 + index as u8);
        let nonce: [u8; 24] = core::array::from_fn(|index| 0x40 + index as u8);
        let mut text = *b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
                          sunscreen would be it.";
        let head = bytes("50515253c0c1c2c3c4c5c6c7");
        let tag = XChaCha20Poly1305::new(&key.into())
            .encrypt_inout_detached(&nonce.into(), &head, (&mut text[..]).into())
            .unwrap();
        let want = bytes(
            "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39\
             ae64c6708c54c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9\
             21f9664c97637da9768812f615c68b13b52e",
        );
        assert_eq!(text[..], want);
        assert_eq!(tag[..], bytes("c0875924c1c7987947deafd8780acf49"));
    }

    /// See: RFC 5869, A.1.
    #[test]
    fn the_derivation_gives_the_published_answer() {
        let root = Hkdf::<Sha256>::new(Some(&bytes("000102030405060708090a0b0c")), &[0x0b; 22]);
        let mut out = [0; 42];
        root.expand(&bytes("f0f1f2f3f4f5f6f7f8f9"), &mut out).unwrap();
        let want = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865";
        assert_eq!(out[..], bytes(want));
    }

    #[test]
    fn each_key_seals_for_itself_alone() {
        let all = [
            Protection::from(PairKey::new(&[1; 32])),
            Protection::from(PairKey::new(&[2; 32])),
            Protection::Checksum(0),
            Protection::Checksum(1),
        ];
        for ours in &all {
            let mut body = *b"what nobody else says";
            let tag = ours.seal(0, (7, 8), b"head", &mut body);
            assert_eq!(ours.is_secure(), body != *b"what nobody else says");
            for theirs in &all {
                let mut copy = body;
                let opened = theirs.open((7, 8), b"head", &mut copy, &tag).is_some();
                assert_eq!(opened, ours == theirs, "{ours:?} {theirs:?}");
            }
            for (sender, counter, head) in [(6, 8, &b"head"[..]), (7, 9, b"head"), (7, 8, b"Head")] {
                let taken = ours.open((sender, counter), head, &mut body.clone(), &tag).is_some();
                assert!(!taken || !ours.is_secure() && head == b"head", "{sender} {counter} {head:?}");
            }
        }
        assert!(all[0].fingerprint() != all[1].fingerprint() && all[2].fingerprint() == 0);
    }

    #[test]
    fn both_keys_are_valid_while_one_follows_the_other() {
        let [old, new, third] = [1, 2, 3].map(|byte| PairKey::new(&[byte; 32]));
        let prints = [&old, &new].map(PairKey::fingerprint);
        let mut both = Protection::from(old.clone());
        assert_eq!(both.remove(prints[0]), Err(KeyError::Last(prints[0])));
        assert_eq!(both.add(old.clone()), Err(KeyError::Known(prints[0])));
        assert_eq!(both.add(new.clone()), Ok(()));
        assert_eq!((both.fingerprints(), both.count()), ([prints[1], prints[0]], 2));
        assert_eq!(both.add(new.clone()), Err(KeyError::Known(prints[1])));
        assert_eq!(both.add(third.clone()), Err(KeyError::Changing([prints[1], prints[0]])));
        assert_eq!(both.remove(third.fingerprint()), Err(KeyError::Unknown(third.fingerprint())));
        assert_eq!(both.remove(0), Err(KeyError::Unknown(0)));
        for (under, alone) in [(0, &new), (1, &old)] {
            let alone = Protection::from(alone.clone());
            let mut body = *b"what is said";
            let tag = both.seal(under, (7, 8), b"head", &mut body);
            assert_eq!(alone.open((7, 8), b"head", &mut body.clone(), &tag), Some(0));
            assert_eq!(Protection::from(third.clone()).open((7, 8), b"head", &mut body.clone(), &tag), None);
            assert_eq!(both.open((7, 8), b"head", &mut body, &tag), Some(under));
            assert_eq!(body, *b"what is said");
        }
        let mut kept = both.clone();
        assert_eq!((both.remove(prints[0]), both.clone()), (Ok(()), new.into()));
        assert_eq!((kept.remove(prints[1]), kept), (Ok(()), old.into()));
        let mut none = Protection::default();
        assert_eq!((none.add(third), none.remove(prints[0])), (Err(KeyError::Insecure), Err(KeyError::Insecure)));
    }

    #[test]
    fn a_secret_is_not_shown() {
        let key = Protection::from(PairKey::new(&[0x5a; 32]));
        assert!(!alloc::format!("{key:?}").to_lowercase().contains("5a5a"));
        let key = RecordKey { secret: [0x5a; 32], fingerprint: 1 };
        assert_eq!(alloc::format!("{key:?}"), "RecordKey(0000000000000001)");
    }
}
