use super::*;
use crate::types::{Position, Seq};
use proptest::prelude::*;

fn beat(role: Role, term: u64, session: u64, peer: u64) -> Heartbeat {
    Heartbeat {
        echo: 0,
        answers: 0,
        creator: NodeId(0),
        pair: 0,
        node: NodeId(1),
        peer: NodeId(peer),
        counter: 1,
        heard: [NodeId(0); crate::heartbeat::HEARD],
        term: Term(term),
        role,
        session: SessionId(session),
        linked: true,
        seq: Seq(0),
        position: Position(0),
        time: Time(0),
    }
}

proptest! {
    #[test]
    fn of_two_primaries_exactly_one_yields(a in (0u64..4, 0u64..4), b in (0u64..4, 0u64..4)) {
        let claim = |(term, node)| Claim { term: Term(term), node: NodeId(node), primary: true };
        let (x, y) = (must_yield(claim(a), claim(b)), must_yield(claim(b), claim(a)));
        if a.1 == b.1 {
            prop_assert!(!x && !y);
        } else {
            prop_assert!(x != y);
            prop_assert!(a.0 == b.0 || x == (a.0 < b.0));
        }
    }
}

#[test]
fn a_newer_reign_counts_whoever_tells_of_it() {
    let of = |term, node| Claim { term: Term(term), node: NodeId(node), primary: false };
    let ours = Claim { primary: true, ..of(2, 2) };
    assert!(must_yield(ours, of(3, 1)) && must_yield(ours, of(3, 3)));
    assert!(!must_yield(ours, of(2, 1)) && !must_yield(ours, of(1, 1)), "a backup of our own reign, or of an old one");
    assert!(!must_yield(ours, of(3, 2)), "ourselves");
    for role in [Role::Alone, Role::Transferring, Role::Protected, Role::Detaching] {
        assert_eq!(on_claim(role, ours, of(3, 1), true), OnClaim::Yield);
    }
    assert_eq!(on_claim(Role::HandingOver, ours, of(3, 1), true), OnClaim::HandedOver);
    assert_eq!(on_claim(Role::Backup, ours, of(3, 1), true), OnClaim::Ignore);
}

#[test]
fn only_a_node_that_runs_alone_takes_a_joiner() {
    use JoinVerdict::{Begin, Busy, NotPrimary, Outdated};
    let (one, two) = (Term(1), Term(2));
    assert_eq!(on_join(Role::Alone, two, one, LastWord::None), Begin);
    assert_eq!(on_join(Role::Alone, one, two, LastWord::None), Outdated);
    assert_eq!(on_join(Role::Detaching, one, one, LastWord::None), Busy);
    assert_eq!(on_join(Role::Detaching, one, one, LastWord::GaveUp), Begin);
    for role in [Role::Protected, Role::Transferring, Role::HandingOver] {
        assert_eq!(on_join(role, one, one, LastWord::GaveUp), Busy);
    }
    for role in [Role::Starting, Role::Joining, Role::Loading, Role::Backup, Role::Draining, Role::Halted] {
        assert_eq!(on_join(role, one, one, LastWord::None), NotPrimary);
    }
}

#[test]
fn a_backup_reads_its_standing() {
    let of = |role, term, session, peer| standing(&beat(role, term, session, peer), NodeId(2), Term(1), SessionId(5));
    assert_eq!(of(Role::Protected, 1, 5, 2), Standing::Wanted);
    assert_eq!(of(Role::Transferring, 1, 5, 2), Standing::Wanted);
    assert_eq!(of(Role::HandingOver, 1, 5, 2), Standing::Wanted);
    assert_eq!(of(Role::Detaching, 1, 5, 2), Standing::Dropped);
    assert_eq!(of(Role::Alone, 1, 5, 2), Standing::Dropped);
    assert_eq!(of(Role::Protected, 1, 6, 3), Standing::Dropped);
    assert_eq!(of(Role::Alone, 1, 4, 2), Standing::Unknown);
    assert_eq!(of(Role::Alone, 2, 1, 2), Standing::Dropped);
    assert_eq!(of(Role::Joining, 1, 5, 2), Standing::Unknown);
    for role in [Role::Joining, Role::Loading, Role::Backup, Role::Draining] {
        assert_eq!(of(role, 2, 9, 3), Standing::Dropped, "it handed over to another machine");
    }
    assert_eq!(of(Role::Halted, 2, 9, 3), Standing::Unknown);
}

