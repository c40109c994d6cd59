//! Where the guest is, told to the client network again and again: the frame that says so may be lost, or be too early for
//! a switch that still hears the former primary, and a guest that is quiet says nothing itself.

use pollux_ft::{Span, Time};

use crate::driver::Driver;
use crate::guest::Guest;
use crate::host::Host;

/// How often it is told after going live, beyond the first time, which is when the gate opens.
const AFTER_GOING_LIVE: u32 = 5;
/// How often it is told after a former primary was heard.
const AFTER_A_CLAIM: u32 = 2;
/// From one time to the next; twice as long each time.
const FIRST_PAUSE: Span = Span::from_millis(100);

/// What is still to be told, and when.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Announcements {
    left: u32,
    pause: Span,
    next: Time,
}

impl Announcements {
    /// The gate was opened, and it was told once.
    pub(crate) fn went_live(&mut self, now: Time) {
        *self = Self { left: AFTER_GOING_LIVE, pause: FIRST_PAUSE, next: now.after(FIRST_PAUSE) };
    }

    /// A former primary was heard, which may have drawn the guest's traffic to itself.
    fn is_doubted(&mut self, now: Time) {
        if self.left == 0 {
            // Each heartbeat of its is a claim: it is told at once, and not more often than that.
            let next = now.max(self.next);
            *self = Self { left: AFTER_A_CLAIM, pause: FIRST_PAUSE, next };
        }
    }

    /// When to tell it next.
    pub(crate) fn due(&self) -> Option<Time> {
        (self.left > 0).then_some(self.next)
    }

    fn told(&mut self, now: Time) {
        self.left -= 1;
        self.next = now.after(self.pause);
        self.pause = Span(self.pause.0 * 2);
    }
}

impl<G: Guest> Driver<G> {
    /// Tells the client network where the guest is, if it is time to. A machine that may have a successor is silent.
    pub(crate) fn announce(&mut self, host: &mut impl Host<G>) {
        if self.announcements.due().is_some_and(|at| at <= self.now) {
            if self.node.role().runs_guest() && self.reign.is_none() && self.node.may_send(host.now()) {
                host.announce();
            }
            self.announcements.told(self.now);
        }
    }

    /// A former primary was heard.
    pub(crate) fn announce_again(&mut self) {
        self.announcements.is_doubted(self.now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times in ms at which it is told.
    fn told(announcements: &mut Announcements, until: u64) -> alloc::vec::Vec<u64> {
        core::iter::from_fn(|| {
            let at = announcements.due().filter(|at| *at <= Time(until * 1000))?;
            announcements.told(at);
            Some(at.0 / 1000)
        })
        .collect()
    }

    #[test]
    fn it_is_told_several_times_and_after_each_claim() {
        let mut announcements = Announcements::default();
        assert_eq!(told(&mut announcements, 1000), []);
        announcements.went_live(Time(1_000_000));
        assert_eq!(told(&mut announcements, 60_000), [1100, 1200, 1400, 1800, 2600]);
        announcements.is_doubted(Time(60_000_000));
        announcements.is_doubted(Time(60_000_000));
        assert_eq!(told(&mut announcements, 60_000), [60_000]);
        assert_eq!(told(&mut announcements, 70_000), [60_100]);
        // One that goes on and on is answered a few times a second.
        let mut count = 0;
        for ms in 70_000..80_000 {
            announcements.is_doubted(Time(ms * 1000));
            count += told(&mut announcements, ms).len();
        }
        assert!((50..150).contains(&count), "{count}");
    }
}
