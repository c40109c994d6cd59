//! What the model's machines, networks and arbiter are at a moment.

use pollux_ft::decide::{BackupView, Bid, Stance, Word};
use pollux_ft::heartbeat::{HEARD, Heartbeat};
use pollux_ft::{NodeId, Position, Role, Seq, SessionId, Term, Time};
use std::collections::{BTreeSet, VecDeque};

/// Machines at most.
const MACHINES: usize = 3;
/// Terms that can be asked for, from 0: more than any bounds let machines reach.
const TERMS: usize = 8;

/// An entry of the log, and with it a frame of the guest's. The log is the guest's whole history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Entry {
    /// The guest saw an input, on this node first, and made a frame.
    Input(NodeId),
    /// The guest goes over to the backup.
    SwitchOver,
    /// The guest switched itself off.
    PowerOff,
}

/// What goes along a stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Message {
    /// From the one that wants to join, then from its primary.
    Hello { node: NodeId, term: Term },
    /// A session begins.
    Begin { session: SessionId, term: Term, next: Term },
    /// The whole state.
    State(Vec<Entry>),
    /// The backup is complete.
    Joined,
    /// The next entry.
    Entry(Entry),
    /// The backup holds so many entries.
    Ack(usize),
    /// The joiner follows nobody.
    Refuse,
    /// The machine goes out of service.
    Leaving,
    /// The guest that was handed over runs here, in this term.
    TookOver(Term),
    /// Let us bid for this later term; and the answer that agrees.
    BidFor(Term),
}

/// What a heartbeat says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Beat {
    node: NodeId,
    peer: NodeId,
    term: Term,
    role: Role,
    session: SessionId,
    linked: bool,
    /// Its sender has said Hello since then.
    pub(super) before_hello: bool,
    /// Machines that start by themselves: whom the sender heard last, and the mark of that; the sender's own mark; who is to
    /// create a guest.
    pub(super) heard: Option<(NodeId, u64)>,
    pub(super) mark: u64,
    creator: NodeId,
}

impl Beat {
    /// As the protocol sees it.
    pub(super) fn heartbeat(self) -> Heartbeat {
        let Self { node, peer, term, role, session, linked, creator, .. } = self;
        let (pair, counter, echo, seq, position, time) = (0, 0, 0, Seq(0), Position(0), Time(0));
        let heard = [NodeId(0); HEARD];
        let answers = 0;
        Heartbeat {
            pair,
            node,
            peer,
            counter,
            heard,
            answers,
            creator,
            echo,
            term,
            role,
            session,
            linked,
            seq,
            position,
            time,
        }
    }

    /// What it says of the creation of a guest to `machine`, unless it was made for another life than that.
    pub(super) fn word(self, machine: &Machine) -> Option<Word> {
        let Self { node, role, creator, .. } = self;
        let (_, mark) = self.heard.filter(|(heard, _)| *heard == machine.node)?;
        Some(Word { node, role, creator, current: mark >= machine.mark })
    }
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Machine {
    pub(super) node: NodeId,
    pub(super) role: Role,
    pub(super) term: Term,
    pub(super) next: Term,
    pub(super) bid: Bid,
    pub(super) session: SessionId,
    pub(super) peer: Option<NodeId>,
    /// The machine at the other end of its stream, and whether both ends agreed to be twins.
    pub(super) link: Option<usize>,
    pub(super) paired: bool,
    /// It was refused a term, now or before it was switched on again.
    pub(super) refused: bool,
    /// The twin was silent for so long that it counts as dead.
    pub(super) silent: bool,
    /// Primary: the state was sent. Backup: the primary left in order.
    pub(super) state_sent: bool,
    pub(super) primary_left: bool,
    /// Backup: the newest term that it proposed to bid for, until its primary agreed.
    pub(super) proposed: Option<Term>,
    /// The log since the guest was created; how much of it the guest here has seen, and the twin is known to hold.
    pub(super) log: Vec<Entry>,
    pub(super) applied: usize,
    pub(super) acked: usize,
    /// It starts by itself: how it stands to the creation of a guest, how often that changed, whether it never had one, and
    /// has listened long enough; whom it heard last, and the mark of that.
    pub(super) stance: Stance,
    pub(super) mark: u64,
    pub(super) pristine: bool,
    pub(super) listened: bool,
    pub(super) heard: Option<(NodeId, u64)>,
}

impl Machine {
    /// A machine that was just switched on and looks for a primary.
    pub(super) fn joining(node: NodeId) -> Self {
        Self {
            node,
            role: Role::Joining,
            term: Term(0),
            next: Term(0),
            bid: Bid::None,
            session: SessionId(0),
            peer: None,
            link: None,
            paired: false,
            refused: false,
            silent: false,
            state_sent: false,
            primary_left: false,
            proposed: None,
            log: Vec::new(),
            applied: 0,
            acked: 0,
            stance: Stance::Listens,
            mark: 0,
            pristine: false,
            listened: false,
            heard: None,
        }
    }

