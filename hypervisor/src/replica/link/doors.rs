//! Connections of which nobody knows yet whether they are the twin's.
//!
//! Who wants in has to show that it has the pair's key, and several may try at a time: a stranger that is silent, or a flood
//! of them, is in nobody's way for long. There are few doors, each has a time limit, and when the last one is taken all of
//! them are cleared.

#[cfg(test)]
mod tests;

use alloc::vec;
use core::net::Ipv4Addr;

use pollux_ft::{Handshake, Meeting, Stranger, Time};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{self, State};
use smoltcp::time::Duration;
use smoltcp::wire::{IpAddress, IpListenEndpoint};

use super::super::stack::Stack;
use super::{LOG_PORT, OPENING};
use crate::random::Random;

/// How many may try at a time.
const DOORS: usize = 4;
/// Bytes that TCP buffers in each direction.
const STREAM_BUFFER: usize = 256 << 10;
/// How long TCP waits for data to ride on before it sends a bare acknowledgement, in milliseconds.
const ACK_DELAY_MS: u64 = 20;

struct Door {
    socket: SocketHandle,
    /// Since when somebody is at it.
    since: Option<Time>,
    handshake: Option<Handshake>,
    /// It is a stranger, who may still hear why.
    leaves: bool,
    /// It was closed in somebody's face, who has yet to hear of it.
    slammed: bool,
}

impl Door {
    fn clear(&mut self) {
        (self.since, self.handshake, self.leaves, self.slammed) = (None, None, false, false);
    }
}

/// What is seen at a door.
enum Sight {
    /// Nobody, or nobody who is known.
    Nobody,
    /// The twin, with its key.
    Twin,
    /// It is gone, or its time is up.
    Gone,
}

/// The sockets on which a twin can come, and on one of which it is dialled.
pub(super) struct Doors {
    doors: [Door; DOORS],
    own: Ipv4Addr,
    peer: Ipv4Addr,
    random: Random,
    strangers: u64,
    last_stranger: Option<Stranger>,
}

impl Doors {
    pub(super) fn new(stack: &mut Stack, own: Ipv4Addr, peer: Ipv4Addr, random: Random) -> Self {
        let doors = core::array::from_fn(|_| {
            let socket = stack.add(stream_socket());
            Door { socket, since: None, handshake: None, leaves: false, slammed: false }
        });
        Self { doors, own, peer, random, strangers: 0, last_stranger: None }
    }

    /// The socket to dial on.
    pub(super) fn first(&self) -> SocketHandle {
        self.doors[0].socket
    }

    /// What a connection is that we dial.
    pub(super) fn dial(&mut self) -> Meeting {
        Meeting { dialer: self.own, listener: self.peer, random: self.random.draw() }
    }

    /// Ends all connections but that on `keep`.
    pub(super) fn close(&mut self, stack: &mut Stack, keep: Option<SocketHandle>) {
        for door in self.doors.iter_mut().filter(|door| Some(door.socket) != keep) {
            stack.socket::<tcp::Socket<'_>>(door.socket).abort();
            door.clear();
        }
    }

    /// Lets who is at the doors come in, or sends them away. `greet` begins to listen to one.
    pub(super) fn tend(
        &mut self,
        stack: &mut Stack,
        now: Time,
        greet: &mut dyn FnMut(&Meeting) -> Handshake,
    ) -> Option<(SocketHandle, Handshake)> {
        // They have heard by now.
        self.doors.iter_mut().for_each(|door| door.slammed = false);
        for at in 0..DOORS {
            match self.look(stack, now, at, greet) {
                Sight::Nobody => {}
                Sight::Twin => {
                    let door = &mut self.doors[at];
                    let handshake = door.handshake.take();
                    door.clear();
                    return handshake.map(|handshake| (door.socket, handshake));
                }
                Sight::Gone => self.send_away(stack, at),
            }
        }
        self.listen(stack);
        None
    }

    /// Looks who is at a door.
    fn look(&mut self, stack: &mut Stack, now: Time, at: usize, greet: &mut dyn FnMut(&Meeting) -> Handshake) -> Sight {
        let door = &mut self.doors[at];
        let socket = stack.socket::<tcp::Socket<'_>>(door.socket);
        if matches!(socket.state(), State::Closed | State::Listen) {
            door.clear();
            return Sight::Nobody;
        }
        let since = *door.since.get_or_insert(now);
        let elsewhere = socket.remote_endpoint().is_none_or(|remote| remote.addr != IpAddress::Ipv4(self.peer));
        if elsewhere || now >= since.after(OPENING) {
            return Sight::Gone;
        }
        match socket.state() {
            State::SynReceived => return Sight::Nobody,
            State::FinWait1 | State::Closing | State::LastAck if door.leaves => return Sight::Nobody,
            _ if door.leaves => return Sight::Gone,
            _ if !(socket.can_recv() || socket.may_send() && socket.may_recv()) => return Sight::Gone,
            _ => {}
        }
        let handshake = door.handshake.get_or_insert_with(|| {
            greet(&Meeting { dialer: self.peer, listener: self.own, random: self.random.draw() })
        });
        while !handshake.is_done() && socket.can_recv() {
            let taken = socket.recv(|bytes| match handshake.receive(bytes) {
                Ok(taken) => (taken, None),
                Err(stranger) => (bytes.len(), Some(stranger)),
            });
            if let Ok(Some(stranger)) = taken {
                self.last_stranger = Some(stranger);
                // Now: it may be gone before the connection is.
                self.strangers += 1;
                door.leaves = true;
                break;
            }
        }
        // A new connection has room.
        let sent = socket.send_slice(handshake.transmit()).unwrap_or(0);
        handshake.transmitted(sent);
        if door.leaves {
            socket.close();
        }
        if handshake.is_done() { Sight::Twin } else { Sight::Nobody }
    }

    fn send_away(&mut self, stack: &mut Stack, at: usize) {
        let door = &mut self.doors[at];
        stack.socket::<tcp::Socket<'_>>(door.socket).abort();
        self.strangers += u64::from(!door.leaves);
        door.clear();
        door.slammed = true;
    }

    /// Listens behind the last door that is taken: a request that comes again must find the door that it came to first.
    fn listen(&mut self, stack: &mut Stack) {
        let taken = self.doors.iter().rposition(|door| door.since.is_some());
        if taken == Some(DOORS - 1) {
            for at in 0..DOORS {
                if self.doors[at].since.is_some() {
                    self.send_away(stack, at);
                }
            }
        }
        for door in &self.doors[taken.map_or(0, |taken| (taken + 1) % DOORS)..] {
            let socket = stack.socket::<tcp::Socket<'_>>(door.socket);
            if !socket.is_open() && !door.slammed {
                // It fails only on an open socket or port 0.
                let _ = socket.listen(IpListenEndpoint::from(LOG_PORT));
            }
        }
    }

    /// When to look at them again even if nobody says anything.
    pub(super) fn look_at(&self) -> Option<Time> {
        let due = |door: &Door| if door.slammed { Some(Time(0)) } else { door.since.map(|since| since.after(OPENING)) };
        self.doors.iter().filter_map(due).min()
    }

    /// How many were sent away since this was last asked, and what the last one that spoke said wrong.
    pub(super) fn take_strangers(&mut self) -> (u64, Option<Stranger>) {
        (core::mem::take(&mut self.strangers), self.last_stranger.take())
    }
}

fn stream_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; STREAM_BUFFER]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(Some(Duration::from_millis(ACK_DELAY_MS)));
    socket
}
