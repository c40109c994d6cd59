//! Who creates the guest where there is none: a cold start without a person.
//!
//! A machine that starts by itself ([`Start::Auto`](crate::Start)) has no guest and joins a primary if it finds one. A new
//! guest may be created only where no machine has one: whoever is out of sight may have it. So nobody creates one without
//! the word of the twin that it has none either:
//!
//! 1. A machine that never had a guest since it was switched on, and has heard of none for [`listens_for`], *offers* to
//!    create one, to a twin that is joining, too. The word of any machine with a guest ends that.
//! 2. A machine that is joining *yields* to a twin that offers: if both do, the one with the higher node id. As long as that
//!    life of the twin's lasts it offers nothing. What tells it that another life began, or that the twin offers no more,
//!    was said after the promise.
//! 3. A machine that offers is *entitled* once it hears that its twin yields to it, said after it made this very offer:
//!    each change of a stance begins a count anew ([`Word::current`]), and what was said before is void.
//! 4. Who is entitled bids for the term behind the newest that the arbiter ever gave, and goes live in it. Who is refused,
//!    or hears of a machine with a guest, listens anew, and needs a new promise. Nobody offers before the arbiter has told
//!    it the newest term, nor stays entitled for long without its answer: the twin, which is bound, may have a way to it.
//!
//! Why it is safe, with two machines: by 3 the twin had no guest, had promised, and could get one only by an entitlement
//! of its own. By 2 that needs the promise of another life of our machine: then we are gone, and so is our guest. A promise
//! that counts is one to an offer that still stands, so whoever promised is still bound by 2: it would be set free only by
//! what we said after we had heard the promise, and then we were entitled. Heartbeats that are late, doubled, or of a former
//! life count for nothing (`node/lives.rs`). A machine that is restarted holds nothing, and nothing holds it.
//!
//! Who comes up alone waits, for ever if need be. An operator may declare the twin dead beforehand
//! ([`Config::alone_after`](crate::Config)): then silence is its promise, and if it was only out of reach there are two
//! guests until the older one's machine hears of the newer reign. That is the one rule here that can be wrong, and it is
//! off unless it is asked for; a bid that is refused disproves it, and ends it for this life.

use super::next_term;
use crate::types::{NodeId, Role, Span, Term};

/// How a machine that is joining stands to the creation of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Stance {
    /// It looks for a guest that there is.
    #[default]
    Listens,
    /// It would create one.
    Offers,
    /// This machine shall, and it will not as long as that one lives.
    YieldsTo(NodeId),
    /// Nobody else has one, nor will: it creates the guest.
    Entitled,
}

impl Stance {
    /// Who is to create the guest, as machine `me` says to others; 0 is nobody.
    #[must_use]
    pub const fn creator(self, me: NodeId) -> NodeId {
        match self {
            Self::Listens => NodeId(0),
            Self::Offers | Self::Entitled => me,
            Self::YieldsTo(creator) => creator,
        }
    }
}

/// What another machine of the pair says, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// Who.
    pub node: NodeId,
    /// What it is.
    pub role: Role,
    /// Who is to create the guest: see [`Stance::creator`].
    pub creator: NodeId,
    /// It had heard what we said since our stance changed last.
    pub current: bool,
}

/// How long to listen for a machine that has a guest before offering to create one.
#[must_use]
pub const fn listens_for(suspect_after: Span) -> Span {
    Span(suspect_after.0.saturating_mul(2))
}

/// Whether a machine in this role has a guest, or is about to get it.
#[must_use]
pub fn has_guest(role: Role) -> bool {
    role.is_primary() || role.is_backup() || role == Role::Loading
}

/// The stance of machine `me` once it has heard this word. `may_offer`: it never had a guest, and has listened.
#[must_use]
pub fn on_word(me: NodeId, stance: Stance, may_offer: bool, word: Word) -> Stance {
    let wants = word.creator == word.node;
    match stance {
        _ if has_guest(word.role) => Stance::Listens,
        stance if !word.current => stance,
        Stance::YieldsTo(twin) if twin == word.node && wants => stance,
        // Its machine was started again, or it does not want to any more.
        Stance::YieldsTo(_) => Stance::Listens,
        // Somebody creates a guest without asking us.
        _ if word.role == Role::Starting => Stance::Listens,
        Stance::Entitled => stance,
        Stance::Offers if word.creator == me => Stance::Entitled,
        _ if wants && (!may_offer || word.node < me) => Stance::YieldsTo(word.node),
        _ if may_offer => Stance::Offers,
        _ => stance,
    }
}

/// The term of a guest that is created: behind all that were given away, and all that this machine heard of. `newest`: what
/// the arbiter said; without one there is nothing to wait for.
#[must_use]
pub fn first_term(least: Term, known: Term, newest: Term) -> Term {
    least.max(next_term(known.max(newest)))
}
