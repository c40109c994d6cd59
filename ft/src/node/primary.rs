//! The primary's side: the log, the state transfer, and the loss of the backup.

use super::{Action, AppendError, HaltReason, LossReason, Node};
use crate::decide::{self, LostBackup};
use crate::entry::{Control, EntryRef, MAX_DATA, MAX_OVERHEAD};
use crate::message::{MAX_CHUNK, MAX_MEMORY, Message};
use crate::seal::OVERHEAD;
use crate::send_log::{Lag, SendLog};
use crate::types::{Position, Role, Seq, SessionId, Time};

/// Type and address of a message with state.
const STATE_HEAD: usize = OVERHEAD + 10;

impl Node {
    /// Whether the primary's output must wait for acks.
    #[must_use]
    pub fn holds_output(&self) -> bool {
        self.role.is_primary() && self.role != Role::Alone
    }

    /// Whether entries are to be appended: there is, or may be, a backup that needs them.
    #[must_use]
    pub fn is_logging(&self) -> bool {
        match self.role {
            Role::Transferring => self.state_sent,
            Role::Protected | Role::Detaching => true,
            _ => false,
        }
    }

    /// Appends an entry at `position`. The answer to `Output` is the number that [`Action::Release`] will name.
    ///
    /// # Errors
    /// [`AppendError::Full`]: nothing was taken, stop the guest and try again; [`AppendError::NotLogging`]: there is
    /// nobody to log for, so that output leaves at once.
    ///
    /// # Panics
    /// When `position` lies before an earlier entry's: a bug of ours.
    pub fn append(&mut self, now: Time, position: Position, entry: EntryRef<'_>) -> Result<Seq, AppendError> {
        if !self.is_logging() || self.power_off.is_some() {
            return Err(AppendError::NotLogging);
        }
        if entry.data_len() > MAX_DATA {
            return Err(AppendError::BadData);
        }
        if self.log_room() < entry.data_len() {
            self.stats.log_full += 1;
            self.flush(now);
            return Err(AppendError::Full);
        }
        let seq = self.send.append(now, &self.config, &mut self.stats, position, &entry);
        if entry == EntryRef::Control(Control::PowerOff) {
            self.power_off = Some(seq);
        }
        if self.send.due().is_some_and(|due| due <= now) || self.send.open_bytes() >= self.config.batch_bytes {
            self.flush(now);
        }
        Ok(seq)
    }

    /// How many bytes of data an entry may have to be taken now; 0 when no entry with data is taken.
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
        if !self.link.is_up() {
            self.send.discard();
            return;
        }
        let send = &mut self.send;
        let kind = Message::Entries(&[]).kind();
        let size = self.link.send_with(&mut self.stats, kind, |out| send.close(now, out));
        self.stats.batches += 1;
        self.stats.batch_bytes += size as u64;
    }

    /// How far the backup is behind.
    #[must_use]
    pub fn lag(&self, now: Time) -> Lag {
        self.send.lag(now)
    }

    /// How many bytes of state are taken now.
    #[must_use]
    pub fn state_room(&self) -> usize {
        if self.role != Role::Transferring || self.state_sent {
            return 0;
        }
        self.config.send_buffer_bytes.saturating_sub(self.link.queued().len() + STATE_HEAD)
    }

    /// Feeds whole pages at `gpa`, at most 16. Pages of zeros need not be sent: the backup starts with them.
    ///
    /// # Errors
    /// [`AppendError::Full`] when [`Node::state_room`] is less than the data, [`AppendError::NotLogging`] when the
    /// transfer has ended, [`AppendError::BadData`] when these are not whole pages or too many.
    pub fn push_memory(&mut self, gpa: u64, data: &[u8]) -> Result<(), AppendError> {
        if self.role != Role::Transferring || self.state_sent {
            return Err(AppendError::NotLogging);
        }
        let whole_pages = gpa.is_multiple_of(4096) && data.len().is_multiple_of(4096);
        if !whole_pages || data.is_empty() || data.len() > MAX_MEMORY {
            return Err(AppendError::BadData);
        }
        if self.state_room() < data.len() {
            return Err(AppendError::Full);
        }
        self.link.send(&mut self.stats, &Message::Memory { gpa, data });
        self.stats.state_bytes += data.len() as u64;
        self.stats.state_pages += (data.len() / 4096) as u64;
        Ok(())
    }

    /// Feeds bytes of the saved vCPU and platform; returns how many of them were taken.
    ///
    /// # Errors
    /// [`AppendError::NotLogging`] when the transfer has ended.
    pub fn push_machine(&mut self, data: &[u8]) -> Result<usize, AppendError> {
        if self.role != Role::Transferring || self.state_sent {
            return Err(AppendError::NotLogging);
        }
        let taken = data.len().min(self.state_room()).min(MAX_CHUNK);
        if taken > 0 {
            self.link.send(&mut self.stats, &Message::Machine(&data[..taken]));
            self.stats.state_bytes += taken as u64;
        }
        Ok(taken)
    }

    /// All state was fed; the guest stands at `position` and may run on. `digest` is over the whole state.
    ///
    /// # Errors
    /// [`AppendError::NotLogging`] when the transfer has ended.
    pub fn finish_state(&mut self, position: Position, digest: u64) -> Result<(), AppendError> {
        if self.role != Role::Transferring || self.state_sent {
            return Err(AppendError::NotLogging);
        }
        let seq = self.send.last;
        self.link.send(&mut self.stats, &Message::StateEnd { position, seq, digest });
        self.send = SendLog::resume(seq, position);
        self.state_sent = true;
        Ok(())
    }

    /// A machine that may be our twin wants the state.
    pub(super) fn begin_transfer(&mut self, now: Time) {
        self.role = Role::Transferring;
        self.session = SessionId(self.session.0 + 1);
        self.state_sent = false;
        self.last_heard = now;
        self.next_heartbeat = now;
        self.stats.transfers += 1;
        self.link.send(&mut self.stats, &Message::StateBegin { session: self.session, term: self.term });
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
        let Ok(released) = self.send.ack(now, received, applied, position) else {
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
        if self.power_off.is_some_and(|seq| seq <= self.send.received()) {
            self.halt(HaltReason::PoweredOff);
        }
        true
    }

    /// The session is over. `gave_up`: the backup itself said that it is none any more.
    pub(super) fn lose_backup(&mut self, now: Time, reason: LossReason, gave_up: bool) {
        self.close_link(false);
        let silent = decide::is_silent(now, self.last_heard, self.config.suspect_after);
        let lost = LostBackup { may_be_complete: self.state_sent, gave_up, silent };
        if decide::may_run_alone(lost) {
            self.go_alone(now, reason);
        } else {
            self.role = Role::Detaching;
            self.loss = reason;
            self.next_heartbeat = now;
        }
    }

    pub(super) fn go_alone(&mut self, now: Time, reason: LossReason) {
        self.role = Role::Alone;
        self.state_sent = false;
        self.send = SendLog::resume(self.send.last, self.send.last_position);
        self.next_heartbeat = now;
        self.stats.losses += 1;
        self.actions.push_back(Action::Unprotected { reason });
        if self.power_off.is_some() {
            self.halt(HaltReason::PoweredOff);
        }
    }
}
