//! Bad histories, told to the one who sees everything.

use crate::arbiter::Arbiter;
use crate::check::{Audit, Leave, LogId, View, Violation};
use crate::client::Clients;
use crate::frame::{NO_CLIENT, Reply};
use crate::rng::Rng;
use pollux_driver::{DiskEnd, DiskStatus};
use pollux_ft::{NodeId, Position, Role, Seq, SessionId, Term};

const PRIMARY: NodeId = NodeId(1);
const BACKUP: NodeId = NodeId(2);
/// The log of the first session, whose state stands at position 0 behind entry 0.
const LOG: LogId = (PRIMARY, SessionId(1));

/// What the audit says in the end of a history, which begins with a primary that won term 1 and sent its state.
fn judge(history: impl FnOnce(&mut Audit, &mut Arbiter)) -> Option<Violation> {
    let (mut audit, mut arbiter) = (Audit::new(true), Arbiter::new(Rng::new(1, 1)));
    arbiter.claim(Term(1), PRIMARY);
    audit.state_sent(LOG, Seq(0), Position(0), &[]);
    assert_eq!(audit.violation(), None);
    history(&mut audit, &mut arbiter);
    audit.violation().cloned()
}

fn view(node: NodeId, role: Role, term: u64, gate_open: bool) -> Option<View> {
    let peer = Some(if node == PRIMARY { BACKUP } else { PRIMARY });
    Some(View { node, role, term: Term(term), session: SessionId(1), peer, gate_open })
}

fn frame(index: u64, time: u64) -> Vec<u8> {
    Reply { index, chain: 7, time, client: NO_CLIENT, number: 0, value: 0 }.encode()
}

/// One entry at position 10, behind which the guest's digest is 5.
fn log_entry(audit: &mut Audit) {
    audit.appended(LOG, Seq(1), Position(10));
    audit.logged(LOG, Seq(1), 5, false);
    audit.holds(LOG, Seq(1));
}

pub(super) fn disk() -> Vec<Option<Violation>> {
    let tell = |told, own, role| {
        move |audit: &mut Audit, _: &mut Arbiter| audit.disk_told(0, &DiskEnd { id: 7, status: told }, own, role)
    };
    let (done, failed) = (DiskStatus::Done, DiskStatus::Failed);
    for (told, own, role) in
        [(done, done, Role::Protected), (failed, done, Role::Backup), (failed, failed, Role::Transferring)]
    {
        assert_eq!(judge(tell(told, Some(own), role)), None);
    }
    vec![
        judge(tell(done, None, Role::Backup)),
        judge(tell(failed, None, Role::Backup)),
        judge(tell(done, Some(failed), Role::Backup)),
        judge(tell(failed, Some(failed), Role::Protected)),
    ]
}

pub(super) fn output_rule() -> Vec<Option<Violation>> {
    let early = |audit: &mut Audit, arbiter: &mut Arbiter| {
        audit.holds(LOG, Seq(1));
        audit.leaves(0, &frame(0, 0), Leave::Covered(LOG, Seq(1)), arbiter);
        assert_eq!(audit.violation(), None);
        audit.leaves(0, &frame(1, 0), Leave::Covered(LOG, Seq(2)), arbiter);
    };
    let unsealed = |audit: &mut Audit, arbiter: &mut Arbiter| audit.leaves(0, &frame(0, 0), Leave::Unsealed, arbiter);
    vec![judge(early), judge(unsealed)]
}

pub(super) fn alone_rule() -> Vec<Option<Violation>> {
    let history = |audit: &mut Audit, arbiter: &mut Arbiter| {
        audit.look(0, view(PRIMARY, Role::Alone, 1, true), arbiter);
        audit.leaves(0, &frame(0, 0), Leave::Alone, arbiter);
        audit.look(1, view(BACKUP, Role::Draining, 1, false), arbiter);
        assert_eq!(audit.violation(), None);
        audit.leaves(0, &frame(1, 0), Leave::Alone, arbiter);
    };
    vec![judge(history)]
}

