//! One turn: time, what the node asks for, one step of the guest, and what the node has to say.

use alloc::vec::Vec;
use core::fmt;

use pollux_ft::flow::Throttle;
use pollux_ft::{Node, Role, Time};

use crate::announce::Announcements;
use crate::digest::NextDigest;
use crate::disk::DiskRequests;
use crate::guest::{Guest, PowerEvent};
use crate::host::{Boundary, Event, Host};
use crate::marks::Marks;
use crate::receive::Incoming;
use crate::reign::Reign;
use crate::steering::{FollowedSpeed, Steering};
use crate::transfer::Transfer;
use crate::tuning::Tuning;

/// What there is to do for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Run it for the clients.
    Live,
    /// Replay the log.
    Follow,
    /// Nothing: there is no guest here, or no more, or it stands still while the twin takes it over.
    Wait,
}

/// Bytes of text that wait for the guest at most.
const MOST_TYPED: usize = 64 << 10;

/// Why text was not typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTyped {
    /// The guest does not run on this machine.
    Elsewhere,
    /// Too much waits already.
    TooMuch,
}

impl fmt::Display for NotTyped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Elsewhere => "the guest does not run on this machine, so nothing can be typed here",
            Self::TooMuch => "the guest has not yet taken what was typed before",
        })
    }
}

/// How a caller goes on after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// With the next turn.
    Again,
    /// With the next turn when something has arrived, or at this time.
    Wait(Option<Time>),
}

/// A guest and its node, and what is between them. See the [crate](crate).
#[derive(Debug)]
pub struct Driver<G> {
    pub(crate) node: Node,
    pub(crate) guest: G,
    pub(crate) tuning: Tuning,
    /// The wall time of this turn.
    pub(crate) now: Time,
    pub(crate) steering: Steering,
    /// As a backup: how fast the guest runs on the primary.
    pub(crate) followed_speed: FollowedSpeed,
    pub(crate) throttle: Throttle,
    pub(crate) marks: Marks,
    pub(crate) next_digest: NextDigest,
    /// What the guest asked of its disk, and has not heard of.
    pub(crate) disk: DiskRequests,
    /// A state on its way out.
    pub(crate) transfer: Option<Transfer>,
    /// A state on its way in.
    pub(crate) incoming: Incoming,
    /// It is to live here alone as soon as the drive says so.
    pub(crate) reign: Option<Reign>,
    /// When to tell the client network where the guest is.
    pub(crate) announcements: Announcements,
    /// Text for the guest's console that waits for an exact stop.
    pub(crate) typed: Vec<u8>,
    /// The guest asked for this, and it is not logged yet.
    pub(crate) power_due: Option<PowerEvent>,
    /// The guest is to be handed over to the backup at the next exact stop.
    pub(crate) switch_due: bool,
    /// The guest does not run here any more.
    pub(crate) ended: bool,
}

impl<G: Guest> Driver<G> {
    /// Puts node and guest together.
    #[must_use]
    pub fn new(now: Time, node: Node, guest: G, tuning: Tuning) -> Self {
        let steering = Steering::start(now, guest.position(), guest.time(), guest.rate(), tuning.rates.clone());
        Self {
            node,
            now,
            steering,
            followed_speed: FollowedSpeed::new(guest.rate()),
            throttle: Throttle::new(tuning.lag_bound_ns),
            marks: Marks::new(tuning.marks),
            next_digest: NextDigest::default(),
            disk: DiskRequests::default(),
            transfer: None,
            incoming: Incoming::default(),
            reign: None,
            announcements: Announcements::default(),
            typed: Vec::new(),
            power_due: None,
            switch_due: false,
            ended: false,
            guest,
            tuning,
        }
    }

    /// Before the first turn: a guest that is live from the start begins its life, and its output may leave.
    pub fn start(&mut self, host: &mut impl Host<G>) {
        if self.duty() == Duty::Live {
            self.reign(host, Reign::Begins);
        }
    }

    /// Does what can be done now. Call it again as the answer says, and whenever something was handed to the node.
    pub fn turn(&mut self, host: &mut impl Host<G>) -> Next {
        self.now = host.now();
        self.release(host);
        self.announce(host);
        if self.node.next_timeout().is_some_and(|at| at <= self.now) {
            self.node.tick(self.now);
        }
        self.act(host);
        self.push(host);
        let next = self.step(host);
        let acted = self.act(host);
        self.push(host);
        match next {
            Next::Wait(_) if acted || self.is_busy() => Next::Wait(Some(self.now)),
            Next::Wait(until) => {
                let announcement = self.announcements.due();
                Next::Wait([until, self.node.next_timeout(), announcement].into_iter().flatten().min())
            }
            Next::Again => Next::Again,
        }
    }

