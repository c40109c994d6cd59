//! The gate against a model that states the rule.

mod retained;

use proptest::prelude::*;

use super::*;

/// A NIC that takes a limited number of frames.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) sent: Vec<Vec<u8>>,
    pub(crate) room: usize,
    pub(crate) flushes: usize,
}

impl Wire {
    pub(crate) fn with_room(room: usize) -> Self {
        Self { sent: Vec::new(), room, flushes: 0 }
    }
}

impl FrameSink for Wire {
    fn send(&mut self, frame: &[u8]) -> Result<(), SendError> {
        check_length(frame.len())?;
        self.room = self.room.checked_sub(1).ok_or(SendError::Full)?;
        self.sent.push(frame.to_vec());
        Ok(())
    }

    fn flush(&mut self) {
        self.flushes += 1;
    }
}

/// A mark that fits the mode.
fn mark(gate: &Gate, number: u64) -> Mark {
    if gate.mode() == GateMode::Retained { Mark::Position(number) } else { Mark::Seq(number) }
}

/// A frame that tells its number.
fn frame(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![number as u8; len];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn number(frame: &[u8]) -> u64 {
    u64::from_le_bytes(frame[..8].try_into().unwrap())
}

#[derive(Debug, Clone)]
enum Step {
    Guest { len: usize, forward: bool },
    Seal { advance: u64 },
    Ack { seq: u64 },
    Released { mark: u64 },
    Transmit { room: usize },
    Mode(GateMode),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (14usize..=MAX_FRAME, any::<bool>()).prop_map(|(len, forward)| Step::Guest { len, forward }),
        3 => (0u64..3).prop_map(|advance| Step::Seal { advance }),
        3 => (0u64..60).prop_map(|seq| Step::Ack { seq }),
        1 => (0u64..60).prop_map(|mark| Step::Released { mark }),
        3 => (0usize..6).prop_map(|room| Step::Transmit { room }),
        1 => mode().prop_map(Step::Mode),
    ]
}

fn mode() -> impl Strategy<Value = GateMode> {
    prop_oneof![Just(GateMode::Closed), Just(GateMode::Retained), Just(GateMode::Held), Just(GateMode::Open)]
}

/// What the model knows of a frame that is neither sent nor dropped.
#[derive(Debug, Clone, Copy)]
struct Pending {
    number: u64,
    len: usize,
    /// May leave whatever is acknowledged: from, or freed by, a period without protection.
    free: bool,
    /// Came while nothing could leave.
    retained: bool,
    seal: Option<u64>,
}

/// The rule, written as plainly as possible.
#[derive(Debug)]
struct Model {
    mode: GateMode,
    pending: Vec<Pending>,
    seq: u64,
    acked: Option<u64>,
    dropped: u64,
    forgotten: u64,
    resent: u64,
    sent: Vec<u64>,
}

impl Model {
    fn may_leave(&self, frame: &Pending) -> bool {
        let covered = || frame.seal.is_some_and(|seal| self.acked.is_some_and(|acked| seal <= acked));
        self.mode != GateMode::Retained && (frame.free || covered())
    }

    /// In mode `Retained`, what the primary has sent is forgotten.
    fn forget(&mut self) {
        if self.mode == GateMode::Retained {
            let (before, acked) = (self.pending.len(), self.acked);
            self.pending.retain(|frame| frame.seal.is_none_or(|seal| acked < Some(seal)));
            self.forgotten += (before - self.pending.len()) as u64;
        }
    }

    fn set_mode(&mut self, mode: GateMode) {
        if mode == self.mode {
            return;
        }
        if mode == GateMode::Closed || mode == GateMode::Retained {
            self.dropped += self.pending.len() as u64;
            self.pending.clear();
        }
        self.pending.iter_mut().for_each(|frame| frame.free = true);
        self.acked = None;
        self.mode = mode;
    }

    /// Frames that reached the wire must be the oldest pending ones, each allowed to leave.
    fn observe(&mut self, numbers: impl Iterator<Item = u64>) -> Result<(), TestCaseError> {
        for number in numbers {
            prop_assert!(!self.pending.is_empty(), "frame {} out of nowhere", number);
            let front = self.pending.remove(0);
            prop_assert_eq!(front.number, number, "order");
            prop_assert!(self.may_leave(&front), "frame {} left before its time", number);
            self.resent += u64::from(front.retained);
            self.sent.push(number);
        }
        Ok(())
    }
}

