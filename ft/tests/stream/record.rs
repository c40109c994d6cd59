//! What a backup passes on to a recorder, and machines that only follow.

use super::{MEETING, actions, connect, identity, protected, pump, sample_log};
use pollux_ft::handshake::End;
use pollux_ft::message::{Bye, Hello, Message};
use pollux_ft::record::{Copy, RecordStream};
use pollux_ft::{
    Config, Control, EntryRef, HaltReason, Node, PairKey, Position, Protection, Role, Start, Term, Time, Verdict,
};

const NOW: Time = Time(1000);

fn backup(config: Config) -> Node {
    Node::new(Time(0), Start::Backup, config, identity(2)).unwrap()
}

fn copies(node: &mut Node) -> Vec<Copy> {
    core::iter::from_fn(|| node.copies().pop()).collect()
}

/// A protected pair whose backup was made with these options.
fn pair(config: Config) -> (Node, Node) {
    pair_of(Start::Backup, config)
}

/// The same of one that was started like this.
fn pair_of(start: Start, config: Config) -> (Node, Node) {
    let mut primary =
        Node::new(Time(0), Start::Primary, Config { record_bytes: 0, ..config.clone() }, identity(1)).unwrap();
    primary.arbiter_answered(Time(0), Term(1), Verdict::Granted);
    let mut backup = Node::new(Time(0), start, config, identity(2)).unwrap();
    connect(NOW, &mut primary, &mut backup);
    primary.push_memory(0x3000, &[7; 4096]).unwrap();
    primary.push_zero(0x3000, 4096).unwrap();
    primary.push_machine(&[1, 2, 3]).unwrap();
    primary.finish_state(Position(1000), 99).unwrap();
    pump(NOW, &mut primary, &mut backup);
    backup.joined(NOW);
    pump(NOW, &mut backup, &mut primary);
    actions(&mut primary);
    actions(&mut backup);
    (primary, backup)
}

fn recording(record_bytes: usize) -> Config {
    Config { record_bytes, ..Config::default() }
}

/// Nothing is heard for long enough; the time then.
fn silence(node: &mut Node) -> Time {
    let mut now = NOW;
    for _ in 0..15 {
        now = now.after(Config::default().heartbeat_interval);
        node.tick(now);
    }
    now
}

fn kinds(copies: &[Copy]) -> Vec<u8> {
    copies.iter().map(|copy| copy.kind).collect()
}

#[test]
fn a_session_is_copied_word_for_word() {
    let (mut primary, mut backup) = pair(recording(1 << 20));
    let state = copies(&mut backup);
    assert_eq!(kinds(&state), [1, 3, 4, 11, 5, 6]);
    assert!(state[0].begins() && !state[1].begins());
    let Ok(Message::Hello(Hello::Known { joining: true, claim, .. })) = Message::decode(1, &state[0].payload) else {
        panic!("{:?}", state[0])
    };
    assert_eq!(claim.identity, identity(2));
    sample_log(NOW, &mut primary);
    pump(NOW, &mut primary, &mut backup);
    let log = copies(&mut backup);
    assert!(!log.is_empty() && kinds(&log).iter().all(|&kind| kind == 8), "{log:?}");
    // The end is told in our own words.
    backup.diverged("memory");
    let end = copies(&mut backup);
    let bye = Message::Bye(Bye::Diverged("memory".into()));
    assert_eq!(Message::decode(end[0].kind, &end[0].payload), Ok(bye));
    assert_eq!((end.len(), backup.copies().take_lost()), (1, false));
}

#[test]
fn nothing_is_copied_that_nobody_wants() {
    let (mut primary, mut backup) = pair(Config::default());
    sample_log(NOW, &mut primary);
    pump(NOW, &mut primary, &mut backup);
    assert_eq!(copies(&mut backup), []);
    // Nor by a primary.
    assert_eq!(copies(&mut primary), []);
}

