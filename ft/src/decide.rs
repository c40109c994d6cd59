//! The rules of the protocol as pure functions over small types.
//!
//! [`crate::node::Node`] asks them; a simulator or a model check can ask the very same ones. Nothing here has state.

use crate::heartbeat::Heartbeat;
use crate::types::{NodeId, Role, SessionId, Span, Term, Time};

/// Who claims to run the guest, and since which term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The claimed term.
    pub term: Term,
    /// Who claims it.
    pub node: NodeId,
}

/// Whether a primary must halt because it heard of another one.
///
/// The newer term wins. Two machines started as primaries by mistake share a term: then the higher node id yields.
#[must_use]
pub fn must_yield(ours: Claim, theirs: Claim) -> bool {
    theirs.node != ours.node && (theirs.term, ours.node) > (ours.term, theirs.node)
}

/// What a primary answers to a machine that wants to join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JoinVerdict {
    /// Begin the state transfer.
    Begin,
    /// The old backup may still think that it is one; try again soon.
    Busy,
    /// This node runs no guest.
    NotPrimary,
    /// The joiner belonged to a newer reign: our guest is out of date, halt.
    Outdated,
}

/// Decides about a Hello from a machine whose identity has been checked.
///
/// `gave_up` says that the joiner is the old backup itself, which proves that it is one no more.
#[must_use]
pub fn on_join(role: Role, ours: Term, theirs: Term, gave_up: bool) -> JoinVerdict {
    match role {
        Role::Alone | Role::Detaching if theirs > ours => JoinVerdict::Outdated,
        Role::Alone => JoinVerdict::Begin,
        Role::Detaching if gave_up => JoinVerdict::Begin,
        Role::Detaching | Role::Transferring | Role::Protected => JoinVerdict::Busy,
        _ => JoinVerdict::NotPrimary,
    }
}

/// Whether the twin has been silent for so long that it is taken for dead.
#[must_use]
pub fn is_silent(now: Time, last_heard: Time, suspect_after: Span) -> bool {
    now.since(last_heard) >= suspect_after
}

/// Whether we have been stopped ourselves, so that silence says nothing about the twin.
///
/// A node is ticked at every heartbeat interval at least; a hole of half the time to suspicion is not the twin's doing.
#[must_use]
pub fn was_stopped(now: Time, last_tick: Time, suspect_after: Span) -> bool {
    now.since(last_tick) > Span(suspect_after.0 / 2)
}

/// What a primary knows of the backup that it lost touch with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LostBackup {
    /// The backup got the complete state, or may have got it.
    pub may_be_complete: bool,
    /// The backup itself said that it no longer is one.
    pub gave_up: bool,
    /// Nothing was heard of it for the time to suspicion.
    pub silent: bool,
}

/// Whether a primary may open its gate and go on without a backup.
///
/// While a complete backup is alive and has not given up, it may take over at any time with what it holds: output
/// that it does not hold must stay inside. The arbiter is to be asked here.
#[must_use]
pub fn may_run_alone(lost: LostBackup) -> bool {
    !lost.may_be_complete || lost.gave_up || lost.silent
}

/// Whether a heartbeat proves that the twin is no longer the backup of session `session` of primary `me`.
#[must_use]
pub fn gave_up(beat: &Heartbeat, me: NodeId, session: SessionId) -> bool {
    beat.role == Role::Joining && beat.peer == me && beat.session == session
}

/// What a primary's heartbeat means to its backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// We are its backup.
    Wanted,
    /// It let go of us: its output no longer waits for our acks, or soon will not.
    Dropped,
    /// The heartbeat does not say: it is older than our session, or does not come from a primary.
    Unknown,
}

/// How a backup in session `session` reads a heartbeat of its primary.
#[must_use]
pub fn standing(beat: &Heartbeat, me: NodeId, term: Term, session: SessionId) -> Standing {
    if !beat.role.is_primary() || beat.term < term || (beat.term == term && beat.session < session) {
        return Standing::Unknown;
    }
    let same = beat.term == term && beat.session == session && beat.peer == me;
    match beat.role {
        Role::Transferring | Role::Protected if same => Standing::Wanted,
        _ => Standing::Dropped,
    }
}

