//! What this machine answers to people on the client network, in its own name: status, metrics and health, by HTTP. From here
//! events go to a syslog server, too.
//!
//! It has a [`Station`] of its own, so that what comes here is in nobody's way: the arbiter's answers go elsewhere, and
//! neither a flood nor a crowd of slow clients costs more than bounded work a turn. There are few doors, each has a time
//! limit, and when all are taken whoever has stood there the longest is sent away for the next one. Answers are made one
//! at a time, with a pause between two.

pub mod http;
#[cfg(test)]
mod tests;

use alloc::vec;
use alloc::vec::Vec;
use core::mem;
use core::net::{Ipv4Addr, SocketAddrV4};

use pollux_ft::{Span, Time};
use pollux_nic::MacAddress;
use pollux_nic::frame::request_for;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpOption, TcpPacket};

use self::http::{MAX_REQUEST, Parsed, Request, Response};
use super::station::{For, Station};
use super::syslog::{self, Syslog};
use crate::config::Cidr;
use crate::random::Random;

/// Connections at a time.
const DOORS: usize = 8;
/// Bytes that TCP buffers of a request, and of an answer.
const RECEIVE_BUFFER: usize = MAX_REQUEST;
const SEND_BUFFER: usize = 8 << 10;
/// How long a connection may take, from its first segment to its last.
const PATIENCE: Span = Span::from_millis(5000);
/// How long nobody is sent away for somebody else.
const GRACE: Span = Span::from_millis(500);
/// The time between two answers: one is the work of some hundred microseconds.
const PAUSE: Span = Span::from_millis(20);

/// Frames that are sent in one turn; more wait for the next one.
const FRAMES_A_TURN: usize = 8;
/// The least that a client may want to get in a segment, as RFC 9293, 3.7.1 has it for those that say nothing: with less an
/// answer would take any number of frames.
const MIN_MSS: u16 = 536;

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    /// Requests that were no proper ones, and connections in tiny segments.
    refused: u64,
    /// Connections that ended before their answer was made, or had arrived.
    broken: u64,
}

/// What somebody at a door is about.
#[derive(Debug)]
enum Phase {
    /// Has said this much of a request.
    Asks(Vec<u8>),
    /// Waits for the answer.
    Waits(Request),
    /// Gets the answer, of which this much was sent.
    Gets(Vec<u8>, usize),
    /// Has all of it, and may say goodbye.
    Leaves,
}

#[derive(Debug)]
struct Door {
    socket: SocketHandle,
    /// Since when somebody is there.
    since: Option<Time>,
    phase: Phase,
}

/// Who answers.
pub struct Service {
    station: Station,
    own: Cidr,
    /// The port of HTTP, if that is spoken.
    port: Option<u16>,
    doors: Vec<Door>,
    syslog: Option<Syslog>,
    next_answer: Time,
    /// How many frames may still be sent in this turn.
    frames_left: usize,
    counts: Counts,
}

impl Service {
    /// Answers at `port` of `own`, if there is one.
    pub fn new(mac: MacAddress, own: Cidr, gateway: Option<Ipv4Addr>, port: Option<u16>, random: Random) -> Self {
        let mut station = Station::new(mac, own, gateway, random);
        station.wake(true);
        if let Some(gateway) = gateway {
            station.stack.keep_in_reach(gateway);
        }
        let door = |_| {
            let [receive, send] = [RECEIVE_BUFFER, SEND_BUFFER].map(|bytes| SocketBuffer::new(vec![0; bytes]));
            let mut socket = Socket::new(receive, send);
            socket.set_nagle_enabled(false);
            Door { socket: station.stack.add(socket), since: None, phase: Phase::Asks(Vec::new()) }
        };
        let doors = (0..if port.is_some() { DOORS } else { 0 }).map(door).collect();
        Self {
            station,
            own,
            port,
            doors,
            syslog: None,
            next_answer: Time(0),
            frames_left: 0,
            counts: Counts::default(),
        }
    }

