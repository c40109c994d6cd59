//! The output gate: no frame of the guest leaves before the twin holds the log up to it.
//!
//! A frame enters with [`Gate::hold`] and is *unsealed* until the caller has made an `Output` log entry and passed its
//! sequence number to [`Gate::seal`]. When the twin acknowledges that number ([`Gate::acked`]) the frame is ready, and
//! [`Gate::transmit_ready`] hands ready frames to the NIC in the order in which they came. The guest never waits, but
//! [`Gate::is_full`] tells the primary to stop it for a while rather than to lose a frame.
//!
//! The gate is pure: no clock, no NIC of its own. It believes the sequence numbers it is given; that an
//! acknowledgement comes from the twin's memory, and covers no more than was sent, is for the protocol to ensure.

mod statistics;
mod store;
#[cfg(test)]
pub(crate) mod tests;

use alloc::collections::VecDeque;
use core::fmt;

pub use statistics::{GateStatistics, HOLD_BUCKETS};

use crate::frame::{FrameError, FrameSink, MAX_FRAME, SendError, check_length};
use store::FrameStore;

/// Frames for which there is room after the gate reports full: all that one virtio queue can hold.
pub const RESERVED_FRAMES: usize = 256;

/// What happens to the guest's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateMode {
    /// Backup: frames are dropped and counted. They are the primary's to send.
    Closed,
    /// Protected: frames wait until the log up to them is acknowledged.
    Held,
    /// Unprotected: frames leave at once.
    Open,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldOutcome {
    /// It is held, unsealed.
    Held,
    /// It is queued and may leave at the next [`Gate::transmit_ready`].
    Ready,
    /// It went to the NIC without being queued ([`Gate::forward`] only).
    Sent,
    /// It was dropped because the gate is closed.
    Dropped,
}

/// Why a frame was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldError {
    /// It is no Ethernet frame: the guest's fault.
    Invalid(FrameError),
    /// Even the reserve is used up: the caller went on for long after [`Gate::is_full`].
    Overflow,
}

impl fmt::Display for HoldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(error) => error.fmt(f),
            Self::Overflow => f.write_str("the output gate overflowed"),
        }
    }
}

impl core::error::Error for HoldError {}

/// The frames up to a count, covered by one `Output` entry.
#[derive(Debug, Clone, Copy)]
struct Seal {
    seq: u64,
    /// Frames ever queued when the entry was made.
    end: u64,
}

/// The queue of held frames. See the [module](self).
///
/// Positions in the queue are counts of frames ever queued: `left <= acked <= sealed <= queued`, except that the
/// broken rule (see [`break_output_rule`](Self::break_output_rule)) lets `left` run ahead.
#[derive(Debug)]
pub struct Gate {
    mode: GateMode,
    store: FrameStore,
    capacity_frames: usize,
    capacity_bytes: usize,
    /// Frames ever queued.
    queued: u64,
    /// Frames ever queued that are no longer: sent, or dropped when the gate was closed.
    left: u64,
    /// Frames up to here are covered by a seal.
    sealed: u64,
    /// Frames up to here may leave.
    acked: u64,
    /// Seals that are not acknowledged, oldest first.
    seals: VecDeque<Seal>,
    /// Greatest sequence number sealed in this period of [`GateMode::Held`].
    last_seal: Option<u64>,
    /// Greatest sequence number acknowledged in this period.
    last_ack: Option<u64>,
    rule_broken: bool,
    statistics: GateStatistics,
}

impl Gate {
    /// A closed gate that reports full when it holds `capacity_frames` or `capacity_bytes`. It allocates what it will
    /// ever need, including a reserve of [`RESERVED_FRAMES`] of the greatest length.
    pub fn new(capacity_frames: usize, capacity_bytes: usize) -> Self {
        let frames = capacity_frames + RESERVED_FRAMES;
        // One frame more: up to that much is lost at the end of the ring.
        let bytes = capacity_bytes + (RESERVED_FRAMES + 1) * MAX_FRAME;
        Self {
            mode: GateMode::Closed,
            store: FrameStore::new(frames, bytes),
            capacity_frames,
            capacity_bytes,
            queued: 0,
            left: 0,
            sealed: 0,
            acked: 0,
            seals: VecDeque::with_capacity(frames),
            last_seal: None,
            last_ack: None,
            rule_broken: false,
            statistics: GateStatistics::default(),
        }
    }

    /// The mode.
    pub fn mode(&self) -> GateMode {
        self.mode
    }

    /// Changes the mode.
    ///
    /// * To `Open`: everything held may leave, in order.
    /// * To `Held`: frames still queued from `Open` may leave, as they precede the protected period; sequence numbers
    ///   start anew. Later frames wait for theirs.
    /// * To `Closed`: everything held is dropped and counted, so the next mode starts with nothing held.
    pub fn set_mode(&mut self, mode: GateMode) {
        if mode == self.mode {
            return;
        }
        if mode == GateMode::Closed {
            self.statistics.dropped_closed += self.store.len() as u64;
            self.store.clear();
            self.left = self.queued;
        }
        self.seals.clear();
        self.sealed = self.queued;
        self.acked = self.queued;
        self.last_seal = None;
        self.last_ack = None;
        self.mode = mode;
    }

    /// **For teaching and tests only**: while `on`, frames leave without waiting for the twin. Then a client can see
    /// an output whose cause is lost when the primary dies: the anomaly that the output rule prevents.
    pub fn break_output_rule(&mut self, on: bool) {
        self.rule_broken = on;
    }

