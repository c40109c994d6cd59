//! What can happen, in the order of time.

use crate::frame::Reply;
use crate::trace::Who;
use pollux_ft::{NodeId, Term};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Something that happens at a time.
#[derive(Debug)]
pub(crate) enum Event {
    /// A machine wanted to be called.
    Wake {
        machine: usize,
    },
    /// A machine is called whether it wanted to or not.
    Nudge {
        machine: usize,
    },
    Datagram {
        to: usize,
        bytes: Vec<u8>,
    },
    /// Bytes, or the end, of the direction of a stream that leads away from `end`.
    Bytes {
        stream: usize,
        end: usize,
    },
    /// A machine hears that its stream is up, or that it is no more.
    Connected {
        stream: usize,
        machine: usize,
    },
    Reset {
        stream: usize,
        machine: usize,
    },
    Dial {
        machine: usize,
    },
    ArbiterAsked {
        machine: usize,
        node: NodeId,
        term: Term,
    },
    ArbiterAnswers {
        machine: usize,
        node: NodeId,
        term: Term,
        winner: NodeId,
    },
    /// Somebody wants to know which term is the newest, and hears of it.
    ArbiterLooked {
        machine: usize,
        node: NodeId,
    },
    ArbiterShows {
        machine: usize,
        node: NodeId,
        newest: Term,
    },
    /// A frame of a client's, or of the guest's, arrives; `life` is the guest that there was when it was sent.
    ToGuest {
        life: u64,
        frame: Vec<u8>,
    },
    ToClient {
        life: u64,
        client: usize,
        reply: Reply,
    },
    ClientTimer {
        client: usize,
        timer: u64,
    },
    /// The next fault.
    Fault,
    /// The attacker's turn.
    Attack,
    /// The operator's.
    Operate,
    /// A datagram of his.
    Forgery {
        to: usize,
        bytes: Vec<u8>,
    },
    /// A fault that lasts is over.
    Over(Lasting),
    Restart {
        machine: usize,
    },
    Thaw {
        machine: usize,
    },
    /// The world looks whether all is well.
    Look,
}

/// A fault that lasts for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lasting {
    Cut { from: usize, to: usize },
    Card { machine: usize },
    Disk { machine: usize },
    Network,
    Arbiter,
}

impl Event {
    /// Whom it happens to, and a number for the trace's hash.
    pub(crate) fn tag(&self) -> (Who, u64) {
        match self {
            Self::Wake { machine } => (Who::Machine(*machine), 1),
            Self::Nudge { machine } => (Who::Machine(*machine), 2),
            Self::Datagram { to, .. } => (Who::Machine(*to), 3),
            Self::Bytes { stream, end } => (Who::World, 4 + 32 * (*stream as u64 * 2 + *end as u64)),
            Self::Connected { machine, .. } => (Who::Machine(*machine), 5),
            Self::Reset { machine, .. } => (Who::Machine(*machine), 6),
            Self::Dial { machine } => (Who::Machine(*machine), 7),
            Self::ArbiterAsked { term, .. } => (Who::Arbiter, 8 + 32 * term.0),
            Self::ArbiterAnswers { machine, term, .. } => (Who::Machine(*machine), 9 + 32 * term.0),
            Self::ArbiterLooked { .. } => (Who::Arbiter, 20),
            Self::ArbiterShows { machine, newest, .. } => (Who::Machine(*machine), 21 + 32 * newest.0),
            Self::ToGuest { frame, .. } => (Who::World, 10 + 32 * frame.len() as u64),
            Self::ToClient { client, reply, .. } => (Who::Client(*client), 11 + 32 * reply.value),
            Self::ClientTimer { client, .. } => (Who::Client(*client), 12),
            Self::Fault => (Who::World, 13),
            Self::Over(_) => (Who::World, 14),
            Self::Restart { machine } => (Who::Machine(*machine), 15),
            Self::Thaw { machine } => (Who::Machine(*machine), 16),
            Self::Look => (Who::World, 17),
            Self::Attack => (Who::World, 18),
            Self::Operate => (Who::World, 22),
            Self::Forgery { to, .. } => (Who::Machine(*to), 19),
        }
    }

    /// What the trace says of it, if it is worth a line.
    pub(crate) fn words(&self) -> Option<String> {
        Some(match self {
            Self::Connected { .. } => "stream up".to_owned(),
            Self::Reset { .. } => "stream reset".to_owned(),
            Self::ArbiterAsked { machine, term, .. } => {
                format!("asked for term {} by {}", term.0, Who::Machine(*machine))
            }
            Self::ArbiterAnswers { node, term, winner, .. } => {
                let verdict = if node == winner { "granted" } else { "taken" };
                format!("the arbiter answers: term {} is {verdict}", term.0)
            }
            Self::ToClient { reply, .. } => format!("gets {} for request {}", reply.value, reply.number),
            Self::Over(lasting) => format!("over: {lasting:?}"),
            Self::Restart { .. } => "is switched on again".to_owned(),
            Self::ArbiterShows { newest, .. } => format!("the arbiter shows that term {} is the newest", newest.0),
            Self::Thaw { .. } => "goes on after its freeze".to_owned(),
            _ => return None,
        })
    }
}

#[derive(Debug)]
struct Entry {
    at: u64,
    number: u64,
    event: Event,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

/// Events to come: by time, then in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Entry>,
    made: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, at: u64, event: Event) {
        self.made += 1;
        self.heap.push(Entry { at, number: self.made, event });
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, Event)> {
        self.heap.pop().map(|entry| (entry.at, entry.event))
    }
}
