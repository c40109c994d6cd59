//! Stacks on a network where some hosts are dead.

use alloc::collections::VecDeque;
use alloc::vec;

use pollux_ft::Span;
use pollux_nic::frame::{MAX_FRAME, request_for};
use proptest::prelude::*;
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket as Tcp, SocketBuffer, State};
use smoltcp::socket::udp;

use super::*;
use crate::random::Random;

const OWN: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
const PORT: u16 = 2379;

/// A cable's end: frames to the stack, and from it.
#[derive(Debug, Default)]
pub(in crate::replica) struct Cable {
    pub(in crate::replica) input: VecDeque<Vec<u8>>,
    pub(in crate::replica) output: Vec<Vec<u8>>,
}

pub(in crate::replica) struct Rx(Vec<u8>);
pub(in crate::replica) struct Tx<'a>(&'a mut Vec<Vec<u8>>);

impl phy::RxToken for Rx {
    fn consume<T, F: FnOnce(&[u8]) -> T>(self, read: F) -> T {
        read(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<T, F: FnOnce(&mut [u8]) -> T>(self, len: usize, write: F) -> T {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        self.0.push(frame);
        result
    }
}

impl Device for Cable {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _timestamp: Instant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.input.pop_front()?), Tx(&mut self.output)))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.output))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME;
        capabilities
    }
}

/// Host number `n`; those from 100 on are dead.
fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, n)
}

struct Network {
    stack: Stack,
    cable: Cable,
    servers: Vec<(Stack, Cable)>,
    heartbeats: SocketHandle,
    now: Time,
}

fn socket() -> Tcp<'static> {
    let buffer = || SocketBuffer::new(vec![0; 1024]);
    Tcp::new(buffer(), buffer())
}

impl Network {
    /// With servers at 2, 3, …
    fn new(servers: u8) -> Self {
        let cidr = |n: u8| Cidr { address: address(n), prefix: 24 };
        let mut cable = Cable::default();
        let mut stack = Stack::new(OWN, cidr(1), None, Random::new([1; 32]), &mut cable);
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 512]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(7002).unwrap();
        let heartbeats = stack.add(socket);
        let server = |n: u8| {
            let mut cable = Cable::default();
            let mac = MacAddress([0x52, 0x54, 0, 0, 0, n]);
            let mut stack = Stack::new(mac, cidr(n), None, Random::new([n; 32]), &mut cable);
            let socket = stack.add(self::socket());
            stack.socket::<Tcp<'_>>(socket).listen(PORT).unwrap();
            (stack, cable)
        };
        Self { stack, cable, servers: (2..2 + servers).map(server).collect(), heartbeats, now: Time(1_000_000) }
    }

    /// A connection to a host, begun now.
    fn connect(&mut self, n: u8) -> SocketHandle {
        let handle = self.stack.add(socket());
        let server = IpEndpoint::new(IpAddress::Ipv4(address(n)), PORT);
        self.stack.connect(handle, server).unwrap();
        handle
    }

    /// One millisecond. Each dead peer gets a heartbeat, as does a twin that may come back.
    fn step(&mut self, peers: &[u8]) {
        self.now = self.now.after(Span::from_millis(1));
        for &peer in peers {
            let socket = self.stack.socket::<udp::Socket<'_>>(self.heartbeats);
            let _ = socket.send_slice(b"alive", IpEndpoint::new(IpAddress::Ipv4(address(peer)), 7002));
        }
        self.stack.poll(self.now, &mut self.cable);
        let sent = core::mem::take(&mut self.cable.output);
        for (server, cable) in &mut self.servers {
            cable.input.extend(sent.iter().cloned());
            server.poll(self.now, cable);
            self.cable.input.extend(cable.output.drain(..));
        }
    }

    /// After how many milliseconds all of these are up; none if not within `limit_ms`.
    fn up_after(&mut self, connections: &[SocketHandle], peers: &[u8], limit_ms: u64) -> Option<u64> {
        (0..limit_ms).find(|_| {
            self.step(peers);
            connections.iter().all(|&handle| self.stack.socket::<Tcp<'_>>(handle).state() == State::Established)
        })
    }
}

