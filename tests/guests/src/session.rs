//! One client of the counter guest: bytes in, replies out.

use alloc::vec::Vec;

use crate::resp::{Arguments, Stop, integer, parse, push_bulk, push_integer, push_line, push_number};
use crate::store::Store;

/// Replies beyond this many bytes stop the reading of commands until some were sent.
pub const MAX_PENDING_REPLIES: usize = 16 * 1024;
/// Longest command name that an error repeats.
const MAX_NAME_IN_ERROR: usize = 128;
/// Most steps of `DEBUG BURN`.
const MAX_BURN: i64 = 10_000_000_000;

/// What a session shares with others.
#[derive(Debug, Default)]
pub struct Server {
    /// The keys.
    pub store: Store,
    /// Commands executed.
    pub commands: u64,
    /// Connections in use.
    pub clients: usize,
    /// A client asked for the end of the machine.
    pub shutdown: bool,
}

/// A client's connection.
#[derive(Debug, Default)]
pub struct Session {
    /// Input that is not a whole command yet.
    input: Vec<u8>,
    /// Length of `input` below which it is no use to parse it.
    need: usize,
    /// Replies to be sent.
    replies: Vec<u8>,
    /// How many bytes of them were sent.
    sent: usize,
    closing: bool,
}

impl Session {
    /// Whether input would be used now. When not, send replies first.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        !self.closing && self.pending().len() < MAX_PENDING_REPLIES
    }

    /// Replies to be sent.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        &self.replies[self.sent..]
    }

    /// Notes that the first `count` bytes of [`pending`](Self::pending) were sent.
    pub fn sent(&mut self, count: usize) {
        self.sent += count;
        if self.sent >= self.replies.len() {
            self.replies.clear();
            self.sent = 0;
        }
    }

    /// Whether the connection is to be closed once all replies are sent.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// Forgets everything, for the next client.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Whether there is input left over from when replies held it back: [`feed`](Self::feed) nothing to go on.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        self.wants_input() && !self.input.is_empty() && self.input.len() >= self.need
    }

    /// Takes input and executes the commands in it, as long as not too many replies wait. `unix_microseconds` is the time.
    pub fn feed(&mut self, mut bytes: &[u8], server: &mut Server, unix_microseconds: impl Fn() -> u64) {
        if self.closing {
            return;
        }
        if self.input.is_empty() {
            // The usual case: whole commands, used where they are.
            let used = self.execute_all(bytes, server, &unix_microseconds);
            bytes = &bytes[used..];
            if !self.closing {
                self.input.extend_from_slice(bytes);
            }
            return;
        }
        self.input.extend_from_slice(bytes);
        if self.input.len() >= self.need {
            let input = core::mem::take(&mut self.input);
            let used = self.execute_all(&input, server, &unix_microseconds);
            if !self.closing {
                self.input = input;
                self.input.drain(..used);
            }
        }
    }

    /// Executes the whole commands at the front of `input`; returns their length.
    fn execute_all(&mut self, input: &[u8], server: &mut Server, time: &impl Fn() -> u64) -> usize {
        let mut used = 0;
        self.need = 0;
        while self.wants_input() {
            match parse(&input[used..]) {
                Ok((arguments, len)) => {
                    used += len;
                    if !arguments.is_empty() {
                        server.commands += 1;
                        self.closing = execute(&arguments, server, time, &mut self.replies);
                    }
                }
                Err(Stop::Incomplete(need)) => {
                    self.need = need;
                    break;
                }
                Err(Stop::Invalid(text)) => {
                    self.replies.extend_from_slice(b"-ERR Protocol error: ");
                    self.replies.extend_from_slice(text.as_bytes());
                    self.replies.extend_from_slice(b"\r\n");
                    self.closing = true;
                }
            }
        }
        used
    }
}

/// The command's name in upper case; names that are longer than any command's stay unknown.
fn upper(name: &[u8]) -> heapless::Vec<u8, 16> {
    let mut upper = heapless::Vec::new();
    if upper.extend_from_slice(name).is_ok() {
        upper.make_ascii_uppercase();
    }
    upper
}

