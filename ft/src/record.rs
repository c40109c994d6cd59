//! A recording: what a backup was told, passed on to a recorder, word for word.
//!
//! A backup gets all that is needed to run the guest again: a state, and every entry from there on. It copies these messages
//! as it takes them ([`Copies`]) and sends them to a recorder on a connection of its own ([`RecordStream`]), sealed as those
//! of the pair are, by a key of its own that is made of the pair's ([`RecordKey`]). Nobody waits for that: copies that the recorder does not take in time are thrown
//! away, and the recording of this session ends there.

use crate::handshake::{End, Handshake, Meeting, Stranger};
use crate::key::RecordKey;
use crate::message::Message;
use crate::seal::{Opener, SealError, Sealer};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv4Addr;

/// What a copy counts beyond its payload: up to three places in the queue, which holds the old and the doubled one as it
/// grows, and what an allocator adds to a small payload.
const OVERHEAD: usize = 4 * size_of::<Copy>();
/// Places that an empty queue keeps.
const KEPT: usize = 1024;

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Its type on the wire.
    pub kind: u8,
    /// Its content.
    pub payload: Vec<u8>,
}

impl Copy {
    fn of(message: &Message<'_>) -> Self {
        let mut payload = Vec::new();
        message.encode(&mut payload);
        Self { kind: message.kind(), payload }
    }

    /// Whether a session begins with it. What follows belongs on another connection.
    #[must_use]
    pub fn begins(&self) -> bool {
        self.kind == HELLO
    }
}

/// The type of [`Message::Hello`].
pub const HELLO: u8 = 1;

/// Copies that wait for a recorder. Each session begins with the Hello of the machine that records, and ends with a Bye.
#[derive(Debug, Default)]
pub struct Copies {
    limit: usize,
    queue: VecDeque<Copy>,
    bytes: usize,
    /// Whether what is taken is copied.
    running: bool,
    lost: bool,
}

impl Copies {
    /// Copies of which at most `limit` bytes wait; none at all if that is 0.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Whether anything is to be recorded.
    pub(crate) fn is_wanted(&self) -> bool {
        self.limit > 0
    }

    /// A session begins with these words of this machine.
    pub(crate) fn begin(&mut self, hello: &Message<'_>) {
        self.running = self.is_wanted();
        self.push(Copy::of(hello));
    }

    /// The last word of this session.
    pub(crate) fn end(&mut self, bye: &Message<'_>) {
        self.push(Copy::of(bye));
        self.running = false;
    }

    /// A message was taken.
    pub(crate) fn add(&mut self, kind: u8, payload: &[u8]) {
        if self.running {
            self.push(Copy { kind, payload: payload.to_vec() });
        }
    }

    fn push(&mut self, copy: Copy) {
        if !self.running {
            return;
        }
        self.bytes += copy.payload.len() + OVERHEAD;
        self.queue.push_back(copy);
        if self.bytes > self.limit {
            // With its places: they count no more.
            self.queue = VecDeque::new();
            self.bytes = 0;
            (self.running, self.lost) = (false, true);
        }
    }

    /// The next copy, which stays.
    #[must_use]
    pub fn front(&self) -> Option<&Copy> {
        self.queue.front()
    }

    /// The next copy.
    pub fn pop(&mut self) -> Option<Copy> {
        let copy = self.queue.pop_front()?;
        self.bytes -= copy.payload.len() + OVERHEAD;
        if self.queue.is_empty() && self.queue.capacity() > KEPT {
            self.queue = VecDeque::new();
        }
        Some(copy)
    }

    /// The recorder of the session that the next copy belongs to is gone: what follows of that is of no use to anybody. The
    /// next session stays.
    pub fn give_up(&mut self) {
        let mut left = self.pop();
        while left.as_ref().is_some_and(|copy| copy.kind != Message::BYE)
            && !self.queue.front().is_some_and(Copy::begins)
        {
            left = self.pop();
        }
        // Its end did not come yet, and is not to come.
        self.running &= left.is_some();
    }

    /// Whether copies were thrown away since this was last asked, as too many waited: those of all sessions.
    pub fn take_lost(&mut self) -> bool {
        core::mem::take(&mut self.lost)
    }
}

/// Why a connection to or from a recorder is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unusable {
    /// The other end does not have the key.
    Stranger(Stranger),
    /// What came is damaged.
    Damaged(SealError),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stranger(stranger) => stranger.fmt(f),
            Self::Damaged(error) => error.fmt(f),
        }
    }
}

#[derive(Debug)]
enum Stage {
    Greeting(Handshake),
    Open(Sealer, Opener),
}

/// One end of a connection between a machine, which dials, and a recorder. It does no I/O.
#[derive(Debug)]
pub struct RecordStream {
    stage: Stage,
    out: Vec<u8>,
    received: Vec<u8>,
}

impl RecordStream {
    /// An end of a connection that belongs to `pair`, by one of its keys if it has any; `random` is drawn for it alone, and a secret.
    /// It can be mistaken for no stream between the twins.
    #[must_use]
    pub fn new(keys: &[RecordKey], pair: &str, end: End, random: [u8; 32]) -> Self {
        // A recorder may be anywhere, and what it sees of the machine's address another one.
        let meeting = Meeting { dialer: Ipv4Addr::UNSPECIFIED, listener: Ipv4Addr::UNSPECIFIED, random };
        // No pair's name has a blank in it.
        let handshake = Handshake::of_recorder(keys, &format!("record of {pair}"), end, &meeting);
        let mut this = Self { stage: Stage::Greeting(handshake), out: Vec::new(), received: Vec::new() };
        this.follow_handshake();
        this
    }

