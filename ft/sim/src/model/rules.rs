//! The decisions of `pollux_ft::decide`, and each of them broken.
//!
//! What is not broken is the very function that the nodes ask.

use super::bounds::{Bounds, Planned};
use pollux_ft::decide::{
    self, BackupView, Bid, Claim, JoinVerdict, LastWord, LostBackup, OnAnswer, OnClaim, OnStanding, Stance, Standing,
    Verdict, Word,
};
use pollux_ft::heartbeat::Heartbeat;
use pollux_ft::{NodeId, Role, Seq, SessionId, Term};

/// A rule that the model breaks. The names that [`pollux_ft::Mutation`] has too mean the same here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broken {
    /// Output is released when it is logged.
    ReleaseBeforeAck,
    /// A backup acks one entry more than it has.
    AckBeyondReceived,
    /// A backup goes live although entries are left.
    LiveBeforeDrained,
    /// A backup goes live without the next term.
    LiveWithoutArbiter,
    /// A primary that lost a complete backup goes on without asking the arbiter.
    AloneWithoutAsking,
    /// A term that is another machine's is treated as granted.
    TakenAsGranted,
    /// A second joiner gets the state while a first one may take over.
    JoinWhileBusy,
    /// A backup takes over from a guest that switched itself off.
    PowerOffIgnored,
    /// A takeover goes on although the primary was heard again.
    TakeoverNotCalledOff,
    /// Output is not held while a lost backup may still take over.
    DetachingReleases,
    /// Sessions bid for a term that an earlier one may have asked for.
    TermNotBurnt,
    /// A backup gives up although its question to the arbiter is open.
    GivesUpWhileAsking,
    /// A former backup's word counts for a later session, too.
    OldWordCounts,
    /// What a joiner said before its Hello counts.
    EarlyWordCounts,
    /// A broken stream is taken as proof that the backup gave up.
    StreamIsProof,
    /// An answer of the arbiter counts for whatever term is asked for.
    OldAnswerCounts,
    /// A primary that hears of a newer one goes on.
    SupersededGoesOn,
    /// A backup that proposed to bid for a later term needs that one alone before its primary has agreed.
    BurntUnagreed,
    /// A machine that starts by itself creates a guest without the word of its twin.
    CreatesUnasked,
    /// A machine that starts by itself takes one with a guest for one without, that yields.
    GuestUnheard,
}

impl Broken {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::ReleaseBeforeAck,
        Self::AckBeyondReceived,
        Self::LiveBeforeDrained,
        Self::LiveWithoutArbiter,
        Self::AloneWithoutAsking,
        Self::TakenAsGranted,
        Self::JoinWhileBusy,
        Self::PowerOffIgnored,
        Self::TakeoverNotCalledOff,
        Self::DetachingReleases,
        Self::TermNotBurnt,
        Self::GivesUpWhileAsking,
        Self::OldWordCounts,
        Self::EarlyWordCounts,
        Self::StreamIsProof,
        Self::OldAnswerCounts,
        Self::SupersededGoesOn,
        Self::BurntUnagreed,
        Self::CreatesUnasked,
        Self::GuestUnheard,
    ];

    /// Bounds in which it does harm, small ones.
    #[must_use]
    pub fn bounds(self) -> Bounds {
        match self {
            Self::PowerOffIgnored => Bounds { inputs: 0, planned: &[Planned::PowerOff], ..Bounds::INPUTS },
            Self::JoinWhileBusy => Bounds::THREE,
            Self::BurntUnagreed => Bounds::LATE,
            Self::CreatesUnasked => Bounds { restarts: 0, ..Bounds::COLD },
            Self::GuestUnheard => Bounds { restarts: 1, ..Bounds::COLD },
            Self::TermNotBurnt | Self::EarlyWordCounts => Bounds { inputs: 0, ..Bounds::CRASHES },
            _ => Bounds::INPUTS,
        }
    }
}

/// The rules as the model asks them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Rules {
    pub(super) broken: Option<Broken>,
}

