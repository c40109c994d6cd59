//! Sessions as clients see them.

use proptest::prelude::*;

use super::*;
use crate::reply::Replies;
use crate::resp::MAX_ARGUMENT;

const HEAP: usize = 64 << 20;
const TIME: u64 = 1_700_000_000_123_456;

/// Feeds the pieces one after the other; returns the replies and whether the session wants to close.
fn run(pieces: &[&[u8]]) -> (Vec<u8>, bool) {
    let (mut session, mut server) = (Session::default(), Server::new(HEAP));
    for piece in pieces {
        session.feed(piece, &mut server, || TIME);
    }
    (session.pending().to_vec(), session.is_closing())
}

/// A command as clients send it.
fn encoded(words: &[&[u8]]) -> Vec<u8> {
    let mut out = Replies::default();
    out.array(words.len());
    words.iter().for_each(|word| out.bulk(word));
    out.pending().to_vec()
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
        ("NONSENSE 1\n", "-ERR unknown command 'NONSENSE', with args beginning with: '1' \r\n"),
        ("\r\n\r\nDEBUG BURN 0\n", ":5700357409661599242\r\n"),
        ("DEBUG BURN -1\n", "-ERR value is not an integer or out of range\r\n"),
    ] {
        assert_eq!(replies(input), expected, "{input:?}");
    }
}

/// Whether `text` is as `pattern`, in which `{n}` stands for some digits.
fn is_like(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split("{n}");
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    for part in parts {
        let behind = rest.trim_start_matches(|digit: char| digit.is_ascii_digit());
        match behind.strip_prefix(part) {
            Some(next) if behind.len() < rest.len() => rest = next,
            _ => return false,
        }
    }
    rest.is_empty()
}

/// What stock clients send, recorded, and what they are answered.
#[test]
fn stock_clients_are_understood() {
    for recorded in [
        include_str!("../../../vectors/redis-py.json"),
        include_str!("../../../vectors/node-redis.json"),
        include_str!("../../../vectors/ioredis.json"),
        include_str!("../../../vectors/redis-cli.json"),
        include_str!("../../../vectors/redis-cli-3.json"),
    ] {
        let recorded: serde_json::Value = serde_json::from_str(recorded).unwrap();
        let (mut session, mut server) = (Session::default(), Server::new(HEAP));
        for step in recorded["talk"].as_array().unwrap() {
            let [sent, expected] = [0, 1].map(|index| step[index].as_str().unwrap());
            session.feed(sent.as_bytes(), &mut server, || TIME);
            let reply = String::from_utf8(session.pending().to_vec()).unwrap();
            assert!(is_like(&reply, expected), "{} {sent:?}: {reply:?}", recorded["client"]);
            session.sent(reply.len(), &mut server);
        }
    }
}

#[test]
fn each_version_of_the_protocol_has_its_nulls() {
    assert_eq!(replies("GET no\nMGET no\nSET no 1 XX\n"), "$-1\r\n*1\r\n$-1\r\n$-1\r\n");
    let hello = replies("HELLO 3\n");
    assert!(hello.starts_with("%7\r\n$6\r\nserver\r\n") && hello.contains("proto\r\n:3\r\n"), "{hello}");
    let after = |input: &str| replies(&format!("HELLO 3\n{input}"))[hello.len()..].to_owned();
    assert_eq!(after("GET no\nMGET no\nSET no 1 XX\n"), "_\r\n*1\r\n_\r\n_\r\n");
    assert_eq!(after("CONFIG GET appendonly\n"), "%1\r\n$10\r\nappendonly\r\n$2\r\nno\r\n");
    assert_eq!(after("RESET\nGET no\n"), "+RESET\r\n$-1\r\n");
    // What is refused changes nothing.
    let refused = "-ERR Syntax error in HELLO option 'FOO'\r\n$-1\r\n";
    assert_eq!(replies("HELLO 3 SETNAME q FOO\nCLIENT GETNAME\n"), refused);
}

/// Each was given to Redis 7.0.15, which said the same.
#[test]
fn errors_are_those_of_redis() {
    for (input, expected) in [
        ("HELLO 4", "NOPROTO unsupported protocol version"),
        ("HELLO x", "ERR Protocol version is not an integer or out of range"),
        ("HELLO 3 AUTH other x", "WRONGPASS invalid username-password pair or user is disabled."),
        ("CLIENT", "ERR wrong number of arguments for 'client' command"),
        ("CLIENT NOPE", "ERR unknown subcommand 'NOPE'. Try CLIENT HELP."),
        ("CLIENT SETNAME", "ERR wrong number of arguments for 'client|setname' command"),
        ("CLIENT SETNAME \"a b\"", "ERR Client names cannot contain spaces, newlines or special characters."),
        ("SELECT x", "ERR value is not an integer or out of range"),
        ("SELECT 99", "ERR DB index is out of range"),
        ("DECRBY a -9223372036854775808", "ERR decrement would overflow"),
        ("MSET a b c", "ERR wrong number of arguments for 'mset' command"),
        ("SET a b FOO", "ERR syntax error"),
        ("FLUSHALL foo", "ERR syntax error"),
        ("PING a b", "ERR wrong number of arguments for 'ping' command"),
        ("EXEC", "ERR EXEC without MULTI"),
        ("DISCARD", "ERR DISCARD without MULTI"),
        ("FOO \"a\\nb\" c", "ERR unknown command 'FOO', with args beginning with: 'a b' 'c' "),
        ("ECHO \"a", "ERR Protocol error: unbalanced quotes in request"),
    ] {
        assert_eq!(replies(&format!("{input}\r\n")), format!("-{expected}\r\n"), "{input}");
    }
}

