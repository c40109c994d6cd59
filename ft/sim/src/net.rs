//! The log network: datagrams that are lost, doubled and overtake, and streams whose bytes stay in order.
//!
//! A direction from one machine to another can be cut. Bytes of a stream that meet a cut wait for its end, as TCP
//! would send them again; a stream can also be reset, and then ends in the middle of a byte sequence.

use crate::rng::Rng;
use std::collections::VecDeque;

/// Machines in a world at most.
pub(crate) const MACHINES: usize = 3;

/// How good the network is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quality {
    /// Shortest time of flight in microseconds.
    pub(crate) delay: u64,
    /// How much longer it may take.
    pub(crate) jitter: u64,
    /// Datagrams of a thousand that are lost, and that come twice.
    pub(crate) loss: u64,
    pub(crate) doubled: u64,
    /// Bytes that a stream may have in flight, in each direction.
    pub(crate) window: usize,
}

/// One direction of a stream.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    /// When the piece arrives, and its bytes.
    pub(crate) pieces: VecDeque<(u64, Vec<u8>)>,
    in_flight: usize,
    last: u64,
    /// When the receiver, which is full, looks again.
    pub(crate) again_at: u64,
    /// The sender closed behind these pieces.
    pub(crate) closed: bool,
}

/// A stream between two machines; `pipes[n]` leads away from `ends[n]`.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) ends: [usize; 2],
    /// Whom the first end wanted to reach.
    pub(crate) dialled: usize,
    /// It is no more: what is sent on it vanishes.
    pub(crate) broken: bool,
    pub(crate) pipes: [Pipe; 2],
}

impl Stream {
    /// Which end of the stream `machine` is.
    pub(crate) fn end(&self, machine: usize) -> usize {
        usize::from(self.ends[1] == machine)
    }
}

/// The network between the machines.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) quality: Quality,
    rng: Rng,
    /// `cut[from][to]`: nothing gets through.
    cut: [[bool; MACHINES]; MACHINES],
    pub(crate) streams: Vec<Stream>,
}

