//! The output gate: no frame of the guest leaves before the twin holds the log up to it.
//!
//! A frame enters with [`Gate::hold`] and is *unsealed* until the caller has made an `Output` log entry and passed its
//! sequence number to [`Gate::seal`]. When the twin acknowledges that number ([`Gate::acked`]) the frame is ready, and
//! [`Gate::transmit_ready`] hands ready frames to the NIC in the order in which they came. The guest never waits, but
//! [`Gate::is_full`] tells the primary to stop it for a while rather than to lose a frame.
//!
//! A backup's guest makes the same frames. Its gate keeps them ([`GateMode::Retained`]), and what the primary may not
//! have sent leaves if this machine goes live. The same mechanism serves: [`Gate::seal`] marks frames, here with the
//! guest's position, and when [`Gate::released`] names a mark, the frames up to it are forgotten instead of sent.
//!
//! The gate is pure: no clock, no NIC of its own. It believes the marks it is given; that an acknowledgement comes
//! from the twin's memory, and covers no more than was sent, is for the protocol to ensure.

mod stats;
mod store;
#[cfg(test)]
pub(crate) mod tests;

use alloc::collections::VecDeque;
use core::fmt;

pub use stats::{GateStats, HOLD_BUCKETS};

use crate::frame::{FrameError, FrameSink, MAX_FRAME, SendError, check_length};
use store::FrameStore;

/// Frames for which there is room after the gate reports full, unless more are asked for: all that one virtio queue can hold.
pub const RESERVED_FRAMES: usize = 256;

/// What happens to the guest's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateMode {
    /// No part in the pair: frames are dropped and counted.
    Closed,
    /// Backup: frames are kept, and nothing leaves. They are the primary's to send, but those that it is not known to
    /// have sent belong to whoever goes live.
    Retained,
    /// Protected: frames wait until the log up to them is acknowledged.
    Held,
    /// Unprotected: frames leave at once.
    Open,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldOutcome {
    /// It is held (or retained), unsealed.
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

/// What frames wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// In mode `Held`: the twin's ack of the log up to the entry with this sequence number.
    Seq(u64),
    /// In mode `Retained`: that the primary has sent what its guest made up to this position.
    Position(u64),
}

impl Mark {
    /// Whether frames wait for such a mark in this mode.
    fn fits(self, mode: GateMode) -> bool {
        match self {
            Self::Seq(_) => mode != GateMode::Retained,
            Self::Position(_) => mode != GateMode::Held,
        }
    }
}

/// The frames up to a count, covered by one mark.
#[derive(Debug, Clone, Copy)]
struct Seal {
    mark: Mark,
    /// Frames ever queued when the mark was given.
    end: u64,
}

/// The queue of held frames. See the [module](self).
///
/// Positions in the queue are counts of frames ever queued: `left <= acked <= sealed <= queued`, except that `left`
/// runs ahead with the broken rule (see [`break_output_rule`](Self::break_output_rule)) and where retained frames are
/// forgotten.
#[derive(Debug)]
pub struct Gate {
    mode: GateMode,
    store: FrameStore,
    capacity_frames: usize,
    capacity_bytes: usize,
    /// Frames ever queued.
    queued: u64,
    /// Frames ever queued that are no longer: sent, forgotten, or dropped when the gate was closed.
    left: u64,
    /// Frames up to here are covered by a seal.
    sealed: u64,
    /// Frames up to here may leave, or are forgotten in [`GateMode::Retained`].
    acked: u64,
    /// Frames up to here were retained before they could leave.
    retained: u64,
    /// Seals that are not acknowledged, oldest first.
    seals: VecDeque<Seal>,
    /// Acknowledged seals of which frames are still here, oldest first, and the greatest mark whose frames have left.
    leaving: VecDeque<Seal>,
    sent: Option<Mark>,
    /// Greatest mark sealed since the mode changed.
    last_seal: Option<Mark>,
    /// Greatest mark acknowledged, or known to be released, since then.
    last_ack: Option<Mark>,
    /// Where the guest was first seen with the oldest of the frames that have no mark.
    unsealed_since: Option<u64>,
    rule_broken: bool,
    stats: GateStats,
}