    /// Takes a frame of the guest.
    pub fn hold(&mut self, frame: &[u8], now_us: u64) -> Result<HoldOutcome, HoldError> {
        if let Err(error) = check_length(frame.len()) {
            self.statistics.invalid += 1;
            return Err(HoldError::Invalid(error));
        }
        if self.mode == GateMode::Closed {
            self.statistics.dropped_closed += 1;
            return Ok(HoldOutcome::Dropped);
        }
        if !self.store.push(frame, now_us) {
            self.statistics.overflowed += 1;
            return Err(HoldError::Overflow);
        }
        self.queued += 1;
        if self.mode == GateMode::Open {
            self.sealed = self.queued;
            self.acked = self.queued;
        }
        self.statistics.held_max = self.statistics.held_max.max(self.store.len());
        self.statistics.held_bytes_max = self.statistics.held_bytes_max.max(self.store.bytes());
        Ok(if self.limit() == self.queued { HoldOutcome::Ready } else { HoldOutcome::Held })
    }

    /// Like [`hold`](Self::hold), but a frame that need not wait and has none before it goes to the NIC without being
    /// copied twice. The caller flushes.
    pub fn forward(&mut self, frame: &[u8], nic: &mut impl FrameSink, now_us: u64) -> Result<HoldOutcome, HoldError> {
        let at_once = self.mode == GateMode::Open && self.store.len() == 0;
        if at_once && check_length(frame.len()).is_ok() && nic.send(frame).is_ok() {
            self.statistics.released += 1;
            return Ok(HoldOutcome::Sent);
        }
        self.hold(frame, now_us)
    }

    /// How many frames no `Output` entry covers. If there are any in mode `Held`, the caller makes an entry and
    /// [`seal`](Self::seal)s them.
    pub fn unsealed(&self) -> usize {
        (self.queued - self.sealed.max(self.left)) as usize
    }

    /// The `Output` entry with sequence number `seq` covers all unsealed frames.
    ///
    /// Panics if `seq` is less than an earlier one of this protected period: a bug of ours that could release frames
    /// early. Without unsealed frames it does nothing else.
    pub fn seal(&mut self, seq: u64) {
        assert!(self.last_seal.is_none_or(|last| last <= seq), "log sequence number {seq} decreased");
        self.last_seal = Some(seq);
        if self.unsealed() == 0 {
            return;
        }
        self.sealed = self.queued;
        if self.last_ack.is_some_and(|acked| seq <= acked) {
            self.acked = self.sealed;
            return;
        }
        match self.seals.back_mut() {
            Some(last) if last.seq == seq => last.end = self.sealed,
            _ => self.seals.push_back(Seal { seq, end: self.sealed }),
        }
    }

    /// The twin holds the log up to and including `seq`. Numbers that are not greater than an earlier one change
    /// nothing.
    pub fn acked(&mut self, seq: u64) {
        if self.mode != GateMode::Held || self.last_ack.is_some_and(|last| seq <= last) {
            return;
        }
        self.last_ack = Some(seq);
        while let Some(seal) = self.seals.front().filter(|seal| seal.seq <= seq) {
            self.acked = seal.end;
            self.seals.pop_front();
        }
    }

    /// How many frames may leave now.
    pub fn ready(&self) -> usize {
        self.limit().saturating_sub(self.left) as usize
    }

    /// Hands the frames that may leave to `nic`, in order, and flushes it. What does not fit stays for the next call.
    /// Returns how many left.
    pub fn transmit_ready(&mut self, nic: &mut impl FrameSink, now_us: u64) -> usize {
        let mut released = 0;
        while self.left < self.limit() {
            let Some((frame, held_at_us)) = self.store.front() else { break };
            match nic.send(frame) {
                Ok(()) => {
                    released += 1;
                    if self.mode == GateMode::Held {
                        self.statistics.record_hold_time(now_us.saturating_sub(held_at_us));
                    }
                }
                Err(SendError::Full) => break,
                // Checked by `hold`; to keep it would block all that follow.
                Err(SendError::Invalid(_)) => self.statistics.refused_by_nic += 1,
            }
            self.store.pop();
            self.left += 1;
        }
        if released != 0 {
            self.statistics.released += released as u64;
            nic.flush();
        }
        released
    }

    /// How many frames are in the gate, ready ones included.
    pub fn held(&self) -> usize {
        self.store.len()
    }

    /// How many bytes they have together.
    pub fn held_bytes(&self) -> usize {
        self.store.bytes()
    }

    /// For how long the oldest frame has been in the gate, in microseconds.
    pub fn oldest_age(&self, now_us: u64) -> Option<u64> {
        self.store.front().map(|(_, held_at_us)| now_us.saturating_sub(held_at_us))
    }

    /// Whether the guest must be stopped until frames have left. There is still room for [`RESERVED_FRAMES`], so that
    /// the virtio queue that is being processed can be finished.
    pub fn is_full(&self) -> bool {
        self.store.len() >= self.capacity_frames || self.store.bytes() >= self.capacity_bytes
    }

    /// What the gate has done.
    pub fn statistics(&self) -> &GateStatistics {
        &self.statistics
    }

    /// Frames up to this count may leave.
    fn limit(&self) -> u64 {
        if self.rule_broken { self.queued } else { self.acked }
    }
}
