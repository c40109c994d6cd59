//! The link to the twin: a TCP connection for log and state, UDP datagrams for heartbeats, over the log NIC.
//!
//! It only carries bytes; what they mean is the node's business. A primary listens, everybody else connects.

mod doors;

use alloc::boxed::Box;
use alloc::vec;
use core::net::Ipv4Addr;

use pollux_ft::{Handshake, Meeting, Span, Stranger, Time};
use pollux_nic::e1000::E1000;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{IpAddress, IpEndpoint};

use self::doors::Doors;
use super::stack::Stack;
use crate::config::Cidr;
use crate::host::interrupts::Fired;
use crate::host::nic::Route;
use crate::random::Random;

/// TCP port of the log, the same on both machines.
const LOG_PORT: u16 = 7001;
/// UDP port of heartbeats, the same on both machines.
const HEARTBEAT_PORT: u16 = 7002;
/// Longest heartbeat in bytes.
const DATAGRAM: usize = 512;
/// Heartbeats that may wait in each direction.
const DATAGRAMS: usize = 8;
/// Wall time between two attempts to connect.
const RETRY: Span = Span::from_millis(200);
/// How long a connection may take to come up, its handshake included.
const OPENING: Span = Span::from_millis(3000);
/// How long the last words on a connection that we ended may take to arrive.
const LINGER: Span = Span::from_millis(1000);

/// Which end of the connection this machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Waits for the twin to connect.
    Listen,
    /// Connects to the twin.
    Connect,
}

/// What happened to the connection since it was last asked for.
#[derive(Debug)]
pub enum Change {
    /// Nothing.
    None,
    /// It came up. Its handshake has been done with who came to us, and is to be done with whom we dialled.
    Connected(Box<Handshake>),
    /// It is gone.
    Disconnected,
}

/// Bytes on the wire of the log NIC, Ethernet headers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WireBytes {
    /// Sent, heartbeats not included.
    pub sent: u64,
    /// Received, heartbeats not included.
    pub received: u64,
    /// Heartbeats in both directions.
    pub heartbeats: u64,
}

/// The link. Its network stack also carries questions to the arbiter.
pub struct Link {
    nic: E1000,
    route: Route,
    stack: Stack,
    doors: Doors,
    /// The door that the connection is at.
    stream: SocketHandle,
    datagrams: SocketHandle,
    peer: Ipv4Addr,
    end: End,
    connected: bool,
    wanted: bool,
    retry_at: Time,
    /// Since when the connection is neither up nor waited for.
    opening_since: Option<Time>,
    /// We ended the connection, and wait until then for the twin to have all that was sent on it.
    lingers_until: Option<Time>,
    heartbeats_sent: u64,
    heartbeats_received: u64,
    // Set by anything that gives the network stack work.
    dirty: bool,
    poll_at: Option<Time>,
}

/// Bytes that Ethernet, IPv4 and UDP headers add to a heartbeat.
const UDP_HEADERS: u64 = 14 + 20 + 8;

impl Link {
    /// Starts the network stack on `nic`.
    #[must_use]
    pub fn new(nic: E1000, route: Route, own: Cidr, peer: Ipv4Addr, end: End, random: Random) -> Self {
        let (mut nic, mut random) = (nic, random);
        let mut stack = Stack::new(nic.mac(), own, None, random.fork(), &mut nic);
        stack.keep_in_reach(peer);
        let doors = Doors::new(&mut stack, own.address, peer, random);
        let stream = doors.first();
        let datagrams = stack.add(datagram_socket());
        Self {
            nic,
            route,
            stack,
            doors,
            stream,
            datagrams,
            peer,
            end,
            connected: false,
            wanted: false,
            retry_at: Time(0),
            opening_since: None,
            lingers_until: None,
            heartbeats_sent: 0,
            heartbeats_received: 0,
            dirty: true,
            poll_at: None,
        }
    }

    /// Changes which end this machine is; a connection that exists is dropped. One that is ended already comes to its end.
    pub fn set_end(&mut self, end: End) {
        if self.end != end {
            self.end = end;
            if self.lingers_until.is_none() {
                self.reset();
            }
        }
    }

    /// Lets `f` use the network stack for sockets of its own. It says with its result whether they want to send.
    pub fn with_stack<T>(&mut self, f: impl FnOnce(&mut Stack) -> (T, bool)) -> T {
        let (result, moved) = f(&mut self.stack);
        self.dirty |= moved;
        result
    }

