//! What the gate reports about itself.

/// Buckets of the histogram of hold times.
pub const HOLD_BUCKETS: usize = 24;

/// Counts since the gate was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GateStats {
    /// Frames that left for the wire.
    pub released: u64,
    /// Those among them that had been retained: each is new to the client, or a copy, bit by bit, of what the former
    /// primary sent.
    pub resent: u64,
    /// Retained frames forgotten because the primary is known to have sent them.
    pub retained_released: u64,
    /// Retained frames forgotten, oldest first, because there was no room. Other than zero: outputs may be lost at a
    /// takeover, unless the primary's gate has no more room than this one.
    pub retained_forgotten: u64,
    /// Frames dropped because the gate was closed, or because a change of mode emptied it.
    pub dropped_closed: u64,
    /// Frames refused because they are no Ethernet frames.
    pub invalid: u64,
    /// Frames refused because the gate was full beyond its reserve. Other than zero: the primary did not heed
    /// [`Gate::is_full`](super::Gate::is_full).
    pub overflowed: u64,
    /// Frames that the NIC refused for good. Other than zero: the NIC's bounds differ from the gate's.
    pub refused_by_nic: u64,
    /// Most frames held at once.
    pub held_max: usize,
    /// Most bytes held at once.
    pub held_bytes_max: usize,
    /// Longest time that a frame was held in [`GateMode::Held`](super::GateMode::Held), in microseconds.
    pub hold_time_max_us: u64,
    /// How long frames were held in that mode: bucket 0 counts times below 1 µs, bucket n those from 2^(n-1) up to
    /// but not including 2^n µs, the last also all longer ones.
    pub hold_times: [u64; HOLD_BUCKETS],
}

impl GateStats {
    pub(super) fn record_hold_time(&mut self, us: u64) {
        self.hold_time_max_us = self.hold_time_max_us.max(us);
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        self.hold_times[bucket.min(HOLD_BUCKETS - 1)] += 1;
    }

    /// An upper bound of the hold time that `permille` of all released frames did not exceed, in microseconds: the end
    /// of a bucket of the histogram. `None` if nothing was released yet.
    pub fn hold_time_quantile_us(&self, permille: u64) -> Option<u64> {
        let total: u64 = self.hold_times.iter().sum();
        let wanted = (total * permille.min(1000)).div_ceil(1000).max(1);
        let mut seen = 0;
        for (bucket, &count) in self.hold_times.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                let end = (1u64 << bucket) - 1;
                return Some(if bucket == HOLD_BUCKETS - 1 { self.hold_time_max_us } else { end });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        let mut stats = GateStats::default();
        assert_eq!(stats.hold_time_quantile_us(500), None);
        for us in [0, 1, 2, 3, 4, 7, 8, u64::MAX] {
            stats.record_hold_time(us);
        }
        assert_eq!(stats.hold_times[..5], [1, 1, 2, 2, 1]);
        assert_eq!(stats.hold_times[HOLD_BUCKETS - 1], 1);
        assert_eq!(stats.hold_time_quantile_us(0), Some(0));
        assert_eq!(stats.hold_time_quantile_us(500), Some(3));
        assert_eq!(stats.hold_time_quantile_us(1000), Some(u64::MAX));
    }
}