/// Executes one command and appends its reply; whether the connection is to be closed.
fn execute(arguments: &Arguments<'_>, server: &mut Server, time: &impl Fn() -> u64, out: &mut Vec<u8>) -> bool {
    let name = upper(arguments[0]);
    let store = &mut server.store;
    match (name.as_slice(), &arguments[1..]) {
        (b"PING", []) => push_line(out, b'+', "PONG"),
        (b"PING" | b"ECHO", [text]) => push_bulk(out, text),
        (b"INCR", [key]) => reply_sum(out, store, key, Some(1)),
        (b"DECR", [key]) => reply_sum(out, store, key, Some(-1)),
        (b"INCRBY", [key, amount]) => reply_sum(out, store, key, integer(amount)),
        (b"DECRBY", [key, amount]) => reply_sum(out, store, key, integer(amount).and_then(i64::checked_neg)),
        (b"GET", [key]) => match store.get(key) {
            Some(value) => push_bulk(out, value),
            None => push_line(out, b'$', "-1"),
        },
        (b"SET", [key, value]) => match store.set(key, value) {
            Ok(()) => push_line(out, b'+', "OK"),
            Err(error) => push_line(out, b'-', error.message()),
        },
        // Expiry and conditions are not offered.
        (b"SET", [_, _, _, ..]) => push_line(out, b'-', "ERR syntax error"),
        (b"DEL" | b"UNLINK", keys @ [_, ..]) => {
            push_number(out, b':', keys.iter().filter(|key| store.delete(key)).count() as i64);
        }
        (b"EXISTS", keys @ [_, ..]) => {
            push_number(out, b':', keys.iter().filter(|key| store.get(key).is_some()).count() as i64);
        }
        (b"DBSIZE", []) => push_number(out, b':', store.len() as i64),
        (b"FLUSHALL" | b"FLUSHDB", _) => {
            store.clear();
            push_line(out, b'+', "OK");
        }
        (b"TIME", []) => reply_time(out, time()),
        (b"SELECT", [b"0"]) => push_line(out, b'+', "OK"),
        (b"SELECT", [_]) => push_line(out, b'-', "ERR DB index is out of range"),
        (b"SHUTDOWN", _) => {
            push_line(out, b'+', "OK");
            server.shutdown = true;
        }
        // What clients ask when they connect: answered without content.
        (b"COMMAND", _) => push_line(out, b'*', "0"),
        (b"CONFIG", [_, name]) => reply_config(out, name),
        (b"CONFIG", _) => push_line(out, b'*', "0"),
        (b"CLIENT", [what, ..]) if what.eq_ignore_ascii_case(b"ID") => push_number(out, b':', 1),
        (b"CLIENT", [what, ..]) if what.eq_ignore_ascii_case(b"GETNAME") => push_line(out, b'$', "-1"),
        (b"CLIENT", _) => push_line(out, b'+', "OK"),
        (b"INFO", _) => reply_info(out, server),
        (b"HELLO", []) | (b"HELLO", [b"2", ..]) => reply_hello(out),
        (b"HELLO", _) => push_line(out, b'-', "NOPROTO unsupported protocol version"),
        (b"DEBUG", [what, steps]) if what.eq_ignore_ascii_case(b"BURN") => reply_burn(out, steps),
        (b"QUIT", _) => {
            push_line(out, b'+', "OK");
            return true;
        }
        (known, _) if is_known(known) => {
            out.extend_from_slice(b"-ERR wrong number of arguments for '");
            out.extend(known.iter().map(u8::to_ascii_lowercase));
            out.extend_from_slice(b"' command\r\n");
        }
        _ => reply_unknown(out, arguments[0]),
    }
    false
}

fn is_known(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 14] = [
        b"PING", b"ECHO", b"INCR", b"DECR", b"INCRBY", b"DECRBY", b"GET", b"SET", b"DEL", b"UNLINK", b"EXISTS",
        b"DBSIZE", b"TIME", b"SELECT",
    ];
    NAMES.contains(&name)
}

