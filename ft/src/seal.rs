//! How a message is protected on the stream.
//!
//! With a key a sealed message is: length of the payload (u32, little endian), and a message of Noise, see the module `noise`:
//! type (u8) and payload, encrypted, and a tag of 16 bytes. Without one: length, type, payload, and a checksum (u32): xxh64
//! over all before it, truncated. In both the message's number in its direction is part of what is checked: so a message
//! that is damaged, lost, doubled or out of order is refused; with a key also one that somebody else made.
//!
//! Noise ends at 65535 bytes a message, this stream at [`MAX_SEALED`].

use crate::handshake;
use crate::noise::{Cipher, TAG};
use alloc::vec::Vec;
use core::fmt;
use xxhash_rust::xxh64::xxh64;

/// Largest payload in bytes.
pub const MAX_PAYLOAD: usize = 96 * 1024;
const HEAD: usize = 5;
const LENGTH: usize = 4;
const CHECK: usize = 4;
/// Bytes that sealing adds to a payload at most.
pub const OVERHEAD: usize = HEAD + TAG;
/// Largest sealed message in bytes.
pub const MAX_SEALED: usize = MAX_PAYLOAD + OVERHEAD;
/// After so many messages a direction gets another key.
const REKEY_EVERY: u64 = 1024;

const _: () = assert!(u32::from_le_bytes(handshake::MAGIC) as usize > MAX_PAYLOAD, "a greeting is told from a length");

/// Why a message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealError {
    /// The length exceeds [`MAX_PAYLOAD`].
    BadLength(u32),
    /// The check does not match: damaged, made by somebody else, or not the message expected next.
    BadCheck,
    /// It is the greeting of a machine with a key, and this one has none.
    Greeting,
}

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadLength(len) => write!(f, "message claims {len} bytes"),
            Self::BadCheck => f.write_str("message is damaged or out of order"),
            Self::Greeting => f.write_str("keys differ: this machine has none ('insecure=on'), and its twin has one"),
        }
    }
}

/// What protects one direction of a connection.
enum Direction {
    /// A checksum over the message with this number.
    Checksum { number: u64 },
    /// A key that both ends agreed on.
    Cipher(Cipher),
}

impl Default for Direction {
    fn default() -> Self {
        Self::Checksum { number: 0 }
    }
}

impl Direction {
    /// Bytes behind type and payload.
    fn check_bytes(&self) -> usize {
        match self {
            Self::Checksum { .. } => CHECK,
            Self::Cipher(_) => TAG,
        }
    }
}

/// A key is not shown.
impl fmt::Debug for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checksum { number } => write!(f, "Checksum({number})"),
            Self::Cipher(cipher) => write!(f, "Cipher({})", cipher.number()),
        }
    }
}

/// The cipher for the next message.
fn next(cipher: &mut Cipher) -> &mut Cipher {
    if cipher.number() > 0 && cipher.number().is_multiple_of(REKEY_EVERY) {
        cipher.rekey();
    }
    cipher
}

/// Seals one direction of a connection. The default is that without a key.
#[derive(Debug, Default)]
pub struct Sealer(Direction);

impl Sealer {
    pub(crate) fn new(cipher: Cipher) -> Self {
        Self(Direction::Cipher(cipher))
    }

    /// Appends a sealed message to `out`; `write` appends the payload.
    ///
    /// # Panics
    /// When the payload exceeds [`MAX_PAYLOAD`]: a bug of ours.
    pub fn seal(&mut self, out: &mut Vec<u8>, kind: u8, write: impl FnOnce(&mut Vec<u8>)) {
        let start = out.len();
        out.extend_from_slice(&[0, 0, 0, 0, kind]);
        write(out);
        let len = out.len() - start - HEAD;
        assert!(len <= MAX_PAYLOAD, "message of {len} bytes");
        out[start..start + LENGTH].copy_from_slice(&(len as u32).to_le_bytes());
        match &mut self.0 {
            Direction::Checksum { number } => {
                let check = checksum(*number, &out[start..]);
                out.extend_from_slice(&check);
                *number += 1;
            }
            Direction::Cipher(cipher) => {
                let tag = next(cipher).seal(&[], &mut out[start + LENGTH..]);
                out.extend_from_slice(&tag);
            }
        }
    }
}

/// A message that passed its check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened<'a> {
    /// Type of the message.
    pub kind: u8,
    /// Its content.
    pub payload: &'a [u8],
    /// How many bytes of the stream it took.
    pub used: usize,
}

/// Opens what the twin's [`Sealer`] sealed. The default is that without a key.
#[derive(Debug, Default)]
pub struct Opener {
    direction: Direction,
    /// For tests: tags and checks are not compared.
    unchecked: bool,
}

impl Opener {
    pub(crate) fn new(cipher: Cipher) -> Self {
        Self { direction: Direction::Cipher(cipher), unchecked: false }
    }

    /// **For tests only**: takes what anybody made, if `broken`.
    pub(crate) fn break_check(mut self, broken: bool) -> Self {
        self.unchecked = broken;
        self
    }

