//! From a pair into a file, and from the file to another machine, with ft's own nodes at all ends.

use std::net::Ipv4Addr;

use pollux_ft::entry::Kind;
use pollux_ft::handshake::End;
use pollux_ft::message::{Hello, Message};
use pollux_ft::record::RecordStream;
use pollux_ft::{
    Action, Config, Control, Entry, EntryRef, Identity, Meeting, Node, NodeId, Position, Role, Seq, Span, Start, Term,
    Time,
};
use pollux_record::file::Fault;
use pollux_record::{Collector, Contents, Outcome, Player, Reader, Record, Writer, scan};
use proptest::prelude::*;

const MEETING: Meeting = Meeting { dialer: Ipv4Addr::LOCALHOST, listener: Ipv4Addr::LOCALHOST, random: [3; 32] };

fn identity(node: u64) -> Identity {
    Identity {
        node: NodeId(node),
        pair: "gemini".into(),
        counter: "ticks".into(),
        guest_memory: 1 << 20,
        ..Identity::default()
    }
}

/// A guest that is a number: what it was told, mixed.
#[derive(Debug, Clone, Default, PartialEq)]
struct Toy(u64);

impl Toy {
    fn apply(&mut self, position: Position, entry: &Entry) {
        let mut mix = |value: u64| self.0 = (self.0 ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
        // Of marks a backup hears nothing.
        if !matches!(entry, Entry::Horizon | Entry::Output) {
            mix(position.0);
        }
        match entry {
            Entry::Clock { base_ns, rate } => [*base_ns, *rate].into_iter().for_each(mix),
            Entry::PacketIn(data) | Entry::ConsoleIn(data) => data.iter().for_each(|byte| mix(u64::from(*byte))),
            _ => {}
        }
    }
}

/// A machine that follows with such a guest.
struct Follower {
    node: Node,
    guest: Toy,
    at: Position,
    /// Ticks that the guest runs in one turn.
    speed: u64,
    loading: Vec<u8>,
}

impl Follower {
    fn new(config: Config, id: u64, speed: u64) -> Self {
        let node = Node::new(Time(0), Start::Backup, config, identity(id)).unwrap();
        Self { node, guest: Toy::default(), at: Position(0), speed, loading: Vec::new() }
    }

    /// Whether the guest comes there with these ticks.
    fn run_to(&mut self, position: Position, ticks: &mut u64) -> bool {
        let ran = position.since(self.at).min(*ticks);
        (self.at, *ticks) = (self.at.after(ran), *ticks - ran);
        self.node.progress(self.at);
        self.at == position
    }

