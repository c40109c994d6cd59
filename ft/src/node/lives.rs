//! Whose heartbeats were made just now.
//!
//! The key says that a machine of the pair made a heartbeat, and not when: whoever watched the wire can send old ones again,
//! of a former life of the pair, too. So each machine names in its heartbeats those that it has heard, by ids that are
//! drawn at random at each start. A heartbeat that names us was made after we started. Of each machine numbers must rise.
//!
//! Numbers are kept for each key: whoever has stolen one of two keys can say any number under it. That makes what the other
//! key's owner says late, as all order is lost, but not unheard: it still shows that it has that key, so that the stolen one can be
//! forgotten, and its numbers with it.

use crate::heartbeat::{HEARD, Heartbeat};
use crate::key::MAX_KEYS;
use crate::types::{NodeId, Time};

/// What a genuine heartbeat is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    /// It was made since we started, and after all others of its sender.
    Fresh,
    /// It does not name us: of old, or of a machine that has not heard us yet.
    Unanswered,
    /// A later one came, but none under the key of this one: its key counts, and what it says does not.
    Shows,
    /// It came before, or a later one did.
    Late,
}

/// By so much the newest numbers under two keys may differ: heartbeats are lost, and come in another order.
const PLAUSIBLE: u64 = 64;

/// What a machine said under one key.
#[derive(Debug, Clone, Copy, Default)]
struct Said {
    /// The newest number of its heartbeats.
    counter: u64,
    /// When the newest of them came.
    at: Option<Time>,
}

/// A machine between two starts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Life {
    /// 0 is nobody.
    node: NodeId,
    /// By the number of the key.
    said: [Said; MAX_KEYS],
}

impl Life {
    /// The newest number of its heartbeats.
    fn counter(&self) -> u64 {
        self.said.iter().map(|said| said.counter).max().unwrap_or(0)
    }

    /// When it was last heard under key number `under`.
    pub(super) fn heard_at(&self, under: usize) -> Option<Time> {
        self.said[under].at
    }
}

/// The machines heard last.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lives {
    /// Those that named us, the last one first. Nobody else's heartbeats drive them out.
    known: [Life; HEARD - 1],
    /// The one of them that was met on the stream last: nobody's heartbeats drive it out. Former lives named us as well,
    /// and whoever recorded more of them than there is room for could have each make place for the next, again and again.
    met: Option<NodeId>,
    /// The last one that did not: it shall know that it is heard.
    stranger: NodeId,
}

impl Lives {
    /// Whom a heartbeat of ours names.
    pub(super) fn names(&self) -> [NodeId; HEARD] {
        core::array::from_fn(|at| self.known.get(at).map_or(self.stranger, |life| life.node))
    }

    /// The number of the newest heartbeat of the one that is named first.
    pub(super) fn answers(&self) -> u64 {
        self.known[0].counter()
    }

    /// The machine was met on a stream that began under key number `under`; what it said up to `counter` is of no interest.
    /// Returns the newest number of it.
    pub(super) fn meet(&mut self, node: NodeId, under: usize, counter: u64) -> u64 {
        let mut life = self.life(node).unwrap_or(Life { node, ..Life::default() });
        life.said[under].counter = life.said[under].counter.max(counter);
        self.met = Some(node);
        self.remember(life);
        life.counter()
    }

    /// Judges a genuine heartbeat of another machine to `me`, under key number `under`. `any_names` and `any_number` break a rule.
    pub(super) fn hear(
        &mut self,
        beat: &Heartbeat,
        under: usize,
        me: NodeId,
        any_names: bool,
        any_number: bool,
    ) -> Freshness {
        let known = self.life(beat.node);
        if !beat.heard.contains(&me) && !any_names {
            if known.is_none() {
                self.stranger = beat.node;
            }
            return Freshness::Unanswered;
        }
        let is_late = |newest: u64| known.is_some() && beat.counter <= newest && !any_number;
        let mut life = known.unwrap_or(Life { node: beat.node, ..Life::default() });
        let newest = life.counter();
        let said = &mut life.said[under];
        if is_late(said.counter) {
            return Freshness::Late;
        }
        said.counter = said.counter.max(beat.counter);
        self.remember(life);
        if is_late(newest) { Freshness::Shows } else { Freshness::Fresh }
    }

