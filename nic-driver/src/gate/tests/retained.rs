//! A backup's gate, alone and beside its primary's.

use alloc::collections::VecDeque;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Guest {
        frames: usize,
        len: usize,
    },
    Seal {
        advance: u64,
    },
    /// A mark by so much before (or after) the newest one.
    Released {
        back: u64,
        ahead: u64,
    },
    /// What must change nothing: acknowledgements are the primary's, and nothing leaves.
    Noise {
        seq: u64,
        broken: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1usize..120, 14usize..=MAX_FRAME).prop_map(|(frames, len)| Step::Guest { frames, len }),
        4 => (0u64..4).prop_map(|advance| Step::Seal { advance }),
        2 => (0u64..8, 0u64..4).prop_map(|(back, ahead)| Step::Released { back, ahead }),
        1 => (any::<u64>(), any::<bool>()).prop_map(|(seq, broken)| Step::Noise { seq, broken }),
    ]
}

proptest! {
    /// Nothing leaves while retained; afterwards exactly what has a mark beyond the newest released one, in order and
    /// once. What is kept is bounded.
    #[test]
    fn what_is_not_released_leaves_once(
        capacity in (1usize..100, 1usize..60_000),
        steps in proptest::collection::vec(step(), 1..60),
        to in prop_oneof![Just(GateMode::Open), Just(GateMode::Held)],
        room in 1usize..90,
    ) {
        let mut gate = Gate::new(capacity.0, capacity.1);
        gate.set_mode(GateMode::Retained);
        let mut wire = Wire::with_room(usize::MAX);
        let (mut made, mut mark, mut newest_released) = (0, 0, None);
        // Number, length and mark.
        let mut kept: VecDeque<(u64, usize, Option<u64>)> = VecDeque::new();
        let bytes = |kept: &VecDeque<(u64, usize, Option<u64>)>| kept.iter().map(|frame| frame.1).sum::<usize>();
        for step in steps {
            match step {
                Step::Guest { frames, len } => {
                    for _ in 0..frames {
                        let forgotten = gate.stats().retained_forgotten;
                        prop_assert_eq!(gate.forward(&frame(made, len), &mut wire, 0), Ok(HoldOutcome::Held));
                        for _ in forgotten..gate.stats().retained_forgotten {
                            let scarce = kept.len() == capacity.0 + RESERVED_FRAMES
                                || bytes(&kept) + len > capacity.1 + RESERVED_FRAMES * MAX_FRAME;
                            prop_assert!(scarce, "forgotten without need");
                            kept.pop_front();
                        }
                        kept.push_back((made, len, None));
                        made += 1;
                    }
                }
                Step::Seal { advance } => {
                    mark += advance;
                    gate.seal(Mark::Position(mark));
                    kept.iter_mut().for_each(|frame| frame.2 = frame.2.or(Some(mark)));
                }
                Step::Released { back, ahead } => {
                    let released = (mark + ahead).saturating_sub(back);
                    gate.released(released);
                    newest_released = newest_released.max(Some(released));
                }
                Step::Noise { seq, broken } => {
                    gate.acked(seq);
                    gate.break_output_rule(broken);
                    prop_assert_eq!((gate.ready(), gate.transmit_ready(&mut wire, 0)), (0, 0));
                }
            }
            kept.retain(|frame| frame.2.is_none() || frame.2 > newest_released);
            prop_assert_eq!((gate.held(), gate.held_bytes()), (kept.len(), bytes(&kept)));
            prop_assert_eq!(gate.unsealed(), kept.iter().filter(|frame| frame.2.is_none()).count());
            prop_assert!(gate.held() <= capacity.0 + RESERVED_FRAMES && gate.seals.len() <= gate.held());
            prop_assert!(!gate.is_full() && wire.sent.is_empty());
        }
        let stats = gate.stats();
        let gone = stats.retained_released + stats.retained_forgotten;
        prop_assert_eq!(gone + kept.len() as u64, made);

        gate.break_output_rule(false);
        gate.set_mode(to);
        prop_assert_eq!(gate.ready(), kept.len());
        while gate.ready() > 0 {
            wire.room = room;
            let left = wire.sent.len();
            prop_assert_eq!(gate.transmit_ready(&mut wire, 9), room.min(kept.len() - left));
        }
        let want: Vec<_> = kept.iter().map(|&(number, len, _)| frame(number, len)).collect();
        prop_assert_eq!(&wire.sent, &want);
        prop_assert_eq!(gate.stats().resent, want.len() as u64);
        // A frame of the new period counts as its own.
        prop_assert!(gate.hold(&frame(made, 60), 10).is_ok());
        gate.set_mode(GateMode::Open);
        wire.room = 1;
        prop_assert_eq!(gate.transmit_ready(&mut wire, 11), 1);
        prop_assert_eq!(gate.stats().resent, want.len() as u64);
        prop_assert_eq!(gate.stats().released, want.len() as u64 + 1);
    }
}

#[derive(Debug, Clone)]
enum PairStep {
    /// The guests run on and make as much as one virtio queue holds at most, then an `Output` entry is made.
    Run { frames: usize, len: usize },
    /// The backup acknowledges all but the newest entries, and as many frames leave as the card has room for.
    Ack { behind: u64, room: usize },
    /// The backup learns what has left.
    Tell,
}

fn pair_step() -> impl Strategy<Value = PairStep> {
    prop_oneof![
        4 => (0usize..=RESERVED_FRAMES, 14usize..=MAX_FRAME).prop_map(|(frames, len)| PairStep::Run { frames, len }),
        4 => (0u64..3, 0usize..400).prop_map(|(behind, room)| PairStep::Ack { behind, room }),
        1 => Just(PairStep::Tell),
    ]
}

