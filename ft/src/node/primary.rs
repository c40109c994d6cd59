//! The primary's side: the log, the state transfer, and the loss of the backup.

use super::{Action, AppendError, HaltReason, LossReason, Node};
use crate::decide::{self, Bid, LostBackup};
use crate::entry::{Control, EntryRef, MAX_DATA, MAX_OVERHEAD};
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
        decide::holds_output(self.role, self.state_sent)
    }

    /// Whether frames of acked entries may leave now. Ask at each frame, or often: a machine that stands still in between
    /// must not go on sending.
    #[must_use]
    pub fn may_send(&self, now: Time) -> bool {
        let heard = if self.config.broken(Mutation::LeaseIgnored) { Some(now) } else { self.heard_from };
        let role = match self.role {
            Role::HandingOver if self.config.broken(Mutation::LeaseIgnored) => Role::Protected,
            role => role,
        };
        decide::may_send(role, self.state_sent, heard, now, self.config.suspect_after)
    }

    /// Whether entries are to be appended: there is, or may be, a backup that needs them.
    #[must_use]
    pub fn is_logging(&self) -> bool {
        decide::is_logging(self.role, self.state_sent)
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
        if !self.is_logging() || self.power_off.is_some() || (hands_over && self.role != Role::Protected) {
            if entry == EntryRef::Control(Control::PowerOff) && self.role.runs_guest() && self.power_off.is_none() {
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
        let seq = self.send.append(now, &self.config, &mut self.stats, position, &entry);
        let detaching = self.role == Role::Detaching && self.config.broken(Mutation::DetachingReleases);
        if entry == EntryRef::Output && (detaching || self.config.broken(Mutation::ReleaseBeforeAck)) {
            self.actions.push_back(Action::Release(seq));
        }
        match entry {
            EntryRef::Control(Control::PowerOff) => self.power_off = Some(seq),
            EntryRef::Control(Control::SwitchOver) => self.begin_hand_over(now, seq),
            _ => {}
        }
        if self.send.due().is_some_and(|due| due <= now) || self.send.open_bytes() >= self.config.batch_bytes {
            self.flush(now);
        }
        Ok(seq)
    }

    /// How many bytes of data an entry may have to be taken now; 0 when no entry is taken.
    #[must_use]
    pub fn log_room(&self) -> usize {
        if !self.is_logging() || self.send.unapplied() >= self.config.max_entries {
            return 0;
        }
        let used = self.link.queued().len() + self.send.open_bytes() + OVERHEAD + 30 + MAX_OVERHEAD;
        self.config.send_buffer_bytes.saturating_sub(used).min(MAX_DATA)
    }

    /// Sends the entries that wait in the open batch.
    pub fn flush(&mut self, now: Time) {
        if self.send.due().is_none() {
            return;
        }
        // A stream on which nobody said Hello yet is not that of this log.
        if !self.link.is_up() || !self.paired {
            self.send.discard();
            return;
        }
        let send = &mut self.send;
        let kind = Message::Entries(&[]).kind();
        let early = self.config.broken(Mutation::ReleasedTooEarly);
        let size = self.link.send_with(&mut self.stats, kind, |out| send.close(now, out, early));
        self.stats.batches += 1;
        self.stats.batch_bytes += size as u64;
    }

    /// The frames of all `Output` entries up to `seq`, as [`Action::Release`] allowed, have left this machine: the
    /// backup is told with the next batch, and keeps them no longer. Frames that may leave and are still here, say
    /// because the network card had no room, must not be reported: the backup sends them if this machine ends.
    pub fn output_left(&mut self, seq: Seq) {
        self.send.output_left(seq);
    }

    /// How far the backup is behind; not at all as long as there is nobody to log for.
    #[must_use]
    pub fn lag(&self, now: Time) -> Lag {
        if self.is_logging() { self.send.lag(now, self.position) } else { Lag::default() }
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
        self.role == Role::Transferring && !self.state_sent
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
        if !self.sends_state() {
            return Err(AppendError::NotLogging);
        }
        let seq = self.send.last;
        self.link.send(&mut self.stats, &Message::StateEnd { position, seq, digest });
        self.send = SendLog::resume(seq, position);
        self.state_sent = true;
        self.state_unsent = self.link.queued().len();
        Ok(())
    }

    /// A machine that may be our twin wants the state.
    pub(super) fn begin_transfer(&mut self, now: Time) {
        self.role = Role::Transferring;
        self.session = SessionId(self.session.0 + 1);
        self.state_sent = false;
        self.heard_from = None;
        self.last_heard = now;
        self.next_heartbeat = now;
        self.stats.transfers += 1;
        let (session, term, next) = (self.session, self.term, self.next);
        self.link.send(&mut self.stats, &Message::StateBegin { session, term, next });
        self.actions.push_back(Action::BeginTransfer);
    }

    pub(super) fn backup_joined(&mut self, now: Time) {
        self.role = Role::Protected;
        self.send.restart_wait(now);
        self.next_heartbeat = now;
        self.stats.protections += 1;
        self.actions.push_back(Action::Protected);
    }

    pub(super) fn take_ack(&mut self, now: Time, received: Seq, applied: Seq, position: Position) -> bool {
        let newest = if self.config.broken(Mutation::AckBeyondReceived) { received } else { Seq(0) };
        let Ok(released) = self.send.ack(now, received, applied, position, newest) else {
            return false;
        };
        self.stats.acks_received += 1;
        self.heard_from = self.heard_from.max(self.send.heard());
        if let Some(seq) = released {
            if let Some(Action::Release(last)) = self.actions.back_mut() {
                *last = seq;
            } else {
                self.actions.push_back(Action::Release(seq));
            }
        }
        let early = u64::from(self.config.broken(Mutation::PowerOffAckedEarly));
        if self.power_off.is_some_and(|seq| seq.0 <= self.send.received().0 + early) {
            self.halt(HaltReason::PoweredOff);
        }
        true
    }

    /// The session is over. `gave_up`: the backup itself said that it is none any more.
    pub(super) fn lose_backup(&mut self, now: Time, reason: LossReason, gave_up: bool) {
        self.close_link(false);
        self.role = Role::Detaching;
        self.handover = None;
        self.loss = reason;
        self.next_heartbeat = now;
        self.consider_alone(now, gave_up, false);
    }

    /// Goes on without the backup if the rules allow it, or asks for the term that allows it.
    pub(super) fn consider_alone(&mut self, now: Time, gave_up: bool, contends: bool) {
        let lost = LostBackup {
            may_be_complete: self.state_left() && !self.config.broken(Mutation::AloneWithoutAsking),
            gave_up,
            silent: decide::is_silent(now, self.last_heard, self.config.suspect_after),
            contends,
            term_granted: self.bid == Bid::Won,
        };
        if self.bid == Bid::None && decide::may_bid_alone(lost, self.config.arbiter) {
            self.ask();
        }
        if decide::may_run_alone(LostBackup { term_granted: self.bid == Bid::Won, ..lost }) {
            self.go_alone(now);
        }
    }

    /// Whether the end of the state has left, so that there may be a complete backup.
    fn state_left(&self) -> bool {
        self.state_sent && self.state_unsent == 0
    }

    pub(super) fn go_alone(&mut self, now: Time) {
        if self.bid == Bid::Won {
            self.enter_next_term();
        } else {
            self.withdraw();
            self.next = decide::after_session(self.next, self.state_left());
        }
        self.role = Role::Alone;
        self.state_sent = false;
        self.send = SendLog::resume(self.send.last, self.send.last_position);
        self.next_heartbeat = now;
        self.stats.losses += 1;
        self.actions.push_back(Action::Unprotected { reason: self.loss.clone() });
        if self.power_off.is_some() {
            self.halt(HaltReason::PoweredOff);
        }
    }
}
