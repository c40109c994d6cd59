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
/// Pause before a try under another key: time for the last one's reset to leave.
const TURN: Span = Span::from_millis(1);

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

impl Trouble {
    /// Whether the arbiter itself said so, in words that nobody else can make: it is of no use to ask it under another key.
    fn is_the_arbiters(&self) -> bool {
        matches!(self, Self::Answer(Failure::Told(_) | Failure::Stranger { .. }))
    }
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
    manners: Vec<Manner>,
    /// For each of them whether the last try was answered in it, and when, as far as there was one.
    answered: Vec<Option<(bool, Time)>>,
    /// The one in which it is asked first, and the next one.
    first: usize,
    at: usize,
    random: Random,
    times: Times,
    socket: SocketHandle,
    phase: Phase,
    counts: Counts,
}

impl Caller {
    /// A caller with a socket on `stack`, which speaks to the arbiter at `server` in one of these manners: under another key
    /// where one brings no answer.
    pub fn new(server: SocketAddrV4, manners: &[Manner], times: Times, random: Random, stack: &mut Stack) -> Self {
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        Self {
            server,
            host: format!("{server}"),
            manners: manners.to_vec(),
            answered: vec![None; manners.len()],
            first: 0,
            at: 0,
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
            self.at = self.first;
        }
    }

    /// Speaks in these manners from now on. What is asked is asked again: an answer under a key that was forgotten is none.
    pub fn set_manners(&mut self, now: Time, manners: &[Manner], stack: &mut Stack) {
        let known = |manner: &Manner| self.manners.iter().position(|other| other == manner);
        let first = &self.manners[self.first];
        self.first = manners.iter().position(|manner| manner == first).unwrap_or(0);
        self.answered = manners.iter().map(|manner| known(manner).and_then(|at| self.answered[at])).collect();
        self.manners = manners.to_vec();
        let asks = !self.is_idle();
        self.stop(stack);
        if asks {
            self.begin(now);
        }
    }

    /// Whether the last try in this manner was answered, if there was one which is `recent`. Who answers in no manner is away,
    /// and may understand any.
    pub fn answered_in(&self, manner: &Manner, recent: impl Fn(Time) -> bool) -> Option<bool> {
        let known = |answered: Option<(bool, Time)>| answered.filter(|(_, at)| recent(*at)).map(|(yes, _)| yes);
        let answered = known(self.answered[self.manners.iter().position(|other| other == manner)?]);
        let is_there = || self.answered.iter().any(|answered| known(*answered) == Some(true));
        answered.filter(|yes| *yes || is_there())
    }

    /// The manner in which the arbiter has answered, the first one of several.
    pub fn understood(&self) -> Option<usize> {
        self.answered.iter().position(|answered| answered.is_some_and(|(yes, _)| yes))
    }

    /// Asks next in the manner behind the one that was answered last, or else in the first one: so that of each it is known
    /// whether it is still understood, and of the first one soon.
    pub fn take_turns(&mut self) {
        let answers = |at: usize| self.answered[at].filter(|(yes, _)| *yes).map(|(_, when)| when);
        let last = (0..self.manners.len()).filter(|at| answers(*at).is_some()).max_by_key(|at| answers(*at));
        self.first = last.map_or(0, |last| (last + 1) % self.manners.len());
    }

    /// Asks in this manner first.
    pub fn ask_first_in(&mut self, manner: usize) {
        self.first = manner;
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
                self.answered[self.at] = Some((true, now));
                self.phase = Phase::Idle;
                Ok(answer)
            }
            Err(trouble) => {
                self.answered[self.at] = Some((trouble.is_the_arbiters(), now));
                self.counts.failures += 1;
                self.counts.unauthentic += u64::from(matches!(trouble, Trouble::Answer(Failure::Unauthentic(_))));
                if !trouble.is_the_arbiters() {
                    self.at = (self.at + 1) % self.manners.len();
                    if self.at != self.first {
                        self.phase = Phase::Waiting(now.after(TURN));
                        stack.socket::<Socket<'_>>(self.socket).abort();
                        return (None, true);
                    }
                }
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
        let (response, unsent) = Try::begin(ask, &self.manners[self.at], &self.host, nonce);
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
