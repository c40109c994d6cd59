//! The bid for the next term, step by step.

use crate::{actions, connect, identity, pump};
use pollux_ft::{Action, Config, HaltReason, Node, NotLive, Position, Role, Start, Term, Time, Verdict};

/// A protected pair with an arbiter in session 1, which bids for term 2; the guest stands at position 10.
fn protected() -> (Node, Node) {
    let config = Config { arbiter: true, ..Config::default() };
    let mut primary = Node::new(Time(0), Start::Primary, config.clone(), identity(1)).unwrap();
    let mut backup = Node::new(Time(0), Start::Backup, config, identity(2)).unwrap();
    assert_eq!(actions(&mut primary), [Action::AskArbiter { term: Term(1) }]);
    assert_eq!((primary.role(), primary.wants_connection()), (Role::Starting, false));
    primary.arbiter_answered(Time(0), Term(1), Verdict::Granted);
    assert_eq!(actions(&mut primary), [Action::Started { term: Term(1) }]);
    assert_eq!((primary.stats().terms_asked, primary.stats().terms_won), (1, 1));
    protect(&mut primary, &mut backup);
    (primary, backup)
}

fn protect(primary: &mut Node, backup: &mut Node) {
    connect(Time(0), primary, backup);
    primary.finish_state(Position(10), 0).unwrap();
    pump(Time(0), primary, backup);
    actions(backup);
    backup.joined(Time(0));
    pump(Time(0), backup, primary);
    actions(primary);
}

fn tick_until(node: &mut Node, from_ms: u64, to_ms: u64) -> Time {
    for ms in (from_ms..=to_ms).step_by(50) {
        node.tick(Time(ms * 1000));
    }
    Time(to_ms * 1000)
}

/// What `from` says at this time reaches `to`.
fn beat(now: Time, from: &mut Node, to: &mut Node) {
    let datagram = from.poll_datagram(now).expect("a heartbeat is due");
    to.heartbeat_received(now, &datagram);
}

/// The backup drained and asked; the primary lives, but was not heard.
fn asked() -> (Node, Node, Time) {
    let (primary, mut backup) = protected();
    let now = tick_until(&mut backup, 0, 1000);
    assert_eq!(actions(&mut backup), [Action::TakeOver { last: Position(10) }]);
    assert_eq!(backup.go_live(now, Position(9)), Err(NotLive::NotDrained));
    assert_eq!(actions(&mut backup), [], "what is not drained asks for nothing");
    assert_eq!(backup.go_live(now, Position(10)), Err(NotLive::NotGranted));
    assert_eq!(backup.go_live(now, Position(10)), Err(NotLive::NotGranted));
    assert_eq!(actions(&mut backup), [Action::AskArbiter { term: Term(2) }], "once");
    (primary, backup, now)
}

#[test]
fn a_backup_goes_live_in_the_term_it_won() {
    let (_, mut backup, now) = asked();
    backup.arbiter_answered(now, Term(3), Verdict::Granted);
    assert_eq!(backup.go_live(now, Position(10)), Err(NotLive::NotGranted), "another term's answer");
    backup.arbiter_answered(now, Term(2), Verdict::Granted);
    assert_eq!(backup.go_live(now, Position(10)).map(|taken| taken.term), Ok(Term(2)));
    assert_eq!((backup.role(), backup.next_term(), backup.asks_for()), (Role::Alone, Term(3), None));
    assert_eq!(backup.stats().takeovers, 1);
}

#[test]
fn a_granted_term_ends_the_stream() {
    let (_, mut backup, now) = asked();
    backup.arbiter_answered(now, Term(2), Verdict::Granted);
    assert_eq!(actions(&mut backup), [Action::CloseConnection], "whatever the primary says now, it is too late");
}

/// It could propose nothing, as there is no stream: what it asked for is what it needs.
#[test]
fn a_backup_without_a_stream_takes_over_when_its_answer_comes() {
    let (mut primary, mut backup, now) = asked();
    backup.disconnected(now);
    primary.tick(now);
    beat(now, &mut primary, &mut backup);
    assert_eq!((backup.role(), backup.stats().takeovers_cancelled), (Role::Backup, 1));
    actions(&mut backup);
    backup.arbiter_answered(now, Term(2), Verdict::Granted);
    assert_eq!(actions(&mut backup), [Action::TakeOver { last: Position(10) }]);
    assert_eq!(backup.go_live(now, Position(10)).map(|taken| taken.term), Ok(Term(2)));
}

