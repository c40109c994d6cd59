//! Heartbeats: datagrams that say who lives, in which role, and of which session.
//!
//! A heartbeat is: head, in the clear (magic, sender, number), body, and tag, see [`Protection`]. Its key says that a
//! machine of the pair made it, at some time; that it is not one of old says `heard`: see `node/lives.rs`.

use crate::key::{Protection, TAG_BYTES};
use crate::types::{NodeId, Position, Role, Seq, SessionId, Term, Time};
use crate::wire::{DecodeError, Reader};
use xxhash_rust::xxh64::xxh64;

/// How many other machines a heartbeat names as heard.
pub const HEARD: usize = 4;
const HEAD: usize = 4 + 2 * 8;
const BODY: usize = 1 + 1 + 10 * 8 + HEARD * 8;
/// Size of a heartbeat in bytes.
pub const SIZE: usize = HEAD + BODY + TAG_BYTES;
const MAGIC: u32 = u32::from_le_bytes(*b"PLXc");
const SEED: u64 = 0x6865_6172_7462_6561;

/// A heartbeat on the wire.
pub type Datagram = [u8; SIZE];

/// What one machine says to the other many times a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// Digest of the pair's name.
    pub pair: u64,
    /// The sender.
    pub node: NodeId,
    /// The twin the sender speaks of; zero when it has none.
    pub peer: NodeId,
    /// Raised with each heartbeat: late and doubled ones are told by it.
    pub counter: u64,
    /// Machines that the sender has heard of late; zeros behind them. Who is among them knows that this was said since it
    /// started: its id was not known before.
    pub heard: [NodeId; HEARD],
    /// Counter of the newest heartbeat that the sender took of the first of them.
    pub answers: u64,
    /// Of one that is joining, or starts by itself: who is to create a guest; see [`Stance`](crate::decide::Stance).
    pub creator: NodeId,
    /// Counter of the newest heartbeat of `peer` that the sender took: what it says was said after it.
    pub echo: u64,
    /// The sender's term.
    pub term: Term,
    /// What the sender is.
    pub role: Role,
    /// The session with `peer` that the sender is in or, when its role says that it is in none, the last one.
    pub session: SessionId,
    /// Whether the session's stream is still connected at the sender. Of one that is [`Role::Joining`]: the stream by
    /// which it tries to join.
    pub linked: bool,
    /// Newest entry: appended (primary) or received (backup).
    pub seq: Seq,
    /// How far the sender's guest has run.
    pub position: Position,
    /// The sender's clock, for the twin's stats.
    pub time: Time,
}

/// Digest of a pair's name.
#[must_use]
pub fn pair_digest(name: &str) -> u64 {
    xxh64(name.as_bytes(), SEED)
}

impl Heartbeat {
    /// The heartbeat as a datagram, under the newest key.
    #[must_use]
    pub fn encode(&self, protection: &Protection) -> Datagram {
        self.encode_under(0, protection)
    }