/// A recorder that takes nothing loses the session, and the pair notices nothing; the next session is another one.
#[test]
fn a_slow_recorder_holds_up_nobody() {
    let (mut primary, mut backup) = pair(recording(3000));
    assert_eq!(copies(&mut backup), []);
    assert!(backup.copies().take_lost() && !backup.copies().take_lost());
    assert_eq!((primary.role(), backup.role()), (Role::Protected, Role::Backup));
    sample_log(NOW, &mut primary);
    pump(NOW, &mut primary, &mut backup);
    assert_eq!(copies(&mut backup), [], "a log without a state is of no use");
    primary.disconnected(NOW);
    backup.disconnected(NOW);
    let later = silence(&mut primary);
    assert_eq!(primary.role(), Role::Alone);
    let mut next = self::backup(recording(3000));
    connect(later, &mut primary, &mut next);
    assert_eq!(kinds(&copies(&mut next)), [1, 3]);
}

#[test]
fn a_takeover_ends_a_recording() {
    let (mut primary, mut backup) = pair(recording(1 << 20));
    copies(&mut backup);
    primary.stop(NOW);
    pump(NOW, &mut primary, &mut backup);
    assert!(backup.go_live(NOW, Position(1000)).is_ok());
    let end = copies(&mut backup);
    let bye = Message::Bye(Bye::TookOver(backup.term()));
    assert_eq!(Message::decode(end[0].kind, &end[0].payload), Ok(bye));
    assert_eq!(end.len(), 1);
}

/// However a backup ends, its recorder is told.
#[test]
fn every_end_is_told() {
    let last = |backup: &mut Node| {
        let end = copies(backup);
        assert_eq!(end.len(), 1, "{end:?}");
        match Message::decode(end[0].kind, &end[0].payload) {
            Ok(Message::Bye(bye)) => bye,
            other => panic!("{other:?}"),
        }
    };
    let following = |start| {
        let (primary, mut backup) = pair_of(start, Config { arbiter: true, ..recording(1 << 20) });
        copies(&mut backup);
        (primary, backup)
    };
    for start in [Start::Backup, Start::Auto] {
        let (_, mut backup) = following(start);
        backup.stop(NOW);
        assert_eq!(last(&mut backup), Bye::Leaving);

        // The guest switches itself off.
        let (mut primary, mut backup) = following(start);
        primary.append(NOW, Position(1000), EntryRef::Control(Control::PowerOff)).unwrap();
        primary.flush(NOW);
        pump(NOW, &mut primary, &mut backup);
        assert!(copies(&mut backup).iter().all(|copy| copy.kind == 8));
        backup.applied(NOW, Position(1000));
        assert_eq!((last(&mut backup), backup.role()), (Bye::Leaving, Role::Halted));

        // The arbiter gave the next term to another machine.
        let (_, mut backup) = following(start);
        let now = silence(&mut backup);
        assert!(backup.go_live(now, Position(1000)).is_err());
        backup.arbiter_answered(now, backup.asks_for().unwrap(), Verdict::Taken);
        assert!(matches!(last(&mut backup), Bye::GaveUp(why) if why.contains("gave term")));
        assert_eq!(backup.role(), if start == Start::Auto { Role::Joining } else { Role::Halted });
    }
}

fn with_key(byte: u8) -> Config {
    Config { protection: Protection::from(PairKey::new(&[byte; 32])), ..Config::default() }
}

/// Carries bytes both ways until nothing moves; what the listener was told, or why not.
fn exchange(dialer: &mut RecordStream, listener: &mut RecordStream) -> Result<Vec<Copy>, String> {
    let mut told = Vec::new();
    while dialer.transmit().len() + listener.transmit().len() > 0 {
        let bytes = dialer.transmit().to_vec();
        dialer.transmitted(bytes.len());
        // In any pieces.
        for piece in bytes.chunks(7) {
            let take = |kind, payload: &[u8]| told.push(Copy { kind, payload: payload.to_vec() });
            listener.receive(piece, take).map_err(|error| error.to_string())?;
        }
        let bytes = listener.transmit().to_vec();
        listener.transmitted(bytes.len());
        dialer.receive(&bytes, |_, _| {}).map_err(|error| error.to_string())?;
    }
    Ok(told)
}