/// The arbiter is on the log network, and the twin does not answer.
#[test]
fn a_dead_peer_does_not_hide_a_living_one() {
    let mut network = Network::new(1);
    network.stack.keep_in_reach(address(100));
    for _ in 0..1500 {
        network.step(&[100]);
    }
    let arbiter = network.connect(2);
    assert!(network.up_after(&[arbiter], &[100], 60_000).is_some_and(|ms| ms < 100));
}

/// The arbiter was asked long ago, and what was known of it has expired.
#[test]
fn what_was_forgotten_is_found_again() {
    let mut network = Network::new(1);
    let first = network.connect(2);
    assert!(network.up_after(&[first], &[], 100).is_some());
    network.stack.socket::<Tcp<'_>>(first).abort();
    network.step(&[]);
    network.now = network.now.after(Span::from_millis(61_000));
    network.stack.keep_in_reach(address(100));
    for _ in 0..10 {
        network.step(&[100]);
    }
    let socket = network.servers[0].0.add(socket());
    network.servers[0].0.socket::<Tcp<'_>>(socket).listen(PORT).unwrap();
    let second = network.connect(2);
    assert!(network.up_after(&[second], &[100], 60_000).is_some_and(|ms| ms < 100));
}

/// A connection waits for no request that was lost before it was begun.
#[test]
fn a_new_connection_asks_at_once() {
    let mut network = Network::new(1);
    let look = network.connect(2);
    network.stack.poll(network.now, &mut network.cable);
    assert!(!network.cable.output.is_empty());
    network.cable.output.clear();
    network.stack.socket::<Tcp<'_>>(look).abort();
    let question = network.connect(2);
    assert!(network.up_after(&[question], &[], 60_000).is_some_and(|ms| ms < 10));
}

/// A peer that comes back is found although nobody else says anything.
#[test]
fn a_peer_that_appears_is_found_soon() {
    let mut network = Network::new(0);
    network.stack.keep_in_reach(address(2));
    for _ in 0..5_050 {
        network.step(&[2, 100]);
    }
    network.servers = Network::new(1).servers;
    let heard = |network: &mut Network| {
        network.step(&[2, 100]);
        network.servers[0].1.input.clear();
        // A heartbeat is for a closed port there, which the server says.
        network.cable.input.iter().any(|frame| frame[12..14] == [8, 0])
    };
    assert!((0..60_000).find(|_| heard(&mut network)).is_some_and(|ms| ms < 300));
}

/// A host claims the address of a neighbour that lives, before each millisecond.
fn claims(network: &mut Network, n: u8, at: MacAddress) {
    for operation in [1, 2] {
        let mut claim = request_for(address(1), at, address(n));
        claim[21] = operation;
        network.cable.input.push_back(claim.to_vec());
    }
}

const ELSEWHERE: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 0xEE]);

#[test]
fn a_neighbour_that_answers_is_nowhere_else() {
    let mut network = Network::new(1);
    network.stack.keep_in_reach(address(2));
    for _ in 0..10 {
        network.step(&[2]);
    }
    let mut requests = 0;
    for _ in 0..70_000 {
        claims(&mut network, 2, ELSEWHERE);
        let sent_before = network.servers[0].1.input.len();
        assert_eq!(sent_before, 0);
        network.stack.poll(network.now, &mut network.cable);
        for frame in &network.cable.output {
            requests += usize::from(frame[12..14] == [8, 6]);
            assert_ne!(frame[..6], ELSEWHERE.0, "at {:?}", network.now);
        }
        network.step(&[2]);
    }
    assert!(requests <= 70 * 6, "{requests} requests in 70 s");
    let connection = network.connect(2);
    claims(&mut network, 2, ELSEWHERE);
    assert!(network.up_after(&[connection], &[2], 1000).is_some_and(|ms| ms < 10));
}

