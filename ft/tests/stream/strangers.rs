//! Who begins a stream, or stands in the middle of one, and does not have the key.

use super::attacks::{keyed, start};
use super::*;
use pollux_ft::{Handshake, Stranger};

/// A meeting of the twins, another one for each number.
fn meeting(number: u8) -> Meeting {
    Meeting { random: [number; 32], ..MEETING }
}

/// Hands over what `from` has to say; returns it.
fn say(from: &mut Handshake, to: &mut Handshake) -> (Vec<u8>, Result<usize, Stranger>) {
    let bytes = from.transmit().to_vec();
    from.transmitted(bytes.len());
    let taken = to.receive(&bytes);
    (bytes, taken)
}

fn twins() -> (Node, Node) {
    (start(Start::Primary, 1, &keyed(1)), start(Start::Backup, 2, &keyed(1)))
}

fn open(primary: &mut Node, backup: &mut Node) {
    primary.connected(Time(0), primary.handshake(&meeting(1)));
    backup.connected(Time(0), backup.handshake(&meeting(2)));
}

/// Bytes that one of the two said, how many messages the other had taken before, and whether it was the primary.
struct Said {
    bytes: Vec<u8>,
    messages: u64,
    by_primary: bool,
}

/// A session from the first byte to a log, with `tamper` in the middle of it.
fn session(mut tamper: impl FnMut(bool, &mut Vec<u8>)) -> (Vec<Said>, Node, Node) {
    let (mut primary, mut backup) = twins();
    open(&mut primary, &mut backup);
    let mut all = Vec::new();
    for step in 0..12 {
        if step == 4 {
            let _ = primary.push_memory(0x3000, &[0x5a; 4096]);
            let _ = primary.push_machine(b"the state of the machine");
            let _ = primary.finish_state(Position(1000), 99);
        }
        if step == 6 && backup.role() == Role::Loading {
            backup.joined(Time(0));
        }
        if step == 8 {
            let _ = primary.append(Time(0), Position(1010), EntryRef::PacketIn(b"what a client said to the guest"));
            primary.flush(Time(0));
        }
        for by_primary in [true, false] {
            let (from, to) = if by_primary { (&mut primary, &mut backup) } else { (&mut backup, &mut primary) };
            let mut bytes = from.transmit().to_vec();
            from.transmitted(bytes.len());
            all.push(Said { bytes: bytes.clone(), messages: to.stats().messages_received, by_primary });
            tamper(by_primary, &mut bytes);
            to.receive(Time(0), &bytes);
            assert_eq!((primary.invariants(), backup.invariants()), (Ok(()), Ok(())));
        }
    }
    (all, primary, backup)
}

#[test]
fn nothing_of_a_session_can_be_read() {
    let (all, primary, backup) = session(|_, _| ());
    assert_eq!((primary.role(), backup.role()), (Role::Protected, Role::Backup));
    assert!(primary.stats().acks_received > 0, "the log has come across");
    let bytes = all.iter().flat_map(|said| said.bytes.clone()).collect::<Vec<_>>();
    assert!(bytes.len() > 4096);
    for secret in [&[0x5a; 8][..], b"state of the machine", b"client", b"gemini", b"model"] {
        assert!(bytes.windows(secret.len()).all(|window| window != secret), "{secret:?}");
    }
}

#[test]
fn what_was_said_on_another_connection_is_of_no_use() {
    let (primary, backup) = twins();
    let (mut ours, mut theirs) = (primary.handshake(&meeting(1)), backup.handshake(&meeting(2)));
    let recorded = {
        say(&mut ours, &mut theirs).1.unwrap();
        let (bytes, taken) = say(&mut theirs, &mut ours);
        assert_eq!(taken, Ok(bytes.len()));
        bytes
    };
    say(&mut ours, &mut theirs).1.unwrap();
    assert!(ours.is_done() && theirs.is_done());
    let mut next = primary.handshake(&meeting(3));
    assert_eq!(next.receive(&recorded), Err(Stranger::NotGenuine));
    assert!(!next.is_done());
    assert_eq!(next.receive(&recorded), Ok(0), "nothing more is taken");
}

#[test]
fn who_meant_another_machine_or_pair_is_a_stranger() {
    let elsewhere = Ipv4Addr::new(10, 0, 1, 9);
    let (primary, backup) = twins();
    let of_another_pair = Identity { pair: "dioscuri".into(), ..identity(2) };
    let other = Node::new(Time(0), Start::Backup, keyed(1), of_another_pair).unwrap();
    let cases = [
        (&other, meeting(2)),
        (&backup, Meeting { listener: elsewhere, ..meeting(2) }),
        (&backup, Meeting { dialer: elsewhere, ..meeting(2) }),
    ];
    for (joiner, meant) in cases {
        let (mut ours, mut theirs) = (primary.handshake(&meeting(1)), joiner.handshake(&meant));
        say(&mut ours, &mut theirs).1.unwrap();
        assert_eq!(say(&mut theirs, &mut ours).1, Err(Stranger::NotGenuine), "{meant:?}");
    }
}

