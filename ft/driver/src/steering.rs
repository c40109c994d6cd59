//! Steers guest time towards wall time: when a `Clock` entry is due, and what it says. Pure; the primary's alone.
//!
//! Guest time runs by the position, at a rate that this module predicts from how fast the guest ran lately. At each
//! entry the rate is chosen so that guest time meets wall time one interval later; only a guest that slept or fell far
//! behind is put forward at once.

use core::ops::RangeInclusive;

use pollux_ft::{Position, Span, Time};

use crate::clock::GuestTime;

/// Wall time between two entries while the guest runs.
const INTERVAL: Span = Span::from_millis(50);
/// An interval that took longer says nothing of the guest's speed: the machine itself was away.
const LONGEST: Span = Span(4 * INTERVAL.0);
/// Lag of guest time, in nanoseconds, from which it jumps instead of running faster.
const JUMP_NS: u64 = 20_000_000;
/// Lag that is worth an entry when the guest wakes from a halt.
const WAKE_LAG_NS: u64 = 2_000_000;
/// Rates of real machines: between 1/64 and 256 nanoseconds per tick (32.32 fixed point).
pub const RATES: RangeInclusive<u64> = 1 << 26..=1 << 40;

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
    last: (Time, Position),
    /// Whether the guest slept since the last entry: then its speed was not seen.
    slept: bool,
    /// Whether it was held up since then.
    paused: bool,
    /// Nanoseconds per tick, 32.32 fixed point, as measured: with and without what held the guest up; and what is
    /// believable.
    speed: u64,
    full_speed: u64,
    rates: RangeInclusive<u64>,
}

impl Steering {
    /// Guest time is `guest` at wall time `now` and goes on from there, by `rate` as far as that is within `rates`.
    #[must_use]
    pub fn start(now: Time, position: Position, guest: GuestTime, rate: u64, rates: RangeInclusive<u64>) -> Self {
        Self {
            origin_ns: i128::from(now.0) * 1000 - i128::from(guest.0),
            last: (now, position),
            slept: true,
            paused: false,
            speed: rate.clamp(*rates.start(), *rates.end()),
            full_speed: rate.clamp(*rates.start(), *rates.end()),
            rates,
        }
    }

    /// What guest time should be.
    #[must_use]
    pub fn wanted(&self, now: Time) -> GuestTime {
        GuestTime(u64::try_from(i128::from(now.0) * 1000 - self.origin_ns).unwrap_or(0))
    }

    /// How fast the guest runs when nothing holds it up, in nanoseconds of wall time per tick, 32.32 fixed point.
    ///
    /// This, and not the rate of guest time, makes time of a distance in ticks: a rate says for a moment how to meet wall
    /// time again, and falls when a guest that was held up is let go.
    #[must_use]
    pub fn full_speed(&self) -> u64 {
        self.full_speed
    }

    /// Wall time at which guest time should be `time`, rounded up.
    #[must_use]
    pub fn wall_of(&self, time: GuestTime) -> Time {
        let ns = i128::from(time.0) + self.origin_ns;
        Time(u64::try_from(ns.max(0).unsigned_abs().div_ceil(1000)).unwrap_or(u64::MAX))
    }

    /// The guest is halted: its speed cannot be measured over this interval.
    pub fn note_sleep(&mut self) {
        self.slept = true;
    }

    /// The guest is held up: what is measured over this interval is less than its full speed.
    pub fn note_pause(&mut self) {
        self.paused = true;
    }

    /// Whether a running guest needs an entry now.
    #[must_use]
    pub fn is_due(&self, now: Time) -> bool {
        now.since(self.last.0) >= INTERVAL
    }

    /// Whether a guest that wakes needs an entry first, because it slept long enough to notice.
    #[must_use]
    pub fn is_due_at_wake(&self, now: Time, guest: GuestTime) -> bool {
        self.wanted(now).since(guest) >= WAKE_LAG_NS
    }

