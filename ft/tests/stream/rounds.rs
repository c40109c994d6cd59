//! State that is sent in rounds while the guest runs.

use crate::{actions, connect, identity, node, pump};
use pollux_ft::message::Retry;
use pollux_ft::{Action, AppendError, Config, EntryRef, Node, Position, Role, Start, Term, Time};

const NOW: Time = Time(1000);

fn joining(config: Config) -> (Node, Node) {
    let mut primary = Node::new(Time(0), Start::Primary, config.clone(), identity(1)).unwrap();
    let mut backup = Node::new(Time(0), Start::Backup, config, identity(2)).unwrap();
    while primary.poll_action().is_some() {}
    if primary.role() == Role::Starting {
        primary.arbiter_answered(NOW, Term(1), pollux_ft::Verdict::Granted);
    }
    connect(NOW, &mut primary, &mut backup);
    (primary, backup)
}

#[test]
fn later_rounds_replace_earlier_ones() {
    let (mut primary, mut backup) = joining(Config::default());
    primary.push_memory(0, &[1; 8192]).unwrap();
    primary.push_memory(4096, &[2; 4096]).unwrap();
    primary.push_zero(0, 4096).unwrap();
    pump(NOW, &mut primary, &mut backup);
    let want = [
        Action::BeginLoad,
        Action::LoadMemory { gpa: 0, data: vec![1; 8192] },
        Action::LoadMemory { gpa: 4096, data: vec![2; 4096] },
        Action::LoadZero { gpa: 0, len: 4096 },
    ];
    assert_eq!(actions(&mut backup), want);
}

#[test]
fn output_leaves_until_the_state_is_complete() {
    let (mut primary, mut backup) = joining(Config::default());
    assert_eq!((primary.role(), primary.holds_output()), (Role::Transferring, false));
    assert_eq!(primary.append(NOW, Position(5), EntryRef::Output), Err(AppendError::NotLogging));
    primary.finish_state(Position(10), 0).unwrap();
    assert!(primary.holds_output());
    assert!(primary.append(NOW, Position(15), EntryRef::Output).is_ok());
    assert_eq!(primary.push_zero(0, 4096), Err(AppendError::NotLogging));
    pump(NOW, &mut primary, &mut backup);
    // It holds the entry, but it is not complete: nothing is acked.
    assert_eq!(pump(NOW, &mut backup, &mut primary), 0);
}

#[test]
fn a_range_outside_memory_is_refused() {
    for (gpa, len) in [(1 << 20, 4096), (0, (1 << 20) + 4096), (u64::MAX - 4095, 8192)] {
        let (mut primary, mut backup) = joining(Config::default());
        primary.push_zero(gpa, len).unwrap();
        pump(NOW, &mut primary, &mut backup);
        assert_eq!((backup.role(), backup.stats().refused_content), (Role::Joining, 1), "{gpa} {len}");
    }
    let (mut primary, _) = joining(Config::default());
    for (gpa, len) in [(1, 4096), (0, 0), (0, 100)] {
        assert_eq!(primary.push_zero(gpa, len), Err(AppendError::BadData));
    }
}

/// Also zero runs, which are short on the wire, do not pile up without bound in a backup that loads slowly.
#[test]
fn state_that_waits_to_be_loaded_is_bounded() {
    let config = Config { receive_buffer_bytes: 20_000, ..Config::default() };
    let (mut primary, mut backup) = joining(config.clone());
    let mut sent = 0;
    while backup.receive_room() > 0 {
        primary.push_zero(0, 4096).unwrap();
        pump(NOW, &mut primary, &mut backup);
        sent += 1;
        assert!(sent < config.receive_buffer_bytes);
    }
    // The primary's side is bounded, too.
    while primary.push_memory(0, &[1; 4096]).is_ok() {}
    assert_eq!(primary.push_memory(0, &[1; 4096]), Err(AppendError::Full));
    assert!(primary.transmit().len() <= config.send_buffer_bytes);
    assert_eq!(actions(&mut backup).len(), sent + 1);
    assert!(backup.receive_room() > 0 && pump(NOW, &mut primary, &mut backup) > 0);
}

