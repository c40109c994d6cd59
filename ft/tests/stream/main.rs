//! The stream between two nodes: cut into any pieces, damaged anywhere, refused pairings, budgets on the wire.

mod attacks;
mod leases;
mod pairing;
mod rounds;
mod sessions;
mod strangers;
mod terms;

use pollux_ft::message::Retry;
use pollux_ft::{
    Action, AppendError, Config, Control, EntryRef, Identity, Kind, Lag, Meeting, Node, NodeId, Position, Record, Role,
    Seq, Start, Term, Time,
};
use proptest::prelude::*;
use std::net::Ipv4Addr;

const MEETING: Meeting =
    Meeting { dialer: Ipv4Addr::new(10, 0, 1, 2), listener: Ipv4Addr::new(10, 0, 1, 1), random: [7; 32] };

fn identity(node: u64) -> Identity {
    Identity {
        node: NodeId(node),
        pair: "gemini".into(),
        build: "test".into(),
        cpu_digest: 1,
        cpu_name: "model".into(),
        counter: "ticks".into(),
        guest_memory: 1 << 20,
        guest_image: "guest".into(),
        disk: "none".into(),
        guest_mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
        guest_bridges: false,
        broken_rule: String::new(),
    }
}

fn node(start: Start, identity: Identity) -> Node {
    Node::new(Time(0), start, Config::default(), identity).unwrap()
}

/// Moves all bytes that `from` has for `to`.
fn pump(now: Time, from: &mut Node, to: &mut Node) -> usize {
    let mut moved = 0;
    while !from.transmit().is_empty() && to.receive_room() > 0 {
        let taken = to.receive(now, from.transmit());
        from.transmitted(taken);
        moved += taken;
    }
    for node in [from, to] {
        assert_eq!(node.invariants(), Ok(()), "as {:?}", node.role());
    }
    moved
}

fn actions(node: &mut Node) -> Vec<Action> {
    core::iter::from_fn(|| node.poll_action()).collect()
}

/// Two connected nodes, exchanged until nothing moves.
fn connect(now: Time, primary: &mut Node, backup: &mut Node) {
    primary.connected(now, primary.handshake(&MEETING));
    backup.connected(now, backup.handshake(&MEETING));
    while pump(now, backup, primary) + pump(now, primary, backup) > 0 {}
}

/// A protected pair; the guest stands at position 1000.
fn protected(now: Time) -> (Node, Node) {
    let (mut primary, mut backup) = (node(Start::Primary, identity(1)), node(Start::Backup, identity(2)));
    connect(now, &mut primary, &mut backup);
    assert_eq!(actions(&mut primary), [Action::BeginTransfer]);
    primary.push_memory(0x3000, &[7; 4096]).unwrap();
    assert_eq!(primary.push_machine(&[1, 2, 3]), Ok(3));
    primary.finish_state(Position(1000), 99).unwrap();
    pump(now, &mut primary, &mut backup);
    let want = [
        Action::BeginLoad,
        Action::LoadMemory { gpa: 0x3000, data: vec![7; 4096] },
        Action::LoadMachine(vec![1, 2, 3]),
        Action::StateLoaded { position: Position(1000), digest: 99 },
    ];
    assert_eq!(actions(&mut backup), want);
    backup.joined(now);
    pump(now, &mut backup, &mut primary);
    assert_eq!(actions(&mut primary), [Action::Protected]);
    (primary, backup)
}

/// Bytes of a log with some of everything, and the records the backup must see.
fn sample_log(now: Time, primary: &mut Node) -> Vec<u8> {
    let entries = [
        (1010, EntryRef::Clock { base_ns: 5, rate: 1 << 32 }),
        (1020, EntryRef::PacketIn(&[1; 300])),
        (1025, EntryRef::Output),
        (1030, EntryRef::ConsoleIn(b"x")),
        (1040, EntryRef::Digest { machine: 1, slice: 2, memory: 3 }),
        (1050, EntryRef::Output),
        (1060, EntryRef::Horizon),
    ];
    for (position, entry) in entries {
        primary.append(now, Position(position), entry).unwrap();
    }
    primary.flush(now);
    primary.transmit().to_vec()
}

