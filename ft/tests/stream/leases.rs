//! How long a primary may go on without hearing its backup, and what a backup may take for a sign of life.

use crate::{actions, beat, protected, pump};
use pollux_ft::heartbeat::{Heartbeat, pair_digest};
use pollux_ft::{Action, EntryRef, Node, NodeId, Position, Protection, Role, Seq, SessionId, Term, Time};

fn ms(ms: u64) -> Time {
    Time(ms * 1000)
}

/// An entry of the primary reaches the backup, and its ack comes back.
fn round(now: Time, primary: &mut Node, backup: &mut Node, position: u64) {
    primary.append(now, Position(position), EntryRef::Output).unwrap();
    primary.flush(now);
    pump(now, primary, backup);
    pump(now, backup, primary);
}

#[test]
fn acked_frames_leave_only_while_no_successor_can_be_live() {
    let (mut primary, mut backup) = protected(ms(0));
    assert!(!primary.may_send(ms(0)), "the backup has not said yet that it heard anything");
    round(ms(100), &mut primary, &mut backup, 2000);
    assert_eq!(actions(&mut primary), [Action::Release(Seq(1))]);
    assert!(primary.may_send(ms(974)) && !primary.may_send(ms(975)), "the backup may be live at 1100 ms");
    // The ack of an entry was under way while the primary stood still.
    primary.append(ms(900), Position(3000), EntryRef::Output).unwrap();
    primary.flush(ms(900));
    pump(ms(900), &mut primary, &mut backup);
    let late = ms(2000);
    pump(late, &mut backup, &mut primary);
    assert_eq!(actions(&mut primary), [Action::Release(Seq(2))]);
    assert!(!primary.may_send(late), "there may be a successor");
    // What it says now it has said since.
    round(late, &mut primary, &mut backup, 4000);
    assert!(primary.may_send(late));
}

#[test]
fn a_heartbeat_that_answers_one_of_ours_says_the_same() {
    let (mut primary, mut backup) = protected(ms(0));
    beat(ms(0), &mut primary, &mut backup);
    beat(ms(500), &mut backup, &mut primary);
    assert!(primary.may_send(ms(874)) && !primary.may_send(ms(875)), "that was said at 0 ms");
    beat(ms(800), &mut primary, &mut backup);
    beat(ms(900), &mut backup, &mut primary);
    assert!(primary.may_send(ms(1674)) && !primary.may_send(ms(1675)));
}

#[test]
fn a_primary_that_hands_over_leaves_the_rest_to_its_successor() {
    let (mut primary, mut backup) = protected(ms(0));
    round(ms(100), &mut primary, &mut backup, 2000);
    assert!(primary.may_send(ms(100)));
    primary.switch_over(ms(100), Position(2000)).unwrap();
    assert!(!primary.may_send(ms(100)));
}

/// It acks what it receives, and nobody drives its guest.
#[test]
fn a_backup_whose_guest_stands_still_is_let_go_of() {
    let (mut primary, mut backup) = protected(ms(0));
    for at in (50..=3050).step_by(50) {
        assert_eq!(primary.role(), Role::Protected, "at {at} ms");
        round(ms(at), &mut primary, &mut backup, 1000 + at);
        primary.tick(ms(at));
        backup.tick(ms(at));
    }
    assert_eq!(primary.role(), Role::Detaching);
    beat(ms(3050), &mut primary, &mut backup);
    assert_eq!(backup.role(), Role::Joining);
    beat(ms(3050), &mut backup, &mut primary);
    let said = actions(&mut primary).into_iter().find_map(|action| match action {
        Action::Unprotected { reason } => Some(reason.to_string()),
        _ => None,
    });
    assert_eq!(said.as_deref(), Some("twin alive, but its guest stands still"));
}

/// Slow is not dead.
#[test]
fn a_backup_that_comes_on_is_kept() {
    let (mut primary, mut backup) = protected(ms(0));
    for at in (50..=20_000).step_by(50) {
        round(ms(at), &mut primary, &mut backup, 1000 + at * 10);
        backup.progress(Position(1000 + at));
        primary.tick(ms(at));
        backup.tick(ms(at));
        assert_eq!((primary.role(), backup.role()), (Role::Protected, Role::Backup), "at {at} ms");
    }
}

/// A heartbeat from before the session, late as datagrams may be, says nothing of the primary now.
#[test]
fn a_stale_heartbeat_does_not_stand_in_the_way_of_a_takeover() {
    let (_, mut backup) = protected(ms(0));
    for at in (0..=1000).step_by(50) {
        backup.tick(ms(at));
    }
    assert_eq!(backup.role(), Role::Draining);
    let stale = Heartbeat {
        pair: pair_digest("gemini"),
        node: NodeId(1),
        peer: NodeId(2),
        counter: 50,
        heard: [NodeId(2), NodeId(0), NodeId(0), NodeId(0)],
        echo: 0,
        answers: 0,
        creator: NodeId(0),
        term: Term(1),
        role: Role::Alone,
        session: SessionId(0),
        linked: true,
        seq: Seq(0),
        position: Position(0),
        time: Time(0),
    };
    backup.heartbeat_received(ms(1001), &stale.encode(&Protection::default()));
    assert_eq!(backup.last_heard(), ms(0));
    assert_eq!(backup.go_live(ms(1001), Position(1000)).map(|taken| taken.term), Ok(Term(2)));
}
