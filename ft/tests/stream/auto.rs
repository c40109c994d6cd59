//! Machines that start by themselves: what one hears decides what it becomes.

use super::*;
use pollux_ft::heartbeat::{Heartbeat, pair_digest};
use pollux_ft::{HaltReason, Protection, SessionId, Span, Verdict, WaitsFor};

pub(super) const ME: NodeId = NodeId(5);

pub(super) fn auto(config: Config) -> Node {
    Node::new(Time(0), Start::Auto, config, identity(ME.0)).unwrap()
}

pub(super) fn arbitrated() -> Config {
    Config { arbiter: true, ..Config::default() }
}

/// Ticks as time passes; heartbeats are sent, and lost.
pub(super) fn pass(node: &mut Node, from_ms: u64, to_ms: u64) {
    for at in (from_ms..=to_ms).step_by(50) {
        node.tick(Time(at * 1000));
        while node.poll_datagram(Time(at * 1000)).is_some() {}
    }
}

/// What node `node` says as its heartbeat number `counter`: it has heard number `answers` of ours.
pub(super) fn says(own: &mut Node, ms: u64, node: u64, counter: u64, answers: u64, role: Role, creator: u64) {
    let beat = Heartbeat { answers, creator: NodeId(creator), ..beat_of(node, counter, role) };
    own.heartbeat_received(Time(ms * 1000), &beat.encode(&Protection::default()));
}

#[test]
fn one_that_comes_up_alone_waits() {
    let mut own = auto(Config::default());
    pass(&mut own, 0, 600_000);
    assert_eq!((own.role(), own.waits_for(Time(600_000_000))), (Role::Joining, Some(WaitsFor::Twin)));
    assert!(own.wants_connection());
}

#[test]
fn an_operator_may_declare_the_twin_dead() {
    let mut own = auto(Config { alone_after: Some(Span::from_millis(30_000)), ..Config::default() });
    pass(&mut own, 0, 29_900);
    // Somebody is there, even if that was not said to us.
    let other = Heartbeat { heard: [NodeId(0); 4], ..beat_of(9, 1, Role::Joining) };
    own.heartbeat_received(Time(29_900_000), &other.encode(&Protection::default()));
    pass(&mut own, 29_950, 59_800);
    assert_eq!(own.role(), Role::Joining);
    pass(&mut own, 59_850, 60_000);
    assert_eq!((own.role(), own.term()), (Role::Alone, Term(1)));
    assert!(actions(&mut own).contains(&Action::Started { term: Term(1) }));
    assert!(Config { alone_after: Some(Span(1)), ..Config::default() }.check().is_err());
}

/// A machine with a key that we do not have may be the twin, which has the guest.
#[test]
fn who_has_another_key_is_not_dead() {
    let alone = |secret| Config { alone_after: Some(Span::from_millis(30_000)), ..super::attacks::keyed(secret) };
    let other = super::attacks::keyed(2).protection;
    for by_stream in [false, true] {
        let mut own = auto(alone(1));
        for second in 0..120 {
            pass(&mut own, second * 1000, second * 1000 + 950);
            let now = Time(second * 1_000_000 + 990_000);
            if !by_stream {
                own.heartbeat_received(now, &beat_of(9, second, Role::Alone).encode(&other));
            } else if second % 20 == 0 {
                let mut primary = super::attacks::start(Start::Primary, 9, &super::attacks::keyed(2));
                connect(now, &mut primary, &mut own);
                own.disconnected(now);
            }
        }
        assert_eq!(own.role(), Role::Joining, "{by_stream}");
        // What is no heartbeat at all says nothing.
        for second in 120..160 {
            pass(&mut own, second * 1000, second * 1000 + 950);
            own.heartbeat_received(Time(second * 1_000_000 + 990_000), &[0; pollux_ft::heartbeat::SIZE]);
        }
        assert_eq!(own.role(), Role::Alone, "{by_stream}");
    }
}

/// The twin is there, holds nothing and yields: the guest is created in the term behind the newest.
#[test]
fn a_promise_and_a_term_make_a_primary() {
    let mut own = auto(arbitrated());
    assert!(own.wants_newest_term());
    own.terms_seen(Time(0), Term(7));
    // Not before it has listened.
    says(&mut own, 10, 9, 1, 1, Role::Joining, 0);
    says(&mut own, 20, 9, 2, 1, Role::Joining, ME.0);
    assert_eq!(own.asks_for(), None);
    pass(&mut own, 50, 2000);
    says(&mut own, 2000, 9, 3, 1, Role::Joining, 0);
    assert_eq!((own.asks_for(), own.waits_for(Time(2_000_000))), (None, Some(WaitsFor::Word)));
    // It has not heard of the offer.
    says(&mut own, 2010, 9, 4, 1, Role::Joining, ME.0);
    assert_eq!(own.asks_for(), None);
    says(&mut own, 2020, 9, 5, 1000, Role::Joining, ME.0);
    assert_eq!((own.role(), own.asks_for()), (Role::Starting, Some(Term(8))));
    assert_eq!(own.waits_for(Time(2_020_000)), Some(WaitsFor::Arbiter));
    own.arbiter_answered(Time(2_030_000), Term(8), Verdict::Granted);
    assert_eq!((own.role(), own.term(), own.waits_for(Time(2_030_000))), (Role::Alone, Term(8), None));
    assert!(actions(&mut own).contains(&Action::Started { term: Term(8) }));
}

