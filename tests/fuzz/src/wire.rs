//! What comes over networks: from the twin and from the arbiter.

use std::net::Ipv4Addr;

use arbitrary::{Arbitrary, Unstructured};
use pollux_ft::arbiter::sealed::{ArbiterKey, Received};
use pollux_ft::arbiter::{ArbiterId, Ask, Failure, Look, Manner, Question, Try};
use pollux_ft::heartbeat::{Datagram, Heartbeat, pair_digest};
use pollux_ft::message::Message;
use pollux_ft::seal::{MAX_PAYLOAD, Sealer};
use pollux_ft::{
    Action, Config, EntryRef, Identity, Meeting, Node, NodeId, PairKey, Position, Protection, Role, Seq, SessionId,
    Span, Start, Term, Time, Verdict,
};

const PAIR: &str = "gemini";
const MEETING: Meeting = Meeting { dialer: Ipv4Addr::LOCALHOST, listener: Ipv4Addr::LOCALHOST, random: [0; 32] };

fn identity(node: u64) -> Identity {
    Identity {
        node: NodeId(node),
        pair: PAIR.into(),
        build: "fuzzed".into(),
        cpu_digest: 1,
        cpu_name: "model".into(),
        counter: "ticks".into(),
        guest_memory: 1 << 20,
        guest_image: "guest".into(),
        disk: "none".into(),
        guest_mac: [2, 0, 0, 0, 0, 1],
        guest_bridges: false,
        broken_rule: String::new(),
    }
}

/// One message, whose kind is the first byte. What is understood is written again as it was.
pub(crate) fn message(data: &[u8]) {
    let Some((&kind, payload)) = data.split_first() else { return };
    let Ok(message) = Message::decode(kind, payload) else { return };
    let mut again = Vec::new();
    message.encode(&mut again);
    assert_eq!(message.kind(), kind);
    // Of a version that is not ours only the number is read.
    assert!(again == payload || payload.starts_with(&again) && kind == 1, "{message:?}");
}