    fn follow_handshake(&mut self) {
        let Stage::Greeting(handshake) = &mut self.stage else { return };
        self.out.extend_from_slice(&handshake.take_queued());
        if let Some((sealer, opener)) = handshake.finish() {
            self.stage = Stage::Open(sealer, opener);
        }
    }

    /// Whether the other end has shown that it has the key, or there is none.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open(..))
    }

    /// Queues a copy; without effect before the connection [is open](Self::is_open).
    pub fn send(&mut self, copy: &Copy) {
        if let Stage::Open(sealer, _) = &mut self.stage {
            sealer.seal(&mut self.out, copy.kind, |out| out.extend_from_slice(&copy.payload));
        }
    }

    /// Takes bytes that came, and hands each message in them to `take`: its type and its content.
    ///
    /// # Errors
    /// When the other end is a stranger, or the bytes are damaged. Nothing more can be read then.
    pub fn receive(&mut self, mut bytes: &[u8], mut take: impl FnMut(u8, &[u8])) -> Result<(), Unusable> {
        if let Stage::Greeting(handshake) = &mut self.stage {
            let taken = handshake.receive(bytes).map_err(Unusable::Stranger)?;
            bytes = &bytes[taken..];
            self.follow_handshake();
        }
        self.received.extend_from_slice(bytes);
        let Stage::Open(_, opener) = &mut self.stage else { return Ok(()) };
        let mut used = 0;
        while let Some(message) = opener.open(&mut self.received[used..]).map_err(Unusable::Damaged)? {
            take(message.kind, message.payload);
            used += message.used;
        }
        self.received.drain(..used);
        Ok(())
    }

    /// Bytes to be sent; report what was taken with [`transmitted`](Self::transmitted).
    #[must_use]
    pub fn transmit(&self) -> &[u8] {
        &self.out
    }

    /// The first `count` bytes of [`transmit`](Self::transmit) are on their way.
    ///
    /// # Panics
    /// When those are more than there were.
    pub fn transmitted(&mut self, count: usize) {
        self.out.drain(..count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::key::{PairKey, Protection};
    use crate::message::{Bye, Hello};
    use alloc::vec;

    /// Small copies cost more than they carry: what the queue really takes stays below what it may.
    #[test]
    fn a_queue_takes_no_more_than_its_limit() {
        for limit in (100_000..1_000_000).step_by(50_000) {
            let mut copies = Copies { running: true, ..Copies::new(limit) };
            let mut most = 0;
            while !copies.take_lost() {
                let before = copies.queue.capacity();
                copies.add(8, b"x");
                let after = copies.queue.capacity();
                let places = if after > before { before + after } else { after };
                // No allocator hands out less than 16 bytes.
                most = most.max(places * size_of::<Copy>() + copies.queue.len() * 16);
            }
            assert!(most > limit / 4 && most <= limit, "{most} of {limit}");
            assert_eq!((copies.queue.capacity(), copies.bytes), (0, 0));
        }
    }

    /// Who is given up takes no other session along.
    #[test]
    fn one_session_is_given_up() {
        let (hello, bye) = (Message::Hello(Hello::OtherVersion(7)), Message::Bye(Bye::Leaving));
        let kinds = |copies: &Copies| copies.queue.iter().map(|copy| copy.kind).collect::<Vec<_>>();
        // It had ended already; or its end is to come; or only its end is there.
        for (ends, begun) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut copies = Copies::new(1 << 20);
            copies.begin(&hello);
            copies.add(8, b"x");
            if begun {
                copies.pop();
            }
            if ends {
                copies.end(&bye);
                copies.begin(&hello);
            }
            copies.give_up();
            assert_eq!(kinds(&copies), if ends { vec![HELLO] } else { vec![] });
            copies.add(8, b"y");
            assert_eq!(copies.queue.len(), if ends { 2 } else { 0 });
            assert!(!copies.take_lost());
        }
        // All of it was passed on.
        let mut copies = Copies::new(1 << 20);
        copies.begin(&hello);
        copies.pop();
        copies.give_up();
        copies.add(8, b"x");
        assert_eq!(kinds(&copies), []);
    }

    #[test]
    fn an_empty_queue_gives_back_what_it_grew_to() {
        let mut copies = Copies { running: true, ..Copies::new(1 << 20) };
        (0..2 * KEPT).for_each(|_| copies.add(8, b"x"));
        while copies.pop().is_some() {}
        assert!(copies.queue.capacity() <= KEPT && copies.bytes == 0);
    }

    /// Whoever has the recorder's key, and says all that a twin says, is no twin; one who has the pair's is.
    #[test]
    fn a_recorders_key_makes_no_twin() {
        let config = Config { protection: Protection::from(PairKey::new(&[1; 32])), ..Config::default() };
        let meeting =
            |random| Meeting { dialer: Ipv4Addr::LOCALHOST, listener: Ipv4Addr::LOCALHOST, random: [random; 32] };
        let keys = config.protection.records();
        for (mut dialer, twin) in [
            (Handshake::new(&config, "gemini", End::Dials, &meeting(1)), true),
            (Handshake::of_recorder(&keys, "gemini", End::Dials, &meeting(1)), false),
        ] {
            let mut listener = Handshake::new(&config, "gemini", End::Listens, &meeting(2));
            let mut result = Ok(0);
            for _ in 0..2 {
                result = listener.receive(&dialer.take_queued());
                dialer.receive(&listener.take_queued()).unwrap();
            }
            assert_eq!((result.is_ok(), dialer.is_done(), listener.is_done()), (twin, twin, twin));
        }
    }
}
