//! Sends what this machine is told as a backup to a recorder, over the log network. Nobody ever waits for it.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddrV4;

use pollux_ft::handshake::End;
use pollux_ft::message::Message;
use pollux_ft::record::{Copies, RecordStream};
use pollux_ft::{RecordKey, Span, Time};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Duration;
use smoltcp::wire::{IpAddress, IpEndpoint};

use super::stack::Stack;
use crate::random::Random;

/// Bytes that TCP buffers on their way to the recorder, and back.
const SEND_BUFFER: usize = 256 << 10;
const RECEIVE_BUFFER: usize = 4 << 10;
/// Sealed bytes that wait for TCP, but for one message.
const SEALED: usize = 64 << 10;
/// A recorder that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(10);
/// How often a recorder is asked for a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// How long a connection may take to come up, and its last words to arrive.
const PATIENCE: Span = Span::from_millis(3000);

#[derive(Debug)]
enum Phase {
    Idle,
    /// The recorder has yet to answer, or to show that it has the key.
    Opening(RecordStream, Time),
    Open(RecordStream),
    /// All was said; until then it may arrive.
    Closing(RecordStream, Time),
}

/// The way to the recorder: one connection for each session.
#[derive(Debug)]
pub(super) struct Recorder {
    server: SocketAddrV4,
    keys: Vec<RecordKey>,
    pair: String,
    random: Random,
    socket: SocketHandle,
    phase: Phase,
}

impl Recorder {
    /// A way to the recorder at `server` for a machine of `pair`, with a socket on `stack`.
    pub(super) fn new(
        server: SocketAddrV4,
        keys: Vec<RecordKey>,
        pair: String,
        random: Random,
        stack: &mut Stack,
    ) -> Self {
        let [sends, receives] = [SEND_BUFFER, RECEIVE_BUFFER].map(|bytes| SocketBuffer::new(vec![0; bytes]));
        let mut socket = Socket::new(receives, sends);
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(SILENCE));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        Self { server, keys, pair, random, socket: stack.add(socket), phase: Phase::Idle }
    }

    /// New connections are begun under one of these keys.
    pub(super) fn set_keys(&mut self, keys: Vec<RecordKey>) {
        self.keys = keys;
    }

    /// When [`poll`](Self::poll) has something to do even if no frame comes.
    pub(super) fn poll_at(&self) -> Option<Time> {
        match &self.phase {
            Phase::Opening(_, until) | Phase::Closing(_, until) => Some(*until),
            Phase::Idle | Phase::Open(_) => None,
        }
    }

    /// Moves what can be moved. What has gone wrong, if anything has; and whether the socket wants to send.
    pub(super) fn poll(&mut self, now: Time, copies: &mut Copies, stack: &mut Stack) -> (Option<String>, bool) {
        let closes = matches!(self.phase, Phase::Closing(..));
        if copies.take_lost() {
            // A session that breaks off cannot be gone on with: what comes is the next one's. The last words of one that has
            // ended may still arrive.
            if !closes {
                self.hang_up(stack);
            }
            return (Some("it did not take the copies in time".into()), true);
        }
        if matches!(self.phase, Phase::Idle) {
            if copies.front().is_none() {
                return (None, false);
            }
            self.dial(now, stack);
        }
        match self.advance(now, copies, stack) {
            Ok(moved) => (None, moved),
            Err(why) => {
                // Behind a session's end the copies are another one's.
                if !closes {
                    copies.give_up();
                }
                self.hang_up(stack);
                (Some(why), true)
            }
        }
    }

    fn dial(&mut self, now: Time, stack: &mut Stack) {
        let stream = RecordStream::new(&self.keys, &self.pair, End::Dials, self.random.draw());
        self.phase = Phase::Opening(stream, now.after(PATIENCE));
        let server = IpEndpoint::new(IpAddress::Ipv4(*self.server.ip()), self.server.port());
        // Connecting fails only on an open socket or a port 0; `advance` finds it closed then.
        let _ = stack.connect(self.socket, server);
    }

    fn hang_up(&mut self, stack: &mut Stack) {
        stack.socket::<Socket<'_>>(self.socket).abort();
        self.phase = Phase::Idle;
    }

    fn advance(&mut self, now: Time, copies: &mut Copies, stack: &mut Stack) -> Result<bool, String> {
        let socket = stack.socket::<Socket<'_>>(self.socket);
        let (stream, until) = match &mut self.phase {
            Phase::Idle => return Ok(false),
            Phase::Opening(stream, until) | Phase::Closing(stream, until) => (stream, Some(*until)),
            Phase::Open(stream) => (stream, None),
        };
        if socket.state() == State::Closed {
            return Err("the connection was refused or reset".into());
        }
        let mut moved = false;
        while socket.can_recv() {
            let taken = socket.recv(|bytes| (bytes.len(), stream.receive(bytes, |_, _| {})));
            taken.map_err(|_| "the connection has ended")?.map_err(|error| alloc::format!("{error}"))?;
            moved = true;
        }
        moved |= transmit(stream, socket);
        let next = match core::mem::replace(&mut self.phase, Phase::Idle) {
            // Without a key a stream is open from the start.
            Phase::Opening(stream, _) if stream.is_open() && socket.may_send() => Phase::Open(stream),
            Phase::Closing(..) if matches!(socket.state(), State::FinWait2 | State::TimeWait) => {
                socket.abort();
                return Ok(true);
            }
            Phase::Closing(stream, until) => {
                if stream.transmit().is_empty() {
                    socket.close();
                }
                Phase::Closing(stream, until)
            }
            phase => phase,
        };
        self.phase = next;
        if until.is_some_and(|until| now >= until) && !matches!(self.phase, Phase::Open(_)) {
            return Err("no answer in time".into());
        }
        Ok(self.pass_on(now, copies, stack) || moved)
    }

    /// Seals as many copies as the connection takes.
    fn pass_on(&mut self, now: Time, copies: &mut Copies, stack: &mut Stack) -> bool {
        let Phase::Open(stream) = &mut self.phase else { return false };
        let socket = stack.socket::<Socket<'_>>(self.socket);
        let (mut moved, mut ends) = (false, false);
        while stream.transmit().len() < SEALED && !ends {
            let Some(copy) = copies.pop() else { break };
            stream.send(&copy);
            ends = copy.kind == Message::BYE;
            moved |= transmit(stream, socket);
        }
        if ends && let Phase::Open(stream) = core::mem::replace(&mut self.phase, Phase::Idle) {
            self.phase = Phase::Closing(stream, now.after(PATIENCE));
        }
        moved || ends
    }
}

/// Hands to the socket what it takes.
fn transmit(stream: &mut RecordStream, socket: &mut Socket<'_>) -> bool {
    if stream.transmit().is_empty() || !socket.can_send() {
        return false;
    }
    let sent = socket.send_slice(stream.transmit()).unwrap_or(0);
    stream.transmitted(sent);
    sent > 0
}

#[cfg(test)]
mod tests;
