//! Who may act: at most one machine at a time, and in a term that is its own.

use super::{Audit, Check, View};
use crate::arbiter::Arbiter;
use pollux_ft::{NodeId, Role};

impl Audit {
    /// After machine `index` has changed.
    pub(super) fn check_live(&mut self, index: usize, arbiter: &Arbiter) {
        let open = self.views.iter().flatten().filter(|view| view.gate_open).count();
        if open > 1 {
            self.broken(Check::OneLive, format!("{open} machines have their gates open"));
        }
        let Some(view) = self.views[index].filter(|view| view.gate_open || view.role.is_primary()) else { return };
        let reigning = *self.reigns.entry(view.term).or_insert(view.node);
        if reigning != view.node {
            let text = format!("term {} is that of node {reigning}, and node {} acts in it", view.term.0, view.node);
            self.broken(Check::OneTermOneNode, text);
        }
        if self.arbitrated && arbiter.winner(view.term) != Some(view.node) {
            let text = format!("node {} acts in term {}, which it did not win", view.node, view.term.0);
            self.broken(Check::OneTermOneNode, text);
        }
    }

    /// Machine `index` creates a guest. The history of the one before, if there was one, is over.
    pub(crate) fn creates(&mut self, index: usize) {
        let others = self.views.iter().enumerate().filter(|(other, _)| *other != index).filter_map(|(_, view)| *view);
        let has = |view: &View| view.role.is_primary() || view.role.is_backup();
        if let Some(holder) = others.into_iter().find(has) {
            let text =
                format!("machine {index} creates a guest while node {} has one as {:?}", holder.node, holder.role);
            self.broken(Check::OneLife, text);
        }
        self.lives += 1;
        self.former += self.wire.len() as u64;
        self.wire.clear();
        self.wire_time = 0;
        self.sessions.clear();
        self.repeatable = Default::default();
    }

    /// No machine has a guest. Without an arbiter nobody remembers the terms of before.
    pub(crate) fn guest_lost(&mut self) {
        if !self.arbitrated {
            self.reigns.clear();
        }
    }

    /// A frame leaves through the open gate of `index`: no complete replica may be able to go live.
    pub(super) fn check_alone(&mut self, index: usize, arbiter: &Arbiter) {
        let Some(me) = self.views[index].map(|view| view.node).filter(|_| self.arbitrated) else { return };
        let replica = self.views.iter().flatten().find(|view| {
            let complete = matches!(view.role, Role::Backup | Role::Draining) && view.peer == Some(me);
            complete && !arbiter.is_newest(me, view.term)
        });
        if let Some(replica) = replica.copied() {
            let text = format!("node {me} sends alone, but its backup {} could win the next term", replica.node);
            self.broken(Check::AloneRule, text);
        }
    }

    /// Machine `index` says something in the guest's name.
    pub(crate) fn speaks(&mut self, index: usize) {
        let term = self.views[index].map(|view| view.term);
        let successor = self.views.iter().flatten().find(|view| view.role.is_primary() && Some(view.term) > term);
        if let Some(successor) = successor.copied() {
            let text = format!("machine {index} speaks for the guest, which runs on node {}", successor.node);
            self.broken(Check::Successor, text);
        }
    }

    /// Machine `index` goes live. Unless it is `excused`, by its primary's silence or by a term that was won when they
    /// could not agree on another, the primary must have let go of it.
    pub(crate) fn check_need(&mut self, index: usize, excused: bool) {
        let Some(me) = self.views[index].filter(|_| !excused) else { return };
        let wants = |view: &&View| {
            let ours = Some(view.node) == me.peer && view.session == me.session && view.peer == Some(me.node);
            ours && matches!(view.role, Role::Transferring | Role::Protected)
        };
        if let Some(primary) = self.views.iter().flatten().find(wants).copied() {
            let text = format!("node {} takes over from node {}, which it hears and backs up", me.node, primary.node);
            self.broken(Check::NeededTakeover, text);
        }
    }

    /// The guest of the primary ended by its own will, on all machines that matter.
    pub(crate) fn powered_off(&mut self) {
        self.powered_off = true;
    }

    /// Whether the guest ended so.
    pub(crate) fn is_powered_off(&self) -> bool {
        self.powered_off
    }

    /// Node `node` goes live, `held` being the log that it followed.
    pub(super) fn check_power(&mut self, node: NodeId, entry_held: bool) {
        if self.powered_off || entry_held {
            self.broken(Check::PowerOff, format!("node {node} takes over a guest that switched itself off"));
        }
    }
}
