//! The stream between two nodes: who may be on it, what it says when machines come, fall silent and go.

mod attacks;
mod auto;
mod bytes;
mod creation;
mod deadlines;
mod keys;
mod leases;
mod log;
mod pairing;
mod record;
mod rounds;
mod sessions;
mod strangers;
mod terms;

use pollux_ft::message::Retry;
use pollux_ft::{
    Action, AppendError, Config, Control, EntryRef, Identity, Meeting, Node, NodeId, Position, Record, Role, Seq,
    Start, Term, Time,
};
use proptest::prelude::*;
use std::net::Ipv4Addr;

const MEETING: Meeting =
    Meeting { dialer: Ipv4Addr::new(10, 0, 1, 2), listener: Ipv4Addr::new(10, 0, 1, 1), random: [7; 32] };

fn identity(node: u64) -> Identity {
    Identity {
        node: NodeId(node),
        pair: "gemini".into(),
        cpu_name: "model".into(),
        counter: "ticks".into(),
        guest_memory: 1 << 20,
        ..Identity::default()
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

/// A heartbeat of `from` reaches `to` at once.
fn beat(now: Time, from: &mut Node, to: &mut Node) {
    from.tick(now);
    let datagram = from.poll_datagram(now).expect("a heartbeat is due");
    to.heartbeat_received(now, &datagram);
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
        (1045, EntryRef::DiskDone(&[7, 0, 1, 1])),
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
    assert_eq!((primary.stats().protections, primary.stats().losses), (1, 1));
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