fn drain(now: Time, backup: &mut Node) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some(record) = backup.next_record().cloned() {
        backup.progress(record.position);
        backup.applied(now, record.position);
        records.push(record);
    }
    records
}

/// Frames that may leave can still be in the primary, when its card has no room.
#[test]
fn the_backup_hears_that_frames_left_when_they_did() {
    let now = Time(1000);
    let (mut primary, mut backup) = protected(now);
    let told = |primary: &mut Node, backup: &mut Node, position: u64| {
        primary.append(now, Position(position), EntryRef::Horizon).unwrap();
        primary.flush(now);
        pump(now, primary, backup);
        backup.released().position
    };
    for position in [1010, 1020] {
        primary.append(now, Position(position), EntryRef::Output).unwrap();
    }
    pump(now, &mut primary, &mut backup);
    primary.output_left(Seq(2));
    assert_eq!(told(&mut primary, &mut backup, 1030), Position(1000), "nothing may leave yet");
    pump(now, &mut backup, &mut primary);
    assert_eq!(actions(&mut primary), [Action::Release(Seq(2))]);
    assert_eq!(told(&mut primary, &mut backup, 1040), Position(1000), "nothing has left yet");
    primary.output_left(Seq(1));
    assert_eq!(told(&mut primary, &mut backup, 1050), Position(1010));
    primary.output_left(Seq(2));
    primary.stop(now);
    pump(now, &mut primary, &mut backup);
    assert_eq!(backup.released().position, Position(1010), "there is no batch to tell it with");
}

#[test]
fn an_ack_means_received_and_releases_at_once() {
    let now = Time(1000);
    let (mut primary, mut backup) = protected(now);
    sample_log(now, &mut primary);
    pump(now, &mut primary, &mut backup);
    // The backup has executed nothing.
    assert_eq!(backup.run_limit(), Some(Position(1060)));
    pump(now, &mut backup, &mut primary);
    assert_eq!(actions(&mut primary), [Action::Release(Seq(6))]);
    assert_eq!(primary.lag(now).ticks, 60);
    assert_eq!(drain(now, &mut backup).len(), 4);
}

/// A primary that waits for a twin that lags makes no entries, so that only acks tell it that the twin has caught up.
#[test]
fn a_backup_that_only_ran_on_says_so() {
    let now = Time(1000);
    let (mut primary, mut backup) = protected(now);
    primary.append(now, Position(5000), EntryRef::Horizon).unwrap();
    primary.progress(Position(5000));
    primary.flush(now);
    pump(now, &mut primary, &mut backup);
    let lag_after = |ms: u64, primary: &mut Node, backup: &mut Node| {
        for at in (ms..ms + 100).map(|ms| Time(ms * 1000)) {
            backup.tick(at);
            pump(at, backup, primary);
        }
        primary.lag(now).ticks
    };
    assert_eq!(lag_after(10, &mut primary, &mut backup), 4000);
    backup.progress(Position(5000));
    assert_eq!(lag_after(110, &mut primary, &mut backup), 0);
    let acks = backup.stats().acks_sent;
    lag_after(210, &mut primary, &mut backup);
    assert_eq!(backup.stats().acks_sent, acks, "who stands still has nothing to say");
}

/// A guest that switches itself off without a log ends its node; who was about to get its state joins somebody else.
#[test]
fn a_guest_that_is_off_leaves_nobody_to_join() {
    let now = Time(1000);
    let off = EntryRef::Control(Control::PowerOff);
    let (mut primary, mut backup) = (node(Start::Primary, identity(1)), node(Start::Backup, identity(2)));
    connect(now, &mut primary, &mut backup);
    assert_eq!((primary.role(), backup.role()), (Role::Transferring, Role::Loading));
    assert_eq!(primary.append(now, Position(7), off), Err(AppendError::NotLogging));
    pump(now, &mut primary, &mut backup);
    assert_eq!((primary.role(), backup.role()), (Role::Halted, Role::Joining));
    assert!(!primary.wants_connection());
    // With a backup it goes on until that knows.
    let (mut primary, mut backup) = protected(now);
    assert!(primary.append(now, Position(1007), off).is_ok());
    assert_eq!(primary.role(), Role::Protected);
    primary.flush(now);
    pump(now, &mut primary, &mut backup);
    pump(now, &mut backup, &mut primary);
    assert_eq!(primary.role(), Role::Halted);
}