#[test]
fn what_was_sent_is_known_by_its_mark() {
    let mut gate = Gate::new(10, 10_000);
    gate.set_mode(GateMode::Open);
    gate.hold(&frame(1, 60), 0).unwrap();
    gate.set_mode(GateMode::Held);
    for (number, mark) in [(2, 7), (3, 7), (4, 9)] {
        gate.hold(&frame(number, 60), 0).unwrap();
        gate.seal(Mark::Seq(mark));
    }
    gate.acked(9);
    let sent = |gate: &mut Gate, room| {
        gate.transmit_ready(&mut Wire::with_room(room), 0);
        gate.sent()
    };
    assert_eq!(sent(&mut gate, 0), None);
    assert_eq!(sent(&mut gate, 1), None, "that one was made before");
    assert_eq!(sent(&mut gate, 1), None);
    assert_eq!(sent(&mut gate, 1), Some(7));
    assert_eq!(sent(&mut gate, 1), Some(9));
    gate.acked(12);
    gate.hold(&frame(5, 60), 0).unwrap();
    gate.seal(Mark::Seq(12));
    assert_eq!(sent(&mut gate, 0), Some(9), "acknowledged before it was sealed");
    assert_eq!(sent(&mut gate, 1), Some(12));
    gate.set_mode(GateMode::Open);
    assert_eq!(gate.sent(), None);
}

proptest! {
    #[test]
    fn nothing_leaves_early_is_lost_or_doubled(steps in proptest::collection::vec(step(), 1..200)) {
        let mut gate = Gate::new(64, 40_000);
        let mut wire = Wire::with_room(0);
        let mut model = Model {
            mode: GateMode::Closed,
            pending: vec![],
            seq: 0,
            acked: None,
            dropped: 0,
            forgotten: 0,
            resent: 0,
            sent: vec![],
        };
        let mut count = 0;
        let mut seen = 0;
        for (now, step) in steps.into_iter().enumerate() {
            let now = now as u64;
            let mut room_left = None;
            match step {
                Step::Guest { len, forward } => {
                    if gate.is_full() {
                        continue;
                    }
                    let bytes = frame(count, len);
                    let outcome =
                        if forward { gate.forward(&bytes, &mut wire, now) } else { gate.hold(&bytes, now) };
                    let outcome = outcome.unwrap();
                    if model.mode == GateMode::Closed {
                        prop_assert_eq!(outcome, HoldOutcome::Dropped);
                        model.dropped += 1;
                    } else {
                        let free = model.mode == GateMode::Open;
                        prop_assert_ne!(outcome, HoldOutcome::Dropped);
                        prop_assert_eq!(outcome == HoldOutcome::Held, !free);
                        let retained = model.mode == GateMode::Retained;
                        model.pending.push(Pending { number: count, len, free, retained, seal: None });
                    }
                    count += 1;
                }
                Step::Seal { advance } => {
                    model.seq += advance;
                    gate.seal(mark(&gate, model.seq));
                    for frame in model.pending.iter_mut().filter(|frame| frame.seal.is_none()) {
                        frame.seal = Some(model.seq);
                    }
                    model.forget();
                    prop_assert_eq!(gate.unsealed(), 0);
                }
                Step::Ack { seq } => {
                    gate.acked(seq);
                    if model.mode == GateMode::Held {
                        model.acked = model.acked.max(Some(seq));
                    }
                }
                Step::Released { mark } => {
                    gate.released(mark);
                    if model.mode == GateMode::Retained {
                        model.acked = model.acked.max(Some(mark));
                    }
                    model.forget();
                }
                Step::Transmit { room } => {
                    wire.room = room;
                    gate.transmit_ready(&mut wire, now);
                    room_left = Some(wire.room);
                }
                Step::Mode(mode) => {
                    gate.set_mode(mode);
                    model.set_mode(mode);
                }
            }
            model.observe(wire.sent[seen..].iter().map(|frame| number(frame)))?;
            seen = wire.sent.len();
            // With room left, nothing that may leave stays.
            if room_left.is_some_and(|room| room > 0) {
                prop_assert!(model.pending.first().is_none_or(|front| !model.may_leave(front)));
            }
            prop_assert_eq!(gate.held(), model.pending.len());
            prop_assert_eq!(gate.held_bytes(), model.pending.iter().map(|frame| frame.len).sum::<usize>());
            let ready = model.pending.iter().take_while(|frame| model.may_leave(frame)).count();
            prop_assert_eq!(gate.ready(), ready);
            let unsealed = model.pending.iter().filter(|frame| !frame.free && frame.seal.is_none()).count();
            prop_assert_eq!(gate.unsealed(), unsealed);
        }
        // Everything comes out in the end, whole.
        let live = matches!(gate.mode(), GateMode::Held | GateMode::Retained);
        gate.set_mode(if live { GateMode::Open } else { gate.mode() });
        model.set_mode(gate.mode());
        wire.room = usize::MAX;
        gate.transmit_ready(&mut wire, u64::MAX);
        model.observe(wire.sent[seen..].iter().map(|frame| number(frame)))?;
        prop_assert!(model.pending.is_empty());
        prop_assert_eq!(gate.stats().dropped_closed, model.dropped);
        prop_assert_eq!(gate.stats().released, model.sent.len() as u64);
        prop_assert_eq!(gate.stats().resent, model.resent);
        prop_assert_eq!(gate.stats().retained_released, model.forgotten);
        prop_assert_eq!(gate.stats().retained_forgotten, 0, "there was room");
        prop_assert_eq!(model.sent.len() as u64 + model.dropped + model.forgotten, count);
        for sent in &wire.sent {
            prop_assert_eq!(sent, &frame(number(sent), sent.len()));
        }
    }

    /// Whatever the gate holds, as long as it is not full there is room for a whole virtio queue.
    #[test]
    fn the_reserve_holds_a_full_queue(
        frames in 1usize..400,
        bytes in 1usize..60_000,
        history in proptest::collection::vec((14usize..=MAX_FRAME, 0usize..4), 0..300),
        len in prop_oneof![Just(MAX_FRAME), 14usize..=MAX_FRAME],
        reserved in prop_oneof![Just(RESERVED_FRAMES), 1usize..1000],
    ) {
        let mut gate = Gate::with_reserve(frames, bytes, reserved);
        gate.set_mode(GateMode::Open);
        for (number, (len, room)) in history.into_iter().enumerate() {
            if !gate.is_full() {
                prop_assert!(gate.hold(&frame(number as u64, len), 0).is_ok());
            }
            gate.transmit_ready(&mut Wire::with_room(room / 2), 0);
        }
        if !gate.is_full() {
            for number in 0..reserved as u64 {
                prop_assert!(gate.hold(&frame(number, len), 0).is_ok());
            }
        }
    }
}

