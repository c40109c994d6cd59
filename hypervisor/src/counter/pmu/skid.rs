//! How late overflow interrupts come, and the margin that follows from it.

use core::fmt;

/// Least margin in instructions. 100 to 125 is what the debugger rr has found to be enough on Intel CPUs since 2008 for
/// overflows of another counter; 18 has been measured for this one.
const LEAST_MARGIN: u64 = 256;
/// The margin is so many times the largest skid that was seen.
const SAFETY: u64 = 8;
/// Largest skid in instructions with which a stop is still affordable: the margin, and with it the single steps for each
/// stop, would go beyond 8192.
pub const LARGEST_USABLE: u64 = 1024;

/// A histogram of skids: how many were below 1, 2, 4, 8 … instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Skid {
    buckets: [u32; 16],
    largest: u64,
}

impl Skid {
    /// Notes an overflow that came `late` instructions late.
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

    /// How long before the target an overflow must be armed, to be sure.
    #[must_use]
    pub fn margin(&self) -> u64 {
        (SAFETY * self.largest).max(LEAST_MARGIN)
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
    fn the_margin_exceeds_the_largest_skid_by_far() {
        let mut skid = Skid::default();
        assert_eq!((skid.count(), skid.margin()), (0, 256));
        for late in [0, 1, 17, 18, 3] {
            skid.note(late);
        }
        assert_eq!((skid.count(), skid.largest(), skid.margin()), (5, 18, 256));
        assert_eq!(skid.to_string(), "largest 18, <1: 1, <2: 1, <4: 1, <32: 2");
        skid.note(120);
        assert_eq!(skid.margin(), 960);
        skid.note(u64::MAX >> 4);
        assert!(skid.to_string().ends_with(", more: 1"));
    }
}