#[test]
fn a_joiner_gave_up_when_its_stream_is_gone() {
    let of = |role, session, peer, linked| {
        gave_up(&Heartbeat { linked, ..beat(role, 1, session, peer) }, NodeId(2), SessionId(5))
    };
    for linked in [true, false] {
        assert!(of(Role::Joining, 5, 2, linked), "out of our session");
        for role in [Role::Loading, Role::Backup, Role::Draining] {
            assert!(!of(role, 5, 2, linked));
            assert!(of(role, 4, 2, linked) && of(role, 5, 3, linked), "in another session");
        }
        assert!(!of(Role::Alone, 4, 3, linked));
    }
    for (session, peer) in [(0, 0), (0, 2), (4, 2), (5, 3)] {
        assert!(!of(Role::Joining, session, peer, true), "may not have read yet that our session began");
        assert!(of(Role::Joining, session, peer, false));
    }
}

fn view(role: Role) -> BackupView {
    BackupView {
        role,
        primary_silent: true,
        primary_left: false,
        powered_off: false,
        drained: true,
        term_granted: false,
    }
}

#[test]
fn going_live_needs_every_condition() {
    let good = BackupView { term_granted: true, ..view(Role::Draining) };
    assert!(may_go_live(good));
    // The term was won for silence; that the primary is heard again comes too late.
    assert!(may_go_live(BackupView { primary_silent: false, ..good }));
    assert!(!may_go_live(BackupView { powered_off: true, ..good }));
    assert!(!may_go_live(BackupView { drained: false, ..good }));
    assert!(!may_go_live(BackupView { term_granted: false, ..good }));
    assert!(!may_go_live(BackupView { role: Role::Loading, ..good }));
}

#[test]
fn a_backup_drains_before_it_asks() {
    let backup = view(Role::Backup);
    assert!(may_drain(backup) && !may_bid(backup));
    assert!(may_drain(BackupView { primary_silent: false, primary_left: true, ..backup }));
    assert!(!may_drain(BackupView { primary_silent: false, ..backup }));
    assert!(may_drain(BackupView { primary_silent: false, term_granted: true, ..backup }));
    assert!(!may_drain(BackupView { powered_off: true, ..backup }));
    assert!(!may_drain(view(Role::Loading)));
    let draining = view(Role::Draining);
    assert!(may_bid(draining));
    assert!(may_bid(BackupView { primary_silent: false, primary_left: true, ..draining }));
    for not_yet in [
        BackupView { primary_silent: false, ..draining },
        BackupView { drained: false, ..draining },
        BackupView { powered_off: true, ..draining },
        BackupView { term_granted: true, ..draining },
    ] {
        assert!(!may_bid(not_yet));
    }
}

#[test]
fn a_takeover_is_called_off_until_the_term_is_won() {
    let draining = view(Role::Draining);
    assert!(may_call_off(draining));
    assert!(!may_call_off(BackupView { primary_left: true, ..draining }));
    assert!(!may_call_off(BackupView { term_granted: true, ..draining }));
    assert!(!may_call_off(view(Role::Backup)));
}

#[test]
fn a_backup_gives_up_only_while_it_has_not_asked() {
    use OnStanding::{Abandon, Contend, Follow, Ignore};
    let of = |standing, bid, theirs| on_standing(standing, is_bound(bid, None), Term(2), Term(theirs));
    for bid in [Bid::None, Bid::Asked, Bid::Won] {
        assert_eq!(of(Standing::Wanted, bid, 1), Follow);
        assert_eq!(of(Standing::Unknown, bid, 1), Ignore);
        // Whoever reigns in the term itself has nothing to fear from our question.
        assert_eq!(of(Standing::Dropped, bid, 2), Abandon);
    }
    assert_eq!(of(Standing::Dropped, Bid::None, 1), Abandon);
    assert_eq!(of(Standing::Dropped, Bid::Asked, 1), Contend);
    assert_eq!(of(Standing::Dropped, Bid::Won, 1), Contend);
    assert!(is_bound(Bid::None, Some(Term(3))), "the term before may be ours, and the primary may want it");
}

