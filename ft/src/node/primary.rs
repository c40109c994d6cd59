//! The primary's side: the log, the state transfer, and the loss of the backup.

use super::side::{Phase, PrimarySide};
use super::{Action, AppendError, HaltReason, LossReason, Node};
use crate::decide::{self, Bid, LastWord, LostBackup};
use crate::entry::{Control, EntryRef, MAX_DATA, MAX_OVERHEAD};
use crate::link::Queued;
use crate::message::{MAX_CHUNK, MAX_MEMORY, Message};
use crate::mutation::Mutation;
use crate::seal::OVERHEAD;
use crate::send_log::{Lag, SendLog};
use crate::types::{Position, Role, Seq, SessionId, Time};

/// Type and address of a message with state.
const STATE_HEAD: usize = OVERHEAD + 20;

/// Whether these are whole pages, at least one.
fn is_pages(gpa: u64, len: u64) -> bool {
    gpa.is_multiple_of(4096) && len.is_multiple_of(4096) && len > 0
}

impl Node {
    /// Whether the primary's output must wait for acks.
    #[must_use]
    pub fn holds_output(&self) -> bool {
        decide::holds_output(self.role(), self.state_sent())
    }

    /// Whether frames of acked entries may leave now. Ask at each frame, or often: a machine that stands still in between
    /// must not go on sending.
    #[must_use]
    pub fn may_send(&self, now: Time) -> bool {
        let Some(primary) = self.side.primary() else { return false };
        let (role, heard) = match primary.role() {
            Role::HandingOver if self.config.broken(Mutation::LeaseIgnored) => (Role::Protected, Some(now)),
            role if self.config.broken(Mutation::LeaseIgnored) => (role, Some(now)),
            role => (role, primary.log.heard()),
        };
        decide::may_send(role, primary.state_sent(), heard, now, self.config.suspect_after)
    }

    fn state_sent(&self) -> bool {
        self.side.primary().is_some_and(PrimarySide::state_sent)
    }

    /// Whether entries are to be appended: there is, or may be, a backup that needs them.
    #[must_use]
    pub fn is_logging(&self) -> bool {
        decide::is_logging(self.role(), self.state_sent())
    }

    /// Appends an entry at `position`. The answer to `Output` is the number that [`Action::Release`] will name.
    ///
    /// # Errors
    /// [`AppendError::Full`]: nothing was taken, stop the guest and try again; [`AppendError::NotLogging`]: there is
    /// nobody to log for, so that output leaves at once. A guest that switches itself off ends this node then and there.
    ///
    /// # Panics
    /// When `position` lies before an earlier entry's: a bug of ours.
    pub fn append(&mut self, now: Time, position: Position, entry: EntryRef<'_>) -> Result<Seq, AppendError> {
        let hands_over = entry == EntryRef::Control(Control::SwitchOver);
        let (role, ends) = (self.role(), self.side.primary().is_some_and(|primary| primary.power_off.is_some()));
        if !self.is_logging() || ends || (hands_over && role != Role::Protected) {
            if entry == EntryRef::Control(Control::PowerOff) && role.runs_guest() && !ends {
                self.leave();
                self.halt(HaltReason::PoweredOff);
            }
            return Err(AppendError::NotLogging);
        }
        if entry.data_len() > MAX_DATA {
            return Err(AppendError::BadData);
        }
        if self.log_room() < entry.data_len().max(1) {
            self.stats.log_full += 1;
            self.flush(now);
            return Err(AppendError::Full);
        }
        let Some(primary) = self.side.primary_mut() else { return Err(AppendError::NotLogging) };
        let seq = primary.log.append(now, &self.config, &mut self.stats, position, &entry);
        let detaching = role == Role::Detaching && self.config.broken(Mutation::DetachingReleases);
        if entry == EntryRef::Output && (detaching || self.config.broken(Mutation::ReleaseBeforeAck)) {
            self.actions.push_back(Action::Release(seq));
        }
        match entry {
            EntryRef::Control(Control::PowerOff) => primary.power_off = Some(seq),
            EntryRef::Control(Control::SwitchOver) => {
                primary.phase = Phase::HandingOver { entry: seq };
                self.beats.next = now;
            }
            _ => {}
        }
        if primary.log.due().is_some_and(|due| due <= now) || primary.log.open_bytes() >= self.config.batch_bytes {
            self.flush(now);
        }
        self.check();
        Ok(seq)
    }

    /// How many bytes of data an entry may have to be taken now; 0 when no entry is taken.
    #[must_use]
    pub fn log_room(&self) -> usize {
        let Some(primary) = self.side.primary().filter(|_| self.is_logging()) else { return 0 };
        if primary.log.unapplied() >= self.config.max_entries {
            return 0;
        }
        let used = self.link.queued().len() + primary.log.open_bytes() + OVERHEAD + 30 + MAX_OVERHEAD;
        self.config.send_buffer_bytes.saturating_sub(used).min(MAX_DATA)
    }

