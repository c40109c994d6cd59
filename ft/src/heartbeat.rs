//! Heartbeats: datagrams that say who lives, in which role, and of which session.

use crate::types::{NodeId, Position, Role, Seq, SessionId, Term, Time};
use crate::wire::{DecodeError, Reader};
use xxhash_rust::xxh64::xxh64;

/// Size of a heartbeat in bytes.
pub const SIZE: usize = 4 + 1 + 1 + 10 * 8 + 8;
const MAGIC: u32 = u32::from_le_bytes(*b"PLXh");
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
    /// The sender's clock, for the twin's statistics.
    pub time: Time,
}

/// Digest of a pair's name.
#[must_use]
pub fn pair_digest(name: &str) -> u64 {
    xxh64(name.as_bytes(), SEED)
}

impl Heartbeat {
    /// The heartbeat as a datagram.
    #[must_use]
    pub fn encode(&self) -> Datagram {
        let mut out = [0; SIZE];
        out[..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4] = self.role.code();
        out[5] = u8::from(self.linked);
        let numbers = [
            self.pair,
            self.node.0,
            self.peer.0,
            self.counter,
            self.echo,
            self.term.0,
            self.session.0,
            self.seq.0,
            self.position.0,
            self.time.0,
        ];
        for (field, number) in out[6..].chunks_exact_mut(8).zip(numbers) {
            field.copy_from_slice(&number.to_le_bytes());
        }
        let check = xxh64(&out[..SIZE - 8], SEED);
        out[SIZE - 8..].copy_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// When it is not a heartbeat or is damaged.
    pub fn decode(datagram: &[u8]) -> Result<Self, DecodeError> {
        let (body, check) = datagram.split_last_chunk::<8>().ok_or(DecodeError::Truncated)?;
        if datagram.len() != SIZE {
            return Err(if datagram.len() < SIZE { DecodeError::Truncated } else { DecodeError::TrailingBytes });
        }
        if xxh64(body, SEED) != u64::from_le_bytes(*check) {
            return Err(DecodeError::BadValue("check"));
        }
        let mut reader = Reader(body);
        if reader.u32()? != MAGIC {
            return Err(DecodeError::BadValue("magic"));
        }
        let code = reader.u8()?;
        let role = Role::from_code(code).ok_or(DecodeError::UnknownKind(code))?;
        let linked = reader.bool()?;
        Ok(Self {
            role,
            linked,
            pair: reader.u64()?,
            node: NodeId(reader.u64()?),
            peer: NodeId(reader.u64()?),
            counter: reader.u64()?,
            echo: reader.u64()?,
            term: Term(reader.u64()?),
            session: SessionId(reader.u64()?),
            seq: Seq(reader.u64()?),
            position: Position(reader.u64()?),
            time: Time(reader.u64()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn sample() -> Heartbeat {
        Heartbeat {
            pair: pair_digest("p"),
            node: NodeId(1),
            peer: NodeId(2),
            counter: 3,
            echo: 2,
            term: Term(4),
            role: Role::Draining,
            session: SessionId(5),
            linked: true,
            seq: Seq(6),
            position: Position(7),
            time: Time(8),
        }
    }

    #[test]
    fn survives_the_wire() {
        assert_eq!(Heartbeat::decode(&sample().encode()), Ok(sample()));
    }

    proptest! {
        #[test]
        fn damage_is_found(at in 0..SIZE, bit in 0u8..8) {
            let mut datagram = sample().encode();
            datagram[at] ^= 1 << bit;
            prop_assert!(Heartbeat::decode(&datagram).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_refused(datagram in proptest::collection::vec(any::<u8>(), 0..2 * SIZE)) {
            prop_assert!(Heartbeat::decode(&datagram).is_err());
        }

        #[test]
        fn other_lengths_are_refused(cut in 1..SIZE, extra in proptest::collection::vec(any::<u8>(), 1..9)) {
            prop_assert!(Heartbeat::decode(&sample().encode()[..cut]).is_err());
            let longer: Vec<u8> = sample().encode().into_iter().chain(extra).collect();
            prop_assert!(Heartbeat::decode(&longer).is_err());
        }
    }
}
