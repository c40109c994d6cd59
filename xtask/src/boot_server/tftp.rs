//! TFTP for reading, with the options that loaders ask for: block size, file size, time-out, window.
//!
//! See: RFC 1350; RFC 2347, 2348, 2349 (options); RFC 7440 (window).

use std::io;
use std::time::Duration;

use super::root::Source;

/// Largest block: what a frame of 1514 bytes holds behind the headers of IPv4, UDP and TFTP. Nothing is cut in pieces.
pub const MAX_BLOCK: u16 = 1468;
/// Block of a request without options.
const USUAL_BLOCK: u16 = 512;
const MIN_BLOCK: u16 = 8;
/// Most blocks that are under way.
const MAX_WINDOW: u16 = 16;
/// How long nothing may come before what is under way is sent again.
const USUAL_TIMEOUT: Duration = Duration::from_millis(500);
/// The longest, in seconds, that a client may ask for instead: one that is gone holds its place for so many times this.
const MAX_TIMEOUT: u8 = 5;
/// How often it is, before the client is given up.
const TRIES: u32 = 8;
/// Names and values in a request have together no more bytes than this.
const MAX_REQUEST: usize = 1024;

const READ: u16 = 1;
const WRITE: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OPTIONS: u16 = 6;

/// An error, as it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum ErrorCode {
    /// Whatever has no number of its own.
    Other = 0,
    /// There is no such file.
    NotFound = 1,
    /// It may not be written, or read.
    Access = 2,
    /// Nobody knows what this packet means.
    Illegal = 4,
}

/// An error as a packet.
pub fn error(code: ErrorCode, text: &str) -> Vec<u8> {
    [&ERROR.to_be_bytes()[..], &(code as u16).to_be_bytes(), text.as_bytes(), &[0]].concat()
}

/// Refuses a file that could not be opened for this reason; the packet, and the same for people.
pub fn refusal(reason: &io::Error) -> (Vec<u8>, &'static str) {
    let (code, text) = match reason.kind() {
        io::ErrorKind::PermissionDenied => (ErrorCode::Access, "that is not for you"),
        _ => (ErrorCode::NotFound, "no such file"),
    };
    (error(code, text), text)
}

/// A request to read a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its name.
    pub file: String,
    block: Option<u16>,
    window: Option<u16>,
    timeout: Option<u8>,
    size: bool,
}

impl Request {
    /// Reads the first packet of a client. What is no request at all gets no answer: two servers could answer each other
    /// for ever.
    ///
    /// # Errors
    /// The packet that refuses it, if it gets one.
    pub fn parse(packet: &[u8]) -> Result<Self, Option<Vec<u8>>> {
        let illegal = || Some(error(ErrorCode::Illegal, "no request that a file can be read by"));
        match packet.split_first_chunk().map(|(code, rest)| (u16::from_be_bytes(*code), rest)) {
            Some((READ, rest)) if rest.len() <= MAX_REQUEST => Self::read(rest).ok_or_else(illegal),
            Some((READ, _)) => Err(illegal()),
            Some((WRITE, _)) => Err(Some(error(ErrorCode::Access, "nothing can be written here"))),
            _ => Err(None),
        }
    }

    fn read(rest: &[u8]) -> Option<Self> {
        // Every text ends with a null byte.
        let texts = rest.strip_suffix(&[0])?.split(|byte| *byte == 0).map(|text| str::from_utf8(text).ok());
        let texts = texts.collect::<Option<Vec<_>>>()?;
        let [file, mode, options @ ..] = &texts[..] else { return None };
        if file.is_empty() || !["octet", "netascii"].iter().any(|known| mode.eq_ignore_ascii_case(known)) {
            return None;
        }
        let mut request = Self { file: (*file).to_owned(), block: None, window: None, timeout: None, size: false };
        for option in options.chunks_exact(2) {
            let (name, value) = (option[0].to_ascii_lowercase(), option[1]);
            // An option with a value out of its range is left out of the answer, as one that is not known.
            match name.as_str() {
                "blksize" => request.block = value.parse().ok().filter(|size| *size >= MIN_BLOCK),
                "windowsize" => request.window = value.parse().ok().filter(|blocks| *blocks >= 1),
                "timeout" => {
                    request.timeout = value.parse().ok().filter(|seconds| (1..=MAX_TIMEOUT).contains(seconds));
                }
                "tsize" => request.size = true,
                _ => {}
            }
        }
        request.block = request.block.map(|size| size.min(MAX_BLOCK));
        request.window = request.window.map(|blocks| blocks.min(MAX_WINDOW));
        Some(request)
    }

    /// The options that are granted for a file of `len` bytes; none without any.
    fn granted(&self, len: u64) -> Option<Vec<u8>> {
        let options = [
            ("blksize", self.block.map(u64::from)),
            ("windowsize", self.window.map(u64::from)),
            ("timeout", self.timeout.map(u64::from)),
            ("tsize", self.size.then_some(len)),
        ];
        let texts: String =
            options.iter().filter_map(|(name, value)| Some(format!("{name}\0{}\0", (*value)?))).collect();
        (!texts.is_empty()).then(|| [&OPTIONS.to_be_bytes()[..], texts.as_bytes()].concat())
    }
}

