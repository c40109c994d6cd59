//! Machines that start by themselves: what they wait for, what they say of it, and from when on a promise counts.

use super::auto::{ME, arbitrated, auto, beat_of, pass, says};
use super::*;
use pollux_ft::heartbeat::Heartbeat;
use pollux_ft::{HaltReason, LossReason, NotLive, Protection, Span, Verdict, WaitsFor};

const TWIN: u64 = 9;

/// What a node says next, as `ms`.
fn said(own: &mut Node, ms: u64) -> Heartbeat {
    let now = Time(ms * 1000);
    own.tick(own.next_timeout().unwrap().max(now));
    Heartbeat::decode(&own.poll_datagram(now).expect("a heartbeat is due"), &Protection::default()).unwrap()
}

fn waits(own: &Node, ms: u64) -> Option<WaitsFor> {
    own.waits_for(Time(ms * 1000))
}

#[test]
fn it_says_what_it_waits_for() {
    let mut own = auto(arbitrated());
    assert_eq!(waits(&own, 0), Some(WaitsFor::Arbiter), "which tells the newest term");
    own.terms_seen(Time(0), Term(7));
    assert_eq!(waits(&own, 0), Some(WaitsFor::Silence));
    pass(&mut own, 0, 1950);
    assert_eq!(waits(&own, 1950), Some(WaitsFor::Silence));
    pass(&mut own, 2000, 2000);
    assert_eq!(waits(&own, 2000), Some(WaitsFor::Twin), "nobody is there");
    // Somebody is: it listened for long enough.
    let other = Heartbeat { heard: [NodeId(0); 4], ..beat_of(TWIN, 1, Role::Joining) };
    own.heartbeat_received(Time(2_000_000), &other.encode(&Protection::default()));
    assert_eq!(waits(&own, 2000), Some(WaitsFor::Word));
    says(&mut own, 2010, TWIN, 2, 1000, Role::Joining, 0);
    assert_eq!(waits(&own, 2010), Some(WaitsFor::Word), "it offers");
    pass(&mut own, 2050, 4050);
    assert_eq!(waits(&own, 4050), Some(WaitsFor::Twin), "which was heard no more");
    says(&mut own, 4060, TWIN, 3, 1000, Role::Joining, ME.0);
    assert_eq!((own.role(), waits(&own, 4060)), (Role::Starting, Some(WaitsFor::Arbiter)));

    // One that yields, and has heard its twin, and has not.
    let mut own = auto(Config::default());
    pass(&mut own, 0, 2000);
    says(&mut own, 2000, 3, 1, 1000, Role::Joining, 3);
    assert_eq!((waits(&own, 2000), said(&mut own, 2050).creator), (Some(WaitsFor::Primary), NodeId(3)));
    assert_eq!(waits(&own, 4000), Some(WaitsFor::Twin));
    // A machine with a guest ends that, and is waited for.
    says(&mut own, 4000, 3, 2, 1000, Role::Alone, 0);
    assert_eq!(waits(&own, 4000), Some(WaitsFor::Silence));

    // Neither does who was told what it is, nor who has a guest.
    for start in [Start::Primary, Start::Backup] {
        let own = Node::new(Time(0), start, arbitrated(), identity(1)).unwrap();
        assert_eq!((waits(&own, 0), own.wants_newest_term()), (None, false));
    }
    let mut own = auto(Config { alone_after: Some(Span::from_millis(2000)), ..Config::default() });
    assert!(!own.wants_newest_term(), "there is nobody to ask");
    pass(&mut own, 0, 2000);
    assert_eq!((own.role(), waits(&own, 2000)), (Role::Alone, None));
}

#[test]
fn whoever_has_a_guest_or_had_one_asks_for_no_newest_term() {
    let mut own = auto(Config { alone_after: Some(Span::from_millis(2000)), ..arbitrated() });
    assert!(own.wants_newest_term());
    own.terms_seen(Time(0), Term(0));
    assert!(!own.wants_newest_term(), "it is known");
    pass(&mut own, 0, 2000);
    own.arbiter_answered(Time(2_000_000), Term(1), Verdict::Granted);
    assert_eq!((own.role(), own.wants_newest_term()), (Role::Alone, false));
}

/// A promise counts that was made after the offer was heard, to the very heartbeat.
#[test]
fn a_promise_counts_that_follows_the_offer() {
    let offers = || {
        let mut own = auto(Config::default());
        pass(&mut own, 0, 2000);
        let before = said(&mut own, 2050).counter;
        says(&mut own, 2060, TWIN, 1, before, Role::Joining, 0);
        (own, before)
    };
    for (later, role) in [(0, Role::Joining), (1, Role::Alone)] {
        let (mut own, before) = offers();
        says(&mut own, 2070, TWIN, 2, before + later, Role::Joining, ME.0);
        assert_eq!(own.role(), role, "{later} behind the last heartbeat before the offer");
    }
}

/// What was said to a machine that had a guest is void when it has none any more.
#[test]
fn a_word_of_before_the_guest_was_lost_binds_nobody() {
    for (later, creator) in [(0, 0), (1, 3)] {
        let mut own = auto(Config { alone_after: Some(Span::from_millis(2000)), ..Config::default() });
        pass(&mut own, 0, 2000);
        let before = said(&mut own, 2050).counter;
        let newer = Heartbeat { term: Term(4), ..beat_of(TWIN, 1, Role::Alone) };
        own.heartbeat_received(Time(2_060_000), &newer.encode(&Protection::default()));
        assert_eq!(own.role(), Role::Joining);
        says(&mut own, 2070, 3, 1, before + later, Role::Joining, 3);
        assert_eq!(said(&mut own, 2080).creator, NodeId(creator));
    }
}