    /// One that was just switched on and finds out by itself what it is.
    pub(super) fn automatic(node: NodeId) -> Self {
        Self { pristine: true, mark: 1, ..Self::joining(node) }
    }

    /// It is open who creates the guest, as far as it is concerned.
    pub(super) fn is_vacant(&self) -> bool {
        matches!(self.role, Role::Joining | Role::Starting)
    }

    /// One that runs the guest in the first term.
    pub(super) fn first(node: NodeId) -> Self {
        Self { role: Role::Alone, term: Term(1), next: Term(2), ..Self::joining(node) }
    }

    pub(super) fn beat(&self) -> Beat {
        Beat {
            node: self.node,
            peer: self.peer.unwrap_or(NodeId(0)),
            term: self.term,
            role: self.role,
            session: self.session,
            // Nobody asks this of others.
            linked: match self.role {
                Role::Joining => self.link.is_some(),
                role => role.is_backup() && self.link.is_some() && self.paired,
            },
            before_hello: false,
            heard: self.heard,
            mark: self.mark,
            creator: if self.is_vacant() { self.stance.creator(self.node) } else { NodeId(0) },
        }
    }

    pub(super) fn view(&self) -> BackupView {
        BackupView {
            role: self.role,
            primary_silent: self.silent,
            primary_left: self.primary_left,
            powered_off: self.is_powered_off(),
            drained: self.applied == self.log.len(),
            term_granted: self.bid == Bid::Won,
        }
    }

    /// Inputs that the guest saw.
    pub(super) fn inputs(&self) -> usize {
        self.log.iter().filter(|entry| matches!(entry, Entry::Input(_))).count()
    }

    /// The log says that the guest switched itself off.
    pub(super) fn is_powered_off(&self) -> bool {
        self.log.last() == Some(&Entry::PowerOff)
    }

    /// The log that it follows ended with the hand-over to it.
    pub(super) fn is_handed_over(&self) -> bool {
        self.primary_left && self.log.last() == Some(&Entry::SwitchOver)
    }

    /// The twin holds a log that ends with the hand-over.
    pub(super) fn handover_acked(&self) -> bool {
        self.role == Role::HandingOver && self.acked == self.log.len()
    }

    /// Frames leave as soon as they are made.
    pub(super) fn is_open(&self) -> bool {
        self.role.is_primary() && !pollux_ft::decide::holds_output(self.role, self.state_sent)
    }
}

/// What went wrong since the guest was last protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Faults {
    /// It was not protected yet.
    Unprotected,
    /// Nothing.
    Calm,
    /// Networks failed, or machines were slow.
    Disturbed,
    /// A machine failed, and nothing else.
    Failed,
    /// More than that.
    Many,
}

