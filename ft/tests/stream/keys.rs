//! A pair changes its key while it is at work.

use super::attacks::{keyed, protected_by, start};
use super::*;
use pollux_ft::heartbeat::Heartbeat;
use pollux_ft::{Handshake, KeyError, PairKey, Protection, SessionId, Stranger};

fn key(secret: u8) -> PairKey {
    PairKey::new(&[secret; 32])
}

fn print(secret: u8) -> u64 {
    key(secret).fingerprint()
}

/// A configuration with these keys, the newest one first.
fn with_keys(secrets: &[u8]) -> Config {
    let mut config = keyed(*secrets.last().unwrap());
    for secret in secrets.iter().rev().skip(1) {
        config.protection.add(key(*secret)).unwrap();
    }
    config
}

/// A protected pair, of which each has these keys.
fn pair(primary: &[u8], backup: &[u8]) -> (Node, Node) {
    protected_by(&with_keys(primary), &with_keys(backup))
}

/// So many milliseconds pass, and all that the two say arrives.
fn live(now: &mut u64, ms: u64, one: &mut Node, other: &mut Node) {
    let end = *now + ms * 1000;
    while *now < end {
        *now += 10_000;
        let at = Time(*now);
        for turn in 0..2 {
            let (from, to) = if turn == 0 { (&mut *one, &mut *other) } else { (&mut *other, &mut *one) };
            from.tick(at);
            while let Some(datagram) = from.poll_datagram(at) {
                to.heartbeat_received(at, &datagram);
            }
            pump(at, from, to);
        }
    }
}

fn is_protected(primary: &Node, backup: &Node) {
    assert_eq!((primary.role(), backup.role()), (Role::Protected, Role::Backup));
    assert_eq!(primary.stats().losses + backup.stats().losses, 0);
}

#[test]
fn a_key_is_changed_under_a_protected_pair() {
    let (mut primary, mut backup) = pair(&[1], &[1]);
    let now = &mut 0;
    live(now, 3000, &mut primary, &mut backup);
    // Whoever gets it first says all under both, so that neither falls silent.
    primary.add_key(key(2)).unwrap();
    live(now, 5000, &mut primary, &mut backup);
    is_protected(&primary, &backup);
    for old in [1, 2] {
        assert_eq!(primary.may_forget_key(Time(*now), print(old)).is_ok(), old == 2, "the twin has the old one alone");
    }
    assert_eq!(primary.forget_key(Time(*now), print(1)), Err(KeyError::NotShown(print(2))));
    assert_eq!(backup.forget_key(Time(*now), print(1)), Err(KeyError::Last(print(1))));
    backup.add_key(key(2)).unwrap();
    assert_eq!(
        backup.forget_key(Time(*now), print(1)),
        Err(KeyError::NotShown(print(2))),
        "it has heard nothing since"
    );
    live(now, 300, &mut primary, &mut backup);
    assert_eq!(backup.forget_key(Time(*now), print(1)), Ok(()), "the primary has shown that it has both");
    live(now, 5000, &mut primary, &mut backup);
    is_protected(&primary, &backup);
    assert_eq!(primary.may_forget_key(Time(*now), print(2)), Err(KeyError::NotShown(print(1))), "the wrong one");
    primary.forget_key(Time(*now), print(1)).unwrap();
    live(now, 5000, &mut primary, &mut backup);
    is_protected(&primary, &backup);
    assert_eq!((primary.keys(), backup.keys()), ([print(2), 0], [print(2), 0]));
    // What is left of the old key says nothing any more, and the pair can change again.
    let before = backup.stats().heartbeats_malformed;
    backup.heartbeat_received(Time(*now), &[0; pollux_ft::heartbeat::SIZE]);
    assert_eq!(backup.stats().heartbeats_malformed, before + 1);
    primary.add_key(key(3)).unwrap();
}

/// A twin that fell silent has to be given up first: it may come back with the old key only.
#[test]
fn a_key_is_kept_for_a_twin_that_was_heard_under_it_alone() {
    let (mut primary, mut backup) = pair(&[2, 1], &[1]);
    let now = &mut 0;
    live(now, 500, &mut primary, &mut backup);
    assert_eq!(primary.forget_key(Time(*now), print(1)), Err(KeyError::NotShown(print(2))));
    // It dies.
    for _ in 0..300 {
        *now += 10_000;
        primary.tick(Time(*now));
        while primary.poll_datagram(Time(*now)).is_some() {}
    }
    primary.disconnected(Time(*now));
    assert_eq!(primary.role(), Role::Alone, "nobody is asked here");
    primary.forget_key(Time(*now), print(1)).unwrap();
    // Who comes with the old key is a stranger now, and one with the new key is the twin.
    for (number, secret) in [(3, 1), (4, 2)] {
        let mut joiner = start(Start::Backup, number, &keyed(secret));
        connect(Time(*now), &mut primary, &mut joiner);
        assert_eq!(primary.role() == Role::Transferring, secret == 2);
        joiner.disconnected(Time(*now));
        if secret == 1 {
            primary.disconnected(Time(*now));
        }
    }
}