    /// Takes the first message off `stream`, in place; `None` while it is not there as a whole.
    ///
    /// # Errors
    /// When the message is refused. The stream is of no use from there on.
    pub fn open<'a>(&mut self, stream: &'a mut [u8]) -> Result<Option<Opened<'a>>, SealError> {
        let Some(head) = stream.first_chunk() else { return Ok(None) };
        let len = u32::from_le_bytes(*head);
        if len as usize > MAX_PAYLOAD {
            return Err(if *head == handshake::MAGIC { SealError::Greeting } else { SealError::BadLength(len) });
        }
        let end = HEAD + len as usize;
        let used = end + self.direction.check_bytes();
        let Some((sealed, check)) = stream.get_mut(..used).map(|sealed| sealed.split_at_mut(end)) else {
            return Ok(None);
        };
        let genuine = match &mut self.direction {
            Direction::Checksum { number } => {
                let want = checksum(*number, sealed);
                *number += 1;
                *check == want
            }
            Direction::Cipher(cipher) => {
                let tag = check.first_chunk().expect("it is as long");
                let (cipher, body) = (next(cipher), &mut sealed[LENGTH..]);
                if self.unchecked {
                    // The cipher is its own inverse, but for the tag.
                    cipher.seal(&[], body);
                    true
                } else {
                    cipher.open(&[], body, tag)
                }
            }
        };
        if !genuine && !self.unchecked {
            return Err(SealError::BadCheck);
        }
        let sealed = &*sealed;
        Ok(Some(Opened { kind: sealed[LENGTH], payload: &sealed[HEAD..], used }))
    }
}

fn checksum(number: u64, bytes: &[u8]) -> [u8; CHECK] {
    (xxh64(bytes, number) as u32).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{initiate, respond};
    use alloc::vec;
    use proptest::prelude::*;

    /// Both ends of a direction.
    fn ends(with_key: bool) -> (Sealer, Opener) {
        if !with_key {
            return Default::default();
        }
        let (initiator, first) = initiate(&[1; 32], b"", [2; 32]);
        let (second, theirs) = respond(&[1; 32], b"", &[3; 32], &first).unwrap();
        (Sealer::new(initiator.finish(&second).unwrap().initiator), Opener::new(theirs.initiator))
    }

    fn stream(sealer: &mut Sealer, payloads: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, payload) in payloads.iter().enumerate() {
            sealer.seal(&mut out, index as u8, |out| out.extend_from_slice(payload));
        }
        out
    }

    /// See `docs/security.md`: 21 bytes more than the content, 12 of them more than without a key.
    #[test]
    fn what_a_seal_takes() {
        let [bare, sealed] = [false, true].map(|with_key| stream(&mut ends(with_key).0, &[vec![7; 300]]).len());
        assert_eq!((bare, sealed), (309, 321));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_never_taken(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 1..5),
            at: prop::sample::Index,
            bit in 0u8..8,
            with_key: bool,
        ) {
            let (mut sealer, mut opener) = ends(with_key);
            let mut bytes = stream(&mut sealer, &payloads);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let (mut taken, mut used) = (0, 0);
            while let Ok(Some(opened)) = opener.open(&mut bytes[used..]) {
                prop_assert_eq!(opened.payload, &payloads[taken][..]);
                prop_assert_eq!(usize::from(opened.kind), taken);
                taken += 1;
                used += opened.used;
            }
            prop_assert!(taken < payloads.len());
            prop_assert!(used <= at);
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), with_key: bool) {
            let _ = ends(with_key).1.open(&mut bytes);
        }
    }

    #[test]
    fn messages_arrive_as_they_were_under_many_keys() {
        for with_key in [false, true] {
            let (mut sealer, mut opener) = ends(with_key);
            let mut last = Vec::new();
            for number in 0..3 * REKEY_EVERY {
                let text = number.to_le_bytes();
                let mut bytes = Vec::new();
                sealer.seal(&mut bytes, 7, |out| out.extend_from_slice(&text));
                assert_eq!(bytes.len() - text.len(), if with_key { OVERHEAD } else { HEAD + CHECK });
                assert!(!with_key || bytes[LENGTH..] != last[..], "a key and a number came twice");
                last = bytes[LENGTH..].to_vec();
                let opened = opener.open(&mut bytes).unwrap().unwrap();
                assert_eq!((opened.kind, opened.payload), (7, &text[..]));
            }
        }
    }

    #[test]
    fn nothing_is_readable_with_a_key() {
        let (mut sealer, _) = ends(true);
        let bytes = stream(&mut sealer, &[vec![0x5a; 300]]);
        assert!(bytes.windows(4).all(|four| four != [0x5a; 4]));
    }

    #[test]
    fn a_doubled_message_is_refused() {
        for with_key in [false, true] {
            let (mut sealer, mut opener) = ends(with_key);
            let bytes = stream(&mut sealer, &[vec![1, 2, 3]]);
            assert!(opener.open(&mut bytes.clone()).unwrap().is_some());
            assert_eq!(opener.open(&mut bytes.clone()), Err(SealError::BadCheck));
        }
    }

    #[test]
    fn one_left_out_or_out_of_order_is_refused() {
        for with_key in [false, true] {
            let (mut sealer, mut opener) = ends(with_key);
            let [_, mut second] = [b"one", b"two"].map(|text| stream(&mut sealer, &[text.to_vec()]));
            assert_eq!(opener.open(&mut second), Err(SealError::BadCheck));
        }
    }

    #[test]
    fn an_absurd_length_is_refused_at_once() {
        assert_eq!(Opener::default().open(&mut [0xff; 4]), Err(SealError::BadLength(u32::MAX)));
        assert_eq!(Opener::default().open(&mut handshake::MAGIC.clone()), Err(SealError::Greeting));
    }
}
