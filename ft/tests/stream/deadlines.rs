//! When things happen: a node that is ticked at its own timeouts, and at no other time, acts at the microsecond.

use crate::{actions, beat, connect, identity, node, protected, pump};
use pollux_ft::{Action, EntryRef, LossReason, Node, Position, Role, Start, Time};

fn us(us: u64) -> Time {
    Time(us)
}

/// What of the twin reaches the node at which time, in microseconds.
type Heard<'a> = &'a mut dyn FnMut(Time, &mut Node);

/// Ticks it when it wants to be ticked, until its role is another one; says when that was.
fn changes_at(node: &mut Node, heard_every_us: Option<u64>, heard: Heard<'_>) -> Time {
    let role = node.role();
    let mut hears_at = heard_every_us;
    for _ in 0..10_000 {
        let due = node.next_timeout().expect("it waits for something");
        let now = hears_at.map_or(due, |at| due.min(us(at)));
        if hears_at == Some(now.0) {
            heard(now, node);
            hears_at = heard_every_us.map(|every| now.0 + every);
        }
        node.tick(now);
        if node.role() != role {
            return now;
        }
    }
    panic!("it stays {role:?}");
}

fn silence(node: &mut Node) -> Time {
    changes_at(node, None, &mut |_, _| {})
}

#[test]
fn a_silent_twin_is_suspected_when_the_time_is_over() {
    let (mut primary, mut backup) = protected(us(0));
    beat(us(30_037), &mut backup, &mut primary);
    // Without an arbiter it has its term at once.
    assert_eq!((silence(&mut primary), primary.role()), (us(1_030_037), Role::Alone));

    let (mut primary, mut backup) = protected(us(0));
    beat(us(30_041), &mut primary, &mut backup);
    assert_eq!((silence(&mut backup), backup.role()), (us(1_030_041), Role::Draining));
}

#[test]
fn a_primary_that_falls_silent_while_it_sends_its_state_is_given_up() {
    let (mut primary, mut backup) = (node(Start::Primary, identity(1)), node(Start::Backup, identity(2)));
    connect(us(20_011), &mut primary, &mut backup);
    primary.push_memory(0x3000, &[7; 4096]).unwrap();
    pump(us(20_011), &mut primary, &mut backup);
    assert_eq!(backup.role(), Role::Loading);
    assert_eq!((silence(&mut backup), backup.role()), (us(1_020_011), Role::Joining));
}

#[test]
fn a_primary_whose_stream_broke_bids_when_its_twin_is_silent() {
    let (mut primary, mut backup) = protected(us(0));
    beat(us(30_037), &mut backup, &mut primary);
    primary.disconnected(us(50_000));
    assert_eq!(primary.role(), Role::Detaching);
    assert_eq!((silence(&mut primary), primary.role()), (us(1_030_037), Role::Alone));
}

/// The twin lives, and nothing that is sent is acked.
#[test]
fn acks_that_stop_end_a_session_when_the_time_is_over() {
    let (mut primary, mut backup) = protected(us(0));
    primary.append(us(13_007), Position(2000), EntryRef::Output).unwrap();
    primary.flush(us(13_007));
    let at = changes_at(&mut primary, Some(100_000), &mut |now, primary| beat(now, &mut backup, primary));
    assert_eq!((at, primary.role()), (us(3_013_007), Role::Detaching));
    assert_eq!(lost(&mut primary), LossReason::AcksStopped);
}

/// Why the backup was lost, which is told once the primary is alone.
fn lost(primary: &mut Node) -> LossReason {
    silence(primary);
    let mut reasons = actions(primary).into_iter().filter_map(|action| match action {
        Action::Unprotected { reason } => Some(reason),
        _ => None,
    });
    reasons.next_back().expect("it goes on alone")
}