    /// Sends the entries that wait in the open batch; whether there were any for a twin.
    pub fn flush(&mut self, now: Time) -> bool {
        let Some(PrimarySide { log, .. }) = self.side.primary_mut() else { return false };
        if log.due().is_none() {
            return false;
        }
        // A stream on which nobody said Hello yet is not that of this log.
        if !self.link.is_paired() {
            log.discard();
            return false;
        }
        let kind = Message::Entries(&[]).kind();
        let early = self.config.broken(Mutation::ReleasedTooEarly);
        let size = self.link.send_with(&mut self.stats, kind, |out| log.close(now, out, early));
        self.stats.batches += 1;
        self.stats.batch_bytes += size as u64;
        true
    }

    /// The frames of all `Output` entries up to `seq`, as [`Action::Release`] allowed, have left this machine: the
    /// backup is told with the next batch, and keeps them no longer. Frames that may leave and are still here, say
    /// because the network card had no room, must not be reported: the backup sends them if this machine ends.
    pub fn output_left(&mut self, seq: Seq) {
        if let Some(primary) = self.side.primary_mut() {
            primary.log.output_left(seq);
        }
    }

    /// How far the backup is behind; not at all as long as there is nobody to log for.
    #[must_use]
    pub fn lag(&self, now: Time) -> Lag {
        let logs = self.side.primary().filter(|_| self.is_logging());
        logs.map_or_else(Lag::default, |primary| primary.log.lag(now, self.position))
    }

    /// How many bytes of state are taken now.
    #[must_use]
    pub fn state_room(&self) -> usize {
        if !self.sends_state() {
            return 0;
        }
        self.config.send_buffer_bytes.saturating_sub(self.link.queued().len() + STATE_HEAD)
    }

    fn sends_state(&self) -> bool {
        self.side.primary().is_some_and(|primary| matches!(primary.phase, Phase::Sending))
    }

    /// Feeds whole pages at `gpa`, at most 16. Pages that were always zero need not be sent: the backup starts with
    /// them. What was sent before for the same pages is replaced.
    ///
    /// # Errors
    /// [`AppendError::Full`] when [`Node::state_room`] is less than the data, [`AppendError::NotLogging`] when the
    /// transfer has ended, [`AppendError::BadData`] when these are not whole pages or too many.
    pub fn push_memory(&mut self, gpa: u64, data: &[u8]) -> Result<(), AppendError> {
        if !self.sends_state() {
            return Err(AppendError::NotLogging);
        }
        if !is_pages(gpa, data.len() as u64) || data.len() > MAX_MEMORY {
            return Err(AppendError::BadData);
        }
        if self.state_room() < data.len() {
            return Err(AppendError::Full);
        }
        if self.stats.state_pages % 8 == 3 && self.config.broken(Mutation::PagesLeftOut) {
            self.stats.state_pages += 1;
            return Ok(());
        }
        self.link.send(&mut self.stats, &Message::Memory { gpa, data });
        self.stats.state_bytes += data.len() as u64;
        self.stats.state_pages += (data.len() / 4096) as u64;
        Ok(())
    }

    /// Says that `len` bytes at `gpa`, whole pages, became zero after they were fed with a content.
    ///
    /// # Errors
    /// [`AppendError::Full`] when [`Node::state_room`] is 0, [`AppendError::NotLogging`] when the transfer has ended,
    /// [`AppendError::BadData`] when these are not whole pages.
    pub fn push_zero(&mut self, gpa: u64, len: u64) -> Result<(), AppendError> {
        if !self.sends_state() {
            return Err(AppendError::NotLogging);
        }
        if !is_pages(gpa, len) {
            return Err(AppendError::BadData);
        }
        if self.state_room() == 0 {
            return Err(AppendError::Full);
        }
        self.link.send(&mut self.stats, &Message::Zero { gpa, len });
        Ok(())
    }

    /// Feeds bytes of the saved vCPU and platform; returns how many of them were taken.
    ///
    /// # Errors
    /// [`AppendError::NotLogging`] when the transfer has ended.
    pub fn push_machine(&mut self, data: &[u8]) -> Result<usize, AppendError> {
        if !self.sends_state() {
            return Err(AppendError::NotLogging);
        }
        let taken = data.len().min(self.state_room()).min(MAX_CHUNK);
        if taken > 0 {
            self.link.send(&mut self.stats, &Message::Machine(&data[..taken]));
            self.stats.state_bytes += taken as u64;
        }
        Ok(taken)
    }