#[test]
fn without_entries_the_backup_executes_nothing() {
    let (primary, backup) = protected(Time(1000));
    assert_eq!((backup.run_limit(), backup.next_record()), (Some(Position(1000)), None));
    assert!(primary.is_logging() && primary.holds_output());
}

#[test]
fn only_who_logs_knows_a_lag() {
    let now = Time(1000);
    let (mut primary, mut backup) = protected(now);
    sample_log(now, &mut primary);
    pump(now, &mut primary, &mut backup);
    drain(now, &mut backup);
    assert_eq!(primary.lag(now).ticks, 60);
    assert_eq!(backup.lag(now), Lag::default());
}

#[test]
#[should_panic(expected = "beyond")]
fn running_past_the_horizon_is_fatal() {
    let (_primary, mut backup) = protected(Time(1000));
    backup.progress(Position(1001));
}

#[test]
fn a_full_log_refuses_and_recovers() {
    let now = Time(1000);
    let (mut primary, mut backup) = protected(now);
    let mut logged = 0;
    while primary.append(now, Position(2000), EntryRef::PacketIn(&[5; 1500])).is_ok() {
        logged += 1;
    }
    assert_eq!(primary.append(now, Position(2000), EntryRef::PacketIn(&[5; 1500])), Err(AppendError::Full));
    assert!(primary.transmit().len() <= Config::default().send_buffer_bytes);
    // The backup stops reading when its own buffer is full, and goes on when entries were applied.
    let mut applied = 0;
    while applied < logged {
        pump(now, &mut primary, &mut backup);
        applied += drain(now, &mut backup).len();
    }
    let later = Time(now.0 + 60_000);
    backup.tick(later);
    pump(later, &mut backup, &mut primary);
    assert!(primary.append(later, Position(2000), EntryRef::PacketIn(&[5; 1500])).is_ok());
    assert_eq!(primary.lag(later).entries, 1);
}

#[test]
fn entries_without_data_are_bounded_too() {
    let now = Time(1000);
    let (mut primary, mut backup) = protected(now);
    let mut logged = 0;
    while primary.append(now, Position(2000), EntryRef::Output).is_ok() {
        logged += 1;
        assert!(logged <= Config::default().max_entries);
        pump(now, &mut primary, &mut backup);
    }
    assert_eq!(primary.append(now, Position(2000), EntryRef::Output), Err(AppendError::Full));
    // Acks make room again.
    backup.progress(Position(2000));
    let later = Time(now.0 + 60_000);
    backup.tick(later);
    pump(later, &mut backup, &mut primary);
    assert!(primary.append(later, Position(2000), EntryRef::Output).is_ok());
}

#[test]
fn a_joiner_that_lost_the_stream_before_the_state_may_try_again() {
    let now = Time(1000);
    let (mut primary, mut backup) = (node(Start::Primary, identity(1)), node(Start::Backup, identity(2)));
    primary.connected(now, primary.handshake(&MEETING));
    backup.connected(now, backup.handshake(&MEETING));
    pump(now, &mut backup, &mut primary);
    primary.finish_state(Position(0), 0).unwrap();
    // All of the state is on its way, and nothing arrives.
    primary.transmitted(primary.transmit().len());
    primary.disconnected(now);
    backup.disconnected(now);
    assert_eq!((primary.role(), backup.role()), (Role::Detaching, Role::Joining));
    connect(now, &mut primary, &mut backup);
    assert_eq!((primary.role(), backup.role()), (Role::Transferring, Role::Loading));
}

#[test]
fn a_lost_log_is_not_sent_on_the_next_stream() {
    let now = Time(1000);
    let (mut primary, _backup) = protected(now);
    primary.disconnected(now);
    assert_eq!(primary.role(), Role::Detaching);
    primary.connected(now, primary.handshake(&MEETING));
    primary.append(now, Position(2000), EntryRef::Output).unwrap();
    primary.flush(now);
    assert_eq!(primary.transmit(), [], "nobody has said Hello");
}