/// What a backup knows when it thinks about taking over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BackupView {
    /// What it is.
    pub role: Role,
    /// Nothing was heard of the primary for the time to suspicion.
    pub primary_silent: bool,
    /// The primary said in order that it stopped the guest for good on its machine.
    pub primary_left: bool,
    /// The log holds the guest's own power-off: there is nothing to take over.
    pub powered_off: bool,
    /// Every entry held has been applied and the guest stands at the newest position it may run to.
    pub drained: bool,
    /// The right to the next term was obtained.
    pub term_granted: bool,
}

/// Whether the backup starts to drain its log in order to go live.
#[must_use]
pub fn may_drain(view: BackupView) -> bool {
    view.role == Role::Backup && (view.primary_silent || view.primary_left) && !view.powered_off
}

/// Whether the backup may go live now.
#[must_use]
pub fn may_go_live(view: BackupView) -> bool {
    view.role == Role::Draining
        && (view.primary_silent || view.primary_left)
        && !view.powered_off
        && view.drained
        && view.term_granted
}

/// The term of the next reign.
#[must_use]
pub fn next_term(term: Term) -> Term {
    Term(term.0.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Position, Seq};
    use proptest::prelude::*;

    fn beat(role: Role, term: u64, session: u64, peer: u64) -> Heartbeat {
        Heartbeat {
            pair: 0,
            node: NodeId(1),
            peer: NodeId(peer),
            counter: 1,
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
            let claim = |(term, node)| Claim { term: Term(term), node: NodeId(node) };
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
    fn only_a_node_that_runs_alone_takes_a_joiner() {
        use JoinVerdict::{Begin, Busy, NotPrimary, Outdated};
        let (one, two) = (Term(1), Term(2));
        assert_eq!(on_join(Role::Alone, two, one, false), Begin);
        assert_eq!(on_join(Role::Alone, one, two, false), Outdated);
        assert_eq!(on_join(Role::Detaching, one, one, false), Busy);
        assert_eq!(on_join(Role::Detaching, one, one, true), Begin);
        assert_eq!(on_join(Role::Protected, one, one, false), Busy);
        for role in [Role::Joining, Role::Loading, Role::Backup, Role::Draining, Role::Halted] {
            assert_eq!(on_join(role, one, one, false), NotPrimary);
        }
    }

    #[test]
    fn a_backup_reads_its_standing() {
        let of =
            |role, term, session, peer| standing(&beat(role, term, session, peer), NodeId(2), Term(1), SessionId(5));
        assert_eq!(of(Role::Protected, 1, 5, 2), Standing::Wanted);
        assert_eq!(of(Role::Transferring, 1, 5, 2), Standing::Wanted);
        assert_eq!(of(Role::Detaching, 1, 5, 2), Standing::Dropped);
        assert_eq!(of(Role::Alone, 1, 5, 2), Standing::Dropped);
        assert_eq!(of(Role::Protected, 1, 6, 3), Standing::Dropped);
        assert_eq!(of(Role::Alone, 1, 4, 2), Standing::Unknown);
        assert_eq!(of(Role::Alone, 2, 1, 2), Standing::Dropped);
        assert_eq!(of(Role::Joining, 1, 5, 2), Standing::Unknown);
    }

    #[test]
    fn going_live_needs_every_condition() {
        let good = BackupView {
            role: Role::Draining,
            primary_silent: true,
            primary_left: false,
            powered_off: false,
            drained: true,
            term_granted: true,
        };
        assert!(may_go_live(good));
        assert!(may_go_live(BackupView { primary_silent: false, primary_left: true, ..good }));
        assert!(!may_go_live(BackupView { primary_silent: false, ..good }));
        assert!(!may_go_live(BackupView { powered_off: true, ..good }));
        assert!(!may_go_live(BackupView { drained: false, ..good }));
        assert!(!may_go_live(BackupView { term_granted: false, ..good }));
        assert!(!may_go_live(BackupView { role: Role::Loading, ..good }));
        assert!(!may_drain(BackupView { role: Role::Loading, ..good }));
        assert!(may_drain(BackupView { role: Role::Backup, ..good }));
    }

    #[test]
    fn a_primary_waits_for_a_complete_backup_that_lives() {
        let lost = LostBackup { may_be_complete: true, gave_up: false, silent: false };
        assert!(!may_run_alone(lost));
        assert!(may_run_alone(LostBackup { may_be_complete: false, ..lost }));
        assert!(may_run_alone(LostBackup { gave_up: true, ..lost }));
        assert!(may_run_alone(LostBackup { silent: true, ..lost }));
    }
}
