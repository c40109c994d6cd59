//! The network: one stream that delays and cuts into pieces, and datagrams that also get lost and overtake.

use std::collections::VecDeque;

#[derive(Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        super::guest::mix(self.0, 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// One direction of a stream.
#[derive(Default)]
pub(crate) struct Pipe {
    pub(crate) pieces: VecDeque<(u64, Vec<u8>)>,
    pub(crate) in_flight: usize,
    last: u64,
    /// The sender has closed behind these pieces.
    pub(crate) closed: bool,
}

/// What the sender may have in flight, like a TCP window.
const WINDOW: usize = 64 * 1024;

impl Pipe {
    pub(crate) fn room(&self) -> usize {
        WINDOW.saturating_sub(self.in_flight)
    }

    pub(crate) fn push(&mut self, at: u64, bytes: &[u8]) {
        self.last = self.last.max(at);
        self.in_flight += bytes.len();
        self.pieces.push_back((self.last, bytes.to_vec()));
    }
}

/// A stream between the two machines; `pipes[n]` leads away from machine `n`.
#[derive(Default)]
pub(crate) struct Stream {
    pub(crate) pipes: [Pipe; 2],
    /// When each end notices that it was cut; `u64::MAX`: never.
    pub(crate) cut: Option<[u64; 2]>,
}