#[test]
fn a_backup_that_is_full_leaves_bytes_in_the_stream() {
    let now = Time(1000);
    let small = Config { receive_buffer_bytes: 10_000, ..Config::default() };
    let mut primary = Node::new(Time(0), Start::Primary, small.clone(), identity(1)).unwrap();
    let mut backup = Node::new(Time(0), Start::Backup, small, identity(2)).unwrap();
    connect(now, &mut primary, &mut backup);
    primary.finish_state(Position(0), 0).unwrap();
    pump(now, &mut primary, &mut backup);
    backup.joined(now);
    pump(now, &mut backup, &mut primary);
    for _ in 0..100 {
        primary.append(now, Position(5), EntryRef::PacketIn(&[1; 1000])).unwrap();
    }
    primary.flush(now);
    pump(now, &mut primary, &mut backup);
    assert_eq!(backup.receive_room(), 0);
    assert!(!primary.transmit().is_empty());
    let mut records = 0;
    while records < 100 {
        records += drain(now, &mut backup).len();
        assert!(pump(now, &mut primary, &mut backup) > 0 || records == 100);
    }
}

#[test]
fn both_sides_learn_why_pairing_is_refused() {
    let now = Time(1000);
    let cases = [
        (Identity { guest_memory: 5, ..identity(2) }, "guest memory differs"),
        (Identity { counter: "pmu".into(), ..identity(2) }, "ticks and pmu"),
        (identity(1), "same machine"),
    ];
    for (theirs, want) in cases {
        let (mut primary, mut backup) = (node(Start::Primary, identity(1)), node(Start::Backup, theirs));
        connect(now, &mut primary, &mut backup);
        for node in [&mut primary, &mut backup] {
            let refused = actions(node).into_iter().find_map(|action| match action {
                Action::Refused { reason, retry } => Some((reason, retry)),
                _ => None,
            });
            let (reason, retry) = refused.expect("both sides are told");
            assert!(reason.contains(want) && retry == Retry::Never, "{reason}");
        }
        assert_eq!((primary.role(), backup.role()), (Role::Alone, Role::Halted));
    }
}

#[test]
fn a_divergence_stops_the_backup_and_frees_the_primary() {
    let now = Time(1000);
    let (mut primary, mut backup) = protected(now);
    primary.append(now, Position(1010), EntryRef::Output).unwrap();
    backup.diverged("memory slice 3 at 1010");
    pump(now, &mut backup, &mut primary);
    assert_eq!((primary.role(), backup.role()), (Role::Alone, Role::Halted));
    let unprotected = actions(&mut primary).pop().unwrap();
    assert!(matches!(&unprotected, Action::Unprotected { reason } if reason.to_string().contains("slice 3")));
    assert_eq!(primary.append(now, Position(1020), EntryRef::Output), Err(AppendError::NotLogging));
}

#[test]
fn a_sign_of_life_calls_a_takeover_off() {
    let (mut primary, mut backup) = protected(Time(0));
    for ms in (0..=1000).step_by(50) {
        backup.tick(Time(ms * 1000));
    }
    let now = Time(1_000_000);
    assert_eq!(backup.role(), Role::Draining);
    primary.tick(Time(100_000));
    backup.heartbeat_received(now, &primary.poll_datagram(now).unwrap());
    assert_eq!(backup.role(), Role::Backup);
    assert!(backup.go_live(now, Position(1000)).is_err());
    assert_eq!(actions(&mut backup), [Action::TakeOver { last: Position(1000) }, Action::TakeOverCancelled]);
}

#[test]
fn a_machine_that_slept_does_not_accuse_its_twin() {
    let (mut primary, mut backup) = protected(Time(0));
    let late = Time(60_000_000);
    primary.tick(late);
    backup.tick(late);
    assert_eq!((primary.role(), backup.role()), (Role::Protected, Role::Backup));
    assert_eq!((primary.stats().own_pauses, backup.stats().own_pauses), (1, 1));
}

