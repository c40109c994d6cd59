//! The forwarder: a host in user space on the client network, such as 10.0.2.2, that joins local TCP connections and UDP
//! datagrams to the guest, or to whom else it is to reach.

mod announce;
pub(super) mod connection;
mod recovery;
mod udp;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::wire::{IpAddress, IpEndpoint};

use super::frame::{Header, Mac};
use super::stack::Stack;
use super::stats::ForwardStats;
use super::{Forward, ForwardConfig, MAX_FORWARDS, Protocol};
use announce::{Listener, News};
use connection::{Connection, Standing, stack_socket};
use recovery::{Recovery, StackClock};
use udp::UdpForward;

/// The MAC address of a host: locally administered.
fn mac_of(host: Ipv4Addr) -> Mac {
    let [a, _, c, d] = host.octets();
    Mac([0x52, 0x54, 0x00, a, c, d])
}

/// Connections forwarded at a time; more wait in the kernel's backlog.
pub const MAX_CONNECTIONS: usize = 128;
/// How many tokens a forwarder's connections take.
pub const CONNECTION_TOKENS: usize = 2 * MAX_CONNECTIONS;
/// Sockets without a client that still acknowledge the guest's last words; the oldest is given up for a new one.
const MAX_LINGERING: usize = 64;
/// Rounds of moving bytes in one turn.
const ROUNDS: usize = 16;
/// Ports that connections come from. All are used before one is used again, so that the guest has forgotten it.
const LOCAL_PORTS: std::ops::RangeInclusive<u16> = 32_768..=65_535;

/// Event tokens of the forwarder.
#[derive(Debug, Clone, Copy)]
pub struct Tokens {
    /// That of the first forwarded port; the others follow.
    pub forwards: usize,
    /// The first of the connections' tokens, [`CONNECTION_TOKENS`] in all.
    pub connections: usize,
}

/// A local TCP port.
struct Door {
    listener: TcpListener,
    token: Token,
    guest: IpEndpoint,
    /// Clients may wait.
    acceptable: bool,
}

impl Door {
    fn open(forward: &Forward, guest: IpEndpoint, registry: &Registry, token: Token) -> Result<Self> {
        let local = forward.local;
        let mut listener = TcpListener::bind(local.into()).with_context(|| match local.port() {
            0 => "cannot listen on a free TCP port".to_owned(),
            _ => format!("cannot listen on TCP {local}: is another rig running?"),
        })?;
        registry.register(&mut listener, token, Interest::READABLE).context("cannot poll the TCP port")?;
        Ok(Self { listener, token, guest, acceptable: true })
    }

    /// The next client that waits, if one does.
    fn accept(&mut self) -> Option<TcpStream> {
        while self.acceptable {
            match self.listener.accept() {
                Ok((stream, _)) => return Some(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.acceptable = false,
                // A client that has gone already. Others may wait; for want of descriptors, the next event helps.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(_) => return None,
            }
        }
        None
    }
}

/// The host in user space.
pub struct Forwarder {
    own: (Mac, Ipv4Addr),
    pub stack: Stack,
    clock: StackClock,
    recovery: Recovery,
    ear: Listener,
    /// As they were asked for.
    forwards: Vec<Forward>,
    doors: Vec<Door>,
    udp: Vec<UdpForward>,
    tokens: Tokens,
    connections: HashMap<usize, Connection>,
    next_connection: usize,
    next_port: u16,
    lingering: Vec<SocketHandle>,
    stats: ForwardStats,
}

impl Forwarder {
    /// Binds the local ports.
    pub fn new(config: &ForwardConfig, seed: u64, registry: &Registry, tokens: Tokens) -> Result<Self> {
        ensure!(config.forwards.len() <= MAX_FORWARDS, "at most {MAX_FORWARDS} ports can be forwarded");
        let (mut doors, mut udp) = (Vec::new(), Vec::new());
        for (index, forward) in config.forwards.iter().enumerate() {
            let guest = endpoint(config.guest, forward.guest_port);
            let token = Token(tokens.forwards + index);
            match forward.protocol {
                Protocol::Tcp => doors.push(Door::open(forward, guest, registry, token)?),
                Protocol::Udp => udp.push(UdpForward::bind(forward.local.into(), guest, udp.len(), registry, token)?),
            }
        }
        let clock = StackClock::default();
        let own = (mac_of(config.host), config.host);
        Ok(Self {
            own,
            stack: Stack::new(own.0, own.1, seed, clock.at(Duration::ZERO))?,
            clock,
            recovery: Recovery::default(),
            ear: Listener::new(config.guest),
            forwards: config.forwards.clone(),
            doors,
            udp,
            tokens,
            connections: HashMap::new(),
            next_connection: 0,
            next_port: *LOCAL_PORTS.start(),
            lingering: Vec::new(),
            stats: ForwardStats::default(),
        })
    }