impl Rules {
    pub(super) fn is(self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }

    pub(super) fn view(self, view: BackupView) -> BackupView {
        BackupView {
            primary_silent: view.primary_silent
                || (view.role == Role::Draining && self.is(Broken::TakeoverNotCalledOff)),
            powered_off: view.powered_off && !self.is(Broken::PowerOffIgnored),
            drained: view.drained || self.is(Broken::LiveBeforeDrained),
            ..view
        }
    }

    pub(super) fn may_call_off(self, view: BackupView) -> bool {
        decide::may_call_off(view) && !self.is(Broken::TakeoverNotCalledOff)
    }

    pub(super) fn lost(self, lost: LostBackup) -> LostBackup {
        LostBackup { may_be_complete: lost.may_be_complete && !self.is(Broken::AloneWithoutAsking), ..lost }
    }

    /// Whether a bid needs the arbiter.
    pub(super) fn asks(self, role: Role) -> bool {
        !(role.is_backup() && self.is(Broken::LiveWithoutArbiter))
    }

    pub(super) fn on_answer(self, role: Role, bid: Bid, next: Term, answered: Term, verdict: Verdict) -> OnAnswer {
        let verdict = if self.is(Broken::TakenAsGranted) { Verdict::Granted } else { verdict };
        let answered = if self.is(Broken::OldAnswerCounts) { next } else { answered };
        decide::on_answer(role, bid, next, answered, verdict)
    }

    pub(super) fn on_claim(self, role: Role, ours: Claim, theirs: Claim, by_twin: bool) -> OnClaim {
        match decide::on_claim(role, ours, theirs, by_twin) {
            OnClaim::Yield if self.is(Broken::SupersededGoesOn) => OnClaim::Ignore,
            verdict => verdict,
        }
    }

    pub(super) fn on_join(self, role: Role, ours: Term, theirs: Term, word: LastWord) -> JoinVerdict {
        match decide::on_join(role, ours, theirs, word) {
            JoinVerdict::Busy if self.is(Broken::JoinWhileBusy) => JoinVerdict::Begin,
            verdict => verdict,
        }
    }

    /// Up to where output leaves of a log of `made` entries, of which the backup acked `acked`.
    pub(super) fn released(self, role: Role, made: usize, acked: usize) -> usize {
        let early =
            self.is(Broken::ReleaseBeforeAck) || (role == Role::Detaching && self.is(Broken::DetachingReleases));
        let acked = Seq(if early { made } else { acked } as u64);
        (0..=made).rev().find(|output| decide::may_release(Seq(*output as u64), acked)).unwrap_or(0)
    }

    /// What a backup acks that holds `held` entries.
    pub(super) fn ack(self, held: usize) -> usize {
        held + usize::from(self.is(Broken::AckBeyondReceived))
    }

    pub(super) fn on_standing(self, standing: Standing, bound: bool, next: Term, theirs: Term) -> OnStanding {
        match decide::on_standing(standing, bound, next, theirs) {
            OnStanding::Contend if self.is(Broken::GivesUpWhileAsking) => OnStanding::Abandon,
            verdict => verdict,
        }
    }

    pub(super) fn last_word(self, beat: &Heartbeat, me: NodeId, session: SessionId) -> LastWord {
        let read = if self.is(Broken::OldWordCounts) { beat.session } else { session };
        match decide::last_word(beat, me, read) {
            LastWord::Contends if beat.session != session => LastWord::None,
            word => word,
        }
    }

    pub(super) fn on_word(self, me: NodeId, stance: Stance, may_offer: bool, word: Word) -> Stance {
        let word = match self.broken {
            Some(Broken::GuestUnheard) if decide::has_guest(word.role) => {
                Word { role: Role::Joining, creator: me, ..word }
            }
            _ => word,
        };
        decide::on_word(me, stance, may_offer, word)
    }

    pub(super) fn after_session(self, next: Term, may_be_complete: bool) -> Term {
        if self.is(Broken::TermNotBurnt) { next } else { decide::after_session(next, may_be_complete) }
    }
}