/// Without an arbiter nobody remembers terms but the machines themselves: the twin follows no reign of before its own.
#[test]
fn what_the_twin_knows_of_terms_counts() {
    let mut own = auto(Config::default());
    pass(&mut own, 0, 2000);
    let says_of = |own: &mut Node, ms: u64, counter, creator| {
        let beat = Heartbeat { term: Term(3), answers: 1000, creator, ..beat_of(9, counter, Role::Joining) };
        own.heartbeat_received(Time(ms * 1000), &beat.encode(&Protection::default()));
    };
    says_of(&mut own, 2000, 1, NodeId(0));
    says_of(&mut own, 2010, 2, ME);
    assert_eq!((own.role(), own.term()), (Role::Alone, Term(4)));
    says_of(&mut own, 2020, 3, ME);
    assert_eq!(own.role(), Role::Alone, "it is not beaten by its own twin");
}

/// Whoever is refused listens again, and needs another promise.
#[test]
fn a_term_that_is_taken_makes_it_listen_again() {
    let mut own = auto(arbitrated());
    own.terms_seen(Time(0), Term(7));
    pass(&mut own, 0, 2000);
    says(&mut own, 2000, 9, 1, 1000, Role::Joining, 0);
    says(&mut own, 2010, 9, 2, 1000, Role::Joining, ME.0);
    own.arbiter_answered(Time(2_020_000), Term(8), Verdict::Taken);
    assert_eq!((own.role(), own.asks_for()), (Role::Joining, None));
    assert!(own.wants_newest_term(), "another one was given away meanwhile");
    own.terms_seen(Time(2_025_000), Term(8));
    says(&mut own, 2030, 9, 3, 1000, Role::Joining, ME.0);
    assert_eq!(own.asks_for(), None);
    pass(&mut own, 2050, 4100);
    says(&mut own, 4100, 9, 4, 1000, Role::Joining, 0);
    says(&mut own, 4110, 9, 5, 1000, Role::Joining, ME.0);
    assert_eq!(own.asks_for(), Some(Term(9)));
}

/// A machine with a guest is joined: whatever it was before that said otherwise.
#[test]
fn a_machine_with_a_guest_ends_all_that() {
    for role in [Role::Alone, Role::Protected, Role::Detaching, Role::HandingOver, Role::Backup, Role::Draining] {
        let mut own = auto(arbitrated());
        own.terms_seen(Time(0), Term(7));
        pass(&mut own, 0, 2000);
        says(&mut own, 2000, 9, 1, 1000, Role::Joining, 0);
        says(&mut own, 2010, 9, 2, 1000, Role::Joining, ME.0);
        assert_eq!(own.role(), Role::Starting);
        says(&mut own, 2020, 9, 3, 1000, role, 0);
        assert_eq!((own.role(), own.asks_for()), (Role::Joining, None), "{role:?}");
        assert!(actions(&mut own).contains(&Action::ArbiterNotNeeded));
        says(&mut own, 2030, 9, 4, 1000, Role::Joining, ME.0);
        assert_eq!(own.role(), Role::Joining);
    }
}

/// Both offer: the lower id creates the guest. One that was told what it is yields, too.
#[test]
fn one_yields_to_the_other() {
    for (start, theirs, yields) in [(Start::Auto, 3, true), (Start::Auto, 9, false), (Start::Backup, 9, true)] {
        let mut own = Node::new(Time(0), start, arbitrated(), identity(ME.0)).unwrap();
        own.terms_seen(Time(0), Term(0));
        pass(&mut own, 0, 2000);
        says(&mut own, 2000, theirs, 1, 1000, Role::Joining, 0);
        says(&mut own, 2010, theirs, 2, 1000, Role::Joining, theirs);
        own.tick(Time(2_100_000));
        let said = own.poll_datagram(Time(2_100_000)).unwrap();
        let said = Heartbeat::decode(&said, &Protection::default()).unwrap();
        assert_eq!((said.creator, said.heard[0]), (if yields { NodeId(theirs) } else { ME }, NodeId(theirs)));
    }
}

