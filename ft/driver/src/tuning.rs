//! What can be tuned. Everything else is the same everywhere.

use core::ops::RangeInclusive;

use pollux_ft::{Span, flow};

use crate::digest::Often;
use crate::marks::Waits;
use crate::rounds::Enough;
use crate::steering::RATES;

/// Sizes and times that depend on how large and fast guest and machine are. The defaults are those of real machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Ticks that a primary's guest runs at most before its driver looks around; host interrupts end a run earlier.
    /// Default 2^28.
    pub slice: u64,
    /// The same for a backup's guest. Default 2^24.
    pub follow_slice: u64,
    /// When to look again at what was full. Default 1 ms.
    pub retry: Span,
    /// How long marks may wait.
    pub marks: Waits,
    /// How often digests are made.
    pub digests: Often,
    /// Rates at which guest time may run, in nanoseconds per tick, 32.32 fixed point.
    pub rates: RangeInclusive<u64>,
    /// Guest time by which a backup may lag, in nanoseconds.
    pub lag_bound_ns: u64,
    /// Pages that are looked at in one turn of a transfer at most: a large memory takes longer than a twin is patient,
    /// zeros or not. Default 16,384.
    pub pages_a_turn: u64,
    /// When the rest of a memory is small enough to stop the guest for it.
    pub transfer: Enough,
    /// How long a guest that is to be protected stands for frames that the client card does not take. A card that is stuck
    /// for longer, say without a cable, must not keep the guest from being protected. Default 1 s.
    pub card_patience: Span,
    /// The guest stands still from the start of a transfer.
    pub transfer_stops: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            slice: 1 << 28,
            follow_slice: 1 << 24,
            retry: Span::from_millis(1),
            marks: Waits::default(),
            digests: Often::default(),
            rates: RATES,
            lag_bound_ns: flow::DEFAULT_BOUND_NS,
            pages_a_turn: 16 << 10,
            transfer: Enough::default(),
            card_patience: Span::from_millis(1000),
            transfer_stops: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_that_are_told() {
        let tuning = Tuning::default();
        assert_eq!((tuning.slice, tuning.follow_slice, tuning.pages_a_turn), (268_435_456, 16_777_216, 16_384));
        assert_eq!((tuning.digests.ticks, tuning.digests.slice), (33_554_432, 262_144));
    }
}