#[test]
fn an_old_primary_halts_when_it_hears_of_its_successor() {
    let (mut primary, mut backup) = protected(Time(0));
    for ms in (0..=1000).step_by(50) {
        backup.tick(Time(ms * 1000));
    }
    let now = Time(1_000_000);
    assert_eq!(backup.go_live(now, Position(1000)).map(|taken| taken.term), Ok(Term(2)));
    backup.tick(now);
    primary.heartbeat_received(now, &backup.poll_datagram(now).unwrap());
    assert_eq!(primary.role(), Role::Halted);
}

/// A guest that computes: a horizon every 5 ms, a clock and a digest now and then.
#[test]
fn a_computing_guest_costs_little_on_the_wire() {
    let (mut primary, mut backup) = protected(Time(0));
    let (mut bytes, mut segments) = (0, 0);
    for ms in 1..=10_000u64 {
        let now = Time(ms * 1000);
        let position = Position(1000 + ms * 70_000);
        primary.progress(position);
        if ms % 100 == 0 {
            primary.append(now, position, EntryRef::Clock { base_ns: 1 << 42, rate: 1 << 32 }).unwrap();
        }
        if ms % 500 == 0 {
            primary.append(now, position, EntryRef::Digest { machine: ms, slice: 9, memory: ms }).unwrap();
        }
        if ms % 5 == 0 {
            primary.append(now, position, EntryRef::Horizon).unwrap();
        }
        primary.tick(now);
        backup.tick(now);
        let there = pump(now, &mut primary, &mut backup);
        drain(now, &mut backup);
        backup.progress(backup.run_limit().unwrap());
        let back = pump(now, &mut backup, &mut primary);
        bytes += there + back;
        segments += u64::from(there > 0) + u64::from(back > 0);
        for node in [&mut primary, &mut backup] {
            let beat = node.poll_datagram(now);
            assert!(beat.is_none_or(|beat| beat.len() < 140));
        }
    }
    assert_eq!((primary.role(), backup.role()), (Role::Protected, Role::Backup));
    // Each segment with Ethernet, IP and TCP headers, and a pure ack of the minimum frame size for it.
    let per_second = (bytes as u64 + segments * (54 + 60)) / 10 * 8;
    assert!(per_second <= 60_000, "{per_second} bit/s in {segments} segments of {bytes} bytes");
    assert!(primary.stats().of(Kind::Horizon).entries <= 250);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_pieces_give_the_same_records(pieces in proptest::collection::vec(1usize..50, 1..40)) {
        let now = Time(1000);
        let (mut primary, mut whole) = protected(now);
        let (_, mut cut) = protected(now);
        let bytes = sample_log(now, &mut primary);
        prop_assert_eq!(whole.receive(now, &bytes), bytes.len());
        let mut rest = &bytes[..];
        for piece in pieces.iter().cycle() {
            let (head, tail) = rest.split_at((*piece).min(rest.len()));
            prop_assert_eq!(cut.receive(now, head), head.len());
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(cut.run_limit(), whole.run_limit());
        prop_assert_eq!(drain(now, &mut cut), drain(now, &mut whole));
    }

    #[test]
    fn a_flipped_bit_never_becomes_a_record(at: prop::sample::Index, bit in 0u8..8) {
        let now = Time(1000);
        let (mut primary, mut backup) = protected(now);
        let mut bytes = sample_log(now, &mut primary);
        let (_, mut good) = protected(now);
        good.receive(now, &bytes);
        let want = drain(now, &mut good);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        backup.receive(now, &bytes);
        let got = drain(now, &mut backup);
        // What came before the damage is good; from there on nothing is taken.
        prop_assert!(want.starts_with(&got));
        prop_assert!(backup.newest() < good.newest());
        prop_assert_eq!(backup.role(), Role::Backup);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        datagram in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let now = Time(1000);
        let (mut primary, mut backup) = protected(now);
        let mut joining = node(Start::Backup, identity(3));
        joining.connected(now, joining.handshake(&MEETING));
        for node in [&mut primary, &mut backup, &mut joining] {
            let _ = node.receive(now, &bytes);
            node.heartbeat_received(now, &datagram);
            node.tick(now);
            prop_assert_eq!(node.stats().heartbeats_malformed, 1);
        }
        prop_assert_eq!(backup.next_record(), None);
        prop_assert_eq!(backup.run_limit(), Some(Position(1000)));
        prop_assert_ne!(primary.role(), Role::Alone);
    }
}
