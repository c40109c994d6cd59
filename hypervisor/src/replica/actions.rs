//! Does what the protocol asks for.

use alloc::format;
use alloc::string::String;

use pollux_ft::{Action, HaltReason, Position, Role, Seq};
use pollux_nic::GateMode;

use super::steering::Steering;
use super::{Replica, Takeover, monitor};
use crate::memory::Gpa;

impl Replica {
    /// Carries out all actions that wait.
    pub(super) fn do_actions(&mut self) {
        let mut changed = false;
        while let Some(action) = self.peer.as_mut().and_then(|peer| peer.node.poll_action()) {
            changed |= !matches!(action, Action::Release(_) | Action::LoadMemory { .. } | Action::LoadMachine(_));
            self.act(action);
        }
        if changed {
            self.push_peer();
            self.report();
        }
    }

    /// Sends what the node has to say.
    pub(super) fn push_peer(&mut self) {
        if let Some(peer) = &mut self.peer {
            peer.push(self.now_us);
        }
    }

    /// Sends the frames that may leave, and tells the protocol which have left: its twin may forget those, and no others.
    pub(super) fn release(&mut self) {
        let Some(client) = &mut self.client else { return };
        if self.cut.is_armed() {
            while client.gate().ready() > 0 {
                self.cut.boundary(&"before a frame leaves");
                if !client.release_next(self.now_us) {
                    break;
                }
                self.cut.boundary(&"after a frame left");
            }
        } else {
            client.release(self.now_us);
        }
        if let (Some(mark), Some(peer)) = (client.gate().sent(), &mut self.peer) {
            peer.node.output_left(Seq(mark));
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Release(seq) => {
                if let Some(client) = &mut self.client {
                    client.nic().acked(seq.0);
                }
                self.release();
            }
            Action::BeginTransfer => self.begin_transfer(),
            Action::Protected => {
                log::info!("protected: the backup follows");
                self.figures.protected_since_us = Some(self.now_us);
            }
            Action::Unprotected { reason } => {
                log::warn!("unprotected: {reason}; the guest goes on here alone");
                monitor::event("unprotected", "reason", &reason);
                self.figures.protected_since_us = None;
                self.end_transfer();
                self.open_gate();
            }
            Action::Started { term } => {
                log::info!("the guest starts in term {}", term.0);
                // It stood still until now.
                let rate = self.guest.platform.clock().rate();
                self.steering = Steering::start(self.now_us, self.guest.position(), self.guest.now(), rate);
                self.open_gate();
            }
            Action::AskArbiter { term } => self.ask_arbiter(term),
            Action::ArbiterNotNeeded => self.leave_arbiter(),
            Action::HandedOver { term } => {
                log::warn!("handed over: the twin runs the guest in term {}; joining it", term.0);
                monitor::event("handed-over", "term", &term.0);
                self.figures.protected_since_us = None;
                self.set_gate(GateMode::Closed);
                if let Some(client) = &mut self.client {
                    client.forget_ingress();
                }
            }
            Action::BeginLoad => self.begin_load(),
            Action::LoadMemory { gpa, data } => self.load_memory(Gpa(gpa), &data),
            Action::LoadZero { gpa, len } => self.load_zero(Gpa(gpa), len),
            Action::LoadMachine(data) => self.load_machine(&data),
            Action::StateLoaded { position, digest } => self.state_loaded(position, digest),
            Action::TakeOver { last } => self.begin_takeover(last),
            Action::TakeOverCancelled => {
                log::info!("the primary was heard again: following it as before");
                self.takeover = None;
            }
            Action::Abandoned { reason } => {
                log::warn!("the guest held here is worthless: {reason}; joining again");
                monitor::event("abandoned", "reason", &reason);
                self.takeover = None;
                self.set_gate(GateMode::Closed);
            }
            Action::Refused { reason, retry } => {
                log::error!("pairing refused: {reason}");
                monitor::event("refused", "reason", &reason);
                if !retry && self.peer.as_ref().is_some_and(|peer| !peer.node.role().is_primary()) {
                    self.end(format!("pairing refused: {reason}"));
                }
            }
            Action::CloseConnection => {
                if let Some(peer) = &mut self.peer {
                    peer.close(self.now_us);
                }
            }
            Action::Halt { reason } => self.halt(&reason),
        }
    }

    fn halt(&mut self, reason: &HaltReason) {
        if *reason == HaltReason::PoweredOff {
            // Nobody else sends what the guest said last.
            self.release();
        }
        self.set_gate(GateMode::Closed);
        self.leave_arbiter();
        self.end(format!("{reason}"));
    }

    pub(super) fn set_gate(&mut self, mode: GateMode) {
        self.unsealed_since = None;
        if let Some(client) = &mut self.client {
            client.nic().set_mode(mode);
        }
    }

    /// Everything that is held may leave, and what comes leaves at once.
    pub(super) fn open_gate(&mut self) {
        self.unsealed_since = None;
        let now_us = self.now_us;
        if let Some(client) = &mut self.client {
            client.go_live(now_us);
        }
    }

    /// The guest here is not the primary's.
    pub(super) fn diverge(&mut self, details: &str) {
        log::error!("DIVERGED: {details}");
        monitor::event("diverged", "details", &details);
        if let Some(peer) = &mut self.peer {
            peer.node.diverged(details);
        }
    }

    fn begin_takeover(&mut self, last: Position) {
        let heard_us = self.peer.as_ref().map_or(self.now_us, |peer| peer.node.last_heard().0);
        log::warn!("the primary is gone: draining the log up to position {}", last.0);
        self.takeover =
            Some(Takeover { heard_us, suspected_us: self.now_us, last: last.0, drained_us: None, planned: false });
    }

    /// How this machine is called in status and log.
    pub(super) fn role_name(&self) -> &'static str {
        if self.ending.reason().is_some() {
            return "halted";
        }
        match self.peer.as_ref().map(|peer| peer.node.role()) {
            None | Some(Role::Starting) => "primary",
            Some(role) if role.is_primary() => "primary",
            Some(Role::Backup | Role::Draining) => "backup",
            Some(Role::Halted) => "halted",
            Some(_) => "joining",
        }
    }

    /// Whether a backup holds what is needed to carry on.
    pub(super) fn is_protected(&self) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.node.role() == Role::Protected)
    }

    /// Why the guest does not run here, for the status.
    pub(super) fn ended(&self) -> Option<&String> {
        self.ending.reason()
    }
}
