//! The rules of the protocol as pure functions over small types.
//!
//! [`crate::node::Node`] asks them; a simulator or a model check can ask the very same ones. Nothing here has state.
//!
//! # Terms
//!
//! A machine runs the guest alone only in a term that is its own. The arbiter grants each term to one machine at most,
//! by a test-and-set. Each session names the term that both its machines bid for when they lose each other:
//! [`next_term`] of all that were bid for before. So of the two at most one goes on.
//!
//! * Nobody needs to ask while a pair is protected, nor a primary whose backup surely never had the complete state, nor
//!   one whose backup itself said that it gave up ([`may_run_alone`]).
//! * A backup gives up only as long as it has not asked ([`on_standing`]). From then on it waits for the answer; once the
//!   term is granted it goes live ([`on_answer`]). So a granted term is never left lying about by a machine that lives, and
//!   a primary that is refused can halt: the winner goes on.
//! * A backup that asked and then follows its primary again ([`may_call_off`]) does not take it over when an answer comes
//!   hours later. It proposes to bid for the term behind that one ([`may_propose`]), and from then on needs both of them:
//!   its primary may have agreed or not ([`suffices`]). A primary that agrees bids for the later term alone
//!   ([`agrees`]); once the backup hears so, the earlier term is burnt, and its question is withdrawn.
//! * A primary that asked and then hears that the backup gave up needs the answer no more. It may have been granted:
//!   the term is burnt, and the next session bids for a higher one ([`after_session`]).
//!
//! Who creates the guest where there is none is decided in [`Stance`]'s module.

use crate::heartbeat::Heartbeat;
use crate::types::{NodeId, Position, Role, Seq, SessionId, Span, Term, Time};

mod creation;

pub use creation::{Stance, Word, first_term, has_guest, listens_for, on_word};

/// Who runs the guest or follows it, and in which term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The claimed term.
    pub term: Term,
    /// Who claims it.
    pub node: NodeId,
    /// Whether it runs the guest itself.
    pub primary: bool,
}

/// Whether a primary must halt because it heard of another one.
///
/// The newer term wins, whoever tells of it: also a backup of that reign, or one that only began to join it, says that
/// somebody went live after us. Two machines started as primaries by mistake, without an arbiter, share a term: then
/// the higher node id yields.
#[must_use]
pub fn must_yield(ours: Claim, theirs: Claim) -> bool {
    let rival = theirs.primary && theirs.term == ours.term && ours.node > theirs.node;
    theirs.node != ours.node && (theirs.term > ours.term || rival)
}

/// What a machine does that hears of a reign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnClaim {
    /// Nothing on account of the claim.
    Ignore,
    /// Halt, or join it if there is nobody to ask: our guest is out of date.
    Yield,
    /// The twin took the guest over that we handed to it: become its backup.
    HandedOver,
}

/// Decides about a heartbeat. `by_twin`: it comes from the machine of our session.
///
/// The twin's new reign is all the proof a machine that hands over needs: its guest stands still, and what it released
/// was acked, hence drained by the twin.
#[must_use]
pub fn on_claim(role: Role, ours: Claim, theirs: Claim, by_twin: bool) -> OnClaim {
    if !role.is_primary() || !must_yield(ours, theirs) {
        OnClaim::Ignore
    } else if role == Role::HandingOver && by_twin && theirs.term > ours.term {
        OnClaim::HandedOver
    } else {
        OnClaim::Yield
    }
}

/// Whether a primary hears of another one whose reign is over, and who does not know it yet: it may have sent in the
/// guest's name after us.
#[must_use]
pub fn is_outdated(role: Role, ours: Claim, theirs: Claim) -> bool {
    role.is_primary() && theirs.primary && theirs.node != ours.node && theirs.term < ours.term
}

/// Whether the twin may say on the stream of a session that bids for `next` that it took over in `term`. Heartbeats say
/// the same, but the guest may end before one of them arrives.
#[must_use]
pub fn may_have_taken_over(role: Role, next: Term, term: Term, handover_acked: bool) -> bool {
    role == Role::HandingOver && term == next && handover_acked
}

/// What a primary answers to a machine that wants to join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JoinVerdict {
    /// Begin the state transfer.
    Begin,
    /// There is a backup, or the old one may still think that it is one; try again soon.
    Busy,
    /// This node runs no guest.
    NotPrimary,
    /// The joiner belonged to a newer reign: our guest is out of date, halt.
    Outdated,
}