    /// Drops the connection, if there is one.
    pub fn reset(&mut self) {
        self.doors.close(&mut self.stack, None);
        self.lingers_until = None;
        self.dirty = true;
    }

    /// Ends the connection, if there is one, behind `rest`; returns how much of that found room. What was sent still
    /// arrives, also when the network loses some of it at first.
    pub fn finish(&mut self, now: Time, rest: &[u8]) -> usize {
        let sent = self.send(rest);
        if core::mem::take(&mut self.connected) {
            self.stack.socket::<tcp::Socket<'_>>(self.stream).close();
            self.lingers_until = Some(now.after(LINGER));
            self.retry_at = now.after(RETRY);
            self.dirty = true;
        }
        sent
    }

    /// Whether a connection that we ended still delivers what was sent on it.
    pub fn has_last_words(&self) -> bool {
        self.lingers_until.is_some()
    }

    /// Looks whether [it still does](Self::has_last_words), and drops it if not.
    fn lingers(&mut self, now: Time) -> bool {
        let Some(until) = self.lingers_until else { return false };
        let state = self.stack.socket::<tcp::Socket<'_>>(self.stream).state();
        // In the last two of these the twin has all, and its own end is of no interest.
        let done = matches!(state, tcp::State::Closed | tcp::State::FinWait2 | tcp::State::TimeWait);
        if done || now >= until {
            self.reset();
        }
        self.has_last_words()
    }

    /// Whether there should be a connection at all.
    pub fn set_wanted(&mut self, wanted: bool) {
        self.dirty |= wanted && !self.wanted;
        self.wanted = wanted;
    }

    /// Serves the card's interrupt if `fired` has it, and lets its line through again.
    pub fn interrupted(&mut self, fired: Fired) {
        if self.route.fired(fired) {
            self.nic.interrupt_cause();
            self.route.rearm();
            self.dirty = true;
        }
    }

    /// Sends what was queued, if anything was.
    pub fn push(&mut self, now: Time) {
        if self.dirty {
            self.stack.poll_egress(now, &mut self.nic);
            self.nic.flush();
            self.plan(now);
        }
    }

    /// Works out when the stack has something to do next.
    fn plan(&mut self, now: Time) {
        self.dirty = false;
        let delay = self.stack.poll_at(now);
        let idle = !self.stack.socket::<tcp::Socket<'_>>(self.stream).is_open();
        let retry = (idle && self.wanted && self.end == End::Connect).then_some(self.retry_at);
        let given_up = self.opening_since.map(|since| since.after(OPENING));
        let doors = if self.connected { None } else { self.doors.look_at() };
        self.poll_at = [delay, retry, given_up, doors, self.lingers_until].into_iter().flatten().min();
    }

    /// Moves frames between the card and the sockets. Returns what became of the connection. `greet` makes this machine's
    /// end of a handshake.
    pub fn poll(&mut self, now: Time, mut greet: impl FnMut(&Meeting) -> Handshake) -> Change {
        let due = self.poll_at.is_some_and(|at| at <= now);
        if !(self.dirty || due || self.nic.has_received()) {
            return Change::None;
        }
        self.stack.poll(now, &mut self.nic);
        self.nic.flush();
        let change = self.follow_connection(now, &mut greet);
        self.plan(now);
        change
    }

    fn follow_connection(&mut self, now: Time, greet: &mut dyn FnMut(&Meeting) -> Handshake) -> Change {
        if self.lingers(now) {
            return Change::None;
        }
        if self.connected {
            return self.follow_end(now);
        }
        match self.end {
            End::Listen if self.wanted => self.answer(now, greet),
            End::Listen => {
                self.doors.close(&mut self.stack, None);
                Change::None
            }
            End::Connect => self.dial(now, greet),
        }
    }

    /// Looks whether the connection has ended. Bytes that arrived before are still read.
    fn follow_end(&mut self, now: Time) -> Change {
        let socket = self.stack.socket::<tcp::Socket<'_>>(self.stream);
        if (socket.may_send() && socket.may_recv()) || socket.can_recv() {
            return Change::None;
        }
        self.connected = false;
        self.retry_at = now.after(RETRY);
        socket.abort();
        self.dirty = true;
        Change::Disconnected
    }

    /// Lets the twin in, if it is there.
    fn answer(&mut self, now: Time, greet: &mut dyn FnMut(&Meeting) -> Handshake) -> Change {
        let Some((socket, handshake)) = self.doors.tend(&mut self.stack, now, greet) else { return Change::None };
        self.doors.close(&mut self.stack, Some(socket));
        self.connect(socket, handshake)
    }

