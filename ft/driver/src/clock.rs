//! Guest time: a pure function of the position.

use core::fmt;

pub use pollux_ft::Position;

/// Guest time in nanoseconds since the guest was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GuestTime(pub u64);

impl GuestTime {
    /// The time `ns` nanoseconds later; stays at the end of time.
    #[must_use]
    pub const fn after(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }

    /// Nanoseconds since `earlier`, 0 if that lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A rate of one nanosecond per tick, in 32.32 fixed point.
pub const RATE_ONE: u64 = 1 << 32;

/// Why the clock cannot be steered as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockError {
    /// The new base lies before the current base position.
    PositionBackwards,
    /// Guest time would run backwards.
    TimeBackwards,
}

impl fmt::Display for ClockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PositionBackwards => "the clock's new base position lies before the current one",
            Self::TimeBackwards => "guest time would run backwards",
        })
    }
}

/// Maps positions to guest time: `base + (position − base_position) × rate`, rounded down to whole nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestClock {
    base: GuestTime,
    base_position: Position,
    rate: u64,
}

impl GuestClock {
    /// A clock that shows 0 at position 0 and advances by `rate` (32.32 fixed point nanoseconds per tick).
    #[must_use]
    pub const fn new(rate: u64) -> Self {
        Self { base: GuestTime(0), base_position: Position(0), rate }
    }

    /// A clock that shows `base` at `base_position` and advances by `rate`.
    #[must_use]
    pub const fn at(base: GuestTime, base_position: Position, rate: u64) -> Self {
        Self { base, base_position, rate }
    }

    /// Guest time at the base position.
    #[must_use]
    pub const fn base(&self) -> GuestTime {
        self.base
    }

    /// The position from which the present rate holds.
    #[must_use]
    pub const fn base_position(&self) -> Position {
        self.base_position
    }

    /// The present rate in 32.32 fixed point nanoseconds per tick.
    #[must_use]
    pub const fn rate(&self) -> u64 {
        self.rate
    }

    /// Guest time at `position`. Positions before the base position show the base; time stops at `u64::MAX`.
    #[must_use]
    pub const fn time_at(&self, position: Position) -> GuestTime {
        let ticks = position.since(self.base_position);
        let ns = (ticks as u128 * self.rate as u128) >> 32;
        GuestTime(if ns > u64::MAX as u128 { u64::MAX } else { self.base.0.saturating_add(ns as u64) })
    }

    /// The smallest position (not before the base position) at which guest time is at least `time`.
    /// `None` when no position reaches it.
    #[must_use]
    pub const fn position_at(&self, time: GuestTime) -> Option<Position> {
        let ns = time.since(self.base);
        if ns == 0 {
            return Some(self.base_position);
        }
        if self.rate == 0 {
            return None;
        }
        // floor(ticks × rate / 2^32) ≥ ns exactly when ticks × rate ≥ ns × 2^32.
        let ticks = ((ns as u128) << 32).div_ceil(self.rate as u128);
        if ticks > (u64::MAX - self.base_position.0) as u128 {
            None
        } else {
            Some(self.base_position.after(ticks as u64))
        }
    }