impl Gate {
    /// A closed gate that reports full when it holds `capacity_frames` or `capacity_bytes`. It allocates what it will
    /// ever need, including a reserve of [`RESERVED_FRAMES`] of the greatest length.
    pub fn new(capacity_frames: usize, capacity_bytes: usize) -> Self {
        Self::with_reserve(capacity_frames, capacity_bytes, RESERVED_FRAMES)
    }

    /// The same with a reserve of `reserved` frames: as many as the guest may send between two looks at
    /// [`is_full`](Self::is_full).
    pub fn with_reserve(capacity_frames: usize, capacity_bytes: usize, reserved: usize) -> Self {
        let frames = capacity_frames + reserved;
        // One frame more: up to that much is lost at the end of the ring.
        let bytes = capacity_bytes + (reserved + 1) * MAX_FRAME;
        Self {
            mode: GateMode::Closed,
            store: FrameStore::new(frames, bytes),
            capacity_frames,
            capacity_bytes,
            queued: 0,
            left: 0,
            sealed: 0,
            acked: 0,
            retained: 0,
            seals: VecDeque::with_capacity(frames),
            leaving: VecDeque::with_capacity(frames),
            sent: None,
            last_seal: None,
            last_ack: None,
            unsealed_since: None,
            rule_broken: false,
            stats: GateStats::default(),
        }
    }

    /// The mode.
    pub fn mode(&self) -> GateMode {
        self.mode
    }

    /// Changes the mode; marks start anew. To the same mode it does nothing.
    ///
    /// * To `Open`: everything held or retained may leave, in order.
    /// * To `Held`: frames still queued from `Open`, or retained, may leave, as they precede the protected period.
    ///   Later frames wait for their acknowledgements.
    /// * To `Closed` or `Retained`: everything in the gate is dropped and counted, so that the new period starts with
    ///   nothing. A backup that loads another state goes through `Closed`.
    pub fn set_mode(&mut self, mode: GateMode) {
        if mode == self.mode {
            return;
        }
        if matches!(mode, GateMode::Closed | GateMode::Retained) {
            self.stats.dropped_closed += self.store.len() as u64;
            self.store.clear();
            self.left = self.queued;
        }
        if self.mode == GateMode::Retained {
            self.retained = self.queued;
        }
        self.seals.clear();
        self.leaving.clear();
        self.sent = None;
        self.sealed = self.queued;
        self.acked = self.queued;
        self.last_seal = None;
        self.last_ack = None;
        self.unsealed_since = None;
        self.mode = mode;
    }

    /// **For teaching and tests only**: while `on`, held frames leave without waiting for the twin. Then a client can
    /// see an output whose cause is lost when the primary dies: the anomaly that the output rule prevents.
    pub fn break_output_rule(&mut self, on: bool) {
        self.rule_broken = on;
    }

    /// Takes a frame of the guest. In [`GateMode::Retained`] there is always room: the oldest frames are forgotten for
    /// it and counted. A backup whose capacities are those of the primary forgets none that the primary still holds.
    pub fn hold(&mut self, frame: &[u8], now_us: u64) -> Result<HoldOutcome, HoldError> {
        if let Err(error) = check_length(frame.len()) {
            self.stats.invalid += 1;
            return Err(HoldError::Invalid(error));
        }
        if self.mode == GateMode::Closed {
            self.stats.dropped_closed += 1;
            return Ok(HoldOutcome::Dropped);
        }
        while !self.store.push(frame, now_us) {
            if self.mode != GateMode::Retained || self.store.len() == 0 {
                self.stats.overflowed += 1;
                return Err(HoldError::Overflow);
            }
            self.forget_oldest();
            self.stats.retained_forgotten += 1;
        }
        self.queued += 1;
        if self.mode == GateMode::Open {
            self.sealed = self.queued;
            self.acked = self.queued;
        }
        self.stats.held_max = self.stats.held_max.max(self.store.len());
        self.stats.held_bytes_max = self.stats.held_bytes_max.max(self.store.bytes());
        Ok(if self.limit() == self.queued { HoldOutcome::Ready } else { HoldOutcome::Held })
    }