    fn connect(&mut self, socket: SocketHandle, handshake: Handshake) -> Change {
        (self.stream, self.connected, self.opening_since) = (socket, true, None);
        Change::Connected(Box::new(handshake))
    }

    /// Looks for the twin.
    fn dial(&mut self, now: Time, greet: &mut dyn FnMut(&Meeting) -> Handshake) -> Change {
        self.stream = self.doors.first();
        let socket = self.stack.socket::<tcp::Socket<'_>>(self.stream);
        if socket.may_send() && socket.may_recv() {
            let handshake = greet(&self.doors.dial());
            return self.connect(self.stream, handshake);
        }
        // One that ended before it was seen, or of which nothing more is heard.
        let opening = socket.is_open();
        let since = opening.then(|| *self.opening_since.get_or_insert(now));
        self.opening_since = since;
        let begins = matches!(socket.state(), tcp::State::SynSent | tcp::State::SynReceived);
        if since.is_some_and(|since| !begins || now >= since.after(OPENING)) {
            socket.abort();
            self.opening_since = None;
            self.retry_at = now.after(RETRY);
            self.dirty = true;
        }
        if self.wanted && !socket.is_open() && now >= self.retry_at {
            self.retry_at = now.after(RETRY);
            // Connecting fails only on an open socket or a port 0.
            let _ = self.stack.connect(self.stream, IpEndpoint::new(IpAddress::Ipv4(self.peer), LOG_PORT));
            self.dirty = true;
        }
        Change::None
    }

    /// How many connections of strangers were refused since this was last asked, and what the last one that spoke said.
    pub fn take_strangers(&mut self) -> (u64, Option<Stranger>) {
        self.doors.take_strangers()
    }

    /// When [`poll`](Self::poll) has something to do by itself.
    #[must_use]
    pub fn poll_at(&self) -> Option<Time> {
        if self.dirty { Some(Time(0)) } else { self.poll_at }
    }

    /// Hands received stream bytes to `take`, which says how many it took.
    pub fn receive(&mut self, mut take: impl FnMut(&[u8]) -> usize) {
        let socket = self.stack.socket::<tcp::Socket<'_>>(self.stream);
        while socket.can_recv() {
            let taken = socket.recv(|bytes| {
                let taken = take(bytes);
                (taken, taken)
            });
            self.dirty = true;
            if !matches!(taken, Ok(1..)) {
                break;
            }
        }
    }

    /// Queues stream bytes; returns how many fitted.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        if bytes.is_empty() || !self.connected {
            return 0;
        }
        let sent = self.stack.socket::<tcp::Socket<'_>>(self.stream).send_slice(bytes).unwrap_or(0);
        self.dirty |= sent > 0;
        sent
    }

    /// Hands received heartbeats to `take`.
    pub fn receive_datagrams(&mut self, mut take: impl FnMut(&[u8])) {
        let socket = self.stack.socket::<udp::Socket<'_>>(self.datagrams);
        while let Ok((bytes, from)) = socket.recv() {
            if from.endpoint.addr == IpAddress::Ipv4(self.peer) {
                self.heartbeats_received += bytes.len() as u64 + UDP_HEADERS;
                take(bytes);
            }
        }
    }

    /// Queues a heartbeat. One that finds no room is lost, as any datagram may be.
    pub fn send_datagram(&mut self, bytes: &[u8]) {
        let socket = self.stack.socket::<udp::Socket<'_>>(self.datagrams);
        if socket.send_slice(bytes, IpEndpoint::new(IpAddress::Ipv4(self.peer), HEARTBEAT_PORT)).is_ok() {
            self.heartbeats_sent += bytes.len() as u64 + UDP_HEADERS;
            self.dirty = true;
        }
    }

    /// Bytes on the wire so far.
    #[must_use]
    pub fn wire_bytes(&self) -> WireBytes {
        let card = self.nic.stats();
        WireBytes {
            sent: card.tx.bytes.saturating_sub(self.heartbeats_sent),
            received: card.rx.bytes.saturating_sub(self.heartbeats_received),
            heartbeats: self.heartbeats_sent + self.heartbeats_received,
        }
    }
}

fn datagram_socket() -> udp::Socket<'static> {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; DATAGRAMS], vec![0; DATAGRAM * DATAGRAMS]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    // Binding fails only on a bound socket or port 0.
    let _ = socket.bind(HEARTBEAT_PORT);
    socket
}
