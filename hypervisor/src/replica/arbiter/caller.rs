//! Asks something of the arbiter over one stack: tries again and again, each time on a connection of its own.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::net::SocketAddrV4;

use pollux_ft::arbiter::sealed::Nonce;
use pollux_ft::arbiter::{Ask, Failure, Manner, Try};
use pollux_ft::{Span, Time};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{IpAddress, IpEndpoint};

use crate::random::Random;
use crate::replica::stack::Stack;

/// Bytes that TCP buffers in each direction; question and answer have less than a thousand.
const BUFFER: usize = 4 << 10;

/// Why a try came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// There was no answer in time.
    Timeout,
    /// The connection was refused or reset.
    Refused,
    /// What came was no answer.
    Answer(Failure),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("no answer in time"),
            Self::Refused => f.write_str("the connection was refused or reset"),
            Self::Answer(failure) => failure.fmt(f),
        }
    }
}

/// Times of all tries.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// The longest that one may take.
    pub timeout: Span,
    /// Pause between two.
    pub retry: Span,
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections begun.
    pub tries: u64,
    /// Those without an answer.
    pub failures: u64,
    /// Those of them that were answered by somebody else.
    pub unauthentic: u64,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Idle,
    /// The next try begins at this time.
    Waiting(Time),
    Trying(Exchange),
}

/// A try under way.
#[derive(Debug)]
struct Exchange {
    until: Time,
    unsent: Vec<u8>,
    response: Try,
}

/// Asks one thing of the arbiter over one stack, with a socket of its own.
#[derive(Debug)]
pub struct Caller {
    server: SocketAddrV4,
    host: String,
    manner: Manner,
    random: Random,
    times: Times,
    socket: SocketHandle,
    phase: Phase,
    counts: Counts,
}

impl Caller {
    /// A caller with a socket on `stack`, which speaks to the arbiter at `server` in this manner.
    pub fn new(server: SocketAddrV4, manner: Manner, times: Times, random: Random, stack: &mut Stack) -> Self {
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        Self {
            server,
            host: format!("{server}"),
            manner,
            random,
            times,
            socket: stack.add(socket),
            phase: Phase::Idle,
            counts: Counts::default(),
        }
    }

    /// Whom it asks.
    pub fn server(&self) -> SocketAddrV4 {
        self.server
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Begins to ask.
    pub fn begin(&mut self, now: Time) {
        if self.is_idle() {
            self.phase = Phase::Waiting(now);
        }
    }

    /// Whether it asks nothing.
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Whether a try is under way.
    pub fn is_trying(&self) -> bool {
        matches!(self.phase, Phase::Trying(_))
    }

    /// Asks no more. Whether the socket has something to send because of that.
    pub fn stop(&mut self, stack: &mut Stack) -> bool {
        let trying = self.is_trying();
        self.phase = Phase::Idle;
        if trying {
            stack.socket::<Socket<'_>>(self.socket).abort();
        }
        trying
    }

    /// When [`poll`](Self::poll) has something to do even if no frame comes.
    pub fn poll_at(&self) -> Option<Time> {
        match &self.phase {
            Phase::Idle => None,
            Phase::Waiting(at) => Some(*at),
            Phase::Trying(exchange) => Some(exchange.until),
        }
    }

    /// Does what can be done. Returns the answer, which ends it, or why a try came to nothing, if either is known now;
    /// and whether the socket wants to send.
    pub fn poll<A: Ask>(
        &mut self,
        now: Time,
        ask: &A,
        stack: &mut Stack,
    ) -> (Option<Result<A::Answer, Trouble>>, bool) {
        let step = match &mut self.phase {
            Phase::Idle => return (None, false),
            Phase::Waiting(at) if *at > now => return (None, false),
            Phase::Waiting(_) => self.connect(now, ask, stack),
            Phase::Trying(exchange) => exchange.advance(now, ask, stack.socket(self.socket)),
        };
        let outcome = match step {
            Ok(Step::Nothing) => return (None, false),
            Ok(Step::Moved) => return (None, true),
            Ok(Step::Answer(answer)) => {
                self.phase = Phase::Idle;
                Ok(answer)
            }
            Err(trouble) => {
                self.counts.failures += 1;
                self.counts.unauthentic += u64::from(matches!(trouble, Trouble::Answer(Failure::Unauthentic(_))));
                self.phase = Phase::Waiting(now.after(self.times.retry));
                Err(trouble)
            }
        };
        stack.socket::<Socket<'_>>(self.socket).abort();
        (Some(outcome), true)
    }

    fn connect<A: Ask>(&mut self, now: Time, ask: &A, stack: &mut Stack) -> Result<Step<A::Answer>, Trouble> {
        self.counts.tries += 1;
        let server = IpEndpoint::new(IpAddress::Ipv4(*self.server.ip()), self.server.port());
        stack.connect(self.socket, server).map_err(|_| Trouble::Refused)?;
        let nonce = self.nonce();
        let (response, unsent) = Try::begin(ask, &self.manner, &self.host, nonce);
        self.phase = Phase::Trying(Exchange { until: now.after(self.times.timeout), unsent, response });
        Ok(Step::Moved)
    }

    /// Another one for each try.
    fn nonce(&mut self) -> Nonce {
        *self.random.draw().first_chunk().expect("it is shorter")
    }
}

/// How far a try has come.
enum Step<T> {
    Nothing,
    Moved,
    Answer(T),
}

impl Exchange {
    fn advance<A: Ask>(
        &mut self,
        now: Time,
        ask: &A,
        socket: &mut Socket<'static>,
    ) -> Result<Step<A::Answer>, Trouble> {
        let mut moved = false;
        if socket.can_send() && !self.unsent.is_empty() {
            let sent = socket.send_slice(&self.unsent).map_err(|_| Trouble::Refused)?;
            self.unsent.drain(..sent);
            moved = true;
        }
        while socket.can_recv() {
            moved = true;
            let received = socket.recv(|bytes| (bytes.len(), self.response.receive(ask, bytes)));
            if let Some(answer) = received.map_err(|_| Trouble::Refused)?.map_err(Trouble::Answer)? {
                return Ok(Step::Answer(answer));
            }
        }
        match socket.state() {
            // Everything that came before the end was read above.
            State::CloseWait => self.response.closed(ask).map(Step::Answer).map_err(Trouble::Answer),
            State::Closed => Err(Trouble::Refused),
            _ if now >= self.until => Err(Trouble::Timeout),
            _ if moved => Ok(Step::Moved),
            _ => Ok(Step::Nothing),
        }
    }
}