/// What happens to a node: mostly what its twin says.
#[derive(Debug, Arbitrary)]
enum Input<'a> {
    /// A message as the twin would seal it, whatever is in it.
    Sealed(u8, &'a [u8]),
    /// Bytes that nobody sealed.
    Raw(&'a [u8]),
    /// A sign of life as the twin would send it.
    Beat(Beat),
    /// All that an honest twin says now.
    Twin,
    /// The connection ends, and there is a new one.
    Again,
    /// Milliseconds pass.
    Wait(u8),
    /// The guest says something, if that is empty, or is to hear this.
    Log(&'a [u8]),
    /// The guest runs on.
    Run(u16),
    /// The arbiter says this about the term asked for.
    Answer(bool),
    /// A look was answered by this arbiter.
    Look(u8),
    /// An operator wants something.
    Switch,
    Stop,
}

/// The fields of a sign of life that a twin chooses.
#[derive(Debug, Arbitrary)]
struct Beat {
    node: u8,
    peer: u8,
    counter: u16,
    echo: u16,
    term: u8,
    role: u8,
    session: u64,
    linked: bool,
    seq: u16,
    position: u32,
    /// It names the machine, which is node 1.
    answers: bool,
}

impl Beat {
    fn datagram(&self, session: SessionId) -> Datagram {
        Heartbeat {
            pair: pair_digest(PAIR),
            node: NodeId(u64::from(self.node)),
            peer: NodeId(u64::from(self.peer)),
            counter: u64::from(self.counter),
            heard: [NodeId(u64::from(self.answers)), NodeId(0), NodeId(0), NodeId(0)],
            echo: u64::from(self.echo),
            answers: u64::from(self.echo),
            creator: NodeId(u64::from(self.peer)),
            term: Term(u64::from(self.term)),
            role: Role::ALL[usize::from(self.role) % Role::ALL.len()],
            session: if self.session.is_multiple_of(4) { session } else { SessionId(self.session) },
            linked: self.linked,
            seq: Seq(u64::from(self.seq)),
            position: Position(u64::from(self.position)),
            time: Time(0),
        }
        .encode(&Protection::default())
    }
}

/// A machine: its node, and where its guest stands.
struct Machine {
    node: Node,
    position: Position,
}

impl Machine {
    fn new(id: u64, start: Start) -> Self {
        let config = Config { arbiter: true, ..Config::default() };
        let mut node = Node::new(Time(0), start, config, identity(id)).expect("the configuration is sane");
        node.arbiter_answered(Time(0), Term(1), Verdict::Granted);
        Self { node, position: Position(0) }
    }

    /// Does what the node asks for, and what a guest would do meanwhile, as a driver does.
    fn serve(&mut self, now: Time) {
        while let Some(action) = self.node.poll_action() {
            match action {
                Action::BeginTransfer => {
                    // It may have ended before it began.
                    let _ = self.node.push_memory(0x3000, &[7; 4096]);
                    let _ = self.node.push_machine(&[1, 2, 3]);
                    let _ = self.node.finish_state(self.position, 99);
                }
                Action::StateLoaded { position, .. } => {
                    self.position = position;
                    self.node.joined(now);
                }
                Action::CloseConnection => self.node.disconnected(now),
                Action::HandedOver { .. } | Action::Abandoned { .. } => self.position = Position(0),
                _ => {}
            }
        }
        while let Some(position) = self.node.next_record().map(|record| record.position) {
            self.position = position;
            self.node.applied(now, position);
        }
        if self.node.role() == Role::Draining
            && let Some(limit) = self.node.run_limit()
        {
            self.run_to(limit);
            // Not before the arbiter has granted the term.
            let _ = self.node.go_live(now, self.position);
        }
    }

    fn run_to(&mut self, position: Position) {
        self.position = self.position.max(position);
        self.node.progress(self.position);
    }

    /// Runs the guest so many ticks, or as far as it may.
    fn run(&mut self, ticks: u64) {
        let target = Position(self.position.0.saturating_add(ticks));
        if self.node.role().runs_guest() {
            self.run_to(target);
        } else if let Some(limit) = self.node.run_limit() {
            self.run_to(target.min(limit));
        }
    }
}

/// A machine with a twin that says what it likes, now and then even the truth.
struct Desk {
    now: Time,
    machine: Machine,
    honest: Machine,
    sealer: Sealer,
    /// The stream has carried what is forged: an honest twin's messages have other numbers.
    forged: bool,
}

impl Desk {
    fn new(start: Start) -> Self {
        let other = if start == Start::Primary { Start::Backup } else { Start::Primary };
        let (machine, honest) = (Machine::new(1, start), Machine::new(2, other));
        let mut desk = Self { now: Time(0), machine, honest, sealer: Sealer::default(), forged: false };
        desk.connect();
        desk
    }

    fn connect(&mut self) {
        (self.sealer, self.forged) = (Sealer::default(), false);
        self.machine.node.connected(self.now, self.machine.node.handshake(&MEETING));
        self.honest.node.connected(self.now, self.honest.node.handshake(&MEETING));
    }

    fn receive(&mut self, mut bytes: &[u8]) {
        self.forged = true;
        while !bytes.is_empty() {
            let taken = self.machine.node.receive(self.now, bytes);
            bytes = &bytes[taken..];
            self.settle();
            if taken == 0 {
                return;
            }
        }
    }

    /// Both say all that they have to say.
    fn exchange(&mut self) {
        for _ in 0..8 {
            let mut said = 0;
            said += pass(self.now, &mut self.honest.node, &mut self.machine.node, self.forged);
            said += pass(self.now, &mut self.machine.node, &mut self.honest.node, false);
            self.settle();
            if said == 0 {
                return;
            }
        }
    }

    fn settle(&mut self) {
        self.machine.serve(self.now);
        self.honest.serve(self.now);
        let node = &self.machine.node;
        assert_eq!(node.invariants(), Ok(()), "as {:?}", node.role());
    }

    fn take(&mut self, input: &Input<'_>) {
        let (now, machine) = (self.now, &mut self.machine);
        match *input {
            Input::Sealed(kind, payload) => {
                let mut bytes = Vec::new();
                let payload = &payload[..payload.len().min(MAX_PAYLOAD)];
                self.sealer.seal(&mut bytes, kind, |out| out.extend_from_slice(payload));
                self.receive(&bytes);
            }
            Input::Raw(bytes) => self.receive(bytes),
            Input::Beat(ref beat) => machine.node.heartbeat_received(now, &beat.datagram(machine.node.session())),
            Input::Twin => self.exchange(),
            Input::Again => self.connect(),
            Input::Wait(ms) => {
                self.now = now.after(Span::from_millis(u64::from(ms)));
                machine.node.tick(self.now);
                self.honest.node.tick(self.now);
            }
            Input::Log(bytes) => {
                let entry = if bytes.is_empty() { EntryRef::Output } else { EntryRef::PacketIn(bytes) };
                // There may be no log, or no room in it.
                let _ = machine.node.append(now, machine.position, entry);
            }
            Input::Run(ticks) => machine.run(u64::from(ticks)),
            Input::Answer(granted) => {
                let verdict = if granted { Verdict::Granted } else { Verdict::Taken };
                if let Some(term) = machine.node.asks_for() {
                    machine.node.arbiter_answered(now, term, verdict);
                }
            }
            Input::Look(arbiter) => machine.node.arbiter_seen(ArbiterId(u64::from(arbiter))),
            Input::Switch => drop(machine.node.switch_over(now, machine.position)),
            Input::Stop => machine.node.stop(now),
        }
        self.settle();
    }
}

/// Hands over what `from` has to say, how much it was. Who is `deaf` does not hear the stream.
fn pass(now: Time, from: &mut Node, to: &mut Node, deaf: bool) -> usize {
    let bytes = from.transmit().to_vec();
    let taken = if deaf { bytes.len() } else { to.receive(now, &bytes) };
    from.transmitted(taken);
    if let Some(datagram) = from.poll_datagram(now) {
        to.heartbeat_received(now, &datagram);
    }
    taken
}

/// A whole node: whatever its twin says, it keeps its invariants.
pub(crate) fn stream(data: &[u8]) {
    let mut source = Unstructured::new(data);
    let start = if source.arbitrary().unwrap_or(false) { Start::Primary } else { Start::Backup };
    let mut desk = Desk::new(start);
    while !source.is_empty()
        && let Ok(input) = source.arbitrary()
    {
        desk.take(&input);
    }
}

/// One datagram. What is understood is written again as it was.
pub(crate) fn heartbeat(data: &[u8]) {
    let protection = Protection::default();
    if let Ok(beat) = Heartbeat::decode(data, &protection) {
        assert_eq!(beat.encode(&protection), *data);
    }
    for start in [Start::Primary, Start::Backup] {
        let mut machine = Machine::new(1, start);
        machine.node.heartbeat_received(Time(1), data);
        assert_eq!(machine.node.invariants(), Ok(()));
    }
}

/// The arbiter's answer to a question and to a look, in pieces, and a question to an arbiter. How it is cut makes no
/// difference, and without the key nothing is an answer or a question.
pub(crate) fn arbiter(data: &[u8]) {
    let Some((&[cut, agreed], response)) = data.split_first_chunk() else { return };
    let agreed = (agreed != 0).then_some(ArbiterId(u64::from(agreed)));
    let mut look = Look::new(PAIR);
    look.agree_on(agreed);
    both_ways(&look, response, cut);
    both_ways(&Question::new(PAIR, Term(7), NodeId(0xAA), "castor").of(agreed), response, cut);
    assert!(Received::open(&key(), response).is_err());
}

fn key() -> ArbiterKey {
    ArbiterKey::from(&PairKey::new(&[7; 32]))
}

fn both_ways<A: Ask>(ask: &A, response: &[u8], cut: u8)
where
    A::Answer: PartialEq + std::fmt::Debug,
{
    for manner in [Manner::Etcd, Manner::Sealed(key())] {
        let whole = outcome(ask, &manner, &mut std::iter::once(response));
        assert_eq!(whole, outcome(ask, &manner, &mut response.chunks(usize::from(cut).max(1))));
        assert!(manner == Manner::Etcd || whole.is_err());
    }
}

fn outcome<A: Ask>(ask: &A, manner: &Manner, pieces: &mut dyn Iterator<Item = &[u8]>) -> Result<A::Answer, Failure> {
    let (mut attempt, _) = Try::begin(ask, manner, "h", [1; 24]);
    for piece in pieces {
        if let Some(answer) = attempt.receive(ask, piece)? {
            return Ok(answer);
        }
    }
    attempt.closed(ask)
}
