//! Rates from a machine's cumulative counters.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::monitor::Status;

/// A status and when it came.
#[derive(Debug)]
pub struct Sample {
    /// When.
    pub at: Instant,
    guest_ticks: u64,
    host_ticks: u64,
    wire: u64,
    log: BTreeMap<String, u64>,
    exits: BTreeMap<String, u64>,
}

impl Sample {
    /// What matters of `status`, which came at `at`.
    pub fn new(at: Instant, status: &Status) -> Self {
        Self {
            at,
            guest_ticks: status.guest_ticks,
            host_ticks: status.host_ticks,
            wire: status.wire_tx.saturating_add(status.wire_rx),
            log: status.log.iter().map(|(kind, amount)| (kind.clone(), amount.bytes)).collect(),
            exits: status.exits.clone(),
        }
    }
}

/// Per second of wall-clock time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// Millions of guest instructions.
    pub guest_mips: f64,
    /// Share of the hypervisor in all instructions that were executed, 0 to 1.
    pub overhead: f64,
    /// Bytes on the log NIC, both ways, heartbeats left out.
    pub wire_bytes: f64,
    /// Bytes of log entries by kind.
    pub log_bytes: BTreeMap<String, f64>,
    /// Exits by reason.
    pub exits: BTreeMap<String, f64>,
}

impl Rates {
    /// The rates between two samples of the same machine; none if they are too close.
    pub fn between(first: &Sample, last: &Sample) -> Option<Self> {
        let seconds = last.at.checked_duration_since(first.at)?.as_secs_f64();
        if seconds < 0.05 {
            return None;
        }
        // Counters start again when a machine changes its role; a negative rate would be nonsense.
        let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
        let rates = |new: &BTreeMap<String, u64>, old: &BTreeMap<String, u64>| {
            let pairs = new.iter().map(|(key, new)| (key.clone(), rate(*new, old.get(key).copied().unwrap_or(0))));
            pairs.collect()
        };
        let guest = rate(last.guest_ticks, first.guest_ticks);
        let host = rate(last.host_ticks, first.host_ticks);
        Some(Self {
            guest_mips: guest / 1e6,
            overhead: if host > 0.0 { (1.0 - guest / host).clamp(0.0, 1.0) } else { 0.0 },
            wire_bytes: rate(last.wire, first.wire),
            log_bytes: rates(&last.log, &first.log),
            exits: rates(&last.exits, &first.exits),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::rig::monitor::Amount;

    fn sample(at: Instant, guest: u64, host: u64, io: u64) -> Sample {
        let log = [("clock".to_owned(), Amount { n: 1, bytes: guest / 1000, data: 0 })].into();
        let exits = [("io".to_owned(), io)].into();
        Sample::new(at, &Status { guest_ticks: guest, host_ticks: host, log, exits, ..Status::default() })
    }

    #[test]
    fn rates_are_differences_over_time() {
        let start = Instant::now();
        let first = sample(start, 1_000_000, 2_000_000, 5);
        let last = sample(start + Duration::from_secs(2), 9_000_000, 12_000_000, 105);
        let rates = Rates::between(&first, &last).unwrap();
        assert!((rates.guest_mips - 4.0).abs() < 1e-9);
        assert!((rates.overhead - 0.2).abs() < 1e-9);
        assert!((rates.exits["io"] - 50.0).abs() < 1e-9);
        assert!((rates.log_bytes["clock"] - 4000.0).abs() < 1e-9);
        assert_eq!(Rates::between(&first, &first), None);
        assert!(Rates::between(&last, &first).is_none());
    }

    #[test]
    fn counters_that_start_again_give_no_negative_rates() {
        let start = Instant::now();
        let rates =
            Rates::between(&sample(start, 100, 100, 9), &sample(start + Duration::from_secs(1), 0, 0, 0)).unwrap();
        assert_eq!((rates.guest_mips, rates.overhead, rates.exits["io"]), (0.0, 0.0, 0.0));
    }
}