/// A machine that stood still does not take the acks that it did not hear meanwhile for missing.
#[test]
fn a_machine_that_slept_waits_for_acks_anew() {
    let (mut primary, mut backup) = protected(us(0));
    primary.append(us(13_007), Position(2000), EntryRef::Output).unwrap();
    primary.flush(us(13_007));
    primary.tick(us(60_000_000));
    for at in (60_000_000..63_000_000).step_by(100_000).skip(1).map(us) {
        beat(at, &mut backup, &mut primary);
        primary.tick(at);
    }
    assert_eq!(primary.role(), Role::Protected);
    primary.tick(us(63_000_000));
    assert_eq!(primary.role(), Role::Detaching);
}

/// The twin acks, and its guest stands still.
#[test]
fn a_guest_that_stands_still_ends_a_session_when_the_time_is_over() {
    let (mut primary, mut backup) = protected(us(0));
    primary.append(us(13_007), Position(2000), EntryRef::Output).unwrap();
    primary.flush(us(13_007));
    let at = changes_at(&mut primary, Some(100_000), &mut |now, primary| {
        pump(now, primary, &mut backup);
        beat(now, &mut backup, primary);
        pump(now, &mut backup, primary);
    });
    assert_eq!(primary.role(), Role::Detaching);
    assert!((us(3_013_007)..=us(3_113_007)).contains(&at) && !at.0.is_multiple_of(100_000), "{at:?}");
    assert_eq!(lost(&mut primary), LossReason::StandsStill);
}

#[test]
fn heartbeats_come_at_their_interval_and_no_sooner() {
    let (mut primary, _) = protected(us(0));
    let beats = (0..=990).filter(|ms| {
        primary.tick(us(ms * 1000));
        primary.poll_datagram(us(ms * 1000)).is_some()
    });
    assert_eq!(beats.count(), 10);
}

/// A backup that says that it has lost the stream is let go of; one that has it is not.
#[test]
fn a_backup_without_its_stream_says_so() {
    let (mut primary, mut backup) = protected(us(0));
    beat(us(40_000), &mut backup, &mut primary);
    assert_eq!(primary.role(), Role::Protected, "it has the stream");
    backup.disconnected(us(50_000));
    beat(us(150_000), &mut backup, &mut primary);
    assert_eq!(primary.role(), Role::Detaching);
}

/// What people see of a node: each count goes up by one for one thing.
#[test]
fn what_happens_is_counted() {
    let (mut primary, mut backup) = protected(us(0));
    let before = (primary.stats().clone(), backup.stats().clone());
    beat(us(100_000), &mut backup, &mut primary);
    assert_eq!(backup.stats().heartbeats_sent, before.1.heartbeats_sent + 1);
    assert_eq!(primary.stats().heartbeats_received, before.0.heartbeats_received + 1);
    assert_eq!(primary.last_heard(), us(100_000));
    assert_eq!((primary.session(), primary.is_secure()), (backup.session(), false));
    assert_ne!(primary.session().0, 0);
    primary.strangers_came(3);
    primary.strangers_came(2);
    assert_eq!(primary.stats().refused_handshakes, before.0.refused_handshakes + 5);
    primary.append(us(100_000), Position(2000), EntryRef::PacketIn(&[1; 60])).unwrap();
    primary.flush(us(100_000));
    let bytes = primary.transmit().len() as u64;
    pump(us(100_000), &mut primary, &mut backup);
    assert!(bytes > 60);
    assert_eq!(primary.stats().stream_sent, before.0.stream_sent + bytes);
    assert_eq!(backup.stats().stream_received, before.1.stream_received + bytes);
    assert_eq!(backup.stats().messages_received, before.1.messages_received + 1);
    assert_eq!(backup.stats().received_entries, before.1.received_entries + 1);
    assert_eq!(backup.stats().digests, 0);
    for (node, refused) in [(&mut primary, "primary"), (&mut backup, "backup")] {
        let stats = node.stats();
        let none = (stats.refused_content, stats.refused_order, stats.refused_unexpected, stats.refused_seal);
        assert_eq!(none, (0, 0, 0, 0), "as {refused}");
    }
}
