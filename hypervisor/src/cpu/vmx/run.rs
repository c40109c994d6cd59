//! Entries: what bounds them, and what they come to.

use super::exit::{self, ENTRY_FAILED, Event};
use super::instructions::read;
use super::{LONG_SLICE, SLICE, VmxVcpu, fields};
use crate::cpu::{Entered, Exit, Meter};

/// What bounds an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    /// Ticks; with none of them, what waits is delivered.
    Ticks(u64),
    /// Counts of retired instructions.
    Overflow(u64),
    /// A single step.
    Step(Meter),
}

impl Bound {
    /// What is left of it after `ran`.
    fn after(self, ran: u64) -> Self {
        match self {
            Self::Ticks(end) => Self::Ticks(end.saturating_sub(ran)),
            Self::Overflow(counts) => Self::Overflow(counts - ran),
            Self::Step(meter) => Self::Step(meter),
        }
    }

    /// Ticks after which an entry ends in any case, if it is bounded by the counter of retired instructions, which counts
    /// `longest` at most: a guest must not keep the host's interrupts back.
    fn slice(self, longest: u64) -> u64 {
        match self {
            Self::Overflow(counts) if counts < longest => SLICE,
            _ => LONG_SLICE,
        }
    }

    /// What counts.
    fn meter(self) -> Meter {
        match self {
            Self::Ticks(_) => Meter::Tsc,
            Self::Overflow(_) => Meter::Instructions,
            Self::Step(meter) => meter,
        }
    }

    /// How the entry ends if the bound was reached by an exit that is dealt with.
    fn end(self, ran: u64) -> Option<Exit> {
        match self {
            Self::Ticks(end) if ran >= end => Some(Exit::Interrupted),
            // Its interrupt is still to come, and will end another entry.
            Self::Overflow(counts) if ran >= counts => Some(Exit::Overflow),
            _ => None,
        }
    }
}

/// What one entry came to, before it is known what it means for the guest.
struct Once {
    exit: ExitOrGoOn,
    ticks: u64,
    interrupt_taken: bool,
    exception_taken: bool,
}

/// What an exit means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExitOrGoOn {
    Exit(Exit),
    /// It is dealt with: the guest goes on.
    GoOn,
}

impl VmxVcpu {
    /// One entry of at most `bound`.
    fn enter_once(&mut self, bound: Bound) -> Once {
        let mut event = self.event.take().or_else(|| self.take_trap());
        let injects_exception = event.is_some();
        let interrupt = match self.offered {
            Some(vector) if !injects_exception && self.can_interrupt() => Some(Event::interrupt(vector)),
            _ => None,
        };
        event = event.or(interrupt);
        self.set_primary(self.offered.is_some() && interrupt.is_none(), matches!(bound, Bound::Step(_)));
        // The tick of a delivery that was interrupted belongs to the end of it.
        let owed = if bound.meter() == Meter::Tsc { self.owed } else { 0 };
        let timer = self.arm(if owed > 0 { bound.after(owed) } else { bound });
        let (reason, raw) = self.switch(event, owed, timer);
        if reason & ENTRY_FAILED != 0 {
            log::warn!("VM entry: {}", exit::entry_failure(reason as u16, read(fields::EXIT_QUALIFICATION)));
            let exit = ExitOrGoOn::Exit(Exit::Invalid);
            return Once { exit, ticks: 0, interrupt_taken: false, exception_taken: false };
        }
        let (exit, ticks) = (self.decode(reason as u16), self.ran(bound, event.is_some(), raw));
        let interrupted = self.interrupted_delivery();
        let exception_taken = injects_exception && interrupted.is_none();
        let mut once = Once { exit, ticks, interrupt_taken: false, exception_taken };
        match interrupted {
            Some(delivery) => {
                // Delivery that the CPU began by itself costs a tick, which it has not counted.
                let begun = event.is_none() && delivery.counts() && bound.meter() == Meter::Tsc;
                self.owed = if begun { 1 } else { owed };
                once.exit = self.after_interrupted_delivery(once.exit, delivery);
            }
            None => once.ticks += core::mem::take(&mut self.owed),
        }
        once.interrupt_taken = interrupt.is_some() && !interrupted.is_some_and(Event::is_interrupt);
        if once.interrupt_taken {
            self.offered = None;
        }
        once
    }

    /// Prepares what ends the entry; returns the timer's count.
    fn arm(&mut self, bound: Bound) -> u32 {
        if bound.meter() == Meter::Tsc {
            self.stop_counting();
            return match bound {
                Bound::Ticks(ticks) => self.calibration.timer_count(ticks),
                _ => SLICE as u32,
            };
        }
        match &mut self.performance {
            Ok(performance) => {
                let longest = performance.layout().longest();
                // For a step no overflow is in sight.
                performance.arm(if let Bound::Overflow(counts) = bound { counts } else { longest });
                bound.slice(longest) as u32
            }
            Err(why) => panic!("{why}"),
        }
    }

