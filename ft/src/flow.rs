//! How much a lagging backup slows the primary's guest down.
//!
//! Up to half of the bound a lag costs nothing. From there on the guest runs for a share of the time that falls
//! linearly, and at the bound it stands. Where the backup manages a share `r` of the primary's speed, the lag settles
//! where the guest's share is `r`, as the lag only grows by the difference; when the backup catches up, the guest is let
//! go. The way there is smooth as long as the bound is some ten times the age of the lag that is handed in.

use crate::types::{Span, Time};

/// The bound on the lag, in nanoseconds of guest time, unless told otherwise.
pub const DEFAULT_BOUND_NS: u64 = 1_000_000_000;
/// A guest that runs all the time has this share.
pub const FULL: u32 = 1024;

/// Running time that is granted in advance, so that the guest runs and pauses in pieces that are worth it.
const BURST_US: i64 = 4_000;
/// Longest pause before the lag is looked at again.
const LONGEST_PAUSE: Span = Span::from_millis(10);

/// The share of time, of [`FULL`], that the guest may run with a backup that lags by `lag_ns` of guest time.
#[must_use]
pub fn share(lag_ns: u64, bound_ns: u64) -> u32 {
    let free = bound_ns / 2;
    if lag_ns <= free {
        return FULL;
    }
    let left = u128::from(bound_ns.saturating_sub(lag_ns));
    let range = u128::from(bound_ns - free).max(1);
    // Not more than FULL, as `left` is not more than `range`.
    (left * u128::from(FULL) / range) as u32
}

/// Makes a guest run for its share of the time.
#[derive(Debug, Clone)]
pub struct Throttle {
    bound_ns: u64,
    share: u32,
    /// Time that the guest may run before it has to pause, in microseconds; negative: it ran too long.
    credit_us: i64,
    last: Option<Time>,
    running: bool,
}

impl Throttle {
    /// A guest that is not slowed down, with a backup that may lag by `bound_ns` of guest time.
    #[must_use]
    pub const fn new(bound_ns: u64) -> Self {
        Self { bound_ns, share: FULL, credit_us: 0, last: None, running: true }
    }

    /// To be asked before the guest runs, which is then taken to run until the next call. `Some`: it must stand still
    /// until then, because the backup lags by `lag_ns` of guest time.
    pub fn pause(&mut self, now: Time, lag_ns: u64) -> Option<Time> {
        self.share = share(lag_ns, self.bound_ns);
        let elapsed = self.last.replace(now).map_or(0, |last| now.since(last).0);
        if self.share == FULL {
            (self.credit_us, self.running) = (0, true);
            return None;
        }
        // A pause or a run that was much longer than planned is not made up for.
        let elapsed = elapsed.min(10 * LONGEST_PAUSE.0) as i64;
        let earned = elapsed * i64::from(self.share) / i64::from(FULL);
        let spent = if self.running { elapsed } else { 0 };
        self.credit_us = (self.credit_us + earned - spent).clamp(-20 * BURST_US, BURST_US);
        // Who runs goes on until the credit is used up, who stands waits until there is some.
        let least = if self.running { 1 - BURST_US } else { 0 };
        self.running = self.share > 0 && self.credit_us >= least;
        (!self.running).then(|| now.after(self.wait()))
    }

    fn wait(&self) -> Span {
        let missing = u64::try_from(-self.credit_us).unwrap_or(0).max(1);
        let wait = missing * u64::from(FULL) / u64::from(self.share.max(1));
        Span(wait.clamp(100, LONGEST_PAUSE.0))
    }

    /// The share of time, of [`FULL`], that the guest had when [`pause`](Self::pause) was last asked.
    #[must_use]
    pub const fn share(&self) -> u32 {
        self.share
    }

    /// Guest time that may pass before a backup that lags by `lag_ns` has reached the bound, in nanoseconds.
    #[must_use]
    pub const fn room_ns(&self, lag_ns: u64) -> u64 {
        self.bound_ns.saturating_sub(lag_ns)
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new(DEFAULT_BOUND_NS)
    }
}

#[cfg(test)]
mod tests;
