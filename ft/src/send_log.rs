//! The primary's side of the log: numbers, batches, and what the backup said it holds.

use crate::batch::{OpenBatch, Released};
use crate::config::Config;
use crate::decide;
use crate::entry::{EntryRef, Kind};
use crate::stats::Stats;
use crate::types::{Position, Seq, Span, Time};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Most marks kept to tell how long ago an unapplied entry was logged.
const MARKS: usize = 512;

/// How far the backup is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    /// Entries that are logged but not applied by the backup.
    pub entries: u64,
    /// Ticks from where the backup's guest stood at its last ack to where ours stands.
    pub ticks: u64,
    /// Age of the oldest batch that is not applied.
    pub time: Span,
}

/// An ack that cannot be: of entries never sent, or taking back an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadAck;

#[derive(Debug, Default)]
pub(crate) struct SendLog {
    /// Newest entry appended, and its position.
    pub(crate) last: Seq,
    pub(crate) last_position: Position,
    /// Newest entry handed to the stream, and its position.
    sent: Seq,
    sent_position: Position,
    received: Seq,
    applied: Seq,
    applied_position: Position,
    /// `Output` entries without ack.
    outputs: VecDeque<Released>,
    /// `Output` entries with an ack whose frames may still be in this machine.
    leaving: VecDeque<Released>,
    /// Newest `Output` entry acked.
    released: Seq,
    /// Newest `Output` entry whose frames have left, and the newest that the backup was told of.
    left: Released,
    told: Seq,
    open: OpenBatch,
    due: Option<Time>,
    /// When the batch ending with this entry was sent.
    marks: VecDeque<(Seq, Time)>,
    /// When the batch ending with this entry was sent; the backup has not acked it.
    unheard: VecDeque<(Seq, Time)>,
    /// When the newest was sent that the backup, as the one of this log, is known to have heard.
    heard: Option<Time>,
    /// Since when sent entries wait for any new ack.
    waiting: Option<Time>,
    /// Since when the backup's guest has something to do, and does nothing.
    standing: Option<Time>,
}

impl SendLog {
    /// A log that goes on behind entry `last` at `position`.
    pub(crate) fn resume(last: Seq, position: Position) -> Self {
        Self {
            last,
            last_position: position,
            sent: last,
            sent_position: position,
            received: last,
            applied: last,
            applied_position: position,
            released: last,
            left: Released { seq: last, position },
            told: last,
            ..Self::default()
        }
    }

    /// Bytes in the open batch.
    pub(crate) fn open_bytes(&self) -> usize {
        self.open.len()
    }

    pub(crate) fn unapplied(&self) -> u64 {
        self.last.0 - self.applied.0
    }

    /// Appends an entry. A horizon that was not sent yet gives way to whatever comes behind it.
    pub(crate) fn append(
        &mut self,
        now: Time,
        config: &Config,
        stats: &mut Stats,
        position: Position,
        entry: &EntryRef<'_>,
    ) -> Seq {
        assert!(position >= self.last_position, "positions in the log never decrease");
        if let Some(size) = self.open.take_horizon() {
            self.last.0 -= 1;
            let count = &mut stats.logged[Kind::Horizon.index()];
            count.entries -= 1;
            count.bytes -= size as u64;
        }
        self.last = self.last.next();
        self.last_position = position;
        let size = self.open.push(self.last, position, entry);
        let kind = entry.kind();
        let count = &mut stats.logged[kind.index()];
        count.entries += 1;
        count.bytes += size as u64;
        count.data += entry.data_len() as u64;
        let delay = match kind {
            Kind::Clock | Kind::Horizon | Kind::Digest => config.batch_delay,
            Kind::Packet | Kind::Console | Kind::Disk => config.packet_delay,
            Kind::Output | Kind::Control => Span(0),
        };
        let due = now.after(delay);
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
        if kind == Kind::Output {
            self.outputs.push_back(Released { seq: self.last, position });
        }
        self.last
    }

    /// When the open batch must be sent.
    pub(crate) fn due(&self) -> Option<Time> {
        self.due
    }

    /// Appends the open batch to `out`.
    /// `early` breaks a rule: the mark is the newest output sent.
    pub(crate) fn close(&mut self, now: Time, out: &mut Vec<u8>, early: bool) {
        let sent = self.outputs.iter().rev().find(|output| output.seq <= self.sent).copied();
        let mark = if early { sent.unwrap_or(self.left) } else { self.left };
        let news = (mark.seq > self.told).then_some(mark);
        self.told = mark.seq;
        self.open.close(out, news);
        self.due = None;
        (self.sent, self.sent_position) = (self.last, self.last_position);
        self.waiting.get_or_insert(now);
        self.standing.get_or_insert(now);
        // Beyond that it only takes longer to learn that the backup heard something.
        if self.unheard.len() < MARKS {
            self.unheard.push_back((self.last, now));
        }
        if self.marks.len() < MARKS {
            self.marks.push_back((self.last, now));
        }
    }

