//! Which pages of a changing memory still have to be sent, and when it is time to stop the guest for the rest. Pure.
//!
//! The first round goes over all of memory, each later one over what changed meanwhile. The guest is stopped when the
//! rest is small enough to be sent in a pause that nobody notices, or when the rounds do not get smaller any more.

use pollux_ft::{Span, Time};

use crate::pages::PageSet;

/// After so many rounds the guest is stopped, whatever is left.
const MAX_ROUNDS: u32 = 30;
/// Rounds in a row that may fail to be smaller than the smallest before.
const MAX_FUTILE: u32 = 3;

/// When a rest is small enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enough {
    /// The pause that is aimed at for sending the rest. Default 30 ms.
    pub pause: Span,
    /// A rest that is always small enough, in pages. Default 64.
    pub few_pages: u64,
}

impl Default for Enough {
    fn default() -> Self {
        Self { pause: Span::from_millis(30), few_pages: 64 }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Send these pages: `count` from `first` on.
    Pages {
        /// Number of the first page.
        first: u64,
        /// How many, at least 1.
        count: u64,
    },
    /// The round is over: begin another with what changed meanwhile.
    RoundEnds,
}

/// The state of a copy. Pages are dealt with in the order in which [`next`](Self::next) names them.
#[derive(Debug)]
pub struct Rounds {
    left: PageSet,
    /// No page below this one is left.
    at: u64,
    /// The round under way, from 1 on.
    round: u32,
    began: Time,
    sent: u64,
    smallest: u64,
    futile: u32,
    /// Pages a second, as the last round that says anything went; 0 before.
    rate: u64,
    enough: Enough,
}

impl Rounds {
    /// The first round over a memory of `pages` pages.
    #[must_use]
    pub fn new(pages: u64, now: Time, enough: Enough) -> Self {
        let mut left = PageSet::new(pages);
        (0..pages).for_each(|page| left.insert(page));
        Self { left, at: 0, round: 1, began: now, sent: 0, smallest: u64::MAX, futile: 0, rate: 0, enough }
    }

    /// The round under way, from 1 on.
    #[must_use]
    pub fn round(&self) -> u32 {
        self.round
    }

    /// What to send next: a run of pages, at most `longest`.
    #[must_use]
    pub fn next(&self, longest: u64) -> Next {
        let Some(first) = self.left.first_from(self.at) else { return Next::RoundEnds };
        let count = (1..longest).take_while(|&ahead| self.left.contains(first + ahead)).count() as u64 + 1;
        Next::Pages { first, count }
    }

    /// These pages were dealt with; `sent` of them were worth sending.
    pub fn done(&mut self, first: u64, count: u64, sent: u64) {
        (first..first + count).for_each(|page| {
            self.left.remove(page);
        });
        self.at = first + count;
        self.sent += sent;
    }

    /// The next round: the pages that changed during the last one. Returns whether the guest should be stopped first.
    pub fn begin(&mut self, changed: PageSet, now: Time) -> bool {
        let (elapsed_us, Enough { pause, few_pages }) = (now.since(self.began).0, self.enough);
        if self.sent >= few_pages && elapsed_us > 0 {
            self.rate = self.sent * 1_000_000 / elapsed_us;
        }
        let rest = changed.len();
        self.futile = if rest < self.smallest { 0 } else { self.futile + 1 };
        self.smallest = self.smallest.min(rest);
        (self.left, self.at, self.round) = (changed, 0, self.round + 1);
        (self.began, self.sent) = (now, 0);
        let affordable = (self.rate * pause.0 / 1_000_000).max(few_pages);
        rest <= affordable || self.round > MAX_ROUNDS || self.futile >= MAX_FUTILE
    }

