//! Messages on the stream between the twins.

use crate::arbiter::ArbiterId;
use crate::entry::MAX_DATA;
use crate::pairing::{Claim, PROTOCOL};
use crate::types::{Position, Seq, SessionId, Term};
use crate::wire::{DecodeError, Reader, put_text, put_varint};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

/// Most bytes of memory in one message: 16 pages.
pub const MAX_MEMORY: usize = 16 * 4096;
/// Most bytes of machine state in one message.
pub const MAX_CHUNK: usize = 64 * 1024;
/// Most bytes of machine state in one session: many times what CPU and platform take. A joiner keeps them all until the
/// state is complete.
pub const MAX_MACHINE: usize = 16 << 20;
/// Longest reason text in bytes.
pub const MAX_REASON: usize = 600;
const _: () = assert!(MAX_MEMORY + 16 <= crate::seal::MAX_PAYLOAD && MAX_CHUNK <= crate::seal::MAX_PAYLOAD);
const _: () = assert!(crate::seal::MAX_PAYLOAD / 2 + MAX_DATA + 128 <= crate::seal::MAX_PAYLOAD);

/// Why the sender ends the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bye {
    /// Its machine is taken out of service in order. From a primary: the guest no longer runs here, go live.
    Leaving,
    /// The backup found that its guest is not the primary's; with details.
    Diverged(String),
    /// The backup cannot go on following; with details.
    GaveUp(String),
    /// The backup runs the guest that was handed over to it, in this term.
    TookOver(Term),
}

/// First message in each direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// The twin speaks our version.
    Known {
        /// Whether the sender wants to become the backup (else it answers as primary).
        joining: bool,
        /// The newest term the sender knows.
        term: Term,
        /// Heartbeats that the sender has sent so far: those say nothing of this attempt to pair.
        beats: u64,
        /// What the sender says of itself.
        claim: Box<Claim>,
    },
    /// The twin speaks another version; nothing else can be read.
    OtherVersion(u16),
}

/// Whether what was refused may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Try again.
    Later,
    /// The machines are no twins.
    Never,
}