#[test]
fn what_a_machine_says_does_not_open_its_own_door() {
    let (primary, backup) = twins();
    for node in [&primary, &backup] {
        let mut one = node.handshake(&meeting(1));
        let mut mirror = one.transmit().to_vec();
        one.transmitted(mirror.len());
        for _ in 0..4 {
            if one.receive(&mirror).is_err() {
                break;
            }
            mirror = one.transmit().to_vec();
            one.transmitted(mirror.len());
        }
        assert!(!one.is_done(), "{:?}", node.role());
    }
}

/// However many there are, and whatever they say or leave unsaid: each has a connection of its own.
#[test]
fn strangers_do_not_keep_the_twin_out() {
    let (mut primary, mut backup) = twins();
    let mut silent = (10..20).map(|number| primary.handshake(&meeting(number))).collect::<Vec<_>>();
    let said: [&[u8]; 4] = [b"GET / HTTP/1.1", &[0; 100], b"PLXs", &[0xff; 100]];
    for stranger in &mut silent {
        for said in said {
            let _ = stranger.receive(said);
        }
        assert!(!stranger.is_done());
    }
    let mut door = primary.handshake(&meeting(1));
    backup.connected(Time(0), backup.handshake(&meeting(2)));
    while !door.is_done() {
        let taken = backup.receive(Time(0), door.transmit());
        door.transmitted(taken);
        let taken = door.receive(backup.transmit()).unwrap();
        assert!(taken > 0);
        backup.transmitted(taken);
    }
    assert_eq!(primary.role(), Role::Alone);
    primary.connected(Time(0), door);
    while pump(Time(0), &mut primary, &mut backup) + pump(Time(0), &mut backup, &mut primary) > 0 {}
    assert_eq!((primary.role(), backup.role()), (Role::Transferring, Role::Loading));
}

/// A stranger at the other end halts nobody, and is not waited for.
#[test]
fn a_half_open_handshake_has_a_limit() {
    for said in [&b""[..], b"PLX"] {
        let (primary, backup) = twins();
        for mut node in [primary, backup] {
            let role = node.role();
            node.connected(Time(0), node.handshake(&meeting(1)));
            node.receive(Time(10_000), said);
            assert!(!node.wants_connection());
            for ms in (0..=1000).step_by(50) {
                node.tick(Time(ms * 1000));
            }
            assert!(actions(&mut node).contains(&Action::CloseConnection));
            node.disconnected(Time(1_000_000));
            assert_eq!((node.role(), node.wants_connection()), (role, true));
        }
    }
}

#[test]
fn who_has_no_key_is_told_so_and_halts_nobody() {
    for (ours, theirs) in [(keyed(1), Config::default()), (Config::default(), keyed(1)), (keyed(1), keyed(2))] {
        let (mut primary, mut backup) = (start(Start::Primary, 1, &ours), start(Start::Backup, 2, &theirs));
        open(&mut primary, &mut backup);
        while pump(Time(0), &mut primary, &mut backup) + pump(Time(0), &mut backup, &mut primary) > 0 {}
        assert_eq!((primary.role(), backup.role()), (Role::Alone, Role::Joining));
        assert_eq!((primary.stats().refused_handshakes, backup.stats().refused_handshakes), (1, 1));
        for node in [&mut primary, &mut backup] {
            let refused =
                actions(node).into_iter().any(|action| matches!(action, Action::Refused { retry: Retry::Later, .. }));
            assert!(refused, "{:?}", node.role());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn nothing_of_a_session_can_be_changed(at: prop::sample::Index, bit in 0u8..8) {
        let clean = session(|_, _| ()).0;
        let mut at = at.index(clean.iter().map(|said| said.bytes.len()).sum());
        let hit = clean.iter().position(|said| {
            let here = at < said.bytes.len();
            at -= if here { 0 } else { said.bytes.len() };
            here
        });
        let hit = hit.unwrap();
        let mut turn = 0;
        let (_, primary, backup) = session(|_, bytes| {
            if turn == hit {
                bytes[at] ^= 1 << bit;
            }
            turn += 1;
        });
        // Of what was changed no message came through, nor any behind it.
        let receiver = if clean[hit].by_primary { &backup } else { &primary };
        let behind = clean[hit + 1..].iter().find(|said| said.by_primary == clean[hit].by_primary);
        let (before, unharmed) = (clean[hit].messages, behind.map_or(u64::MAX, |said| said.messages));
        let taken = receiver.stats().messages_received;
        prop_assert!(taken < unharmed || taken == before && before == unharmed, "{before} {taken} {unharmed}");
        prop_assert!(primary.role().is_primary() && !backup.role().is_primary());
    }

    #[test]
    fn nothing_that_is_made_up_opens_the_door(
        said in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..4),
        greets: bool,
        other_key: bool,
    ) {
        let (primary, backup) = twins();
        let stranger = start(Start::Backup, 5, &keyed(if other_key { 3 } else { 1 }));
        for node in [&primary, &backup] {
            let mut door = node.handshake(&meeting(1));
            if greets {
                let _ = door.receive(&stranger.handshake(&meeting(9)).transmit()[..38]);
            }
            for bytes in &said {
                let _ = door.receive(bytes);
            }
            prop_assert!(!door.is_done());
        }
    }
}
