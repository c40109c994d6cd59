//! Bytes and messages from the stream.

use super::keys::FORGOTTEN;
use super::side::{BackupSide, PrimarySide, Side};
use super::{Action, HaltReason, LossReason, Node, Peer};
use crate::decide::{self, Bid, JoinVerdict, LastWord};
use crate::disk;
use crate::handshake::Stranger;
use crate::link::Queued;
use crate::message::{Bye, Hello, MAX_MACHINE, Message, Retry};
use crate::mutation::Mutation;
use crate::pairing::{self, Mismatch, PROTOCOL};
use crate::replay_log::{BatchError, ReplayLog};
use crate::seal::SealError;
use crate::types::{Role, SessionId, Term, Time};
use alloc::boxed::Box;
use alloc::string::{String, ToString};

/// What state that waits for the caller counts beyond its data.
const LOAD_COST: usize = size_of::<Action>();

/// Bytes of the load buffer that an action takes.
pub(super) fn load_cost(action: &Action) -> usize {
    match action {
        Action::LoadMemory { data, .. } | Action::LoadMachine(data) => data.len() + LOAD_COST,
        Action::LoadZero { .. } => LOAD_COST,
        _ => 0,
    }
}

/// Why a message cannot be taken; the counters tell these apart.
enum Refusal {
    Content,
    Order,
    Unexpected,
}

impl Node {
    /// How many bytes may be given to [`Node::receive`]. 0 while buffers are full: leave them in the stream, whose
    /// window then closes.
    #[must_use]
    pub fn receive_room(&self) -> usize {
        let limit = self.config.receive_buffer_bytes;
        let waits = self.side.replay().map_or(0, ReplayLog::bytes).max(self.load_bytes);
        if waits >= limit { 0 } else { self.link.receive_room() }
    }