/// A rule that was broken on the way to a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Flaw {
    /// A client saw what is not in the past of the guest that goes on.
    Lost,
    /// A guest that switched itself off was taken over.
    AfterPowerOff,
    /// A backup asked for a term although it heard its primary, which had not let go of it.
    NeedlessBid,
    /// A primary heard of a newer one and went on.
    Superseded,
    /// A guest was created although a machine had one.
    TwoLives,
}

/// The id of the node that starts as number `number`, from 0: the newer a life, the lower its id, so that it is the one to
/// create a guest.
pub(super) fn automatic_node(number: u64) -> NodeId {
    NodeId(100 - number)
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) machines: Vec<Machine>,
    /// What is under way on the streams, by receiver.
    pub(super) queues: [VecDeque<Message>; MACHINES],
    /// The heartbeat that is under way from each machine to each: it may come late, more than once, or never.
    pub(super) beats: [[Option<Beat>; MACHINES]; MACHINES],
    /// Who won each term.
    pub(super) winners: [Option<NodeId>; TERMS],
    /// Questions that are under way to the arbiter. Who asked may be gone.
    pub(super) requests: BTreeSet<(NodeId, Term)>,
    /// What clients saw.
    pub(super) wire: Vec<Entry>,
    /// Nodes that started so far.
    pub(super) nodes: u64,
    /// Terms that backups proposed to burn.
    pub(super) burnt: u64,
    /// The guest ended by its own will.
    pub(super) ended: bool,
    /// Guests that were created by machines that started by themselves.
    pub(super) created: u64,
    pub(super) faults: Faults,
    pub(super) flaw: Option<Flaw>,
}

impl State {
    /// Machines that start by themselves.
    pub(super) fn cold(machines: usize) -> Self {
        let own = (0..machines as u64).map(|number| Machine::automatic(automatic_node(number))).collect();
        Self { machines: own, winners: [None; TERMS], ..Self::new(machines) }
    }

    pub(super) fn new(machines: usize) -> Self {
        let node = |index: usize| NodeId(index as u64 + 1);
        let mut winners = [None; TERMS];
        winners[1] = Some(node(0));
        let joining = (1..machines).map(|index| Machine::joining(node(index)));
        Self {
            machines: core::iter::once(Machine::first(node(0))).chain(joining).collect(),
            queues: Default::default(),
            beats: Default::default(),
            winners,
            requests: BTreeSet::new(),
            wire: Vec::new(),
            nodes: machines as u64,
            burnt: 0,
            ended: false,
            created: 0,
            faults: Faults::Unprotected,
            flaw: None,
        }
    }

    /// The machine with this node, if it runs.
    pub(super) fn running(&self, node: Option<NodeId>) -> Option<&Machine> {
        self.machines.iter().find(|machine| Some(machine.node) == node && machine.role != Role::Halted)
    }

    /// Something went wrong that was no machine's end.
    pub(super) fn disturbed(&mut self) {
        self.faults = match self.faults {
            Faults::Calm | Faults::Disturbed => Faults::Disturbed,
            Faults::Failed | Faults::Many => Faults::Many,
            Faults::Unprotected => Faults::Unprotected,
        };
    }

    /// A machine with the guest is no more.
    pub(super) fn failed(&mut self) {
        self.faults = match self.faults {
            Faults::Calm => Faults::Failed,
            Faults::Unprotected => Faults::Unprotected,
            _ => Faults::Many,
        };
    }

    /// Whether some machine has the guest.
    pub(super) fn has_guest(&self) -> bool {
        self.machines.iter().any(|machine| machine.role.is_primary() || machine.role.is_backup())
    }

    /// The terms that somebody won.
    pub(super) fn decided(&self) -> impl Iterator<Item = Term> {
        let terms = self.winners.iter().enumerate();
        terms.filter(|(_, winner)| winner.is_some()).map(|(term, _)| Term(term as u64))
    }

    pub(super) fn winner(&self, term: Term) -> Option<NodeId> {
        self.winners.get(term.0 as usize).copied().flatten()
    }
}