    /// Pages that changed since the round began, of a guest that stands still now.
    pub fn add(&mut self, changed: &PageSet) {
        self.at = 0;
        let mut from = 0;
        while let Some(page) = changed.first_from(from) {
            self.left.insert(page);
            from = page + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(pages: &[u64]) -> PageSet {
        let mut set = PageSet::new(1000);
        pages.iter().for_each(|&page| set.insert(page));
        set
    }

    fn rounds(pages: u64) -> Rounds {
        Rounds::new(pages, Time(0), Enough::default())
    }

    #[test]
    fn runs_of_pages() {
        let mut rounds = rounds(1000);
        assert_eq!(rounds.next(16), Next::Pages { first: 0, count: 16 });
        rounds.done(0, 1000, 1000);
        assert_eq!(rounds.next(16), Next::RoundEnds);
        assert!(rounds.begin(set(&[3, 4, 5, 9]), Time(1_000_000)), "four pages are few");
        assert_eq!(rounds.next(16), Next::Pages { first: 3, count: 3 });
        assert_eq!(rounds.next(2), Next::Pages { first: 3, count: 2 });
        rounds.done(3, 3, 3);
        rounds.add(&set(&[4]));
        assert_eq!(rounds.next(16), Next::Pages { first: 4, count: 1 });
        rounds.done(4, 1, 1);
        assert_eq!(rounds.next(16), Next::Pages { first: 9, count: 1 });
    }

    /// Copies a memory of `pages` that changes at `dirty` pages a second over a link of `rate` pages a second, the
    /// changes spread over all of it. Returns the rounds and the pages left for the pause.
    fn copy(pages: u64, dirty: u64, rate: u64) -> (u32, u64) {
        let mut rounds = rounds(pages);
        let (mut now_us, mut at) = (0, 0);
        let mut size = pages;
        loop {
            rounds.done(0, pages, size);
            let took_us = size * 1_000_000 / rate;
            now_us += took_us;
            let mut changed = PageSet::new(pages);
            for _ in 0..(dirty * took_us / 1_000_000).min(pages) {
                changed.insert(at % pages);
                at += 1;
            }
            size = changed.len();
            if rounds.begin(changed, Time(now_us)) {
                return (rounds.round(), size);
            }
        }
    }

    #[test]
    fn a_memory_that_changes_slower_than_the_link_ends_with_a_short_pause() {
        // 256 MiB, 10 MB/s changed, 20 MB/s sent: 30 ms are 150 pages.
        let (rounds, rest) = copy(65536, 2560, 5120);
        assert!(rounds <= 12 && rest <= 154, "{rounds} rounds, {rest} pages");
    }

    /// Of a memory of 20,000 pages, half of which were zeros, and the others sent in a second.
    fn second_round(changed: u64, enough: Enough) -> (Rounds, bool) {
        let mut rounds = Rounds::new(20_000, Time(5), enough);
        rounds.done(0, 10_000, 4_000);
        rounds.done(10_000, 10_000, 6_000);
        let stops = rounds.begin(first(changed), Time(1_000_005));
        (rounds, stops)
    }

    fn first(count: u64) -> PageSet {
        let mut set = PageSet::new(20_000);
        (0..count).for_each(|page| set.insert(page));
        set
    }

    #[test]
    fn a_rest_is_small_enough_if_it_is_sent_within_the_pause_or_has_few_pages() {
        // 10,000 pages a second are 300 in 30 ms.
        let enough = Enough::default();
        assert!(second_round(300, enough).1 && !second_round(301, enough).1);
        let few = Enough { few_pages: 400, ..enough };
        assert!(second_round(400, few).1 && !second_round(401, few).1);
        assert_eq!(second_round(401, few).0.round(), 2);
    }

    #[test]
    fn the_speed_is_told_by_rounds_that_say_anything() {
        // Too few pages, or no time at all: it stays at 300 in 30 ms.
        for (sent, us, changed, stops) in [
            (63, 1, 300, true),
            (63, 1, 301, false),
            (64, 0, 301, false),
            (64, 1_000, 1_920, true),
            (64, 1_000, 1_921, false),
        ] {
            let (mut rounds, _) = second_round(5_000, Enough::default());
            rounds.done(0, 5_000, sent);
            assert_eq!(rounds.begin(first(changed), Time(1_000_005 + us)), stops, "{sent} in {us} us, {changed} left");
        }
    }

    #[test]
    fn rounds_that_get_no_smaller_end() {
        let mut rounds = Rounds::new(20_000, Time(0), Enough::default());
        let futile: Vec<_> = (0..4).map(|_| rounds.begin(first(5_000), Time(0))).collect();
        assert_eq!(futile, [false, false, false, true], "three in a row");
        let (mut rounds, _) = second_round(5_000, Enough::default());
        let futile = [5_000, 5_001, 4_000, 4_000, 4_000, 4_000].map(|left| rounds.begin(first(left), Time(1_000_005)));
        assert_eq!(futile, [false, false, false, false, false, true], "a smaller one begins anew");
        let mut rounds = Rounds::new(20_000, Time(0), Enough::default());
        let last = (1..).find(|round| rounds.begin(first(20_000 - round), Time(0)));
        assert_eq!(
            (last, rounds.round()),
            (Some(u64::from(MAX_ROUNDS)), MAX_ROUNDS + 1),
            "smaller, and still too many"
        );
    }

    proptest! {
        #[test]
        fn every_copy_ends(pages in 1u64..5000, dirty in 0u64..100_000, rate in 1000u64..50_000) {
            let (rounds, rest) = copy(pages, dirty, rate);
            prop_assert!(rounds <= MAX_ROUNDS + 1);
            prop_assert!(dirty * 2 > rate || rest <= (rate * 30_000 / 1_000_000).max(64));
        }

        /// What is sent last of each page is what the page is in the end.
        #[test]
        fn the_copy_is_the_memory(writes in prop::collection::vec(prop::collection::vec(0u64..40, 0..30), 1..40)) {
            let mut memory = [0u32; 40];
            let mut copy = [0u32; 40];
            let mut rounds = rounds(40);
            let mut changed = PageSet::new(40);
            let mut stamp = 0;
            for burst in writes {
                for page in burst {
                    stamp += 1;
                    memory[page as usize] = stamp;
                    changed.insert(page);
                }
                match rounds.next(3) {
                    Next::Pages { first, count } => {
                        let range = first as usize..(first + count) as usize;
                        copy[range.clone()].copy_from_slice(&memory[range]);
                        rounds.done(first, count, count);
                    }
                    Next::RoundEnds => {
                        rounds.begin(core::mem::replace(&mut changed, PageSet::new(40)), Time(0));
                    }
                }
            }
            rounds.add(&changed);
            while let Next::Pages { first, count } = rounds.next(16) {
                let range = first as usize..(first + count) as usize;
                copy[range.clone()].copy_from_slice(&memory[range]);
                rounds.done(first, count, count);
            }
            prop_assert_eq!(memory, copy);
        }
    }
}
