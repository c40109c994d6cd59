//! The backup's side: state that arrives, the log that is replayed, the takeover.

use super::{Action, HaltReason, LossReason, Node, NotLive};
use crate::batch::Released;
use crate::decide::{self, BackupView, Bid, OnStanding};
use crate::entry::{Control, Entry, Record};
use crate::message::{Bye, Message};
use crate::mutation::Mutation;
use crate::replay_log::ReplayLog;
use crate::send_log::SendLog;
use crate::types::{Position, Role, Seq, Term, Time};
use alloc::string::ToString;

impl Node {
    /// The next entry to apply, when the guest stands exactly at its position. Marks (`Horizon`, `Output`) are not
    /// handed out: they only raise [`Node::run_limit`].
    #[must_use]
    pub fn next_record(&self) -> Option<&Record> {
        if self.role.is_backup() { self.replay.front() } else { None }
    }

    /// The newest position the guest may run to, entries before it applied. `None`: execute nothing.
    #[must_use]
    pub fn run_limit(&self) -> Option<Position> {
        let beyond = if self.config.broken(Mutation::HorizonIgnored) { 1000 } else { 0 };
        self.role.is_backup().then(|| Position(self.replay.limit().0 + beyond))
    }

    /// The newest `Output` entry whose frames the primary is known to have released: frames that our guest made up
    /// to its position have left, later ones may not have and belong to whoever goes live.
    #[must_use]
    pub fn released(&self) -> Released {
        self.replay.released
    }

    /// The guest stands at `position`, and the first record has been applied there.
    ///
    /// # Panics
    /// When there is no such record at this position: a bug of ours.
    pub fn applied(&mut self, now: Time, position: Position) {
        assert!(self.role.is_backup(), "only a backup applies records");
        self.progress(position);
        let record = self.replay.pop().expect("applied() without a record is the caller's bug");
        assert_eq!(record.position, position, "entry {:?} applied at the wrong position", record.seq);
        match record.entry {
            Entry::Digest { .. } => self.stats.digests += 1,
            Entry::Control(Control::PowerOff) if !self.config.broken(Mutation::PowerOffIgnored) => {
                self.send_ack();
                self.halt(HaltReason::PoweredOff);
                return;
            }
            _ => {}
        }
        if self.role == Role::Backup {
            self.ack_within(now.after(self.config.ack_delay));
        }
    }

    /// The state that [`Action::StateLoaded`] announced was checked: follow the log from here on.
    /// Without effect when the primary was lost meanwhile.
    pub fn joined(&mut self, now: Time) {
        if self.role != Role::Loading || !self.state_received {
            return;
        }
        self.role = Role::Backup;
        self.next_heartbeat = now;
        self.link.send(&mut self.stats, &Message::Joined(self.session));
        self.send_ack();
    }

    /// The guest here is not the primary's (a digest differs, an entry cannot be applied): tells the primary, halts.
    pub fn diverged(&mut self, details: &str) {
        if !self.role.is_backup() && self.role != Role::Loading {
            return;
        }
        self.link.send(&mut self.stats, &Message::Bye(Bye::Diverged(details.to_string())));
        self.close_link(true);
        self.halt(HaltReason::Diverged(details.to_string()));
    }

    /// The log is drained and the guest stands at `position`: go live if the rules allow it. The first call asks the
    /// arbiter; call again when it has answered. Only after `Ok` may output leave this machine.
    ///
    /// # Errors
    /// When this node is not, or no longer, taking over, or the term is not granted yet.
    pub fn went_live(&mut self, now: Time, position: Position) -> Result<Term, NotLive> {
        if self.role != Role::Draining {
            return Err(NotLive::NotTakingOver);
        }
        let view = self.backup_view(now, position);
        if !view.drained {
            if self.bid == Bid::None && self.config.broken(Mutation::BidBeforeDrained) {
                self.ask();
            }
            return Err(NotLive::NotDrained);
        }
        if self.bid == Bid::None && decide::may_bid(view) {
            self.ask();
        }
        if !decide::may_go_live(self.backup_view(now, position)) {
            let waits = self.bid == Bid::Asked;
            return Err(if waits { NotLive::NotGranted } else { NotLive::NotTakingOver });
        }
        if self.replay.handed_over {
            self.link.send(&mut self.stats, &Message::Bye(Bye::TookOver(self.next)));
        }
        self.close_link(self.replay.handed_over);
        self.enter_next_term();
        self.role = Role::Alone;
        self.position = position;
        let restarts = self.config.broken(Mutation::NumbersRestart);
        self.send = SendLog::resume(if restarts { Seq(0) } else { self.replay.last }, position);
        self.replay = ReplayLog::default();
        self.forget_backup_state();
        self.next_heartbeat = now;
        self.stats.takeovers += 1;
        Ok(self.term)
    }

