//! What becomes of a guest whose rules are switched off (`break=`). Nothing here happens without that.

use alloc::vec::Vec;

use super::Guest;
use crate::broken::BrokenRule;
use crate::cpu::{Limit, Meter};

/// Most ticks that a read of the TSC is off by, beside all that the reads before it were.
const CLOCK_ERROR: u64 = 0xFF;

/// The rule that is switched off, and what comes of it.
#[derive(Debug)]
pub(super) struct Broken {
    rule: BrokenRule,
    /// This machine's time, in ticks.
    host_time: fn() -> u64,
    /// How far the guest's TSC is off.
    clock_error: u64,
    /// The frame of which memory holds one half.
    half: Option<Vec<u8>>,
}

impl Guest {
    /// Switches off a rule that is the guest's own to keep; others are left as they are. `host_time` is this machine's time.
    pub fn break_rule(&mut self, rule: BrokenRule, host_time: fn() -> u64) {
        self.broken = Some(Broken { rule, host_time, clock_error: 0, half: None });
        if rule == BrokenRule::Time {
            self.counter.lends_tsc = false;
        }
    }

    fn breaks(&self, rule: BrokenRule) -> bool {
        self.broken.as_ref().is_some_and(|broken| broken.rule == rule)
    }

    /// An input is about to be applied: a guest that came from another machine executes one instruction more, of which
    /// nobody keeps count. Only where positions are ticks: another counter would count it.
    pub(super) fn slip(&mut self) {
        let follows = self.loaded_at.0 > 0;
        if self.breaks(BrokenRule::ExactStop) && follows && !self.halted && self.counter.counter.meter() == Meter::Tsc {
            self.vcpu.offer_interrupt(None);
            // An instruction that exits is not executed, and will be.
            let _ = self.vcpu.enter(Limit::Step(Meter::Tsc));
        }
    }

    /// How far the guest's TSC is off by now.
    pub(super) fn clock_error(&mut self) -> u64 {
        match &mut self.broken {
            Some(broken) if broken.rule == BrokenRule::Time => {
                broken.clock_error += (broken.host_time)() & CLOCK_ERROR;
                broken.clock_error
            }
            _ => 0,
        }
    }

    /// A frame came: whether only one half of it is in memory now.
    pub(super) fn tear(&mut self, frame: &[u8]) -> bool {
        if !self.breaks(BrokenRule::BounceBuffer) {
            return false;
        }
        self.mend();
        let torn = self.platform.packet_half_in(&mut self.memory, frame);
        if let Some(broken) = self.broken.as_mut().filter(|_| torn) {
            broken.half = Some(frame.to_vec());
        }
        torn
    }

    /// The rest of a frame, at whatever instruction this machine has stopped the guest.
    pub(super) fn mend(&mut self) {
        if let Some(frame) = self.broken.as_mut().and_then(|broken| broken.half.take()) {
            self.platform.packet_in(&mut self.memory, &frame);
        }
    }
}
