//! Heartbeats, silence and everything else that time brings.

use super::lives::Freshness;
use super::{Action, HaltReason, LossReason, Node};
use crate::decide::{self, Bid, Claim, LastWord, OnClaim, Standing};
use crate::heartbeat::{Datagram, Heartbeat};
use crate::link::Queued;
use crate::mutation::Mutation;
use crate::types::{NodeId, Role, Span, Time};
use crate::wire::DecodeError;

/// Heartbeats whose time of sending is kept: longer than it takes to suspect the twin, also while there are two keys.
const BEATS: usize = 128;

/// Our own heartbeats.
#[derive(Debug)]
pub(super) struct Beats {
    /// When the next one is due.
    pub(super) next: Time,
    /// One is to be sent now.
    pub(super) due: bool,
    /// Under so many keys the one that was due has yet to be said.
    left: usize,
    /// How many were made.
    pub(super) counter: u64,
    /// When the newest of them were sent, by counter.
    sent: [Time; BEATS],
}

impl Beats {
    pub(super) fn new(now: Time) -> Self {
        Self { next: now, due: false, left: 0, counter: 0, sent: [now; BEATS] }
    }

    /// Under which of so many keys one is to be sent, which counts as sent now. Each has a number of its own.
    fn take(&mut self, now: Time, keys: usize) -> Option<usize> {
        if core::mem::take(&mut self.due) {
            self.left = keys;
        }
        let under = self.left.min(keys).checked_sub(1)?;
        self.left = under;
        self.counter += 1;
        self.sent[(self.counter % BEATS as u64) as usize] = now;
        Some(under)
    }

    /// Nothing more is said.
    pub(super) fn end(&mut self) {
        (self.due, self.left) = (false, 0);
    }

    /// Whether anything is to be said now.
    pub(super) fn is_due(&self) -> bool {
        self.due || self.left > 0
    }

    /// When one was sent, if it is not too long ago.
    fn sent_at(&self, counter: u64) -> Option<Time> {
        let known = counter > 0 && self.counter.checked_sub(counter).is_some_and(|ago| ago < BEATS as u64);
        known.then(|| self.sent[(counter % BEATS as u64) as usize])
    }
}

impl Node {
    /// A datagram arrived. Anything but a heartbeat that a machine of this pair made just now is counted and forgotten.
    pub fn heartbeat_received(&mut self, now: Time, datagram: &[u8]) {
        self.hear(now, datagram);
        self.check();
    }

    fn hear(&mut self, now: Time, datagram: &[u8]) {
        let mut under = None;
        let open = |number, head: &[u8], body: &mut [u8], tag: &_| {
            under = self.config.protection.open(number, head, body, tag);
            under.is_some() || self.config.broken(Mutation::TagNotChecked)
        };
        let beat = match Heartbeat::read(datagram, open) {
            Ok(beat) => beat,
            Err(why) => {
                if why == DecodeError::Tag && !self.config.broken(Mutation::OtherKeyUnheard) {
                    // It may be our twin's, which has a key that we do not have.
                    self.machine_heard(now);
                }
                self.stats.heartbeats_malformed += 1;
                return;
            }
        };
        if beat.pair != self.pair || beat.node == self.identity.node || self.role() == Role::Halted {
            self.stats.heartbeats_ignored += 1;
            return;
        }
        let under = under.unwrap_or(0);
        match self.freshness(&beat, under) {
            Freshness::Fresh => self.lives.show(beat.node, under, now),
            Freshness::Shows => {
                self.lives.show(beat.node, under, now);
                self.stats.heartbeats_late += 1;
                return;
            }
            Freshness::Unanswered => {
                self.machine_heard(now);
                self.stats.heartbeats_unanswered += 1;
                return;
            }
            Freshness::Late => {
                self.stats.heartbeats_late += 1;
                return;
            }
        }
        if self.hear_claim(now, &beat) {
            return;
        }
        self.machine_heard(now);
        self.hear_word(now, &beat);
        match &mut self.peer {
            Some(_) if self.config.broken(Mutation::AnyHeartbeatCounts) => {}
            Some(peer)
                if peer.node == beat.node
                    && (beat.counter > peer.counter || self.config.broken(Mutation::OldHeartbeatCounts)) =>
            {
                peer.counter = beat.counter;
            }
            _ => {
                self.stats.heartbeats_ignored += 1;
                return;
            }
        }
        self.stats.heartbeats_received += 1;
        if self.role().is_primary() {
            self.last_heard = now;
            self.backup_said(now, &beat);
        } else {
            self.primary_said(now, &beat);
        }
    }

