//! A listener, its twin, and strangers who come in the twin's name: they have its address.

use pollux_ft::{Config, Identity, Node, NodeId, PairKey, Protection, Span, Start};
use pollux_nic::MacAddress;
use smoltcp::wire::IpEndpoint;

use super::*;
use crate::config::Cidr;
use crate::replica::stack::tests::Cable;

const PRIMARY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const BACKUP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);

fn node(start: Start, key: u8) -> Node {
    let identity =
        Identity { node: NodeId(1 + u64::from(start == Start::Backup)), pair: "gemini".into(), ..Identity::default() };
    let config = Config { protection: Protection::from(PairKey::new(&[key; 32])), ..Config::default() };
    Node::new(Time(0), start, config, identity).unwrap()
}

/// Both ends of a cable. All who dial share a stack: nobody but the handshake tells them apart.
struct Desk {
    now: Time,
    listener: (Stack, Cable),
    dialers: (Stack, Cable),
    doors: Doors,
    primary: Node,
    backup: Node,
}

impl Desk {
    fn new() -> Self {
        let end = |address, number| {
            let (mac, mut cable) = (MacAddress([0x52, 0x54, 0, 0, 0, number]), Cable::default());
            let own = Cidr { address, prefix: 24 };
            (Stack::new(mac, own, None, Random::new([number; 32]), &mut cable), cable)
        };
        let (mut listener, dialers) = (end(PRIMARY, 1), end(BACKUP, 2));
        let doors = Doors::new(&mut listener.0, PRIMARY, BACKUP, Random::new([3; 32]));
        let (primary, backup) = (node(Start::Primary, 1), node(Start::Backup, 1));
        Self { now: Time(1_000_000), listener, dialers, doors, primary, backup }
    }

    fn dial(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 1024]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        let handle = self.dialers.0.add(socket);
        let server = IpEndpoint::new(IpAddress::Ipv4(PRIMARY), LOG_PORT);
        self.dialers.0.connect(handle, server).unwrap();
        handle
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.dialers.0.socket(handle)
    }

    /// One millisecond; whether the twin stands at a door.
    fn step(&mut self) -> bool {
        self.now = self.now.after(Span::from_millis(1));
        self.dialers.0.poll(self.now, &mut self.dialers.1);
        self.listener.1.input.extend(self.dialers.1.output.drain(..));
        self.listener.0.poll(self.now, &mut self.listener.1);
        let known = self.doors.tend(&mut self.listener.0, self.now, &mut |meeting| self.primary.handshake(meeting));
        self.listener.0.poll_egress(self.now, &mut self.listener.1);
        self.dialers.1.input.extend(self.listener.1.output.drain(..));
        known.is_some()
    }

    /// The twin dials, again when it is refused, while `others` go on; after how many milliseconds it is known.
    fn twin_comes(&mut self, mut others: impl FnMut(&mut Self)) -> Option<u64> {
        let mut twin = self.dial();
        let mut handshake = None;
        (0..10_000u64).find(|ms| {
            let meeting = Meeting { dialer: BACKUP, listener: PRIMARY, random: [ms.to_le_bytes()[0]; 32] };
            let socket = self.dialers.0.socket::<tcp::Socket<'_>>(twin);
            if !socket.is_open() && ms % 200 == 0 {
                (twin, handshake) = (self.dial(), None);
            } else if socket.may_send() {
                let handshake = handshake.get_or_insert_with(|| self.backup.handshake(&meeting));
                if socket.can_recv() {
                    let _ = socket.recv(|bytes| (handshake.receive(bytes).unwrap_or(bytes.len()), ()));
                }
                let sent = socket.send_slice(handshake.transmit()).unwrap_or(0);
                handshake.transmitted(sent);
            }
            others(self);
            self.step()
        })
    }
}

#[test]
fn the_twin_comes_in_at_once() {
    let mut desk = Desk::new();
    desk.step();
    assert!(desk.twin_comes(|_| ()).is_some_and(|ms| ms < 20));
    assert_eq!(desk.doors.take_strangers(), (0, None));
}

/// They stay for as long as they are let, and say nothing, or what is none of ours.
#[test]
fn strangers_at_all_doors_are_in_nobodys_way() {
    for said in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", b"PLXs"] {
        let mut desk = Desk::new();
        desk.step();
        for _ in 0..3 * DOORS {
            let stranger = desk.dial();
            for _ in 0..5 {
                desk.step();
                let _ = desk.socket(stranger).send_slice(said);
            }
        }
        assert!(desk.twin_comes(|_| ()).is_some_and(|ms| ms < 500), "{said:?}");
        assert!(desk.doors.take_strangers().0 > 0);
    }
}

/// One comes every few milliseconds, in a burst now and then.
#[test]
fn a_flood_of_strangers_lets_the_twin_through() {
    for pause in [3, 5, 10] {
        let mut desk = Desk::new();
        desk.step();
        let mut ms = 0;
        let after = desk.twin_comes(|desk| {
            ms += 1;
            if ms % pause == 0 {
                desk.dial();
            }
        });
        assert!(after.is_some_and(|ms| ms < 5000), "one every {pause} ms: {after:?}");
    }
}

#[test]
fn a_silent_connection_has_a_limit() {
    let mut desk = Desk::new();
    desk.step();
    let silent = desk.dial();
    let opened = desk.now;
    while desk.doors.look_at().is_none() {
        desk.step();
    }
    let closed = |desk: &mut Desk| !desk.socket(silent).is_open();
    assert!((0..4000).any(|_| desk.step() || closed(&mut desk)), "it is still open");
    let after = desk.now.since(opened);
    assert!(after.0 < OPENING.0 + 100_000, "after {after:?}");
    desk.step();
    assert_eq!((desk.doors.look_at(), desk.doors.take_strangers().0), (None, 1));
}

#[test]
fn a_machine_with_another_key_is_told() {
    let mut desk = Desk::new();
    desk.backup = node(Start::Backup, 9);
    desk.step();
    assert_eq!(desk.twin_comes(|_| ()), None);
    let (strangers, why) = desk.doors.take_strangers();
    assert!(strangers > 0 && matches!(why, Some(Stranger::Key(..))), "{strangers} {why:?}");
}
