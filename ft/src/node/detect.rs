//! Heartbeats, silence and everything else that time brings.

use super::{Action, BEATS, HaltReason, LossReason, Node};
use crate::decide::{self, Bid, Claim, OnClaim, Standing};
use crate::heartbeat::{Datagram, Heartbeat};
use crate::mutation::Mutation;
use crate::types::{NodeId, Role, Span, Time};

impl Node {
    /// A datagram arrived. Anything but a heartbeat of this pair is counted and forgotten.
    pub fn heartbeat_received(&mut self, now: Time, datagram: &[u8]) {
        let Ok(beat) = Heartbeat::decode(datagram) else {
            self.stats.heartbeats_malformed += 1;
            return;
        };
        if beat.pair != self.pair || beat.node == self.identity.node || self.role == Role::Halted {
            self.stats.heartbeats_ignored += 1;
            return;
        }
        if self.hear_claim(now, &beat) {
            return;
        }
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
        if self.role.is_primary() {
            self.last_heard = now;
            self.backup_said(now, &beat);
        } else {
            self.primary_said(now, &beat);
        }
    }

    /// Whether our reign is over, as another one has begun.
    fn hear_claim(&mut self, now: Time, beat: &Heartbeat) -> bool {
        let ours = Claim { term: self.term, node: self.identity.node, primary: true };
        let theirs = Claim { term: beat.term, node: beat.node, primary: beat.role.is_primary() };
        let by_twin = self.peer() == Some(beat.node) || self.config.broken(Mutation::HandOverToAnybody);
        match decide::on_claim(self.role, ours, theirs, by_twin) {
            OnClaim::Ignore => {
                if decide::is_outdated(self.role, ours, theirs) {
                    self.actions.push_back(Action::OutdatedClaim { node: beat.node, term: beat.term });
                }
                return false;
            }
            OnClaim::HandedOver => self.handed_over(now, beat.term),
            OnClaim::Yield if self.config.broken(Mutation::SupersededGoesOn) => return false,
            OnClaim::Yield => {
                self.close_link(false);
                self.halt(HaltReason::Superseded(beat.term));
            }
        }
        true
    }

    /// When we sent a heartbeat, if it is not too long ago.
    fn beat_sent(&self, counter: u64) -> Option<Time> {
        let known = counter > 0 && self.heartbeat_counter.checked_sub(counter).is_some_and(|ago| ago < BEATS as u64);
        known.then(|| self.beats_sent[(counter % BEATS as u64) as usize])
    }

    fn backup_said(&mut self, now: Time, beat: &Heartbeat) {
        let me = self.identity.node;
        if decide::is_followed(beat, me, self.session) {
            self.heard_from = self.heard_from.max(self.beat_sent(beat.echo));
        }
        let gave_up = decide::gave_up(beat, me, self.session);
        let unlinked = beat.role.is_backup() && beat.session == self.session && beat.peer == me && !beat.linked;
        match self.role {
            Role::Transferring | Role::Protected | Role::HandingOver if gave_up => {
                self.lose_backup(now, LossReason::TwinUnlinked, true);
            }
            role if unlinked && decide::needs_stream(role, self.handover_acked()) => {
                self.lose_backup(now, LossReason::TwinUnlinked, false);
            }
            Role::Detaching => self.consider_alone(now, gave_up, decide::contends(beat, me, self.session)),
            _ => {}
        }
    }

