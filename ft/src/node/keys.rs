//! The pair's keys while it is at work: a second one comes, and the first one goes.
//!
//! As long as a machine has two keys it says each heartbeat under both, and takes what was said under either: whichever of
//! them its twin has, neither falls silent. A new stream begins under a key that both ends have, see [`crate::handshake`]; one
//! that is up stays as it is, since its keys were drawn for it. A key is forgotten when whoever is heard has shown the other one.

use super::Node;
use crate::decide;
use crate::key::{KeyError, MAX_KEYS, PairKey};
use crate::mutation::Mutation;
use crate::types::{NodeId, Role, Span, Time};
use alloc::string::ToString;

/// Why a connection that was begun under a key that has gone meanwhile is none of the twin's.
pub(super) const FORGOTTEN: &str = "the key of this connection was forgotten meanwhile";

/// Who said something under which key, the newest one first, and when.
#[derive(Debug, Default)]
pub(super) struct Shown([Option<(NodeId, Time)>; MAX_KEYS]);

impl Shown {
    /// `node` was heard just now under key number `under`.
    pub(super) fn show(&mut self, under: usize, node: NodeId, now: Time) {
        self.0[under] = Some((node, now));
    }

    /// Who was heard under key number `under`, not longer ago than `span`.
    fn lately(&self, under: usize, now: Time, span: Span) -> Option<NodeId> {
        self.0[under].filter(|(_, at)| !decide::is_silent(now, *at, span)).map(|(node, _)| node)
    }
}

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
        self.shown.0.rotate_right(1);
        self.shown.0[0] = None;
        Ok(())
    }

    /// Whether the key with this fingerprint can go: whoever is heard, and surely the twin, has the other one, too.
    ///
    /// # Errors
    /// Why not.
    pub fn may_forget_key(&self, now: Time, fingerprint: u64) -> Result<(), KeyError> {
        let kept = self.config.protection.other_than(fingerprint)?;
        let at = self.keys().iter().position(|key| *key == kept).unwrap_or(0);
        let [other, shown] = [1 - at, at].map(|key| self.shown.lately(key, now, self.config.suspect_after));
        let twin = if self.has_twin() { self.peer() } else { None };
        let missed = [other, twin].into_iter().flatten().any(|node| shown != Some(node));
        if missed && !self.config.broken(Mutation::KeyForgottenUnseen) {
            return Err(KeyError::NotShown(kept));
        }
        Ok(())
    }

    /// Forgets the key with this fingerprint: what is said under it from now on counts for nothing.
    ///
    /// # Errors
    /// When it cannot go, see [`may_forget_key`](Self::may_forget_key).
    pub fn forget_key(&mut self, now: Time, fingerprint: u64) -> Result<(), KeyError> {
        self.may_forget_key(now, fingerprint)?;
        if self.keys()[0] == fingerprint {
            self.shown.0.rotate_left(1);
        }
        self.shown.0[1] = None;
        self.config.protection.remove(fingerprint)?;
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
