//! The backup's side of the log: entries that are held, and how far the guest may run.

use crate::batch::{Batch, Released};
use crate::config::Config;
use crate::entry::{Control, Entry, EntryRef, Record};
use crate::mutation::Mutation;
use crate::types::{Position, Seq};
use crate::wire::DecodeError;
use alloc::collections::VecDeque;

/// Rough cost of an entry beyond its data.
const ENTRY_COST: usize = size_of::<Record>();

/// Why a batch was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BatchError {
    /// It is malformed.
    Content(DecodeError),
    /// It does not go on where the log ended.
    Order,
}

impl From<DecodeError> for BatchError {
    fn from(error: DecodeError) -> Self {
        Self::Content(error)
    }
}

/// What a batch brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Taken {
    /// Output waits for the ack, or the guest ends: ack at once.
    pub(crate) urgent: bool,
    pub(crate) entries: u64,
}

#[derive(Debug, Default)]
pub(crate) struct ReplayLog {
    records: VecDeque<Record>,
    bytes: usize,
    /// Newest entry received, and its position: the guest may run up to there.
    pub(crate) last: Seq,
    limit: Position,
    pub(crate) released: Released,
    pub(crate) powered_off: bool,
    pub(crate) handed_over: bool,
}

impl ReplayLog {
    /// A log whose first entry will be the one behind `last`; the state stands at `position`.
    pub(crate) fn resume(last: Seq, position: Position) -> Self {
        Self { last, limit: position, released: Released { seq: last, position }, ..Self::default() }
    }

    /// Buffers a batch, as a whole or not at all.
    pub(crate) fn receive(&mut self, config: &Config, payload: &[u8]) -> Result<Taken, BatchError> {
        let held = self.records.len();
        let result = self.receive_entries(config, payload);
        if result.is_err() {
            self.records.truncate(held);
        }
        result
    }

    fn receive_entries(&mut self, config: &Config, payload: &[u8]) -> Result<Taken, BatchError> {
        let mut batch = Batch::open(payload)?;
        let in_order = batch.next_seq() == self.last.next() && batch.position() >= self.limit;
        // A batch can only name what lies before it.
        if !in_order || batch.released().is_some_and(|new| new < self.released) {
            return Err(BatchError::Order);
        }
        let mut taken = Taken::default();
        let (mut bytes, mut last) = (self.bytes, self.last);
        let (mut powered_off, mut handed_over) = (self.powered_off, self.handed_over);
        while let Some((seq, position, entry)) = batch.next_entry()? {
            if powered_off || handed_over {
                return Err(BatchError::Order);
            }
            last = seq;
            taken.entries += 1;
            match entry {
                // Marks raise the limit, and that is all they do here.
                EntryRef::Horizon => continue,
                EntryRef::Output => {
                    taken.urgent = true;
                    continue;
                }
                EntryRef::Control(control) => {
                    taken.urgent = true;
                    powered_off = control == Control::PowerOff && !config.broken(Mutation::PowerOffIgnored);
                    handed_over = control == Control::SwitchOver;
                }
                EntryRef::PacketIn(_) if seq.0.is_multiple_of(8) && config.broken(Mutation::AckBeforeBuffering) => {
                    continue;
                }
                EntryRef::Digest { .. } if config.broken(Mutation::DigestNotCompared) => continue,
                _ => {}
            }
            bytes += ENTRY_COST + entry.data_len();
            self.records.push_back(Record { seq, position, entry: entry.to_owned() });
            if config.broken(Mutation::EntriesSwapped) {
                self.swap_newest();
            }
        }
        (self.bytes, self.last, self.limit) = (bytes, last, batch.position());
        (self.powered_off, self.handed_over) = (powered_off, handed_over);
        self.released = batch.released().unwrap_or(self.released);
        Ok(taken)
    }

    /// Breaks a rule: the two newest records change places.
    fn swap_newest(&mut self) {
        if let Some(index) = self.records.len().checked_sub(2) {
            let newest = core::mem::replace(&mut self.records[index + 1].entry, Entry::Horizon);
            let before = core::mem::replace(&mut self.records[index].entry, newest);
            self.records[index + 1].entry = before;
        }
    }

