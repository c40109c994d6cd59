//! A session's bytes to and from its connection.

use smoltcp::socket::tcp;

use crate::command::Server;
use crate::session::Session;

/// A connection, as far as a session is concerned.
pub trait ByteStream {
    /// Hands bytes that were received to `take`, not necessarily all; whether there were any.
    fn receive(&mut self, take: impl FnOnce(&[u8])) -> bool;

    /// Takes of `bytes` what there is room for; how many.
    fn send(&mut self, bytes: &[u8]) -> usize;
}

impl ByteStream for tcp::Socket<'_> {
    /// A buffer that wraps around is handed out in two parts.
    fn receive(&mut self, take: impl FnOnce(&[u8])) -> bool {
        let taken = self.recv(|bytes| {
            take(bytes);
            (bytes.len(), !bytes.is_empty())
        });
        taken.unwrap_or(false)
    }

    fn send(&mut self, bytes: &[u8]) -> usize {
        self.send_slice(bytes).unwrap_or(0)
    }
}

/// Feeds `session` all that `stream` has, and sends its replies, as far as both sides have room. The guest may sleep
/// afterwards: nothing is left that could be done without a new frame. `time` is the Unix time in microseconds.
pub fn exchange(stream: &mut impl ByteStream, session: &mut Session, server: &mut Server, time: impl Fn() -> u64) {
    loop {
        let fed = if session.has_backlog() {
            session.feed(&[], server, &time);
            true
        } else {
            session.wants_input() && stream.receive(|bytes| session.feed(bytes, server, &time))
        };
        let sent = if session.pending().is_empty() { 0 } else { stream.send(session.pending()) };
        session.sent(sent, server);
        if !fed && sent == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Gives what it has in parts, and takes a few bytes at a time until it is full.
    struct Parts {
        input: VecDeque<Vec<u8>>,
        output: Vec<u8>,
        room: usize,
    }

    impl ByteStream for Parts {
        fn receive(&mut self, take: impl FnOnce(&[u8])) -> bool {
            self.input.pop_front().map(|part| take(&part)).is_some()
        }

        fn send(&mut self, bytes: &[u8]) -> usize {
            let count = bytes.len().min(3).min(self.room - self.output.len());
            self.output.extend_from_slice(&bytes[..count]);
            count
        }
    }

    fn run(parts: &[&str], room: usize) -> Parts {
        let input = parts.iter().map(|part| part.as_bytes().to_vec()).collect();
        let mut stream = Parts { input, output: Vec::new(), room };
        exchange(&mut stream, &mut Session::default(), &mut Server::new(64 << 20), || 0);
        stream
    }

    #[test]
    fn a_request_in_two_parts_is_answered_at_once() {
        let stream = run(&["IN", "CR a\r\nPI", "NG\r\nINCR", " a\r\n"], 100);
        assert_eq!(stream.output, b":1\r\n+PONG\r\n:2\r\n");
        assert!(stream.input.is_empty());
    }

    #[test]
    fn a_full_connection_ends_it() {
        let stream = run(&["PING\r\nPING\r\n"], 10);
        assert_eq!(stream.output, b"+PONG\r\n+PO");
    }
}