    fn primary_said(&mut self, now: Time, beat: &Heartbeat) {
        if !matches!(self.role, Role::Loading | Role::Backup | Role::Draining) {
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
        self.take_standing(
            now,
            decide::on_standing(standing, decide::is_bound(self.bid, self.proposed), self.next, beat.term),
        );
    }

    /// The next datagram to send to the twin.
    pub fn poll_datagram(&mut self, now: Time) -> Option<Datagram> {
        if !core::mem::take(&mut self.heartbeat_due) {
            return None;
        }
        self.heartbeat_counter += 1;
        self.beats_sent[(self.heartbeat_counter % BEATS as u64) as usize] = now;
        self.stats.heartbeats_sent += 1;
        let beat = Heartbeat {
            pair: self.pair,
            node: self.identity.node,
            peer: self.peer().unwrap_or(NodeId(0)),
            counter: self.heartbeat_counter,
            echo: self.peer.map_or(0, |peer| peer.counter),
            term: self.term,
            role: self.role,
            session: self.session,
            linked: self.link.is_up() && (self.paired || self.role == Role::Joining),
            seq: self.newest(),
            position: self.position,
            time: now,
        };
        Some(beat.encode())
    }

    /// Time has passed. To be called at [`Node::next_timeout`]; a node that is not ticked for long takes itself, not
    /// its twin, for the one that was away. Hand in what was received before, so that it counts.
    pub fn tick(&mut self, now: Time) {
        if self.role == Role::Halted {
            return;
        }
        // Draining takes the time it takes; only a sign of life calls a takeover off.
        let stopped = decide::was_stopped(now, self.last_tick, self.config.suspect_after);
        if self.role != Role::Draining && stopped && !self.config.broken(Mutation::OwnPauseIgnored) {
            self.stats.own_pauses += 1;
            self.last_heard = self.last_heard.max(now);
            self.link.heard = self.link.heard.max(now);
            self.send.restart_wait(now);
        }
        self.last_tick = now;
        if self.send.due().is_some_and(|due| due <= now) {
            self.flush(now);
        }
        self.tick_ack(now);
        self.tick_silence(now);
        self.tick_link(now);
        if self.next_heartbeat <= now && self.role != Role::Halted {
            self.heartbeat_due = true;
            self.next_heartbeat = now.after(self.config.heartbeat_interval);
        }
    }

    fn tick_ack(&mut self, now: Time) {
        if self.role != Role::Backup {
            return;
        }
        if self.ack_due.is_some_and(|due| due <= now) {
            self.send_ack();
        } else if (self.replay.applied(), self.position) != self.acked {
            // Also when the guest only ran on: a primary that waits for a twin that lags makes no entries.
            self.ack_within(now.after(self.config.ack_delay));
        }
    }

    fn tick_silence(&mut self, now: Time) {
        let silent = decide::is_silent(now, self.last_heard, self.config.suspect_after);
        match self.role {
            Role::Transferring | Role::Protected | Role::HandingOver if silent => {
                self.lose_backup(now, LossReason::Silent, false);
            }
            Role::Protected | Role::HandingOver if self.acks_stopped(now) => {
                self.lose_backup(now, LossReason::AcksStopped, false);
            }
            Role::Protected | Role::HandingOver if self.stands_still(now) => {
                self.lose_backup(now, LossReason::StandsStill, false);
            }
            Role::Detaching => self.consider_alone(now, false, false),
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
        self.send.standing_since().filter(|_| !unseen).map(|since| since.after(self.config.ack_timeout))
    }

    fn acks_deadline(&self) -> Option<Time> {
        let unseen = self.config.broken(Mutation::AcksNotMissed);
        self.send.waiting_since().filter(|_| !unseen).map(|since| since.after(self.config.ack_timeout))
    }

    /// A stream on which nobody says a proper Hello is closed.
    fn tick_link(&mut self, now: Time) {
        let waiting = !self.paired || self.role == Role::Joining;
        if waiting && self.link.is_up() && now.since(self.link.heard) >= self.config.suspect_after {
            self.close_link(false);
        }
    }

    /// When [`Node::tick`] must be called next; `None` when never.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Time> {
        if self.role == Role::Halted {
            return None;
        }
        let after = |time: Time, span: Span| Some(time.after(span));
        let suspect = self.config.suspect_after;
        let in_session = match self.role {
            Role::Transferring | Role::Protected | Role::HandingOver | Role::Loading => true,
            // Behind these the caller and the arbiter are awaited, not the clock.
            Role::Detaching => self.bid == Bid::None,
            Role::Backup => !self.replay.powered_off,
            _ => false,
        };
        let candidates = [
            Some(self.next_heartbeat),
            self.send.due(),
            // One that drains its log acks no more.
            if self.role == Role::Backup { self.ack_due } else { None },
            if in_session { after(self.last_heard, suspect) } else { None },
            if self.link.is_up() && !self.paired { after(self.link.heard, suspect) } else { None },
            if matches!(self.role, Role::Protected | Role::HandingOver) { self.acks_deadline() } else { None },
            if matches!(self.role, Role::Protected | Role::HandingOver) { self.progress_deadline() } else { None },
        ];
        candidates.into_iter().flatten().min()
    }
}
