//! Does what the node asks for.

use alloc::format;

use pollux_ft::{Action, HaltReason};

use crate::driver::Driver;
use crate::guest::Guest;
use crate::host::{Boundary, Event, Host};
use crate::receive::Incoming;
use crate::reign::Reign;
use crate::steering::Steering;

impl<G: Guest> Driver<G> {
    /// Carries out all actions that wait; whether there were any.
    pub(crate) fn act(&mut self, host: &mut impl Host<G>) -> bool {
        let (mut acted, mut changed) = (false, false);
        while host.goes_on(Boundary::Action)
            && let Some(action) = self.node.poll_action()
        {
            acted = true;
            changed |= !matches!(action, Action::Release(_) | Action::LoadMemory { .. } | Action::LoadMachine(_));
            host.observe(Event::Asked(&action), self);
            self.carry_out(host, action);
            host.observe(Event::Done, self);
        }
        if changed {
            host.observe(Event::Changed, self);
        }
        acted
    }

    fn carry_out(&mut self, host: &mut impl Host<G>, action: Action) {
        match action {
            Action::Release(seq) => {
                host.acked(seq);
                self.release(host);
            }
            Action::BeginTransfer => self.begin_transfer(host),
            Action::Protected | Action::Refused { .. } => {}
            Action::Unprotected { .. } => {
                self.end_transfer(host);
                self.reign(host, Reign::GoesOn);
            }
            Action::Started { .. } => self.reign(host, Reign::Begins),
            Action::AskArbiter { term } => host.ask(term),
            Action::ArbiterNotNeeded => host.withdraw(),
            Action::OutdatedClaim { .. } => self.announce_again(),
            Action::HandedOver { .. } => self.forget_guest(host),
            Action::Beaten { .. } => {
                self.end_transfer(host);
                self.forget_guest(host);
                // One that had ended was out of date, too: the next one runs.
                self.ended = false;
            }
            Action::BeginLoad => self.begin_load(host),
            Action::LoadMemory { gpa, data } => self.load_memory(host, gpa, &data),
            Action::LoadZero { gpa, len } => self.load_zero(host, gpa, len),
            Action::LoadMachine(data) => self.load_machine(&data),
            Action::StateLoaded { position, digest } => self.state_loaded(host, position, digest),
            // The next step drains the log, or follows it as before.
            Action::TakeOver { .. } | Action::TakeOverCancelled => {}
            Action::Abandoned { .. } => self.forget_guest(host),
            Action::CloseConnection => self.close_link(host),
            Action::Halt { reason } => {
                if reason == HaltReason::PoweredOff {
                    // Nobody else sends what the guest said last, and nobody takes it over.
                    host.release();
                }
                host.close();
                host.withdraw();
                self.guest_ends(host, &format!("{reason}"));
            }
        }
    }

    /// Sends what is left and drops the stream.
    pub(crate) fn close_link(&mut self, host: &mut impl Host<G>) {
        self.push(host);
        let sent = host.hang_up(self.node.transmit());
        self.node.transmitted(sent);
        self.node.disconnected(self.now);
    }

    /// The guest held here is worthless, and so is what it said and what it was to hear.
    pub(crate) fn forget_guest(&mut self, host: &mut impl Host<G>) {
        host.close();
        host.forget_input();
        self.forget_disk(host);
        self.incoming = Incoming::default();
        self.reign = None;
        (self.power_due, self.switch_due) = (None, false);
        self.typed.clear();
    }

    /// Guest time goes on from where it is.
    pub(crate) fn start_clock(&mut self) {
        let (position, time, speed) = (self.guest.position(), self.guest.time(), self.followed_speed.get());
        self.steering = Steering::start(self.now, position, time, speed, self.tuning.rates.clone());
    }
}
