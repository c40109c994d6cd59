//! Machines that stand in different sessions find out, whatever was lost between them.

use crate::{MEETING, actions, connect, identity, node, protected, pump};
use pollux_ft::{
    Action, AppendError, Config, Control, EntryRef, HaltReason, LossReason, Node, Position, Role, Start, Time,
};

const INTERVAL: u64 = 100_000;

/// The heartbeat that `node` sends at `now`.
fn beat(node: &mut Node, now: u64) -> Vec<u8> {
    node.tick(Time(now));
    node.poll_datagram(Time(now)).expect("one is due").to_vec()
}

/// A primary that has sent its whole state to a joiner, which has read nothing of it.
fn unread_state() -> (Node, Node) {
    let (mut primary, mut joiner) = (node(Start::Primary, identity(1)), node(Start::Backup, identity(2)));
    primary.connected(Time(0), primary.handshake(&MEETING));
    joiner.connected(Time(0), joiner.handshake(&MEETING));
    pump(Time(0), &mut joiner, &mut primary);
    primary.finish_state(Position(10), 0).unwrap();
    primary.transmitted(primary.transmit().len());
    assert_eq!((primary.role(), joiner.role()), (Role::Transferring, Role::Joining));
    (primary, joiner)
}

/// The stream broke, and of the two only the joiner hears of it. It lives, and is heard: silence ends nothing.
#[test]
fn a_joiner_whose_stream_broke_is_no_backup() {
    let (mut primary, mut joiner) = unread_state();
    joiner.heartbeat_received(Time(INTERVAL), &beat(&mut primary, INTERVAL));
    primary.heartbeat_received(Time(INTERVAL), &beat(&mut joiner, INTERVAL));
    assert_eq!(primary.role(), Role::Transferring, "it may still read what was sent");
    joiner.disconnected(Time(INTERVAL));
    primary.heartbeat_received(Time(2 * INTERVAL), &beat(&mut joiner, 2 * INTERVAL));
    assert_eq!(primary.role(), Role::Alone, "it says itself that it cannot");
    let ends = [Action::BeginTransfer, Action::CloseConnection];
    assert_eq!(
        actions(&mut primary),
        [&ends[..], &[Action::Unprotected { reason: LossReason::TwinUnlinked }]].concat()
    );
    primary.disconnected(Time(2 * INTERVAL));
    connect(Time(3 * INTERVAL), &mut primary, &mut joiner);
    assert_eq!((primary.role(), joiner.role()), (Role::Transferring, Role::Loading));
}

/// A primary that does not know yet what became of its backup logs for nobody: however long the arbiter is away, its log is
/// never full, so that the guest goes on.
#[test]
fn a_log_that_nobody_reads_is_never_full() {
    let now = Time(1000);
    let config = Config { max_entries: 64, ..Config::default() };
    let machine = |start, node| Node::new(Time(0), start, config.clone(), identity(node)).unwrap();
    let (mut primary, mut backup) = (machine(Start::Primary, 1), machine(Start::Backup, 2));
    connect(now, &mut primary, &mut backup);
    primary.finish_state(Position(1000), 0).unwrap();
    pump(now, &mut primary, &mut backup);
    backup.joined(now);
    pump(now, &mut backup, &mut primary);
    let log = |primary: &mut Node| primary.append(now, Position(2000), EntryRef::Output);
    while log(&mut primary).is_ok() {}
    primary.disconnected(now);
    assert_eq!(primary.role(), Role::Detaching);
    let (before, full) = (primary.newest().0, primary.stats().log_full);
    actions(&mut primary);
    for _ in 0..2 * config.max_entries {
        log(&mut primary).unwrap();
    }
    assert_eq!(primary.newest().0, before + 2 * config.max_entries, "they have numbers");
    assert_eq!((primary.role(), primary.stats().log_full, primary.lag(now).entries), (Role::Detaching, full, 0));
    assert_eq!(actions(&mut primary), [], "and nothing is released");
}

/// A heartbeat from before the Hello says that there is no stream. It comes late, and says nothing of this one.
#[test]
fn what_a_joiner_said_before_its_hello_does_not_count() {
    let (mut primary, mut joiner) = (node(Start::Primary, identity(1)), node(Start::Backup, identity(2)));
    joiner.heartbeat_received(Time(0), &beat(&mut primary, 0));
    let early = beat(&mut joiner, INTERVAL);
    connect(Time(INTERVAL), &mut primary, &mut joiner);
    primary.heartbeat_received(Time(INTERVAL), &early);
    assert_eq!((primary.role(), primary.stats().heartbeats_late), (Role::Transferring, 1));
}

/// A backup stood still while its primary let go of it, and handed the guest over to a third machine: it lives on, and
/// is heard, as a machine that joins.
#[test]
fn a_backup_whose_primary_follows_another_one_gives_up() {
    let (mut primary, mut backup) = protected(Time(1000));
    let (mut third, mut late) = (node(Start::Backup, identity(3)), 1_100_000);
    for now in [500_000, 900_000, late] {
        primary.tick(Time(now));
    }
    assert_eq!(primary.role(), Role::Alone);
    primary.disconnected(Time(late));
    connect(Time(late), &mut primary, &mut third);
    primary.finish_state(Position(2000), 0).unwrap();
    pump(Time(late), &mut primary, &mut third);
    third.joined(Time(late));
    pump(Time(late), &mut third, &mut primary);
    primary.switch_over(Time(late), Position(2000)).unwrap();
    pump(Time(late), &mut primary, &mut third);
    let record = third.next_record().expect("the hand-over").position;
    third.applied(Time(late), record);
    third.go_live(Time(late), Position(2000)).unwrap();
    late += INTERVAL;
    primary.heartbeat_received(Time(late), &beat(&mut third, late));
    assert_eq!((third.role(), primary.role(), backup.role()), (Role::Alone, Role::Joining, Role::Backup));
    assert_eq!(primary.stats().switch_overs, 1);
    late += INTERVAL;
    backup.heartbeat_received(Time(late), &beat(&mut primary, late));
    assert_eq!(backup.role(), Role::Joining, "{:?}", actions(&mut backup));
}

