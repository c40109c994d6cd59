//! A host in user space that accepts TCP connections from the machines and leads each to a local address: the place of
//! arbiter, recorder, or of who plays a recording, on a network. It is the forwarder's mirror image.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::Result;
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{IpProtocol, Ipv4Packet, TcpPacket};

use super::Network;
use super::forward::connection::{Connection, Standing};
use super::frame::{Header, IPV4, MIN_FRAME, Mac, arp_reply};
use super::stack::Stack;
use super::stats::RelayStats;

/// Connections at a time; each machine has one.
pub const MAX_CONNECTIONS: usize = 8;
/// Buffer of each direction in bytes, for questions and answers that have less than a thousand.
pub const SMALL: usize = 8 << 10;
/// The same for streams.
pub const LARGE: usize = 256 << 10;
/// A machine that is silent for so long in the middle of a connection is gone, and its place is free.
const SILENCE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(10);
/// How often a machine that is silent is asked for a sign of life.
const KEEP_ALIVE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(3);
/// Rounds of moving bytes in one turn.
const ROUNDS: usize = 16;

/// The host's address on a network.
pub fn address(network: Network) -> Ipv4Addr {
    match network {
        Network::Client => Ipv4Addr::new(10, 0, 2, 3),
        Network::Log => Ipv4Addr::new(10, 1, 0, 3),
    }
}

/// The host.
pub struct Relay {
    port: u16,
    target: SocketAddr,
    own: (Mac, Ipv4Addr),
    pub stack: Stack,
    places: [Place; MAX_CONNECTIONS],
    first_token: usize,
    stats: RelayStats,
}

/// A socket that listens or is connected, and its way to the target.
struct Place {
    socket: SocketHandle,
    connection: Option<Connection>,
}

impl Relay {
    /// A host at `own` that leads to `target`, with so many bytes of buffer in each direction; its events have tokens from
    /// `first_token` on.
    pub fn new(own: SocketAddrV4, target: SocketAddr, buffer: usize, seed: u64, first_token: usize) -> Result<Self> {
        let (address, port) = (*own.ip(), own.port());
        let [_, b, c, d] = address.octets();
        // Locally administered.
        let mac = Mac([0x52, 0x54, 0x00, b, c, d]);
        let mut stack = Stack::new(mac, address, seed, Instant::ZERO)?;
        let places =
            [(); MAX_CONNECTIONS].map(|()| Place { socket: stack.sockets.add(socket(buffer)), connection: None });
        let stats = RelayStats::default();
        Ok(Self { port, target, own: (mac, address), stack, places, first_token, stats })
    }

    /// What was counted.
    pub fn stats(&self) -> RelayStats {
        self.stats
    }

    /// Notes an event, if it is at one of this host's sockets.
    pub fn event(&mut self, event: &Event) {
        let index = event.token().0.checked_sub(self.first_token);
        let Some(place) = index.and_then(|index| self.places.get_mut(index)) else { return };
        let Some(connection) = &mut place.connection else { return };
        connection.event(event);
        self.stack.wake();
    }

    /// Takes a frame from the network; false if too many wait.
    pub fn receive(&mut self, frame: &[u8]) -> bool {
        if let Some(machine) = opener(frame) {
            self.stack.receive(&arp_reply(machine, self.own));
        }
        self.stack.receive(frame)
    }

    /// Moves everything that can move.
    pub fn poll(&mut self, now: Duration, registry: &Registry) {
        if !self.stack.is_due(now) {
            return;
        }
        let stack_now = Instant::from_micros(now.as_micros() as i64);
        for _ in 0..ROUNDS {
            self.stack.poll(stack_now);
            if !self.serve(now, registry) {
                self.stack.rest();
                break;
            }
        }
        let next = self.stack.poll_at(stack_now);
        self.stack.sleep_until(next.map(|at| Duration::from_micros(at.total_micros().max(0) as u64)));
    }

    /// Lets every connection have its turn. True if another round may move more.
    fn serve(&mut self, now: Duration, registry: &Registry) -> bool {
        let mut moved = self.stack.has_input();
        for (index, place) in self.places.iter_mut().enumerate() {
            let socket = self.stack.sockets.get_mut::<Socket<'_>>(place.socket);
            match &mut place.connection {
                Some(connection) => {
                    moved |= connection.pump_to_guest(socket) | connection.pump_to_client(socket);
                    match connection.standing(socket) {
                        Standing::Open => continue,
                        Standing::ResetByClient => self.stats.failed += 1,
                        Standing::Finished | Standing::ResetByGuest => {}
                    }
                    // Also in TIME-WAIT: the place is needed, and a reset ends what the last acknowledgement would.
                    socket.abort();
                    place.connection = None;
                    moved = true;
                }
                // The machine has sent something or has ended its direction: it is connected.
                None if matches!(socket.state(), State::Established | State::CloseWait) => {
                    let token = Token(self.first_token + index);
                    place.connection = connect(self.target, place.socket, now, registry, token);
                    self.stats.accepted += 1;
                    if place.connection.is_none() {
                        self.stats.failed += 1;
                        socket.abort();
                    }
                    moved = true;
                }
                // A closed socket keeps its remote end until its reset has gone out.
                None if socket.state() == State::Closed && socket.remote_endpoint().is_none() => {
                    // Listening fails only on an open socket or port 0.
                    let _ = socket.listen(self.port);
                }
                None => {}
            }
        }
        moved
    }
}