    /// `node`, which is known, was heard under key number `under` just now.
    pub(super) fn show(&mut self, node: NodeId, under: usize, now: Time) {
        if let Some(life) = self.known.iter_mut().find(|life| life.node == node) {
            life.said[under].at = Some(now);
        }
    }

    /// The machines that named us.
    pub(super) fn known(&self) -> impl Iterator<Item = &Life> {
        self.known.iter().filter(|life| life.node != NodeId(0))
    }

    /// Another key is the newest now.
    pub(super) fn key_came(&mut self) {
        for Life { said, .. } in &mut self.known {
            said.rotate_right(1);
            said[0] = Said::default();
        }
    }

    /// Key number `at` has gone; the other one is the newest.
    pub(super) fn key_went(&mut self, at: usize) {
        for Life { said, .. } in &mut self.known {
            let (mut kept, gone) = (said[1 - at], said[at].counter);
            // Each heartbeat is said under both: a number far beyond is a thief's, and goes with the key.
            if kept.counter == 0 || gone.saturating_sub(kept.counter) <= PLAUSIBLE {
                kept.counter = kept.counter.max(gone);
            }
            *said = [kept, Said::default()];
        }
    }

    /// What is known of `node`.
    pub(super) fn life(&self, node: NodeId) -> Option<Life> {
        self.known().find(|life| life.node == node).copied()
    }

    /// The newest number of `node`'s heartbeats; 0 if there is none.
    pub(super) fn newest(&self, node: NodeId) -> u64 {
        self.life(node).map_or(0, |life| life.counter())
    }