proptest! {
    /// Whenever the primary dies, a client has in the end every frame in order, and twice at most what the backup
    /// held. Also when the backup hears late of what has left and must forget.
    #[test]
    fn a_pair_loses_nothing(
        capacity in (1usize..200, 1usize..200_000),
        steps in proptest::collection::vec(pair_step(), 1..40),
    ) {
        let mut primary = Gate::new(capacity.0, capacity.1);
        let mut backup = Gate::new(capacity.0, capacity.1);
        primary.set_mode(GateMode::Held);
        backup.set_mode(GateMode::Retained);
        let mut wire = Wire::with_room(0);
        let mut made = vec![];
        // For each entry: frames made before it. Positions are ten times the sequence numbers.
        let mut entries = vec![0];
        for step in steps {
            match step {
                PairStep::Run { frames, len } if !primary.is_full() => {
                    for _ in 0..frames {
                        let frame = frame(made.len() as u64, len);
                        prop_assert_eq!(primary.hold(&frame, 0), Ok(HoldOutcome::Held));
                        prop_assert_eq!(backup.hold(&frame, 0), Ok(HoldOutcome::Held));
                        made.push(frame);
                    }
                    let seq = entries.len() as u64;
                    entries.push(made.len());
                    primary.seal(Mark::Seq(seq));
                    backup.seal(Mark::Position(seq * 10));
                }
                PairStep::Run { .. } => {}
                PairStep::Ack { behind, room } => {
                    primary.acked((entries.len() as u64 - 1).saturating_sub(behind));
                    wire.room = room;
                    primary.transmit_ready(&mut wire, 0);
                }
                PairStep::Tell => {
                    let seq = entries.iter().rposition(|&end| end <= wire.sent.len()).unwrap_or(0);
                    backup.released(seq as u64 * 10);
                }
            }
        }
        let (seen, held) = (wire.sent.len(), backup.held());
        prop_assert!(held >= primary.held());
        backup.set_mode(GateMode::Open);
        wire.room = usize::MAX;
        backup.transmit_ready(&mut wire, 0);
        let again = wire.sent.split_off(seen);
        prop_assert_eq!(again.len(), held);
        prop_assert_eq!(&wire.sent[..], &made[..seen]);
        prop_assert_eq!(&again[..], &made[made.len() - held..]);
        prop_assert!(made.len() - held <= seen, "lost");
    }
}

fn retaining(frames: u64) -> Gate {
    let mut gate = Gate::new(16, 40_000);
    gate.set_mode(GateMode::Retained);
    for number in 0..frames {
        gate.hold(&frame(number, 60), 0).unwrap();
        gate.seal(Mark::Position(10 * number));
    }
    gate
}

/// A backup that lags makes frames which the primary has long sent.
#[test]
fn released_before_they_are_made() {
    let mut gate = retaining(0);
    gate.released(25);
    for (mark, held) in [(20, 0), (25, 0), (26, 1)] {
        gate.hold(&frame(mark, 60), 0).unwrap();
        gate.seal(Mark::Position(mark));
        assert_eq!(gate.held(), held, "{mark}");
    }
    assert_eq!(gate.stats().retained_released, 2);
}

/// A backup that never hears of a release, with a mark for each frame: the marks are bounded too.
#[test]
fn marks_go_with_their_frames() {
    let mut gate = retaining(1000);
    let room = 16 + RESERVED_FRAMES;
    assert_eq!((gate.held(), gate.seals.len()), (room, room));
    assert_eq!(gate.stats().retained_forgotten, 1000 - room as u64);
    gate.released(10 * 998);
    assert_eq!((gate.held(), gate.seals.len()), (1, 1));
}

#[test]
fn closing_drops_what_is_retained() {
    let mut gate = retaining(3);
    gate.set_mode(GateMode::Closed);
    assert_eq!(gate.stats().dropped_closed, 3);
    gate.set_mode(GateMode::Open);
    assert_eq!(gate.transmit_ready(&mut Wire::with_room(9), 0), 0);
}

#[test]
fn retaining_starts_empty() {
    for before in [GateMode::Closed, GateMode::Held, GateMode::Open] {
        let mut gate = Gate::new(16, 40_000);
        gate.set_mode(before);
        gate.hold(&frame(0, 60), 0).unwrap();
        gate.seal(Mark::Seq(50));
        gate.set_mode(GateMode::Retained);
        assert_eq!((gate.held(), gate.stats().dropped_closed), (0, 1), "{before:?}");
        // Marks start anew.
        gate.hold(&frame(1, 60), 0).unwrap();
        gate.seal(Mark::Position(3));
        gate.released(2);
        assert_eq!(gate.held(), 1);
    }
}

#[test]
fn retained_frames_do_not_count_as_held_back() {
    let mut gate = retaining(2);
    gate.set_mode(GateMode::Held);
    gate.hold(&frame(2, 60), 5000).unwrap();
    assert_eq!((gate.ready(), gate.unsealed()), (2, 1));
    let mut wire = Wire::with_room(9);
    assert_eq!(gate.transmit_ready(&mut wire, 5000), 2);
    assert_eq!(gate.stats().hold_times.iter().sum::<u64>(), 0);
    gate.released(100);
    assert_eq!((gate.held(), gate.ready()), (1, 0));
    gate.seal(Mark::Seq(1));
    gate.acked(1);
    assert_eq!(gate.transmit_ready(&mut wire, 5003), 1);
    assert_eq!(gate.stats().hold_time_max_us, 3);
    assert_eq!(gate.stats().resent, 2);
}
