//! A batch of log entries as one message.
//!
//! Layout, all integers LEB128: first number, first position, released mark, then entries until the end. An entry is
//! its kind (one byte), the distance to the previous entry's position, and its data; its number is implied. The
//! released mark is 0 when nothing new was released, else the distances from the first number and position back to
//! the newest `Output` entry whose frames have left.

use crate::entry::{EntryRef, Kind};
use crate::types::{Position, Seq};
use crate::wire::{DecodeError, Reader, put_varint};
use alloc::vec::Vec;

/// The newest `Output` entry whose frames have left the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Released {
    /// Its number.
    pub seq: Seq,
    /// Its position.
    pub position: Position,
}

/// Entries that are collected before they are sent.
#[derive(Debug, Default)]
pub struct OpenBatch {
    body: Vec<u8>,
    first: Option<(Seq, Position)>,
    last_position: Position,
    /// Where the last entry starts and what its position was measured from, if it is a horizon.
    horizon: Option<(usize, Position)>,
}

impl OpenBatch {
    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Bytes collected so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.body.len()
    }

    /// Throws the entries away.
    pub fn clear(&mut self) {
        self.body.clear();
        self.first = None;
        self.horizon = None;
    }

    /// Adds an entry and returns how many bytes it took. `position` must not lie before the previous one's.
    pub fn push(&mut self, seq: Seq, position: Position, entry: &EntryRef<'_>) -> usize {
        let start = self.body.len();
        let previous = if self.first.is_some() { self.last_position } else { position };
        self.first.get_or_insert((seq, position));
        entry.encode(&mut self.body, position.0 - previous.0);
        self.last_position = position;
        self.horizon = (entry.kind() == Kind::Horizon).then_some((start, previous));
        self.body.len() - start
    }

    /// Takes a horizon at the end back and returns its size: whatever is appended next says as much.
    pub fn take_horizon(&mut self) -> Option<usize> {
        let (start, previous) = self.horizon.take()?;
        let size = self.body.len() - start;
        self.body.truncate(start);
        self.last_position = previous;
        if start == 0 {
            self.first = None;
        }
        Some(size)
    }

    /// Appends the batch to `out` and empties it.
    pub fn close(&mut self, out: &mut Vec<u8>, released: Option<Released>) {
        let Some((seq, position)) = self.first else { return };
        put_varint(out, seq.0);
        put_varint(out, position.0);
        match released {
            None => out.push(0),
            Some(released) => {
                put_varint(out, seq.0 - released.seq.0);
                put_varint(out, position.0 - released.position.0);
            }
        }
        out.extend_from_slice(&self.body);
        self.clear();
    }
}

/// A received batch; an iterator over its entries.
#[derive(Debug, Clone)]
pub struct Batch<'a> {
    next_seq: Seq,
    position: Position,
    released: Option<Released>,
    reader: Reader<'a>,
}

impl<'a> Batch<'a> {
    /// Reads the head of a batch.
    ///
    /// # Errors
    /// When the head is malformed.
    pub fn open(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader(payload);
        let next_seq = Seq(reader.varint()?);
        let position = Position(reader.varint()?);
        let released = match reader.varint()? {
            0 => None,
            back => Some(Released {
                seq: Seq(next_seq.0.checked_sub(back).ok_or(DecodeError::BadValue("released"))?),
                position: Position(position.0.checked_sub(reader.varint()?).ok_or(DecodeError::BadValue("released"))?),
            }),
        };
        if reader.is_empty() {
            return Err(DecodeError::Truncated);
        }
        Ok(Self { next_seq, position, released, reader })
    }

    /// Number of the first entry not yet read.
    #[must_use]
    pub fn next_seq(&self) -> Seq {
        self.next_seq
    }

    /// Position of the last entry read, or of the first when none was.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// What has left the primary since the last batch.
    #[must_use]
    pub fn released(&self) -> Option<Released> {
        self.released
    }

