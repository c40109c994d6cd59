//! Stock clients of Redis, as they were recorded, and others that come to the guest's port.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pollux_tests::rig::{Rig, TAKEOVER_LIMIT};
use serde::Deserialize;

const RECORDED: [&str; 5] = [
    include_str!("../vectors/redis-py.json"),
    include_str!("../vectors/node-redis.json"),
    include_str!("../vectors/ioredis.json"),
    include_str!("../vectors/redis-cli.json"),
    include_str!("../vectors/redis-cli-3.json"),
];
/// A value that takes many segments.
const LARGE: usize = 400_000;

/// What a client sent, and what it was answered; `{n}` stands for a number that is not always the same.
#[derive(Debug, Deserialize)]
struct Recorded {
    client: String,
    talk: Vec<(String, String)>,
}

impl Recorded {
    /// As if the client had used other keys, so that several may be there at once.
    fn with_own_keys(text: &str, number: usize) -> Result<Self> {
        let mut recorded: Self = serde_json::from_str(text)?;
        for (sent, _) in &mut recorded.talk {
            for (key, own) in [("x", ["A", "B", "C", "D", "E"]), ("a", ["F", "G", "H", "I", "J"])] {
                *sent = sent.replace(&format!("$1\r\n{key}\r\n"), &format!("$1\r\n{}\r\n", own[number]));
            }
        }
        Ok(recorded)
    }
}

struct Connection {
    stream: TcpStream,
}

impl Connection {
    fn open(rig: &Rig) -> Result<Self> {
        let stream = TcpStream::connect(rig.service()?)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(Self { stream })
    }

    /// Sends, and reads until the reply is whole.
    fn say(&mut self, sent: &[u8], expected: &str) -> Result<()> {
        self.stream.write_all(sent)?;
        self.expect(expected)
    }

    fn expect(&mut self, expected: &str) -> Result<()> {
        let deadline = Instant::now() + TAKEOVER_LIMIT;
        let (mut reply, mut buffer) = (String::new(), vec![0; 64 * 1024]);
        while !is_like(&reply, expected) {
            ensure!(Instant::now() < deadline && reply.len() < expected.len() + 100, "{reply:?} is not {expected:?}");
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("the server ended the connection after {reply:?}, before {expected:?}"),
                Ok(count) => reply += std::str::from_utf8(&buffer[..count])?,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Whether `text` is as `pattern`, in which `{n}` stands for some digits.
fn is_like(text: &str, pattern: &str) -> bool {
    let Some((before, behind)) = pattern.split_once("{n}") else { return text == pattern };
    let Some(rest) = text.strip_prefix(before) else { return false };
    let next = rest.trim_start_matches(|digit: char| digit.is_ascii_digit());
    next.len() < rest.len() && is_like(next, behind)
}

/// What a browser or curl sends. It must learn that nobody understands it, and disturb nobody.
fn speak_http(rig: &Rig) -> Result<()> {
    let mut stream = TcpStream::connect(rig.service()?)?;
    stream.set_read_timeout(Some(TAKEOVER_LIMIT))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost:7777\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    ensure!(reply == "-ERR wrong number of arguments for 'get' command\r\n", "{reply:?}");
    Ok(())
}

#[test]
fn stock_clients_talk_on_through_a_kill() -> Result<()> {
    let mut rig = Rig::protected("clients", "counter", &[])?;
    let mut clients = Vec::new();
    for (number, text) in RECORDED.iter().enumerate() {
        clients.push((Recorded::with_own_keys(text, number)?, Connection::open(&rig)?));
    }
    for (recorded, connection) in &mut clients {
        for (sent, expected) in &recorded.talk[..recorded.talk.len() / 2] {
            connection.say(sent.as_bytes(), expected).with_context(|| format!("{}: {sent:?}", recorded.client))?;
        }
    }
    speak_http(&rig)?;
    let mut writer = Connection::open(&rig)?;
    let large = "x".repeat(LARGE);
    let command = format!("*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n${LARGE}\r\n{large}\r\n");
    writer.stream.write_all(&command.as_bytes()[..LARGE / 2])?;
    rig.kill("primary")?;
    writer.say(&command.as_bytes()[LARGE / 2..], "+OK\r\n")?;
    for (recorded, connection) in &mut clients {
        for (sent, expected) in &recorded.talk[recorded.talk.len() / 2..] {
            connection.say(sent.as_bytes(), expected).with_context(|| format!("{}: {sent:?}", recorded.client))?;
        }
    }
    speak_http(&rig)?;
    writer.say(b"GET large\r\n", &format!("${LARGE}\r\n{large}\r\n"))?;
    rig.wait_takeovers(1)?;
    rig.stop()
}