    pub(crate) fn front(&self) -> Option<&Record> {
        self.records.front()
    }

    /// Removes the first record, which was applied.
    pub(crate) fn pop(&mut self) -> Option<Record> {
        let record = self.records.pop_front()?;
        self.bytes -= ENTRY_COST + record.entry.borrow().data_len();
        Some(record)
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn limit(&self) -> Position {
        self.limit
    }

    /// Newest entry applied; marks behind the last applied record count as soon as nothing lies before them.
    pub(crate) fn applied(&self) -> Seq {
        self.records.front().map_or(self.last, |record| Seq(record.seq.0 - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::OpenBatch;
    use alloc::vec::Vec;

    fn payload(first: u64, entries: &[(u64, EntryRef<'_>)]) -> Vec<u8> {
        let mut batch = OpenBatch::default();
        for (index, (position, entry)) in entries.iter().enumerate() {
            batch.push(Seq(first + index as u64), Position(*position), entry);
        }
        let mut out = Vec::new();
        batch.close(&mut out, None);
        out
    }

    #[test]
    fn marks_raise_the_limit_and_need_no_applying() {
        let mut log = ReplayLog::resume(Seq(4), Position(50));
        assert_eq!((log.limit(), log.applied()), (Position(50), Seq(4)));
        let batch = payload(5, &[(60, EntryRef::PacketIn(&[1; 9])), (70, EntryRef::Output), (90, EntryRef::Horizon)]);
        assert_eq!(log.receive(&Config::default(), &batch), Ok(Taken { urgent: true, entries: 3 }));
        assert_eq!((log.limit(), log.last, log.applied()), (Position(90), Seq(7), Seq(4)));
        assert_eq!(log.bytes(), ENTRY_COST + 9);
        assert_eq!(log.pop().unwrap().seq, Seq(5));
        assert_eq!((log.bytes(), log.applied()), (0, Seq(7)));
    }

    #[test]
    fn gaps_and_steps_back_are_refused_whole() {
        let mut log = ReplayLog::resume(Seq(4), Position(50));
        for (first, position) in [(6, 60), (4, 60), (5, 49)] {
            let batch = payload(first, &[(position, EntryRef::PacketIn(&[1]))]);
            assert_eq!(log.receive(&Config::default(), &batch), Err(BatchError::Order));
        }
        let mut cut = payload(5, &[(60, EntryRef::PacketIn(&[1])), (61, EntryRef::PacketIn(&[2; 30]))]);
        cut.pop();
        assert_eq!(log.receive(&Config::default(), &cut), Err(BatchError::Content(DecodeError::Truncated)));
        assert_eq!((log.last, log.limit(), log.bytes(), log.front()), (Seq(4), Position(50), 0, None));
    }

    #[test]
    fn what_has_left_never_comes_back() {
        let mut log = ReplayLog::resume(Seq(4), Position(50));
        let mut next = 5;
        // With each batch of one entry: which entry's frames have left, and whether that can be.
        for (released, taken) in [(4, true), (3, false), (4, true), (6, true), (5, false)] {
            let mut batch = OpenBatch::default();
            batch.push(Seq(next), Position(60), &EntryRef::Horizon);
            let mut payload = Vec::new();
            batch.close(&mut payload, Some(Released { seq: Seq(released), position: Position(50 + released) }));
            let result = log.receive(&Config::default(), &payload);
            assert_eq!(result.is_ok(), taken, "entry {released} with batch {next}: {result:?}");
            next += u64::from(taken);
        }
        assert_eq!((log.last, log.released.seq), (Seq(7), Seq(6)));
    }

    #[test]
    fn nothing_follows_a_power_off() {
        let mut log = ReplayLog::resume(Seq(0), Position(0));
        let off = EntryRef::Control(Control::PowerOff);
        assert_eq!(
            log.receive(&Config::default(), &payload(1, &[(5, off), (6, EntryRef::Output)])),
            Err(BatchError::Order)
        );
        assert!(!log.powered_off);
        assert!(log.receive(&Config::default(), &payload(1, &[(5, off)])).unwrap().urgent);
        assert!(log.powered_off);
    }
}
