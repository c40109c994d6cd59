//! When to send everything unacknowledged again. Pure; times count from the start of the fabric.
//!
//! The stack backs off: after some seconds without a guest its next retransmission may be many seconds away, and a
//! client would see a long blackout although the guest is back. So the stack's clock runs fast, and jumps when the
//! guest announces itself, or has been silent for a while although something waits for its acknowledgement.

use std::time::Duration;

use smoltcp::time::Instant;

/// The stack's seconds per second. Its shortest retransmission timeout, one second, becomes Linux's 200 ms.
const SPEED: u32 = 5;
/// The stack's longest retransmission timeout: after a jump by this, every timer has expired.
const JUMP: Duration = Duration::from_secs(60);

/// The clock that the stack sees.
#[derive(Debug, Default)]
pub struct StackClock {
    ahead: Duration,
}

impl StackClock {
    /// The stack's time at `now`.
    pub fn at(&self, now: Duration) -> Instant {
        let stack = now * SPEED + self.ahead;
        Instant::from_micros(stack.as_micros() as i64)
    }

    /// When the stack's time will be `instant`.
    pub fn when(&self, instant: Instant) -> Duration {
        let stack = Duration::from_micros(instant.total_micros().max(0) as u64);
        // Exact, because nanoseconds are finer than the stack's microseconds by more than SPEED.
        stack.saturating_sub(self.ahead) / SPEED
    }

    /// A span of real time as the stack has to be told it.
    pub fn span(real: Duration) -> smoltcp::time::Duration {
        smoltcp::time::Duration::from_micros((real * SPEED).as_micros() as u64)
    }

    /// Lets every timer expire.
    pub fn jump(&mut self) {
        self.ahead += JUMP;
    }
}

/// Silence that lets us send again.
const PATIENCE: Duration = Duration::from_millis(250);
/// The longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Watches the guest while acknowledgements are due.
#[derive(Debug, Default)]
pub struct Recovery {
    watching: Option<Watch>,
    announced: bool,
}

#[derive(Debug)]
struct Watch {
    next: Duration,
    pause: Duration,
}

impl Watch {
    fn since(now: Duration) -> Self {
        Self { next: now + PATIENCE, pause: PATIENCE }
    }
}

impl Recovery {
    /// A frame came from the guest.
    pub fn heard(&mut self, now: Duration) {
        if let Some(watch) = &mut self.watching {
            *watch = Watch::since(now);
        }
    }

    /// The guest told the network where it is.
    pub fn announced(&mut self) {
        self.announced = true;
    }

    /// Whether to send again now. `in_flight`: an acknowledgement is due; `stalled`: one has been due for very long.
    pub fn check(&mut self, now: Duration, in_flight: bool, stalled: bool) -> bool {
        let announced = std::mem::take(&mut self.announced);
        if !in_flight {
            self.watching = None;
            return false;
        }
        let watch = self.watching.get_or_insert_with(|| Watch::since(now));
        if announced {
            *watch = Watch::since(now);
            return true;
        }
        if now < watch.next {
            return stalled;
        }
        watch.pause = (watch.pause * 2).min(MAX_PAUSE);
        watch.next = now + watch.pause;
        true
    }

    /// When to check again at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        self.watching.as_ref().map(|watch| watch.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_clock_is_fast_and_monotonic() {
        let mut clock = StackClock::default();
        assert_eq!(clock.at(200 * MS), Instant::from_millis(1000));
        let mut last = clock.at(Duration::ZERO);
        for step in 1..100 {
            if step % 7 == 0 {
                clock.jump();
            }
            let time = clock.at(step * MS);
            assert!(time > last);
            assert_eq!(clock.when(time), step * MS);
            last = time;
        }
    }

    #[test]
    fn a_deadline_is_never_early() {
        let clock = StackClock::default();
        for micros in 0..1000 {
            let deadline = Instant::from_micros(micros);
            assert!(clock.at(clock.when(deadline)) >= deadline);
        }
    }

    fn nudges(recovery: &mut Recovery, millis: std::ops::Range<u32>) -> Vec<u32> {
        millis.filter(|&ms| recovery.check(ms * MS, true, false)).collect()
    }

    #[test]
    fn silence_lets_us_try_again_with_growing_pauses() {
        let mut recovery = Recovery::default();
        assert_eq!(nudges(&mut recovery, 0..4000), [250, 750, 1750, 2750, 3750]);
        recovery.heard(4000 * MS);
        assert_eq!(nudges(&mut recovery, 4000..5000), [4250, 4750]);
    }

    #[test]
    fn an_idle_connection_is_not_watched() {
        let mut recovery = Recovery::default();
        assert!(!recovery.check(Duration::ZERO, false, false));
        recovery.announced();
        assert!(!recovery.check(900 * MS, false, false));
        assert_eq!(recovery.deadline(), None);
        assert_eq!(nudges(&mut recovery, 1000..1300), [1250]);
    }

    #[test]
    fn an_announcement_counts_once_and_at_once() {
        let mut recovery = Recovery::default();
        assert_eq!(nudges(&mut recovery, 0..2000), [250, 750, 1750]);
        recovery.announced();
        assert_eq!(nudges(&mut recovery, 2000..2300), [2000, 2250]);
    }

    #[test]
    fn a_lively_guest_is_left_alone() {
        let mut recovery = Recovery::default();
        for ms in 0..5000 {
            if ms % 200 == 0 {
                recovery.heard(ms * MS);
            }
            assert!(!recovery.check(ms * MS, true, false), "{ms}");
        }
        assert!(recovery.check(5000 * MS, true, true));
    }
}
