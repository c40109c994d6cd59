use super::*;
use alloc::collections::VecDeque;
use proptest::prelude::*;

const BOUND: u64 = DEFAULT_BOUND_NS;

/// A guest at full speed makes a nanosecond of guest time in one of wall time; the backup executes `speed` of 1024.
struct Pair {
    throttle: Throttle,
    now_us: u64,
    ran_ns: u64,
    replayed_ns: u64,
    /// What the primary will hear of the backup, and when.
    acks: VecDeque<(u64, u64)>,
    heard_ns: u64,
    delay_us: u64,
    worst_lag_ns: u64,
    stood_us: u64,
}

impl Pair {
    fn new(delay_us: u64) -> Self {
        Self {
            throttle: Throttle::default(),
            now_us: 0,
            ran_ns: 0,
            replayed_ns: 0,
            acks: VecDeque::new(),
            heard_ns: 0,
            delay_us,
            worst_lag_ns: 0,
            stood_us: 0,
        }
    }

    fn lag_ns(&self) -> u64 {
        self.ran_ns - self.heard_ns
    }

    /// One turn of the primary's loop, at most `turn_us` long.
    fn turn(&mut self, turn_us: u64, speed: u64) {
        let us = match self.throttle.pause(Time(self.now_us), self.lag_ns()) {
            None => {
                self.ran_ns += (turn_us * 1000).min(self.throttle.room_ns(self.lag_ns()));
                turn_us
            }
            Some(until) => {
                self.stood_us += until.0 - self.now_us;
                until.0 - self.now_us
            }
        };
        self.now_us += us;
        self.replayed_ns = (self.replayed_ns + us * 1000 * speed / 1024).min(self.ran_ns);
        self.acks.push_back((self.now_us + self.delay_us, self.replayed_ns));
        while let Some((_, position)) = self.acks.pop_front_if(|(at, _)| *at <= self.now_us) {
            self.heard_ns = position;
        }
        self.worst_lag_ns = self.worst_lag_ns.max(self.lag_ns());
    }

    /// Smallest and largest share during this time.
    fn run(&mut self, us: u64, turn_us: u64, speed: u64) -> (u32, u32) {
        let end = self.now_us + us;
        let (mut least, mut most) = (FULL, 0);
        while self.now_us < end {
            self.turn(turn_us, speed);
            least = least.min(self.throttle.share());
            most = most.max(self.throttle.share());
        }
        (least, most)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_slow_backup_is_met_at_its_own_speed(
        speed in 60u64..900,
        delay_us in 100u64..100_000,
        turn_us in 50u64..2_000,
    ) {
        let mut pair = Pair::new(delay_us);
        pair.run(20_000_000, turn_us, speed);
        let (stood, ran) = (pair.stood_us, pair.ran_ns);
        let (least, most) = pair.run(5_000_000, turn_us, speed);
        // Neither stop nor full speed, but the backup's.
        prop_assert!(least > 0 && most < FULL, "{least} to {most}");
        prop_assert!(u64::from(most - least) < 150, "{least} to {most}");
        let got = (pair.ran_ns - ran) * 1024 / 5_000_000_000;
        prop_assert!(got.abs_diff(speed) < 60, "{got} instead of {speed}");
        prop_assert!(pair.stood_us > stood);
        prop_assert!(pair.worst_lag_ns <= BOUND);
        // Then the backup catches up, and the guest is let go.
        pair.run(5_000_000, turn_us, 3 * 1024);
        let stood = pair.stood_us;
        let (least, _) = pair.run(2_000_000, turn_us, 3 * 1024);
        prop_assert_eq!((least, pair.stood_us), (FULL, stood));
    }

    #[test]
    fn a_fast_backup_costs_nothing(speed in 1024u64..4096, delay_us in 100u64..400_000, turn_us in 50u64..2_000) {
        let mut pair = Pair::new(delay_us);
        pair.run(5_000_000, turn_us, speed);
        prop_assert_eq!(pair.stood_us, 0);
    }

    #[test]
    fn the_bound_is_never_passed(
        speeds in proptest::collection::vec(0u64..2048, 1..10),
        delay_us in 100u64..500_000,
        turn_us in 50u64..20_000,
    ) {
        let mut pair = Pair::new(delay_us);
        for speed in speeds {
            pair.run(1_000_000, turn_us, speed);
            prop_assert!(pair.worst_lag_ns <= BOUND);
        }
    }

    #[test]
    fn the_share_falls_with_the_lag(lag: u64, more: u64, bound in 1u64..u64::MAX) {
        let (a, b) = (share(lag, bound), share(lag.saturating_add(more), bound));
        prop_assert!(b <= a && a <= FULL);
        prop_assert_eq!(share(bound, bound), 0);
        prop_assert_eq!(share(bound / 2, bound), FULL);
    }
}

#[test]
fn a_dead_stop_at_the_bound_ends_with_the_lag() {
    let mut throttle = Throttle::default();
    assert_eq!(throttle.pause(Time(0), 0), None);
    let until = throttle.pause(Time(1000), BOUND).unwrap();
    assert_eq!((throttle.share(), until), (0, Time(1000).after(LONGEST_PAUSE)));
    assert_eq!(throttle.pause(until, BOUND / 2), None);
    assert_eq!(throttle.share(), FULL);
}

/// At a lag of three quarters of the bound a guest has half of the time.
#[test]
fn a_pause_is_as_long_as_the_run_before_it() {
    const HALF: u64 = BOUND / 4 * 3;
    let mut throttle = Throttle::default();
    let mut pause = |ms: u64| throttle.pause(Time(ms * 1000), HALF);
    assert_eq!((pause(0), pause(4)), (None, None), "it runs in pieces that are worth it");
    // It ran for 8 ms, and owes four of them.
    assert_eq!(pause(8), Some(Time(16_000)));
    assert_eq!(pause(15), Some(Time(16_000)));
    assert_eq!(pause(16), None);
    // A run that was too long is made up for; one that was much too long is not.
    for (ran, stands) in [(80, 80), (100, 100), (1000, 100)] {
        let mut throttle = Throttle::default();
        let mut pause = |ms: u64| throttle.pause(Time(ms * 1000), HALF);
        pause(0);
        let stood = (0..).find(|ms| pause(ran + ms).is_none());
        assert_eq!(stood, Some(stands), "after {ran} ms");
    }
}
