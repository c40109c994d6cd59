//! Exact stops on CPUs whose limits do not end an entry in an interrupt shadow, but one tick later: the last tick before
//! a stop is looked at, and an instruction that begins a shadow is emulated instead of executed.

use pollux_ft::Position;

use super::Guest;
use crate::cpu::{Entered, Exit, LentTsc};
use crate::emulate::shadow::{self, ShadowView};
use crate::platform::clock::RATE_ONE;

/// Single steps that the guest may take before the host is looked at.
pub(super) const STEPS_AT_ONCE: u64 = 64;

impl Guest {
    /// One entry towards `stop`, which lies ahead; or as many as it takes to get there exactly.
    pub(super) fn run_towards(&mut self, stop: Position) -> Entered {
        // A single step ends in a shadow, too.
        if self.counter.counter.steps() || self.vcpu.shadow_steps().is_none() {
            return self.enter_stepping(stop);
        }
        if stop.since(self.position()) == 1 {
            return self.last_tick(stop);
        }
        self.lend_tsc();
        let entered = self.progress.approach(stop, &mut self.counter.counter, &mut *self.vcpu);
        if entered.exit != Exit::Interrupted || self.position().after(1) != stop {
            return entered;
        }
        let last = self.last_tick(stop);
        let interrupt_taken = entered.interrupt_taken || last.interrupt_taken;
        let exception_taken = entered.exception_taken || last.exception_taken;
        Entered { exit: last.exit, ticks: entered.ticks + last.ticks, interrupt_taken, exception_taken }
    }

    /// One entry towards `stop`, or some single steps of which only the guest need know.
    fn enter_stepping(&mut self, stop: Position) -> Entered {
        // An iteration of a string instruction is a step without a tick, and there may be any number of them.
        for _ in 1..STEPS_AT_ONCE {
            let entered = self.enter_once(stop);
            let told = entered.interrupt_taken || entered.exception_taken || self.position() == stop;
            if told || entered.exit != Exit::Stepped {
                return entered;
            }
            self.exits.count(Exit::Stepped);
        }
        self.enter_once(stop)
    }

    fn enter_once(&mut self, stop: Position) -> Entered {
        self.lend_tsc();
        self.progress.enter(stop, &mut self.counter.counter, &mut *self.vcpu)
    }

    /// Lets the guest read its clock without an exit as long as that goes on by one a tick, and each read is exact.
    fn lend_tsc(&mut self) {
        if self.counter.lends_tsc {
            let by_ticks = self.platform.clock().rate() == RATE_ONE;
            let tsc = by_ticks.then(|| LentTsc { now: self.platform.tsc(self.now()), aux: self.platform.tsc_aux() });
            self.vcpu.lend_tsc(tsc);
        }
    }

    /// From the tick before `stop` to `stop`.
    fn last_tick(&mut self, stop: Position) -> Entered {
        // The next instruction is known only when nothing comes before it any more.
        let Some(steps) = self.vcpu.shadow_steps() else {
            return self.enter_once(stop);
        };
        let delivered = steps.deliver();
        // One that comes again each time that it is delivered.
        let endless = steps.has_event();
        // The end of a delivery that an exit had interrupted.
        (0..delivered.ticks).for_each(|_| self.progress.emulated());
        if endless || delivered.exit != Exit::Interrupted || self.position() == stop {
            return delivered;
        }
        if self.begin_shadow().is_some() {
            self.progress.emulated();
            return Entered { ticks: 1, ..delivered };
        }
        let entered = self.enter_once(stop);
        Entered {
            interrupt_taken: delivered.interrupt_taken || entered.interrupt_taken,
            exception_taken: delivered.exception_taken || entered.exception_taken,
            ..entered
        }
    }

    /// Carries out the next instruction if it begins an interrupt shadow.
    fn begin_shadow(&mut self) -> Option<()> {
        let mode = self.vcpu.mode();
        let steps = self.vcpu.shadow_steps()?;
        let (gdtr, after_mov_ss) = (steps.gdtr(), steps.after_mov_ss());
        let linear = shadow::linear_rip(&mode, self.vcpu.registers().rip);
        if self.vcpu.shadow_steps()?.breaks_at(linear) {
            return None;
        }
        let begun = self.examine(&mode, |registers, bus| {
            shadow::begin(&ShadowView { registers, mode: &mode, gdtr, after_mov_ss }, bus)
        })?;
        *self.vcpu.registers_mut() = begun.registers;
        self.vcpu.shadow_steps()?.begin_shadow(begun.stack);
        Some(())
    }
}