    /// The forwarded ports, with the local ones that were taken.
    pub fn forwards(&self) -> Result<Vec<Forward>> {
        let (mut doors, mut udp) = (self.doors.iter(), self.udp.iter());
        let taken = |forward: &Forward| {
            let address = match forward.protocol {
                Protocol::Tcp => doors.next().context("a port is missing")?.listener.local_addr(),
                Protocol::Udp => udp.next().context("a port is missing")?.address(),
            };
            let mut local = forward.local;
            local.set_port(address.context("a forwarded port has no address")?.port());
            Ok(Forward { local, ..*forward })
        };
        self.forwards.iter().map(taken).collect()
    }

    /// What was counted.
    pub fn stats(&self) -> ForwardStats {
        ForwardStats {
            open: self.connections.len() as u64,
            udp_dropped: self.udp.iter().map(|udp| udp.dropped).sum(),
            ..self.stats
        }
    }

    /// Notes an event at one of the forwarder's sockets.
    pub fn event(&mut self, event: &Event) {
        self.stack.wake();
        let token = event.token();
        if let Some(door) = self.doors.iter_mut().find(|door| door.token == token) {
            door.acceptable = true;
        } else if let Some(udp) = self.udp.iter_mut().find(|udp| udp.token == token) {
            udp.readable = true;
        } else if let Some(connection) = self.connections.get_mut(&token.0) {
            connection.event(event);
        }
    }

    /// Takes a frame from the network; false if too many wait.
    pub fn receive(&mut self, header: &Header, frame: &[u8], now: Duration) -> bool {
        match self.ear.look(header, frame) {
            Some(News::Heard) => self.recovery.heard(now),
            Some(News::Announced) => self.recovery.announced(),
            None => {}
        }
        self.stack.receive(frame)
    }

    /// Moves everything that can move.
    pub fn poll(&mut self, now: Duration, registry: &Registry) {
        if !self.stack.is_due(now) {
            return;
        }
        for _ in 0..ROUNDS {
            if !self.round(now, registry) {
                self.stack.rest();
                break;
            }
        }
        self.recover(now);
        let stack = self.stack.poll_at(self.clock.at(now)).map(|at| self.clock.when(at));
        self.stack.sleep_until([stack, self.recovery.deadline()].into_iter().flatten().min());
    }

    /// One round: from the clients, through the stack, to the clients. True if another one may move more.
    fn round(&mut self, now: Duration, registry: &Registry) -> bool {
        let mut moved = self.accept(now, registry);
        for connection in self.connections.values_mut() {
            moved |= connection.pump_to_guest(self.stack.sockets.get_mut(connection.handle));
        }
        for udp in &mut self.udp {
            udp.pump_to_guest(&mut self.stack.sockets);
            moved |= udp.readable;
        }
        self.stack.poll(self.clock.at(now));
        for connection in self.connections.values_mut() {
            let socket = self.stack.sockets.get_mut(connection.handle);
            moved |= connection.pump_to_client(socket);
            // The guest may just have answered the connection's first segment, or made room.
            moved |= connection.can_pump_to_guest(socket);
        }
        for udp in &mut self.udp {
            udp.pump_to_clients(&mut self.stack.sockets);
        }
        moved | self.reap() | self.stack.has_input()
    }