    /// Throws away what nobody will read: there is no stream to send it on, and there will be none for this log. Its entries
    /// keep their numbers, and take no room.
    pub(crate) fn discard(&mut self) {
        self.open.clear();
        self.outputs.clear();
        self.due = None;
        (self.sent, self.sent_position) = (self.last, self.last_position);
        self.applied = self.last;
    }

    /// Takes an ack; says up to which `Output` entry frames may now leave.
    pub(crate) fn ack(
        &mut self,
        now: Time,
        received: Seq,
        applied: Seq,
        position: Position,
        newest: Seq,
    ) -> Result<Option<Seq>, BadAck> {
        let forward = received >= self.received && applied >= self.applied && position >= self.applied_position;
        if !forward || received > self.sent.max(newest) || applied > received || position > self.last_position {
            return Err(BadAck);
        }
        if received > self.received {
            self.waiting = (received < self.sent).then_some(now);
        }
        // Marks count as applied without any doing of the guest's.
        if position > self.applied_position || (applied > self.applied && position >= self.sent_position) {
            self.standing = Some(now);
        }
        if applied == self.sent && position >= self.sent_position {
            self.standing = None;
        }
        (self.received, self.applied, self.applied_position) = (received, applied, position);
        while let Some((_, sent)) = self.unheard.pop_front_if(|(seq, _)| *seq <= received) {
            self.is_heard(sent);
        }
        while self.marks.front().is_some_and(|(seq, _)| *seq <= applied) {
            self.marks.pop_front();
        }
        let before = self.released;
        while let Some(output) = self.outputs.pop_front_if(|output| decide::may_release(output.seq, received)) {
            self.released = output.seq;
            self.leaving.push_back(output);
        }
        Ok((self.released > before).then_some(self.released))
    }

    /// The frames of acked `Output` entries up to `seq` have left.
    pub(crate) fn output_left(&mut self, seq: Seq) {
        while let Some(output) = self.leaving.pop_front_if(|output| output.seq <= seq) {
            self.left = output;
        }
    }

    /// Since when sent entries wait for any new ack.
    pub(crate) fn waiting_since(&self) -> Option<Time> {
        self.waiting
    }

    /// The backup, which follows this log, heard what was sent then.
    pub(crate) fn is_heard(&mut self, sent: Time) {
        self.heard = self.heard.max(Some(sent));
    }

    /// When the newest was sent that the backup is known to have heard.
    pub(crate) fn heard(&self) -> Option<Time> {
        self.heard
    }

    /// Since when the backup's guest has something to do, and does nothing.
    pub(crate) fn standing_since(&self) -> Option<Time> {
        self.standing
    }

    /// The backup has only now begun to ack, or we to listen.
    pub(crate) fn restart_wait(&mut self, now: Time) {
        for since in [&mut self.waiting, &mut self.standing].into_iter().flatten() {
            *since = now;
        }
    }

    pub(crate) fn received(&self) -> Seq {
        self.received
    }

