//! Steers guest time towards wall time: when a `Clock` entry is due, and what it says. Pure; the primary's alone.
//!
//! Guest time runs by the position. Where its rate is free, this module predicts it from how fast the guest ran lately, so
//! that guest time meets wall time one interval later. Where the rate is fixed, because the guest reads its clock without an
//! exit then, guest time is put forward by small steps when it is behind, and the guest is held when it is ahead.
//!
//! A guest that was held up, or cannot do the work of a tick in the time of a tick, must not find that time has run on
//! without it: what it waits for would be over before it had a chance. So guest time catches up by bounded steps, with work
//! between them, and is behind the wall for so long.

use core::ops::RangeInclusive;

use pollux_ft::{Position, Span, Time};

use crate::clock::GuestTime;

/// Wall time between two entries while the guest runs at a free rate, and the least over which its speed is measured.
const INTERVAL: Span = Span::from_millis(50);
/// An interval that took longer says nothing of the guest's speed: the machine itself was away.
const LONGEST: Span = Span(4 * INTERVAL.0);
/// At a free rate guest time runs at most so many times as fast as wall time when it catches up.
const CATCH_UP: u64 = 4;
/// At a fixed rate, lag of guest time in nanoseconds that is worth an entry, and the least that it is put forward by: a tick
/// of most kernels.
const STEP_NS: u64 = 4_000_000;
/// The steps are longer for a guest that is far behind: by its lag over this number. So its lag is bounded.
const STEP_SHARE: u64 = 256;
/// At a fixed rate, ticks that a guest runs at least between two steps: some times what a kernel does at a tick.
const STEP_TICKS: u64 = 20_000;
/// Lag in nanoseconds from which nothing is caught up: the machine was away, as in a suspension.
const FAR_NS: u64 = 10_000_000_000;
/// At a fixed rate, lead of guest time in nanoseconds from which the guest is held.
const LEAD_NS: u64 = 4_000_000;
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

/// How fast a guest ran on its primary, told from the rates that it was given there: each is for a moment how to meet wall
/// time again, and they are right on average.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FollowedSpeed(u64);

impl FollowedSpeed {
    /// Known of it is this rate, in nanoseconds per tick, 32.32 fixed point.
    pub(crate) fn new(rate: u64) -> Self {
        Self(rate)
    }

    /// It was given this rate.
    pub(crate) fn note(&mut self, rate: u64) {
        self.0 = self.0 / 8 * 7 + rate / 8;
    }

    /// What a primary may start with that takes the guest over.
    pub(crate) fn get(self) -> u64 {
        self.0
    }
}

/// Where a guest stands in its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Its position.
    pub position: Position,
    /// Guest time there.
    pub time: GuestTime,
    /// It is halted.
    pub asleep: bool,
    /// When its next timer fires.
    pub deadline: Option<GuestTime>,
}

/// The primary's view of guest time against wall time.
#[derive(Debug)]
pub struct Steering {
    /// Wall time at which guest time would be 0, in nanoseconds; may lie before the machine's boot.
    origin_ns: i128,
    /// Wall time and position at the last entry.
    last: (Time, Position),
    /// Wall time and position from which on the guest's speed is measured.
    measured: (Time, Position),
    /// Whether the guest slept since then: then its speed was not seen.
    slept: bool,
    /// Whether it was held up since then.
    paused: bool,
    /// Nanoseconds per tick, 32.32 fixed point, as measured: with and without what held the guest up; and the rates that
    /// may be chosen.
    speed: u64,
    full_speed: u64,
    /// Nobody has measured it here yet.
    guessed: bool,
    rates: RangeInclusive<u64>,
}

