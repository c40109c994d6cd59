//! Does what the protocol asks for.

use super::{Machine, Question};
use crate::guest::Guest;
use crate::world::Env;
use pollux_ft::{Action, HaltReason};
use pollux_nic::GateMode;

impl Machine {
    /// Carries out all actions that wait, unless the machine ends between two of them.
    pub(crate) fn do_actions(&mut self, env: &mut Env) {
        while self.goes_on() {
            let Some(action) = self.node.poll_action() else { return };
            if !matches!(action, Action::Release(_) | Action::LoadMemory { .. } | Action::LoadMachine(_)) {
                self.note(env, 1, || format!("{action:?}"));
            }
            self.act(env, action);
            self.show(env);
        }
    }

    fn act(&mut self, env: &mut Env, action: Action) {
        match action {
            Action::Release(seq) => {
                self.gate.acked(seq.0);
                self.release(env);
            }
            Action::Started { .. } => {
                self.start_clock(env);
                self.open_gate(env);
            }
            Action::AskArbiter { term } => self.question = Some(Question { term, again_at: env.now }),
            Action::ArbiterNotNeeded => self.question = None,
            Action::HandedOver { .. } => {
                env.figures.switch_overs += 1;
                self.forget_guest(env);
            }
            Action::LoadZero { gpa, len } => self.guest.load_memory(gpa, &vec![0; len as usize]),
            Action::BeginTransfer => self.begin_transfer(),
            Action::Protected => env.figures.protections += 1,
            Action::Unprotected { .. } => {
                self.transfer = None;
                self.open_gate(env);
            }
            Action::BeginLoad => self.begin_load(env),
            Action::LoadMemory { gpa, data } => self.guest.load_memory(gpa, &data),
            Action::LoadMachine(data) => self.load_machine(&data),
            Action::StateLoaded { position, digest } => self.state_loaded(env, position, digest),
            Action::TakeOver { .. } => {
                self.takeover = true;
                self.suspect(env);
            }
            Action::TakeOverCancelled => {
                env.figures.cancelled += 1;
                self.takeover = false;
            }
            Action::Abandoned { .. } => {
                self.takeover = false;
                self.forget_guest(env);
            }
            Action::Refused { .. } => env.figures.refusals += 1,
            Action::CloseConnection => self.close(env),
            Action::Halt { reason } => {
                if reason == HaltReason::PoweredOff {
                    env.audit.powered_off();
                    // Nobody else sends what the guest said last.
                    self.release(env);
                }
                self.set_gate(env, GateMode::Closed);
                self.ended = true;
            }
        }
    }

    /// The guest held here is of no use any more.
    fn forget_guest(&mut self, env: &mut Env) {
        self.set_gate(env, GateMode::Closed);
        self.guest = Guest::empty();
        self.history.clear();
        self.ingress.clear();
        (self.power_due, self.reset_due, self.switch_due) = (false, false, false);
    }

    /// Sends what is left and closes the stream.
    fn close(&mut self, env: &mut Env) {
        if let Some(stream) = self.stream.take() {
            let sent = env.send_bytes(stream, self.index, self.node.transmit(), true);
            self.node.transmitted(sent);
            env.close_stream(stream, self.index);
        }
        self.node.disconnected(self.local(env));
    }
}
