//! Whether a takeover is needed, told from the datagrams that reached this machine.

use super::Machine;
use super::devices::InWorld;
use crate::check::Check;
use crate::world::Env;
use pollux_driver::Clock;
use pollux_ft::decide::{Standing, standing};
use pollux_ft::heartbeat::Heartbeat;
use pollux_ft::{Node, NodeId, Role, Term, Time};
use std::collections::BTreeMap;

/// What this machine heard of its primary.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    /// The newest heartbeat that was heard of each machine: late and doubled ones say nothing.
    newest: BTreeMap<NodeId, u64>,
    /// The takeover under way is for silence alone.
    silence: bool,
    /// The primary was heard since.
    heard: bool,
    /// The newest answer came when no stream was there on which to agree that its term is nobody's.
    apart: bool,
    /// The term that the node asked for when it was last looked at.
    pub(super) asks: Option<Term>,
}

impl Machine {
    /// A datagram arrived.
    pub(crate) fn hear(&mut self, env: &mut Env, datagram: &[u8]) {
        let now = self.local(env.now);
        let before = self.heard_so_far();
        let index = self.devices.index;
        let Some(beat) = self.genuine(datagram) else {
            self.driver.node_mut().heartbeat_received(now, datagram);
            if self.heard_so_far() != before {
                let text = format!("machine {index} acts on a heartbeat that nobody made just now");
                env.audit.broken(Check::Genuine, text);
            }
            return;
        };
        let node = self.driver.node();
        if node.peer() == Some(beat.node) {
            let standing = standing(&beat, self.devices.id, node.term(), node.session());
            self.devices.suspicion.heard |= standing == Standing::Wanted;
        }
        let (term, last_heard) = (node.term(), node.last_heard());
        self.driver.node_mut().heartbeat_received(now, datagram);
        let node = self.driver.node();
        if beat.term > term && node.role().is_primary() && node.term() == term {
            let (ours, theirs) = (term.0, beat.term.0);
            let text = format!("machine {index} goes on in term {ours} although it heard of term {theirs}");
            env.audit.broken(Check::GivesWay, text);
        }
        if node.last_heard() > last_heard && node.peer() != Some(beat.node) {
            let text = format!("machine {index} takes the life of node {} for its twin's", beat.node);
            env.audit.broken(Check::SignOfLife, text);
        }
    }

    /// The heartbeat, if one with the key made it since this machine started, and none that it made later was here before.
    fn genuine(&mut self, datagram: &[u8]) -> Option<Heartbeat> {
        let beat = Heartbeat::decode(datagram, &self.node().config().protection).ok()?;
        if !beat.heard.contains(&self.devices.id) {
            return None;
        }
        let newest = self.devices.suspicion.newest.entry(beat.node).or_default();
        let rises = beat.counter > *newest;
        *newest = beat.counter.max(*newest);
        rises.then_some(beat)
    }

    /// All that heartbeats change.
    fn heard_so_far(&self) -> (Role, Term, Option<NodeId>, Time) {
        let node = self.node();
        (node.role(), node.term(), node.peer(), node.last_heard())
    }
}

impl Suspicion {
    /// The arbiter answered, and the stream is there or not.
    pub(super) fn answered(&mut self, linked: bool) {
        self.apart = !linked;
    }
}

impl InWorld<'_> {
    /// The node gave its primary up.
    pub(super) fn suspect(&mut self, node: &Node) {
        let silence = self.now().since(node.last_heard());
        self.own.suspicion.silence = silence >= self.env.plan.config.suspect_after;
        self.own.suspicion.heard = false;
    }

    /// The node asks for the next term.
    pub(crate) fn check_suspicion(&mut self, node: &Node) {
        let suspicion = &self.own.suspicion;
        if node.role() == Role::Draining && suspicion.silence && suspicion.heard {
            let text = format!("machine {} asks for a term although its primary was heard again", self.own.index);
            self.broken(Check::NeededTakeover, text);
        }
    }

    /// It goes live.
    pub(crate) fn check_need(&mut self) {
        let Suspicion { silence, apart, .. } = self.own.suspicion;
        self.env.audit.check_need(self.own.index, silence || apart);
    }
}
