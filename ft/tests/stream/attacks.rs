//! What somebody on the log network can send, who sees everything there and does not have the key.

use super::*;
use pollux_ft::heartbeat::{HEARD, Heartbeat, pair_digest};
use pollux_ft::{PairKey, Protection, SessionId};

const NOBODY: NodeId = NodeId(0);

pub(super) fn keyed(secret: u8) -> Config {
    Config { protection: Protection::from(PairKey::new(&[secret; 32])), ..Config::default() }
}

pub(super) fn start(how: Start, node: u64, config: &Config) -> Node {
    Node::new(Time(0), how, config.clone(), identity(node)).unwrap()
}

/// A protected pair, told these.
pub(super) fn protected_by(of_primary: &Config, of_backup: &Config) -> (Node, Node) {
    let (mut primary, mut backup) = (start(Start::Primary, 1, of_primary), start(Start::Backup, 2, of_backup));
    connect(Time(0), &mut primary, &mut backup);
    primary.finish_state(Position(1000), 0).unwrap();
    pump(Time(0), &mut primary, &mut backup);
    backup.joined(Time(0));
    pump(Time(0), &mut backup, &mut primary);
    assert_eq!((primary.role(), backup.role()), (Role::Protected, Role::Backup));
    (primary, backup)
}

/// A protected pair with a key, and a heartbeat of each that the other took.
fn pair() -> (Node, Node) {
    let (mut primary, mut backup) = protected_by(&keyed(1), &keyed(1));
    for _ in 0..2 {
        exchange(Time(0), &mut primary, &mut backup);
    }
    assert!(primary.stats().heartbeats_received > 0 && backup.stats().heartbeats_received > 0);
    actions(&mut primary);
    actions(&mut backup);
    (primary, backup)
}

fn beat(now: Time, node: &mut Node) -> Vec<u8> {
    node.tick(node.next_timeout().unwrap().max(now));
    node.poll_datagram(now).unwrap().to_vec()
}

fn exchange(now: Time, one: &mut Node, other: &mut Node) {
    let said = [beat(now, one), beat(now, other)];
    other.heartbeat_received(now, &said[0]);
    one.heartbeat_received(now, &said[1]);
}

/// The worst that a heartbeat can say, to a primary of node 1: somebody else reigns.
fn claim(node: u64, term: u64) -> Heartbeat {
    Heartbeat {
        pair: pair_digest("gemini"),
        node: NodeId(node),
        peer: NodeId(1),
        counter: u64::MAX,
        heard: [NodeId(1), NodeId(2), NOBODY, NOBODY],
        echo: 1,
        answers: 0,
        creator: NodeId(0),
        term: Term(term),
        role: Role::Alone,
        session: SessionId(1),
        linked: false,
        seq: Seq(0),
        position: Position(0),
        time: Time(0),
    }
}

/// What a node makes of a datagram that it must not take: nothing.
fn unmoved(node: &mut Node, datagram: &[u8]) {
    let before = (node.role(), node.term(), node.session(), node.peer(), node.last_heard());
    node.heartbeat_received(Time(500_000), datagram);
    assert_eq!((node.role(), node.term(), node.session(), node.peer(), node.last_heard()), before);
    assert_eq!((actions(node), node.invariants()), (vec![], Ok(())));
}

#[test]
fn one_forged_datagram_halts_nobody() {
    for protection in [Protection::default(), keyed(2).protection] {
        let (mut primary, mut backup) = pair();
        for node in [2, 666] {
            for term in [1, 2, u64::MAX] {
                unmoved(&mut primary, &claim(node, term).encode(&protection));
                unmoved(&mut backup, &claim(node, term).encode(&protection));
            }
        }
        assert_eq!(primary.stats().heartbeats_malformed, 6);
        // It is the key that they lack.
        primary.heartbeat_received(Time(500_000), &claim(666, 2).encode(&keyed(1).protection));
        assert_eq!(primary.role(), Role::Halted);
    }
}