    /// Takes bytes of the stream and returns how many: all of them when they fit [`Node::receive_room`].
    pub fn receive(&mut self, now: Time, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.receive_room());
        self.stats.stream_received += taken as u64;
        let greeting = self.take_greeting(now, &bytes[..taken]);
        let mut rx = core::mem::take(&mut self.link.rx);
        rx.extend_from_slice(&bytes[greeting..taken]);
        let mut used = 0;
        while self.link.is_up() {
            match self.link.opener().open(&mut rx[used..]) {
                Ok(None) => break,
                Ok(Some(message)) => {
                    used += message.used;
                    self.stats.messages_received += 1;
                    self.link.heard = now;
                    self.take_payload(now, message.kind, message.payload);
                    self.check();
                }
                Err(error @ SealError::Greeting) => self.meet_stranger(now, error.to_string()),
                Err(_) => {
                    self.stats.refused_seal += 1;
                    self.break_link(now);
                }
            }
        }
        if self.link.is_up() {
            rx.drain(..used);
            self.link.rx = rx;
        }
        taken
    }

    /// Takes what comes before the first message; returns how many bytes.
    fn take_greeting(&mut self, now: Time, bytes: &[u8]) -> usize {
        match self.link.greet(bytes) {
            Ok(0) => 0,
            Ok(taken) if self.has_links_key() => {
                self.begin_stream();
                taken
            }
            Ok(_) => {
                self.meet_stranger(now, FORGOTTEN.to_string());
                bytes.len()
            }
            Err(stranger) => {
                if matches!(stranger, Stranger::Key(..)) {
                    // At the twin's address.
                    self.machine_heard(now);
                }
                self.meet_stranger(now, stranger.to_string());
                bytes.len()
            }
        }
    }

    /// The other end is none of this pair's. Anybody can say what told us so: we go on looking for the twin.
    pub(super) fn meet_stranger(&mut self, now: Time, reason: String) {
        self.stats.refused_handshakes += 1;
        // Dropped with a key: nothing is said to strangers.
        self.link.send(&mut self.stats, &Message::Refuse { retry: Retry::Later, reason: reason.clone() });
        self.close_link(Queued::Kept);
        self.refused(reason.clone(), Retry::Later);
        self.link_lost(now, LossReason::Refused(reason));
    }

    fn break_link(&mut self, now: Time) {
        self.close_link(Queued::Dropped);
        self.link_lost(now, LossReason::Protocol);
    }

    fn take_payload(&mut self, now: Time, kind: u8, payload: &[u8]) {
        if self.link.is_paired() {
            self.last_heard = now;
            self.primary_heard(now);
        }
        let result = match Message::decode(kind, payload) {
            Ok(message) => {
                let part = message.is_of_a_recording();
                let taken = self.take_message(now, message);
                if part && taken.is_ok() {
                    self.copy(kind, payload);
                }
                taken
            }
            Err(_) => Err(Refusal::Content),
        };
        let Err(refusal) = result else { return };
        match refusal {
            Refusal::Content => self.stats.refused_content += 1,
            Refusal::Order => self.stats.refused_order += 1,
            Refusal::Unexpected => self.stats.refused_unexpected += 1,
        }
        self.break_link(now);
    }

    fn take_message(&mut self, now: Time, message: Message<'_>) -> Result<(), Refusal> {
        match message {
            Message::Hello(hello) if !self.link.is_paired() => self.take_hello(now, hello),
            Message::Refuse { retry, reason } => self.take_refusal(now, retry, reason),
            _ if !self.link.is_paired() => return Err(Refusal::Unexpected),
            Message::StateBegin { .. } | Message::StateEnd { .. } => return self.take_state(now, message),
            Message::Memory { .. } | Message::Zero { .. } | Message::Machine(_) => {
                return self.take_state(now, message);
            }
            Message::Joined(session)
                if self.role() == Role::Transferring && self.side.primary().is_some_and(PrimarySide::state_left) =>
            {
                if session != self.session && !self.config.broken(Mutation::JoinedOfAnySession) {
                    return Err(Refusal::Unexpected);
                }
                self.backup_joined(now);
            }
            Message::Entries(payload) => return self.take_entries(now, payload),
            Message::Ack { received, applied, position }
                if matches!(self.role(), Role::Protected | Role::HandingOver) =>
            {
                if !self.take_ack(now, received, applied, position) {
                    return Err(Refusal::Order);
                }
            }
            Message::Bye(bye) => return self.take_bye(now, bye),
            Message::Arbiter(arbiter) => self.twins_arbiter(arbiter),
            Message::BidFor(term) => {
                if !self.take_bid_for(term) {
                    return Err(Refusal::Unexpected);
                }
            }
            _ => return Err(Refusal::Unexpected),
        }
        Ok(())
    }

    /// A message of the primary's was taken, which a recorder wants to have.
    fn copy(&mut self, kind: u8, payload: &[u8]) {
        if !self.copies.is_wanted() {
            return;
        }
        if kind == Message::STATE_BEGIN {
            let hello = self.hello(true);
            self.copies.begin(&hello);
        }
        self.copies.add(kind, payload);
    }

    fn hello(&self, joining: bool) -> Message<'static> {
        let claim = Box::new(self.claim());
        Message::Hello(Hello::Known { joining, term: self.term, beats: self.beats.counter, claim })
    }

    pub(super) fn send_hello(&mut self, joining: bool) {
        let hello = self.hello(joining);
        self.link.send(&mut self.stats, &hello);
    }

    fn take_hello(&mut self, now: Time, hello: Hello) {
        self.machine_heard(now);
        let (joining, term, beats, theirs) = match hello {
            Hello::Known { joining, term, beats, claim } => (joining, term, beats, claim),
            Hello::OtherVersion(version) => {
                return self.refuse(&Mismatch::Protocol(PROTOCOL, version).to_string(), Retry::Never);
            }
        };
        if let Err(mismatch) = pairing::check(&self.claim(), &theirs)
            && !self.config.broken(Mutation::PairingSkipped)
        {
            let (us, them) = if self.role() == Role::Joining { ("backup", "primary") } else { ("primary", "backup") };
            return self.refuse(&alloc::format!("{mismatch} ({us} first, then {them})"), Retry::Never);
        }
        let peer = Peer { node: theirs.identity.node, counter: beats, arbiter: theirs.arbiter };
        match (self.role() == Role::Joining, joining) {
            (true, true) => self.refuse("both machines want to be the backup", Retry::Later),
            (true, false) if term < self.term => self.refuse("the primary's reign is over", Retry::Later),
            (true, false) => {
                self.meet(peer);
                // The new session has no number yet, and the old one is of no interest to this primary.
                self.session = SessionId(0);
                self.link.pair();
            }
            (false, false) => self.refuse("both machines are primaries", Retry::Never),
            (false, true) => self.take_joiner(now, term, peer),
        }
    }

    /// A session begins with this twin. What we heard of it already says nothing again.
    fn meet(&mut self, twin: Peer) {
        let under = self.keys().iter().position(|key| *key == self.link.key()).unwrap_or(0);
        let counter = self.lives.meet(twin.node, under, twin.counter);
        self.peer = Some(Peer { counter, ..twin });
    }

    fn take_joiner(&mut self, now: Time, term: Term, joiner: Peer) {
        // It may never have heard of the session that it was to join; that it wants to join again says all the same
        // that it is no backup, and the stream by which it could have become one is gone.
        let word = if self.peer() == Some(joiner.node) { LastWord::GaveUp } else { LastWord::None };
        let verdict = match decide::on_join(self.role(), self.term, term, word) {
            JoinVerdict::Busy if self.config.broken(Mutation::JoinWhileBusy) => JoinVerdict::Begin,
            JoinVerdict::Outdated if self.config.broken(Mutation::NewerJoinerAccepted) => JoinVerdict::Begin,
            verdict => verdict,
        };
        match verdict {
            JoinVerdict::Begin => {
                if self.side.primary().is_some_and(|primary| primary.power_off.is_some()) {
                    self.refuse("the guest powered off", Retry::Never);
                }
                if self.role() == Role::Detaching {
                    self.go_alone(now, Bid::None);
                }
                if self.role() == Role::Halted {
                    return;
                }
                self.meet(joiner);
                self.link.pair();
                self.send_hello(false);
                self.begin_transfer(now);
            }
            JoinVerdict::Busy => self.refuse("the primary has a backup, or waits for its former one", Retry::Later),
            JoinVerdict::NotPrimary => self.refuse("this machine is not a primary", Retry::Later),
            JoinVerdict::Outdated => {
                self.refuse("the backup belonged to a newer reign than this primary's", Retry::Later);
                self.withdraw();
                self.beaten(now, HaltReason::Superseded(term));
            }
        }
    }

    fn refuse(&mut self, reason: &str, retry: Retry) {
        self.link.send(&mut self.stats, &Message::Refuse { retry, reason: reason.to_string() });
        self.close_link(Queued::Kept);
        self.refused(reason.to_string(), retry);
    }

    fn take_refusal(&mut self, now: Time, retry: Retry, reason: String) {
        self.machine_heard(now);
        self.close_link(Queued::Dropped);
        let loss = LossReason::Refused(reason.clone());
        self.refused(reason, retry);
        match self.role() {
            // Whoever refuses the pairing follows nobody.
            Role::Transferring => self.lose_backup(now, loss, LastWord::GaveUp),
            _ => self.link_lost(now, loss),
        }
    }

    /// The machines do not pair. One that has the guest goes on; one that looks for it has nobody left to ask.
    fn refused(&mut self, reason: String, retry: Retry) {
        self.stats.refused_pairings += 1;
        self.actions.push_back(Action::Refused { reason: reason.clone(), retry });
        if retry == Retry::Never && !self.role().is_primary() {
            self.halt(HaltReason::Refused(reason));
        }
    }

    fn take_state(&mut self, now: Time, message: Message<'_>) -> Result<(), Refusal> {
        let Side::Backup(backup) = &mut self.side else { return Err(Refusal::Unexpected) };
        match (backup, message) {
            (BackupSide::Joining, Message::StateBegin { session, term, next }) => {
                if !decide::may_follow(self.term, term, next) || session == SessionId(0) {
                    return Err(Refusal::Order);
                }
                self.creation.has_guest();
                self.side = Side::Backup(BackupSide::Loading { machine_bytes: 0 });
                (self.session, self.term, self.next) = (session, term, next);
                self.beats.next = now;
                self.actions.push_back(Action::BeginLoad);
            }
            (BackupSide::Loading { .. }, Message::Memory { gpa, data }) => {
                self.check_range(gpa, data.len() as u64)?;
                self.load(Action::LoadMemory { gpa, data: data.to_vec() });
            }
            (BackupSide::Loading { .. }, Message::Zero { gpa, len }) => {
                self.check_range(gpa, len)?;
                self.load(Action::LoadZero { gpa, len });
            }
            (BackupSide::Loading { machine_bytes }, Message::Machine(data)) => {
                *machine_bytes += data.len();
                if *machine_bytes > MAX_MACHINE {
                    return Err(Refusal::Content);
                }
                self.load(Action::LoadMachine(data.to_vec()));
            }
            (BackupSide::Loading { .. }, Message::StateEnd { position, seq, digest }) => {
                self.side = Side::Backup(BackupSide::Loaded(ReplayLog::resume(seq, position)));
                self.position = position;
                self.actions.push_back(Action::StateLoaded { position, digest });
            }
            _ => return Err(Refusal::Unexpected),
        }
        Ok(())
    }

    fn check_range(&self, gpa: u64, len: u64) -> Result<(), Refusal> {
        let end = gpa.checked_add(len).ok_or(Refusal::Content)?;
        // How much there is behind, whoever has the drive knows.
        if end <= self.identity.guest_memory || gpa >= disk::ADDRESS { Ok(()) } else { Err(Refusal::Content) }
    }

    fn load(&mut self, action: Action) {
        self.load_bytes += load_cost(&action);
        self.actions.push_back(action);
    }

    fn take_entries(&mut self, now: Time, payload: &[u8]) -> Result<(), Refusal> {
        let acks = decide::may_ack(self.role());
        let Some(replay) = self.side.replay_mut() else { return Err(Refusal::Unexpected) };
        let taken = replay.receive(&self.config, payload).map_err(|error| match error {
            BatchError::Content(_) => Refusal::Content,
            BatchError::Order => Refusal::Order,
        })?;
        let handed_over = replay.handed_over;
        self.stats.received_entries += taken.entries;
        // While loading nothing is acked: a backup that cannot take over yet holds nothing.
        if let Some(follower) = self.side.follower_mut().filter(|_| acks) {
            if taken.urgent {
                self.send_ack();
            } else {
                follower.ack_within(now.after(self.config.ack_delay));
            }
        }
        if handed_over {
            self.take_over_in_order(now);
        }
        Ok(())
    }

    fn take_bye(&mut self, now: Time, bye: Bye) -> Result<(), Refusal> {
        match (self.role(), bye) {
            (role, Bye::TookOver(term)) => {
                if !decide::may_have_taken_over(role, self.next, term, self.handover_acked()) {
                    return Err(Refusal::Unexpected);
                }
                self.handed_over(now, term);
            }
            (Role::Transferring | Role::Protected | Role::HandingOver, bye) => {
                let reason = match bye {
                    Bye::Leaving => LossReason::Left,
                    Bye::Diverged(what) => LossReason::Diverged(what),
                    Bye::GaveUp(why) => LossReason::GaveUp(why),
                    Bye::TookOver(_) => unreachable!("taken above"),
                };
                self.lose_backup(now, reason, LastWord::GaveUp);
            }
            (Role::Backup, Bye::Leaving) => {
                self.close_link(Queued::Dropped);
                self.take_over_in_order(now);
            }
            (Role::Loading | Role::Joining, Bye::Leaving) => {
                self.close_link(Queued::Dropped);
                self.link_lost(now, LossReason::Left);
            }
            _ => return Err(Refusal::Unexpected),
        }
        Ok(())
    }
}
