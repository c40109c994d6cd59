//! What only a look inside can show: that the invariants object, and what becomes of messages that no node of ours sends.

use super::side::Takeover;
use super::*;
use crate::heartbeat::Heartbeat;
use crate::link::LinkState;
use crate::message::{Bye, Message, Retry};
use crate::send_log::SendLog;
use crate::types::Seq;
use std::net::Ipv4Addr;

const MEETING: Meeting =
    Meeting { dialer: Ipv4Addr::new(10, 0, 1, 2), listener: Ipv4Addr::new(10, 0, 1, 1), random: [7; 32] };
const NOW: Time = Time(1000);

fn node(start: Start, id: u64, config: Config) -> Node {
    let identity = Identity { node: NodeId(id), pair: "gemini".into(), guest_memory: 1 << 20, ..Identity::default() };
    Node::new(Time(0), start, config, identity).unwrap()
}

fn pump(from: &mut Node, to: &mut Node) -> usize {
    let taken = to.receive(NOW, from.transmit());
    from.transmitted(taken);
    taken
}

/// A primary and a machine that wants to be its backup, on a stream on which nobody has said anything.
fn strangers(config: &Config) -> (Node, Node) {
    let (mut primary, mut backup) = (node(Start::Primary, 1, config.clone()), node(Start::Backup, 2, config.clone()));
    for own in [&mut primary, &mut backup] {
        own.connected(NOW, own.handshake(&MEETING));
    }
    (primary, backup)
}

/// They have met, and the state is to be sent.
fn transferring(config: &Config) -> (Node, Node) {
    let (mut primary, mut backup) = strangers(config);
    while pump(&mut backup, &mut primary) + pump(&mut primary, &mut backup) > 0 {}
    assert_eq!((primary.role(), backup.role()), (Role::Transferring, Role::Loading));
    (primary, backup)
}

fn protected() -> (Node, Node) {
    let (mut primary, mut backup) = transferring(&Config::default());
    primary.finish_state(Position(1000), 0).unwrap();
    pump(&mut primary, &mut backup);
    backup.joined(NOW);
    pump(&mut backup, &mut primary);
    assert_eq!((primary.role(), backup.role()), (Role::Protected, Role::Backup));
    (primary, backup)
}

fn say(from: &mut Node, to: &mut Node, message: &Message<'_>) {
    from.link.send(&mut from.stats, message);
    pump(from, to);
}

/// How many messages were refused for their content, their order, their place.
fn refused(node: &Node) -> [u64; 3] {
    [node.stats.refused_content, node.stats.refused_order, node.stats.refused_unexpected]
}

#[test]
fn the_invariants_object_to_what_must_not_be() {
    type Harm = fn(&mut Node);
    let to_primary: [(&str, Harm); 8] = [
        ("a bid for a term that is over", |node| {
            node.side = Side::Primary(PrimarySide::starting());
            node.next = node.term;
        }),
        ("a session with nobody", |node| node.peer = None),
        ("a stream to a twin that is none", |node| {
            node.side = Side::Primary(PrimarySide::alone(SendLog::default()));
        }),
        ("a state that nobody will get", |node| {
            let unsent = node.link.queued().len() + 1;
            node.side.primary_mut().unwrap().phase = Phase::Sent { unsent };
        }),
        ("state lost on its way to the guest", |node| node.load_bytes += 1),
        ("a halted node that speaks", |node| {
            (node.side, node.link) = (Side::Halted, Link::down());
            node.beats.due = true;
        }),
        ("a halted node that speaks", |node| {
            node.side = Side::Halted;
            (node.beats.due, node.link.state) = (false, LinkState::Up);
        }),
        ("a stream to a twin that is none", |node| {
            node.side.primary_mut().unwrap().phase = Phase::Detaching { loss: LossReason::Silent, asked: false };
        }),
    ];
    for (what, harm) in to_primary {
        let (mut primary, _) = protected();
        assert_eq!(primary.invariants(), Ok(()));
        harm(&mut primary);
        assert_eq!(primary.invariants(), Err(what));
    }
    let to_backup: [Harm; 4] = [
        |node| node.position = Position(1001),
        |node| node.side.follower_mut().unwrap().bid = Bid::Won,
        |node| node.side.follower_mut().unwrap().proposed = Some(node.term),
        |node| {
            node.position = Position(1001);
            node.side.follower_mut().unwrap().proposed = Some(node.next);
        },
    ];
    for harm in to_backup {
        let (_, mut backup) = protected();
        harm(&mut backup);
        assert_eq!(backup.invariants(), Err("a backup that follows no log"));
    }
    // These are as they should be.
    let (_, mut backup) = protected();
    let follower = backup.side.follower_mut().unwrap();
    (follower.bid, follower.proposed) = (Bid::Won, Some(Term(2)));
    follower.takeover = Some(Takeover { heard: NOW, suspected: NOW, drained: None });
    assert_eq!((backup.term, backup.invariants()), (Term(1), Ok(())));
    let follower = backup.side.follower_mut().unwrap();
    (follower.takeover, follower.replay.powered_off) = (None, true);
    assert_eq!(backup.invariants(), Ok(()));
    let (mut primary, _) = protected();
    let unsent = primary.link.queued().len();
    primary.side.primary_mut().unwrap().phase = Phase::Sent { unsent };
    assert_eq!(primary.invariants(), Ok(()));
}

