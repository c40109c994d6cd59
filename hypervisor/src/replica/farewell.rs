//! The time that a machine which is about to reset itself has left for telling others why.

use core::mem;

use pollux_ft::{Span, Time};

/// For how long a reset is put off at most.
const PATIENCE: Span = Span::from_millis(1000);
/// The time between two looks meanwhile.
const LOOK: Span = Span::from_millis(1);

/// Puts a reset off until everything was handed to the card, and then for one more turn, in which the card can send it.
#[derive(Debug, Default)]
pub struct Farewell {
    since: Option<Time>,
    /// Nothing was left in the last turn.
    quiet: bool,
}

impl Farewell {
    /// Whether the reset may come; `unsent` says that something waits to be sent. To be called once a turn, from when on the
    /// reset is due.
    pub fn is_over(&mut self, now: Time, unsent: bool) -> bool {
        let since = *self.since.get_or_insert(now);
        let was_quiet = mem::replace(&mut self.quiet, !unsent);
        was_quiet && !unsent || now.since(since) >= PATIENCE
    }

    /// When to look again, if a reset is put off.
    pub fn look_at(&self, now: Time) -> Option<Time> {
        self.since.map(|_| now.after(LOOK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In which millisecond the reset comes if something is unsent in the first `unsent` of them.
    fn resets_at(unsent: u64) -> u64 {
        let mut farewell = Farewell::default();
        let now = |ms| Time(7_000_000).after(Span::from_millis(ms));
        assert_eq!(farewell.look_at(now(0)), None);
        (0..).find(|ms| farewell.is_over(now(*ms), *ms < unsent) || farewell.look_at(now(*ms)).is_none()).unwrap()
    }

    #[test]
    fn a_reset_waits_for_the_last_event_and_one_more_turn_but_not_for_ever() {
        assert_eq!([0, 1, 5, 998].map(resets_at), [1, 2, 6, 999]);
        assert_eq!([1000, 5000].map(resets_at), [1000, 1000]);
    }

    #[test]
    fn what_comes_late_is_sent_too() {
        let mut farewell = Farewell::default();
        let says = [true, false, true, false, false].map(|unsent| farewell.is_over(Time(1), unsent));
        assert_eq!(says, [false, false, false, false, true]);
    }
}