    /// The same, under key number `under`.
    pub(crate) fn encode_under(&self, under: usize, protection: &Protection) -> Datagram {
        let mut out = [0; SIZE];
        out[..4].copy_from_slice(&MAGIC.to_le_bytes());
        put_numbers(&mut out[4..HEAD], &[self.node.0, self.counter]);
        let (head, rest) = out.split_at_mut(HEAD);
        let (body, tag) = rest.split_at_mut(BODY);
        body[0] = self.role.code();
        body[1] = u8::from(self.linked);
        let numbers = [
            self.pair,
            self.peer.0,
            self.echo,
            self.answers,
            self.creator.0,
            self.term.0,
            self.session.0,
            self.seq.0,
            self.position.0,
            self.time.0,
        ];
        put_numbers(&mut body[2..], &numbers);
        put_numbers(&mut body[2 + 8 * numbers.len()..], &self.heard.map(|node| node.0));
        tag.copy_from_slice(&protection.seal(under, (self.node.0, self.counter), head, body));
        out
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// When it is not a heartbeat, is damaged, or was made by somebody without the key.
    pub fn decode(datagram: &[u8], protection: &Protection) -> Result<Self, DecodeError> {
        Self::read(datagram, |number, head, body, tag| protection.open(number, head, body, tag).is_some())
    }

    /// Reads a datagram, which `open` finds genuine or not.
    pub(crate) fn read(
        datagram: &[u8],
        open: impl FnOnce((u64, u64), &[u8], &mut [u8], &[u8; TAG_BYTES]) -> bool,
    ) -> Result<Self, DecodeError> {
        let mut rest = Reader(datagram);
        let (head, mut body, tag): ([u8; HEAD], [u8; BODY], _) = (rest.array()?, rest.array()?, rest.array()?);
        rest.finish()?;
        let mut reader = Reader(&head);
        if reader.u32()? != MAGIC {
            return Err(DecodeError::BadValue("magic"));
        }
        let (node, counter) = (NodeId(reader.u64()?), reader.u64()?);
        if !open((node.0, counter), &head, &mut body, &tag) {
            return Err(DecodeError::Tag);
        }
        let mut reader = Reader(&body);
        let code = reader.u8()?;
        Ok(Self {
            role: Role::from_code(code).ok_or(DecodeError::UnknownKind(code))?,
            linked: reader.bool()?,
            node,
            counter,
            pair: reader.u64()?,
            peer: NodeId(reader.u64()?),
            echo: reader.u64()?,
            answers: reader.u64()?,
            creator: NodeId(reader.u64()?),
            term: Term(reader.u64()?),
            session: SessionId(reader.u64()?),
            seq: Seq(reader.u64()?),
            position: Position(reader.u64()?),
            time: Time(reader.u64()?),
            heard: [NodeId(reader.u64()?), NodeId(reader.u64()?), NodeId(reader.u64()?), NodeId(reader.u64()?)],
        })
    }
}

fn put_numbers(out: &mut [u8], numbers: &[u64]) {
    for (field, number) in out.chunks_exact_mut(8).zip(numbers) {
        field.copy_from_slice(&number.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PairKey;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn sample() -> Heartbeat {
        Heartbeat {
            pair: pair_digest("p"),
            node: NodeId(1),
            peer: NodeId(2),
            counter: 3,
            heard: [NodeId(2), NodeId(9), NodeId(0), NodeId(0)],
            echo: 2,
            answers: 2,
            creator: NodeId(1),
            term: Term(4),
            role: Role::Draining,
            session: SessionId(5),
            linked: true,
            seq: Seq(6),
            position: Position(7),
            time: Time(8),
        }
    }

    fn protections() -> [Protection; 2] {
        [Protection::default(), Protection::from(PairKey::new(&[7; 32]))]
    }

    #[test]
    fn survives_the_wire() {
        for protection in protections() {
            assert_eq!(Heartbeat::decode(&sample().encode(&protection), &protection), Ok(sample()));
        }
    }

    #[test]
    fn with_a_key_nothing_can_be_read() {
        let [plain, sealed] = protections().map(|protection| sample().encode(&protection));
        let session = 5u64.to_le_bytes();
        let shows = |datagram: &Datagram| datagram[HEAD..].windows(8).any(|window| window == session);
        assert!(shows(&plain) && !shows(&sealed));
        assert_eq!(plain[..HEAD], sealed[..HEAD]);
    }

    proptest! {
        #[test]
        fn damage_is_found(at in 0..SIZE, bit in 0u8..8) {
            for protection in protections() {
                let mut datagram = sample().encode(&protection);
                datagram[at] ^= 1 << bit;
                prop_assert!(Heartbeat::decode(&datagram, &protection).is_err());
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused(datagram in proptest::collection::vec(any::<u8>(), 0..2 * SIZE)) {
            for protection in protections() {
                prop_assert!(Heartbeat::decode(&datagram, &protection).is_err());
            }
        }

        #[test]
        fn other_lengths_are_refused(cut in 1..SIZE, extra in proptest::collection::vec(any::<u8>(), 1..9)) {
            for protection in protections() {
                let whole = sample().encode(&protection);
                prop_assert!(Heartbeat::decode(&whole[..cut], &protection).is_err());
                let longer: Vec<u8> = whole.into_iter().chain(extra.clone()).collect();
                prop_assert!(Heartbeat::decode(&longer, &protection).is_err());
            }
        }
    }
}