/// Who opens a connection with this frame. Where it came from is where the answer goes: the stack, which asks for one
/// neighbour a second, may be busy with asking for one that is dead.
fn opener(frame: &[u8]) -> Option<(Mac, Ipv4Addr)> {
    let header = Header::parse(frame).filter(|header| header.ethertype == IPV4)?;
    let packet = Ipv4Packet::new_checked(&frame[MIN_FRAME..]).ok()?;
    let segment = (packet.next_header() == IpProtocol::Tcp).then(|| packet.payload())?;
    let segment = TcpPacket::new_checked(segment).ok()?;
    (segment.syn() && !segment.ack()).then_some((header.source, packet.src_addr()))
}

fn socket(bytes: usize) -> Socket<'static> {
    let buffer = || SocketBuffer::new(vec![0; bytes]);
    let mut socket = Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_timeout(Some(SILENCE));
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket
}

/// Begins a connection to the target. Whether it comes up is told by events.
fn connect(
    target: SocketAddr,
    socket: SocketHandle,
    now: Duration,
    registry: &Registry,
    token: Token,
) -> Option<Connection> {
    let mut stream = TcpStream::connect(target).ok()?;
    registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE).ok()?;
    Some(Connection::new(stream, socket, now))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smoltcp::wire::IpAddress;

    use super::super::{ARBITER_PORT, arbiter_address};
    use super::*;

    const NETWORK: Network = Network::Log;

    /// A machine's stack.
    struct Machine {
        address: (Mac, Ipv4Addr),
        stack: Stack,
    }

    impl Machine {
        fn new(n: u8) -> Self {
            let (mac, ip) = (Mac([2, 0, 0, 0, 0, n]), Ipv4Addr::new(10, 1, 0, n));
            Self { address: (mac, ip), stack: Stack::new(mac, ip, 0, Instant::ZERO).unwrap() }
        }

        /// Begins a connection to the arbiter, whose MAC address is known here.
        fn dial(&mut self, relay: &Relay) -> SocketHandle {
            self.stack.receive(&arp_reply(relay.own, self.address));
            let handle = self.stack.sockets.add(socket(SMALL));
            let socket = self.stack.sockets.get_mut::<Socket<'_>>(handle);
            socket
                .connect(self.stack.interface.context(), (IpAddress::Ipv4(relay.own.1), ARBITER_PORT), 50_000)
                .unwrap();
            handle
        }

        fn poll(&mut self, now: Duration) {
            self.stack.poll(Instant::from_micros(now.as_micros() as i64));
        }
    }

    /// A machine that died with a connection open, while many others were heard of, takes no answer from the living.
    #[test]
    fn a_dead_machine_does_not_hide_a_living_one() {
        let poll = mio::Poll::new().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut relay = Relay::new(arbiter_address(NETWORK), listener.local_addr().unwrap(), SMALL, 1, 0).unwrap();
        let mut now = Duration::from_secs(1);
        let mut dead = Machine::new(100);
        dead.dial(&relay);
        dead.poll(now);
        while let Some(frame) = dead.stack.pop() {
            relay.receive(&frame);
        }
        relay.poll(now, poll.registry());
        // More than the stack remembers.
        for n in 150..200 {
            relay.receive(&arp_reply(Machine::new(n).address, relay.own));
        }
        let mut living = Machine::new(21);
        let handle = living.dial(&relay);
        for ms in 0.. {
            now += Duration::from_millis(1);
            living.poll(now);
            while let Some(frame) = living.stack.pop() {
                relay.receive(&frame);
            }
            relay.poll(now, poll.registry());
            while let Some(frame) = relay.stack.pop() {
                if frame[..6] == living.address.0.0 {
                    living.stack.receive(&frame);
                }
            }
            // It died after a while of silence.
            if ms == 0 {
                now += Duration::from_secs(2);
            }
            if living.stack.sockets.get::<Socket<'_>>(handle).state() == State::Established {
                break;
            }
            assert!(ms < 2000, "no answer");
        }
    }

    proptest! {
        #[test]
        fn any_frame_can_be_looked_at(mut frame in prop::collection::vec(any::<u8>(), 0..80), ip: bool) {
            if ip && frame.len() > 23 {
                frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
                frame[23] = 6;
            }
            opener(&frame);
        }
    }
}
