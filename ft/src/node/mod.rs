//! One machine of the pair.
//!
//! Inputs are method calls that carry the time; afterwards drain the outputs: [`Node::transmit`],
//! [`Node::poll_datagram`], [`Node::poll_action`], and call [`Node::tick`] again at [`Node::next_timeout`].
//!
//! After going live a backup is a primary like the one started first: the same node takes the next joiner.

mod action;
mod arbiter;
mod backup;
mod creation;
mod detect;
mod keys;
mod lives;
mod primary;
mod side;
mod stream;
mod switch_over;
mod term;

pub use action::{Action, AppendError, HaltReason, LossReason, NotLive, TakenOver};
pub use creation::WaitsFor;

use self::lives::Lives;
use crate::arbiter::ArbiterId;
use crate::config::Config;
use crate::decide::{self, Bid};
use crate::handshake::{End, Handshake, Meeting};
use crate::heartbeat::pair_digest;
use crate::link::{Link, LinkState, Queued};
use crate::message::{Bye, Message};
use crate::mutation::Mutation;
use crate::pairing::Identity;
use crate::record::Copies;
use crate::stats::Stats;
use crate::types::{NodeId, Position, Role, Seq, SessionId, Term, Time};
use alloc::collections::VecDeque;
use alloc::string::ToString;
use creation::Creation;
use detect::Beats;
use side::{BackupSide, Follower, Phase, PrimarySide, Side};

/// How a machine starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It runs the guest from the beginning.
    Primary,
    /// It waits for a primary's state.
    Backup,
    /// It joins a primary if there is one, and creates the guest if there is none: see [`decide::Stance`]. The caller has
    /// a guest that never ran.
    Auto,
}

/// The twin of the current session, or of the last one.
#[derive(Debug, Clone, Copy)]
struct Peer {
    node: NodeId,
    /// Counter of the newest heartbeat taken, or sent before we paired: older ones say nothing.
    counter: u64,
    /// The arbiter that answers it, as far as it has said so.
    arbiter: Option<ArbiterId>,
}

/// One machine of the pair; see the [module](self).
#[derive(Debug)]
pub struct Node {
    config: Config,
    identity: Identity,
    pair: u64,
    /// What it is, with all that only one side has.
    side: Side,
    term: Term,
    /// The term that the machines of this session bid for.
    next: Term,
    session: SessionId,
    peer: Option<Peer>,
    /// The arbiter that answers us, as far as we know.
    arbiter: Option<ArbiterId>,
    /// How far the guest has run here.
    position: Position,
    link: Link,
    last_tick: Time,
    last_heard: Time,
    beats: Beats,
    /// Whose heartbeats are made now, and which of them were taken.
    lives: Lives,
    creation: Creation,
    /// Bytes of state in `actions`.
    load_bytes: usize,
    actions: VecDeque<Action>,
    /// What is to be recorded.
    copies: Copies,
    stats: Stats,
}