    /// From `position` on, time is `base` there and advances by `rate`.
    ///
    /// # Errors
    /// When position or time would go backwards; the clock is unchanged then.
    pub fn steer(&mut self, position: Position, base: GuestTime, rate: u64) -> Result<(), ClockError> {
        if position < self.base_position {
            return Err(ClockError::PositionBackwards);
        }
        if base < self.time_at(position) {
            return Err(ClockError::TimeBackwards);
        }
        *self = Self { base, base_position: position, rate };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Values of every magnitude, not only huge ones.
    fn any_magnitude() -> impl Strategy<Value = u64> {
        prop_oneof![(any::<u64>(), 0u32..64).prop_map(|(v, s)| v >> s), Just(0), Just(u64::MAX), Just(RATE_ONE)]
    }

    fn clock() -> impl Strategy<Value = GuestClock> {
        (any_magnitude(), any_magnitude(), any_magnitude()).prop_map(|(base, base_position, rate)| GuestClock {
            base: GuestTime(base),
            base_position: Position(base_position),
            rate,
        })
    }

    #[test]
    fn one_tick_is_one_nanosecond_at_rate_one() {
        let mut clock = GuestClock::new(RATE_ONE);
        assert_eq!(clock.time_at(Position(12345)), GuestTime(12345));
        assert_eq!(clock.position_at(GuestTime(12345)), Some(Position(12345)));
        clock.steer(Position(1000), GuestTime(5000), RATE_ONE / 2).unwrap();
        assert_eq!(clock.time_at(Position(1001)), GuestTime(5000));
        assert_eq!(clock.time_at(Position(1002)), GuestTime(5001));
        assert_eq!(clock.position_at(GuestTime(5001)), Some(Position(1002)));
        assert_eq!(clock.steer(Position(999), GuestTime(9000), 1), Err(ClockError::PositionBackwards));
        assert_eq!(clock.steer(Position(1002), GuestTime(5000), 1), Err(ClockError::TimeBackwards));
    }

    #[test]
    fn the_end_of_time_is_reached_and_not_passed() {
        let fast = GuestClock::at(GuestTime(5), Position(0), u64::MAX);
        assert_eq!(fast.time_at(Position(u64::MAX)), GuestTime(u64::MAX));
        let clock = GuestClock::at(GuestTime(0), Position(10), RATE_ONE);
        assert_eq!(clock.position_at(GuestTime(u64::MAX - 10)), Some(Position(u64::MAX)));
        assert_eq!(clock.position_at(GuestTime(u64::MAX - 9)), None);
    }

    #[test]
    fn a_clock_tells_what_it_was_made_of_and_refusals_why() {
        let clock = GuestClock::at(GuestTime(7), Position(8), 9);
        assert_eq!((clock.base(), clock.base_position(), clock.rate()), (GuestTime(7), Position(8), 9));
        assert!(ClockError::PositionBackwards.to_string().contains("base position"));
        assert!(ClockError::TimeBackwards.to_string().contains("run backwards"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn time_never_runs_backwards(clock in clock(), a in any_magnitude(), b in any_magnitude()) {
            let (a, b) = (Position(a.min(b)), Position(a.max(b)));
            prop_assert!(clock.time_at(a) <= clock.time_at(b));
        }

        #[test]
        fn position_at_is_the_smallest_that_reaches(clock in clock(), time in any_magnitude()) {
            let time = GuestTime(time);
            match clock.position_at(time) {
                Some(p) => {
                    prop_assert!(clock.time_at(p) >= time);
                    prop_assert!(p >= clock.base_position());
                    prop_assert!(p == clock.base_position() || clock.time_at(Position(p.0 - 1)) < time);
                }
                None => prop_assert!(clock.rate() == 0 || clock.time_at(Position(u64::MAX)) < time),
            }
        }

        #[test]
        fn steering_keeps_order(
            clock in clock(), p in any_magnitude(), ahead in any_magnitude(), rate in any_magnitude(), q in any_magnitude()
        ) {
            let (p, q) = (Position(p), Position(q));
            let mut steered = clock;
            let base = clock.time_at(p).after(ahead);
            let result = steered.steer(p, base, rate);
            prop_assert_eq!(result.is_ok(), p >= clock.base_position());
            if result.is_ok() {
                prop_assert_eq!(steered.time_at(p), base);
                prop_assert!(steered.time_at(q.max(p)) >= clock.time_at(p));
                if let Some(earlier) = base.0.checked_sub(ahead.max(1)) && ahead == 0 {
                    prop_assert_eq!(clock.clone().steer(p, GuestTime(earlier), rate), Err(ClockError::TimeBackwards));
                }
            }
        }
    }
}