#[test]
fn a_term_is_burnt_when_both_agree() {
    assert!(may_propose(Role::Backup, Bid::Asked, Term(2), None, true));
    assert!(may_propose(Role::Backup, Bid::Asked, Term(3), Some(Term(3)), true));
    for (role, bid, proposed, linked) in [
        (Role::Draining, Bid::Asked, None, true),
        (Role::Backup, Bid::None, None, true),
        (Role::Backup, Bid::Won, None, true),
        (Role::Backup, Bid::Asked, Some(Term(3)), true),
        (Role::Backup, Bid::Asked, None, false),
    ] {
        assert!(!may_propose(role, bid, Term(2), proposed, linked), "{role:?} {bid:?} {proposed:?} {linked}");
    }
    for role in [Role::Protected, Role::HandingOver] {
        assert!(agrees(role, Term(2), Term(3)) && !agrees(role, Term(2), Term(2)) && !agrees(role, Term(2), Term(4)));
    }
    assert!(!agrees(Role::Detaching, Term(2), Term(3)), "it may have bid for its own already");
    // Until it has agreed, the primary may win either.
    assert!(suffices(Term(2), None) && !suffices(Term(2), Some(Term(3))) && suffices(Term(3), Some(Term(3))));
}

#[test]
fn a_primary_waits_for_a_complete_backup_or_asks() {
    let lost = LostBackup { may_be_complete: true, word: LastWord::None, silent: false, term_granted: false };
    assert!(!may_run_alone(lost) && !may_bid_alone(lost, true));
    for free in [
        LostBackup { may_be_complete: false, ..lost },
        LostBackup { word: LastWord::GaveUp, ..lost },
        LostBackup { term_granted: true, ..lost },
    ] {
        assert!(may_run_alone(free));
        assert!(!may_bid_alone(LostBackup { silent: true, ..free }, true), "nothing to ask for");
    }
    let silent = LostBackup { silent: true, ..lost };
    assert!(!may_run_alone(silent) && may_bid_alone(silent, true) && may_bid_alone(silent, false));
    let contends = LostBackup { word: LastWord::Contends, ..lost };
    assert!(may_bid_alone(contends, true) && !may_bid_alone(contends, false));
}

#[test]
fn answers_concern_whoever_waits_for_them() {
    use OnAnswer::{FailStop, RunAlone, Stale, Start, TakeOver};
    let of = |role, verdict| on_answer(role, Bid::Asked, Term(2), Term(2), verdict);
    assert_eq!(of(Role::Starting, Verdict::Granted), Start);
    assert_eq!(of(Role::Detaching, Verdict::Granted), RunAlone);
    assert_eq!(of(Role::Draining, Verdict::Granted), TakeOver);
    assert_eq!(of(Role::Backup, Verdict::Granted), TakeOver);
    for role in [Role::Starting, Role::Detaching, Role::Draining, Role::Backup] {
        assert_eq!(of(role, Verdict::Taken), FailStop);
        for verdict in [Verdict::Granted, Verdict::Taken] {
            assert_eq!(on_answer(role, Bid::None, Term(2), Term(2), verdict), Stale);
            assert_eq!(on_answer(role, Bid::Won, Term(2), Term(2), verdict), Stale);
            assert_eq!(on_answer(role, Bid::Asked, Term(3), Term(2), verdict), Stale);
        }
    }
}

#[test]
fn a_machine_that_hands_over_becomes_the_backup_of_its_twin_only() {
    let claim = |term, node| Claim { term: Term(term), node: NodeId(node), primary: true };
    let of = |role, term, twin| on_claim(role, claim(1, 1), claim(term, 2), twin);
    assert_eq!(of(Role::HandingOver, 2, true), OnClaim::HandedOver);
    assert_eq!(of(Role::HandingOver, 2, false), OnClaim::Yield);
    assert_eq!(of(Role::Protected, 2, true), OnClaim::Yield);
    assert_eq!(of(Role::Joining, 2, true), OnClaim::Ignore);
    assert_eq!(of(Role::HandingOver, 1, true), OnClaim::Ignore);
}

