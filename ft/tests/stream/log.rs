//! The log on its way: what is released and when, how far a backup may run, what happens when something is full.

use super::*;
use pollux_ft::Lag;
use pollux_ft::entry::MAX_DATA;

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
    assert_eq!(actions(&mut primary), [Action::Release(Seq(7))]);
    assert_eq!(primary.lag(now).ticks, 60);
    assert_eq!(drain(now, &mut backup).len(), 5);
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
fn entries_have_a_greatest_length() {
    let now = Time(1000);
    let (mut primary, _) = protected(now);
    let data = vec![1; MAX_DATA + 1];
    assert_eq!(primary.append(now, Position(2000), EntryRef::ConsoleIn(&data)), Err(AppendError::BadData));
    assert_eq!(primary.append(now, Position(2000), EntryRef::ConsoleIn(&data[1..])), Ok(Seq(1)));
}

/// An entry of just the length that there is room for is taken, until there is none; nothing more is sent than is allowed.
#[test]
fn a_log_is_used_to_its_end() {
    let now = Time(1000);
    let (mut primary, _backup) = protected(now);
    let data = [1; 1400];
    while primary.log_room() > 0 {
        let len = primary.log_room().min(data.len());
        assert!(primary.append(now, Position(2000), EntryRef::PacketIn(&data[..len])).is_ok());
    }
    for count in 1..3 {
        assert_eq!(primary.append(now, Position(2000), EntryRef::Output), Err(AppendError::Full));
        assert_eq!(primary.stats().log_full, count);
    }
    let (used, bound) = (primary.transmit().len(), Config::default().send_buffer_bytes);
    assert!((bound - 80..=bound).contains(&used), "{used} of {bound} bytes");
}

#[test]
fn a_batch_leaves_when_it_is_full_or_its_time_is_up_or_output_waits() {
    let now = Time(1000);
    let (mut primary, _backup) = protected(now);
    let log = |primary: &mut Node, entry| primary.append(now, Position(2000), entry).unwrap();
    let full = (1..1000).find(|_| {
        log(&mut primary, EntryRef::PacketIn(&[1; 100]));
        !primary.transmit().is_empty()
    });
    let Config { batch_bytes, packet_delay, .. } = Config::default();
    assert!(full.is_some_and(|count| (batch_bytes / 110..=batch_bytes / 100 + 1).contains(&count)), "{full:?}");
    let mut sent = primary.transmit().len();
    let mut more = |primary: &Node| core::mem::replace(&mut sent, primary.transmit().len()) < primary.transmit().len();
    log(&mut primary, EntryRef::PacketIn(&[1; 100]));
    primary.tick(Time(now.0 + packet_delay.0 - 1));
    assert!(!more(&primary));
    primary.tick(now.after(packet_delay));
    assert!(more(&primary));
    log(&mut primary, EntryRef::Output);
    assert!(more(&primary));
    let stats = primary.stats();
    assert_eq!((stats.batches, stats.batch_bytes), (3, primary.transmit().len() as u64));
}