    fn backup_view(&self, now: Time, position: Position) -> BackupView {
        BackupView {
            role: self.role,
            primary_silent: decide::is_silent(now, self.last_heard, self.config.suspect_after)
                || (self.role == Role::Draining && self.config.broken(Mutation::TakeoverNotCalledOff)),
            primary_left: self.primary_left,
            powered_off: self.replay.powered_off,
            drained: (self.replay.front().is_none() && position == self.replay.limit())
                || self.config.broken(Mutation::LiveBeforeDrained),
            term_granted: self.bid == Bid::Won,
        }
    }

    /// Starts to drain the log if the primary is gone.
    pub(super) fn consider_takeover(&mut self, now: Time) {
        if decide::may_drain(self.backup_view(now, self.position)) {
            self.role = Role::Draining;
            self.ack_due = None;
            self.next_heartbeat = now;
            self.actions.push_back(Action::TakeOver { last: self.replay.limit() });
        }
    }

    /// The primary gave a sign of life. Draining has only executed what the log holds, so nothing is to be undone. A
    /// question to the arbiter stays open until both agree on another term.
    pub(super) fn primary_heard(&mut self, now: Time) {
        let called_off = decide::may_call_off(self.backup_view(now, self.position));
        if called_off && !self.config.broken(Mutation::TakeoverNotCalledOff) {
            self.role = Role::Backup;
            self.stats.takeovers_cancelled += 1;
            self.ack_within(now);
            self.actions.push_back(Action::TakeOverCancelled);
            if decide::may_propose(self.role, self.bid, self.next, self.proposed, self.link.is_up()) {
                self.propose();
            }
        }
    }

    /// The next term is ours: goes live whatever the primary does, with the log as it is now. One that was handed over
    /// has come to its end, and who handed it over is told once we are live.
    pub(super) fn commit(&mut self, now: Time) {
        if !self.replay.handed_over {
            self.close_link(false);
        }
        self.consider_takeover(now);
    }

    /// The primary said something that concerns our standing.
    pub(super) fn take_standing(&mut self, now: Time, verdict: OnStanding) {
        match verdict {
            OnStanding::Ignore => {}
            OnStanding::Follow => self.primary_heard(now),
            OnStanding::Abandon => self.abandon(now, LossReason::Dropped),
            OnStanding::Contend => {
                self.primary_left = true;
                self.commit(now);
            }
        }
    }

    /// The guest held here is worthless: back to the start.
    pub(super) fn abandon(&mut self, now: Time, reason: LossReason) {
        self.close_link(false);
        self.withdraw();
        self.role = Role::Joining;
        self.replay = ReplayLog::default();
        self.position = Position(0);
        self.forget_backup_state();
        self.next_heartbeat = now;
        self.stats.losses += 1;
        self.actions.push_back(Action::Abandoned { reason });
    }

    fn forget_backup_state(&mut self) {
        self.state_received = false;
        self.primary_left = false;
        self.proposed = None;
        self.ack_due = None;
    }

    pub(super) fn ack_within(&mut self, due: Time) {
        self.ack_due = Some(self.ack_due.map_or(due, |earlier| earlier.min(due)));
    }

    pub(super) fn send_ack(&mut self) {
        let beyond = u64::from(self.config.broken(Mutation::AckBeyondReceived));
        let (received, applied) = (Seq(self.replay.last.0 + beyond), self.replay.applied());
        self.ack_due = None;
        self.acked = (applied, self.position);
        if self.link.is_up() {
            self.stats.acks_sent += 1;
            self.link.send(&mut self.stats, &Message::Ack { received, applied, position: self.position });
        }
    }
}
