//! The backup's side: state that arrives, the log that is replayed, the takeover.

use super::side::{BackupSide, Follower, PrimarySide, Side, Takeover};
use super::{Action, HaltReason, LossReason, Node, NotLive, TakenOver};
use crate::batch::Released;
use crate::decide::{self, BackupView, Bid, OnStanding};
use crate::entry::{Control, Entry, Record};
use crate::link::Queued;
use crate::message::{Bye, Message};
use crate::mutation::Mutation;
use crate::send_log::SendLog;
use crate::types::{Position, Role, Seq, Span, Time};
use alloc::string::ToString;

impl Node {
    /// The next entry to apply, when the guest stands exactly at its position. Marks (`Horizon`, `Output`) are not
    /// handed out: they only raise [`Node::run_limit`].
    #[must_use]
    pub fn next_record(&self) -> Option<&Record> {
        self.side.follower()?.replay.front()
    }

    /// The newest position the guest may run to, entries before it applied. `None`: execute nothing.
    #[must_use]
    pub fn run_limit(&self) -> Option<Position> {
        let beyond = if self.config.broken(Mutation::HorizonIgnored) { 1000 } else { 0 };
        self.side.follower().map(|follower| follower.replay.limit().after(beyond))
    }

    /// The newest `Output` entry whose frames the primary is known to have released: frames that our guest made up
    /// to its position have left, later ones may not have and belong to whoever goes live.
    #[must_use]
    pub fn released(&self) -> Released {
        self.side.replay().map_or_else(Released::default, |replay| replay.released)
    }

    /// The guest stands at `position`, and the first record has been applied there.
    ///
    /// # Panics
    /// When there is no such record at this position: a bug of ours.
    pub fn applied(&mut self, now: Time, position: Position) {
        self.progress(position);
        let follower = self.side.follower_mut().expect("only a backup applies records");
        let record = follower.replay.pop().expect("applied() without a record is the caller's bug");
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
        if follower.takeover.is_none() {
            follower.ack_within(now.after(self.config.ack_delay));
        }
        self.check();
    }

    /// The state that [`Action::StateLoaded`] announced was checked: follow the log from here on.
    /// Without effect when the primary was lost meanwhile.
    pub fn joined(&mut self, now: Time) {
        let Side::Backup(BackupSide::Loaded(replay)) = &mut self.side else { return };
        self.side = Side::Backup(BackupSide::Following(Follower::new(core::mem::take(replay))));
        self.beats.next = now;
        self.link.send(&mut self.stats, &Message::Joined(self.session));
        self.send_ack();
        self.check();
    }

    /// The guest here is not the primary's (a digest differs, an entry cannot be applied): tells the primary, halts.
    pub fn diverged(&mut self, details: &str) {
        if !self.role().is_backup() && self.role() != Role::Loading {
            return;
        }
        let bye = Message::Bye(Bye::Diverged(details.to_string()));
        self.link.send(&mut self.stats, &bye);
        self.close_link(Queued::Kept);
        self.halt(HaltReason::Diverged(details.to_string()));
        self.check();
    }

    /// This machine cannot go on as a backup, for a reason of its own: tells the primary, which goes on alone, and halts.
    pub fn give_up(&mut self, why: &str) {
        if !self.role().is_backup() {
            return;
        }
        let bye = Message::Bye(Bye::GaveUp(why.to_string()));
        self.link.send(&mut self.stats, &bye);
        self.copies.end(&bye);
        self.close_link(Queued::Kept);
        self.halt(HaltReason::GaveUp(why.to_string()));
        self.check();
    }

    /// Whether the log is left as it is from here on: only where the rule to drain it is switched off, and the primary has
    /// fallen silent.
    #[must_use]
    pub fn leaves_log(&self, now: Time) -> bool {
        let silence = Span(self.config.heartbeat_interval.0 * 3 / 2);
        self.config.goes_live_undrained && decide::is_silent(now, self.last_heard, silence)
    }

    /// Ends the takeover, if the rules allow it: the log is drained and the guest stands at `position`. The first call
    /// asks the arbiter; call again when it has answered. Only after `Ok` may output leave this machine.
    ///
    /// # Errors
    /// When this node is not, or no longer, taking over, or the term is not granted yet.
    pub fn go_live(&mut self, now: Time, position: Position) -> Result<TakenOver, NotLive> {
        let result = self.consider_live(now, position);
        self.check();
        result
    }

    fn consider_live(&mut self, now: Time, position: Position) -> Result<TakenOver, NotLive> {
        let drained = self.backup_view(now, position).is_some_and(|view| view.drained);
        let Some(Follower { takeover: Some(takeover), .. }) = self.side.follower_mut() else {
            return Err(NotLive::NotTakingOver);
        };
        if drained {
            takeover.drained.get_or_insert(now);
        }
        self.consider_bid(now, position);
        let view = self.backup_view(now, position).ok_or(NotLive::NotTakingOver)?;
        if decide::may_go_live(view) {
            return self.take_over(now, position).ok_or(NotLive::NotTakingOver);
        }
        Err(match self.side.bid() {
            _ if !drained => NotLive::NotDrained,
            Bid::Asked => NotLive::NotGranted,
            _ => NotLive::NotTakingOver,
        })
    }

