//! Random choices that can be made again.

use std::time::{SystemTime, UNIX_EPOCH};

/// A generator seeded by `POLLUX_SEED`, or by the clock. The seed is printed: a failure can be repeated with it.
///
/// # Panics
/// When `POLLUX_SEED` is no number.
#[must_use]
pub fn random() -> fastrand::Rng {
    let given = std::env::var("POLLUX_SEED").ok().map(|text| text.parse().expect("POLLUX_SEED is a number"));
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| u64::from(since.subsec_nanos()));
    let seed = given.unwrap_or_else(clock);
    println!("POLLUX_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}