    /// The lag behind a guest that has run to `position`.
    pub(crate) fn lag(&self, now: Time, position: Position) -> Lag {
        Lag {
            entries: self.unapplied(),
            ticks: self.last_position.max(position).0.saturating_sub(self.applied_position.0),
            time: self.marks.front().map_or(Span(0), |(_, sent)| now.since(*sent)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;
    use crate::stats::KindCount;

    fn log() -> (SendLog, Config, Stats) {
        (SendLog::resume(Seq(10), Position(100)), Config::default(), Stats::default())
    }

    #[test]
    fn an_ack_releases_the_outputs_it_covers() {
        let (mut log, config, mut stats) = log();
        let now = Time(1000);
        log.append(now, &config, &mut stats, Position(110), &EntryRef::Output);
        log.append(now, &config, &mut stats, Position(120), &EntryRef::PacketIn(&[1]));
        log.append(now, &config, &mut stats, Position(130), &EntryRef::Output);
        assert_eq!(log.due(), Some(now));
        assert_eq!(log.ack(now, Seq(11), Seq(10), Position(100), Seq(0)), Err(BadAck), "nothing was sent yet");
        log.close(now, &mut Vec::new(), false);
        assert_eq!(log.ack(now, Seq(10), Seq(10), Position(100), Seq(0)), Ok(None));
        assert_eq!(log.ack(now, Seq(12), Seq(10), Position(100), Seq(0)), Ok(Some(Seq(11))));
        assert_eq!(log.waiting_since(), Some(now));
        assert_eq!(log.ack(now, Seq(11), Seq(10), Position(100), Seq(0)), Err(BadAck), "an ack never goes back");
        assert_eq!(log.ack(now, Seq(13), Seq(13), Position(130), Seq(0)), Ok(Some(Seq(13))));
        assert_eq!(log.waiting_since(), None);
        assert_eq!(log.lag(now, Position(0)), Lag::default());
        assert_eq!(log.ack(now, Seq(14), Seq(13), Position(130), Seq(0)), Err(BadAck));
    }

    #[test]
    fn a_pending_horizon_is_not_sent_twice() {
        let (mut log, config, mut stats) = log();
        for step in 1..=50 {
            let seq = log.append(Time(step), &config, &mut stats, Position(100 + step), &EntryRef::Horizon);
            assert_eq!(seq, Seq(11));
        }
        assert_eq!(stats.of(Kind::Horizon).entries, 1);
        assert_eq!(log.due(), Some(Time(1).after(config.batch_delay)));
        let seq = log.append(Time(60), &config, &mut stats, Position(160), &EntryRef::PacketIn(&[0; 60]));
        assert_eq!((seq, stats.of(Kind::Packet).data), (Seq(11), 60));
        assert_eq!(stats.of(Kind::Horizon), KindCount::default(), "those that gave way do not count");
    }

    #[test]
    fn what_has_left_is_told_once() {
        let (mut log, config, mut stats) = log();
        let mut told = |log: &mut SendLog| {
            log.append(Time(1000), &config, &mut stats, Position(110), &EntryRef::Output);
            let mut batch = Vec::new();
            log.close(Time(1000), &mut batch, false);
            Batch::open(&batch).unwrap().released()
        };
        assert_eq!(told(&mut log), None);
        log.ack(Time(1000), Seq(11), Seq(10), Position(100), Seq(0)).unwrap();
        log.output_left(Seq(11));
        assert_eq!(told(&mut log), Some(Released { seq: Seq(11), position: Position(110) }));
        assert_eq!(told(&mut log), None, "it knows");
    }

    #[test]
    fn only_progress_ends_a_wait() {
        let (mut log, config, mut stats) = log();
        for position in [110, 120, 120] {
            log.append(Time(1), &config, &mut stats, Position(position), &EntryRef::Output);
        }
        log.close(Time(1), &mut Vec::new(), false);
        // When, what was received and applied up to which position; since when more of either is waited for.
        let acks = [
            (2, (10, 10, 100), (Some(1), Some(1))),
            // A mark is applied without any doing of the guest's.
            (3, (11, 11, 100), (Some(3), Some(1))),
            (4, (13, 11, 120), (None, Some(4))),
            (5, (13, 11, 120), (None, Some(4))),
            (6, (13, 12, 120), (None, Some(6))),
            (7, (13, 13, 120), (None, None)),
        ];
        for (now, (received, applied, position), (waiting, standing)) in acks {
            log.ack(Time(now), Seq(received), Seq(applied), Position(position), Seq(0)).unwrap();
            let want = (waiting.map(Time), standing.map(Time));
            assert_eq!((log.waiting_since(), log.standing_since()), want, "at {now}");
        }
    }

    #[test]
    fn what_nobody_reads_takes_no_room() {
        let (mut log, config, mut stats) = log();
        log.append(Time(1000), &config, &mut stats, Position(110), &EntryRef::Output);
        assert_eq!((log.unapplied(), log.open_bytes() > 0, log.due()), (1, true, Some(Time(1000))));
        log.discard();
        assert_eq!((log.last, log.unapplied(), log.open_bytes(), log.due()), (Seq(11), 0, 0, None));
        assert!(log.outputs.is_empty());
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_batch_not_applied() {
        let (mut log, config, mut stats) = log();
        for step in [1000, 2000] {
            log.append(Time(step), &config, &mut stats, Position(100 + step), &EntryRef::Horizon);
            log.close(Time(step), &mut Vec::new(), false);
        }
        assert_eq!(log.lag(Time(5000), Position(0)), Lag { entries: 2, ticks: 2000, time: Span(4000) });
        log.ack(Time(5000), Seq(12), Seq(11), Position(1100), Seq(0)).unwrap();
        assert_eq!(log.lag(Time(5000), Position(0)), Lag { entries: 1, ticks: 1000, time: Span(3000) });
    }

    #[test]
    #[should_panic(expected = "never decrease")]
    fn going_back_is_our_own_bug() {
        let (mut log, config, mut stats) = log();
        log.append(Time(0), &config, &mut stats, Position(99), &EntryRef::Horizon);
    }
}