#[test]
fn output_is_held_as_soon_as_a_backup_may_be_complete() {
    assert!(!holds_output(Role::Alone, false) && !holds_output(Role::Transferring, false));
    assert!(holds_output(Role::Transferring, true) && is_logging(Role::Transferring, true));
    for role in [Role::Protected, Role::Detaching] {
        assert!(holds_output(role, true) && is_logging(role, true));
    }
    assert!(holds_output(Role::HandingOver, true) && !is_logging(Role::HandingOver, true));
    assert!(may_release(Seq(3), Seq(3)) && !may_release(Seq(4), Seq(3)));
}

#[test]
fn a_term_that_may_have_been_asked_for_is_burnt() {
    assert_eq!(after_session(Term(2), true), Term(3));
    assert_eq!(after_session(Term(2), false), Term(2));
    assert!(may_follow(Term(1), Term(1), Term(2)) && !may_follow(Term(2), Term(1), Term(2)));
    assert!(!may_follow(Term(0), Term(1), Term(1)), "a session bids for a newer term than it is in");
}

#[test]
fn a_look_is_never_in_the_way_of_a_bid() {
    for role in Role::ALL {
        assert!(!may_look_at_arbiter(role, Bid::Asked) && !may_look_at_arbiter(role, Bid::Won), "{role:?}");
    }
    // Only who may need a term soon; not who waits for one, stands still, or has no guest.
    let looking = Role::ALL.into_iter().filter(|&role| may_look_at_arbiter(role, Bid::None));
    let roles = [Role::Alone, Role::Transferring, Role::Protected, Role::Joining, Role::Loading, Role::Backup];
    assert!(looking.eq(roles));
}

#[test]
fn what_was_acked_leaves_while_no_successor_can_be_live() {
    let span = Span::from_millis(800);
    let may = |role, state_sent, heard, now| may_send(role, state_sent, heard, Time(now), span);
    for heard in [None, Some(Time(5_000))] {
        assert!(may(Role::Alone, false, heard, 9_999_999));
        assert!(may(Role::Transferring, false, heard, 9_999_999), "nobody else has the state");
        for role in [Role::Detaching, Role::HandingOver, Role::Backup, Role::Halted] {
            assert!(!may(role, true, heard, 5_001), "{role:?}");
        }
    }
    for role in [Role::Transferring, Role::Protected] {
        assert!(!may(role, true, None, 5_001));
        assert!(may(role, true, Some(Time(5_000)), 704_999));
        assert!(!may(role, true, Some(Time(5_000)), 705_000), "the twin takes over 100 ms later");
    }
    let follows = |beat: Heartbeat| is_followed(&beat, NodeId(2), SessionId(5));
    assert!(follows(Heartbeat { linked: true, ..beat(Role::Backup, 1, 5, 2) }));
    assert!(!follows(Heartbeat { linked: false, ..beat(Role::Backup, 1, 5, 2) }));
    assert!(!follows(Heartbeat { linked: true, ..beat(Role::Draining, 1, 5, 2) }));
    assert!(!follows(Heartbeat { linked: true, ..beat(Role::Backup, 1, 4, 2) }));
    assert!(!follows(Heartbeat { linked: true, ..beat(Role::Backup, 1, 5, 3) }));
}

/// A reign that is over and whose machine does not know it yet.
#[test]
fn only_an_older_primary_is_outdated() {
    let of = |term, node, primary| Claim { term: Term(term), node: NodeId(node), primary };
    let ours = of(3, 1, true);
    assert!(is_outdated(Role::Protected, ours, of(2, 2, true)) && is_outdated(Role::Alone, ours, of(1, 2, true)));
    for theirs in [of(3, 2, true), of(4, 2, true), of(2, 1, true), of(2, 2, false)] {
        assert!(!is_outdated(Role::Protected, ours, theirs), "{theirs:?}");
    }
    assert!(!is_outdated(Role::Backup, ours, of(2, 2, true)), "it is not our reign");
}

#[test]
fn only_who_handed_over_believes_that_it_was_taken_over() {
    let may = |role, term, acked| may_have_taken_over(role, Term(3), Term(term), acked);
    assert!(may(Role::HandingOver, 3, true));
    assert!(!may(Role::Protected, 3, true) && !may(Role::HandingOver, 2, true) && !may(Role::HandingOver, 4, true));
    assert!(!may(Role::HandingOver, 3, false), "the twin has not acked that it shall");
}

