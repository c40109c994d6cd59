//! Who refuses to be whose twin, at once or when it turns out later.

use super::*;
use pollux_ft::arbiter::ArbiterId;
use pollux_ft::message::Retry;
use pollux_ft::{HaltReason, LossReason, Span, Verdict};

const ASKED: ArbiterId = ArbiterId(0xA);
const OTHER: ArbiterId = ArbiterId(0xB);

fn with_arbiter() -> Config {
    Config { arbiter: true, ..Config::default() }
}

/// A machine whose options name an arbiter that answers, and is this one if it is known.
fn machine(start: Start, id: u64, arbiter: Option<ArbiterId>) -> Node {
    let mut node = Node::new(Time(0), start, with_arbiter(), identity(id)).unwrap();
    node.arbiter_answered(Time(0), Term(1), Verdict::Granted);
    arbiter.into_iter().for_each(|arbiter| node.arbiter_seen(arbiter));
    actions(&mut node);
    node
}

fn refusal(node: &mut Node) -> Option<(String, Retry)> {
    actions(node).into_iter().find_map(|action| match action {
        Action::Refused { reason, retry } => Some((reason, retry)),
        _ => None,
    })
}

#[test]
fn both_sides_learn_which_setting_differs() {
    let plain = Config::default();
    let cases = [
        (with_arbiter(), "options 'arbiter' differ: none and one asked in plain words (etcd://) (primary first"),
        (
            Config { heartbeat_interval: Span::from_millis(50), ..plain.clone() },
            "'heartbeat' differ: 100000 us and 50000",
        ),
        (
            Config { suspect_after: Span::from_millis(2000), ..plain.clone() },
            "'suspect' differ: 1000000 us and 2000000",
        ),
        (Config { receive_buffer_bytes: 1 << 16, ..plain }, "'log-buffer' differ: 4194304 bytes and 65536"),
    ];
    for (config, want) in cases {
        let mut primary = node(Start::Primary, identity(1));
        let mut backup = Node::new(Time(0), Start::Backup, config, identity(2)).unwrap();
        connect(Time(1000), &mut primary, &mut backup);
        for node in [&mut primary, &mut backup] {
            let (reason, retry) = refusal(node).expect("both sides are told");
            assert!(reason.contains(want) && retry == Retry::Never, "{reason}");
        }
        assert_eq!((primary.role(), backup.role()), (Role::Alone, Role::Halted));
    }
}

#[test]
fn machines_that_ask_different_arbiters_do_not_pair() {
    let (mut primary, mut backup) = (machine(Start::Primary, 1, Some(ASKED)), machine(Start::Backup, 2, Some(OTHER)));
    connect(Time(1000), &mut primary, &mut backup);
    for node in [&mut primary, &mut backup] {
        let (reason, retry) = refusal(node).expect("both sides are told");
        assert!(
            reason.contains("arbiters differ: files or etcd clusters a and b") && retry == Retry::Never,
            "{reason}"
        );
    }
}

/// It neither dials nor accepts any more, whoever comes and however long one waits: a primary that matches must not take
/// it for its backup.
#[test]
fn a_machine_that_is_refused_for_good_ends() {
    let mut other = node(Start::Primary, Identity { guest_memory: 5, ..identity(1) });
    let mut backup = node(Start::Backup, identity(2));
    connect(Time(1000), &mut other, &mut backup);
    let (reason, _) = refusal(&mut backup).expect("it is told");
    assert!(reason.contains("guest memory differs"), "{reason}");
    for ms in (0..10_000).step_by(50) {
        let now = Time(ms * 1000);
        backup.tick(now);
        assert_eq!((backup.role(), backup.wants_connection()), (Role::Halted, false));
        assert_eq!((backup.poll_datagram(now), backup.next_timeout()), (None, None));
    }
    let mut primary = node(Start::Primary, identity(3));
    let now = Time(10_000_000);
    connect(now, &mut primary, &mut backup);
    assert_eq!((backup.receive(now, b"any"), backup.transmit()), (0, &[][..]));
    assert!(actions(&mut backup).contains(&Action::CloseConnection));
    assert_eq!(primary.role(), Role::Alone);
}