    fn freshness(&mut self, beat: &Heartbeat, under: usize) -> Freshness {
        let [any_names, any_number] =
            [Mutation::EchoNotCompared, Mutation::OldHeartbeatCounts].map(|rule| self.config.broken(rule));
        self.lives.hear(beat, under, self.identity.node, any_names, any_number)
    }

    /// Whether our reign is over, as another one has begun.
    fn hear_claim(&mut self, now: Time, beat: &Heartbeat) -> bool {
        let ours = Claim { term: self.term, node: self.identity.node, primary: true };
        let theirs = Claim { term: beat.term, node: beat.node, primary: beat.role.is_primary() };
        let by_twin = self.peer() == Some(beat.node) || self.config.broken(Mutation::HandOverToAnybody);
        match decide::on_claim(self.role(), ours, theirs, by_twin) {
            OnClaim::Ignore => {
                if decide::is_outdated(self.role(), ours, theirs) {
                    self.actions.push_back(Action::OutdatedClaim { node: beat.node, term: beat.term });
                }
                return false;
            }
            OnClaim::HandedOver => self.handed_over(now, beat.term),
            OnClaim::Yield if self.config.broken(Mutation::SupersededGoesOn) => return false,
            OnClaim::Yield => {
                self.close_link(Queued::Dropped);
                self.withdraw();
                self.beaten(now, HaltReason::Superseded(beat.term));
            }
        }
        true
    }

    fn backup_said(&mut self, now: Time, beat: &Heartbeat) {
        let me = self.identity.node;
        if decide::is_followed(beat, me, self.session)
            && let (Some(primary), Some(sent)) = (self.side.primary_mut(), self.beats.sent_at(beat.echo))
        {
            primary.log.is_heard(sent);
        }
        let word = decide::last_word(beat, me, self.session);
        let unlinked = beat.role.is_backup() && beat.session == self.session && beat.peer == me && !beat.linked;
        match self.role() {
            Role::Transferring | Role::Protected | Role::HandingOver if word == LastWord::GaveUp => {
                self.lose_backup(now, LossReason::TwinUnlinked, word);
            }
            role if unlinked && decide::needs_stream(role, self.handover_acked()) => {
                self.lose_backup(now, LossReason::TwinUnlinked, LastWord::None);
            }
            Role::Detaching => self.consider_alone(now, word),
            _ => {}
        }
    }

    fn primary_said(&mut self, now: Time, beat: &Heartbeat) {
        if !matches!(self.role(), Role::Loading | Role::Backup | Role::Draining) {
            return;
        }
        let old = self.config.broken(Mutation::OldSessionDrops);
        let session = if old { self.session.min(beat.session) } else { self.session };
        let standing = decide::standing(beat, self.identity.node, self.term, session);
        if standing == Standing::Unknown {
            // It says nothing of our primary, not even that it lives: a takeover must not wait for it.
            return;
        }
        self.last_heard = now;
        let proposed = self.side.follower().and_then(|follower| follower.proposed);
        let bound = decide::is_bound(self.side.bid(), proposed);
        self.take_standing(now, decide::on_standing(standing, bound, self.next, beat.term));
    }

