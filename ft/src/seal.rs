//! How a message is protected on the stream: the only place to change when a cipher takes the checksum's place.
//!
//! A sealed message is: length of the payload (u32), type (u8), payload, check (u32); little endian. The check is
//! xxh64 over all before it, seeded with the message's number in its direction and truncated: so a message that is
//! damaged, lost, doubled or out of order is refused.

use alloc::vec::Vec;
use core::fmt;
use xxhash_rust::xxh64::xxh64;

/// Largest payload in bytes.
pub const MAX_PAYLOAD: usize = 96 * 1024;
const HEAD: usize = 5;
const CHECK: usize = 4;
/// Bytes that sealing adds to a payload.
pub const OVERHEAD: usize = HEAD + CHECK;
/// Largest sealed message in bytes.
pub const MAX_SEALED: usize = MAX_PAYLOAD + OVERHEAD;

/// Why a message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealError {
    /// The length exceeds [`MAX_PAYLOAD`].
    BadLength(u32),
    /// The check does not match: damaged, or not the message expected next.
    BadCheck,
}

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadLength(len) => write!(f, "message claims {len} bytes"),
            Self::BadCheck => f.write_str("message is damaged or out of order"),
        }
    }
}

/// Seals one direction of a connection.
#[derive(Debug, Default)]
pub struct Sealer {
    number: u64,
}

impl Sealer {
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
        out[start..start + 4].copy_from_slice(&(len as u32).to_le_bytes());
        let check = check(self.number, &out[start..]);
        out.extend_from_slice(&check);
        self.number += 1;
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

/// Opens what the twin's [`Sealer`] sealed.
#[derive(Debug, Default)]
pub struct Opener {
    number: u64,
}

impl Opener {
    /// Takes the first message off `stream`; `None` while it is not there as a whole.
    ///
    /// # Errors
    /// When the message is refused. The stream is of no use from there on.
    pub fn open<'a>(&mut self, stream: &'a [u8]) -> Result<Option<Opened<'a>>, SealError> {
        let Some(head) = stream.first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_le_bytes(*head);
        if len as usize > MAX_PAYLOAD {
            return Err(SealError::BadLength(len));
        }
        let end = HEAD + len as usize;
        let Some(sealed) = stream.get(..end + CHECK) else { return Ok(None) };
        if sealed[end..] != check(self.number, &sealed[..end]) {
            return Err(SealError::BadCheck);
        }
        self.number += 1;
        Ok(Some(Opened { kind: sealed[4], payload: &sealed[HEAD..end], used: end + CHECK }))
    }
}

fn check(number: u64, bytes: &[u8]) -> [u8; CHECK] {
    (xxh64(bytes, number) as u32).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(payloads: &[Vec<u8>]) -> Vec<u8> {
        let mut sealer = Sealer::default();
        let mut out = Vec::new();
        for (index, payload) in payloads.iter().enumerate() {
            sealer.seal(&mut out, index as u8, |out| out.extend_from_slice(payload));
        }
        out
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_never_taken(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 1..5),
            at: prop::sample::Index,
            bit in 0u8..8,
        ) {
            let mut bytes = stream(&payloads);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let mut opener = Opener::default();
            let mut taken = 0;
            let mut rest = &bytes[..];
            while let Ok(Some(opened)) = opener.open(rest) {
                prop_assert_eq!(opened.payload, &payloads[taken][..]);
                prop_assert_eq!(usize::from(opened.kind), taken);
                taken += 1;
                rest = &rest[opened.used..];
            }
            prop_assert!(taken < payloads.len());
            prop_assert!(bytes.len() - rest.len() <= at);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Opener::default().open(&bytes);
        }
    }

    #[test]
    fn a_doubled_message_is_refused() {
        let bytes = stream(&[vec![1, 2, 3]]);
        let mut opener = Opener::default();
        assert!(opener.open(&bytes).unwrap().is_some());
        assert_eq!(opener.open(&bytes), Err(SealError::BadCheck));
    }

    #[test]
    fn an_absurd_length_is_refused_at_once() {
        assert_eq!(Opener::default().open(&[0xff; 4]), Err(SealError::BadLength(u32::MAX)));
    }
}
