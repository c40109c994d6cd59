//! Whose heartbeats were made just now.
//!
//! The key says that a machine of the pair made a heartbeat, and not when: whoever watched the wire can send old ones again,
//! of a former life of the pair, too. So each machine names in its heartbeats those that it has heard, by ids that are
//! drawn at random at each start. A heartbeat that names us was made after we started. Of each machine numbers must rise.

use crate::heartbeat::{HEARD, Heartbeat};
use crate::types::NodeId;

/// What a genuine heartbeat is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    /// It was made since we started, and after all others of its sender.
    Fresh,
    /// It does not name us: of old, or of a machine that has not heard us yet.
    Unanswered,
    /// It came before, or a later one did.
    Late,
}

/// A machine between two starts, and the newest number of its heartbeats.
#[derive(Debug, Clone, Copy, Default)]
struct Life {
    /// 0 is nobody.
    node: NodeId,
    counter: u64,
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
        self.known[0].counter
    }

    /// The machine was met on the stream; what it said up to `counter` is of no interest. Returns the newest number of it.
    pub(super) fn meet(&mut self, node: NodeId, counter: u64) -> u64 {
        let newest = self.newest(node).unwrap_or(0).max(counter);
        self.met = Some(node);
        self.remember(Life { node, counter: newest });
        newest
    }

    /// Judges a genuine heartbeat of another machine to `me`. `any_names` and `any_number` break a rule.
    pub(super) fn hear(&mut self, beat: &Heartbeat, me: NodeId, any_names: bool, any_number: bool) -> Freshness {
        let newest = self.newest(beat.node);
        if !beat.heard.contains(&me) && !any_names {
            if newest.is_none() {
                self.stranger = beat.node;
            }
            return Freshness::Unanswered;
        }
        if newest.is_some_and(|newest| beat.counter <= newest) && !any_number {
            return Freshness::Late;
        }
        self.remember(Life { node: beat.node, counter: beat.counter.max(newest.unwrap_or(0)) });
        Freshness::Fresh
    }

    fn newest(&self, node: NodeId) -> Option<u64> {
        self.known.iter().find(|life| life.node == node).map(|life| life.counter)
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
        lives.hear(&beat, ME, false, false)
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
        assert_eq!((lives.meet(NodeId(7), 3), lives.meet(NodeId(8), 30)), (6, 30));
        assert_eq!(hear(&mut lives, 8, 30, true), Freshness::Late);
        assert_eq!(hear(&mut lives, 8, 31, true), Freshness::Fresh);
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
        assert_eq!(lives.meet(NodeId(7), 1), 1);
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
