//! One machine of the pair.
//!
//! Inputs are method calls that carry the time; afterwards drain the outputs: [`Node::transmit`],
//! [`Node::poll_datagram`], [`Node::poll_action`], and call [`Node::tick`] again at [`Node::next_timeout`].
//!
//! After going live a backup is a primary like the one started first: the same node takes the next joiner.

mod action;
mod arbiter;
mod backup;
mod detect;
mod primary;
mod stream;
mod switch_over;
mod term;

pub use action::{Action, AppendError, HaltReason, LossReason, NotLive};

use crate::arbiter::ArbiterId;
use crate::config::Config;
use crate::decide::{self, Bid};
use crate::heartbeat::pair_digest;
use crate::link::{Link, LinkState};
use crate::message::{Bye, Message};
use crate::mutation::Mutation;
use crate::pairing::Identity;
use crate::replay_log::ReplayLog;
use crate::send_log::SendLog;
use crate::stats::Stats;
use crate::types::{NodeId, Position, Role, Seq, SessionId, Term, Time};
use alloc::collections::VecDeque;

/// Heartbeats whose time of sending is kept: longer than it takes to suspect the twin.
const BEATS: usize = 64;

/// How a machine starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It runs the guest from the beginning.
    Primary,
    /// It waits for a primary's state.
    Backup,
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
    role: Role,
    term: Term,
    /// The term that the machines of this session bid for, and how far our bid is.
    next: Term,
    bid: Bid,
    session: SessionId,
    peer: Option<Peer>,
    /// The arbiter that answers us, as far as we know.
    arbiter: Option<ArbiterId>,
    /// How far the guest has run here.
    position: Position,
    link: Link,
    /// Both ends of the link agreed to be twins.
    paired: bool,
    last_tick: Time,
    last_heard: Time,
    next_heartbeat: Time,
    heartbeat_due: bool,
    heartbeat_counter: u64,
    /// When the newest heartbeats were sent, by counter.
    beats_sent: [Time; BEATS],
    /// Primary: when the newest of what the backup of this session, as such, is known to have heard was sent.
    heard_from: Option<Time>,
    /// Primary: the log, whether all state was sent, why the backup is being let go, the entries with which the guest
    /// ends or goes over to the backup.
    send: SendLog,
    state_sent: bool,
    /// Bytes up to the end of the state that have not been handed to the stream yet.
    state_unsent: usize,
    loss: LossReason,
    power_off: Option<Seq>,
    handover: Option<Seq>,
    /// Backup: the log, whether all state arrived, bytes of state not yet taken by the caller.
    replay: ReplayLog,
    state_received: bool,
    load_bytes: usize,
    /// Bytes of CPU and platform that arrived in this session.
    machine_bytes: usize,
    ack_due: Option<Time>,
    /// What the newest ack said of the guest: entries applied, and where it stood.
    acked: (Seq, Position),
    primary_left: bool,
    /// Backup: the newest term that it proposed to bid for, until the primary has agreed.
    proposed: Option<Term>,
    actions: VecDeque<Action>,
    stats: Stats,
}

