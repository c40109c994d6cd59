//! Which arbiter answers whom: two machines that ask different ones could both win the same term.

use super::{HaltReason, Node};
use crate::arbiter::ArbiterId;
use crate::link::Queued;
use crate::message::{Bye, Message};
use crate::pairing::{self, Claim, Settings};
use crate::types::Role;

impl Node {
    /// What this machine presents to a twin.
    pub(super) fn claim(&self) -> Claim {
        // Of two keys the one that this twin has, too.
        let settings = Settings { key: self.link.key(), ..Settings::of(&self.config) };
        Claim { identity: self.identity.clone(), settings, arbiter: self.arbiter }
    }

    /// A look was answered by this arbiter. Within a session the first one counts; a machine without a twin may be
    /// led to another one.
    pub fn arbiter_seen(&mut self, arbiter: ArbiterId) {
        if self.arbiter.is_some() && self.is_bound() {
            return;
        }
        let is_new = self.arbiter.replace(arbiter) != Some(arbiter);
        // A joiner's Hello has left already; a primary that has not paired yet will say it in its own.
        if is_new && self.greeted() {
            self.link.send(&mut self.stats, &Message::Arbiter(arbiter));
        }
        self.compare_arbiters();
    }

    /// The only arbiter whose answers count: the one that this session has agreed on, if either machine knows it.
    #[must_use]
    pub fn agreed_arbiter(&self) -> Option<ArbiterId> {
        let twins = self.peer.and_then(|peer| peer.arbiter);
        if self.is_bound() { self.arbiter.or(twins) } else { None }
    }

    /// The twin says which arbiter answers it.
    pub(super) fn twins_arbiter(&mut self, arbiter: ArbiterId) {
        if let Some(peer) = &mut self.peer {
            peer.arbiter = Some(arbiter);
        }
        self.compare_arbiters();
    }

    /// Whether there is a twin that the arbiter was, or will be, agreed on with.
    fn is_bound(&self) -> bool {
        self.link.is_paired() || !matches!(self.role(), Role::Starting | Role::Alone | Role::Joining | Role::Halted)
    }

    /// The backup is the one that gives up: the primary has the guest. It cannot any more when it takes over; then
    /// [`Node::agreed_arbiter`] decides.
    fn compare_arbiters(&mut self) {
        let follows = matches!(self.role(), Role::Joining | Role::Loading | Role::Backup);
        if !follows || !self.link.is_paired() {
            return;
        }
        let twins = self.peer.and_then(|peer| peer.arbiter);
        if let Err(mismatch) = pairing::check_arbiters(self.arbiter, twins) {
            let why = alloc::format!("{mismatch} (backup first, then primary)");
            self.link.send(&mut self.stats, &Message::Bye(Bye::GaveUp(why.clone())));
            self.close_link(Queued::Kept);
            self.halt(HaltReason::GaveUp(why));
        }
    }
}