impl Network {
    pub(crate) fn new(quality: Quality, rng: Rng) -> Self {
        Self { quality, rng, cut: [[false; MACHINES]; MACHINES], streams: Vec::new() }
    }

    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut[from][to]
    }

    pub(crate) fn set_cut(&mut self, from: usize, to: usize, cut: bool) {
        self.cut[from][to] = cut;
    }

    pub(crate) fn heal(&mut self) {
        self.cut = Default::default();
    }

    fn flight(&mut self) -> u64 {
        self.quality.delay + self.rng.below(self.quality.jitter + 1)
    }

    /// After how many microseconds a datagram arrives: never, once or twice.
    pub(crate) fn datagram(&mut self, from: usize, to: usize) -> [Option<u64>; 2] {
        if self.is_cut(from, to) || self.rng.chance(self.quality.loss) {
            return [None; 2];
        }
        // A datagram may be late by far, and be overtaken by several others.
        let late = if self.rng.chance(5) { self.rng.below(400_000) } else { 0 };
        let once = Some(self.flight() + late);
        [once, self.rng.chance(self.quality.doubled).then(|| self.flight())]
    }

    pub(crate) fn open(&mut self, from: usize, to: usize, dialled: usize) -> usize {
        self.streams.push(Stream { ends: [from, to], dialled, broken: false, pipes: Default::default() });
        self.streams.len() - 1
    }

    /// Takes what the window has room for; returns how many bytes, and when they arrive.
    pub(crate) fn push(&mut self, now: u64, stream: usize, from: usize, bytes: &[u8], all: bool) -> (usize, [u64; 2]) {
        let window = if all { usize::MAX } else { self.quality.window };
        let end = self.streams[stream].end(from);
        let room = window.saturating_sub(self.streams[stream].pipes[end].in_flight);
        let count = bytes.len().min(room);
        if count == 0 {
            return (0, [0; 2]);
        }
        // Often a message arrives in two pieces, cut anywhere.
        let cut = if self.rng.chance(300) { self.rng.below(count as u64 + 1) as usize } else { 0 };
        let mut arrivals = [now; 2];
        for (piece, arrival) in [&bytes[..cut], &bytes[cut..count]].into_iter().zip(&mut arrivals) {
            let at = now + self.flight();
            let stream = &mut self.streams[stream];
            let pipe = &mut stream.pipes[end];
            pipe.last = pipe.last.max(at);
            *arrival = pipe.last;
            pipe.in_flight += piece.len();
            if !piece.is_empty() && !stream.broken {
                pipe.pieces.push_back((pipe.last, piece.to_vec()));
            }
        }
        (count, arrivals)
    }

    /// The receiver of pipe `end` has taken `count` bytes of its first piece.
    pub(crate) fn taken(&mut self, stream: usize, end: usize, count: usize) {
        let pipe = &mut self.streams[stream].pipes[end];
        pipe.in_flight -= count;
        let Some((_, piece)) = pipe.pieces.front_mut() else { return };
        piece.drain(..count);
        if piece.is_empty() {
            pipe.pieces.pop_front();
        }
    }

    /// The sender at `end` closes in order; returns when the other end hears of it.
    pub(crate) fn close(&mut self, now: u64, stream: usize, end: usize) -> u64 {
        let at = now + self.flight();
        let pipe = &mut self.streams[stream].pipes[end];
        pipe.closed = true;
        pipe.last = pipe.last.max(at);
        pipe.last
    }

    /// The stream is no more: of what is on its way a prefix still arrives.
    pub(crate) fn break_off(&mut self, stream: usize) {
        if !core::mem::replace(&mut self.streams[stream].broken, true) {
            self.truncate(stream, 0);
            self.truncate(stream, 1);
        }
    }

    fn truncate(&mut self, stream: usize, end: usize) {
        let total = self.streams[stream].pipes[end].in_flight;
        let mut left = self.rng.below(total as u64 + 1) as usize;
        let pipe = &mut self.streams[stream].pipes[end];
        pipe.in_flight = left;
        pipe.pieces.retain_mut(|(_, piece)| {
            piece.truncate(left);
            left -= piece.len();
            !piece.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        let quality = Quality { delay: 100, jitter: 500, loss: 0, doubled: 0, window: 1000 };
        Network::new(quality, Rng::new(1, 1))
    }

    #[test]
    fn bytes_stay_in_order_and_within_the_window() {
        let mut network = network();
        let stream = network.open(0, 1, 1);
        let bytes: Vec<u8> = (0..3000).map(|byte| byte as u8).collect();
        let (mut sent, mut received, mut now) = (0, Vec::new(), 0);
        while received.len() < bytes.len() {
            now += 200;
            sent += network.push(now, stream, 0, &bytes[sent..], false).0;
            assert!(sent - received.len() <= 1000);
            while let Some((at, piece)) = network.streams[stream].pipes[0].pieces.front().cloned() {
                if at > now {
                    break;
                }
                let count = piece.len().min(77);
                received.extend_from_slice(&piece[..count]);
                network.taken(stream, 0, count);
            }
        }
        assert_eq!(received, bytes);
    }

    #[test]
    fn a_broken_stream_gives_a_prefix() {
        for _ in 0..50 {
            let mut network = network();
            let stream = network.open(0, 1, 1);
            network.push(0, stream, 0, &[1; 600], false);
            network.push(0, stream, 0, &[2; 300], false);
            network.truncate(stream, 0);
            let pieces = &network.streams[stream].pipes[0].pieces;
            let bytes: Vec<u8> = pieces.iter().flat_map(|(_, piece)| piece.clone()).collect();
            let whole = [[1; 600].as_slice(), &[2; 300]].concat();
            assert!(whole.starts_with(&bytes));
            assert_eq!(network.streams[stream].pipes[0].in_flight, bytes.len());
        }
    }

    #[test]
    fn a_cut_direction_loses_datagrams_and_the_other_does_not() {
        let mut network = network();
        network.set_cut(0, 1, true);
        assert_eq!(network.datagram(0, 1), [None; 2]);
        assert!(network.datagram(1, 0)[0].is_some());
        network.heal();
        assert!(network.datagram(0, 1)[0].is_some());
    }
}