    pub(super) fn stop_counting(&mut self) {
        if let Ok(performance) = &mut self.performance {
            performance.stop();
        }
    }

    /// How far the guest ran, by what bounded it.
    fn ran(&self, bound: Bound, injects: bool, raw: u64) -> u64 {
        match (bound.meter(), &self.performance) {
            (Meter::Instructions, Ok(performance)) => performance.counted(),
            _ => raw
                .checked_sub(self.calibration.overhead)
                .unwrap_or_else(|| self.less_than_nothing(bound, injects, raw)),
        }
    }

    /// What an entry counts that took less than the switch does.
    ///
    /// Bochs has no tick for the entry itself when an exit interrupts the delivery of the event that we injected. No
    /// instruction has run then. Anything else is no counter of instructions.
    fn less_than_nothing(&self, bound: Bound, injects: bool, raw: u64) -> u64 {
        let [reason, event, interrupted, injected] =
            [fields::EXIT_REASON, fields::EXIT_EVENT, fields::VECTORING_EVENT, fields::ENTRY_EVENT].map(read);
        let overhead = self.calibration.overhead;
        assert!(
            injects && exit::ends_injection(reason as u16, interrupted, injected) && raw + 1 == overhead,
            "an entry took {raw} ticks, less than the switch's {overhead}: exit {reason}, event {event:#x}, \
             interrupted {interrupted:#x}, injected {injected:#x}, {bound:?}"
        );
        0
    }

    /// The event whose delivery the exit interrupted, if it did.
    fn interrupted_delivery(&self) -> Option<Event> {
        let info = read(fields::VECTORING_EVENT);
        if info & exit::EVENT_VALID == 0 {
            return None;
        }
        let (error_code, length) = (read(fields::VECTORING_ERROR_CODE), read(fields::EXIT_INSTRUCTION_LENGTH));
        Some(Event::again(info, error_code, length))
    }

    fn after_interrupted_delivery(&mut self, exit: ExitOrGoOn, delivery: Event) -> ExitOrGoOn {
        match exit {
            // All of guest memory is mapped, so the guest keeps its stack or its tables on a device: no event can be
            // delivered there, and what hardware would do next is a triple fault.
            ExitOrGoOn::Exit(Exit::Memory { .. }) => ExitOrGoOn::Exit(Exit::Shutdown),
            exit => {
                // An interrupt is still offered; everything else must come again.
                if !delivery.is_interrupt() {
                    self.event = Some(delivery);
                }
                exit
            }
        }
    }

    /// Entries until something happens that is the guest's or the host's business, of `bound` at most.
    pub(super) fn enter_within(&mut self, bound: Bound) -> Entered {
        let mut entered = Entered { exit: Exit::Interrupted, ticks: 0, interrupt_taken: false, exception_taken: false };
        loop {
            let once = self.enter_once(bound.after(entered.ticks));
            entered.ticks += once.ticks;
            if let Some(tsc) = &mut self.tsc {
                tsc.now = tsc.now.wrapping_add(once.ticks);
            }
            entered.interrupt_taken |= once.interrupt_taken;
            entered.exception_taken |= once.exception_taken;
            let end = match once.exit {
                ExitOrGoOn::Exit(exit) => Some(exit),
                ExitOrGoOn::GoOn => bound.end(entered.ticks),
            };
            if let Some(exit) = end {
                return Entered { exit, ..entered };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_ends_where_it_is_reached() {
        assert_eq!((Bound::Ticks(5).after(2), Bound::Ticks(5).end(4)), (Bound::Ticks(3), None));
        assert_eq!(Bound::Ticks(5).end(5), Some(Exit::Interrupted));
        assert_eq!(Bound::Ticks(0).end(0), Some(Exit::Interrupted));
        assert_eq!(Bound::Ticks(0).after(1), Bound::Ticks(0), "the end of a delivery");
        assert_eq!((Bound::Overflow(5).after(4), Bound::Overflow(5).end(4)), (Bound::Overflow(1), None));
        assert_eq!(Bound::Overflow(5).end(9), Some(Exit::Overflow));
        assert_eq!((Bound::Overflow(5).slice(6), Bound::Overflow(6).slice(6)), (SLICE, LONG_SLICE));
        let step = Bound::Step(Meter::Tsc);
        assert_eq!((step.after(1), step.end(1), step.meter()), (step, None, Meter::Tsc));
        assert_eq!((Bound::Ticks(1).meter(), Bound::Overflow(1).meter()), (Meter::Tsc, Meter::Instructions));
        // A timer that came late, and then an exit that is dealt with.
        assert_eq!(Bound::Ticks(5).end(36), Some(Exit::Interrupted));
    }
}
