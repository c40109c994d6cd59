//! A backup's way to its recorder, over a network that breaks.

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use pollux_ft::{Config, Identity, Meeting, Node, NodeId, PairKey, Protection, Start};
use pollux_nic::MacAddress;

use super::*;
use crate::config::Cidr;
use crate::replica::stack::tests::Cable;

const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 4);
const PORT: u16 = 7004;
const STEP: Span = Span::from_millis(10);
const HELLO: u8 = 1;
const STATE_BEGIN: u8 = 3;

/// A pair, and a recorder on a cable to its backup.
struct Desk {
    now: Time,
    primary: Node,
    backup: Node,
    recorder: Recorder,
    machine: (Stack, Cable),
    server: (Stack, Cable),
    socket: SocketHandle,
    key: Vec<RecordKey>,
    stream: Option<RecordStream>,
    /// What the recorder was told, by its types, and what the machine says of it.
    told: Vec<u8>,
    troubles: Vec<String>,
    /// Whether no frame arrives.
    cut: bool,
}

impl Desk {
    fn new(protection: &Protection) -> Self {
        let end = |address, number| {
            let (mac, mut cable) = (MacAddress([0x52, 0x54, 0, 0, 0, number]), Cable::default());
            let own = Cidr { address, prefix: 24 };
            (Stack::new(mac, own, None, Random::new([number; 32]), &mut cable), cable)
        };
        let (mut machine, mut server) = (end(MACHINE, 1), end(SERVER, 2));
        let buffer = || SocketBuffer::new(vec![0; 4096]);
        let socket = server.0.add(Socket::new(buffer(), buffer()));
        let node = |start, id, record_bytes| {
            let identity = Identity { node: NodeId(id), pair: "gemini".into(), ..Identity::default() };
            Node::new(Time(0), start, Config { record_bytes, ..Config::default() }, identity).unwrap()
        };
        let (address, key) = (SocketAddrV4::new(SERVER, PORT), protection.records());
        let recorder = Recorder::new(address, key.clone(), "gemini".into(), Random::new([3; 32]), &mut machine.0);
        Self {
            now: Time(1_000_000),
            primary: node(Start::Primary, 1, 0),
            backup: node(Start::Backup, 2, 1 << 20),
            recorder,
            machine,
            server,
            socket,
            key,
            stream: None,
            told: Vec::new(),
            troubles: Vec::new(),
            cut: false,
        }
    }

    /// The state begins to arrive.
    fn begin(&mut self) {
        let meeting = Meeting { dialer: MACHINE, listener: MACHINE, random: [0; 32] };
        self.primary.connected(self.now, self.primary.handshake(&meeting));
        self.backup.connected(self.now, self.backup.handshake(&meeting));
        for _ in 0..3 {
            let bytes = self.backup.transmit().to_vec();
            self.backup.transmitted(bytes.len());
            self.primary.receive(self.now, &bytes);
            let bytes = self.primary.transmit().to_vec();
            self.primary.transmitted(bytes.len());
            self.backup.receive(self.now, &bytes);
        }
    }

    /// The machines lose each other.
    fn end(&mut self) {
        self.primary.disconnected(self.now);
        self.backup.disconnected(self.now);
    }

    fn step(&mut self) {
        self.now = self.now.after(STEP);
        self.machine.0.poll(self.now, &mut self.machine.1);
        let (trouble, _) = self.recorder.poll(self.now, self.backup.copies(), &mut self.machine.0);
        self.troubles.extend(trouble);
        self.machine.0.poll_egress(self.now, &mut self.machine.1);
        let frames = self.machine.1.output.drain(..);
        self.server.1.input.extend(frames.filter(|_| !self.cut));
        self.server.0.poll(self.now, &mut self.server.1);
        self.serve();
        self.server.0.poll_egress(self.now, &mut self.server.1);
        let frames = self.server.1.output.drain(..);
        self.machine.1.input.extend(frames.filter(|_| !self.cut));
    }

    /// The recorder takes one connection after the other.
    fn serve(&mut self) {
        let socket = self.server.0.socket::<Socket<'_>>(self.socket);
        match socket.state() {
            State::Closed => {
                socket.listen(PORT).unwrap();
                self.stream = Some(RecordStream::new(&self.key, "gemini", End::Listens, [7; 32]));
            }
            State::CloseWait if !socket.can_recv() => socket.close(),
            _ => {}
        }
        let Some(stream) = &mut self.stream else { return };
        while socket.can_recv() {
            let told = &mut self.told;
            let taken = socket.recv(|bytes| (bytes.len(), stream.receive(bytes, |kind, _| told.push(kind))));
            taken.unwrap().unwrap();
        }
        transmit(stream, socket);
    }

    /// Goes on until `done`; for how long.
    fn until(&mut self, done: impl Fn(&mut Self) -> bool) -> Span {
        let start = self.now;
        while !done(self) {
            assert!(self.now.since(start) < Span::from_millis(30_000), "{:?} {:?}", self.told, self.troubles);
            self.step();
        }
        self.now.since(start)
    }
}

const SESSION: [u8; 3] = [HELLO, STATE_BEGIN, Message::BYE];

#[test]
fn each_session_has_a_connection() {
    for protection in [Protection::default(), Protection::from(PairKey::new(&[1; 32]))] {
        let mut desk = Desk::new(&protection);
        for count in 1..4 {
            desk.begin();
            desk.until(|desk| desk.told.len() == 3 * count - 1);
            desk.end();
            desk.until(|desk| desk.told.len() == 3 * count);
            desk.until(|desk| matches!(desk.recorder.phase, Phase::Idle));
        }
        assert_eq!((desk.told, desk.troubles.len()), (SESSION.repeat(3), 0), "{:?}", desk.troubles);
    }
}

/// Also without a key, when there is nothing to show.
#[test]
fn a_recorder_that_is_not_there_is_given_up() {
    for protection in [Protection::default(), Protection::from(PairKey::new(&[1; 32]))] {
        let mut desk = Desk::new(&protection);
        desk.cut = true;
        desk.begin();
        let took = desk.until(|desk| !desk.troubles.is_empty());
        assert_eq!(desk.troubles, ["no answer in time"]);
        assert!(took < Span::from_millis(4000), "{took:?}");
        assert!(desk.backup.copies().front().is_none());
    }
}

/// Even if there is nothing to tell it.
#[test]
fn a_recorder_that_dies_is_noticed() {
    let mut desk = Desk::new(&Protection::default());
    desk.begin();
    desk.until(|desk| desk.told.len() == 2);
    desk.cut = true;
    let took = desk.until(|desk| !desk.troubles.is_empty());
    assert!(took < Span::from_millis(15_000), "{took:?}");
}

/// The last words of a session get lost; the next one has begun meanwhile, and is recorded.
#[test]
fn one_session_in_trouble_leaves_the_next_one_alone() {
    let mut desk = Desk::new(&Protection::default());
    desk.begin();
    desk.until(|desk| desk.told.len() == 2);
    desk.cut = true;
    desk.end();
    desk.until(|desk| matches!(desk.recorder.phase, Phase::Closing(..)));
    desk.begin();
    desk.until(|desk| !desk.troubles.is_empty());
    assert!(desk.backup.copies().front().is_some_and(|copy| copy.begins()));
    desk.cut = false;
    desk.server.0.socket::<Socket<'_>>(desk.socket).abort();
    desk.serve();
    desk.until(|desk| desk.told.len() == 4);
    assert_eq!((desk.told, desk.troubles.len()), (SESSION[..2].repeat(2), 1));
}