/// Decides about a Hello from a machine whose identity has been checked.
///
/// `word`: that it is the old backup itself proves that it is one no more.
#[must_use]
pub fn on_join(role: Role, ours: Term, theirs: Term, word: LastWord) -> JoinVerdict {
    match role {
        Role::Alone | Role::Detaching if theirs > ours => JoinVerdict::Outdated,
        Role::Alone => JoinVerdict::Begin,
        Role::Detaching if word == LastWord::GaveUp => JoinVerdict::Begin,
        role if role.is_primary() => JoinVerdict::Busy,
        _ => JoinVerdict::NotPrimary,
    }
}

/// Whether a joiner that knows of term `ours` may follow a primary of term `theirs`, in a session that bids for `next`.
#[must_use]
pub fn may_follow(ours: Term, theirs: Term, next: Term) -> bool {
    theirs >= ours && next > theirs
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

/// Whether entries are logged: there is, or may be, a backup that needs them.
#[must_use]
pub fn is_logging(role: Role, state_sent: bool) -> bool {
    match role {
        Role::Transferring => state_sent,
        Role::Protected | Role::Detaching => true,
        _ => false,
    }
}

/// Whether the guest's output must wait for acks. While the state is still being sent no backup can take over, and
/// output may leave.
#[must_use]
pub fn holds_output(role: Role, state_sent: bool) -> bool {
    is_logging(role, state_sent) || role == Role::HandingOver
}

/// Whether frames of `output` may leave a primary whose backup holds the log up to `received`: the output rule.
#[must_use]
pub fn may_release(output: Seq, received: Seq) -> bool {
    output <= received
}

/// How long a primary may send what its backup acked, from when it sent the newest of what that backup, as such, is known
/// to have heard. The backup takes over after the whole time to suspicion at the soonest, counted from when it heard it;
/// an eighth is left for clocks that differ, and for the way from this decision to the wire.
#[must_use]
pub fn lease(suspect_after: Span) -> Span {
    Span(suspect_after.0 - suspect_after.0 / 8)
}

/// Whether a primary may send what was acked. One that stood still, or is not heard, may have a successor, which sends
/// the same: frames of both would draw the guest's traffic to and fro. `heard`: when it sent the newest of what its backup
/// heard. Whoever hands over leaves the rest to the successor.
#[must_use]
pub fn may_send(role: Role, state_sent: bool, heard: Option<Time>, now: Time, suspect_after: Span) -> bool {
    match role {
        Role::Alone => true,
        Role::Transferring if !state_sent => true,
        Role::Transferring | Role::Protected => heard.is_some_and(|heard| now.since(heard) < lease(suspect_after)),
        _ => false,
    }
}

/// Whether a heartbeat comes from the backup of session `session` of primary `me`, which follows it.
#[must_use]
pub fn is_followed(beat: &Heartbeat, me: NodeId, session: SessionId) -> bool {
    beat.role == Role::Backup && beat.linked && beat.peer == me && beat.session == session
}

/// Whether a machine in this role acks what it receives: only a backup with the complete state may, as only that one
/// could take over.
#[must_use]
pub fn may_ack(role: Role) -> bool {
    role.is_backup()
}

/// How far a backup may run its guest: to the next entry, else to the newest position that the log names.
#[must_use]
pub fn may_run_to(next_entry: Option<Position>, limit: Position) -> Position {
    next_entry.unwrap_or(limit)
}

/// Whether a broken stream ends the session in this role. The backup of a primary that hands over closes it when it
/// goes live: once the hand-over is acked only silence says that it failed.
#[must_use]
pub fn needs_stream(role: Role, handover_acked: bool) -> bool {
    match role {
        Role::Transferring | Role::Protected => true,
        Role::HandingOver => !handover_acked,
        _ => false,
    }
}

/// What a backup that is being let go says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LastWord {
    /// Nothing to that effect.
    None,
    /// It no longer is one, and never will be, see [`gave_up`].
    GaveUp,
    /// It lives and is about to take over, see [`contends`].
    Contends,
}

/// What a heartbeat says of the backup of session `session` of primary `me`.
#[must_use]
pub fn last_word(beat: &Heartbeat, me: NodeId, session: SessionId) -> LastWord {
    if gave_up(beat, me, session) {
        LastWord::GaveUp
    } else if contends(beat, me, session) {
        LastWord::Contends
    } else {
        LastWord::None
    }
}

/// What a primary knows of the backup that it lost touch with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LostBackup {
    /// The backup got the complete state, or may have got it.
    pub may_be_complete: bool,
    /// What it said of itself.
    pub word: LastWord,
    /// Nothing was heard of it for the time to suspicion.
    pub silent: bool,
    /// The next term is ours.
    pub term_granted: bool,
}