#[test]
#[should_panic(expected = "a session with nobody")]
fn each_input_ends_with_a_check() {
    let (mut primary, _) = protected();
    primary.peer = None;
    primary.tick(NOW);
}

/// Whoever is on a stream before the twins have met, or says what nobody in its place says, breaks it.
#[test]
fn messages_out_of_place_break_the_stream() {
    let session = SessionId(1);
    let ack = Message::Ack { received: Seq(0), applied: Seq(0), position: Position(1000) };
    let begin = Message::StateBegin { session, term: Term(1), next: Term(2) };
    let all = [ack, begin, Message::Joined(session), Message::Bye(Bye::Leaving), Message::BidFor(Term(3))];
    for message in &all {
        let (mut primary, mut backup) = strangers(&Config::default());
        say(&mut primary, &mut backup, message);
        assert_eq!((refused(&backup), backup.role()), ([0, 0, 1], Role::Joining), "{message:?}");
        assert!(!backup.link.is_up());
    }
    // Nothing of its state has left, or only a part of it: nobody can have it.
    for message in [&all[0], &all[2]] {
        for fed in [false, true] {
            let (mut primary, mut backup) = transferring(&Config::default());
            if fed {
                primary.finish_state(Position(1000), 0).unwrap();
            }
            say(&mut backup, &mut primary, message);
            assert_eq!(refused(&primary), [0, 0, 1], "{message:?}");
            assert_eq!(primary.role(), Role::Alone);
        }
    }
    // Things that are said once.
    let (mut primary, mut backup) = protected();
    backup.send_hello(true);
    pump(&mut backup, &mut primary);
    assert_eq!((refused(&primary), primary.role()), ([0, 0, 1], Role::Detaching));
    let (mut primary, mut backup) = protected();
    say(&mut backup, &mut primary, &all[2]);
    assert_eq!((refused(&primary), primary.role()), ([0, 0, 1], Role::Detaching));
}

#[test]
fn what_is_refused_is_counted_by_its_kind() {
    let (mut primary, mut backup) = protected();
    backup.link.send_with(&mut backup.stats, 200, |out| out.push(1));
    pump(&mut backup, &mut primary);
    assert_eq!(refused(&primary), [1, 0, 0], "there is no such message");
    let (mut primary, mut backup) = protected();
    let ack = Message::Ack { received: Seq(5), applied: Seq(0), position: Position(1000) };
    say(&mut backup, &mut primary, &ack);
    assert_eq!(refused(&primary), [0, 1, 0], "there is no such entry");
    // A session without a number is none, nor is a reign that is over.
    for (session, term) in [(0, 1), (1, 0)] {
        let (mut primary, mut backup) = strangers(&Config::default());
        pump(&mut backup, &mut primary);
        backup.term = Term(1);
        // Its Hello alone.
        let hello = primary.transmit().len();
        let mut other = node(Start::Primary, 1, Config::default());
        other.connected(NOW, other.handshake(&MEETING));
        other.term = Term(1);
        other.send_hello(false);
        assert!(other.transmit().len() < hello);
        say(
            &mut other,
            &mut backup,
            &Message::StateBegin { session: SessionId(session), term: Term(term), next: Term(2) },
        );
        assert_eq!((refused(&backup), backup.role()), ([0, 1, 0], Role::Joining), "{session} {term}");
    }
}