#[test]
fn a_backup_that_is_refused_halts() {
    let (_, mut backup, now) = asked();
    backup.arbiter_answered(now, Term(2), Verdict::Taken);
    assert!(actions(&mut backup).contains(&Action::Halt { reason: HaltReason::TermTaken(Term(2)) }));
    assert!(backup.go_live(now, Position(10)).is_err());
    assert_eq!((backup.stats().terms_asked, backup.stats().terms_lost, backup.stats().terms_won), (1, 1, 0));
}

/// Both bid, the link heals, and the arbiter's word that the primary has won is late. The backup, which started by itself
/// and so lives on, knows of the term that it was refused: that makes nobody yield.
#[test]
fn who_was_refused_does_not_speak_for_the_term() {
    let config = Config { arbiter: true, ..Config::default() };
    let mut primary = Node::new(Time(0), Start::Primary, config.clone(), identity(1)).unwrap();
    let mut backup = Node::new(Time(0), Start::Auto, config, identity(2)).unwrap();
    primary.arbiter_answered(Time(0), Term(1), Verdict::Granted);
    protect(&mut primary, &mut backup);
    for node in [&mut primary, &mut backup] {
        node.disconnected(Time(0));
    }
    tick_until(&mut primary, 0, 1000);
    let now = tick_until(&mut backup, 0, 1000);
    actions(&mut backup);
    assert_eq!(backup.go_live(now, Position(10)), Err(NotLive::NotGranted));
    assert_eq!((primary.asks_for(), backup.asks_for()), (Some(Term(2)), Some(Term(2))));
    backup.arbiter_answered(now, Term(2), Verdict::Taken);
    assert_eq!((backup.role(), backup.term()), (Role::Joining, Term(1)));
    backup.tick(now);
    beat(now, &mut backup, &mut primary);
    assert_eq!((primary.role(), primary.term(), primary.next_term()), (Role::Alone, Term(1), Term(3)));
    primary.arbiter_answered(now, Term(2), Verdict::Granted);
    assert_eq!(primary.stats().answers_stale, 1, "that it has won is of no interest: the twin gave up");
}

/// The backup asked and hears its primary again.
fn called_off() -> (Node, Node, Time) {
    let (mut primary, mut backup, now) = asked();
    primary.tick(now);
    beat(now, &mut primary, &mut backup);
    assert_eq!(actions(&mut backup), [Action::TakeOverCancelled]);
    assert_eq!((backup.role(), backup.asks_for()), (Role::Backup, Some(Term(2))));
    (primary, backup, now)
}

#[test]
fn a_pair_that_hears_each_other_again_burns_the_term() {
    let (mut primary, mut backup, now) = called_off();
    pump(now, &mut backup, &mut primary);
    assert_eq!((primary.role(), primary.next_term()), (Role::Protected, Term(3)));
    pump(now, &mut primary, &mut backup);
    assert_eq!(actions(&mut backup), [Action::ArbiterNotNeeded]);
    assert_eq!((backup.role(), backup.next_term(), backup.asks_for()), (Role::Backup, Term(3), None));
    // The answer comes hours later.
    backup.arbiter_answered(now, Term(2), Verdict::Granted);
    assert_eq!((backup.role(), actions(&mut backup)), (Role::Backup, vec![]));
    assert_eq!((backup.stats().terms_burnt, backup.stats().answers_stale), (1, 1));
    // Again, and with an end.
    let now = tick_until(&mut backup, 1050, 2100);
    assert_eq!(backup.go_live(now, Position(10)), Err(NotLive::NotGranted));
    assert_eq!(backup.asks_for(), Some(Term(3)));
    backup.arbiter_answered(now, Term(3), Verdict::Granted);
    assert_eq!(backup.go_live(now, Position(10)).map(|taken| taken.term), Ok(Term(3)));
}

/// Nothing is left of the question: a backup that is let go of gives up, so that its primary need not ask.
#[test]
fn a_backup_is_free_again_once_its_primary_has_agreed() {
    let (mut primary, mut backup, now) = called_off();
    pump(now, &mut backup, &mut primary);
    pump(now, &mut primary, &mut backup);
    actions(&mut backup);
    primary.disconnected(now);
    primary.tick(now);
    assert_eq!(primary.role(), Role::Detaching);
    beat(now, &mut primary, &mut backup);
    assert_eq!((backup.role(), backup.asks_for()), (Role::Joining, None));
    assert_eq!((backup.stats().losses, backup.stats().acks_sent), (1, 1));
}

#[test]
fn whoever_may_need_a_term_soon_looks_at_the_arbiter() {
    let (primary, backup) = protected();
    assert!(primary.may_look_at_arbiter() && backup.may_look_at_arbiter());
    let (_, asking, _) = asked();
    assert!(!asking.may_look_at_arbiter(), "the question comes first");
    let without = Node::new(Time(0), Start::Primary, Config::default(), identity(1)).unwrap();
    assert!(!without.may_look_at_arbiter(), "there is none");
}