    fn remember(&mut self, life: Life) {
        let known = |node: NodeId| self.known.iter().position(|life| life.node == node);
        let oldest = || self.known.iter().rposition(|life| Some(life.node) != self.met).unwrap_or(0);
        let at = known(life.node).unwrap_or_else(oldest);
        self.known[..=at].rotate_right(1);
        self.known[0] = life;
        if self.stranger == life.node {
            self.stranger = NodeId(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Position, Role, Seq, SessionId, Term, Time};

    const ME: NodeId = NodeId(1);

    fn hear(lives: &mut Lives, node: u64, counter: u64, names_us: bool) -> Freshness {
        hear_under(lives, 0, node, counter, names_us)
    }

    fn hear_under(lives: &mut Lives, under: usize, node: u64, counter: u64, names_us: bool) -> Freshness {
        let mut heard = [NodeId(0); HEARD];
        heard[2] = if names_us { ME } else { NodeId(0) };
        let beat = Heartbeat {
            pair: 0,
            node: NodeId(node),
            peer: NodeId(0),
            counter,
            heard,
            echo: 0,
            answers: 0,
            creator: NodeId(0),
            term: Term(0),
            role: Role::Joining,
            session: SessionId(0),
            linked: false,
            seq: Seq(0),
            position: Position(0),
            time: Time(0),
        };
        lives.hear(&beat, under, ME, false, false)
    }

    #[test]
    fn numbers_rise_and_old_ones_name_somebody_else() {
        let mut lives = Lives::default();
        assert_eq!(hear(&mut lives, 7, 900, false), Freshness::Unanswered);
        assert!(lives.names().contains(&NodeId(7)), "it shall know that it is heard");
        assert_eq!(hear(&mut lives, 7, 5, true), Freshness::Fresh, "an old number of before says nothing");
        assert_eq!(hear(&mut lives, 7, 5, true), Freshness::Late);
        assert_eq!(hear(&mut lives, 7, 4, true), Freshness::Late);
        assert_eq!(hear(&mut lives, 7, 6, true), Freshness::Fresh);
        assert_eq!((lives.meet(NodeId(7), 0, 3), lives.meet(NodeId(8), 0, 30)), (6, 30));
        assert_eq!(hear(&mut lives, 8, 30, true), Freshness::Late);
        assert_eq!(hear(&mut lives, 8, 31, true), Freshness::Fresh);
    }

    /// Somebody has the old key, and says under it what he likes.
    #[test]
    fn numbers_of_a_stolen_key_go_with_it() {
        let mut lives = Lives::default();
        assert_eq!(hear_under(&mut lives, 1, 7, 1, true), Freshness::Fresh);
        assert_eq!(hear_under(&mut lives, 0, 7, 2, true), Freshness::Fresh);
        assert_eq!(hear_under(&mut lives, 1, 7, u64::MAX, true), Freshness::Fresh, "nobody can tell");
        assert_eq!(hear_under(&mut lives, 0, 7, 4, true), Freshness::Shows);
        assert_eq!(hear_under(&mut lives, 0, 7, 4, true), Freshness::Late);
        assert_eq!(hear_under(&mut lives, 1, 7, 5, true), Freshness::Late);
        lives.key_went(1);
        assert_eq!(hear(&mut lives, 7, 4, true), Freshness::Late);
        assert_eq!(hear(&mut lives, 7, 5, true), Freshness::Fresh);
        // A key that comes begins anew, and what was said without it still counts.
        lives.key_came();
        assert_eq!(hear_under(&mut lives, 0, 7, 5, true), Freshness::Shows);
        assert_eq!(hear_under(&mut lives, 0, 7, 6, true), Freshness::Fresh);
        lives.key_went(0);
        assert_eq!(hear(&mut lives, 7, 6, true), Freshness::Late, "that was no thief");
        assert_eq!(hear(&mut lives, 7, 7, true), Freshness::Fresh);
    }

    /// Somebody sends again what many former lives of the pair have said.
    #[test]
    fn a_flood_of_old_ones_does_not_drive_out_who_lives() {
        let mut lives = Lives::default();
        assert_eq!(hear(&mut lives, 7, 1, true), Freshness::Fresh);
        for old in 100..200 {
            assert_eq!(hear(&mut lives, old, 5, false), Freshness::Unanswered);
            assert_eq!(hear(&mut lives, 7, 1, true), Freshness::Late);
            assert_eq!(hear(&mut lives, 7, 9, false), Freshness::Unanswered);
            let names = lives.names();
            assert!(names.contains(&NodeId(7)) && names.contains(&NodeId(old)), "{names:?}");
        }
    }

    /// Somebody sends again, in a fitting order, what former lives of the twin have said to us.
    #[test]
    fn former_lives_of_the_twin_do_not_drive_it_out() {
        let mut lives = Lives::default();
        for node in 101..=103 {
            assert_eq!(hear(&mut lives, node, 9, true), Freshness::Fresh);
        }
        assert_eq!(lives.meet(NodeId(7), 0, 1), 1);
        for counter in 2..50 {
            for old in 101..=103 {
                hear(&mut lives, old, 9, true);
                assert!(lives.names().contains(&NodeId(7)), "{:?}", lives.names());
            }
            assert_eq!(hear(&mut lives, 7, counter - 1, true), Freshness::Late);
            assert_eq!(hear(&mut lives, 7, counter, true), Freshness::Fresh);
        }
    }

    #[test]
    fn who_lives_finds_room_among_those_who_did() {
        let mut lives = Lives::default();
        for node in 2..6 {
            assert_eq!(hear(&mut lives, node, 1, true), Freshness::Fresh);
        }
        assert_eq!(lives.names(), [5, 4, 3, 0].map(NodeId));
        assert_eq!(hear(&mut lives, 4, 2, true), Freshness::Fresh);
        assert_eq!(hear(&mut lives, 6, 1, false), Freshness::Unanswered);
        assert_eq!(lives.names(), [4, 5, 3, 6].map(NodeId));
        assert_eq!(hear(&mut lives, 6, 2, true), Freshness::Fresh);
        assert_eq!(lives.names(), [6, 4, 5, 0].map(NodeId));
    }
}