    fn turn(&mut self, now: Time) {
        let mut ticks = self.speed;
        self.node.tick(now);
        while let Some(action) = self.node.poll_action() {
            match action {
                Action::LoadMachine(data) => self.loading.extend(data),
                Action::StateLoaded { digest, position } => {
                    self.guest = Toy(u64::from_le_bytes(self.loading[..].try_into().unwrap()));
                    assert_eq!(digest, self.guest.0);
                    self.at = position;
                    self.node.progress(position);
                    self.node.joined(now);
                }
                _ => {}
            }
        }
        while let Some(record) = self.node.next_record().cloned() {
            if !self.run_to(record.position, &mut ticks) {
                return;
            }
            if let Entry::Digest { machine, .. } = record.entry
                && machine != self.guest.0
            {
                return self.node.diverged(&format!("entry {}: the guest differs", record.seq.0));
            }
            self.guest.apply(record.position, &record.entry);
            self.node.applied(now, record.position);
        }
        if let Some(limit) = self.node.run_limit() {
            self.run_to(limit, &mut ticks);
        }
    }
}

fn carry(now: Time, from: &mut Node, to: &mut Node) {
    while !from.transmit().is_empty() && to.receive_room() > 0 {
        let taken = to.receive(now, from.transmit());
        from.transmitted(taken);
    }
}

/// What happens to the guest: ticks until then, and what.
type Script = Vec<(u64, Entry)>;

/// Runs a pair through the script and records it; the guest in the end.
fn record(script: &Script) -> (Vec<u8>, Toy) {
    let mut file = Vec::new();
    let mut writer = Writer::new(&mut file).unwrap();
    writer.write(&Record::Setup("a toy".into())).unwrap();
    let mut collector = Collector::new(writer);
    let config = Config { record_bytes: 1 << 20, ..Config::default() };
    let mut primary = Node::new(Time(0), Start::Primary, Config::default(), identity(1)).unwrap();
    let mut backup = Follower::new(config, 2, u64::MAX);
    let [mut dialer, mut listener] =
        [End::Dials, End::Listens].map(|end| RecordStream::new(&[], "gemini", end, [4; 32]));
    let mut now = Time(1000);
    primary.connected(now, primary.handshake(&MEETING));
    backup.node.connected(now, backup.node.handshake(&MEETING));
    let (mut guest, mut position) = (Toy(77), Position(500));
    let mut step = |now: Time, primary: &mut Node, backup: &mut Follower| {
        for _ in 0..3 {
            primary.flush(now);
            carry(now, primary, &mut backup.node);
            backup.turn(now);
            carry(now, &mut backup.node, primary);
            while let Some(action) = primary.poll_action() {
                if let Action::Release(seq) = action {
                    primary.output_left(seq);
                }
            }
        }
        while let Some(copy) = backup.node.copies().pop() {
            dialer.send(&copy);
        }
        let bytes = dialer.transmit().to_vec();
        dialer.transmitted(bytes.len());
        let take = |kind, payload: &[u8]| collector.message(1, now.0, kind, payload).unwrap();
        listener.receive(&bytes, take).unwrap();
    };
    step(now, &mut primary, &mut backup);
    primary.push_memory(0x2000, &[9; 4096]).unwrap();
    primary.push_machine(&guest.0.to_le_bytes()).unwrap();
    primary.finish_state(position, guest.0).unwrap();
    step(now, &mut primary, &mut backup);
    assert_eq!(primary.role(), Role::Protected);
    for (ticks, entry) in script {
        now = now.after(Span::from_millis(20));
        position = position.after(*ticks);
        primary.tick(now);
        primary.progress(position);
        let entry = match entry {
            Entry::Digest { slice, memory, .. } => Entry::Digest { machine: guest.0, slice: *slice, memory: *memory },
            other => other.clone(),
        };
        primary.append(now, position, entry.borrow()).unwrap();
        guest.apply(position, &entry);
        step(now, &mut primary, &mut backup);
    }
    assert_eq!(backup.guest, guest);
    collector.finish().unwrap();
    (file, guest)
}

fn contents(file: &[u8]) -> Contents {
    scan(file, |_, _| Ok(())).unwrap()
}

/// Plays the first session of a file; what came of it, and the guest in the end.
fn play(file: &[u8], flip: Option<u64>) -> (Outcome, Player, Toy) {
    let session = &contents(file).sessions[0];
    let mut player = Player::new(Time(0), Config::default(), session.claim.identity.clone(), NodeId(8)).unwrap();
    if let Some(from) = flip {
        player.flip(Seq(from));
    }
    let mut machine = Follower::new(Config { follows_only: true, ..Config::default() }, 9, 500);
    let mut now = Time(5000);
    let handshake = player.node().handshake(&MEETING);
    player.node().connected(now, handshake);
    machine.node.connected(now, machine.node.handshake(&MEETING));
    let mut reader = Reader::new(file).unwrap();
    for _ in 0..100_000 {
        now = now.after(Span::from_millis(1));
        carry(now, player.node(), &mut machine.node);
        machine.turn(now);
        carry(now, &mut machine.node, player.node());
        while player.wants() {
            match reader.next_record() {
                Ok(Some(Record::Message(kind, payload))) => player.message(now, kind, &payload).unwrap(),
                Ok(Some(Record::SessionEnd(_)) | None) => player.complete(),
                Err(error) if matches!(error.fault, Fault::Truncated) => player.complete(),
                Ok(Some(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        player.turn(now);
        if let Some(outcome) = player.outcome() {
            // Its guest is at the end of what was recorded; or will be, if it switches itself off: then the primary is gone before.
            let is_there = session.powered_off || machine.at == session.position;
            assert!(*outcome != Outcome::Equal || is_there, "{}, {session:?}", machine.at);
            return (outcome.clone(), player, machine.guest);
        }
    }
    panic!("it does not end: {:?}, {:?}", player.progress(), machine.node.role());
}

fn entry() -> impl Strategy<Value = (u64, Entry)> {
    let data = || prop::collection::vec(any::<u8>(), 1..200);
    let entry = prop_oneof![
        (any::<u32>(), any::<u64>()).prop_map(|(ns, rate)| Entry::Clock { base_ns: ns.into(), rate }),
        data().prop_map(Entry::PacketIn),
        data().prop_map(Entry::ConsoleIn),
        Just(Entry::Horizon),
        Just(Entry::Output),
        Just(Entry::Digest { machine: 0, slice: 1, memory: 2 }),
        Just(Entry::Control(Control::Reset)),
    ];
    (0..5000u64, entry)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_was_recorded_runs_again(script in prop::collection::vec(entry(), 1..60)) {
        let (file, guest) = record(&script);
        let contents = contents(&file);
        let session = &contents.sessions[0];
        let digests = script.iter().filter(|(_, entry)| matches!(entry, Entry::Digest { .. })).count() as u64;
        prop_assert_eq!((session.state, session.of_kind(Kind::Digest)), (Some(Position(500)), digests));
        prop_assert_eq!(session.end.as_deref(), Some("the recording was ended"));
        let (outcome, player, again) = play(&file, None);
        prop_assert_eq!(outcome, Outcome::Equal);
        let progress = player.progress();
        prop_assert_eq!((progress.position, progress.digests, progress.behind), (session.position, digests, 0));
        prop_assert_eq!((progress.entries, again), (session.count(), guest));
    }

    /// A single changed input is found by the first digest behind it, by the recording's number of that.
    #[test]
    fn a_changed_entry_is_found(script in prop::collection::vec(entry(), 1..40), from in 1..60u64) {
        let mut script = script;
        script.push((5, Entry::Digest { machine: 0, slice: 0, memory: 0 }));
        let (file, _) = record(&script);
        let (outcome, player, _) = play(&file, Some(from));
        let Some(flipped) = player.flipped() else {
            prop_assert_eq!(outcome, Outcome::Equal);
            return Ok(());
        };
        let mut reader = Reader::new(&file[..]).unwrap();
        let mut digest = None;
        while let Some(record) = reader.next_record().unwrap() {
            let Record::Message(8, payload) = record else { continue };
            let mut batch = pollux_ft::batch::Batch::open(&payload).unwrap();
            while let Some((seq, _, entry)) = batch.next_entry().unwrap() {
                if seq > flipped && matches!(entry, EntryRef::Digest { .. }) {
                    digest = digest.or(Some(seq.0));
                }
            }
        }
        prop_assert_eq!(outcome, Outcome::Diverged(format!("entry {}: the guest differs", digest.unwrap())));
    }

    /// A file that breaks off plays up to there.
    #[test]
    fn what_there_is_of_a_file_plays(script in prop::collection::vec(entry(), 1..20)) {
        let (file, _) = record(&script);
        let file = &file[..file.len() - 1];
        let contents = contents(file);
        prop_assert!(contents.broken_off.is_some());
        if contents.sessions.first().is_some_and(|session| session.state.is_some()) {
            prop_assert_eq!(play(file, None).0, Outcome::Equal);
        }
    }
}

#[test]
fn a_guest_that_switches_itself_off_ends_equal() {
    let script = vec![(10, Entry::PacketIn(vec![1])), (20_000, Entry::Control(Control::PowerOff))];
    let (file, _) = record(&script);
    assert!(contents(&file).sessions[0].powered_off);
    assert_eq!(play(&file, None).0, Outcome::Equal);
}

/// A hand-over ends the recording, and is not played: the machine must not go live.
#[test]
fn a_hand_over_is_not_played() {
    let script = vec![(10, Entry::PacketIn(vec![1])), (20, Entry::Control(Control::SwitchOver))];
    let (file, guest) = record(&script);
    let (outcome, _, again) = play(&file, None);
    assert_eq!(outcome, Outcome::Equal);
    // The mark itself says nothing to the guest but where it stood.
    assert_ne!(again, guest);
}

/// Hello and the end of a state, as they stand in a file.
fn said(hello: bool, position: u64) -> Record {
    let claim = || {
        let (file, _) = record(&vec![(1, Entry::Horizon)]);
        Box::new(contents(&file).sessions[0].claim.clone())
    };
    let message = if hello {
        Message::Hello(Hello::Known { joining: true, term: Term(1), beats: 0, claim: claim() })
    } else {
        Message::StateEnd { position: Position(position), seq: Seq(0), digest: 0 }
    };
    let mut payload = Vec::new();
    message.encode(&mut payload);
    Record::Message(message.kind(), payload)
}

/// Nobody's collector writes such a file; whoever reads it says what is wrong with it.
#[test]
fn sessions_do_not_nest() {
    let session = || Record::Session { machine: "1".into() };
    let end = || Record::SessionEnd(String::new());
    let (hello, state) = (|| said(true, 0), || said(false, 10));
    let within = "a session within another";
    for (records, fault) in [
        (vec![session(), hello(), state(), end(), session(), hello(), said(false, 5)], None),
        (vec![session(), hello(), state(), hello(), said(false, 5)], Some(within)),
        (vec![session(), hello(), state(), session(), hello()], Some(within)),
        (vec![session(), session()], Some(within)),
        (vec![session(), state()], Some("a session's beginning")),
        (vec![hello()], Some("a message of no session")),
        (vec![session(), hello(), end(), state()], Some("a message of no session")),
        (vec![session(), end()], Some("the end of no session")),
        (vec![session(), hello(), state(), said(false, 5)], Some("a message out of order")),
    ] {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file).unwrap();
        records.iter().for_each(|record| writer.write(record).unwrap());
        writer.finish().unwrap();
        let error = scan(&file[..], |_, _| Ok(())).err().map(|error| error.to_string());
        assert_eq!(error.is_some(), fault.is_some(), "{error:?}");
        assert!(error.is_none_or(|error| error.contains(fault.unwrap())), "{fault:?}");
    }
}

#[test]
fn a_state_that_goes_back_is_refused() {
    let mut player = Player::new(Time(0), Config::default(), identity(1), NodeId(8)).unwrap();
    let mut says = |position| {
        let Record::Message(kind, payload) = said(false, position) else { unreachable!("it is a message") };
        player.message(Time(1), kind, &payload)
    };
    assert_eq!((says(10), says(5)), (Ok(()), Err("a state out of order")));
}