    /// Like [`hold`](Self::hold), but a frame that need not wait and has none before it goes to the NIC without being
    /// copied twice. The caller flushes.
    pub fn forward(&mut self, frame: &[u8], nic: &mut impl FrameSink, now_us: u64) -> Result<HoldOutcome, HoldError> {
        let at_once = self.mode == GateMode::Open && self.store.len() == 0;
        if at_once && check_length(frame.len()).is_ok() && nic.send(frame).is_ok() {
            self.stats.released += 1;
            return Ok(HoldOutcome::Sent);
        }
        self.hold(frame, now_us)
    }

    /// How many frames no mark covers. If there are any, in mode `Held` the caller makes an `Output` entry and
    /// [`seal`](Self::seal)s them with its number, in mode `Retained` it does so with the guest's position.
    pub fn unsealed(&self) -> usize {
        (self.queued - self.sealed.max(self.left)) as usize
    }

    /// The guest, which made all frames so far, stands at `position`: from here on those wait that are new.
    pub fn guest_at(&mut self, position: u64) {
        if self.unsealed() > 0 {
            self.unsealed_since.get_or_insert(position);
        }
    }

    /// Where the guest stood when the oldest frame that no mark covers was first noticed ([`guest_at`](Self::guest_at)).
    pub fn unsealed_since(&self) -> Option<u64> {
        self.unsealed_since
    }

    /// The mark covers all unsealed frames. In mode `Held` it is the sequence number of their `Output` entry; in mode
    /// `Retained` a position of the guest at or after the making of the last of them: one too late may double a frame
    /// at a takeover, one too early would lose it.
    ///
    /// Panics if `mark` is of the other mode's kind, or less than an earlier one since the mode changed: a bug of ours
    /// that could release frames early, or lose them. Without unsealed frames it does nothing else.
    pub fn seal(&mut self, mark: Mark) {
        assert!(mark.fits(self.mode), "{mark:?} in mode {:?}", self.mode);
        assert!(self.last_seal.is_none_or(|last| last <= mark), "{mark:?} decreased");
        self.last_seal = Some(mark);
        self.unsealed_since = None;
        if self.unsealed() == 0 {
            return;
        }
        self.sealed = self.queued;
        if self.last_ack.is_some_and(|acked| mark <= acked) {
            self.may_leave(Seal { mark, end: self.sealed });
            self.forget_released();
            return;
        }
        match self.seals.back_mut() {
            Some(last) if last.mark == mark => last.end = self.sealed,
            _ => self.seals.push_back(Seal { mark, end: self.sealed }),
        }
    }

    /// The twin holds the log up to and including `seq`: frames sealed up to there may leave. Numbers that are not
    /// greater than an earlier one change nothing, nor does a call in a mode other than `Held`.
    pub fn acked(&mut self, seq: u64) {
        if self.mode == GateMode::Held {
            self.acknowledge(Mark::Seq(seq));
        }
    }

    /// The primary is known to have sent the frames that its guest made up to and including `position`: those
    /// sealed up to there, now or later, are forgotten. Positions that are not greater than an earlier one change nothing,
    /// nor does a call in a mode other than `Retained`.
    pub fn released(&mut self, position: u64) {
        if self.mode == GateMode::Retained {
            self.acknowledge(Mark::Position(position));
            self.forget_released();
        }
    }