/// Whoever cannot reach the arbiter leaves the guest to a twin that perhaps can.
#[test]
fn who_has_no_way_to_the_arbiter_does_not_stand_in_the_way() {
    // It never had one: the twin, whose id is higher, offers, and it yields.
    let mut own = auto(arbitrated());
    pass(&mut own, 0, 3000);
    assert_eq!(own.waits_for(Time(3_000_000)), Some(WaitsFor::Twin));
    says(&mut own, 3000, 9, 1, 1000, Role::Joining, 9);
    own.tick(Time(3_100_000));
    let said = own.poll_datagram(Time(3_100_000)).unwrap();
    assert_eq!(Heartbeat::decode(&said, &Protection::default()).unwrap().creator, NodeId(9));
    // It had one, and has none any more.
    let mut own = auto(arbitrated());
    own.terms_seen(Time(0), Term(7));
    pass(&mut own, 0, 2000);
    says(&mut own, 2000, 9, 1, 1000, Role::Joining, 0);
    says(&mut own, 2010, 9, 2, 1000, Role::Joining, ME.0);
    pass(&mut own, 2050, 12_000);
    assert_eq!(own.asks_for(), Some(Term(8)));
    pass(&mut own, 12_000, 12_050);
    assert_eq!((own.role(), own.asks_for()), (Role::Joining, None));
    assert!(own.wants_newest_term() && actions(&mut own).contains(&Action::ArbiterNotNeeded));
    own.arbiter_answered(Time(13_000_000), Term(8), Verdict::Granted);
    assert_eq!((own.role(), own.stats().answers_stale), (Role::Joining, 1), "too late: it is burnt");
}

/// The operator's word that the twin is dead has been disproved.
#[test]
fn who_was_refused_does_not_take_the_twin_for_dead() {
    let mut own = auto(Config { alone_after: Some(Span::from_millis(5000)), ..arbitrated() });
    own.terms_seen(Time(0), Term(7));
    pass(&mut own, 0, 5000);
    assert_eq!(own.asks_for(), Some(Term(8)));
    own.arbiter_answered(Time(5_010_000), Term(8), Verdict::Taken);
    own.terms_seen(Time(5_020_000), Term(8));
    pass(&mut own, 5050, 600_000);
    assert_eq!((own.role(), own.asks_for()), (Role::Joining, None));
}

/// What halts a machine that a person started makes one that started by itself join.
#[test]
fn who_is_beaten_joins() {
    let mut own = auto(Config { alone_after: Some(Span::from_millis(2000)), ..Config::default() });
    pass(&mut own, 0, 2100);
    assert_eq!(own.role(), Role::Alone);
    actions(&mut own);
    let newer = Heartbeat { term: Term(4), ..beat_of(9, 1, Role::Alone) };
    own.heartbeat_received(Time(2_200_000), &newer.encode(&Protection::default()));
    assert_eq!((own.role(), own.term()), (Role::Joining, Term(4)));
    let beaten = Action::Beaten { reason: HaltReason::Superseded(Term(4)) };
    assert!(actions(&mut own).contains(&beaten));
    // It had a guest: it creates none.
    pass(&mut own, 2200, 60_000);
    assert_eq!(own.role(), Role::Joining);
}

/// Nobody reigns yet in a term that was refused: a twin that hears of a newer reign throws its guest away.
#[test]
fn a_primary_that_is_refused_claims_no_reign() {
    let config = Config { alone_after: Some(Span::from_millis(2000)), ..arbitrated() };
    let mut primary = Node::new(Time(0), Start::Auto, config, identity(1)).unwrap();
    primary.terms_seen(Time(0), Term(0));
    pass(&mut primary, 0, 2000);
    let now = Time(2_000_000);
    primary.arbiter_answered(now, Term(1), Verdict::Granted);
    let mut backup = Node::new(now, Start::Backup, arbitrated(), identity(2)).unwrap();
    connect(now, &mut primary, &mut backup);
    primary.finish_state(Position(10), 0).unwrap();
    pump(now, &mut primary, &mut backup);
    backup.joined(now);
    pump(now, &mut backup, &mut primary);
    // They lose each other, and both ask for the next term.
    for own in [&mut primary, &mut backup] {
        own.disconnected(now);
        pass(own, 2050, 3500);
    }
    let now = Time(3_500_000);
    assert!(backup.go_live(now, Position(10)).is_err());
    assert_eq!((primary.asks_for(), backup.asks_for()), (Some(Term(2)), Some(Term(2))));
    primary.arbiter_answered(now, Term(2), Verdict::Taken);
    assert_eq!(primary.role(), Role::Joining);
    primary.tick(now);
    backup.heartbeat_received(now, &primary.poll_datagram(now).unwrap());
    assert_eq!((backup.role(), backup.asks_for()), (Role::Draining, Some(Term(2))));
    backup.arbiter_answered(now, Term(2), Verdict::Granted);
    assert_eq!(backup.go_live(now, Position(10)).map(|taken| taken.term), Ok(Term(2)));
}

pub(super) fn beat_of(node: u64, counter: u64, role: Role) -> Heartbeat {
    Heartbeat {
        pair: pair_digest("gemini"),
        node: NodeId(node),
        peer: NodeId(0),
        counter,
        heard: [ME, NodeId(0), NodeId(0), NodeId(0)],
        answers: 0,
        creator: NodeId(0),
        echo: 0,
        term: Term(0),
        role,
        session: SessionId(0),
        linked: false,
        seq: Seq(0),
        position: Position(0),
        time: Time(0),
    }
}
