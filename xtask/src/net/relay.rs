//! A host in user space that accepts TCP connections from the machines and leads each to a local address: the
//! arbiter's place on a network. It is the forwarder's mirror image.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

use super::counters::RelayCounters;
use super::forward::connection::{Connection, Standing};
use super::forward::device::Queues;
use super::{ARBITER_PORT, Network};

/// Connections at a time; each machine has one.
pub const MAX_CONNECTIONS: usize = 8;
/// Buffer of each direction in bytes; a question and its answer have less than a thousand.
const BUFFER: usize = 8 << 10;
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
    target: SocketAddr,
    interface: Interface,
    sockets: SocketSet<'static>,
    queues: Queues,
    places: [Place; MAX_CONNECTIONS],
    first_token: usize,
    counters: RelayCounters,
    /// When the stack wants to be called without any event; none if never.
    deadline: Option<Duration>,
    dirty: bool,
}

/// A socket that listens or is connected, and its way to the target.
struct Place {
    socket: SocketHandle,
    connection: Option<Connection>,
}

impl Relay {
    /// A host on `network` that leads to `target`; its events have tokens from `first_token` on.
    pub fn new(network: Network, target: SocketAddr, seed: u64, first_token: usize) -> Result<Self> {
        let address = address(network);
        let [_, b, c, d] = address.octets();
        // Locally administered.
        let mac = EthernetAddress([0x52, 0x54, 0x00, b, c, d]);
        let mut queues = Queues::default();
        let mut config = Config::new(mac.into());
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut queues, Instant::ZERO);
        let mut result = Ok(());
        interface.update_ip_addrs(|addresses| result = addresses.push(IpCidr::new(IpAddress::Ipv4(address), 24)));
        result.ok().context("the stack has no room for an address")?;
        let mut sockets = SocketSet::new(Vec::new());
        let places = [(); MAX_CONNECTIONS].map(|()| Place { socket: sockets.add(socket()), connection: None });
        Ok(Self {
            target,
            interface,
            sockets,
            queues,
            places,
            first_token,
            counters: RelayCounters::default(),
            deadline: None,
            dirty: true,
        })
    }

    /// What was counted.
    pub fn counters(&self) -> RelayCounters {
        self.counters
    }

    /// Notes an event, if it is at one of this host's sockets.
    pub fn event(&mut self, event: &Event) {
        let index = event.token().0.checked_sub(self.first_token);
        let Some(place) = index.and_then(|index| self.places.get_mut(index)) else { return };
        let Some(connection) = &mut place.connection else { return };
        self.dirty = true;
        connection.readable |= event.is_readable();
        connection.ending |= event.is_read_closed();
        connection.writable |= event.is_writable();
        if event.is_error() {
            connection.fail();
        }
    }

    /// Takes a frame from the network; false if too many wait.
    pub fn receive(&mut self, frame: &[u8]) -> bool {
        self.dirty = true;
        self.queues.push(frame)
    }

    /// A frame for the network. Give it back to [`Self::recycle`].
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        self.queues.pop()
    }

    /// Takes back a buffer.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.queues.recycle(buffer);
    }

    /// When [`Self::poll`] wants to be called without any event.
    pub fn deadline(&self) -> Option<Duration> {
        if self.dirty { Some(Duration::ZERO) } else { self.deadline }
    }

    /// Moves everything that can move.
    pub fn poll(&mut self, now: Duration, registry: &Registry) {
        if !self.dirty && self.deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        self.dirty = true;
        let stack_now = Instant::from_micros(now.as_micros() as i64);
        for _ in 0..ROUNDS {
            self.interface.poll(stack_now, &mut self.queues, &mut self.sockets);
            if !self.serve(now, registry) {
                self.dirty = false;
                break;
            }
        }
        let stack = self.interface.poll_at(stack_now, &self.sockets);
        self.deadline = stack.map(|at| Duration::from_micros(at.total_micros().max(0) as u64));
    }

    /// Lets every connection have its turn. True if another round may move more.
    fn serve(&mut self, now: Duration, registry: &Registry) -> bool {
        let mut moved = self.queues.has_input();
        for (index, place) in self.places.iter_mut().enumerate() {
            let socket = self.sockets.get_mut::<Socket<'_>>(place.socket);
            match &mut place.connection {
                Some(connection) => {
                    moved |= connection.pump_to_guest(socket) | connection.pump_to_client(socket);
                    match connection.standing(socket) {
                        Standing::Open => continue,
                        Standing::ResetByClient => self.counters.failed += 1,
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
                    self.counters.accepted += 1;
                    if place.connection.is_none() {
                        self.counters.failed += 1;
                        socket.abort();
                    }
                    moved = true;
                }
                // A closed socket keeps its remote end until its reset has gone out.
                None if socket.state() == State::Closed && socket.remote_endpoint().is_none() => {
                    // Listening fails only on an open socket or port 0.
                    let _ = socket.listen(ARBITER_PORT);
                }
                None => {}
            }
        }
        moved
    }
}

fn socket() -> Socket<'static> {
    let buffer = || SocketBuffer::new(vec![0; BUFFER]);
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