#[test]
fn a_damaged_message_ends_the_stream() {
    let (mut primary, mut backup) = protected();
    backup.send_ack();
    let mut bytes = backup.transmit().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    primary.receive(NOW, &bytes);
    assert_eq!((primary.stats.refused_seal, primary.role()), (1, Role::Detaching));
}

/// The backup of another session knows nothing of this one.
#[test]
fn only_the_backup_of_this_session_joins() {
    let (mut primary, mut backup) = transferring(&Config::default());
    primary.finish_state(Position(1000), 0).unwrap();
    primary.transmitted(primary.transmit().len());
    say(&mut backup, &mut primary, &Message::Joined(SessionId(9)));
    assert_eq!((refused(&primary), primary.role()), ([0, 0, 1], Role::Detaching));
}

/// A joiner that knows of a newer reign tells a primary that its own is over; one of this reign or an older one does not.
#[test]
fn a_joiner_of_a_newer_reign_ends_ours() {
    for (term, role) in [(0, Role::Transferring), (1, Role::Transferring), (2, Role::Halted)] {
        let (mut primary, mut backup) = strangers(&Config::default());
        backup.term = Term(term);
        backup.link.state = LinkState::Down;
        backup.connected(NOW, backup.handshake(&MEETING));
        pump(&mut backup, &mut primary);
        assert_eq!((primary.term.max(Term(1)), primary.role()), (Term(1), role), "{term}");
    }
}

/// A machine that knows of a newer reign than a primary's does not join it, and says why.
#[test]
fn a_primary_of_an_older_reign_is_not_joined() {
    for (term, role) in [(1, Role::Loading), (2, Role::Joining)] {
        let (mut primary, mut backup) = strangers(&Config::default());
        pump(&mut backup, &mut primary);
        backup.term = Term(term);
        pump(&mut primary, &mut backup);
        assert_eq!((backup.role(), refused(&backup)), (role, [0; 3]));
        let told = backup.actions.iter().any(|action| matches!(action, Action::Refused { reason, retry: Retry::Later } if reason.contains("reign is over")));
        assert_eq!(told, role == Role::Joining);
    }
}

/// That it took over is believed of a backup to which the guest was handed over, and of no other.
#[test]
fn a_hand_over_ends_with_the_word_of_the_successor() {
    let took_over = Message::Bye(Bye::TookOver(Term(2)));
    let (mut primary, mut backup) = protected();
    say(&mut backup, &mut primary, &took_over);
    assert_eq!((refused(&primary), primary.role()), ([0, 0, 1], Role::Detaching));
    let (mut primary, mut backup) = protected();
    primary.switch_over(NOW, Position(1000)).unwrap();
    primary.flush(NOW);
    pump(&mut primary, &mut backup);
    say(&mut backup, &mut primary, &took_over);
    assert_eq!((refused(&primary), primary.role(), primary.term), ([0; 3], Role::Joining, Term(2)));
    assert_eq!(
        (primary.stats.switch_overs, primary.actions.pop_back()),
        (1, Some(Action::HandedOver { term: Term(2) }))
    );
}

#[test]
fn whether_a_key_protects_is_known() {
    use crate::key::{PairKey, Protection};
    let keyed = Config { protection: Protection::from(PairKey::new(&[1; 32])), ..Config::default() };
    assert!(node(Start::Primary, 1, keyed.clone()).is_secure());
    assert!(!node(Start::Primary, 1, Config::default()).is_secure());
    // Its secrets are not shown.
    let shown = format!("{:?}", node(Start::Primary, 1, keyed).handshake(&MEETING));
    assert!(shown.starts_with("Handshake(") && shown.len() < 100, "{shown}");
}