    /// Bids for the next term if the rules allow it, and did not before.
    fn consider_bid(&mut self, now: Time, position: Position) {
        let Some(view) = self.backup_view(now, position).filter(|_| self.side.bid() == Bid::None) else { return };
        if decide::may_bid(view) || (!view.drained && self.config.broken(Mutation::BidBeforeDrained)) {
            let bid = self.ask();
            if let Some(follower) = self.side.follower_mut() {
                follower.bid = bid;
            }
        }
    }

    /// The guest is ours: the log goes on as ours behind what was held of it.
    fn take_over(&mut self, now: Time, position: Position) -> Option<TakenOver> {
        let follower = self.side.follower()?;
        let (takeover, last, planned) = (follower.takeover?, follower.replay.last, follower.replay.handed_over);
        if planned {
            self.link.send(&mut self.stats, &Message::Bye(Bye::TookOver(self.next)));
        }
        self.copies.end(&Message::Bye(Bye::TookOver(self.next)));
        self.close_link(if planned { Queued::Kept } else { Queued::Dropped });
        self.enter_next_term();
        let last = if self.config.broken(Mutation::NumbersRestart) { Seq(0) } else { last };
        self.side = Side::Primary(PrimarySide::alone(SendLog::resume(last, position)));
        self.position = position;
        self.beats.next = now;
        self.stats.takeovers += 1;
        let Takeover { heard, suspected, drained } = takeover;
        Some(TakenOver { term: self.term, planned, heard, suspected, drained: drained.unwrap_or(now) })
    }

    /// What a complete backup knows; nobody else takes anything over.
    fn backup_view(&self, now: Time, position: Position) -> Option<BackupView> {
        let Follower { replay, primary_left, bid, takeover, .. } = self.side.follower()?;
        Some(BackupView {
            role: self.role(),
            primary_silent: decide::is_silent(now, self.last_heard, self.config.suspect_after)
                || (takeover.is_some() && self.config.broken(Mutation::TakeoverNotCalledOff)),
            primary_left: *primary_left,
            powered_off: replay.powered_off,
            drained: (replay.front().is_none() && position == replay.limit())
                || self.config.goes_live_undrained
                || self.config.broken(Mutation::LiveBeforeDrained),
            term_granted: *bid == Bid::Won,
        })
    }

    /// Starts to drain the log if the primary is gone.
    pub(super) fn consider_takeover(&mut self, now: Time) {
        if !self.backup_view(now, self.position).is_some_and(decide::may_drain) {
            return;
        }
        if self.config.follows_only {
            return self.halt(HaltReason::OnlyFollows);
        }
        let Some(follower) = self.side.follower_mut() else { return };
        follower.takeover = Some(Takeover { heard: self.last_heard, suspected: now, drained: None });
        follower.ack_due = None;
        self.beats.next = now;
        self.actions.push_back(Action::TakeOver { last: follower.replay.limit() });
    }

    /// The primary gave a sign of life. Draining has only executed what the log holds, so nothing is to be undone. A
    /// question to the arbiter stays open until both agree on another term.
    pub(super) fn primary_heard(&mut self, now: Time) {
        let called_off = self.backup_view(now, self.position).is_some_and(decide::may_call_off);
        let Some(follower) = self.side.follower_mut().filter(|_| called_off) else { return };
        if self.config.broken(Mutation::TakeoverNotCalledOff) {
            return;
        }
        follower.takeover = None;
        follower.ack_within(now);
        self.stats.takeovers_cancelled += 1;
        self.actions.push_back(Action::TakeOverCancelled);
        let (bid, proposed) = (follower.bid, follower.proposed);
        if decide::may_propose(Role::Backup, bid, self.next, proposed, self.link.is_up()) {
            self.propose();
        }
    }

    /// The next term is ours: takes over whatever the primary does, with the log as it is now. One that was handed over
    /// has come to its end, and who handed it over is told once we are live.
    pub(super) fn commit(&mut self, now: Time) {
        if self.side.replay().is_some_and(|replay| !replay.handed_over) {
            self.close_link(Queued::Dropped);
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
                if let Some(follower) = self.side.follower_mut() {
                    follower.primary_left = true;
                }
                self.commit(now);
            }
        }
    }

    /// The guest held here is worthless: back to the start.
    pub(super) fn abandon(&mut self, now: Time, reason: LossReason) {
        self.close_link(Queued::Dropped);
        self.withdraw();
        if self.copies.is_wanted() {
            self.copies.end(&Message::Bye(Bye::GaveUp(reason.to_string())));
        }
        self.side = Side::Backup(BackupSide::Joining);
        self.position = Position(0);
        self.beats.next = now;
        self.stats.losses += 1;
        self.begin_joining(now);
        self.actions.push_back(Action::Abandoned { reason });
    }

    pub(super) fn send_ack(&mut self) {
        let beyond = u64::from(self.config.broken(Mutation::AckBeyondReceived));
        let Some(follower) = self.side.follower_mut() else { return };
        let (received, applied) = (Seq(follower.replay.last.0 + beyond), follower.replay.applied());
        follower.ack_due = None;
        follower.acked = (applied, self.position);
        if self.link.is_up() {
            self.stats.acks_sent += 1;
            self.link.send(&mut self.stats, &Message::Ack { received, applied, position: self.position });
        }
    }
}