#[test]
fn a_neighbour_that_has_moved_is_found_there() {
    let mut network = Network::new(1);
    network.stack.keep_in_reach(address(2));
    for _ in 0..10 {
        network.step(&[2]);
    }
    network.servers.clear();
    let moved = |network: &mut Network| {
        claims(network, 2, ELSEWHERE);
        let socket = network.stack.socket::<udp::Socket<'_>>(network.heartbeats);
        let _ = socket.send_slice(b"alive", IpEndpoint::new(IpAddress::Ipv4(address(2)), 7002));
        network.now = network.now.after(Span::from_millis(1));
        network.stack.poll(network.now, &mut network.cable);
        core::mem::take(&mut network.cable.output)
            .iter()
            .any(|frame| frame[..6] == ELSEWHERE.0 && frame[12..14] == [8, 0])
    };
    let found = (0..5_000).find(|_| moved(&mut network));
    assert!(found.is_some_and(|ms| (500..1000).contains(&ms)), "{found:?}");
}

/// Whom nobody answers is asked for in moderation, and whom somebody answers hardly ever.
#[test]
fn requests_are_few() {
    let count = |peer: u8| {
        let mut network = Network::new(1);
        network.stack.keep_in_reach(address(peer));
        let mut requests = 0;
        for _ in 0..50_000 {
            network.now = network.now.after(Span::from_millis(1));
            network.stack.poll(network.now, &mut network.cable);
            let sent = core::mem::take(&mut network.cable.output);
            requests += sent.len();
            let (server, cable) = &mut network.servers[0];
            cable.input.extend(sent);
            server.poll(network.now, cable);
            network.cable.input.append(&mut cable.output.drain(..).collect());
        }
        requests
    };
    assert_eq!((count(100), count(2)), (250, 2));
}

#[test]
fn the_stack_says_when_it_wants_to_ask() {
    let mut network = Network::new(1);
    assert_eq!(network.stack.poll_at(network.now), None);
    network.stack.keep_in_reach(address(100));
    assert_eq!(network.stack.poll_at(network.now), Some(network.now));
    network.stack.poll(network.now, &mut network.cable);
    assert_eq!(network.stack.poll_at(network.now), Some(network.now.after(Span::from_millis(200))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    /// Any number of living and dead hosts, in any order.
    #[test]
    fn whoever_lives_is_reached(
        servers in 1u8..7,
        dead in prop::collection::vec(100u8..250, 0..12),
        dead_tries in prop::collection::vec((100u8..250, any::<bool>()), 0..6),
    ) {
        let mut network = Network::new(servers);
        for &peer in &dead {
            network.stack.keep_in_reach(address(peer));
        }
        for &(host, _) in dead_tries.iter().filter(|(_, early)| *early) {
            network.connect(host);
        }
        for _ in 0..1200 {
            network.step(&dead);
        }
        let connections: Vec<_> = (2..2 + servers).map(|n| network.connect(n)).collect();
        for &(host, _) in dead_tries.iter().filter(|(_, early)| !early) {
            network.connect(host);
        }
        let after = network.up_after(&connections, &dead, 2_000);
        prop_assert!(after.is_some_and(|ms| ms < 100), "{after:?}");
    }

    #[test]
    fn any_frame_is_survived(mut frame in prop::collection::vec(any::<u8>(), 0..80), arp: bool) {
        let mut network = Network::new(1);
        network.stack.keep_in_reach(address(2));
        if arp && frame.len() >= 14 {
            frame[..6].copy_from_slice(&[0xFF; 6]);
            frame[12..14].copy_from_slice(&[8, 6]);
        }
        network.cable.input.push_back(frame);
        network.step(&[2]);
    }
}