/// Speaks for both until nothing moves; what each made of the other.
fn meet(dialer: &mut Handshake, listener: &mut Handshake) -> [Result<usize, Stranger>; 2] {
    let mut results = [Ok(0), Ok(0)];
    for _ in 0..3 {
        for turn in 0..2 {
            let (from, to) = if turn == 0 { (&mut *dialer, &mut *listener) } else { (&mut *listener, &mut *dialer) };
            let bytes = from.transmit().to_vec();
            from.transmitted(bytes.len());
            results[1 - turn] = results[1 - turn].and(to.receive(&bytes));
        }
    }
    results
}

#[test]
fn a_stream_begins_under_any_key_that_both_have() {
    let sets: [&[u8]; 6] = [&[1], &[2], &[1, 2], &[2, 1], &[2, 3], &[4, 1]];
    for ours in sets {
        for theirs in sets {
            let listener = start(Start::Primary, 1, &with_keys(ours));
            let dialer = start(Start::Backup, 2, &with_keys(theirs));
            let (mut door, mut guest) = (listener.handshake(&MEETING), dialer.handshake(&MEETING));
            let results = meet(&mut guest, &mut door);
            let common = theirs.iter().any(|key| ours.contains(key));
            assert_eq!((door.is_done(), guest.is_done()), (common, common), "{ours:?} {theirs:?}");
            if !common {
                let [dials, listens] = [theirs[0], ours[0]].map(print);
                assert_eq!(results, [Err(Stranger::Key(dials, listens)), Err(Stranger::Key(listens, dials))]);
            }
        }
    }
}

/// Somebody in between who wants two machines to use the older key, or an end's first greeting to be of another version.
#[test]
fn nobody_talks_two_machines_into_the_older_key() {
    for end in 0..2 {
        for at in 6..22 {
            let primary = start(Start::Primary, 1, &with_keys(&[2, 1]));
            let backup = start(Start::Backup, 2, &with_keys(&[2, 1]));
            let mut ends = [primary.handshake(&MEETING), backup.handshake(&MEETING)];
            let mut said = ends.each_ref().map(|end| end.transmit().to_vec());
            said[end][at] ^= 1;
            for (index, bytes) in said.into_iter().enumerate() {
                ends[index].transmitted(bytes.len());
                let _ = ends[1 - index].receive(&bytes);
            }
            let [door, guest] = &mut ends;
            let _ = meet(guest, door);
            assert!(!door.is_done() && !guest.is_done(), "byte {at} of greeting {end}");
        }
    }
    // The greeting of version 12 was shorter.
    let mut old = start(Start::Backup, 2, &keyed(1)).handshake(&MEETING).transmit()[..30].to_vec();
    old[4] = 12;
    let refused = start(Start::Primary, 1, &keyed(1)).handshake(&MEETING).receive(&old);
    assert_eq!(refused, Err(Stranger::Protocol(pollux_ft::pairing::PROTOCOL, 12)));
}

/// The operator says that the old key is to be forgotten just while somebody shows that he has it.
#[test]
fn a_key_that_is_forgotten_opens_no_door_that_it_was_put_into() {
    for (whole, forgets_first) in [(true, true), (false, false), (true, false)] {
        let mut primary = start(Start::Primary, 1, &with_keys(&[2, 1]));
        let mut joiner = start(Start::Backup, 2, &keyed(1));
        let (mut door, mut guest) = (primary.handshake(&MEETING), joiner.handshake(&MEETING));
        if whole {
            let _ = meet(&mut guest, &mut door);
            assert!(door.is_done());
        }
        if forgets_first {
            primary.forget_key(Time(0), print(1)).unwrap();
        }
        primary.connected(Time(0), door);
        if !forgets_first {
            primary.forget_key(Time(0), print(1)).unwrap();
        }
        joiner.connected(Time(0), guest);
        while pump(Time(0), &mut joiner, &mut primary) + pump(Time(0), &mut primary, &mut joiner) > 0 {}
        assert_eq!(
            (primary.role(), joiner.role(), primary.stats().refused_handshakes),
            (Role::Alone, Role::Joining, 1)
        );
        assert!(actions(&mut primary).contains(&Action::CloseConnection));
    }
}

