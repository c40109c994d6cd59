//! What a machine has around its driver: a clock, a card behind a gate, a stream, a question to the arbiter. And a fuse.

use super::disk::OwnDisk;
use super::suspicion::Suspicion;
use super::{ASK_AGAIN, Blow};
use crate::check::{Check, LogId};
use crate::world::Env;
use pollux_driver::{ArbiterLine, Boundary, Clock, LogLink};
use pollux_ft::{NodeId, Seq, Term, Time};
use pollux_nic::{Gate, GateMode};
use std::collections::VecDeque;

/// Ends a turn after some steps that others can notice.
#[derive(Debug, Default)]
pub(crate) struct Fuse {
    lit: Option<(u32, Blow)>,
    blown: Option<Blow>,
}

impl Fuse {
    /// Whether the next step may be made.
    pub(super) fn goes_on(&mut self) -> bool {
        match &mut self.lit {
            Some((0, blow)) => (self.blown, self.lit) = (Some(*blow), None),
            Some((steps, _)) => *steps -= 1,
            None => {}
        }
        self.blown.is_none()
    }
}

/// A question to the arbiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Question {
    term: Term,
    again_at: u64,
}

/// An `Output` entry, and how many frames the guest had made by then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seal {
    pub(super) log: LogId,
    pub(super) seq: Seq,
    pub(super) end: u64,
}

/// The devices of a machine, and what the world notes about them.
#[derive(Debug)]
pub(crate) struct Devices {
    pub(crate) index: usize,
    /// The name of the node; a machine that starts again has another one.
    pub(crate) id: NodeId,
    /// What this machine's clock shows beyond the world's, in microseconds.
    pub(super) clock_offset: u64,
    pub(crate) gate: Gate,
    pub(crate) stream: Option<usize>,
    /// Frames of clients that wait for an exact stop.
    pub(crate) ingress: VecDeque<Vec<u8>>,
    question: Option<Question>,
    /// When to look again which term is the newest.
    look_at: Option<u64>,
    /// Hashes of all frames that the guest ever made.
    pub(super) history: Vec<u64>,
    /// The newest log that this machine wrote to, and its `Output` entries whose frames have not left.
    pub(super) log: LogId,
    pub(super) seals: VecDeque<Seal>,
    /// Frames made before output was held.
    pub(super) unheld: u64,
    pub(super) suspicion: Suspicion,
    /// Its guest's state was damaged on purpose.
    pub(crate) flipped: bool,
    /// It creates a guest just now: the date.
    pub(super) creates_at: Option<u64>,
    /// Its guest stands still, and nobody tells the node.
    pub(crate) hangs: bool,
    pub(super) fuse: Fuse,
    pub(crate) disk: OwnDisk,
}

impl Devices {
    pub(super) fn new(index: usize, id: NodeId, clock_offset: u64, gate_frames: usize) -> Self {
        Self {
            index,
            id,
            clock_offset,
            gate: Gate::new(gate_frames, gate_frames * 300),
            stream: None,
            ingress: VecDeque::new(),
            question: None,
            look_at: None,
            history: Vec::new(),
            log: LogId::default(),
            seals: VecDeque::new(),
            unheld: 0,
            suspicion: Suspicion::default(),
            flipped: false,
            creates_at: None,
            hangs: false,
            fuse: Fuse::default(),
            disk: OwnDisk::default(),
        }
    }

    /// The devices where they are.
    pub(crate) fn in_world<'a>(&'a mut self, env: &'a mut Env) -> InWorld<'a> {
        InWorld { env, own: self }
    }

    pub(super) fn is_open(&self) -> bool {
        self.gate.mode() == GateMode::Open
    }

    pub(super) fn is_well(&self) -> bool {
        self.fuse.lit.is_none()
            && self.fuse.blown.is_none()
            && !self.flipped
            && !self.hangs
            && !self.disk.fails
            && self.question.is_none()
    }

    /// It is to end after `steps` steps that others can notice.
    pub(crate) fn light_fuse(&mut self, steps: u32, blow: Blow) {
        self.fuse.lit = Some((steps, blow));
    }

    /// What ended the turn early, if anything did.
    pub(crate) fn blown(&self) -> Option<Blow> {
        self.fuse.blown
    }

    /// It goes on after it was frozen.
    pub(super) fn thaw(&mut self) {
        self.fuse.blown = None;
    }

    /// It stands still for a while, unless it is to end anyway.
    pub(super) fn is_busy_for(&mut self, span: u64) {
        self.fuse.lit.get_or_insert((0, Blow::Freeze(span)));
    }

    /// The question for `term` is answered.
    pub(super) fn answered(&mut self, term: Term) {
        self.question.take_if(|question| question.term == term);
    }

    /// Asks the arbiter, again and again until it answers.
    pub(super) fn ask(&mut self, env: &mut Env) {
        let Some(question) = self.question.filter(|question| question.again_at <= env.now) else { return };
        if self.fuse.goes_on() {
            let again_at = env.now + ASK_AGAIN;
            self.question = Some(Question { again_at, ..question });
            env.ask_arbiter(self.index, self.id, question.term);
        }
    }

    /// Looks which term is the newest, again and again as long as that is wanted.
    pub(super) fn look(&mut self, env: &mut Env, wanted: bool) {
        if wanted && self.look_at.is_none_or(|at| at <= env.now) && self.fuse.goes_on() {
            self.look_at = Some(env.now + ASK_AGAIN);
            env.look_at_arbiter(self.index, self.id);
        } else if !wanted {
            self.look_at = None;
        }
    }

    /// When to ask or look next.
    pub(super) fn asks_at(&self) -> Option<u64> {
        self.question.map(|question| question.again_at).into_iter().chain(self.look_at).min()
    }
}

/// A machine's devices in the world, for one turn: what its driver works with.
pub(crate) struct InWorld<'a> {
    pub(super) env: &'a mut Env,
    pub(super) own: &'a mut Devices,
}

impl InWorld<'_> {
    /// A rule is broken.
    pub(super) fn broken(&mut self, check: Check, text: String) {
        self.env.audit.broken(check, text);
    }

    pub(super) fn boundary(&mut self, at: Boundary) -> bool {
        match at {
            // Nothing that is between these can be noticed outside.
            Boundary::Logged(_) | Boundary::Sent => true,
            Boundary::Action | Boundary::Step | Boundary::Send => self.own.fuse.goes_on(),
        }
    }
}

impl Clock for InWorld<'_> {
    fn now(&mut self) -> Time {
        Time(self.env.now + self.own.clock_offset)
    }

    fn unix_time(&mut self) -> u64 {
        self.env.date()
    }
}

impl ArbiterLine for InWorld<'_> {
    fn ask(&mut self, term: Term) {
        self.own.question = Some(Question { term, again_at: self.env.now });
    }

    fn withdraw(&mut self) {
        self.own.question = None;
    }
}

impl LogLink for InWorld<'_> {
    fn send_datagram(&mut self, datagram: &[u8]) {
        self.env.send_datagram(self.own.index, datagram);
    }

    fn send(&mut self, bytes: &[u8]) -> usize {
        let stream = self.own.stream;
        stream.map_or(0, |stream| self.env.send_bytes(stream, self.own.index, bytes, false))
    }

    fn flush(&mut self) {}

    /// What is left is sent, and the stream closed.
    fn hang_up(&mut self, rest: &[u8]) -> usize {
        let Some(stream) = self.own.stream.take() else { return 0 };
        let sent = self.env.send_bytes(stream, self.own.index, rest, true);
        self.env.close_stream(stream, self.own.index);
        sent
    }
}