    /// The entry for a guest that stands at `position` with guest time `guest`. Never puts guest time back; a guest
    /// that is asleep or far behind is put forward.
    pub fn steer(&mut self, now: Time, position: Position, guest: GuestTime, asleep: bool) -> Steer {
        let ticks = position.0 - self.last.1.0;
        let elapsed = now.since(self.last.0);
        let (least, most) = (*self.rates.start(), *self.rates.end());
        if !self.slept && ticks > 0 && elapsed > Span(0) && elapsed <= LONGEST {
            let measured = ((u128::from(elapsed.0 * 1000) << 32) / u128::from(ticks)).min(u128::from(most)) as u64;
            // An average over some intervals: one that was disturbed does not throw the rate about.
            let average = |speed: u64| (speed / 4 * 3 + measured / 4).clamp(least, most);
            self.speed = average(self.speed);
            if !self.paused {
                self.full_speed = average(self.full_speed);
            }
        }
        self.last = (now, position);
        (self.slept, self.paused) = (asleep, false);
        let wanted = self.wanted(now);
        let base = if asleep || wanted.since(guest) > JUMP_NS { wanted.max(guest) } else { guest };
        // From `base` now to wall time one interval later.
        let goal_ns = self.wanted(now.after(INTERVAL)).since(base);
        let rate = u128::from(self.speed) * u128::from(goal_ns) / u128::from(INTERVAL.0 * 1000);
        Steer { base, rate: u64::try_from(rate).unwrap_or(most).clamp(least, most) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::GuestClock;
    use proptest::prelude::*;

    /// Runs a guest of `ticks_per_us` for `intervals` and returns the largest lag of guest time after settling.
    fn largest_error_ns(ticks_per_us: u64, intervals: u64) -> u64 {
        let mut clock = GuestClock::new(1 << 32);
        let mut steering = Steering::start(Time(1_000_000), Position(0), GuestTime(0), 1 << 32, RATES);
        let mut worst = 0;
        for step in 1..=intervals {
            let wall = 1_000_000 + step * INTERVAL.0;
            let position = step * INTERVAL.0 * ticks_per_us;
            let now = clock.time_at(position);
            if step > 20 {
                worst = worst.max(steering.wanted(Time(wall)).0.abs_diff(now.0));
            }
            let steer = steering.steer(Time(wall), Position(position), now, false);
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
    fn what_holds_a_guest_up_does_not_count_as_its_speed() {
        let mut steering = Steering::start(Time(0), Position(0), GuestTime(0), 1 << 32, RATES);
        let mut position = 0;
        let mut run = |steering: &mut Steering, step: u64, ticks_per_us: u64| {
            position += INTERVAL.0 * ticks_per_us;
            steering.steer(Time(step * INTERVAL.0), Position(position), GuestTime(step * INTERVAL.0 * 1000), false);
        };
        (1..40).for_each(|step| run(&mut steering, step, 1000));
        let full = steering.full_speed();
        assert!(full.abs_diff(1 << 32) < 1 << 20, "a tick is a nanosecond");
        for step in 40..80 {
            steering.note_pause();
            run(&mut steering, step, 100);
        }
        assert_eq!(steering.full_speed(), full);
        assert!(steering.speed > 9 << 32, "guest time is to follow wall time all the same");
        (80..120).for_each(|step| run(&mut steering, step, 500));
        assert!(steering.full_speed().abs_diff(2 << 32) < 1 << 20, "the machine has become slower");
    }

    #[test]
    fn a_machine_that_was_away_does_not_take_its_guest_for_slow() {
        let mut steering = Steering::start(Time(0), Position(0), GuestTime(0), 1 << 32, RATES);
        steering.steer(Time(INTERVAL.0), Position(INTERVAL.0 * 1000), GuestTime(INTERVAL.0 * 1000), false);
        let steer =
            steering.steer(Time(100 * INTERVAL.0), Position(INTERVAL.0 * 2000), GuestTime(INTERVAL.0 * 2000), false);
        assert_eq!(steer, Steer { base: GuestTime(100 * INTERVAL.0 * 1000), rate: 1 << 32 });
    }

    #[test]
    fn a_sleeper_wakes_at_wall_time() {
        let mut steering = Steering::start(Time(0), Position(0), GuestTime(0), 1 << 32, RATES);
        assert!(!steering.is_due_at_wake(Time(1000), GuestTime(0)));
        assert!(steering.is_due_at_wake(Time(5000), GuestTime(0)));
        let steer = steering.steer(Time(3_000_000), Position(10), GuestTime(500), true);
        assert_eq!(steer.base, GuestTime(3_000_000_000));
        assert_eq!(steering.wall_of(GuestTime(3_000_000_001)), Time(3_000_001));
    }

    proptest! {
        #[test]
        fn time_is_never_put_back(
            steps in prop::collection::vec((0u64..200_000, 0u64..1_000_000_000, any::<bool>()), 1..50)
        ) {
            let mut clock = GuestClock::new(1 << 32);
            let (mut wall, mut position) = (0, 0);
            let mut steering = Steering::start(Time(0), Position(0), GuestTime(0), 1 << 32, RATES);
            for (us, ticks, asleep) in steps {
                wall += us;
                position += ticks;
                let steer = steering.steer(Time(wall), Position(position), clock.time_at(position), asleep);
                prop_assert!(clock.steer(position, steer.base, steer.rate).is_ok());
                prop_assert!(RATES.contains(&steer.rate));
            }
        }
    }
}