fn ends(dials: &Config, listens: &Config) -> [RecordStream; 2] {
    [(dials, End::Dials, 1), (listens, End::Listens, 2)]
        .map(|(config, end, random)| RecordStream::new(&config.protection.records(), "gemini", end, [random; 32]))
}

#[test]
fn a_recorder_gets_what_was_sent() {
    for config in [Config::default(), with_key(1)] {
        let [mut dialer, mut listener] = ends(&config, &config);
        exchange(&mut dialer, &mut listener).unwrap();
        assert!(dialer.is_open() && listener.is_open());
        let copies = [Copy { kind: 8, payload: vec![5; 3000] }, Copy { kind: 10, payload: vec![] }];
        copies.iter().for_each(|copy| dialer.send(copy));
        assert_eq!(config == Config::default(), dialer.transmit().windows(9).any(|part| part == [5; 9]));
        assert_eq!(exchange(&mut dialer, &mut listener).unwrap(), copies);
    }
}

#[test]
fn strangers_record_nothing() {
    let refused = |dials: Config, listens: Config| {
        let [mut dialer, mut listener] = ends(&dials, &listens);
        exchange(&mut dialer, &mut listener).unwrap_err()
    };
    assert!(refused(with_key(1), with_key(2)).contains("keys"));
    assert!(refused(with_key(1), Config::default()).contains("key"));
    // Bytes that were changed on the way.
    let config = Config::default();
    let [mut dialer, mut listener] = ends(&config, &config);
    dialer.send(&Copy { kind: 8, payload: vec![5; 30] });
    let mut bytes = dialer.transmit().to_vec();
    bytes[9] ^= 1;
    assert!(listener.receive(&bytes, |_, _| panic!("taken")).is_err());
}

/// Who leads a machine's connection to its recorder to its twin instead, or the other way round, gains nothing.
#[test]
fn a_recorder_cannot_be_mistaken_for_a_twin() {
    let config = with_key(1);
    let twin = Node::new(Time(0), Start::Primary, config.clone(), identity(1)).unwrap();
    let mut twin = twin.handshake(&MEETING);
    let mut dialer = RecordStream::new(&config.protection.records(), "gemini", End::Dials, [3; 32]);
    let mut result = Ok(0);
    for _ in 0..2 {
        let bytes = dialer.transmit().to_vec();
        dialer.transmitted(bytes.len());
        result = twin.receive(&bytes);
        let bytes = twin.transmit().to_vec();
        twin.transmitted(bytes.len());
        dialer.receive(&bytes, |_, _| {}).unwrap();
    }
    assert_eq!(result, Err(pollux_ft::Stranger::NotGenuine));
    assert!(!dialer.is_open() && !twin.is_done());
}

#[test]
fn who_only_follows_never_goes_live() {
    let only_follows = || pair(Config { follows_only: true, ..Config::default() });
    let halted = |backup: &mut Node| {
        assert_eq!(backup.role(), Role::Halted);
        assert!(backup.go_live(NOW, Position(1000)).is_err());
        actions(backup).contains(&pollux_ft::Action::Halt { reason: HaltReason::OnlyFollows })
    };
    // The primary falls silent.
    let (_, mut backup) = only_follows();
    silence(&mut backup);
    assert!(halted(&mut backup));
    // It leaves in order.
    let (mut primary, mut backup) = only_follows();
    primary.stop(NOW);
    pump(NOW, &mut primary, &mut backup);
    assert!(halted(&mut backup));
    // It hands the guest over, and goes on when it hears that nobody took it.
    let (mut primary, mut backup) = only_follows();
    primary.append(NOW, Position(1000), EntryRef::Control(Control::SwitchOver)).unwrap();
    primary.flush(NOW);
    pump(NOW, &mut primary, &mut backup);
    assert!(halted(&mut backup));
    // A usual one goes live.
    let (mut primary, mut backup) = protected(NOW);
    primary.stop(NOW);
    pump(NOW, &mut primary, &mut backup);
    assert!(backup.go_live(NOW, Position(1000)).is_ok());
}