    fn step(&mut self, host: &mut impl Host<G>) -> Next {
        if !host.goes_on(Boundary::Step) {
            return Next::Wait(None);
        }
        match self.duty() {
            Duty::Live if self.reign.is_some() => self.await_reign(host),
            Duty::Live => self.live_step(host),
            Duty::Follow => self.follow_step(host),
            Duty::Wait => {
                self.clear_old(self.tuning.pages_a_turn);
                self.join_if_complete(host);
                Next::Wait(if self.incoming.is_loaded() { self.disk_ends_at(host) } else { None })
            }
        }
    }

    /// Whether the next turn has something to do that waits for nothing.
    fn is_busy(&self) -> bool {
        self.incoming.is_clearing() || self.transfer.as_ref().is_some_and(Transfer::has_more)
    }

    /// When to look again at what was full.
    pub(crate) fn retry(&self) -> Next {
        Next::Wait(Some(self.now.after(self.tuning.retry)))
    }

    /// Sends the frames that may leave, and tells the node which have left: the twin may forget those, and no others.
    pub(crate) fn release(&mut self, host: &mut impl Host<G>) {
        if self.node.may_send(host.now()) {
            host.release();
        }
        if let Some(entry) = host.sent() {
            self.node.output_left(entry);
        }
    }

    /// Sends what the node has to say.
    pub(crate) fn push(&mut self, host: &mut impl Host<G>) {
        while host.goes_on(Boundary::Send)
            && let Some(datagram) = self.node.poll_datagram(self.now)
        {
            host.send_datagram(&datagram);
        }
        while !self.node.transmit().is_empty() && host.goes_on(Boundary::Send) {
            let sent = host.send(self.node.transmit());
            if sent == 0 {
                break;
            }
            self.node.transmitted(sent);
        }
        host.flush();
    }

    /// What there is to do for the guest.
    #[must_use]
    pub fn duty(&self) -> Duty {
        match self.node.role() {
            _ if self.ended => Duty::Wait,
            role if role.runs_guest() => Duty::Live,
            Role::Backup | Role::Draining => Duty::Follow,
            _ => Duty::Wait,
        }
    }

    /// An operator takes this machine out of service in order.
    pub fn stop(&mut self, host: &mut impl Host<G>) {
        self.now = host.now();
        self.end(host, "stopped by command");
    }

    /// The guest ends here, whatever the twin does, and with it the node.
    pub(crate) fn end(&mut self, host: &mut impl Host<G>, reason: &str) {
        self.guest_ends(host, reason);
        self.node.stop(self.now);
    }

    /// The guest does not run here any more; the node may still have to tell the twin.
    pub(crate) fn guest_ends(&mut self, host: &mut impl Host<G>, reason: &str) {
        self.reign = None;
        if !core::mem::replace(&mut self.ended, true) {
            host.observe(Event::Ended(reason), self);
        }
    }

    /// An operator wants the machines to change roles at the next exact stop. Whether there is a backup to hand the
    /// guest over to.
    pub fn request_switch(&mut self) -> bool {
        self.switch_due = self.is_protected();
        self.switch_due
    }

    /// Text for the guest's console, to be applied at the next exact stop.
    ///
    /// # Errors
    /// The guest does not run here, or does not take what was typed before.
    pub fn type_text(&mut self, text: &[u8]) -> Result<(), NotTyped> {
        if self.duty() != Duty::Live {
            return Err(NotTyped::Elsewhere);
        }
        if self.typed.len() + text.len() > MOST_TYPED {
            return Err(NotTyped::TooMuch);
        }
        self.typed.extend_from_slice(text);
        Ok(())
    }

    /// Whether a backup holds what is needed to carry on.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.node.role() == Role::Protected
    }

    /// Whether the guest ended here.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether a change of roles was asked for and waits for an exact stop.
    #[must_use]
    pub fn is_switch_due(&self) -> bool {
        self.switch_due
    }

    /// Whether the guest goes on here and a new backup gets its state meanwhile.
    #[must_use]
    pub fn is_transferring(&self) -> bool {
        self.transfer.is_some()
    }

    /// How far the time of a guest that runs here is behind the wall, in nanoseconds.
    #[must_use]
    pub fn clock_lag_ns(&self) -> u64 {
        let runs = self.duty() == Duty::Live && !self.guest.is_idle();
        if runs { self.steering.wanted(self.now).since(self.guest.time()) } else { 0 }
    }

    /// The share of time that the guest may run, see [`pollux_ft::flow`].
    #[must_use]
    pub fn share(&self) -> u32 {
        self.throttle.share()
    }

    /// What the guest asked of its disk, and has not heard of.
    #[must_use]
    pub fn disk_requests(&self) -> &DiskRequests {
        &self.disk
    }

    /// The node, to look at.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The node, to hand in what has arrived.
    pub fn node_mut(&mut self) -> &mut Node {
        &mut self.node
    }

    /// The guest, to look at.
    #[must_use]
    pub fn guest(&self) -> &G {
        &self.guest
    }

    /// The guest, for a debugger to stop, and for tests to damage.
    pub fn guest_mut(&mut self) -> &mut G {
        &mut self.guest
    }
}
