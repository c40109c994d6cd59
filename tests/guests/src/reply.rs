//! The reply side of the Redis protocol, in the version that a connection has asked for.
//!
//! See: the "RESP protocol specification" of Redis, and RESP3's own.

use alloc::vec::Vec;

/// Version of the protocol in which a connection is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// What every connection starts with.
    #[default]
    Resp2,
    /// Asked for by `HELLO 3`: maps, one null, texts that say their format.
    Resp3,
}

impl Protocol {
    /// Its number.
    #[must_use]
    pub fn number(self) -> i64 {
        match self {
            Self::Resp2 => 2,
            Self::Resp3 => 3,
        }
    }
}

/// Replies that wait to be sent.
#[derive(Debug, Default)]
pub struct Replies {
    bytes: Vec<u8>,
    /// How many of them were sent.
    sent: usize,
    /// How the next replies are written.
    pub protocol: Protocol,
}

impl Replies {
    /// What is to be sent.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Notes that the first `count` bytes of [`pending`](Self::pending) were sent; keeps room for `keep` bytes at most
    /// once all were.
    pub fn sent(&mut self, count: usize, keep: usize) {
        self.sent += count;
        if self.sent >= self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(keep);
            self.sent = 0;
        }
    }

    /// Bytes of memory that they take.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    /// A simple string.
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', &[text.as_bytes()]);
    }

    /// An error. It is one line: line breaks become spaces, as in Redis.
    pub fn error(&mut self, parts: &[&[u8]]) {
        let start = self.bytes.len();
        self.line(b'-', parts);
        let end = self.bytes.len() - 2;
        for byte in &mut self.bytes[start..end] {
            if matches!(byte, b'\r' | b'\n') {
                *byte = b' ';
            }
        }
    }

    /// An integer.
    pub fn integer(&mut self, value: i64) {
        self.head(b':', value);
    }

    /// A bulk string.
    pub fn bulk(&mut self, text: &[u8]) {
        self.head(b'$', text.len() as i64);
        self.bytes.extend_from_slice(text);
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// A number as bulk string.
    pub fn bulk_integer(&mut self, value: i64) {
        let mut text = Vec::with_capacity(20);
        push_integer(&mut text, value);
        self.bulk(&text);
    }

    /// A text for people; only RESP3 can say so.
    pub fn text(&mut self, text: &[u8]) {
        const FORMAT: &[u8] = b"txt:";
        match self.protocol {
            Protocol::Resp2 => self.bulk(text),
            Protocol::Resp3 => {
                self.head(b'=', (FORMAT.len() + text.len()) as i64);
                for part in [FORMAT, text, b"\r\n"] {
                    self.bytes.extend_from_slice(part);
                }
            }
        }
    }

    /// Nothing, where a bulk string could be.
    pub fn null(&mut self) {
        match self.protocol {
            Protocol::Resp2 => self.line(b'$', &[b"-1"]),
            Protocol::Resp3 => self.line(b'_', &[]),
        }
    }

    /// Begins an array; that many replies belong to it.
    pub fn array(&mut self, len: usize) {
        self.head(b'*', len as i64);
    }

    /// Begins a map of that many pairs; in RESP2 it is an array.
    pub fn map(&mut self, pairs: usize) {
        match self.protocol {
            Protocol::Resp2 => self.array(2 * pairs),
            Protocol::Resp3 => self.head(b'%', pairs as i64),
        }
    }

    fn line(&mut self, kind: u8, parts: &[&[u8]]) {
        self.bytes.push(kind);
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.extend_from_slice(b"\r\n");
    }

    fn head(&mut self, kind: u8, value: i64) {
        self.bytes.push(kind);
        push_integer(&mut self.bytes, value);
        self.bytes.extend_from_slice(b"\r\n");
    }
}

/// Appends a number in decimal.
pub fn push_integer(out: &mut Vec<u8>, value: i64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(protocol: Protocol, write: impl FnOnce(&mut Replies)) -> String {
        let mut replies = Replies { protocol, ..Replies::default() };
        write(&mut replies);
        String::from_utf8(replies.bytes).unwrap()
    }

    #[test]
    fn each_version_has_its_own_nulls_maps_and_texts() {
        let all = |replies: &mut Replies| {
            replies.null();
            replies.map(2);
            replies.text(b"a\r\nb");
        };
        assert_eq!(written(Protocol::Resp2, all), "$-1\r\n*4\r\n$4\r\na\r\nb\r\n");
        assert_eq!(written(Protocol::Resp3, all), "_\r\n%2\r\n=8\r\ntxt:a\r\nb\r\n");
    }

    #[test]
    fn the_rest_is_the_same_in_both() {
        for protocol in [Protocol::Resp2, Protocol::Resp3] {
            let all = |replies: &mut Replies| {
                replies.simple("OK");
                replies.error(&[b"ERR two\r\nlines"]);
                replies.integer(i64::MIN);
                replies.array(1);
                replies.bulk(b"");
                replies.bulk_integer(-10);
            };
            let expected = "+OK\r\n-ERR two  lines\r\n:-9223372036854775808\r\n*1\r\n$0\r\n\r\n$3\r\n-10\r\n";
            assert_eq!(written(protocol, all), expected);
        }
    }

    #[test]
    fn memory_is_given_back() {
        let mut replies = Replies::default();
        replies.bulk(&[0; 100_000]);
        replies.sent(100_000, 100);
        assert!(replies.memory() >= 100_000 && replies.pending().len() == 11);
        replies.sent(11, 100);
        assert!(replies.memory() <= 100 && replies.pending().is_empty());
    }
}