    /// All state was fed; the guest stands at `position` and may run on. From here on output is held and entries are
    /// logged. `digest` is over the whole state.
    ///
    /// # Errors
    /// [`AppendError::NotLogging`] when the transfer has ended.
    pub fn finish_state(&mut self, position: Position, digest: u64) -> Result<(), AppendError> {
        let Some(PrimarySide { log, phase: phase @ Phase::Sending, .. }) = self.side.primary_mut() else {
            return Err(AppendError::NotLogging);
        };
        let seq = log.last;
        self.link.send(&mut self.stats, &Message::StateEnd { position, seq, digest });
        *log = SendLog::resume(seq, position);
        *phase = Phase::Sent { unsent: self.link.queued().len() };
        self.check();
        Ok(())
    }

    /// A machine that may be our twin wants the state.
    pub(super) fn begin_transfer(&mut self, now: Time) {
        let Some(primary) = self.side.primary_mut() else { return };
        primary.phase = Phase::Sending;
        self.session = SessionId(self.session.0 + 1);
        self.last_heard = now;
        self.beats.next = now;
        self.stats.transfers += 1;
        let (session, term, next) = (self.session, self.term, self.next);
        self.link.send(&mut self.stats, &Message::StateBegin { session, term, next });
        self.actions.push_back(Action::BeginTransfer);
    }

    pub(super) fn backup_joined(&mut self, now: Time) {
        let Some(primary) = self.side.primary_mut() else { return };
        primary.phase = Phase::Protected;
        primary.log.restart_wait(now);
        self.beats.next = now;
        self.stats.protections += 1;
        self.actions.push_back(Action::Protected);
    }

    pub(super) fn take_ack(&mut self, now: Time, received: Seq, applied: Seq, position: Position) -> bool {
        let newest = if self.config.broken(Mutation::AckBeyondReceived) { received } else { Seq(0) };
        let Some(PrimarySide { log, power_off, .. }) = self.side.primary_mut() else { return false };
        let Ok(released) = log.ack(now, received, applied, position, newest) else {
            return false;
        };
        self.stats.acks_received += 1;
        if let Some(seq) = released {
            if let Some(Action::Release(last)) = self.actions.back_mut() {
                *last = seq;
            } else {
                self.actions.push_back(Action::Release(seq));
            }
        }
        let early = u64::from(self.config.broken(Mutation::PowerOffAckedEarly));
        if power_off.is_some_and(|seq| seq.0 <= log.received().0 + early) {
            self.halt(HaltReason::PoweredOff);
        }
        true
    }

    /// The session is over; `word` is what the backup itself said last.
    pub(super) fn lose_backup(&mut self, now: Time, loss: LossReason, word: LastWord) {
        self.close_link(Queued::Dropped);
        let Some(primary) = self.side.primary_mut() else { return };
        if primary.state_left() {
            primary.phase = Phase::Detaching { loss, asked: false };
            // Nobody reads on in its log, which may be full. What is still logged must not wait for room.
            primary.log.discard();
            self.beats.next = now;
            self.consider_alone(now, word);
        } else {
            // It never had the complete state, and could ask for no term.
            self.next = decide::after_session(self.next, false);
            self.run_alone(now, loss);
        }
    }

    /// Goes on without the backup if the rules allow it, or asks for the term that allows it.
    pub(super) fn consider_alone(&mut self, now: Time, word: LastWord) {
        let lost = LostBackup {
            may_be_complete: !self.config.broken(Mutation::AloneWithoutAsking),
            word,
            silent: decide::is_silent(now, self.last_heard, self.config.suspect_after),
            term_granted: false,
        };
        let mut bid = self.side.bid();
        if bid == Bid::None && decide::may_bid_alone(lost, self.config.arbiter) {
            bid = self.ask();
            if let Some(PrimarySide { phase: Phase::Detaching { asked, .. }, .. }) = self.side.primary_mut() {
                *asked = bid == Bid::Asked;
            }
        }
        if decide::may_run_alone(LostBackup { term_granted: bid == Bid::Won, ..lost }) {
            self.go_alone(now, bid);
        }
    }

    /// The lost backup, which may have been complete, takes nothing over: it gave up, or the term is ours.
    pub(super) fn go_alone(&mut self, now: Time, bid: Bid) {
        if bid == Bid::Won {
            self.enter_next_term();
        } else {
            self.withdraw();
            self.next = decide::after_session(self.next, true);
        }
        if let Some(PrimarySide { phase: Phase::Detaching { loss, .. }, .. }) = self.side.primary_mut() {
            let loss = core::mem::replace(loss, LossReason::Silent);
            self.run_alone(now, loss);
        }
    }

    /// Output may leave, and nobody follows.
    fn run_alone(&mut self, now: Time, reason: LossReason) {
        let Some(primary) = self.side.primary_mut() else { return };
        let ends = primary.power_off.is_some();
        *primary = PrimarySide::alone(SendLog::resume(primary.log.last, primary.log.last_position));
        self.beats.next = now;
        self.stats.losses += 1;
        self.actions.push_back(Action::Unprotected { reason });
        if ends {
            self.halt(HaltReason::PoweredOff);
        }
    }
}