/// Machines whose operator gave them the keys in another order understand each other, and no order of forgetting parts them.
#[test]
fn the_order_of_the_keys_does_not_matter() {
    let (mut primary, mut backup) = pair(&[2, 1], &[1, 2]);
    let now = &mut 0;
    live(now, 2000, &mut primary, &mut backup);
    assert_eq!(primary.forget_key(Time(*now), print(1)), Ok(()));
    assert_eq!(primary.forget_key(Time(*now), print(1)), Err(KeyError::Unknown(print(1))));
    live(now, 2000, &mut primary, &mut backup);
    assert_eq!(
        backup.forget_key(Time(*now), print(2)),
        Err(KeyError::NotShown(print(1))),
        "it would hear nothing more"
    );
    assert_eq!(backup.forget_key(Time(*now), print(1)), Ok(()));
    live(now, 2000, &mut primary, &mut backup);
    is_protected(&primary, &backup);
}

/// What somebody says who has stolen key `secret`: that he has heard node 1, and is in this session with it.
fn stolen(secret: u8, node: u64, counter: u64, role: Role, session: SessionId) -> pollux_ft::heartbeat::Datagram {
    let heard = [NodeId(1), NodeId(0), NodeId(0), NodeId(0)];
    let beat = super::auto::beat_of(node, counter, role);
    let beat = Heartbeat { heard, session, peer: NodeId(1), linked: true, ..beat };
    beat.encode(&keyed(secret).protection)
}

#[test]
fn who_stole_the_old_key_cannot_keep_it_alive() {
    let (mut primary, mut backup) = pair(&[2, 1], &[2, 1]);
    let now = &mut 0;
    live(now, 500, &mut primary, &mut backup);
    // Somebody else, who has that key alone, is heard.
    for counter in 1..5 {
        primary.heartbeat_received(Time(*now), &stolen(1, 77, counter, Role::Joining, SessionId(0)));
    }
    assert_eq!(primary.may_forget_key(Time(*now), print(1)), Ok(()));
    // He speaks as the twin, and nothing that it says is newer.
    primary.heartbeat_received(Time(*now), &stolen(1, 2, u64::MAX, Role::Backup, primary.session()));
    live(now, 300, &mut primary, &mut backup);
    assert_eq!(primary.forget_key(Time(*now), print(1)), Ok(()));
    backup.forget_key(Time(*now), print(1)).unwrap();
    live(now, 5000, &mut primary, &mut backup);
    is_protected(&primary, &backup);
}

/// Without a twin there is nobody of whom it is known that he is no thief.
#[test]
fn a_key_goes_by_force() {
    let mut primary = start(Start::Primary, 1, &with_keys(&[2, 1]));
    primary.heartbeat_received(Time(0), &stolen(1, 77, 1, Role::Joining, SessionId(0)));
    // One that has both says nothing of the other one.
    for secret in [1, 2] {
        primary.heartbeat_received(Time(0), &stolen(secret, 5, u64::from(secret), Role::Joining, SessionId(0)));
    }
    assert_eq!(primary.forget_key(Time(0), print(1)), Err(KeyError::NotShown(print(2))));
    assert_eq!(primary.forget_key_unseen(Time(0), print(3)), Err(KeyError::Unknown(print(3))));
    assert_eq!(primary.forget_key_unseen(Time(0), print(1)), Ok(()));
    assert_eq!(primary.forget_key_unseen(Time(0), print(2)), Err(KeyError::Last(print(2))));
}

/// One is told to forget the old key, and the other one, a moment later, to forget the new one.
#[test]
fn crossed_words_leave_a_common_key() {
    let (mut primary, mut backup) = pair(&[2, 1], &[2, 1]);
    let now = &mut 0;
    live(now, 500, &mut primary, &mut backup);
    primary.forget_key(Time(*now), print(1)).unwrap();
    live(now, 300, &mut primary, &mut backup);
    assert_eq!(backup.forget_key(Time(*now), print(2)), Err(KeyError::NotShown(print(1))));
    assert_eq!(backup.forget_key(Time(*now), print(1)), Ok(()));
    live(now, 5000, &mut primary, &mut backup);
    is_protected(&primary, &backup);
}

#[test]
fn a_pair_without_a_key_gets_none() {
    let mut node = node(Start::Primary, identity(1));
    assert_eq!(node.add_key(key(1)), Err(KeyError::Insecure));
    assert_eq!(node.forget_key(Time(0), 0), Err(KeyError::Insecure));
    assert_eq!((node.keys(), Protection::default().fingerprint()), ([0, 0], 0));
}
