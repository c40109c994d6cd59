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
mod tests;
