//! Memory that is filled at the start and written anew at a steady rate, for those who copy memory while it changes.

/// Bytes that are written in one go.
const PAGE: usize = 4096;
/// Longest time that is made up for, in microseconds: a guest that stood still does not rush.
const MAX_BEHIND: u64 = 10_000;

/// The memory, and how far the writing is.
pub struct Ballast<'a> {
    memory: &'a mut [u8],
    /// Bytes a second.
    rate: u64,
    /// Where the next page is written.
    at: usize,
    /// Until when all that was due has been written, in microseconds.
    done_until: u64,
    value: u64,
}

impl<'a> Ballast<'a> {
    /// Fills `memory`, of which whole pages are used, and will rewrite `rate` bytes of it a second from `now` on.
    pub fn new(memory: &'a mut [u8], rate: u64, now: u64) -> Self {
        let used = memory.len() / PAGE * PAGE;
        let mut ballast = Self { memory: &mut memory[..used], rate, at: 0, done_until: now, value: 1 };
        for _ in 0..used / PAGE {
            ballast.write_page();
        }
        ballast
    }

    /// Whether anything will ever be due.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.rate > 0 && !self.memory.is_empty()
    }

    /// Writes what is due at `now`, in microseconds.
    pub fn step(&mut self, now: u64) {
        if !self.is_busy() {
            return;
        }
        self.done_until = self.done_until.max(now.saturating_sub(MAX_BEHIND));
        let page_time = (PAGE as u64 * 1_000_000).div_ceil(self.rate);
        while self.done_until + page_time <= now {
            self.done_until += page_time;
            self.write_page();
        }
    }

    fn write_page(&mut self) {
        self.value = self.value.wrapping_add(1);
        let (words, _) = self.memory[self.at..self.at + PAGE].as_chunks_mut::<8>();
        words.fill(self.value.to_ne_bytes());
        self.at = (self.at + PAGE) % self.memory.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_filled_and_rewritten_at_the_rate() {
        let mut memory = vec![0; 3 * PAGE + 100];
        let mut ballast = Ballast::new(&mut memory, 2 * PAGE as u64 * 1000, 5);
        ballast.step(5 + 499);
        assert_eq!(ballast.at, 0);
        ballast.step(5 + 1000);
        assert_eq!(ballast.at, 2 * PAGE);
        // Ten milliseconds are made up for, not a minute: 20 pages.
        ballast.step(60_000_000);
        assert_eq!(ballast.at, (2 + 20) % 3 * PAGE);
        assert!(memory[..3 * PAGE].chunks(8).all(|word| word != [0; 8]));
        assert!(memory[3 * PAGE..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn without_rate_or_memory_nothing_happens() {
        for (len, rate) in [(0, 1000), (PAGE, 0)] {
            let mut memory = vec![0; len];
            let mut ballast = Ballast::new(&mut memory, rate, 0);
            assert!(!ballast.is_busy());
            ballast.step(1_000_000);
        }
    }
}
