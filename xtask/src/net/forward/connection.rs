//! One forwarded TCP connection: a kernel socket towards the client joined to a stack socket towards the guest.
//!
//! Nothing is buffered in between: bytes move from one socket's buffer into the other's, so each side's window holds
//! back the other. Half-closes and resets are passed on.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Duration;

use mio::event::Event;
use mio::net::TcpStream;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};

use super::recovery::StackClock;

/// Buffer of each direction inside the stack.
const BUFFER: usize = 64 << 10;
/// How long an acknowledgement waits for data to travel with.
const ACK_DELAY: Duration = Duration::from_millis(10);
/// Without any progress for so long, a connection counts as stalled.
const STALL: Duration = Duration::from_secs(1);

/// A stack socket that never gives up: a guest in the middle of a takeover is silent, not gone.
pub fn stack_socket() -> Socket<'static> {
    let buffer = || SocketBuffer::new(vec![0; BUFFER]);
    let mut socket = Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_timeout(None);
    socket.set_keep_alive(None);
    socket.set_ack_delay(Some(StackClock::span(ACK_DELAY)));
    socket
}

/// How a connection stands after its bytes were moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It goes on.
    Open,
    /// Both sides have said all; the stack socket may still have to acknowledge the last word.
    Finished,
    /// The guest reset it: the client has to be reset, too.
    ResetByGuest,
    /// The client reset it: the guest has to be reset, too.
    ResetByClient,
}

/// A forwarded connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// The stack's side.
    pub handle: SocketHandle,
    /// The kernel may have bytes, an end or an error for us.
    pub readable: bool,
    /// The client's end, or an error, has been signalled: it comes after the bytes, and is not signalled again.
    pub ending: bool,
    /// The kernel may take bytes.
    pub writable: bool,
    client_ended: bool,
    guest_ended: bool,
    client_failed: bool,
    last: (State, usize),
    changed: Duration,
}

impl Connection {
    /// Joins an accepted client with a stack socket that is connecting.
    pub fn new(stream: TcpStream, handle: SocketHandle, now: Duration) -> Self {
        // Fails only on a socket that is dead already, which the next read finds out.
        let _ = stream.set_nodelay(true);
        Self {
            stream,
            handle,
            readable: true,
            ending: false,
            writable: true,
            client_ended: false,
            guest_ended: false,
            client_failed: false,
            last: (State::SynSent, 0),
            changed: now,
        }
    }

    /// Notes an event at the client's socket. An error: it has failed, or was closed in both directions, while nobody
    /// read or wrote.
    pub fn event(&mut self, event: &Event) {
        self.readable |= event.is_readable();
        self.ending |= event.is_read_closed();
        self.writable |= event.is_writable();
        self.client_failed |= event.is_error();
    }

    /// Whether the client may have bytes that the stack has room for.
    pub fn can_pump_to_guest(&self, socket: &Socket<'_>) -> bool {
        self.readable && !self.client_ended && socket.can_send()
    }

    /// Moves bytes from the client to the stack. True if anything changed.
    pub fn pump_to_guest(&mut self, socket: &mut Socket<'_>) -> bool {
        let mut moved = false;
        while self.can_pump_to_guest(socket) {
            let (stream, readable, ending) = (&mut self.stream, &mut self.readable, self.ending);
            let result = socket.send(|buffer| match stream.read(buffer) {
                Ok(count) => {
                    // A short read has emptied the kernel's buffer. See: epoll(7), questions and answers.
                    *readable = count == buffer.len() || ending;
                    (count, Ok(count))
                }
                Err(error) => (0, Err(error)),
            });
            match result {
                Ok(Ok(0)) => {
                    self.client_ended = true;
                    socket.close();
                    moved = true;
                }
                Ok(Ok(_)) => moved = true,
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Ok(Err(_)) | Err(_) => {
                    self.client_failed = true;
                    return true;
                }
            }
        }
        moved
    }

    /// Moves bytes from the stack to the client. True if anything changed.
    pub fn pump_to_client(&mut self, socket: &mut Socket<'_>) -> bool {
        let mut moved = false;
        while self.writable && !self.client_failed && socket.can_recv() {
            let stream = &mut self.stream;
            let result = socket.recv(|buffer| match stream.write(buffer) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match result {
                Ok(Ok(_)) => moved = true,
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Ok(Err(_)) | Err(_) => {
                    self.client_failed = true;
                    return true;
                }
            }
        }
        // "Finished" comes only after the last byte was taken out.
        if !self.guest_ended && matches!(socket.recv(|_| (0, ())), Err(RecvError::Finished)) {
            self.guest_ended = true;
            moved = true;
            if self.stream.shutdown(Shutdown::Write).is_err() {
                self.client_failed = true;
            }
        }
        moved
    }

    /// How it stands.
    pub fn standing(&self, socket: &Socket<'_>) -> Standing {
        if self.client_failed {
            return Standing::ResetByClient;
        }
        match socket.state() {
            State::TimeWait if self.guest_ended => Standing::Finished,
            State::Closed if socket.can_recv() => Standing::Open,
            State::Closed if self.guest_ended && self.client_ended => Standing::Finished,
            State::Closed => Standing::ResetByGuest,
            _ => Standing::Open,
        }
    }

    /// Whether the guest owes an acknowledgement, and whether it has owed it for very long.
    pub fn owed(&mut self, socket: &Socket<'_>, now: Duration) -> (bool, bool) {
        let state = socket.state();
        let seen = (state, socket.send_queue());
        let owed = seen.1 > 0 || matches!(state, State::SynSent | State::FinWait1 | State::Closing | State::LastAck);
        if !owed || seen != self.last {
            self.last = seen;
            self.changed = now;
        }
        let stalled = owed && now >= self.changed + STALL;
        if stalled {
            self.changed = now;
        }
        (owed, stalled)
    }

    /// Closes the client's socket with a reset instead of an orderly end.
    pub fn reset_client(self) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        // If it fails, the client sees an end instead of a reset.
        let _ = setsockopt(&self.stream.as_fd(), sockopt::Linger, &linger);
    }
}