#[test]
fn a_transfer_that_ends_early_leaves_the_primary_free() {
    let asking = Config { arbiter: true, ..Config::default() };
    // Nothing but the very end is missing.
    let (mut primary, mut backup) = joining(asking.clone());
    primary.finish_state(Position(10), 0).unwrap();
    let left = primary.transmit().len() - 1;
    primary.transmitted(left);
    primary.disconnected(NOW);
    assert_eq!((primary.role(), primary.asks_for(), primary.next_term()), (Role::Alone, None, Term(2)));
    backup.disconnected(NOW);
    assert_eq!(backup.role(), Role::Joining);
    // Now the backup may be complete.
    let (mut primary, _) = joining(asking);
    primary.finish_state(Position(10), 0).unwrap();
    let all = primary.transmit().len();
    primary.transmitted(all);
    primary.disconnected(NOW);
    assert_eq!(primary.role(), Role::Detaching);
    for ms in (0..=1100).step_by(50) {
        primary.tick(Time(ms * 1000));
    }
    assert_eq!((primary.role(), primary.asks_for()), (Role::Detaching, Some(Term(2))));
}

#[test]
fn heartbeats_go_on_while_state_is_sent() {
    let (mut primary, mut backup) = joining(Config::default());
    for ms in (0..5000).step_by(50) {
        let now = Time(ms * 1000);
        for node in [&mut primary, &mut backup] {
            node.tick(now);
        }
        for (from, to) in [(0, 1), (1, 0)] {
            let pair = [&mut primary, &mut backup];
            if let Some(beat) = pair[from].poll_datagram(now) {
                pair[to].heartbeat_received(now, &beat);
            }
        }
    }
    assert_eq!((primary.role(), backup.role()), (Role::Transferring, Role::Loading));
}

#[test]
fn a_third_machine_is_told_to_wait() {
    let (mut primary, mut backup) = joining(Config::default());
    primary.finish_state(Position(10), 0).unwrap();
    pump(NOW, &mut primary, &mut backup);
    actions(&mut backup);
    backup.joined(NOW);
    pump(NOW, &mut backup, &mut primary);
    assert_eq!(primary.role(), Role::Protected);
    assert!(!primary.wants_connection(), "one stream at a time");
    primary.disconnected(NOW);
    let mut third = node(Start::Backup, identity(3));
    connect(NOW, &mut primary, &mut third);
    let told =
        actions(&mut third).into_iter().any(|action| matches!(action, Action::Refused { retry: Retry::Later, .. }));
    assert!(told && primary.role() == Role::Detaching);
}

#[test]
fn what_is_fed_is_counted_and_bounded() {
    let (mut primary, _backup) = joining(Config::default());
    assert_eq!(primary.push_memory(0, &[1; 17 * 4096]), Err(AppendError::BadData));
    assert_eq!(primary.push_memory(100, &[1; 4096]), Err(AppendError::BadData));
    primary.push_memory(0, &[1; 16 * 4096]).unwrap();
    primary.push_memory(0, &[1; 4096]).unwrap();
    assert_eq!(primary.push_machine(&[1; 100]), Ok(100));
    let stats = primary.stats();
    assert_eq!((stats.state_pages, stats.state_bytes, stats.transfers), (17, 17 * 4096 + 100, 1));
    // To the last byte, and no further: here comes a page for which there is just room.
    let room = primary.state_room();
    assert_eq!(primary.push_machine(&[1; 100]), Ok(100));
    let head = room - primary.state_room() - 100;
    while primary.state_room() > 3 * 4096 {
        assert_eq!(primary.push_machine(&[1; 4096]), Ok(4096));
    }
    let rest = vec![1; primary.state_room() - head - 4096];
    assert_eq!(primary.push_machine(&rest), Ok(rest.len()));
    assert_eq!((primary.state_room(), primary.push_memory(0, &[1; 4096])), (4096, Ok(())));
    let used = primary.transmit().len();
    assert_eq!((primary.push_machine(&[1]), primary.push_memory(0, &[1; 4096])), (Ok(0), Err(AppendError::Full)));
    assert_eq!(primary.push_zero(0, 4096), Err(AppendError::Full));
    assert_eq!(primary.transmit().len(), used);
    assert!(used <= Config::default().send_buffer_bytes);
}