/// Neither knew it when they paired. Whoever learns it first, it is the backup that gives up, at whatever stage.
#[test]
fn different_arbiters_that_turn_out_later_end_the_session() {
    for (primary_first, stage) in (0..6).map(|case| (case % 2 == 0, case / 2)) {
        let now = Time(1000);
        let (mut primary, mut backup) = (machine(Start::Primary, 1, None), machine(Start::Backup, 2, None));
        connect(now, &mut primary, &mut backup);
        if stage > 0 {
            primary.finish_state(Position(0), 0).unwrap();
            pump(now, &mut primary, &mut backup);
        }
        if stage > 1 {
            backup.joined(now);
            pump(now, &mut backup, &mut primary);
            assert_eq!(primary.role(), Role::Protected);
        }
        for primarys_turn in [primary_first, !primary_first] {
            if primarys_turn {
                primary.arbiter_seen(ASKED)
            } else {
                backup.arbiter_seen(OTHER)
            }
            while pump(now, &mut primary, &mut backup) + pump(now, &mut backup, &mut primary) > 0 {}
        }
        assert_eq!((primary.role(), backup.role()), (Role::Alone, Role::Halted), "stage {stage}");
        let told = |action: &Action| match action {
            Action::Unprotected { reason: LossReason::GaveUp(why) } => why.contains("clusters b and a"),
            Action::Halt { reason: HaltReason::GaveUp(why) } => why.contains("clusters b and a"),
            _ => false,
        };
        for node in [&mut primary, &mut backup] {
            assert!(actions(node).iter().any(told), "stage {stage}");
        }
    }
}

/// A joiner that learns which arbiter it asks between its Hello and the answer is no stranger for that.
#[test]
fn an_arbiter_may_become_known_while_the_machines_greet() {
    let now = Time(1000);
    let (mut primary, mut backup) = (machine(Start::Primary, 1, Some(ASKED)), machine(Start::Backup, 2, None));
    primary.connected(now, primary.handshake(&MEETING));
    backup.connected(now, backup.handshake(&MEETING));
    backup.arbiter_seen(ASKED);
    while pump(now, &mut backup, &mut primary) + pump(now, &mut primary, &mut backup) > 0 {}
    assert_eq!((primary.role(), backup.role()), (Role::Transferring, Role::Loading));
}

/// Within a session only one arbiter's word counts, even if a machine is led to another; afterwards it may change.
#[test]
fn a_session_keeps_to_its_arbiter() {
    let now = Time(1000);
    let (mut primary, mut backup) = (machine(Start::Primary, 1, Some(ASKED)), machine(Start::Backup, 2, None));
    assert_eq!(primary.agreed_arbiter(), None, "a machine without a twin may go to another one");
    connect(now, &mut primary, &mut backup);
    assert_eq!((primary.agreed_arbiter(), backup.agreed_arbiter()), (Some(ASKED), Some(ASKED)));
    primary.arbiter_seen(OTHER);
    assert_eq!(primary.agreed_arbiter(), Some(ASKED));
    pump(now, &mut primary, &mut backup);
    assert_eq!(backup.role(), Role::Loading);
    backup.stop(now);
    pump(now, &mut backup, &mut primary);
    assert_eq!(primary.role(), Role::Alone);
    primary.arbiter_seen(OTHER);
    let mut next = machine(Start::Backup, 3, Some(OTHER));
    connect(now, &mut primary, &mut next);
    assert_eq!(primary.agreed_arbiter(), Some(OTHER));
    assert_eq!((primary.role(), next.role()), (Role::Transferring, Role::Loading));
}

/// A joiner says in its Hello which arbiter answers it: that it is still the same one is no news.
#[test]
fn an_arbiter_is_told_once() {
    let mut joiner = machine(Start::Backup, 2, Some(ASKED));
    joiner.connected(Time(0), joiner.handshake(&MEETING));
    let hello = joiner.transmit().len();
    joiner.arbiter_seen(ASKED);
    assert_eq!(joiner.transmit().len(), hello);
    joiner.arbiter_seen(OTHER);
    assert!(joiner.transmit().len() > hello);
}

/// The stream is gone, and the session is not: either may have to ask for the next term, at the arbiter of both.
#[test]
fn who_lost_the_stream_keeps_to_the_arbiter_of_the_session() {
    let now = Time(1000);
    let (mut primary, mut backup) = (machine(Start::Primary, 1, Some(ASKED)), machine(Start::Backup, 2, Some(ASKED)));
    connect(now, &mut primary, &mut backup);
    primary.finish_state(Position(0), 0).unwrap();
    pump(now, &mut primary, &mut backup);
    backup.joined(now);
    pump(now, &mut backup, &mut primary);
    for node in [&mut primary, &mut backup] {
        node.disconnected(now);
        node.arbiter_seen(OTHER);
        assert_eq!(node.agreed_arbiter(), Some(ASKED), "as {:?}", node.role());
    }
    assert_eq!((primary.role(), backup.role()), (Role::Detaching, Role::Backup));
}