    /// The next datagram to send to the twin; ask again until there is none.
    pub fn poll_datagram(&mut self, now: Time) -> Option<Datagram> {
        // A twin may have either key alone: it must hear no silence.
        let keys = if self.config.broken(Mutation::OldKeyFallsSilent) { 1 } else { self.config.protection.count() };
        let under = self.beats.take(now, keys)?;
        self.stats.heartbeats_sent += 1;
        let beat = Heartbeat {
            pair: self.pair,
            node: self.identity.node,
            peer: self.peer().unwrap_or(NodeId(0)),
            counter: self.beats.counter,
            heard: self.lives.names(),
            echo: self.peer.map_or(0, |peer| peer.counter),
            answers: self.lives.answers(),
            creator: self.creator(),
            term: self.term,
            role: self.role(),
            session: self.session,
            linked: self.greeted(),
            seq: self.newest(),
            position: self.position,
            time: now,
        };
        Some(beat.encode_under(under, &self.config.protection))
    }

    /// Time has passed. To be called at [`Node::next_timeout`]; a node that is not ticked for long takes itself, not
    /// its twin, for the one that was away. Hand in what was received before, so that it counts.
    pub fn tick(&mut self, now: Time) {
        if self.role() == Role::Halted {
            return;
        }
        // Draining takes the time it takes; only a sign of life calls a takeover off.
        let stopped = decide::was_stopped(now, self.last_tick, self.config.suspect_after);
        if self.role() != Role::Draining && stopped && !self.config.broken(Mutation::OwnPauseIgnored) {
            self.stats.own_pauses += 1;
            self.last_heard = self.last_heard.max(now);
            self.link.heard = self.link.heard.max(now);
            if let Some(primary) = self.side.primary_mut() {
                primary.log.restart_wait(now);
            }
        }
        self.last_tick = now;
        if self.log_due().is_some_and(|due| due <= now) {
            self.flush(now);
        }
        self.tick_ack(now);
        self.tick_silence(now);
        self.tick_link(now);
        self.tick_creation(now, stopped);
        if self.beats.next <= now && self.role() != Role::Halted {
            self.beats.due = true;
            self.beats.next = now.after(self.config.heartbeat_interval);
        }
        self.check();
    }

    fn tick_ack(&mut self, now: Time) {
        // One that drains its log acks no more.
        let Some(follower) = self.side.follower_mut().filter(|follower| follower.takeover.is_none()) else { return };
        if follower.ack_due.is_some_and(|due| due <= now) {
            self.send_ack();
        } else if (follower.replay.applied(), self.position) != follower.acked {
            // Also when the guest only ran on: a primary that waits for a twin that lags makes no entries.
            follower.ack_within(now.after(self.config.ack_delay));
        }
    }

    /// When the entries that wait must be sent.
    fn log_due(&self) -> Option<Time> {
        self.side.primary().and_then(|primary| primary.log.due())
    }

    /// Whether what we are was said on the stream that is up: a joiner speaks first.
    pub(super) fn greeted(&self) -> bool {
        self.link.is_paired() || (self.link.is_up() && self.role() == Role::Joining)
    }

    fn tick_silence(&mut self, now: Time) {
        let silent = decide::is_silent(now, self.last_heard, self.config.suspect_after);
        match self.role() {
            Role::Transferring | Role::Protected | Role::HandingOver if silent => {
                self.lose_backup(now, LossReason::Silent, LastWord::None);
            }
            Role::Protected | Role::HandingOver if self.acks_stopped(now) => {
                self.lose_backup(now, LossReason::AcksStopped, LastWord::None);
            }
            Role::Protected | Role::HandingOver if self.stands_still(now) => {
                self.lose_backup(now, LossReason::StandsStill, LastWord::None);
            }
            Role::Detaching => self.consider_alone(now, LastWord::None),
            Role::Loading if silent => self.abandon(now, LossReason::Silent),
            Role::Backup => self.consider_takeover(now),
            _ => {}
        }
    }

    fn acks_stopped(&self, now: Time) -> bool {
        self.acks_deadline().is_some_and(|deadline| deadline <= now)
    }