/// Whether a primary may open its gate and go on without a backup.
///
/// A complete backup that has not given up may take over at any time with what it holds, unless the term is ours:
/// output that it does not hold must stay inside.
#[must_use]
pub fn may_run_alone(lost: LostBackup) -> bool {
    !lost.may_be_complete || lost.word == LastWord::GaveUp || lost.term_granted
}

/// Whether a primary bids for the next term. A backup that is heard will give up by itself when it hears that it was
/// let go of, unless it is about to take over. Without an arbiter (`exclusive` is false: a bid proves nothing) that one
/// is left alone, too: it will make itself heard.
#[must_use]
pub fn may_bid_alone(lost: LostBackup, exclusive: bool) -> bool {
    !may_run_alone(lost) && (lost.silent || (lost.word == LastWord::Contends && exclusive))
}

/// Whether a heartbeat proves that the twin is not, or no longer, the backup of session `session` of primary `me`, and
/// never will be. The twin sent it after the Hello with which the session began, and knows of no newer reign than ours:
/// else see [`on_claim`].
///
/// A twin that is still joining has not read that the session began, or is out of it already. The former ends with the
/// stream of its Hello.
#[must_use]
pub fn gave_up(beat: &Heartbeat, me: NodeId, session: SessionId) -> bool {
    let ours = beat.peer == me && beat.session == session;
    match beat.role {
        Role::Joining => ours || !beat.linked,
        Role::Loading | Role::Backup | Role::Draining => !ours,
        _ => false,
    }
}

/// Whether a heartbeat says that the backup of session `session` of primary `me` thinks that `me` is gone. One of another
/// session says more than that, and is heard first: see [`gave_up`].
#[must_use]
pub fn contends(beat: &Heartbeat, me: NodeId, session: SessionId) -> bool {
    beat.role == Role::Draining && beat.peer == me && beat.session == session
}

/// What a primary's heartbeat means to its backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// We are its backup.
    Wanted,
    /// It let go of us: its output no longer waits for our acks, or soon will not.
    Dropped,
    /// The heartbeat does not say: it is older than our session, or says nothing of it.
    Unknown,
}

/// How a backup in session `session` reads a heartbeat of its primary.
///
/// A primary that is none any more handed the guest over, to another machine than us: in a newer term than ours.
#[must_use]
pub fn standing(beat: &Heartbeat, me: NodeId, term: Term, session: SessionId) -> Standing {
    let follows = matches!(beat.role, Role::Joining | Role::Loading) || beat.role.is_backup();
    if follows && beat.term > term {
        return Standing::Dropped;
    }
    if !beat.role.is_primary() || beat.term < term || (beat.term == term && beat.session < session) {
        return Standing::Unknown;
    }
    let same = beat.term == term && beat.session == session && beat.peer == me;
    match beat.role {
        Role::Transferring | Role::Protected | Role::HandingOver if same => Standing::Wanted,
        _ => Standing::Dropped,
    }
}

/// How far a machine has come with its bid for the next term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bid {
    /// It did not ask.
    None,
    /// The arbiter was asked and has not answered.
    Asked,
    /// The term is granted.
    Won,
}

/// May this machine look whether the arbiter would give a term? Whoever has the guest, or holds it, may need one soon,
/// and people should know beforehand that there would be none. Who joins has to know which arbiter it is that answers.
/// A bid comes first: no look is in its way.
#[must_use]
pub const fn may_look_at_arbiter(role: Role, bid: Bid) -> bool {
    let waits = matches!(role, Role::Joining | Role::Loading | Role::Backup);
    matches!(bid, Bid::None) && (waits || matches!(role, Role::Alone | Role::Transferring | Role::Protected))
}

/// What a backup does about its standing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnStanding {
    /// Nothing.
    Ignore,
    /// Go on following; a takeover may be called off.
    Follow,
    /// Throw the guest away and join again.
    Abandon,
    /// The arbiter was asked: its answer decides, whatever the primary says.
    Contend,
}

/// Whether a backup that bids with `bid`, and `proposed` to bid for a later term, may have been granted a term that its
/// primary was then refused.
#[must_use]
pub fn is_bound(bid: Bid, proposed: Option<Term>) -> bool {
    bid != Bid::None || proposed.is_some()
}

/// Whether a backup proposes to its primary, whom it hears again, that both bid for the term behind the one that it has
/// asked for. `linked`: there is a stream to say it on. What it `proposed` before is on its way.
#[must_use]
pub fn may_propose(role: Role, bid: Bid, next: Term, proposed: Option<Term>, linked: bool) -> bool {
    role == Role::Backup && bid == Bid::Asked && suffices(next, proposed) && linked
}