/// The primary may have agreed or not: the backup needs what either could win.
#[test]
fn until_the_primary_has_agreed_a_backup_needs_both_terms() {
    let (_, mut backup, now) = called_off();
    backup.arbiter_answered(now, Term(2), Verdict::Granted);
    assert_eq!((backup.role(), backup.next_term(), backup.asks_for()), (Role::Backup, Term(3), None));
    // The stream is gone, and the primary bids, for which term nobody knows.
    backup.disconnected(now);
    let now = tick_until(&mut backup, 1050, 2100);
    actions(&mut backup);
    assert_eq!(backup.go_live(now, Position(10)), Err(NotLive::NotGranted));
    assert_eq!(actions(&mut backup), [Action::AskArbiter { term: Term(3) }]);
    backup.arbiter_answered(now, Term(3), Verdict::Granted);
    assert_eq!(backup.go_live(now, Position(10)).map(|taken| taken.term), Ok(Term(3)));
}

#[test]
fn a_primary_that_asks_agrees_to_nothing() {
    let (mut primary, mut backup, now) = called_off();
    let datagram_and_stream = backup.transmit().to_vec();
    assert!(!datagram_and_stream.is_empty());
    let later = tick_until(&mut primary, 1000, 2500);
    assert_eq!((primary.role(), primary.asks_for()), (Role::Detaching, Some(Term(2))));
    assert_eq!(primary.receive(later, &datagram_and_stream), 0);
    assert_eq!((primary.next_term(), backup.next_term()), (Term(2), Term(2)));
    // It is refused, as the term is the backup's, which needs the next one, too.
    backup.arbiter_answered(now, Term(2), Verdict::Granted);
    primary.arbiter_answered(later, Term(2), Verdict::Taken);
    assert_eq!((primary.role(), backup.role(), backup.next_term()), (Role::Halted, Role::Backup, Term(3)));
}

#[test]
fn a_backup_that_asked_does_not_give_up_for_a_primary_that_asks() {
    let (mut primary, mut backup, now) = asked();
    primary.tick(now);
    primary.disconnected(now);
    primary.tick(now);
    assert_eq!(primary.role(), Role::Detaching);
    beat(now, &mut primary, &mut backup);
    assert_eq!((backup.role(), backup.asks_for()), (Role::Draining, Some(Term(2))));
    // The primary learns that it has to ask, too: the arbiter decides.
    backup.tick(now);
    beat(now, &mut backup, &mut primary);
    assert_eq!(primary.asks_for(), Some(Term(2)));
    primary.arbiter_answered(now, Term(2), Verdict::Granted);
    assert_eq!((primary.role(), primary.term()), (Role::Alone, Term(2)));
    // A primary that won makes the question pointless.
    let later = tick_until(&mut primary, 1000, 1200);
    beat(later, &mut primary, &mut backup);
    assert!(actions(&mut backup).contains(&Action::ArbiterNotNeeded));
    assert_eq!((backup.role(), backup.asks_for()), (Role::Joining, None));
}

#[test]
fn a_primary_withdraws_its_question_when_the_backup_gave_up() {
    let (mut primary, mut backup) = protected();
    let now = tick_until(&mut primary, 0, 1000);
    assert_eq!((primary.role(), primary.asks_for()), (Role::Detaching, Some(Term(2))));
    primary.tick(now);
    backup.disconnected(now);
    beat(now, &mut primary, &mut backup);
    assert_eq!(backup.role(), Role::Joining);
    backup.tick(now);
    beat(now, &mut backup, &mut primary);
    assert_eq!((primary.role(), primary.term()), (Role::Alone, Term(1)));
    let taken = actions(&mut primary);
    let order = [&Action::AskArbiter { term: Term(2) }, &Action::ArbiterNotNeeded];
    assert!(taken.iter().filter(|action| order.contains(action)).eq(order));
    // Term 2 may be ours or the backup's: it is burnt, and its answer of no interest.
    primary.arbiter_answered(now, Term(2), Verdict::Taken);
    assert_eq!((primary.role(), primary.next_term()), (Role::Alone, Term(3)));
}

#[test]
fn a_machine_that_stops_withdraws_its_question() {
    let (_, mut backup, now) = asked();
    backup.stop(now);
    let actions = actions(&mut backup);
    assert!(actions.contains(&Action::ArbiterNotNeeded));
    assert_eq!(backup.asks_for(), None);
}