    /// Counts of what was refused, by name.
    pub fn refused(&self) -> [(&'static str, u64); 3] {
        [
            ("http_refused", self.counts.refused),
            ("http_broken", self.counts.broken),
            ("syslog_dropped", syslog::dropped()),
        ]
    }

    /// Tells `server` what happens on the machine `host`.
    pub fn log_to(&mut self, server: SocketAddrV4, host: &str) {
        self.syslog = Some(Syslog::new(server, host, &mut self.station.stack));
    }

    /// Whether events wait for the syslog server, or frames for the card that may be theirs.
    pub fn has_unsent_events(&mut self) -> bool {
        let Some(syslog) = &self.syslog else { return false };
        syslog.has_unsent(&mut self.station.stack) || self.station.unsent() > 0
    }

    /// Whether a frame is a segment for the port.
    pub fn is_for(&self, frame: &[u8]) -> bool {
        segment(frame, self.own.address).is_some_and(|(_, segment)| Some(segment.dst_port()) == self.port)
    }

    /// Takes a frame that [is for it](Self::is_for); whether it is for the guest, too or alone. Who begins a connection has
    /// just said where it is, and need not be asked. Who wants it in tiny segments is not heard.
    pub fn offer(&mut self, frame: &[u8]) -> bool {
        let wants_tiny = segment(frame, self.own.address)
            .is_some_and(|(_, segment)| segment.syn() && max_segment(&segment).is_some_and(|mss| mss < MIN_MSS));
        if wants_tiny {
            let whose = self.station.whose(frame);
            self.counts.refused += u64::from(whose == For::Machine);
            return whose != For::Machine;
        }
        if let (Ok(ethernet), Some((from, segment))) =
            (EthernetFrame::new_checked(frame), segment(frame, self.own.address))
            && segment.syn()
            && ethernet.dst_addr() == self.station.mac()
            && self.own.contains(from)
        {
            self.station.offer(&request_for(self.own.address, ethernet.src_addr(), from));
        }
        self.station.offer(frame)
    }

    /// Takes a frame if it is a neighbour's question or answer where somebody is; whether it, or any other frame, is for the
    /// guest, too or alone.
    pub fn offer_neighbour(&mut self, frame: &[u8]) -> bool {
        let is_arp = EthernetFrame::new_checked(frame).is_ok_and(|frame| frame.ethertype() == EthernetProtocol::Arp);
        if is_arp { self.station.offer(frame) } else { self.station.whose(frame) != For::Machine }
    }

    /// The next frame to be sent in this turn, of which each [`poll`](Self::poll) begins one.
    pub fn next_frame(&mut self) -> Option<Vec<u8>> {
        self.frames_left = self.frames_left.checked_sub(1)?;
        self.station.next_frame()
    }

    /// When [`poll`](Self::poll) has something to do even if no frame comes.
    pub fn poll_at(&mut self, now: Time) -> Option<Time> {
        if self.station.waiting() > 0 || self.station.unsent() > 0 {
            return Some(now);
        }
        let ends = self.doors.iter().filter_map(|door| door.since).min().map(|since| since.after(PATIENCE));
        let waits = self.doors.iter().any(|door| matches!(door.phase, Phase::Waits(_))).then_some(self.next_answer);
        [self.station.poll_at(now), ends, waits].into_iter().flatten().min()
    }

    /// Moves everything that waits; `answer` makes an answer, and `unix_time` says what time it is for others.
    pub fn poll(&mut self, now: Time, unix_time: &dyn Fn() -> u64, answer: &mut dyn FnMut(&Request) -> Response) {
        self.frames_left = FRAMES_A_TURN;
        self.station.poll(now);
        for door in &mut self.doors {
            let socket = self.station.stack.socket(door.socket);
            tend(door, now, self.port.unwrap_or_default(), socket, &mut self.counts);
        }
        self.answer(now, answer);
        self.make_room(now);
        if let Some(syslog) = &mut self.syslog {
            syslog.poll(unix_time, &mut self.station.stack);
        }
        self.station.poll(now);
        for door in &mut self.doors {
            reopen(door, self.port.unwrap_or_default(), self.station.stack.socket(door.socket), &mut self.counts);
        }
    }

    /// Answers whoever has waited for it the longest, if it is time to.
    fn answer(&mut self, now: Time, answer: &mut dyn FnMut(&Request) -> Response) {
        if now < self.next_answer {
            return;
        }
        let waiting = self.doors.iter_mut().filter(|door| matches!(door.phase, Phase::Waits(_)));
        let Some(door) = waiting.min_by_key(|door| door.since) else { return };
        if let Phase::Waits(request) = &door.phase {
            self.next_answer = now.after(PAUSE);
            let head = request.head;
            door.phase = Phase::Gets(answer(request).encode(head), 0);
            say(door, self.station.stack.socket(door.socket));
        }
    }

    /// Keeps a door free for the next one.
    fn make_room(&mut self, now: Time) {
        if self.doors.iter().any(|door| door.since.is_none()) {
            return;
        }
        let longest = self.doors.iter_mut().min_by_key(|door| door.since);
        let overdue = |door: &&mut Door| door.since.is_some_and(|since| now.since(since) >= GRACE);
        if let Some(door) = longest.filter(overdue) {
            self.station.stack.socket::<Socket<'_>>(door.socket).abort();
        }
    }
}

/// Does at a door what can be done now.
fn tend(door: &mut Door, now: Time, port: u16, socket: &mut Socket<'static>, counts: &mut Counts) {
    reopen(door, port, socket, counts);
    match socket.state() {
        State::Closed | State::Listen => return,
        // Its last acknowledgement went out with the poll that brought it here.
        State::TimeWait => return socket.abort(),
        _ => {}
    }
    let since = *door.since.get_or_insert(now);
    let late = now.since(since) >= PATIENCE;
    if let Phase::Asks(bytes) = &mut door.phase {
        listen_to(bytes, socket);
        match http::parse(bytes) {
            Parsed::Unfinished if late && !bytes.is_empty() => {
                counts.refused += 1;
                door.phase = Phase::Gets(Response::timeout().encode(http::asks_for_head(bytes)), 0);
                // So long it has time to hear that.
                door.since = Some(now);
            }
            // It says nothing more.
            Parsed::Unfinished if late || !socket.may_recv() && socket.state() != State::SynReceived => {
                return socket.abort();
            }
            Parsed::Unfinished => {}
            Parsed::Request(request) => door.phase = Phase::Waits(request),
            Parsed::Refused(response) => {
                counts.refused += 1;
                door.phase = Phase::Gets(response.encode(http::asks_for_head(bytes)), 0);
            }
        }
    } else if late {
        return socket.abort();
    }
    say(door, socket);
    if matches!(door.phase, Phase::Leaves) {
        // What is still said is of no interest, but unread it would turn the end into a reset.
        while socket.can_recv() && socket.recv(|bytes| (bytes.len(), ())).is_ok() {}
    }
}

/// Lets the next one come to a door that nobody is at any more. To be called after the station's poll, in which the reset
/// of an aborted connection goes out: not later, as without a way to the other end it never does.
fn reopen(door: &mut Door, port: u16, socket: &mut Socket<'static>, counts: &mut Counts) {
    if socket.state() == State::Closed {
        counts.broken += u64::from(door.since.is_some() && !matches!(door.phase, Phase::Leaves));
        (door.since, door.phase) = (None, Phase::Asks(Vec::new()));
        // That fails only on an open socket, or for port 0.
        let _ = socket.listen(port);
    }
}

/// Takes what was said, as far as a request goes.
fn listen_to(bytes: &mut Vec<u8>, socket: &mut Socket<'static>) {
    while socket.can_recv() && bytes.len() < MAX_REQUEST {
        let room = MAX_REQUEST - bytes.len();
        let taken = socket.recv(|received| {
            let part = &received[..received.len().min(room)];
            bytes.extend_from_slice(part);
            (part.len(), ())
        });
        if taken.is_err() {
            return;
        }
    }
}

/// Says what the socket takes of the answer; all of it was said when the connection is closed.
fn say(door: &mut Door, socket: &mut Socket<'static>) {
    let Phase::Gets(bytes, sent) = &mut door.phase else { return };
    if socket.can_send() {
        *sent += socket.send_slice(&bytes[*sent..]).unwrap_or(0);
    }
    if *sent == bytes.len() {
        socket.close();
        drop(mem::replace(&mut door.phase, Phase::Leaves));
    }
}

/// The smallest of the sizes that a segment's options give as the largest one that its sender takes.
fn max_segment(segment: &TcpPacket<&[u8]>) -> Option<u16> {
    let mut options = segment.options();
    let mut least: Option<u16> = None;
    while !options.is_empty() {
        match TcpOption::parse(options) {
            Ok((_, TcpOption::EndOfList)) | Err(_) => break,
            Ok((rest, TcpOption::MaxSegmentSize(size))) => {
                least = Some(least.map_or(size, |least| least.min(size)));
                options = rest;
            }
            Ok((rest, _)) => options = rest,
        }
    }
    least
}

/// The TCP segment in a frame for `own`, and who sent it. Of pieces of packets there is none.
fn segment(frame: &[u8], own: Ipv4Addr) -> Option<(Ipv4Addr, TcpPacket<&[u8]>)> {
    let frame = EthernetFrame::new_checked(frame).ok().filter(|frame| frame.ethertype() == EthernetProtocol::Ipv4)?;
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    let whole = !packet.more_frags() && packet.frag_offset() == 0;
    if !whole || packet.next_header() != IpProtocol::Tcp || packet.dst_addr() != own {
        return None;
    }
    Some((packet.src_addr(), TcpPacket::new_checked(packet.payload()).ok()?))
}