/// A backup that has all of a hand-over ends the stream when it goes live: only its silence says that it has failed. One
/// that has not got it never goes live.
#[test]
fn a_hand_over_needs_the_stream_until_it_is_acked() {
    let now = Time(1000);
    for (acked, role) in [(false, Role::Detaching), (true, Role::HandingOver)] {
        let (mut primary, mut backup) = protected(now);
        primary.switch_over(now, Position(2000)).unwrap();
        primary.flush(now);
        pump(now, &mut primary, &mut backup);
        if acked {
            pump(now, &mut backup, &mut primary);
        }
        primary.disconnected(now);
        assert_eq!(primary.role(), role, "acked: {acked}");
    }
}

/// Nobody holds the guest but this machine: there is nothing to wait for, and nothing to join any more.
#[test]
fn a_guest_that_ends_without_a_log_ends_its_node() {
    let off = EntryRef::Control(Control::PowerOff);
    let mut alone = node(Start::Primary, identity(1));
    assert_eq!(alone.append(Time(1), Position(5), off), Err(AppendError::NotLogging));
    assert_eq!(actions(&mut alone), [Action::Halt { reason: HaltReason::PoweredOff }]);
    assert!(!alone.wants_connection() && alone.next_timeout().is_none());

    let (mut primary, mut joiner) = (node(Start::Primary, identity(1)), node(Start::Backup, identity(2)));
    connect(Time(0), &mut primary, &mut joiner);
    assert_eq!(joiner.role(), Role::Loading);
    assert_eq!(primary.append(Time(1), Position(5), off), Err(AppendError::NotLogging));
    pump(Time(1), &mut primary, &mut joiner);
    assert_eq!((primary.role(), joiner.role()), (Role::Halted, Role::Joining));
}

/// A primary whose CPU and platform have no end does not fill a joiner's memory.
#[test]
fn a_machine_state_without_end_is_refused() {
    let now = Time(1000);
    let (mut primary, mut backup) = (node(Start::Primary, identity(1)), node(Start::Backup, identity(2)));
    connect(now, &mut primary, &mut backup);
    assert_eq!(backup.role(), Role::Loading);
    let (piece, mut loaded) = ([7; 64 << 10], 0);
    while backup.role() == Role::Loading && loaded < 1 << 30 {
        let _ = primary.push_machine(&piece);
        pump(now, &mut primary, &mut backup);
        loaded += actions(&mut backup)
            .iter()
            .map(|action| match action {
                Action::LoadMachine(data) => data.len(),
                _ => 0,
            })
            .sum::<usize>();
    }
    assert_eq!((backup.role(), loaded), (Role::Joining, pollux_ft::message::MAX_MACHINE));
    assert_eq!(backup.stats().refused_content, 1);
}

#[test]
fn a_backup_of_a_guest_that_is_off_ends() {
    let now = Time(0);
    let (mut primary, mut backup) = protected(now);
    let at = Position(1010);
    primary.append(now, at, EntryRef::Digest { machine: 1, slice: 2, memory: 3 }).unwrap();
    primary.append(now, at, EntryRef::Control(Control::PowerOff)).unwrap();
    pump(now, &mut primary, &mut backup);
    backup.progress(at);
    backup.applied(now, at);
    assert_eq!((backup.role(), backup.stats().digests), (Role::Backup, 1));
    backup.applied(now, at);
    assert_eq!(backup.role(), Role::Halted);
    let ends = [Action::CloseConnection, Action::Halt { reason: HaltReason::PoweredOff }];
    assert_eq!(actions(&mut backup), ends);
    pump(now, &mut backup, &mut primary);
    assert_eq!(actions(&mut primary), ends);
}

#[test]
fn a_state_that_is_another_makes_no_backup() {
    let now = Time(0);
    let (mut primary, mut backup) = (node(Start::Primary, identity(1)), node(Start::Backup, identity(2)));
    connect(now, &mut primary, &mut backup);
    primary.finish_state(Position(1000), 99).unwrap();
    pump(now, &mut primary, &mut backup);
    assert_eq!(backup.role(), Role::Loading);
    backup.diverged("another hash");
    assert_eq!(backup.role(), Role::Halted);
    pump(now, &mut backup, &mut primary);
    assert_eq!(primary.role(), Role::Alone);
    let reason = LossReason::Diverged("another hash".into());
    assert!(actions(&mut primary).contains(&Action::Unprotected { reason }));
    // Whoever has no guest can have none that differs.
    let mut joiner = node(Start::Backup, identity(2));
    joiner.diverged("nothing");
    assert_eq!((joiner.role(), primary.role()), (Role::Joining, Role::Alone));
}
