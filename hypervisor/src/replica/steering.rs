//! Steers guest time towards wall time: when a `Clock` entry is due, and what it says. Pure; the primary's alone.
//!
//! Guest time runs by the position, at a rate that this module predicts from how fast the guest ran lately. At each
//! entry the rate is chosen so that guest time meets wall time one interval later; only a guest that slept or fell far
//! behind is put forward at once.

use crate::platform::GuestTime;

/// Wall time between two entries while the guest runs, in microseconds.
const INTERVAL_US: u64 = 50_000;
/// Lag of guest time, in nanoseconds, from which it jumps instead of running faster.
const JUMP_NS: u64 = 20_000_000;
/// Lag that is worth an entry when the guest wakes from a halt.
const WAKE_LAG_NS: u64 = 2_000_000;
/// Rates are kept between 1/64 and 256 nanoseconds per tick (32.32 fixed point).
const MIN_RATE: u64 = 1 << 26;
const MAX_RATE: u64 = 1 << 40;

/// What a `Clock` entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steer {
    /// Guest time from the entry's position on.
    pub base: GuestTime,
    /// Nanoseconds per tick, 32.32 fixed point.
    pub rate: u64,
}

/// The primary's view of guest time against wall time.
#[derive(Debug)]
pub struct Steering {
    /// Wall time at which guest time would be 0, in nanoseconds; may lie before the machine's boot.
    origin_ns: i128,
    /// Wall time and position at the last entry.
    last_us: u64,
    last_position: u64,
    /// Whether the guest slept since the last entry: then its speed was not seen.
    slept: bool,
    /// Nanoseconds per tick, 32.32 fixed point, as measured.
    speed: u64,
}

impl Steering {
    /// Guest time is `now` at wall time `wall_us` and goes on from there.
    #[must_use]
    pub fn start(wall_us: u64, position: u64, now: GuestTime, rate: u64) -> Self {
        Self {
            origin_ns: i128::from(wall_us) * 1000 - i128::from(now.0),
            last_us: wall_us,
            last_position: position,
            slept: true,
            speed: rate.clamp(MIN_RATE, MAX_RATE),
        }
    }

    /// What guest time should be.
    #[must_use]
    pub fn wanted(&self, wall_us: u64) -> GuestTime {
        GuestTime(u64::try_from(i128::from(wall_us) * 1000 - self.origin_ns).unwrap_or(0))
    }

    /// Wall time at which guest time should be `time`, in microseconds, rounded up.
    #[must_use]
    pub fn wall_of(&self, time: GuestTime) -> u64 {
        let ns = i128::from(time.0) + self.origin_ns;
        u64::try_from(ns.max(0).unsigned_abs().div_ceil(1000)).unwrap_or(u64::MAX)
    }

    /// The guest is halted: its speed cannot be measured over this interval.
    pub fn note_sleep(&mut self) {
        self.slept = true;
    }

    /// Whether a running guest needs an entry now.
    #[must_use]
    pub fn is_due(&self, wall_us: u64) -> bool {
        wall_us.saturating_sub(self.last_us) >= INTERVAL_US
    }

    /// Whether a guest that wakes needs an entry first, because it slept long enough to notice.
    #[must_use]
    pub fn is_due_at_wake(&self, wall_us: u64, now: GuestTime) -> bool {
        self.wanted(wall_us).since(now) >= WAKE_LAG_NS
    }

    /// The entry for a guest that stands at `position` with guest time `now`. Never puts guest time back; a guest
    /// that is asleep or far behind is put forward.
    pub fn steer(&mut self, wall_us: u64, position: u64, now: GuestTime, asleep: bool) -> Steer {
        let ticks = position - self.last_position;
        let elapsed_ns = wall_us.saturating_sub(self.last_us) * 1000;
        if !self.slept && ticks > 0 && elapsed_ns > 0 {
            let measured = ((u128::from(elapsed_ns) << 32) / u128::from(ticks)).min(u128::from(MAX_RATE)) as u64;
            // An average over some intervals: one that was disturbed does not throw the rate about.
            self.speed = (self.speed / 4 * 3 + measured / 4).clamp(MIN_RATE, MAX_RATE);
        }
        self.last_us = wall_us;
        self.last_position = position;
        self.slept = asleep;
        let wanted = self.wanted(wall_us);
        let base = if asleep || wanted.since(now) > JUMP_NS { wanted.max(now) } else { now };
        // From `base` now to wall time one interval later.
        let goal_ns = self.wanted(wall_us + INTERVAL_US).since(base);
        let rate = u128::from(self.speed) * u128::from(goal_ns) / u128::from(INTERVAL_US * 1000);
        Steer { base, rate: (rate as u64).clamp(MIN_RATE, MAX_RATE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::GuestClock;
    use proptest::prelude::*;

    /// Runs a guest of `ticks_per_us` for `intervals` and returns the largest lag of guest time after settling.
    fn largest_error_ns(ticks_per_us: u64, intervals: u64) -> u64 {
        let mut clock = GuestClock::new(1 << 32);
        let mut steering = Steering::start(1_000_000, 0, GuestTime(0), 1 << 32);
        let mut worst = 0;
        for step in 1..=intervals {
            let wall = 1_000_000 + step * INTERVAL_US;
            let position = step * INTERVAL_US * ticks_per_us;
            let now = clock.time_at(position);
            if step > 20 {
                worst = worst.max(steering.wanted(wall).0.abs_diff(now.0));
            }
            let steer = steering.steer(wall, position, now, false);
            clock.steer(position, steer.base, steer.rate).unwrap();
        }
        worst
    }

    #[test]
    fn guest_time_follows_wall_time_at_any_speed() {
        for ticks_per_us in [10, 70, 1000, 1400] {
            assert!(largest_error_ns(ticks_per_us, 100) < 1_000_000, "{ticks_per_us} ticks a microsecond");
        }
    }

    #[test]
    fn a_sleeper_wakes_at_wall_time() {
        let mut steering = Steering::start(0, 0, GuestTime(0), 1 << 32);
        assert!(!steering.is_due_at_wake(1000, GuestTime(0)));
        assert!(steering.is_due_at_wake(5000, GuestTime(0)));
        let steer = steering.steer(3_000_000, 10, GuestTime(500), true);
        assert_eq!(steer.base, GuestTime(3_000_000_000));
        assert_eq!(steering.wall_of(GuestTime(3_000_000_001)), 3_000_001);
    }

    proptest! {
        #[test]
        fn time_is_never_put_back(
            steps in prop::collection::vec((0u64..200_000, 0u64..1_000_000_000, any::<bool>()), 1..50)
        ) {
            let mut clock = GuestClock::new(1 << 32);
            let (mut wall, mut position) = (0, 0);
            let mut steering = Steering::start(0, 0, GuestTime(0), 1 << 32);
            for (us, ticks, asleep) in steps {
                wall += us;
                position += ticks;
                let steer = steering.steer(wall, position, clock.time_at(position), asleep);
                prop_assert!(clock.steer(position, steer.base, steer.rate).is_ok());
                prop_assert!((MIN_RATE..=MAX_RATE).contains(&steer.rate));
            }
        }
    }
}