#[test]
fn what_was_said_comes_again_in_vain() {
    let (mut primary, mut backup) = pair();
    let (of_primary, of_backup) = (beat(Time(0), &mut primary), beat(Time(0), &mut backup));
    backup.heartbeat_received(Time(0), &of_primary);
    primary.heartbeat_received(Time(0), &of_backup);
    for _ in 0..3 {
        for datagram in [&of_primary, &of_backup] {
            unmoved(&mut primary, datagram);
            unmoved(&mut backup, datagram);
        }
    }
    assert_eq!((primary.stats().heartbeats_late, backup.stats().heartbeats_late), (3, 3));
    assert_eq!((primary.stats().heartbeats_ignored, backup.stats().heartbeats_ignored), (3, 3), "its own come back");
}

/// The pair was switched off, and its arbiter set up anew: terms begin at 1 again, and the key is the same.
#[test]
fn what_a_former_life_of_the_pair_said_counts_no_more() {
    let old = Config { first_term: Term(50), ..keyed(1) };
    let (mut former, mut listener) = (start(Start::Primary, 11, &old), start(Start::Backup, 12, &old));
    let mut recorded = Vec::new();
    for _ in 0..5 {
        exchange(Time(0), &mut former, &mut listener);
        recorded.extend([beat(Time(0), &mut former), beat(Time(0), &mut listener)]);
    }
    let (mut primary, mut backup) = pair();
    for datagram in &recorded {
        unmoved(&mut primary, datagram);
        unmoved(&mut backup, datagram);
    }
    assert_eq!(primary.stats().heartbeats_unanswered, recorded.len() as u64);
    // The living still hear each other.
    let heard = primary.stats().heartbeats_received;
    exchange(Time(500_000), &mut backup, &mut primary);
    assert_eq!(primary.stats().heartbeats_received, heard + 1);
}

/// A machine that nobody knows yet, of a newer reign, is heard when it has heard us.
#[test]
fn a_machine_of_the_pair_is_heard_once_it_has_heard_us() {
    let mut primary = start(Start::Primary, 1, &keyed(1));
    let mut newer = start(Start::Primary, 9, &Config { first_term: Term(7), ..keyed(1) });
    let first = beat(Time(0), &mut newer);
    primary.heartbeat_received(Time(0), &first);
    assert_eq!(primary.role(), Role::Alone);
    newer.heartbeat_received(Time(0), &beat(Time(0), &mut primary));
    primary.heartbeat_received(Time(0), &beat(Time(0), &mut newer));
    assert_eq!((primary.role(), newer.role()), (Role::Halted, Role::Alone));
}

#[test]
fn machines_with_other_keys_do_not_pair() {
    for (ours, theirs) in [(keyed(1), keyed(2)), (keyed(1), Config::default()), (Config::default(), keyed(2))] {
        let (mut primary, mut backup) = (start(Start::Primary, 1, &ours), start(Start::Backup, 2, &theirs));
        connect(Time(0), &mut primary, &mut backup);
        let refused = actions(&mut primary);
        assert!(
            refused
                .iter()
                .any(|action| matches!(action, Action::Refused { reason, .. } if reason.contains("keys differ"))),
            "{refused:?}"
        );
        assert_eq!(primary.role(), Role::Alone);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_bit_can_be_changed_on_the_way(at: prop::sample::Index, bit in 0u8..8, of_primary: bool) {
        let (mut primary, mut backup) = pair();
        let mut datagram = beat(Time(0), if of_primary { &mut primary } else { &mut backup });
        let at = at.index(datagram.len());
        datagram[at] ^= 1 << bit;
        unmoved(&mut primary, &datagram);
        unmoved(&mut backup, &datagram);
    }

    #[test]
    fn nothing_that_is_made_up_is_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200), heard: [u64; HEARD]) {
        let (mut primary, mut backup) = pair();
        for node in [&mut primary, &mut backup] {
            unmoved(node, &bytes);
            unmoved(node, &Heartbeat { heard: heard.map(NodeId), ..claim(5, 5) }.encode(&keyed(3).protection));
        }
    }
}