/// A file on its way to a client. Times are since any fixed moment.
#[derive(Debug)]
pub struct Transfer<S> {
    source: S,
    block: u16,
    window: u16,
    timeout: Duration,
    /// The options' packet, until it is acknowledged.
    greeting: Option<Vec<u8>>,
    /// Blocks that have arrived; they are counted from 1.
    acked: u64,
    /// The last block that was sent.
    sent: u64,
    again_at: Duration,
    /// When the client last took something, or began.
    heard: Duration,
    tries: u32,
    over: bool,
}

impl<S: Source> Transfer<S> {
    /// Begins to answer `request`; what is sent first.
    pub fn start(request: &Request, source: S, now: Duration) -> (Self, Vec<Vec<u8>>) {
        let greeting = request.granted(source.len());
        let mut transfer = Self {
            source,
            block: request.block.unwrap_or(USUAL_BLOCK),
            window: request.window.unwrap_or(1),
            timeout: request.timeout.map_or(USUAL_TIMEOUT, |seconds| Duration::from_secs(seconds.into())),
            greeting,
            acked: 0,
            sent: 0,
            again_at: Duration::ZERO,
            heard: now,
            tries: 0,
            over: false,
        };
        let packets = transfer.send(now);
        (transfer, packets)
    }

    /// Whether nothing will be sent any more.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Bytes that have arrived.
    pub fn arrived(&self) -> u64 {
        (self.acked * u64::from(self.block)).min(self.source.len())
    }

    /// When [`poll`](Self::poll) has something to do.
    pub fn deadline(&self) -> Duration {
        self.again_at
    }

    /// When the client last took something, or began.
    pub fn heard(&self) -> Duration {
        self.heard
    }

    /// The last block, which is shorter than the others, and perhaps empty.
    fn last(&self) -> u64 {
        self.source.len() / u64::from(self.block) + 1
    }

    /// Takes a packet of the client's; what is sent then.
    pub fn receive(&mut self, packet: &[u8], now: Duration) -> Vec<Vec<u8>> {
        let Some((code, rest)) = packet.split_first_chunk().map(|(code, rest)| (u16::from_be_bytes(*code), rest))
        else {
            return Vec::new();
        };
        match (code, rest.split_first_chunk()) {
            (ERROR, _) => {
                self.over = true;
                Vec::new()
            }
            (ACK, Some((number, _))) if !self.over => self.acknowledge(u16::from_be_bytes(*number), now),
            _ => Vec::new(),
        }
    }

    fn acknowledge(&mut self, number: u16, now: Duration) -> Vec<Vec<u8>> {
        if self.greeting.is_some() {
            if number != 0 {
                return Vec::new();
            }
            self.greeting = None;
            (self.tries, self.heard) = (0, now);
            return self.send(now);
        }
        // Numbers wrap. What is no number of a block under way is old: answering it would double all that follows.
        let ahead = u64::from(number.wrapping_sub(self.acked as u16));
        if ahead == 0 || self.acked + ahead > self.sent {
            return Vec::new();
        }
        self.acked += ahead;
        (self.tries, self.heard) = (0, now);
        if self.acked == self.last() {
            self.over = true;
            return Vec::new();
        }
        self.send(now)
    }

    /// Sends again what has not arrived, if it is time to.
    pub fn poll(&mut self, now: Duration) -> Vec<Vec<u8>> {
        if self.over || now < self.again_at {
            return Vec::new();
        }
        self.tries += 1;
        if self.tries >= TRIES {
            self.over = true;
            return Vec::new();
        }
        self.send(now)
    }

    /// The greeting, or the blocks of the window.
    fn send(&mut self, now: Duration) -> Vec<Vec<u8>> {
        self.again_at = now + self.timeout;
        if let Some(greeting) = &self.greeting {
            return vec![greeting.clone()];
        }
        let until = (self.acked + u64::from(self.window)).min(self.last());
        let blocks = (self.acked + 1..=until).map(|number| self.data(number)).collect::<Result<Vec<_>, _>>();
        self.sent = until;
        blocks.unwrap_or_else(|_| {
            self.over = true;
            vec![error(ErrorCode::Other, "the file cannot be read any more")]
        })
    }

    fn data(&self, number: u64) -> std::io::Result<Vec<u8>> {
        const HEAD: usize = 4;
        let offset = (number - 1) * u64::from(self.block);
        let len = (self.source.len() - offset).min(self.block.into()) as usize;
        let mut packet = [DATA.to_be_bytes(), (number as u16).to_be_bytes()].concat();
        packet.resize(HEAD + len, 0);
        self.source.read(offset, &mut packet[HEAD..])?;
        Ok(packet)
    }
}

#[cfg(test)]
mod tests;