fn held(frames: u64) -> Gate {
    let mut gate = Gate::new(16, 40_000);
    gate.set_mode(GateMode::Held);
    for number in 0..frames {
        assert_eq!(gate.hold(&frame(number, 60), 100 + number), Ok(HoldOutcome::Held));
    }
    gate
}

#[test]
fn one_entry_covers_all_before_it_and_none_after() {
    let mut gate = held(2);
    gate.seal(Mark::Seq(7));
    gate.hold(&frame(2, 60), 0).unwrap();
    assert_eq!(gate.unsealed(), 1);
    gate.acked(7);
    let mut wire = Wire::with_room(9);
    assert_eq!(gate.transmit_ready(&mut wire, 200), 2);
    assert_eq!((gate.held(), gate.ready(), gate.unsealed()), (1, 0, 1));
}

#[test]
fn it_is_known_since_when_frames_wait_for_a_mark() {
    let mut gate = Gate::new(8, 8 * MAX_FRAME);
    gate.set_mode(GateMode::Held);
    gate.guest_at(5);
    assert_eq!(gate.unsealed_since(), None, "nothing waits");
    gate.hold(&frame(0, 60), 0).unwrap();
    assert_eq!(gate.unsealed_since(), None, "nobody has seen the guest since");
    gate.guest_at(10);
    gate.hold(&frame(1, 60), 0).unwrap();
    gate.guest_at(20);
    assert_eq!(gate.unsealed_since(), Some(10), "the oldest counts");
    gate.seal(Mark::Seq(1));
    assert_eq!(gate.unsealed_since(), None);
    gate.hold(&frame(2, 60), 0).unwrap();
    gate.guest_at(30);
    assert_eq!(gate.unsealed_since(), Some(30));
    gate.set_mode(GateMode::Open);
    assert_eq!(gate.unsealed_since(), None);
    gate.hold(&frame(3, 60), 0).unwrap();
    gate.guest_at(40);
    assert_eq!(gate.unsealed_since(), None, "no frame waits for a mark");
}

#[test]
fn breaking_the_rule_releases_unsealed_frames() {
    let mut gate = held(2);
    gate.break_output_rule(true);
    assert_eq!(gate.transmit_ready(&mut Wire::with_room(9), 200), 2);
    assert_eq!(gate.unsealed(), 0);
    gate.seal(Mark::Seq(3));
    gate.break_output_rule(false);
    assert_eq!(gate.hold(&frame(2, 60), 300), Ok(HoldOutcome::Held));
    gate.acked(3);
    assert_eq!(gate.transmit_ready(&mut Wire::with_room(9), 400), 0, "sealed by no entry yet");
}