#[test]
fn transactions() {
    let good = "MULTI\nINCR a\nGET a\nMGET a b\nEXEC\nPING\n";
    let queued = "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n";
    let expected = format!("{queued}*3\r\n:1\r\n$1\r\n1\r\n*2\r\n$1\r\n1\r\n$-1\r\n+PONG\r\n");
    assert_eq!(replies(good), expected);
    let bad = replies("MULTI\nNOPE\nINCR a\nEXEC\nGET a\n");
    assert!(bad.ends_with("-EXECABORT Transaction discarded because of previous errors.\r\n$-1\r\n"), "{bad}");
    assert_eq!(replies("MULTI\nINCR a\nDISCARD\nGET a\n"), "+OK\r\n+QUEUED\r\n+OK\r\n$-1\r\n");
    let nested = "+OK\r\n-ERR MULTI calls can not be nested\r\n+QUEUED\r\n*1\r\n+PONG\r\n";
    assert_eq!(replies("MULTI\nMULTI\nPING\nEXEC\n"), nested);
    assert_eq!(replies("MULTI\nINCR a\nRESET\nEXEC\n").matches("without MULTI").count(), 1);
}

/// A web page that leads a browser here must not have commands carried out.
#[test]
fn http_ends_the_connection() {
    let request = b"GET / HTTP/1.1\r\nHost: localhost:7777\r\n\r\nINCR x\r\n";
    assert_eq!(run(&[request]), (b"-ERR wrong number of arguments for 'get' command\r\n".to_vec(), true));
    assert_eq!(run(&[b"POST / HTTP/1.1\r\n\r\nINCR x\r\n"]), (Vec::new(), true));
}

#[test]
fn many_clients_do_not_take_all_memory() {
    let mut server = Server::new(HEAP);
    let mut part = encoded(&[b"SET", b"k", &[b'x'; MAX_ARGUMENT]]);
    part.truncate(part.len() - 10);
    let mut sessions: Vec<_> = (0..128).map(|_| Session::default()).collect();
    for piece in part.chunks(8 * 1024) {
        for session in &mut sessions {
            session.feed(piece, &mut server, || TIME);
            assert!(server.buffered <= server.buffer_limit);
        }
    }
    let refused = sessions.iter().filter(|session| session.is_closing()).count();
    assert!((64..128).contains(&refused), "{refused} were sent away");
    // Whoever asks for little is served all the same.
    let mut other = Session::default();
    other.feed(b"INCR x\r\n", &mut server, || TIME);
    assert_eq!(other.pending(), b":1\r\n");
    sessions.iter_mut().for_each(|session| session.reset(&mut server));
    assert_eq!(server.buffered, 0);
}

#[test]
fn a_large_value_is_set_read_and_forgotten() {
    let (mut session, mut server) = (Session::default(), Server::new(HEAP));
    let value = vec![b'x'; MAX_ARGUMENT];
    for piece in encoded(&[b"SET", b"k", &value]).chunks(1460) {
        session.feed(piece, &mut server, || TIME);
    }
    assert_eq!(session.pending(), b"+OK\r\n");
    session.feed(b"GET k\n", &mut server, || TIME);
    assert_eq!(session.pending().len(), 5 + 9 + MAX_ARGUMENT + 2);
    assert!(server.buffered >= MAX_ARGUMENT - 2 * OWN_BUFFER);
    session.sent(session.pending().len(), &mut server);
    assert_eq!(server.buffered, 0);
    // Sixty-three of them are no reply that there is memory for.
    let many = [&b"MGET"[..]].into_iter().chain([&b"k"[..]; 63]).collect::<Vec<_>>();
    session.feed(&encoded(&many), &mut server, || TIME);
    assert_eq!(session.pending(), b"-OOM command not allowed when used memory > 'maxmemory'.\r\n");
}

#[test]
fn quit_and_protocol_errors_close() {
    assert_eq!(run(&[b"QUIT\r\nPING\r\n", b"PING\r\n"]), (b"+OK\r\n".to_vec(), true));
    let error = b"-ERR Protocol error: expected '$', got '+'\r\n".to_vec();
    assert_eq!(run(&[b"*1\r\n+OK\r\n"]), (error, true));
}

#[test]
fn unsent_replies_hold_commands_back() {
    let (mut session, mut server) = (Session::default(), Server::new(HEAP));
    let mut input = encoded(&[b"SET", b"k", &[b'x'; MAX_PENDING_REPLIES]]);
    input.extend(b"GET k\nGET k\nGET k\nPI");
    session.feed(&input, &mut server, || TIME);
    for _ in 0..3 {
        assert!(!session.wants_input() && !session.has_backlog());
        let len = session.pending().len();
        assert!(len < MAX_PENDING_REPLIES + 100);
        session.sent(len - 1, &mut server);
        assert_eq!(session.pending(), b"\n");
        session.sent(1, &mut server);
        if session.has_backlog() {
            session.feed(b"", &mut server, || TIME);
        }
    }
    assert!(session.wants_input() && !session.has_backlog() && session.pending().is_empty());
    session.feed(b"NG\n", &mut server, || TIME);
    assert_eq!(session.pending(), b"+PONG\r\n");
}

fn any_command() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec!["PING", "ECHO", "INCR", "GET", "SET", "DEL", "TIME", "NONSENSE", "INCRBY"]);
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
            let words: Vec<_> = [name].iter().chain(&arguments).map(|word| word.as_bytes()).collect();
            out = encoded(&words);
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