    fn accept(&mut self, now: Duration, registry: &Registry) -> bool {
        let mut accepted = false;
        while self.connections.len() < MAX_CONNECTIONS {
            let next = self.doors.iter_mut().find_map(|door| Some((door.accept()?, door.guest)));
            let Some((mut stream, guest)) = next else { break };
            let mut socket = stack_socket();
            let port = self.local_port();
            if socket.connect(self.stack.interface.context(), guest, port).is_err() {
                // The guest's address was refused by the stack; dropping the stream tells the client.
                continue;
            }
            while self.connections.contains_key(&(self.tokens.connections + self.next_connection)) {
                self.next_connection = (self.next_connection + 1) % CONNECTION_TOKENS;
            }
            let token = self.tokens.connections + self.next_connection;
            self.next_connection = (self.next_connection + 1) % CONNECTION_TOKENS;
            if registry.register(&mut stream, Token(token), Interest::READABLE | Interest::WRITABLE).is_err() {
                continue;
            }
            let handle = self.stack.sockets.add(socket);
            self.connections.insert(token, Connection::new(stream, handle, now));
            self.stats.accepted += 1;
            accepted = true;
        }
        accepted
    }

    /// The next local port that no socket uses. There are far more ports than sockets.
    fn local_port(&mut self) -> u16 {
        let used: Vec<u16> = self
            .connections
            .values()
            .map(|connection| connection.handle)
            .chain(self.lingering.iter().copied())
            .filter_map(|handle| self.stack.sockets.get::<Socket<'_>>(handle).local_endpoint())
            .map(|endpoint| endpoint.port)
            .collect();
        loop {
            let port = self.next_port;
            self.next_port = if port == *LOCAL_PORTS.end() { *LOCAL_PORTS.start() } else { port + 1 };
            if !used.contains(&port) {
                return port;
            }
        }
    }

    /// Parts with connections that have ended. True if any has: a reset may have to go out, and there is room.
    fn reap(&mut self) -> bool {
        let ended: Vec<_> = self
            .connections
            .iter()
            .map(|(&token, connection)| (token, connection.standing(self.stack.sockets.get(connection.handle))))
            .filter(|(_, standing)| *standing != Standing::Open)
            .collect();
        for &(token, standing) in &ended {
            let Some(connection) = self.connections.remove(&token) else { continue };
            let handle = connection.handle;
            match standing {
                Standing::ResetByGuest => {
                    self.stats.reset_by_guest += 1;
                    connection.reset_client();
                }
                Standing::ResetByClient => {
                    self.stats.reset_by_client += 1;
                    self.stack.sockets.get_mut::<Socket<'_>>(handle).abort();
                }
                Standing::Finished | Standing::Open => {}
            }
            self.lingering.push(handle);
        }
        let sockets = &mut self.stack.sockets;
        // A closed socket keeps its remote end until its reset has gone out.
        self.lingering.retain(|&handle| {
            let socket = sockets.get::<Socket<'_>>(handle);
            let done = socket.state() == State::Closed && socket.remote_endpoint().is_none();
            if done {
                sockets.remove(handle);
            }
            !done
        });
        let excess = self.lingering.len().saturating_sub(MAX_LINGERING);
        for handle in self.lingering.drain(..excess) {
            sockets.remove(handle);
        }
        !ended.is_empty()
    }

    /// Sends again what the guest may have missed, if it is time to.
    fn recover(&mut self, now: Duration) {
        let (mut in_flight, mut stalled) = (false, false);
        for connection in self.connections.values_mut() {
            let (owed, late) = connection.owed(self.stack.sockets.get(connection.handle), now);
            in_flight |= owed;
            stalled |= late;
        }
        if !self.recovery.check(now, in_flight, stalled) {
            return;
        }
        self.stats.nudges += 1;
        self.clock.jump();
        if let Some(frame) = self.ear.reminder(self.own.0, self.own.1) {
            self.stack.receive(&frame);
        }
        self.stack.poll(self.clock.at(now));
        self.stack.wake();
    }
}

fn endpoint(address: Ipv4Addr, port: u16) -> IpEndpoint {
    IpEndpoint::new(IpAddress::Ipv4(address), port)
}
