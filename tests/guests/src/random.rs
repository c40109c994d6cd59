//! A small generator of pseudo-random numbers, the same for the same seed everywhere.

/// xorshift64*.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator for a seed; every seed works.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // The state must not be 0, and seeds that differ little shall soon lead to different numbers.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number from 0 to `bound` − 1; `bound` is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.number() >> 16) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_matter_and_repeat() {
        let numbers = |seed| {
            let mut random = Random::new(seed);
            [(); 8].map(|()| random.below(1000))
        };
        assert_eq!(numbers(0), numbers(0));
        assert_ne!(numbers(0), numbers(2));
        assert!(numbers(7).iter().all(|number| *number < 1000));
    }
}
