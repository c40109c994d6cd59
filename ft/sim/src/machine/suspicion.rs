//! Whether a takeover is needed, told from the datagrams that reached this machine.

use super::Machine;
use crate::check::Check;
use crate::world::Env;
use pollux_ft::decide::{Standing, standing};
use pollux_ft::heartbeat::Heartbeat;
use pollux_ft::{NodeId, Role, Term};

/// What this machine heard of its primary.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    /// Whose newest heartbeat was heard, and its counter: late and doubled ones say nothing.
    newest: (NodeId, u64),
    /// The takeover under way is for silence alone.
    silence: bool,
    /// The primary was heard since.
    heard: bool,
}

impl Machine {
    /// A datagram arrived.
    pub(crate) fn hear(&mut self, env: &mut Env, datagram: &[u8]) {
        let now = self.local(env);
        let Ok(beat) = Heartbeat::decode(datagram) else { return self.node.heartbeat_received(now, datagram) };
        if self.node.peer() == Some(beat.node)
            && (self.suspicion.newest.0 != beat.node || beat.counter > self.suspicion.newest.1)
        {
            self.suspicion.newest = (beat.node, beat.counter);
            let standing = standing(&beat, self.id, self.node.term(), self.node.session());
            self.suspicion.heard |= standing == Standing::Wanted;
        }
        let (term, last_heard) = (self.node.term(), self.node.last_heard());
        self.node.heartbeat_received(now, datagram);
        if beat.term > term {
            self.check_way(env, term, beat.term);
        }
        if self.node.last_heard() > last_heard && self.node.peer() != Some(beat.node) {
            let text = format!("machine {} takes the life of node {} for its twin's", self.index, beat.node);
            env.audit.broken(Check::SignOfLife, text);
        }
    }

    /// The node, which was in term `ours`, has heard of the later term `theirs`.
    fn check_way(&self, env: &mut Env, ours: Term, theirs: Term) {
        if self.node.role().is_primary() && self.node.term() == ours {
            let (ours, theirs) = (ours.0, theirs.0);
            let text = format!("machine {} goes on in term {ours} although it heard of term {theirs}", self.index);
            env.audit.broken(Check::GivesWay, text);
        }
    }

    /// The node gave its primary up.
    pub(super) fn suspect(&mut self, env: &Env) {
        let silence = self.local(env).since(self.node.last_heard());
        self.suspicion.silence = silence >= env.plan.config.suspect_after;
        self.suspicion.heard = false;
    }

    /// The node asks for the next term.
    pub(crate) fn check_suspicion(&self, env: &mut Env) {
        if self.node.role() == Role::Draining && self.suspicion.silence && self.suspicion.heard {
            let text = format!("machine {} asks for a term although its primary was heard again", self.index);
            env.audit.broken(Check::NeededTakeover, text);
        }
    }
}