#[test]
fn only_a_backup_acks() {
    assert!(may_ack(Role::Backup));
    for role in [Role::Alone, Role::Protected, Role::Transferring, Role::Joining, Role::Loading, Role::Halted] {
        assert!(!may_ack(role), "{role:?}");
    }
}

#[test]
fn a_backup_of_ours_contends_when_it_drains() {
    let contends = |role, session, peer| contends(&beat(role, 1, session, peer), NodeId(2), SessionId(5));
    assert!(contends(Role::Draining, 5, 2));
    assert!(!contends(Role::Backup, 5, 2) && !contends(Role::Draining, 4, 2) && !contends(Role::Draining, 5, 3));
}

/// A claim of the twin to which we hand over is one to yield to if it is not of a newer term.
#[test]
fn a_hand_over_begins_a_newer_term() {
    let of = |term, node| Claim { term: Term(term), node: NodeId(node), primary: true };
    let claim = |term| on_claim(Role::HandingOver, of(3, 2), of(term, 1), true);
    assert_eq!([claim(2), claim(3), claim(4)], [OnClaim::Ignore, OnClaim::Yield, OnClaim::HandedOver]);
}

#[test]
fn a_backup_is_wanted_in_its_own_term_and_session_and_by_name() {
    let standing =
        |term, session, peer| standing(&beat(Role::Protected, term, session, peer), NodeId(2), Term(3), SessionId(5));
    assert_eq!(standing(3, 5, 2), Standing::Wanted);
    for (term, session, peer) in [(4, 5, 2), (3, 6, 2), (3, 5, 4), (4, 5, 4), (4, 6, 2)] {
        assert_eq!(standing(term, session, peer), Standing::Dropped, "{term} {session} {peer}");
    }
}

/// What becomes of each stance of machine 5 by each word of another machine; see [`creation`].
#[test]
fn every_word_has_its_answer() {
    use Stance::{Entitled, Listens, Offers, YieldsTo};
    const NOBODY: u64 = 0;
    let on = |stance, may_offer, node, role, creator, current| {
        on_word(NodeId(5), stance, may_offer, Word { node: NodeId(node), role, creator: NodeId(creator), current })
    };
    let (three, nine) = (YieldsTo(NodeId(3)), YieldsTo(NodeId(9)));
    for stance in [Listens, Offers, nine, Entitled] {
        for current in [true, false] {
            assert_eq!(on(stance, true, 9, Role::Backup, NOBODY, current), Listens, "a machine with a guest");
        }
        for (creator, role) in [(NOBODY, Role::Joining), (5, Role::Joining), (9, Role::Joining), (9, Role::Starting)] {
            assert_eq!(on(stance, true, 9, role, creator, false), stance, "what was said before");
        }
    }
    let joins = |stance, may_offer, node, creator| on(stance, may_offer, node, Role::Joining, creator, true);
    // The promise binds as long as it is wanted, and nobody else frees us of it.
    assert_eq!(joins(nine, true, 9, 9), nine);
    assert_eq!(on(nine, true, 9, Role::Starting, 9, true), nine, "it creates the guest: what we promised");
    assert_eq!([joins(nine, true, 9, NOBODY), joins(nine, true, 9, 5), joins(nine, true, 3, 3)], [Listens; 3]);
    for stance in [Listens, Offers, Entitled] {
        assert_eq!(on(stance, true, 9, Role::Starting, 9, true), Listens, "somebody did not ask us");
    }
    // An entitlement and an offer.
    assert_eq!([joins(Entitled, true, 9, NOBODY), joins(Entitled, true, 3, 3)], [Entitled; 2]);
    assert_eq!([joins(Offers, true, 9, 5), joins(Offers, true, 3, 5)], [Entitled; 2]);
    assert_eq!([joins(Listens, true, 9, 5), joins(Offers, true, 9, NOBODY)], [Offers; 2]);
    // Both want to: the one with the lower id, unless it may not.
    assert_eq!([joins(Offers, true, 3, 3), joins(Listens, true, 3, 3)], [three; 2]);
    assert_eq!([joins(Offers, true, 9, 9), joins(Listens, true, 9, 9)], [Offers; 2]);
    assert_eq!([joins(Listens, false, 9, 9), joins(Listens, false, 3, 3)], [nine, three]);
    assert_eq!([joins(Listens, true, 5, 5), joins(Listens, false, 9, NOBODY)], [Offers, Listens]);
}
