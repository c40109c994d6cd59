//! Looks at the arbiter now and then, so that people hear of trouble before a term is needed.
//!
//! A look has a socket of its own and gives way to every question. What it finds out is for people, and whom it found is
//! for the node: twins must have one arbiter.

use pollux_ft::arbiter::{Look, Manner, Seen};
use pollux_ft::{Span, Time};

use super::caller::{Caller, Counts, Trouble};
use crate::replica::stack::Stack;

/// Tries without an answer, one after the other, before an arbiter counts as out of reach: one may be lost, or late on
/// a busy network. A refusal counts at once.
const PATIENCE: u32 = 3;
/// Shortest pause behind a try without an answer.
pub(super) const RETRY: Span = Span::from_millis(1000);

/// For so many intervals an answer counts: while there are two manners it takes two until each was tried.
const MEMORY: u64 = 4;
/// Or for so long, if looks come one after the other.
const SHORTEST_MEMORY: Span = Span::from_millis(20_000);

/// The watch over one way to the arbiter.
#[derive(Debug)]
pub struct Watch {
    caller: Caller,
    interval: Span,
    /// When the next look begins.
    next: Time,
    /// Tries without an answer since the last answer.
    in_vain: u32,
    trouble: Option<Trouble>,
    seen: Option<Seen>,
}

impl Watch {
    /// A watch that looks by `caller` once in every `interval`.
    pub fn new(caller: Caller, interval: Span) -> Self {
        Self { caller, interval, next: Time(0), in_vain: 0, trouble: None, seen: None }
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        self.caller.counts()
    }

    /// Why the arbiter would be of no use now.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// What an arbiter has answered since this was last asked.
    pub fn take_seen(&mut self) -> Option<Seen> {
        self.seen.take()
    }

    /// Speaks in these manners from now on, and looks at once whether the first of them is understood.
    pub fn set_manners(&mut self, now: Time, manners: &[Manner], stack: &mut Stack) {
        self.caller.stop(stack);
        self.caller.set_manners(now, manners, stack);
        self.caller.ask_first_in(0);
        self.next = now;
    }

    /// Whether the last try in this manner was answered, if there was one lately.
    pub fn answered_in(&self, now: Time, manner: &Manner) -> Option<bool> {
        let age = Span(self.interval.0.saturating_mul(MEMORY)).max(SHORTEST_MEMORY);
        self.caller.answered_in(manner, |at| now.since(at) <= age)
    }

    /// See [`Caller::understood`].
    pub fn understood(&self) -> Option<usize> {
        self.caller.understood()
    }

    /// Whether a look is under way.
    pub fn is_looking(&self) -> bool {
        self.caller.is_trying()
    }

    /// When [`poll`](Self::poll) has something to do even if no frame comes.
    pub fn poll_at(&self) -> Time {
        self.caller.poll_at().unwrap_or(self.next)
    }

    /// Breaks off a look under way. Whether the socket has something to send because of that.
    pub fn stop(&mut self, stack: &mut Stack) -> bool {
        self.caller.stop(stack)
    }

    /// Does what can be done. Returns whether [`trouble`](Self::trouble) is another one now, or none any more, and
    /// whether the socket wants to send.
    pub fn poll(&mut self, now: Time, look: &Look, stack: &mut Stack) -> (bool, bool) {
        if self.caller.is_idle() && self.next <= now {
            self.caller.take_turns();
            self.caller.begin(now);
        }
        let (outcome, moved) = self.caller.poll(now, look, stack);
        let found = match outcome {
            None => return (false, moved),
            Some(Ok(seen)) => {
                self.seen = Some(seen);
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
        self.next = now.after(self.interval);
        let changed = found != self.trouble;
        self.trouble = found;
        (changed, moved)
    }
}