pub(super) fn one_live() -> Vec<Option<Violation>> {
    let history = |audit: &mut Audit, arbiter: &mut Arbiter| {
        arbiter.claim(Term(2), BACKUP);
        audit.look(0, view(PRIMARY, Role::Alone, 1, true), arbiter);
        assert_eq!(audit.violation(), None);
        audit.look(1, view(BACKUP, Role::Alone, 2, true), arbiter);
    };
    vec![judge(history)]
}

pub(super) fn successor() -> Vec<Option<Violation>> {
    let history = |role: Role, term: u64| {
        move |audit: &mut Audit, arbiter: &mut Arbiter| {
            arbiter.claim(Term(2), BACKUP);
            audit.look(0, view(PRIMARY, Role::Protected, 1, false), arbiter);
            audit.look(1, view(BACKUP, role, term, false), arbiter);
            audit.holds(LOG, Seq(1));
            audit.leaves(0, &frame(0, 0), Leave::Covered(LOG, Seq(1)), arbiter);
        }
    };
    assert_eq!(judge(history(Role::Draining, 1)), None);
    vec![judge(history(Role::Alone, 2)), judge(history(Role::Protected, 2))]
}

pub(super) fn one_life() -> Vec<Option<Violation>> {
    let history = |role: Role| {
        move |audit: &mut Audit, arbiter: &mut Arbiter| {
            audit.look(0, view(PRIMARY, role, 1, false), arbiter);
            audit.creates(1);
        }
    };
    assert_eq!(judge(history(Role::Joining)), None);
    vec![judge(history(Role::Protected)), judge(history(Role::Draining))]
}

pub(super) fn one_term_one_node() -> Vec<Option<Violation>> {
    let another = |audit: &mut Audit, arbiter: &mut Arbiter| {
        audit.look(0, view(PRIMARY, Role::Alone, 1, true), arbiter);
        audit.look(0, None, arbiter);
        assert_eq!(audit.violation(), None);
        audit.look(1, view(BACKUP, Role::Alone, 1, true), arbiter);
    };
    let unasked = |audit: &mut Audit, arbiter: &mut Arbiter| audit.look(1, view(BACKUP, Role::Alone, 2, true), arbiter);
    vec![judge(another), judge(unasked)]
}

pub(super) fn nothing_lost() -> Vec<Option<Violation>> {
    let left_out = |audit: &mut Audit, arbiter: &mut Arbiter| audit.leaves(0, &frame(1, 0), Leave::Before, arbiter);
    let successor = |history: &'static [u64]| {
        move |audit: &mut Audit, arbiter: &mut Arbiter| {
            audit.leaves(0, &frame(0, 0), Leave::Before, arbiter);
            assert_eq!(audit.violation(), None);
            audit.goes_live(BACKUP, LOG, Seq(0), Position(0), history);
        }
    };
    vec![judge(left_out), judge(successor(&[])), judge(successor(&[1]))]
}

pub(super) fn duplicates() -> Vec<Option<Violation>> {
    let again = |retained: usize, times: [u64; 2]| {
        move |audit: &mut Audit, arbiter: &mut Arbiter| {
            audit.leaves(0, &frame(0, times[0]), Leave::Before, arbiter);
            audit.takes_over_output(1, retained);
            assert_eq!(audit.violation(), None);
            audit.leaves(1, &frame(0, times[1]), Leave::Before, arbiter);
        }
    };
    assert_eq!(judge(again(1, [3, 3])), None);
    vec![judge(again(0, [3, 3])), judge(again(1, [3, 4]))]
}

pub(super) fn guest_time() -> Vec<Option<Violation>> {
    let times = |times: [u64; 2]| {
        move |audit: &mut Audit, arbiter: &mut Arbiter| {
            audit.leaves(0, &frame(0, times[0]), Leave::Before, arbiter);
            audit.leaves(0, &frame(1, times[1]), Leave::Before, arbiter);
        }
    };
    assert_eq!(judge(times([5, 5])), None);
    vec![judge(times([5, 4]))]
}