/// Whether a primary of a session that bids for `next` agrees to bid for the term `proposed` instead.
#[must_use]
pub fn agrees(role: Role, next: Term, proposed: Term) -> bool {
    matches!(role, Role::Protected | Role::HandingOver) && proposed == next_term(next)
}

/// Whether `next`, if granted, is all that a backup needs to go live which `proposed` to bid for a later term. Until its
/// primary has agreed that one may bid for either: the backup must have all that the primary could win.
#[must_use]
pub fn suffices(next: Term, proposed: Option<Term>) -> bool {
    proposed.is_none_or(|proposed| next >= proposed)
}

/// Decides what a backup does that bids for `next` and hears of a primary in term `theirs`. `bound`: see [`is_bound`].
///
/// A backup that was let go of frees its primary by giving up, but not while its question is open or won: the primary
/// may have been refused already, and then nobody would go on. A primary that is in the term itself needs nothing.
#[must_use]
pub fn on_standing(standing: Standing, bound: bool, next: Term, theirs: Term) -> OnStanding {
    match standing {
        Standing::Unknown => OnStanding::Ignore,
        Standing::Wanted => OnStanding::Follow,
        Standing::Dropped if !bound || theirs >= next => OnStanding::Abandon,
        Standing::Dropped => OnStanding::Contend,
    }
}

/// What a backup knows when it thinks about taking over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BackupView {
    /// What it is.
    pub role: Role,
    /// Nothing was heard of the primary for the time to suspicion.
    pub primary_silent: bool,
    /// The primary said in order that it stopped the guest for good on its machine, handed it over, or let go of us
    /// when we had asked the arbiter already.
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
    let gone = view.primary_silent || view.primary_left || view.term_granted;
    view.role == Role::Backup && gone && !view.powered_off
}

/// Whether a sign of life of the primary calls the takeover off. A granted term is not given back: see the module.
#[must_use]
pub fn may_call_off(view: BackupView) -> bool {
    view.role == Role::Draining && !view.primary_left && !view.term_granted
}

/// Whether the backup bids for the next term now. Not before the log is drained: until then nothing binds it.
#[must_use]
pub fn may_bid(view: BackupView) -> bool {
    let gone = view.primary_silent || view.primary_left;
    view.role == Role::Draining && gone && !view.powered_off && view.drained && !view.term_granted
}

/// Whether the backup may go live now.
#[must_use]
pub fn may_go_live(view: BackupView) -> bool {
    view.role == Role::Draining && !view.powered_off && view.drained && view.term_granted
}

/// What the arbiter said about a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It is ours.
    Granted,
    /// It is another machine's.
    Taken,
}

/// What follows from an answer of the arbiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnAnswer {
    /// Nothing: nobody waits for this answer any more.
    Stale,
    /// Start the guest.
    Start,
    /// Go on without the backup that was lost.
    RunAlone,
    /// Take over, come what may; if it suffices, see [`suffices`].
    TakeOver,
    /// Halt, or join if there is nobody to ask: somebody else runs the guest, or will.
    FailStop,
}

/// Decides about the arbiter's answer to a question for `answered`, for a machine that bids for `next` with `bid`.
#[must_use]
pub fn on_answer(role: Role, bid: Bid, next: Term, answered: Term, verdict: Verdict) -> OnAnswer {
    if bid != Bid::Asked || answered != next {
        return OnAnswer::Stale;
    }
    match (verdict, role) {
        (Verdict::Taken, _) => OnAnswer::FailStop,
        (Verdict::Granted, Role::Starting) => OnAnswer::Start,
        (Verdict::Granted, Role::Detaching) => OnAnswer::RunAlone,
        (Verdict::Granted, Role::Backup | Role::Draining) => OnAnswer::TakeOver,
        (Verdict::Granted, _) => OnAnswer::Stale,
    }
}

/// The term to bid for behind `term`.
#[must_use]
pub fn next_term(term: Term) -> Term {
    Term(term.0.saturating_add(1))
}

/// What the next session bids for when one that bid for `next` ended and the primary goes on in its old term. Where the
/// backup may have been complete, either machine may have asked for `next` and won it unawares: it is burnt.
#[must_use]
pub fn after_session(next: Term, may_be_complete: bool) -> Term {
    if may_be_complete { next_term(next) } else { next }
}

#[cfg(test)]
mod tests;