/// Whoever refuses follows nobody: a primary that has sent it all of its state need not fear that it takes over.
#[test]
fn a_refusal_within_a_transfer_ends_it() {
    let (mut primary, mut backup) = transferring(&Config::default());
    primary.finish_state(Position(1000), 0).unwrap();
    primary.transmitted(primary.transmit().len());
    let reason = String::from("I do not like it");
    say(&mut backup, &mut primary, &Message::Refuse { retry: Retry::Later, reason });
    assert_eq!((primary.role(), primary.stats.refused_pairings), (Role::Alone, 1));
    // To a backup it is the end of that stream.
    let (mut primary, mut backup) = protected();
    say(&mut primary, &mut backup, &Message::Refuse { retry: Retry::Later, reason: String::new() });
    assert_eq!((backup.role(), backup.stats.refused_pairings, refused(&backup)), (Role::Backup, 1, [0; 3]));
}

/// A primary that leaves before its state is complete leaves no guest behind, in order.
#[test]
fn a_primary_may_leave_within_a_transfer() {
    let (mut primary, mut backup) = transferring(&Config::default());
    backup.actions.clear();
    primary.stop(NOW);
    pump(&mut primary, &mut backup);
    assert_eq!((backup.role(), refused(&backup)), (Role::Joining, [0; 3]));
    assert_eq!(backup.actions.pop_back(), Some(Action::Abandoned { reason: LossReason::Left }));
    assert!(backup.actions.contains(&Action::CloseConnection));
}

/// State that waits for the caller fills the buffer, by what it takes of memory.
#[test]
fn state_that_waits_is_bounded() {
    let cost = size_of::<Action>();
    for (limit, message, count) in [
        (10 * (cost + 1), Message::Machine(&[1]), 10),
        (10 * cost, Message::Zero { gpa: 0, len: 4096 }, 10),
        (10 * (cost + 4096), Message::Memory { gpa: 0, data: &[7; 4096] }, 10),
    ] {
        let config = Config { receive_buffer_bytes: limit, ..Config::default() };
        let (mut primary, mut backup) = transferring(&config);
        backup.actions.clear();
        for _ in 0..count {
            assert!(backup.receive_room() > 0, "{message:?}");
            say(&mut primary, &mut backup, &message);
        }
        assert_eq!((backup.actions.len(), backup.receive_room()), (count, 0));
        backup.poll_action();
        assert!(backup.receive_room() > 0);
    }
}

/// Only the backup of this very session says that it has lost its stream.
#[test]
fn a_lost_stream_is_told_by_who_is_on_it() {
    let beat_of_backup = || {
        let (mut primary, mut backup) = protected();
        for own in 0..3 {
            let at = Time(100_000 * (own + 1));
            for by_primary in [true, false] {
                let (from, to) = if by_primary { (&mut primary, &mut backup) } else { (&mut backup, &mut primary) };
                from.tick(at);
                to.heartbeat_received(at, &from.poll_datagram(at).unwrap());
            }
        }
        let at = Time(400_000);
        backup.tick(at);
        let beat = Heartbeat::decode(&backup.poll_datagram(at).unwrap(), &backup.config.protection).unwrap();
        assert!(beat.linked);
        (primary, beat)
    };
    let role_after = |change: fn(&mut Heartbeat)| {
        let (mut primary, mut beat) = beat_of_backup();
        change(&mut beat);
        let before = primary.stats.heartbeats_received;
        primary.heartbeat_received(Time(400_000), &beat.encode(&Config::default().protection));
        assert_eq!(primary.stats.heartbeats_received, before + 1);
        primary.role()
    };
    assert_eq!(role_after(|_| ()), Role::Protected);
    assert_eq!(role_after(|beat| beat.linked = false), Role::Detaching);
    // Another machine's role, or one of before.
    assert_eq!(role_after(|beat| (beat.linked, beat.role) = (false, Role::Loading)), Role::Protected);
}
