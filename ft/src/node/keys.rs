//! The pair's keys while it is at work: a second one comes, and the first one goes.
//!
//! As long as a machine has two keys it says each heartbeat under both, and takes what was said under either: whichever of
//! them its twin has, neither falls silent. A new stream begins under a key that both ends have, see [`crate::handshake`]; one
//! that is up stays as it is, since its keys were drawn for it. A key is forgotten when whoever is heard has shown the other one.

use super::Node;
use super::lives::Life;
use crate::decide;
use crate::key::{KeyError, MAX_KEYS, PairKey};
use crate::mutation::Mutation;
use crate::types::{Role, Span, Time};
use alloc::string::ToString;

/// Why a connection that was begun under a key that has gone meanwhile is none of the twin's.
pub(super) const FORGOTTEN: &str = "the key of this connection was forgotten meanwhile";

impl Node {
    /// Fingerprints of the keys that this machine has, the newest one's first; 0 is none.
    #[must_use]
    pub fn keys(&self) -> [u64; MAX_KEYS] {
        self.config.protection.fingerprints()
    }

    /// Gives this machine a second key, which is the newest one from now on.
    ///
    /// # Errors
    /// When it has two, or none, or has this one.
    pub fn add_key(&mut self, key: PairKey) -> Result<(), KeyError> {
        self.config.protection.add(key)?;
        self.lives.key_came();
        Ok(())
    }

    /// Whether the key with this fingerprint can go: the twin has shown that it has the other one, too, and so has, where there
    /// is no twin, every machine that is heard under this one. Whoever stole this key can be such a machine for ever: see
    /// [`forget_key_unseen`](Self::forget_key_unseen).
    ///
    /// # Errors
    /// Why not.
    pub fn may_forget_key(&self, now: Time, fingerprint: u64) -> Result<(), KeyError> {
        let kept = self.config.protection.other_than(fingerprint)?;
        let at = self.keys().iter().position(|key| *key == kept).unwrap_or(0);
        let peer = if self.has_twin() { self.peer() } else { None };
        let missed = match peer {
            Some(peer) => !self.lives.life(peer).is_some_and(|twin| self.shows(now, &twin, at)),
            None => {
                self.lives.known().any(|life| self.lately(now, life, 1 - at).is_some() && !self.shows(now, life, at))
            }
        };
        if missed && !self.config.broken(Mutation::KeyForgottenUnseen) {
            return Err(KeyError::NotShown(kept));
        }
        Ok(())
    }

    /// When a machine was heard under key number `under`, if that is not long ago.
    fn lately(&self, now: Time, life: &Life, under: usize) -> Option<Time> {
        life.heard_at(under).filter(|at| !decide::is_silent(now, *at, self.config.suspect_after))
    }

    /// Whether a machine shows that it has key number `kept`. Who says more under the other one alone has perhaps forgotten it just
    /// now: each heartbeat is said under all keys.
    fn shows(&self, now: Time, life: &Life, kept: usize) -> bool {
        let since = |at: Time| life.heard_at(1 - kept).map_or(Span(0), |other| other.since(at));
        let most = Span(self.config.heartbeat_interval.0.saturating_mul(2));
        self.lately(now, life, kept).is_some_and(|at| since(at) < most)
    }

    /// Forgets the key with this fingerprint: what is said under it from now on counts for nothing.
    ///
    /// # Errors
    /// When it cannot go, see [`may_forget_key`](Self::may_forget_key).
    pub fn forget_key(&mut self, now: Time, fingerprint: u64) -> Result<(), KeyError> {
        self.may_forget_key(now, fingerprint)?;
        self.forget_key_unseen(now, fingerprint)
    }

    /// The same, whoever has not shown the other key: a twin that has this one alone is lost by that.
    ///
    /// # Errors
    /// When this machine does not have this key, or no other one.
    pub fn forget_key_unseen(&mut self, now: Time, fingerprint: u64) -> Result<(), KeyError> {
        let at = self.keys().iter().position(|key| *key == fingerprint);
        self.config.protection.remove(fingerprint)?;
        self.lives.key_went(at.unwrap_or(0));
        if let Some(peer) = &mut self.peer {
            peer.counter = self.lives.newest(peer.node);
        }
        // The twin shall hear soon that it is gone.
        self.beats.next = now;
        if !self.link.is_paired() && !self.has_links_key() {
            self.meet_stranger(now, FORGOTTEN.to_string());
        }
        Ok(())
    }

    /// Whether the stream, if messages flow, was begun under a key that this machine has: one may have been forgotten
    /// while the ends greeted each other.
    pub(super) fn has_links_key(&self) -> bool {
        let known = self.link.key() == 0 || self.keys().contains(&self.link.key());
        !self.link.is_up() || known || self.config.broken(Mutation::ForgottenKeyOpens)
    }

    fn has_twin(&self) -> bool {
        !matches!(self.role(), Role::Starting | Role::Alone | Role::Joining | Role::Halted)
    }
}
