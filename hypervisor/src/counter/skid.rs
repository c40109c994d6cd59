//! How late the ends of runs come, and the margin that follows from it.

use core::fmt;

/// Largest skid in ticks with which a stop is still affordable: the margin, and with it the single steps for each stop,
/// would go beyond 8192.
pub const LARGEST_USABLE: u64 = 1024;

/// How a margin follows from the largest skid that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The margin is so many times the largest skid,
    pub times: u64,
    /// and so many ticks at least.
    pub least: u64,
}

/// A histogram of skids: how many were below 1, 2, 4, 8 … ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Skid {
    buckets: [u32; 16],
    largest: u64,
}

impl Skid {
    /// Notes the end of a run that came `late` ticks late.
    pub fn note(&mut self, late: u64) {
        let bucket = (u64::BITS - late.leading_zeros()) as usize;
        let bucket = &mut self.buckets[bucket.min(self.buckets.len() - 1)];
        *bucket = bucket.saturating_add(1);
        self.largest = self.largest.max(late);
    }

    /// How many were noted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|&count| u64::from(count)).sum()
    }

    /// The largest.
    #[must_use]
    pub const fn largest(&self) -> u64 {
        self.largest
    }

    /// How long before the target the end of a run must be armed, to be sure; 0 if it may be armed at the target.
    #[must_use]
    pub fn margin(&self, policy: Policy) -> u64 {
        (policy.times * self.largest).max(policy.least)
    }
}

impl fmt::Display for Skid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "largest {}", self.largest)?;
        let last = self.buckets.len() - 1;
        for (bucket, count) in self.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            if bucket == last { write!(f, ", more: {count}")? } else { write!(f, ", <{}: {count}", 1_u32 << bucket)? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn nothing_is_stepped_without_skid() {
        const POLICY: Policy = Policy { times: 2, least: 0 };
        let mut skid = Skid::default();
        skid.note(0);
        assert_eq!(skid.margin(POLICY), 0);
        skid.note(31);
        assert_eq!(skid.margin(POLICY), 62);
    }

    #[test]
    fn the_margin_exceeds_the_largest_skid_by_far() {
        let mut skid = Skid::default();
        const POLICY: Policy = Policy { times: 8, least: 256 };
        assert_eq!((skid.count(), skid.margin(POLICY)), (0, 256));
        for late in [0, 1, 17, 18, 3] {
            skid.note(late);
        }
        assert_eq!((skid.count(), skid.largest(), skid.margin(POLICY)), (5, 18, 256));
        assert_eq!(skid.to_string(), "largest 18, <1: 1, <2: 1, <4: 1, <32: 2");
        skid.note(120);
        assert_eq!(skid.margin(POLICY), 960);
        skid.note(u64::MAX >> 4);
        assert!(skid.to_string().ends_with(", more: 1"));
    }
}