impl Steering {
    /// Guest time is `guest` at wall time `now` and goes on from there; a tick is taken to last for `speed` until that has
    /// been measured, as far as it is within `rates`.
    #[must_use]
    pub fn start(now: Time, position: Position, guest: GuestTime, speed: u64, rates: RangeInclusive<u64>) -> Self {
        let mut steering = Self {
            origin_ns: i128::from(now.0) * 1000 - i128::from(guest.0),
            last: (now, position),
            measured: (now, position),
            slept: true,
            paused: false,
            speed: 0,
            full_speed: 0,
            guessed: true,
            rates,
        };
        (steering.speed, steering.full_speed) = (steering.believable(speed), steering.believable(speed));
        steering
    }

    /// A fixed rate says nothing of how fast guests run.
    fn believable(&self, speed: u64) -> u64 {
        let rates = if self.is_fixed() { &RATES } else { &self.rates };
        speed.clamp(*rates.start(), *rates.end())
    }

    /// Whether there is but one rate.
    fn is_fixed(&self) -> bool {
        self.rates.start() == self.rates.end()
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
    ///
    /// Before it was measured it is a guess, and rather too slow than too fast: for a guest that sleeps most of the time that
    /// may be long, and ticks that are taken to be shorter than they are let a twin fall behind.
    #[must_use]
    pub fn full_speed(&self) -> u64 {
        if self.guessed { self.full_speed.saturating_mul(2) } else { self.full_speed }
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
    pub fn is_due(&self, now: Time, position: Position, guest: GuestTime) -> bool {
        if !self.is_fixed() {
            return now.since(self.last.0) >= INTERVAL;
        }
        self.step_at(now, guest).is_some_and(|at| at <= position)
    }

    /// At a fixed rate, where a guest that is behind is to get its next step.
    #[must_use]
    pub fn step_at(&self, now: Time, guest: GuestTime) -> Option<Position> {
        let behind = self.is_fixed() && self.wanted(now).since(guest) >= STEP_NS;
        behind.then(|| Position(self.last.1.0.saturating_add(STEP_TICKS)))
    }

    /// Until when a guest must wait that is ahead of the wall, where only that slows its time down.
    #[must_use]
    pub fn ahead_until(&self, now: Time, guest: GuestTime) -> Option<Time> {
        let ahead = self.is_fixed() && guest.since(self.wanted(now)) > LEAD_NS;
        ahead.then(|| self.wall_of(guest))
    }

    /// Whether a guest that wakes needs an entry first, because it slept long enough to notice.
    #[must_use]
    pub fn is_due_at_wake(&self, now: Time, guest: GuestTime) -> bool {
        self.wanted(now).since(guest) >= WAKE_LAG_NS
    }

    /// The entry for a guest at an exact stop. Never puts guest time back.
    pub fn steer(&mut self, now: Time, guest: Standing) -> Steer {
        self.measure(now, &guest);
        self.last = (now, guest.position);
        let base = self.base(now, &guest);
        if self.is_fixed() {
            return Steer { base, rate: *self.rates.start() };
        }
        // From `base` now to wall time one interval later.
        let goal_ns = self.wanted(now.after(INTERVAL)).since(base).min(CATCH_UP * INTERVAL.0 * 1000);
        let rate = u128::from(self.speed) * u128::from(goal_ns) / u128::from(INTERVAL.0 * 1000);
        let (least, most) = (*self.rates.start(), *self.rates.end());
        Steer { base, rate: u64::try_from(rate).unwrap_or(most).clamp(least, most) }
    }

    /// Guest time from now on.
    fn base(&self, now: Time, guest: &Standing) -> GuestTime {
        let wanted = self.wanted(now);
        let lag = wanted.since(guest.time);
        if lag == 0 {
            return guest.time;
        }
        if lag > FAR_NS {
            return wanted;
        }
        // Who sleeps misses nothing until the next timer.
        let from = match guest.deadline {
            _ if !guest.asleep => guest.time,
            Some(deadline) if deadline < wanted => deadline.max(guest.time),
            _ => return wanted,
        };
        if !guest.asleep && !self.is_fixed() {
            return from;
        }
        let lag = wanted.since(from);
        from.after(lag.min(STEP_NS + lag / STEP_SHARE))
    }

    fn measure(&mut self, now: Time, guest: &Standing) {
        let (since, from) = self.measured;
        let (elapsed, ticks) = (now.since(since), guest.position.0 - from.0);
        if elapsed < INTERVAL && !self.slept && !guest.asleep {
            return;
        }
        if !self.slept && ticks > 0 && (INTERVAL..=LONGEST).contains(&elapsed) {
            let most = self.believable(u64::MAX);
            let measured = ((u128::from(elapsed.0 * 1000) << 32) / u128::from(ticks)).min(u128::from(most)) as u64;
            // An average over some intervals: one that was disturbed does not throw the rate about.
            let average = |speed: u64| self.believable(speed / 4 * 3 + measured / 4);
            let (speed, full_speed) = (average(self.speed), average(self.full_speed));
            self.speed = speed;
            if !self.paused {
                self.full_speed = if self.guessed { self.believable(measured) } else { full_speed };
                self.guessed = false;
            }
        }
        self.measured = (now, guest.position);
        (self.slept, self.paused) = (guest.asleep, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::GuestClock;
    use proptest::prelude::*;

    /// A guest that runs.
    fn awake(position: u64, time: u64) -> Standing {
        Standing { position: Position(position), time: GuestTime(time), asleep: false, deadline: None }
    }

    fn start(rates: RangeInclusive<u64>) -> Steering {
        Steering::start(Time(0), Position(0), GuestTime(0), 1 << 32, rates)
    }

    /// Runs a guest of `ticks_per_us` for `intervals` and returns the largest lag of guest time after settling.
    fn largest_error_ns(ticks_per_us: u64, intervals: u64) -> u64 {
        let mut clock = GuestClock::new(1 << 32);
        let mut steering = Steering::start(Time(1_000_000), Position(0), GuestTime(0), 1 << 32, RATES);
        let mut worst = 0;
        for step in 1..=intervals {
            let wall = 1_000_000 + step * INTERVAL.0;
            let position = step * INTERVAL.0 * ticks_per_us;
            let now = clock.time_at(Position(position));
            if step > 20 {
                worst = worst.max(steering.wanted(Time(wall)).0.abs_diff(now.0));
            }
            let steer = steering.steer(Time(wall), awake(position, now.0));
            clock.steer(Position(position), steer.base, steer.rate).unwrap();
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
    fn rates_tell_a_follower_the_speed_though_each_is_another() {
        let (mut clock, mut steering) = (GuestClock::new(1 << 32), start(RATES));
        let mut followed = FollowedSpeed::new(1 << 32);
        let (mut wall, mut position, mut guesses) = (0, 0, Vec::new());
        // Half a nanosecond a tick, but the guest is held up now and then.
        for step in 1..200 {
            let held_up = step % 7 == 0;
            if held_up {
                steering.note_pause();
            }
            wall += INTERVAL.0;
            position += INTERVAL.0 * if held_up { 400 } else { 2000 };
            let steer = steering.steer(Time(wall), awake(position, clock.time_at(Position(position)).0));
            clock.steer(Position(position), steer.base, steer.rate).unwrap();
            followed.note(steer.rate);
            guesses.push((steer.rate, followed.get()));
        }
        let speed = steering.full_speed();
        assert!(speed.abs_diff(1 << 31) < 1 << 26, "{speed:x}");
        let most_off = |guesses: &mut dyn Iterator<Item = u64>| {
            guesses.map(|guess| guess.abs_diff(speed) * 100 / speed).max().unwrap()
        };
        let by_rate = most_off(&mut guesses[100..].iter().map(|guess| guess.0));
        let by_average = most_off(&mut guesses[100..].iter().map(|guess| guess.1));
        assert!(by_rate > 70 && by_average < 35, "{by_rate} {by_average}");
    }

    #[test]
    fn a_guess_of_the_speed_is_on_the_slow_side_and_ends_with_the_first_measurement() {
        let mut steering = start(RATES);
        assert_eq!(steering.full_speed(), 2 << 32);
        // It slept, which says nothing.
        let asleep = Standing { asleep: true, ..awake(10, 0) };
        steering.steer(Time(INTERVAL.0), asleep);
        steering.steer(Time(2 * INTERVAL.0), awake(20, 0));
        assert_eq!(steering.full_speed(), 2 << 32);
        steering.steer(Time(3 * INTERVAL.0), awake(20 + 2000 * INTERVAL.0, 0));
        assert_eq!(steering.full_speed(), 1 << 31);
    }

    /// Positions are those of whole slices: over a moment they say anything.
    #[test]
    fn a_moment_says_nothing_of_the_speed() {
        let mut steering = start(RATES);
        steering.steer(Time(INTERVAL.0), awake(1000, 0));
        let falls_asleep = Standing { asleep: true, ..awake(3095, 0) };
        steering.steer(Time(INTERVAL.0 + 643), falls_asleep);
        assert_eq!((steering.speed, steering.full_speed()), (1 << 32, 2 << 32), "it is still a guess");
        (2..200).step_by(2).for_each(|step| {
            steering.steer(Time(step * INTERVAL.0), awake(step * INTERVAL.0, 0));
            steering
                .steer(Time(step * INTERVAL.0 + 100), Standing { asleep: true, ..awake(step * INTERVAL.0 + 3000, 0) });
        });
        assert_eq!((steering.speed, steering.full_speed()), (1 << 32, 2 << 32));
    }

    #[test]
    fn what_holds_a_guest_up_does_not_count_as_its_speed() {
        let mut steering = start(RATES);
        let mut position = 0;
        let mut run = |steering: &mut Steering, step: u64, ticks_per_us: u64| {
            position += INTERVAL.0 * ticks_per_us;
            steering.steer(Time(step * INTERVAL.0), awake(position, step * INTERVAL.0 * 1000));
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
        let mut steering = start(RATES);
        steering.steer(Time(INTERVAL.0), awake(INTERVAL.0 * 1000, INTERVAL.0 * 1000));
        let time = INTERVAL.0 * 2000;
        let steer = steering.steer(Time(100 * INTERVAL.0), awake(INTERVAL.0 * 2000, time));
        assert_eq!(steer, Steer { base: GuestTime(time), rate: CATCH_UP << 32 }, "it catches up at a bounded rate");
        let far = FAR_NS / 1000 + 200 * INTERVAL.0;
        let steer = steering.steer(Time(far), awake(INTERVAL.0 * 3000, time));
        assert_eq!(steer, Steer { base: GuestTime(far * 1000), rate: 1 << 32 }, "nobody waits for hours to be over");
    }

    #[test]
    fn a_sleeper_wakes_at_wall_time() {
        let mut steering = start(RATES);
        assert!(!steering.is_due_at_wake(Time(1000), GuestTime(0)));
        assert!(steering.is_due_at_wake(Time(5000), GuestTime(0)));
        let asleep = Standing { asleep: true, ..awake(10, 500) };
        assert_eq!(steering.steer(Time(3_000_000), asleep).base, GuestTime(3_000_000_000));
        assert_eq!(steering.wall_of(GuestTime(3_000_000_001)), Time(3_000_001));
    }

    #[test]
    fn a_sleeper_that_was_held_up_misses_none_of_its_timers() {
        for rates in [RATES, 1 << 32..=1 << 32] {
            let mut steering = start(rates);
            let deadline = GuestTime(1_000_000_000);
            let asleep = Standing { asleep: true, deadline: Some(deadline), ..awake(10, 500) };
            let base = steering.steer(Time(1_001_000), asleep).base;
            assert_eq!(base, GuestTime(1_001_000_000), "a timer that is a little late");
            let base = steering.steer(Time(2_000_000), asleep).base;
            assert_eq!(base, deadline.after(STEP_NS + 1_000_000_000 / STEP_SHARE), "one that is late by a second");
        }
    }

    /// A guest at a fixed rate, `ticks_per_us` fast, which stands still for the first `held_us`.
    struct Fixed {
        steering: Steering,
        clock: GuestClock,
        wall: u64,
        position: u64,
        largest_step: u64,
    }

    impl Fixed {
        fn new(held_us: u64) -> Self {
            let (steering, clock) = (start(1 << 32..=1 << 32), GuestClock::new(1 << 32));
            Self { steering, clock, wall: held_us, position: 0, largest_step: 0 }
        }

        /// Runs for `us`; the largest lag and the largest lead of guest time in nanoseconds.
        fn run(&mut self, us: u64, ticks_per_us: u64) -> (u64, u64) {
            let (mut lag, mut lead) = (0, 0);
            for _ in 0..us / 100 {
                self.wall += 100;
                let now = Time(self.wall);
                if self.steering.ahead_until(now, self.clock.time_at(Position(self.position))).is_none() {
                    self.position += 100 * ticks_per_us;
                }
                let time = self.clock.time_at(Position(self.position));
                (lag, lead) =
                    (lag.max(self.steering.wanted(now).since(time)), lead.max(time.since(self.steering.wanted(now))));
                if self.steering.is_due(now, Position(self.position), time) {
                    let steer = self.steering.steer(now, awake(self.position, time.0));
                    assert_eq!(steer.rate, 1 << 32);
                    self.largest_step = self.largest_step.max(steer.base.since(time));
                    self.clock.steer(Position(self.position), steer.base, steer.rate).unwrap();
                }
            }
            (lag, lead)
        }
    }

    #[test]
    fn at_a_fixed_rate_guest_time_keeps_near_the_wall_by_small_steps() {
        for ticks_per_us in [20, 70, 1000, 1400] {
            let mut guest = Fixed::new(0);
            let (lag, lead) = guest.run(1_000_000, ticks_per_us);
            assert!(lag <= STEP_NS + 200_000, "{ticks_per_us}: {lag}");
            assert!(lead <= LEAD_NS + 200_000, "{ticks_per_us}: {lead}");
            assert!(guest.largest_step <= STEP_NS + 50_000, "{ticks_per_us}: {}", guest.largest_step);
        }
    }

    #[test]
    fn at_a_fixed_rate_a_guest_that_was_held_up_works_between_the_steps_and_catches_up() {
        let mut guest = Fixed::new(1_000_000);
        guest.run(500_000, 70);
        assert!(guest.largest_step <= 2 * STEP_NS, "{}", guest.largest_step);
        assert!(guest.run(100_000, 70).0 <= STEP_NS + 200_000);
    }

    #[test]
    fn at_a_fixed_rate_a_guest_that_is_too_slow_is_behind_for_a_bounded_time() {
        // 20,000 ticks take it 10 ms: more than a step.
        let mut guest = Fixed::new(0);
        guest.run(20_000_000, 2);
        let lag = guest.run(1_000_000, 2).0;
        assert!(lag < 2_000_000_000, "{lag}");
    }

    proptest! {
        #[test]
        fn time_is_never_put_back(
            steps in prop::collection::vec((0u64..200_000, 0u64..1_000_000_000, any::<bool>()), 1..50)
        ) {
            let mut clock = GuestClock::new(1 << 32);
            let (mut wall, mut position) = (0, 0);
            let mut steering = start(RATES);
            for (us, ticks, asleep) in steps {
                wall += us;
                position += ticks;
                let guest = Standing { asleep, ..awake(position, clock.time_at(Position(position)).0) };
                let steer = steering.steer(Time(wall), guest);
                prop_assert!(clock.steer(Position(position), steer.base, steer.rate).is_ok());
                prop_assert!(RATES.contains(&steer.rate));
            }
        }
    }
}
