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

/// A guest that is no newcomer: its time began before this machine's.
#[test]
fn wall_and_guest_time_are_two_names_of_a_moment() {
    let steering = Steering::start(Time(5_000), Position(77), GuestTime(9_000_000), 1 << 32, RATES);
    assert_eq!(steering.wanted(Time(5_000)), GuestTime(9_000_000));
    assert_eq!(steering.wanted(Time(6_000)), GuestTime(10_000_000));
    assert_eq!(steering.wall_of(GuestTime(10_000_000)), Time(6_000));
    assert_eq!((steering.wanted(Time(0)), steering.wall_of(GuestTime(0))), (GuestTime(4_000_000), Time(0)));
}

#[test]
fn a_speed_is_measured_over_an_interval_in_which_the_guest_did_nothing_but_run() {
    // The first entry ends an interval of which nothing is known.
    let measured = |parts: &[(u64, u64)], sleeps: bool| {
        let (mut steering, mut us, mut position) = (start(RATES), INTERVAL.0, 0);
        steering.steer(Time(us), awake(0, 0));
        for (part, ticks) in parts {
            (us, position) = (us + part, position + ticks);
            steering.steer(Time(us), awake(position, 0));
        }
        if sleeps {
            steering.note_sleep();
            (us, position) = (us + INTERVAL.0, position + 1000 * INTERVAL.0);
            steering.steer(Time(us), awake(position, 0));
        }
        steering.full_speed()
    };
    let guess = 2 << 32;
    assert_eq!(measured(&[(60_000, 120_000_000)], false), 1 << 31, "longer than need be");
    assert_eq!(measured(&[(20_000, 10_000_000), (40_000, 110_000_000)], false), 1 << 31, "in two parts");
    assert_eq!(measured(&[(49_999, 99_998_000)], false), guess, "too short");
    assert_eq!(measured(&[(LONGEST.0 + 1, 99_998_000)], false), guess, "too long");
    assert_eq!(measured(&[(60_000, 0)], false), guess, "it did not run");
    assert_eq!(measured(&[], true), guess, "it slept");
}

#[test]
fn a_guest_is_put_forward_or_held_from_a_bound_on() {
    let fixed = start(1 << 32..=1 << 32);
    let now = Time(20_000_000);
    let wanted = fixed.wanted(now).0;
    let ahead = |by: u64| fixed.ahead_until(now, GuestTime(wanted + by));
    assert_eq!((ahead(LEAD_NS), ahead(LEAD_NS + 1)), (None, Some(Time(20_004_001))));
    let behind = |steering: &Steering, by: u64| steering.step_at(now, GuestTime(wanted - by));
    assert_eq!((behind(&fixed, STEP_NS - 1), behind(&fixed, STEP_NS)), (None, Some(Position(STEP_TICKS))));
    assert_eq!(behind(&start(RATES), STEP_NS), None, "its rate is raised instead");
    let due = |position| fixed.is_due(now, Position(position), GuestTime(wanted - STEP_NS));
    assert!(!due(STEP_TICKS - 1) && due(STEP_TICKS));
    // The largest lag that is caught up.
    let base = |by: u64| start(1 << 32..=1 << 32).steer(now, awake(0, wanted - by)).base.0;
    assert_eq!(base(FAR_NS), wanted - FAR_NS + STEP_NS + FAR_NS / STEP_SHARE);
    assert_eq!(base(FAR_NS + 1), wanted);
}

#[test]
fn a_sleeper_that_is_woken_before_its_timer_is_not_put_beyond_the_wall() {
    let asleep = |deadline| Standing { asleep: true, deadline: Some(GuestTime(deadline)), ..awake(10, 500) };
    for deadline in [2_000_000_000, 3_000_000_000] {
        assert_eq!(start(RATES).steer(Time(2_000_000), asleep(deadline)).base, GuestTime(2_000_000_000));
    }
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
        steering.steer(Time(step * INTERVAL.0 + 100), Standing { asleep: true, ..awake(step * INTERVAL.0 + 3000, 0) });
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