    /// The twin says all the time that it has what we sent, and its guest makes nothing of it.
    fn stands_still(&self, now: Time) -> bool {
        self.progress_deadline().is_some_and(|deadline| deadline <= now)
    }

    fn progress_deadline(&self) -> Option<Time> {
        let unseen = self.config.broken(Mutation::StandsStillUnseen) || self.config.broken(Mutation::AcksNotMissed);
        self.side.primary()?.log.standing_since().filter(|_| !unseen).map(|since| since.after(self.config.ack_timeout))
    }

    fn acks_deadline(&self) -> Option<Time> {
        let unseen = self.config.broken(Mutation::AcksNotMissed);
        self.side.primary()?.log.waiting_since().filter(|_| !unseen).map(|since| since.after(self.config.ack_timeout))
    }

    /// A stream on which nobody says a proper Hello is closed.
    fn tick_link(&mut self, now: Time) {
        let waiting = !self.link.is_paired() || self.role() == Role::Joining;
        if waiting && self.link.is_open() && now.since(self.link.heard) >= self.config.suspect_after {
            self.close_link(Queued::Dropped);
        }
    }

    /// When [`Node::tick`] must be called next; `None` when never.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Time> {
        if self.role() == Role::Halted {
            return None;
        }
        let after = |time: Time, span: Span| Some(time.after(span));
        let suspect = self.config.suspect_after;
        let in_session = match self.role() {
            Role::Transferring | Role::Protected | Role::HandingOver | Role::Loading => true,
            // Behind these the caller and the arbiter are awaited, not the clock.
            Role::Detaching => self.side.bid() == Bid::None,
            Role::Backup => self.side.replay().is_some_and(|replay| !replay.powered_off),
            _ => false,
        };
        let candidates = [
            Some(self.beats.next),
            self.log_due(),
            self.side.follower().filter(|follower| follower.takeover.is_none()).and_then(|follower| follower.ack_due),
            if in_session { after(self.last_heard, suspect) } else { None },
            if self.link.is_open() && !self.link.is_paired() { after(self.link.heard, suspect) } else { None },
            if matches!(self.role(), Role::Protected | Role::HandingOver) { self.acks_deadline() } else { None },
            if matches!(self.role(), Role::Protected | Role::HandingOver) { self.progress_deadline() } else { None },
        ];
        candidates.into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_heartbeat_was_sent_is_known_for_a_while() {
        let mut beats = Beats::new(Time(0));
        assert_eq!(beats.sent_at(0), None, "there was none");
        for counter in 1..=200 {
            beats.due = true;
            assert_eq!(beats.take(Time(counter * 10), 1), Some(0));
            assert_eq!((beats.sent_at(counter), beats.sent_at(counter + 1)), (Some(Time(counter * 10)), None));
            let oldest = counter.saturating_sub(BEATS as u64 - 1).max(1);
            assert_eq!(beats.sent_at(oldest), Some(Time(oldest * 10)), "at {counter}");
            assert_eq!(beats.sent_at(oldest - 1), None, "at {counter}: its place is another one's");
        }
        assert_eq!(beats.take(Time(0), 1), None, "none is due");
    }

    #[test]
    fn what_is_due_is_said_under_each_key_by_a_number_of_its_own() {
        let mut beats = Beats::new(Time(0));
        beats.due = true;
        let mut take = |keys| (beats.take(Time(1), keys), beats.counter);
        assert_eq!([take(2), take(2), take(2)], [(Some(1), 1), (Some(0), 2), (None, 2)]);
        // One was forgotten in between.
        beats.due = true;
        assert_eq!(beats.take(Time(1), 2), Some(1));
        assert_eq!((beats.take(Time(1), 1), beats.take(Time(1), 1)), (Some(0), None));
        beats.due = true;
        beats.end();
        assert!(!beats.is_due() && beats.take(Time(1), 2).is_none());
    }
}