#[test]
fn hold_times_are_measured() {
    let mut gate = held(2);
    assert_eq!(gate.oldest_age(150), Some(50));
    gate.seal(Mark::Seq(1));
    gate.acked(1);
    gate.transmit_ready(&mut Wire::with_room(9), 1100);
    assert_eq!(gate.stats().hold_time_max_us, 1000);
    assert_eq!(gate.stats().hold_times[10], 2);
    assert_eq!(gate.oldest_age(1200), None);
}

#[test]
fn invalid_and_excess_frames_are_refused_and_counted() {
    let mut gate = Gate::new(1, 1_000_000);
    gate.set_mode(GateMode::Held);
    assert_eq!(gate.hold(&[0; 13], 0), Err(HoldError::Invalid(FrameError::TooShort(13))));
    assert_eq!(gate.hold(&[0; 1519], 0), Err(HoldError::Invalid(FrameError::TooLong(1519))));
    for number in 0..1 + RESERVED_FRAMES as u64 {
        gate.hold(&frame(number, 60), 0).unwrap();
    }
    assert!(gate.is_full());
    assert_eq!(gate.hold(&frame(0, 60), 0), Err(HoldError::Overflow));
    assert_eq!((gate.stats().invalid, gate.stats().overflowed), (2, 1));
    let texts = [HoldError::Overflow, HoldError::Invalid(FrameError::TooShort(13))].map(|error| error.to_string());
    assert_eq!(texts, ["the output gate overflowed".to_owned(), FrameError::TooShort(13).to_string()]);
}

#[test]
fn numbers_of_an_earlier_reign_release_nothing() {
    let mut gate = held(1);
    gate.seal(Mark::Seq(50));
    gate.acked(50);
    gate.transmit_ready(&mut Wire::with_room(9), 0);
    gate.set_mode(GateMode::Open);
    gate.set_mode(GateMode::Held);
    gate.hold(&frame(1, 60), 0).unwrap();
    gate.seal(Mark::Seq(3));
    assert_eq!(gate.ready(), 0);
}

/// A NIC that finds fault with a frame which the gate let in: it is lost and counted, and those behind it go on.
#[test]
fn a_frame_that_the_nic_refuses_blocks_nobody() {
    struct Picky(Wire);
    impl FrameSink for Picky {
        fn send(&mut self, frame: &[u8]) -> Result<(), SendError> {
            if number(frame) == 1 { Err(SendError::Invalid(FrameError::TooShort(1))) } else { self.0.send(frame) }
        }

        fn flush(&mut self) {}
    }
    let mut gate = held(3);
    gate.seal(Mark::Seq(1));
    gate.acked(1);
    let mut nic = Picky(Wire::with_room(9));
    assert_eq!(gate.transmit_ready(&mut nic, 0), 2);
    assert_eq!(nic.0.sent.iter().map(|frame| number(frame)).collect::<Vec<_>>(), [0, 2]);
    assert_eq!((gate.stats().refused_by_nic, gate.sent(), gate.held()), (1, Some(1), 0));
}

#[test]
fn it_is_full_by_frames_or_by_bytes() {
    for (frames, bytes) in [(2, 10_000), (16, 100)] {
        let mut gate = Gate::new(frames, bytes);
        gate.set_mode(GateMode::Held);
        for full in [false, true] {
            gate.hold(&frame(0, 60), 0).unwrap();
            assert_eq!(gate.is_full(), full, "{frames} frames, {bytes} bytes");
        }
    }
}

#[test]
fn what_left_is_flushed_once() {
    let mut gate = held(3);
    let mut wire = Wire::with_room(9);
    assert_eq!((gate.transmit_ready(&mut wire, 0), wire.flushes), (0, 0));
    gate.seal(Mark::Seq(1));
    gate.acked(1);
    assert_eq!((gate.transmit_ready(&mut wire, 0), wire.flushes), (3, 1));
}

#[test]
#[should_panic(expected = "Position(5) in mode Held")]
fn a_position_is_no_sequence_number() {
    held(1).seal(Mark::Position(5));
}

#[test]
#[should_panic(expected = "decreased")]
fn sequence_numbers_must_not_decrease() {
    let mut gate = held(1);
    gate.seal(Mark::Seq(5));
    gate.seal(Mark::Seq(4));
}