    /// Reads the next entry; `None` at the end.
    ///
    /// # Errors
    /// When the entry is malformed.
    pub fn next_entry(&mut self) -> Result<Option<(Seq, Position, EntryRef<'a>)>, DecodeError> {
        if self.reader.is_empty() {
            return Ok(None);
        }
        let (distance, entry) = EntryRef::decode(&mut self.reader)?;
        let position = self.position.0.checked_add(distance).ok_or(DecodeError::BadValue("position"))?;
        self.position = Position(position);
        let seq = self.next_seq;
        self.next_seq = Seq(seq.0.checked_add(1).ok_or(DecodeError::BadValue("sequence number"))?);
        Ok(Some((seq, self.position, entry)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{self, DiskEnd, DiskStatus};
    use crate::entry::{Control, Entry};
    use proptest::prelude::*;

    fn any_entry() -> impl Strategy<Value = Entry> {
        let data = || proptest::collection::vec(any::<u8>(), 0..100);
        prop_oneof![
            any::<(u64, u64)>().prop_map(|(base_ns, rate)| Entry::Clock { base_ns, rate }),
            data().prop_map(Entry::PacketIn),
            data().prop_map(Entry::ConsoleIn),
            Just(Entry::Horizon),
            Just(Entry::Output),
            any::<(u64, u32, u64)>().prop_map(|(machine, slice, memory)| Entry::Digest { machine, slice, memory }),
            Just(Entry::Control(Control::PowerOff)),
            Just(Entry::Control(Control::Reset)),
            Just(Entry::Control(Control::SwitchOver)),
            (0..u64::MAX).prop_map(|id| Entry::DiskDone(disk::encode(&[DiskEnd { id, status: DiskStatus::Done }]))),
        ]
    }

    fn read_all(payload: &[u8]) -> Result<Vec<(Seq, Position, Entry)>, DecodeError> {
        let mut batch = Batch::open(payload)?;
        let mut all = Vec::new();
        while let Some((seq, position, entry)) = batch.next_entry()? {
            all.push((seq, position, entry.to_owned()));
        }
        Ok(all)
    }

    proptest! {
        #[test]
        fn round_trip(
            first in 1u64..1 << 60,
            start in 0u64..1 << 60,
            entries in proptest::collection::vec((0u64..1 << 40, any_entry()), 1..20),
        ) {
            let mut batch = OpenBatch::default();
            let mut want = Vec::new();
            let mut position = start;
            for (offset, (step, entry)) in entries.into_iter().enumerate() {
                position += step;
                let at = (Seq(first + offset as u64), Position(position));
                batch.push(at.0, at.1, &entry.borrow());
                want.push((at.0, at.1, entry));
            }
            let mut payload = Vec::new();
            let released = Released { seq: Seq(first - 1), position: Position(start / 2) };
            batch.close(&mut payload, Some(released));
            prop_assert!(batch.is_empty());
            prop_assert_eq!(Batch::open(&payload).unwrap().released(), Some(released));
            prop_assert_eq!(read_all(&payload).unwrap(), want);
        }

        #[test]
        fn arbitrary_bytes_never_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_all(&payload);
        }
    }

    #[test]
    fn a_horizon_gives_way() {
        let mut batch = OpenBatch::default();
        batch.push(Seq(5), Position(100), &EntryRef::Horizon);
        assert_eq!(batch.take_horizon(), Some(2));
        assert!(batch.is_empty());
        batch.push(Seq(5), Position(120), &EntryRef::Output);
        batch.push(Seq(6), Position(150), &EntryRef::Horizon);
        assert_eq!(batch.take_horizon(), Some(2));
        assert_eq!(batch.take_horizon(), None);
        batch.push(Seq(6), Position(170), &EntryRef::Output);
        let mut payload = Vec::new();
        batch.close(&mut payload, None);
        let want = vec![(Seq(5), Position(120), Entry::Output), (Seq(6), Position(170), Entry::Output)];
        assert_eq!(read_all(&payload).unwrap(), want);
    }

    #[test]
    fn a_frame_and_its_share_of_marks_stay_within_budget() {
        let frame = [0x55; 64];
        let mut batch = OpenBatch::default();
        let at = 1 << 42;
        batch.push(Seq(1 << 33), Position(at), &EntryRef::Clock { base_ns: 1 << 42, rate: 1 << 32 });
        batch.push(Seq((1 << 33) + 1), Position(at), &EntryRef::PacketIn(&frame));
        batch.push(Seq((1 << 33) + 2), Position(at + 20_000), &EntryRef::Output);
        let mut payload = Vec::new();
        batch.close(&mut payload, Some(Released { seq: Seq((1 << 33) - 3), position: Position(at - 100_000) }));
        assert!(payload.len() + crate::seal::OVERHEAD - frame.len() <= 60, "{} bytes", payload.len());
    }
}