impl Node {
    /// A node that was just started at `now`.
    ///
    /// `identity.node` must be different at every start of a machine: it tells a machine from its former life.
    ///
    /// # Errors
    /// When the configuration makes no sense, see [`Config::check`], or a name is too long.
    pub fn new(now: Time, start: Start, config: Config, mut identity: Identity) -> Result<Self, &'static str> {
        config.check()?;
        identity.shorten()?;
        let (role, next) = match start {
            Start::Primary => (Role::Starting, config.first_term),
            Start::Backup => (Role::Joining, Term(0)),
        };
        let mut node = Self {
            pair: pair_digest(&identity.pair),
            config,
            identity,
            role,
            term: Term(0),
            next,
            bid: Bid::None,
            session: SessionId(0),
            peer: None,
            arbiter: None,
            position: Position(0),
            link: Link::down(),
            paired: false,
            last_tick: now,
            last_heard: now,
            next_heartbeat: now,
            heartbeat_due: false,
            heartbeat_counter: 0,
            beats_sent: [now; BEATS],
            heard_from: None,
            send: SendLog::default(),
            state_sent: false,
            state_unsent: 0,
            loss: LossReason::Silent,
            power_off: None,
            handover: None,
            replay: ReplayLog::default(),
            state_received: false,
            load_bytes: 0,
            machine_bytes: 0,
            ack_due: None,
            acked: (Seq(0), Position(0)),
            primary_left: false,
            proposed: None,
            actions: VecDeque::new(),
            stats: Stats::default(),
        };
        if start == Start::Primary {
            node.ask();
            if node.bid == Bid::Won {
                node.enter_next_term();
                node.role = Role::Alone;
            }
        }
        Ok(node)
    }

    /// What this node is.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
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

    /// The newest log entry that this node appended (primary) or holds (backup).
    #[must_use]
    pub fn newest(&self) -> Seq {
        if self.role.is_primary() { self.send.last } else { self.replay.last }
    }

    /// What must hold between any two inputs, whatever they were; for tests and simulations, which ask after each.
    ///
    /// # Errors
    /// Says what does not hold.
    pub fn invariants(&self) -> Result<(), &'static str> {
        let role = self.role;
        let bids = matches!(role, Role::Starting | Role::Detaching | Role::Backup | Role::Draining);
        let in_session = matches!(role, Role::Transferring | Role::Protected | Role::Detaching | Role::HandingOver);
        let holds_state = role == Role::Loading || role.is_backup();
        let rules = [
            (self.bid == Bid::None || bids, "a bid that leads nowhere"),
            (self.bid == Bid::None || self.next > self.term, "a bid for a term that is over"),
            (!self.state_sent || in_session || role == Role::Halted, "a state was sent to nobody"),
            (
                self.handover.is_some() == (role == Role::HandingOver) || role == Role::Halted,
                "a hand-over that is none",
            ),
            (!self.state_received || holds_state || role == Role::Halted, "a state that nobody follows with"),
            (!role.is_backup() || self.state_received, "a backup without a state"),
            (!self.primary_left || role.is_backup() || role == Role::Halted, "a farewell of nobody's primary"),
            (self.proposed.is_none() || role.is_backup() || role == Role::Halted, "a proposal of nobody's backup"),
            (self.link.is_up() || !self.paired, "a twin without a stream"),
            (!in_session || self.peer.is_some(), "a session with nobody"),
            (role != Role::Halted || !self.heartbeat_due, "a sign of life of a halted node"),
        ];
        rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, what)| Err(what))
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
        self.link.state == LinkState::Down && matches!(self.role, Role::Joining | Role::Alone | Role::Detaching)
    }

    /// A stream to the other machine was opened, no matter by whom. An earlier one is gone.
    pub fn connected(&mut self, now: Time) {
        self.disconnected(now);
        self.link = Link::up(now);
        match self.role {
            Role::Joining => self.send_hello(true),
            role if role.is_primary() => {}
            _ => self.close_link(false),
        }
    }

    /// The stream is gone, also after [`Action::CloseConnection`]. That alone says nothing about the twin's life.
    pub fn disconnected(&mut self, now: Time) {
        let was_up = self.link.is_up();
        self.link = Link::down();
        self.paired = false;
        if was_up {
            self.link_lost(now, LossReason::Connection);
        }
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
        self.state_unsent = self.state_unsent.saturating_sub(count);
        self.stats.stream_sent += count as u64;
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
        if self.role.is_backup() {
            let limit = decide::may_run_to(self.replay.front().map(|record| record.position), self.replay.limit());
            let limit = if self.config.broken(Mutation::HorizonIgnored) { position } else { limit };
            assert!(position <= limit, "the guest ran to {position:?}, beyond {limit:?}");
        }
        self.position = position;
    }

    /// Takes this machine out of service in order: tells the twin, then halts.
    ///
    /// The guest must not run here any more. A protected guest goes on at the backup at once.
    pub fn stop(&mut self, now: Time) {
        if self.role == Role::Halted {
            return;
        }
        self.flush(now);
        self.leave();
        self.halt(HaltReason::Stopped);
    }

    /// Tells the twin that this machine goes out of service, and closes the stream.
    fn leave(&mut self) {
        self.link.send(&mut self.stats, &Message::Bye(Bye::Leaving));
        self.close_link(true);
    }

    /// Closes the stream from our side; what is queued is still sent if `keep_queued`.
    fn close_link(&mut self, keep_queued: bool) {
        if self.link.is_up() {
            self.link.close(keep_queued);
            self.paired = false;
            self.actions.push_back(Action::CloseConnection);
        }
    }

    fn halt(&mut self, reason: HaltReason) {
        if self.role != Role::Halted {
            self.withdraw();
            self.role = Role::Halted;
            self.heartbeat_due = false;
            self.actions.push_back(Action::Halt { reason });
        }
    }
}