/// A machine with a guest was there a moment ago: whoever joins now may be the one that lost it.
#[test]
fn whoever_heard_of_a_guest_listens_anew() {
    let mut own = auto(Config::default());
    pass(&mut own, 0, 2000);
    says(&mut own, 2000, 3, 1, 1000, Role::Alone, 0);
    says(&mut own, 2100, TWIN, 1, 1000, Role::Joining, 0);
    assert_eq!(said(&mut own, 2150).creator, NodeId(0));
    pass(&mut own, 2200, 4000);
    says(&mut own, 4000, TWIN, 2, 1000, Role::Joining, 0);
    assert_eq!(said(&mut own, 4050).creator, ME);
}

/// The twin repeats its promise while the arbiter is asked: it is asked once.
#[test]
fn a_question_stands_while_the_promise_is_repeated() {
    let mut own = auto(arbitrated());
    own.terms_seen(Time(0), Term(7));
    pass(&mut own, 0, 2000);
    says(&mut own, 2000, TWIN, 1, 1000, Role::Joining, 0);
    says(&mut own, 2010, TWIN, 2, 1000, Role::Joining, ME.0);
    actions(&mut own);
    says(&mut own, 2020, TWIN, 3, 1000, Role::Joining, ME.0);
    assert_eq!((own.asks_for(), actions(&mut own)), (Some(Term(8)), vec![]));
}

/// Whoever has a guest, or is to start one by order, creates none, and says so whatever others say.
#[test]
fn whoever_has_a_guest_speaks_of_no_creation() {
    let mut live = auto(Config { alone_after: Some(Span::from_millis(2000)), ..Config::default() });
    pass(&mut live, 0, 2000);
    let starts = Node::new(Time(0), Start::Primary, arbitrated(), identity(ME.0)).unwrap();
    for mut own in [live, starts] {
        let role = own.role();
        says(&mut own, 2000, 3, 1, 1000, Role::Joining, 3);
        assert_eq!((said(&mut own, 2050).creator, own.role()), (NodeId(0), role));
    }
}

/// A heartbeat of a machine that is nobody's twin counts as such, and as no sign of life of a twin.
#[test]
fn strangers_of_the_pair_are_counted() {
    let mut own = Node::new(Time(0), Start::Backup, Config::default(), identity(ME.0)).unwrap();
    for counter in 1..=2 {
        says(&mut own, 100, TWIN, counter, 0, Role::Alone, 0);
        assert_eq!((own.stats().heartbeats_ignored, own.stats().heartbeats_received), (counter, 0));
    }
    let now = Time(100_000);
    let (mut primary, mut backup) = protected(now);
    let heard = primary.last_heard();
    beat(Time(200_000), &mut primary, &mut backup);
    let stranger = Heartbeat { heard: [identity(1).node; 4], ..beat_of(TWIN, 7, Role::Joining) };
    primary.heartbeat_received(Time(300_000), &stranger.encode(&Protection::default()));
    assert_eq!((primary.last_heard(), primary.stats().heartbeats_ignored), (heard, 1));
}

#[test]
fn what_people_read_has_words_of_its_own() {
    fn different(words: &[String]) {
        let set: std::collections::BTreeSet<_> = words.iter().collect();
        assert!(set.len() == words.len() && words.iter().all(|words| words.len() > 5), "{words:?}");
    }
    let waits = [WaitsFor::Twin, WaitsFor::Silence, WaitsFor::Word, WaitsFor::Primary, WaitsFor::Arbiter];
    different(&waits.map(|waits| waits.to_string()));
    different(&[AppendError::Full, AppendError::NotLogging, AppendError::BadData].map(|error| error.to_string()));
    different(&[NotLive::NotTakingOver, NotLive::NotDrained, NotLive::NotGranted].map(|why| why.to_string()));
    let text = || String::from("text");
    let losses = [
        LossReason::Silent,
        LossReason::Connection,
        LossReason::Protocol,
        LossReason::AcksStopped,
        LossReason::StandsStill,
        LossReason::TwinUnlinked,
        LossReason::GaveUp(text()),
        LossReason::Diverged(text()),
        LossReason::Left,
        LossReason::Dropped,
        LossReason::Refused(text()),
    ];
    different(&losses.map(|reason| reason.to_string()));
    let halts = [
        HaltReason::PoweredOff,
        HaltReason::Stopped,
        HaltReason::TermTaken(Term(3)),
        HaltReason::Superseded(Term(3)),
        HaltReason::Diverged(text()),
        HaltReason::GaveUp(text()),
        HaltReason::Refused(text()),
        HaltReason::OnlyFollows,
    ];
    different(&halts.map(|reason| reason.to_string()));
}

/// The number of the newest heartbeat that was heard goes back, or no promise could be told from an older one.
#[test]
fn a_heartbeat_says_what_it_answers() {
    let mut own = auto(Config::default());
    assert_eq!(said(&mut own, 0).answers, 0);
    for counter in [7, 9] {
        says(&mut own, 100 * counter, TWIN, counter, 0, Role::Joining, 0);
        let said = said(&mut own, 100 * counter + 50);
        assert_eq!((said.answers, said.heard[0]), (counter, NodeId(TWIN)));
    }
}
