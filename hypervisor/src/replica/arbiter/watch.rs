//! Looks at the arbiter now and then, so that people hear of trouble before a term is needed.
//!
//! A look has a socket of its own and gives way to every question. What it finds out is for people, and whom it found is
//! for the node: twins must have one arbiter.

use pollux_ft::arbiter::{ArbiterId, Look};

use super::caller::{Caller, Counts, Trouble};
use crate::replica::stack::Stack;

/// Tries without an answer, one after the other, before an arbiter counts as out of reach: one may be lost, or late on
/// a busy network. A refusal counts at once.
const PATIENCE: u32 = 3;
/// Shortest pause behind a try without an answer, in microseconds.
pub(super) const RETRY_US: u64 = 1_000_000;

/// The watch over one way to the arbiter.
#[derive(Debug)]
pub struct Watch {
    caller: Caller,
    interval_us: u64,
    /// When the next look begins.
    next_us: u64,
    /// Tries without an answer since the last answer.
    in_vain: u32,
    trouble: Option<Trouble>,
    seen: Option<ArbiterId>,
}

impl Watch {
    /// A watch that looks by `caller` every so many microseconds.
    pub fn new(caller: Caller, interval_us: u64) -> Self {
        Self { caller, interval_us, next_us: 0, in_vain: 0, trouble: None, seen: None }
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        self.caller.counts()
    }

    /// Why the arbiter would be of no use now.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// Which arbiter has answered since this was last asked.
    pub fn take_seen(&mut self) -> Option<ArbiterId> {
        self.seen.take()
    }

    /// Whether a look is under way.
    pub fn is_looking(&self) -> bool {
        self.caller.is_trying()
    }

    /// When [`poll`](Self::poll) has something to do even if no frame comes.
    pub fn poll_at(&self) -> u64 {
        self.caller.poll_at().unwrap_or(self.next_us)
    }

    /// Breaks off a look under way. Whether the socket has something to send because of that.
    pub fn stop(&mut self, stack: &mut Stack) -> bool {
        self.caller.stop(stack)
    }

    /// Does what can be done. Returns whether [`trouble`](Self::trouble) is another one now, or none any more, and
    /// whether the socket wants to send.
    pub fn poll(&mut self, now_us: u64, look: &Look, stack: &mut Stack) -> (bool, bool) {
        if self.caller.is_idle() && self.next_us <= now_us {
            self.caller.begin(now_us);
        }
        let (outcome, moved) = self.caller.poll(now_us, look, stack);
        let found = match outcome {
            None => return (false, moved),
            Some(Ok(arbiter)) => {
                self.seen = arbiter;
                None
            }
            Some(Err(trouble)) => {
                self.in_vain += 1;
                if self.in_vain < PATIENCE && !matches!(trouble, Trouble::Answer(_)) {
                    return (false, moved);
                }
                Some(trouble)
            }
        };
        if found.is_none() {
            self.in_vain = 0;
        }
        self.caller.stop(stack);
        self.next_us = now_us.saturating_add(self.interval_us);
        let changed = found != self.trouble;
        self.trouble = found;
        (changed, moved)
    }
}