/// A message on the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// Who is there.
    Hello(Hello),
    /// Pairing is refused.
    Refuse {
        /// Whether the same request may succeed later.
        retry: Retry,
        /// What is wrong, for people.
        reason: String,
    },
    /// State follows.
    StateBegin {
        /// The session that begins.
        session: SessionId,
        /// The primary's term.
        term: Term,
        /// The term that both machines bid for when they lose each other.
        next: Term,
    },
    /// Guest memory. What was never sent is zero; what is sent again replaces what was sent before.
    Memory {
        /// Guest-physical address, a multiple of 4096.
        gpa: u64,
        /// Whole pages.
        data: &'a [u8],
    },
    /// Guest memory that is zero, though it was sent with a content before.
    Zero {
        /// Guest-physical address, a multiple of 4096.
        gpa: u64,
        /// Bytes, a multiple of 4096.
        len: u64,
    },
    /// The next piece of the saved vCPU and platform.
    Machine(&'a [u8]),
    /// All state was sent.
    StateEnd {
        /// Where the guest stood.
        position: Position,
        /// The last entry that is part of the state.
        seq: Seq,
        /// Digest of the whole state, as the caller defines it.
        digest: u64,
    },
    /// The backup loaded and checked the state of this session.
    Joined(SessionId),
    /// A batch of log entries, see [`crate::batch`].
    Entries(&'a [u8]),
    /// What the backup holds.
    Ack {
        /// Newest entry received and buffered.
        received: Seq,
        /// Newest entry applied.
        applied: Seq,
        /// How far the backup's guest has run.
        position: Position,
    },
    /// The session ends.
    Bye(Bye),
    /// The arbiter that answers the sender, which did not know it when it said Hello.
    Arbiter(ArbiterId),
    /// From a backup that asked for a term and hears its primary again: let us bid for this later one. From the primary:
    /// so do I. See [`crate::decide`].
    BidFor(Term),
}

impl<'a> Message<'a> {
    /// The type of [`Message::StateBegin`] on the wire.
    pub(crate) const STATE_BEGIN: u8 = 3;
    /// The type of [`Message::Bye`] on the wire.
    pub const BYE: u8 = 10;

    /// Whether it tells a backup something of the guest: its state, or what happens to it.
    #[must_use]
    pub const fn is_of_a_recording(&self) -> bool {
        match self {
            Self::StateBegin { .. } | Self::Memory { .. } | Self::Zero { .. } | Self::Machine(_) => true,
            Self::StateEnd { .. } | Self::Entries(_) => true,
            Self::Hello(_) | Self::Refuse { .. } | Self::Joined(_) | Self::Ack { .. } => false,
            Self::Bye(_) | Self::Arbiter(_) | Self::BidFor(_) => false,
        }
    }

    /// The type's number on the wire.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::Refuse { .. } => 2,
            Self::StateBegin { .. } => Self::STATE_BEGIN,
            Self::Memory { .. } => 4,
            Self::Machine(_) => 5,
            Self::StateEnd { .. } => 6,
            Self::Joined(_) => 7,
            Self::Entries(_) => 8,
            Self::Ack { .. } => 9,
            Self::Bye(_) => Self::BYE,
            Self::Zero { .. } => 11,
            Self::Arbiter(_) => 12,
            Self::BidFor(_) => 13,
        }
    }

    /// Appends the payload to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(Hello::OtherVersion(version)) => out.extend_from_slice(&version.to_le_bytes()),
            Self::Hello(Hello::Known { joining, term, beats, claim }) => {
                out.extend_from_slice(&PROTOCOL.to_le_bytes());
                out.push(u8::from(*joining));
                put_varint(out, term.0);
                put_varint(out, *beats);
                claim.encode(out);
            }
            Self::Refuse { retry, reason } => {
                out.push(u8::from(*retry == Retry::Later));
                put_text(out, reason, MAX_REASON);
            }
            Self::StateBegin { session, term, next } => {
                put_varint(out, session.0);
                put_varint(out, term.0);
                put_varint(out, next.0);
            }
            Self::Memory { gpa, data } => {
                put_varint(out, *gpa);
                out.extend_from_slice(data);
            }
            Self::Zero { gpa, len } => {
                put_varint(out, *gpa);
                put_varint(out, *len);
            }
            Self::Machine(data) | Self::Entries(data) => out.extend_from_slice(data),
            Self::StateEnd { position, seq, digest } => {
                put_varint(out, position.0);
                put_varint(out, seq.0);
                out.extend_from_slice(&digest.to_le_bytes());
            }
            Self::Joined(session) => put_varint(out, session.0),
            Self::Arbiter(arbiter) => out.extend_from_slice(&arbiter.0.to_le_bytes()),
            Self::BidFor(term) => put_varint(out, term.0),
            Self::Ack { received, applied, position } => {
                put_varint(out, received.0);
                put_varint(out, received.0 - applied.0);
                put_varint(out, position.0);
            }
            Self::Bye(bye) => {
                let (code, text) = match bye {
                    Bye::Leaving => (0, ""),
                    Bye::Diverged(text) => (1, text.as_str()),
                    Bye::GaveUp(text) => (2, text.as_str()),
                    Bye::TookOver(_) => (3, ""),
                };
                out.push(code);
                match bye {
                    Bye::TookOver(term) => put_varint(out, term.0),
                    _ => put_text(out, text, MAX_REASON),
                }
            }
        }
    }

    /// Reads a payload of type `kind`.
    ///
    /// # Errors
    /// When the type is unknown or the payload malformed.
    pub fn decode(kind: u8, payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader(payload);
        let message = match kind {
            1 => Self::Hello(match reader.u16()? {
                PROTOCOL => Hello::Known {
                    joining: reader.bool()?,
                    term: Term(reader.varint()?),
                    beats: reader.varint()?,
                    claim: Box::new(Claim::decode(&mut reader)?),
                },
                other => {
                    reader.rest();
                    Hello::OtherVersion(other)
                }
            }),
            2 => {
                let retry = if reader.bool()? { Retry::Later } else { Retry::Never };
                Self::Refuse { retry, reason: reader.text(MAX_REASON)? }
            }
            3 => Self::StateBegin {
                session: SessionId(reader.varint()?),
                term: Term(reader.varint()?),
                next: Term(reader.varint()?),
            },
            4 => Self::memory(reader.varint()?, reader.rest())?,
            5 => Self::Machine(reader.rest()),
            6 => Self::StateEnd {
                position: Position(reader.varint()?),
                seq: Seq(reader.varint()?),
                digest: reader.u64()?,
            },
            7 => Self::Joined(SessionId(reader.varint()?)),
            8 => Self::Entries(reader.rest()),
            9 => {
                let received = reader.varint()?;
                let applied = received.checked_sub(reader.varint()?).ok_or(DecodeError::BadValue("applied"))?;
                Self::Ack { received: Seq(received), applied: Seq(applied), position: Position(reader.varint()?) }
            }
            10 => Self::Bye(match reader.u8()? {
                0 => {
                    // It has no words; the empty text is part of its form.
                    reader.text(0)?;
                    Bye::Leaving
                }
                1 => Bye::Diverged(reader.text(MAX_REASON)?),
                2 => Bye::GaveUp(reader.text(MAX_REASON)?),
                3 => Bye::TookOver(Term(reader.varint()?)),
                other => return Err(DecodeError::UnknownKind(other)),
            }),
            11 => Self::zero(reader.varint()?, reader.varint()?)?,
            12 => Self::Arbiter(ArbiterId(reader.u64()?)),
            13 => Self::BidFor(Term(reader.varint()?)),
            other => return Err(DecodeError::UnknownKind(other)),
        };
        reader.finish()?;
        Ok(message)
    }

    fn memory(gpa: u64, data: &'a [u8]) -> Result<Self, DecodeError> {
        if !gpa.is_multiple_of(4096) || data.is_empty() || !data.len().is_multiple_of(4096) {
            return Err(DecodeError::BadValue("memory range"));
        }
        if data.len() > MAX_MEMORY {
            return Err(DecodeError::TooLong);
        }
        Ok(Self::Memory { gpa, data })
    }

    fn zero(gpa: u64, len: u64) -> Result<Self, DecodeError> {
        if !gpa.is_multiple_of(4096) || len == 0 || !len.is_multiple_of(4096) {
            return Err(DecodeError::BadValue("memory range"));
        }
        Ok(Self::Zero { gpa, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::pairing::{Identity, Settings};
    use crate::types::NodeId;
    use proptest::prelude::*;

    fn round_trip(message: &Message<'_>) {
        let mut payload = Vec::new();
        message.encode(&mut payload);
        assert_eq!(&Message::decode(message.kind(), &payload).unwrap(), message);
    }

    #[test]
    fn every_message_survives_the_wire() {
        let identity = Identity {
            node: NodeId(9),
            pair: "pair".into(),
            build: "build".into(),
            cpu_digest: u64::MAX,
            cpu_name: "cpu".into(),
            counter: "ticks".into(),
            guest_memory: 1 << 28,
            guest_image: "guest".into(),
            disk: "none".into(),
            guest_mac: [2, 0, 0, 0, 0, 9],
            guest_bridges: false,
            broken_rule: "output-rule".into(),
        };
        let claim = Claim { identity, settings: Settings::of(&Config::default()), arbiter: Some(ArbiterId(8)) };
        let claim = Box::new(claim);
        round_trip(&Message::Hello(Hello::Known { joining: true, term: Term(3), beats: 77, claim }));
        round_trip(&Message::Arbiter(ArbiterId(u64::MAX)));
        round_trip(&Message::Hello(Hello::OtherVersion(77)));
        round_trip(&Message::Refuse { retry: Retry::Later, reason: "busy".into() });
        round_trip(&Message::StateBegin { session: SessionId(4), term: Term(5), next: Term(6) });
        round_trip(&Message::Memory { gpa: 0x5000, data: &[7; 8192] });
        round_trip(&Message::Zero { gpa: 0x5000, len: 1 << 30 });
        round_trip(&Message::Machine(&[1, 2, 3]));
        round_trip(&Message::StateEnd { position: Position(1 << 50), seq: Seq(12), digest: 99 });
        round_trip(&Message::Joined(SessionId(4)));
        round_trip(&Message::BidFor(Term(7)));
        round_trip(&Message::Entries(&[9; 30]));
        round_trip(&Message::Ack { received: Seq(500), applied: Seq(20), position: Position(77) });
        for bye in
            [Bye::Leaving, Bye::Diverged("memory".into()), Bye::GaveUp("why".into()), Bye::TookOver(Term(1 << 40))]
        {
            round_trip(&Message::Bye(bye));
        }
    }

    #[test]
    fn a_farewell_needs_no_words() {
        assert_eq!(Message::decode(10, &[0, 1, b'x']), Err(DecodeError::TooLong));
        assert_eq!(Message::decode(10, &[0, 0]), Ok(Message::Bye(Bye::Leaving)));
    }

    #[test]
    fn memory_is_whole_pages() {
        for (gpa, len) in [(1, 4096), (0, 4095), (0, 0), (0, MAX_MEMORY + 4096)] {
            let mut payload = Vec::new();
            Message::Memory { gpa, data: &vec![0; len] }.encode(&mut payload);
            assert!(Message::decode(4, &payload).is_err(), "{gpa} {len}");
        }
        for (gpa, len) in [(1, 4096), (0, 4095), (0, 0)] {
            let mut payload = Vec::new();
            Message::Zero { gpa, len }.encode(&mut payload);
            assert!(Message::decode(11, &payload).is_err(), "{gpa} {len}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(kind: u8, payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(kind % 15, &payload);
        }
    }
}