    /// In mode `Held`, the greatest acknowledged sequence number since the mode changed whose frames, and those of all
    /// before, the NIC took: what the twin may forget. A frame that may leave and found no room in the NIC is still ours
    /// alone.
    pub fn sent(&self) -> Option<u64> {
        match self.sent? {
            Mark::Seq(seq) => Some(seq),
            Mark::Position(_) => None,
        }
    }

    /// How many frames may leave now.
    pub fn ready(&self) -> usize {
        self.limit().saturating_sub(self.left) as usize
    }

    /// Hands the frames that may leave to `nic`, in order, and flushes it. What does not fit stays for the next call.
    /// Returns how many left.
    pub fn transmit_ready(&mut self, nic: &mut impl FrameSink, now_us: u64) -> usize {
        let released = core::iter::from_fn(|| self.transmit_next(nic, now_us)).map(usize::from).sum();
        if released != 0 {
            nic.flush();
        }
        released
    }

    /// Takes the first frame that may leave out of the gate and hands it to `nic`. Says whether `nic` took it, or
    /// `None` when no frame may leave, or none fits now. The caller flushes.
    pub fn transmit_next(&mut self, nic: &mut impl FrameSink, now_us: u64) -> Option<bool> {
        if self.left >= self.limit() {
            return None;
        }
        let (frame, held_at_us) = self.store.front()?;
        let sent = match nic.send(frame) {
            Ok(()) => {
                self.stats.released += 1;
                if self.left < self.retained {
                    self.stats.resent += 1;
                } else if self.mode == GateMode::Held {
                    self.stats.record_hold_time(now_us.saturating_sub(held_at_us));
                }
                true
            }
            Err(SendError::Full) => return None,
            Err(SendError::Invalid(_)) => {
                // Checked by `hold`; to keep it would block all that follow.
                self.stats.refused_by_nic += 1;
                false
            }
        };
        self.store.pop();
        self.left += 1;
        self.note_sent();
        Some(sent)
    }

    /// How many frames are in the gate, ready and retained ones included.
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

    /// Whether the guest must be stopped until frames have left. There is still room for the reserve, so that the virtio
    /// queue that is being processed can be finished. Never in [`GateMode::Retained`].
    pub fn is_full(&self) -> bool {
        let full = self.store.len() >= self.capacity_frames || self.store.bytes() >= self.capacity_bytes;
        full && self.mode != GateMode::Retained
    }

    /// What the gate has done.
    pub fn stats(&self) -> &GateStats {
        &self.stats
    }

    /// Frames up to this count may leave.
    fn limit(&self) -> u64 {
        match self.mode {
            GateMode::Retained => self.left,
            _ if self.rule_broken => self.queued,
            _ => self.acked,
        }
    }

    fn acknowledge(&mut self, mark: Mark) {
        if self.last_ack.is_some_and(|last| mark <= last) {
            return;
        }
        self.last_ack = Some(mark);
        while let Some(seal) = self.seals.pop_front_if(|seal| seal.mark <= mark) {
            self.may_leave(seal);
        }
    }

    /// The frames of an acknowledged seal may leave.
    fn may_leave(&mut self, seal: Seal) {
        self.acked = seal.end;
        if self.mode == GateMode::Held {
            self.leaving.push_back(seal);
            self.note_sent();
        }
    }

    fn note_sent(&mut self) {
        while let Some(seal) = self.leaving.pop_front_if(|seal| seal.end <= self.left) {
            self.sent = Some(seal.mark);
        }
    }

    /// In mode `Retained`, what the primary has sent goes.
    fn forget_released(&mut self) {
        while self.mode == GateMode::Retained && self.left < self.acked {
            self.forget_oldest();
            self.stats.retained_released += 1;
        }
    }

    fn forget_oldest(&mut self) {
        self.store.pop();
        self.left += 1;
        // A seal without frames would stay for as long as nothing is released.
        while self.seals.front().is_some_and(|seal| seal.end <= self.left) {
            self.seals.pop_front();
        }
    }
}