fn reply_sum(out: &mut Vec<u8>, store: &mut Store, key: &[u8], amount: Option<i64>) {
    use crate::store::StoreError::NotAnInteger;
    match amount.ok_or(NotAnInteger).and_then(|amount| store.add(key, amount)) {
        Ok(sum) => push_number(out, b':', sum),
        Err(error) => push_line(out, b'-', error.message()),
    }
}

fn reply_time(out: &mut Vec<u8>, unix_microseconds: u64) {
    push_line(out, b'*', "2");
    for part in [unix_microseconds / 1_000_000, unix_microseconds % 1_000_000] {
        let mut text = Vec::with_capacity(20);
        push_integer(&mut text, part as i64);
        push_bulk(out, &text);
    }
}

/// redis-benchmark asks for `save` and `appendonly` and warns when it gets no answer.
fn reply_config(out: &mut Vec<u8>, name: &[u8]) {
    let value: &[u8] = if name.eq_ignore_ascii_case(b"appendonly") { b"no" } else { b"" };
    push_line(out, b'*', "2");
    push_bulk(out, name);
    push_bulk(out, value);
}

fn reply_info(out: &mut Vec<u8>, server: &Server) {
    let mut text = Vec::from(&b"# Server\r\nserver_name:pollux-counter\r\n# Clients\r\nconnected_clients:"[..]);
    push_integer(&mut text, server.clients as i64);
    text.extend_from_slice(b"\r\n# Stats\r\ntotal_commands_processed:");
    push_integer(&mut text, server.commands as i64);
    text.extend_from_slice(b"\r\n# Memory\r\nused_memory:");
    push_integer(&mut text, server.store.bytes() as i64);
    text.extend_from_slice(b"\r\n# Keyspace\r\ndb0:keys=");
    push_integer(&mut text, server.store.len() as i64);
    text.extend_from_slice(b"\r\n");
    push_bulk(out, &text);
}

fn reply_hello(out: &mut Vec<u8>) {
    push_line(out, b'*', "6");
    for text in ["server", "pollux-counter", "version", "0.1.0", "proto"] {
        push_bulk(out, text.as_bytes());
    }
    push_number(out, b':', 2);
}

/// Computes for a number of steps.
fn reply_burn(out: &mut Vec<u8>, steps: &[u8]) {
    let Some(steps) = integer(steps).filter(|steps| (0..=MAX_BURN).contains(steps)) else {
        return push_line(out, b'-', "ERR value is not an integer or out of range");
    };
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..steps {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
    }
    push_number(out, b':', (state >> 1) as i64);
}