/// More of them are in the client's own tests.
pub(super) fn client_history() -> Vec<Option<Violation>> {
    let unasked = |audit: &mut Audit, _: &mut Arbiter| {
        let mut clients = Clients::new(1, 0, Rng::new(1, 1));
        clients.timer(0, 0, 0);
        let reply = Reply { index: 0, chain: 0, time: 0, client: 0, number: 2, value: 1 };
        clients.receive(1, 0, &reply, audit);
    };
    vec![judge(unasked)]
}

pub(super) fn replicas_equal() -> Vec<Option<Violation>> {
    let applied = |seq: u64, position: u64, digest: u64| {
        move |audit: &mut Audit, _: &mut Arbiter| {
            log_entry(audit);
            audit.applied(LOG, Seq(seq), Position(position), digest);
        }
    };
    assert_eq!(judge(applied(1, 10, 5)), None);
    let gap = |audit: &mut Audit, _: &mut Arbiter| audit.appended(LOG, Seq(2), Position(10));
    let foreign = |audit: &mut Audit, arbiter: &mut Arbiter| audit.leaves(0, &[1; 60], Leave::Before, arbiter);
    vec![judge(applied(1, 10, 6)), judge(applied(1, 11, 5)), judge(applied(2, 10, 5)), judge(gap), judge(foreign)]
}

pub(super) fn drained() -> Vec<Option<Violation>> {
    let live = |applies: bool, position: u64| {
        move |audit: &mut Audit, _: &mut Arbiter| {
            log_entry(audit);
            if applies {
                audit.applied(LOG, Seq(1), Position(10), 5);
            }
            audit.goes_live(BACKUP, LOG, Seq(1), Position(position), &[]);
        }
    };
    assert_eq!(judge(live(true, 10)), None);
    vec![judge(live(false, 10)), judge(live(true, 9))]
}

pub(super) fn horizon() -> Vec<Option<Violation>> {
    let runs = |held: u64, position: u64| {
        move |audit: &mut Audit, _: &mut Arbiter| {
            log_entry(audit);
            audit.follows(LOG, Seq(held), Position(position));
        }
    };
    assert_eq!(judge(runs(1, 10)), None);
    vec![judge(runs(1, 11)), judge(runs(0, 10)), judge(runs(2, 10))]
}

pub(super) fn lag() -> Vec<Option<Violation>> {
    let runs = |position: u64| {
        move |audit: &mut Audit, _: &mut Arbiter| {
            log_entry(audit);
            audit.follows(LOG, Seq(1), Position(10));
            audit.runs_ahead(LOG, Position(position), 100);
        }
    };
    assert_eq!(judge(runs(110)), None);
    vec![judge(runs(161))]
}

/// That one asks although its primary is heard is shown in worlds.
pub(super) fn needed_takeover() -> Vec<Option<Violation>> {
    let live = |silence: bool, role: Role| {
        move |audit: &mut Audit, arbiter: &mut Arbiter| {
            audit.look(0, view(PRIMARY, role, 1, false), arbiter);
            audit.look(1, view(BACKUP, Role::Draining, 1, false), arbiter);
            audit.check_need(1, silence);
        }
    };
    assert_eq!(judge(live(true, Role::Protected)), None);
    assert_eq!(judge(live(false, Role::HandingOver)), None);
    vec![judge(live(false, Role::Protected))]
}

pub(super) fn power_off() -> Vec<Option<Violation>> {
    let after = |audit: &mut Audit, _: &mut Arbiter| {
        audit.powered_off();
        audit.goes_live(BACKUP, LOG, Seq(0), Position(0), &[]);
    };
    let logged = |audit: &mut Audit, _: &mut Arbiter| {
        audit.appended(LOG, Seq(1), Position(10));
        audit.logged(LOG, Seq(1), 5, true);
        audit.applied(LOG, Seq(1), Position(10), 5);
        audit.goes_live(BACKUP, LOG, Seq(1), Position(10), &[]);
    };
    vec![judge(after), judge(logged)]
}
