//! Frames under way: a queue ordered by arrival. Times count from the start of the fabric.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// What waits in a queue, at most, in bytes. A link of one minute's delay under full load stays bounded.
const MAX_BYTES: usize = 64 << 20;

/// A frame and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel<T> {
    /// The destination.
    pub to: T,
    /// The frame.
    pub frame: Vec<u8>,
}

#[derive(Debug)]
struct Entry<T> {
    due: Duration,
    number: u64,
    parcel: Parcel<T>,
}

impl<T> Entry<T> {
    fn key(&self) -> (Duration, u64) {
        (self.due, self.number)
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// Frames that arrive later. Frames due at the same time leave in the order in which they came.
#[derive(Debug)]
pub struct DelayQueue<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    pushed: u64,
    bytes: usize,
}

impl<T> DelayQueue<T> {
    /// An empty queue.
    pub fn new() -> Self {
        Self { heap: BinaryHeap::new(), pushed: 0, bytes: 0 }
    }

    /// Adds a frame that arrives at `due`; false if the queue is full.
    pub fn push(&mut self, due: Duration, to: T, frame: Vec<u8>) -> bool {
        if self.bytes + frame.len() > MAX_BYTES {
            return false;
        }
        self.bytes += frame.len();
        self.heap.push(Reverse(Entry { due, number: self.pushed, parcel: Parcel { to, frame } }));
        self.pushed += 1;
        true
    }

    /// When the next frame arrives.
    pub fn next_due(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse(entry)| entry.due)
    }

    /// Takes the next frame that has arrived by `now`.
    pub fn pop_due(&mut self, now: Duration) -> Option<Parcel<T>> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse(entry) = self.heap.pop()?;
        self.bytes -= entry.parcel.frame.len();
        Some(entry.parcel)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_leave_by_time_then_by_arrival(times in prop::collection::vec(0u64..50, 0..200)) {
            let mut queue = DelayQueue::new();
            for (number, &time) in times.iter().enumerate() {
                prop_assert!(queue.push(Duration::from_millis(time), number, vec![0; 60]));
            }
            let mut expected: Vec<_> = times.iter().copied().enumerate().map(|(number, time)| (time, number)).collect();
            expected.sort_unstable();
            let mut seen = Vec::new();
            for now in 0..50 {
                while let Some(parcel) = queue.pop_due(Duration::from_millis(now)) {
                    seen.push((now, parcel.to));
                }
            }
            prop_assert_eq!(seen, expected);
            prop_assert_eq!(queue.bytes, 0);
        }
    }

    #[test]
    fn a_full_queue_refuses() {
        let mut queue = DelayQueue::new();
        let accepted = (0..100_000).take_while(|_| queue.push(Duration::ZERO, (), vec![0; 1514])).count();
        assert_eq!(accepted, MAX_BYTES / 1514);
        queue.pop_due(Duration::ZERO).unwrap();
        assert!(queue.push(Duration::ZERO, (), vec![0; 1514]));
    }
}