fn reply_unknown(out: &mut Vec<u8>, name: &[u8]) {
    out.extend_from_slice(b"-ERR unknown command '");
    // A line break would end the reply early.
    let shown = name.iter().take(MAX_NAME_IN_ERROR);
    out.extend(shown.map(|byte| if byte.is_ascii_graphic() { *byte } else { b'?' }));
    out.extend_from_slice(b"'\r\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIME: u64 = 1_700_000_000_123_456;

    /// Feeds the pieces one after the other; returns the replies and whether the session wants to close.
    fn run(pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut session, mut server) = (Session::default(), Server::default());
        for piece in pieces {
            session.feed(piece, &mut server, || TIME);
        }
        (session.pending().to_vec(), session.is_closing())
    }

    fn replies(input: &str) -> String {
        String::from_utf8(run(&[input.as_bytes()]).0).unwrap()
    }

    #[test]
    fn commands_and_replies() {
        for (input, expected) in [
            ("PING\r\n", "+PONG\r\n"),
            ("ping hi\r\n", "$2\r\nhi\r\n"),
            ("*2\r\n$4\r\nECHO\r\n$3\r\na\nb\r\n", "$3\r\na\nb\r\n"),
            ("INCR a\nINCR a\nGET a\n", ":1\r\n:2\r\n$1\r\n2\r\n"),
            ("INCRBY a 40\nDECR a\nDECRBY a -2\n", ":40\r\n:39\r\n:41\r\n"),
            ("SET a x\nINCR a\n", "+OK\r\n-ERR value is not an integer or out of range\r\n"),
            ("INCRBY a 1.5\n", "-ERR value is not an integer or out of range\r\n"),
            ("SET a 9223372036854775807\nINCR a\n", "+OK\r\n-ERR increment or decrement would overflow\r\n"),
            ("GET none\n", "$-1\r\n"),
            ("SET a 1\nSET b 2\nDBSIZE\nEXISTS a b c\nDEL a c\nDBSIZE\n", "+OK\r\n+OK\r\n:2\r\n:2\r\n:1\r\n:1\r\n"),
            ("SET a 1\nFLUSHALL\nDBSIZE\n", "+OK\r\n+OK\r\n:0\r\n"),
            ("TIME\n", "*2\r\n$10\r\n1700000000\r\n$6\r\n123456\r\n"),
            ("CONFIG GET save\n", "*2\r\n$4\r\nsave\r\n$0\r\n\r\n"),
            ("COMMAND DOCS\n", "*0\r\n"),
            ("GET\n", "-ERR wrong number of arguments for 'get' command\r\n"),
            ("NONSENSE 1\n", "-ERR unknown command 'NONSENSE'\r\n"),
            ("\r\n\r\nDEBUG BURN 0\n", ":5700357409661599242\r\n"),
            ("DEBUG BURN -1\n", "-ERR value is not an integer or out of range\r\n"),
        ] {
            assert_eq!(replies(input), expected, "{input:?}");
        }
    }

    #[test]
    fn quit_and_protocol_errors_close() {
        assert_eq!(run(&[b"QUIT\r\nPING\r\n", b"PING\r\n"]), (b"+OK\r\n".to_vec(), true));
        let error = b"-ERR Protocol error: expected '$'\r\n".to_vec();
        assert_eq!(run(&[b"*1\r\n+OK\r\n"]), (error, true));
    }

    #[test]
    fn unsent_replies_hold_commands_back() {
        let (mut session, mut server) = (Session::default(), Server::default());
        let mut input = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n".to_vec();
        push_bulk(&mut input, &[b'x'; MAX_PENDING_REPLIES]);
        input.extend(b"GET k\nGET k\nGET k\nPI");
        session.feed(&input, &mut server, || TIME);
        for _ in 0..3 {
            assert!(!session.wants_input() && !session.has_backlog());
            let len = session.pending().len();
            assert!(len < MAX_PENDING_REPLIES + 100);
            session.sent(len - 1);
            assert_eq!(session.pending(), b"\n");
            session.sent(1);
            if session.has_backlog() {
                session.feed(b"", &mut server, || TIME);
            }
        }
        assert!(session.wants_input() && !session.has_backlog() && session.pending().is_empty());
        session.feed(b"NG\n", &mut server, || TIME);
        assert_eq!(session.pending(), b"+PONG\r\n");
    }

    fn any_command() -> impl Strategy<Value = Vec<u8>> {
        let name =
            prop::sample::select(vec!["PING", "ECHO", "INCR", "GET", "SET", "DEL", "TIME", "NONSENSE", "INCRBY"]);
        let argument = prop::sample::select(vec!["a", "b", "7", "-1", "long value\r\nwith a line"]);
        (name, prop::collection::vec(argument, 0..3), any::<bool>()).prop_map(|(name, arguments, inline)| {
            let mut out = Vec::new();
            if inline && arguments.iter().all(|argument| argument.len() < 4) {
                out.extend(name.as_bytes());
                for argument in arguments {
                    out.push(b' ');
                    out.extend(argument.as_bytes());
                }
                out.extend(b"\r\n");
            } else {
                push_number(&mut out, b'*', arguments.len() as i64 + 1);
                push_bulk(&mut out, name.as_bytes());
                arguments.iter().for_each(|argument| push_bulk(&mut out, argument.as_bytes()));
            }
            out
        })
    }

    proptest! {
        #[test]
        fn split_input_gives_the_same_replies(
            commands in prop::collection::vec(any_command(), 0..12),
            noise in prop::collection::vec(any::<u8>(), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut input = commands.concat();
            input.extend(noise);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut start = 0;
            for cut in cuts {
                pieces.push(&input[start..cut]);
                start = cut;
            }
            pieces.push(&input[start..]);
            prop_assert_eq!(run(&pieces), run(&[&input]));
        }
    }
}
