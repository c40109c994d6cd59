//! The course of a run: faults, then peace, in which all must be well again within a stated time.

use super::World;
use super::event::Event;
use crate::check::Check;
use crate::plan::Faults;
use crate::trace::Who;
use pollux_ft::Role;

/// Time between two looks in microseconds.
const LOOK: u64 = 50_000;
/// Within this time after the last fault the guest must serve and be protected again, times to suspicion and acks
/// apart: restarts by the operator take two seconds of it, clients repeat their requests every 1.6 seconds.
pub(crate) const RECOVERY: u64 = 12_000_000;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The guest becomes protected for the first time.
    Starting,
    /// Faults happen.
    Faults,
    /// No more faults: the world recovers.
    Peace,
    /// The guest was told to switch itself off.
    Ending,
    /// It recovered: clients get their last answers.
    Rest,
    /// Done.
    Over,
}

/// The course of a run.
#[derive(Debug)]
pub(crate) struct Phase {
    stage: Stage,
    /// When this stage began, or the last fault was made in it.
    since: u64,
}

impl Phase {
    pub(super) fn start() -> Self {
        Self { stage: Stage::Starting, since: 0 }
    }

    pub(super) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    pub(super) fn has_faults(&self) -> bool {
        self.stage == Stage::Faults
    }

    pub(super) fn fault_made(&mut self, now: u64) {
        self.since = now;
    }
}

impl World {
    fn enter(&mut self, stage: Stage) {
        self.phase = Phase { stage, since: self.env.now };
        self.note(Who::World, 300 + stage as u64, || format!("-- {stage:?}"));
    }

    /// How long recovery may take.
    fn recovery(&self) -> u64 {
        let config = &self.env.plan.config;
        RECOVERY + 4 * config.suspect_after.0 + 2 * config.ack_timeout.0
    }

    /// Looks whether all is well, and goes on to the next stage.
    pub(super) fn look(&mut self) {
        self.env.queue.push(self.env.now + LOOK, Event::Look);
        if self.guest_is_lost() {
            return;
        }
        let late = self.env.now - self.phase.since > self.recovery();
        match self.phase.stage {
            Stage::Starting if self.is_protected() => {
                self.enter(Stage::Faults);
                self.env.queue.push(self.env.now + 1_000, Event::Fault);
                self.env.queue.push(self.env.now, Event::Attack);
            }
            Stage::Starting if late => self.late("the first protection"),
            Stage::Faults if self.env.now > self.env.plan.duration => self.end_faults(),
            Stage::Faults if self.env.plan.faults == Faults::OneByOne && late => self.late_after_one(),
            Stage::Peace => {
                let served = self.env.clients.served_since(self.phase.since);
                if self.is_protected() && served {
                    self.env.clients.rest();
                    self.enter(Stage::Rest);
                } else if late {
                    self.late("recovery in peace");
                }
            }
            Stage::Rest if self.env.clients.all_answered() => {
                self.env.clients.check_gaps(&mut self.env.audit);
                self.enter(Stage::Over);
            }
            Stage::Rest if late => self.late("the last answers"),
            Stage::Ending => self.look_at_end(late),
            _ => {}
        }
    }

    fn late_after_one(&mut self) {
        if self.find(|machine| machine.devices.flipped).is_some() {
            self.env.audit.broken(Check::FlipFound, "no digest found the bit that was turned".to_owned());
        } else if !self.is_protected() {
            self.late("recovery from one fault");
        }
    }

    fn late(&mut self, what: &str) {
        let check = if self.is_protected() { Check::Service } else { Check::Protection };
        let roles: Vec<_> =
            self.slots.iter().map(|slot| slot.machine.as_ref().map(|machine| machine.node().role())).collect();
        let limit = self.recovery() / 1000;
        self.env.audit.broken(check, format!("{what} took more than {limit} ms; roles are {roles:?}"));
    }

    fn end_faults(&mut self) {
        self.heal();
        if self.env.plan.power_off {
            let frame = crate::client::Clients::power_off();
            self.env.client_sends(&frame);
            // One more fault in the middle of it.
            self.env.queue.push(self.env.now + 500, Event::Fault);
            self.phase.since = self.env.now;
            self.env.plan.power_off = false;
            self.env.plan.duration += 30_000;
            self.ending = true;
        } else if self.ending {
            self.enter(Stage::Ending);
        } else {
            self.enter(Stage::Peace);
        }
    }

    /// A guest that was told to switch itself off ends, on all machines, and is not taken over.
    fn look_at_end(&mut self, late: bool) {
        let running = self.find(|machine| machine.node().role().is_primary() && !machine.driver.has_ended()).is_some();
        let following = self.find(|machine| machine.node().role().is_backup()).is_some();
        if !running && !following {
            self.env.figures.power_offs += 1;
            self.enter(Stage::Over);
        } else if late {
            if self.env.audit.is_powered_off() {
                self.late("power-off on all machines");
            } else {
                self.enter(Stage::Over);
            }
        } else if running && !self.env.audit.is_powered_off() {
            // The request may have been lost, as any frame.
            let frame = crate::client::Clients::power_off();
            self.env.client_sends(&frame);
        }
    }

    /// No machine has the guest any more.
    fn guest_is_lost(&mut self) -> bool {
        let ended = self.env.audit.is_powered_off();
        // One that is about to create a guest has none yet, and may be refused.
        let creates = |role| self.env.plan.auto && role == Role::Starting;
        let held = self.find(|machine| machine.holds_guest() && !creates(machine.node().role())).is_some();
        let never = self.env.plan.auto && self.env.audit.lives() == 0;
        if held {
            (self.lost, self.site_cut) = (false, self.site_cut && !self.lost);
        }
        if held || ended || never || self.lost {
            return false;
        }
        self.note(Who::World, 400, || "the guest is lost".to_owned());
        self.env.figures.lost += 1;
        self.lost = true;
        self.env.audit.guest_lost();
        if self.env.plan.faults == Faults::OneByOne && !self.site_cut {
            self.env.audit.broken(Check::Survival, "one fault alone lost the guest".to_owned());
        }
        if self.env.plan.auto {
            // The machines create another one.
            return false;
        }
        self.enter(Stage::Over);
        true
    }
}