impl Node {
    /// A node that was just started at `now`.
    ///
    /// `identity.node` must be another one at every start of a machine, and none that can be guessed: it tells a machine from
    /// its former life, and what is said to it from what was said to that one.
    ///
    /// # Errors
    /// When the configuration makes no sense, see [`Config::check`], or a name is too long.
    pub fn new(now: Time, start: Start, config: Config, mut identity: Identity) -> Result<Self, &'static str> {
        config.check()?;
        identity.shorten()?;
        let (side, next) = match start {
            Start::Primary => (Side::Primary(PrimarySide::starting()), config.first_term),
            Start::Backup | Start::Auto => (Side::Backup(BackupSide::Joining), Term(0)),
        };
        let copies = Copies::new(config.record_bytes);
        let mut node = Self {
            copies,
            pair: pair_digest(&identity.pair),
            config,
            identity,
            side,
            term: Term(0),
            next,
            session: SessionId(0),
            peer: None,
            arbiter: None,
            position: Position(0),
            link: Link::down(),
            last_tick: now,
            last_heard: now,
            beats: Beats::new(now),
            lives: Lives::default(),
            creation: Creation::new(now, start == Start::Auto),
            load_bytes: 0,
            actions: VecDeque::new(),
            stats: Stats::default(),
        };
        if start == Start::Primary && node.ask() == Bid::Won {
            node.begin_reign(now);
        }
        Ok(node)
    }

    /// What this node is.
    #[must_use]
    pub fn role(&self) -> Role {
        self.side.role()
    }

    /// The reign this node belongs to.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// The term that the machines of this session bid for when they lose each other.
    #[must_use]
    pub fn next_term(&self) -> Term {
        self.next
    }

    /// The session this node is in, or the last one.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The twin of the current or the last session.
    #[must_use]
    pub fn peer(&self) -> Option<NodeId> {
        self.peer.map(|peer| peer.node)
    }

    /// Whether what the machines say is protected against people.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.config.protection.is_secure()
    }

    /// The newest log entry that this node appended (primary) or holds (backup).
    #[must_use]
    pub fn newest(&self) -> Seq {
        match &self.side {
            Side::Primary(primary) => primary.log.last,
            side => side.replay().map_or(Seq(0), |replay| replay.last),
        }
    }

    /// What must hold between any two inputs, whatever they were; for tests and simulations, which ask after each.
    ///
    /// # Errors
    /// Says what does not hold.
    pub fn invariants(&self) -> Result<(), &'static str> {
        let role = self.role();
        let in_session = matches!(role, Role::Transferring | Role::Protected | Role::Detaching | Role::HandingOver);
        let has_twin = matches!(role, Role::Joining | Role::Loading | Role::Backup | Role::Draining)
            || (in_session && role != Role::Detaching);
        let unsent = match self.side.primary().map(|primary| &primary.phase) {
            Some(Phase::Sent { unsent }) => *unsent,
            _ => 0,
        };
        let rules = [
            (self.side.bid() == Bid::None || self.next > self.term, "a bid for a term that is over"),
            (!in_session || self.peer.is_some(), "a session with nobody"),
            (!self.link.is_paired() || has_twin, "a stream to a twin that is none"),
            (unsent <= self.link.queued().len(), "a state that nobody will get"),
            (self.load_bytes == self.actions.iter().map(stream::load_cost).sum(), "state lost on its way to the guest"),
            (role != Role::Halted || !(self.beats.is_due() || self.link.is_open()), "a halted node that speaks"),
            (self.side.follower().is_none_or(|follower| self.follows(follower)), "a backup that follows no log"),
        ];
        rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, what)| Err(what))
    }

    /// Whether a backup stands where it may, and takes over in a term that it was granted.
    fn follows(&self, follower: &Follower) -> bool {
        let Follower { replay, proposed, bid, takeover, .. } = follower;
        let behind = self.position <= replay.limit() || self.config.broken(Mutation::HorizonIgnored);
        let acts = *bid != Bid::Won || takeover.is_some() || replay.powered_off;
        behind && acts && proposed.is_none_or(|proposed| proposed > self.term)
    }

    /// Whatever comes in leaves this node as it should be. Asked where tests and simulations run, not on a machine.
    fn check(&self) {
        debug_assert_eq!(self.invariants(), Ok(()), "as {:?}", self.role());
    }

    /// The tuning.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// When the twin last gave a sign of life.
    #[must_use]
    pub fn last_heard(&self) -> Time {
        self.last_heard
    }

    /// Whether the caller should have a connection: dial as [`Role::Joining`], listen as primary.
    #[must_use]
    pub fn wants_connection(&self) -> bool {
        self.link.state == LinkState::Down && matches!(self.role(), Role::Joining | Role::Alone | Role::Detaching)
    }

    /// This machine's end of a connection between two machines: [`Role::Joining`] dials, a primary listens.
    #[must_use]
    pub fn handshake(&self, meeting: &Meeting) -> Handshake {
        let end = if self.role() == Role::Joining { End::Dials } else { End::Listens };
        Handshake::new(&self.config, &self.identity.pair, end, meeting)
    }

    /// A stream to the other machine was opened, no matter by whom. An earlier one is gone. Its `handshake` may have come as
    /// far as it likes: who listens may let several go on until one [is done](Handshake::is_done), which is the twin's.
    pub fn connected(&mut self, now: Time, handshake: Handshake) {
        self.disconnected(now);
        self.link = Link::open(now, handshake);
        if !self.has_links_key() {
            self.stats.refused_handshakes += 1;
            self.close_link(Queued::Dropped);
        }
        match self.role() {
            Role::Joining => self.begin_stream(),
            role if role.is_primary() => {}
            _ => self.close_link(Queued::Dropped),
        }
        self.check();
    }

    /// A joiner speaks first, once it may.
    fn begin_stream(&mut self) {
        if self.link.is_up() && self.role() == Role::Joining {
            self.send_hello(true);
        }
    }

    /// So many connections came to nothing before one was handed in: the other end was a [`Stranger`](crate::Stranger).
    pub fn strangers_came(&mut self, count: u64) {
        self.stats.refused_handshakes += count;
    }

    /// The stream is gone, also after [`Action::CloseConnection`]. That alone says nothing about the twin's life.
    pub fn disconnected(&mut self, now: Time) {
        let was_up = self.link.is_open();
        self.link = Link::down();
        if was_up {
            self.link_lost(now, LossReason::Connection);
        }
        self.check();
    }

    /// Bytes to be sent on the stream; report what was taken with [`Node::transmitted`].
    #[must_use]
    pub fn transmit(&self) -> &[u8] {
        self.link.queued()
    }

    /// The first `count` bytes of [`Node::transmit`] were handed to the stream.
    ///
    /// # Panics
    /// When `count` exceeds what was queued.
    pub fn transmitted(&mut self, count: usize) {
        self.link.sent(count);
        if let Some(PrimarySide { phase: Phase::Sent { unsent }, .. }) = self.side.primary_mut() {
            *unsent = unsent.saturating_sub(count);
        }
        self.stats.stream_sent += count as u64;
    }

    /// What this machine is told as a backup, for a recorder. Nothing comes if nobody takes it.
    pub fn copies(&mut self) -> &mut Copies {
        &mut self.copies
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front()?;
        self.load_bytes -= stream::load_cost(&action);
        Some(action)
    }

    /// The guest has run to `position`; call it often, heartbeats and acks report it.
    ///
    /// # Panics
    /// When the guest went backwards or, on a backup, beyond what it may execute: it is no replica any more, and a
    /// dead machine is safer than a wrong one.
    pub fn progress(&mut self, position: Position) {
        assert!(position >= self.position, "the guest went back from {:?} to {position:?}", self.position);
        if let Some(Follower { replay, .. }) = self.side.follower() {
            let limit = decide::may_run_to(replay.front().map(|record| record.position), replay.limit());
            let limit = if self.config.broken(Mutation::HorizonIgnored) { position } else { limit };
            assert!(position <= limit, "the guest ran to {position:?}, beyond {limit:?}");
        }
        self.position = position;
    }

    /// Takes this machine out of service in order: tells the twin, then halts.
    ///
    /// The guest must not run here any more. A protected guest goes on at the backup at once.
    pub fn stop(&mut self, now: Time) {
        if self.role() == Role::Halted {
            return;
        }
        self.flush(now);
        self.leave();
        self.halt(HaltReason::Stopped);
        self.check();
    }

    /// Tells the twin that this machine goes out of service, and closes the stream.
    fn leave(&mut self) {
        self.link.send(&mut self.stats, &Message::Bye(Bye::Leaving));
        self.close_link(Queued::Kept);
    }

    /// Closes the stream from our side.
    fn close_link(&mut self, queued: Queued) {
        if self.link.is_open() {
            self.link.close(queued);
            self.actions.push_back(Action::CloseConnection);
        }
    }

    /// Out of service; what is asked of the arbiter is withdrawn.
    fn halt(&mut self, reason: HaltReason) {
        if self.role() != Role::Halted {
            self.withdraw();
            self.end(reason);
        }
    }

    /// What a recorder of this backup is told last.
    fn end_copies(&mut self, reason: &HaltReason) {
        let bye = match reason {
            HaltReason::Stopped | HaltReason::PoweredOff => Bye::Leaving,
            HaltReason::Diverged(details) => Bye::Diverged(details.clone()),
            reason => Bye::GaveUp(reason.to_string()),
        };
        self.copies.end(&Message::Bye(bye));
    }

    fn end(&mut self, reason: HaltReason) {
        self.end_copies(&reason);
        self.close_link(Queued::Kept);
        self.side = Side::Halted;
        self.beats.end();
        self.actions.push_back(Action::Halt { reason });
    }
}

#[cfg(test)]
mod tests;
