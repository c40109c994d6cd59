//! A client of the Redis protocol on one TCP connection, which it never makes anew.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Longest line or text that the server may send.
const MAX_TEXT: usize = 1 << 20;

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+text`
    Simple(String),
    /// `-text`
    Error(String),
    /// `:number`
    Number(i64),
    /// `$length`, or nothing.
    Text(Option<Vec<u8>>),
    /// `*count`
    List(Vec<Reply>),
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    /// Connects to `service`, an address and port. No reply may take longer than `patience`.
    ///
    /// # Errors
    /// When the connection is refused.
    pub fn connect(service: &str, patience: Duration) -> Result<Self> {
        let stream = TcpStream::connect(service).with_context(|| format!("cannot connect to {service}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Sends a request without waiting for the reply.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn send(&mut self, words: &[&str]) -> Result<()> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.reader.get_mut().write_all(request.as_bytes()).context("cannot send")
    }

    /// The next reply.
    ///
    /// # Errors
    /// When none comes in time, the connection is broken, or the server talks nonsense.
    pub fn receive(&mut self) -> Result<Reply> {
        read_reply(&mut self.reader)
    }

    /// The next reply, a number.
    ///
    /// # Errors
    /// Also when it is something else.
    pub fn receive_number(&mut self) -> Result<i64> {
        match self.receive()? {
            Reply::Number(number) => Ok(number),
            other => bail!("{other:?} is no number"),
        }
    }

    /// Increments `key`.
    ///
    /// # Errors
    /// See [`send`](Self::send) and [`receive_number`](Self::receive_number).
    pub fn increment(&mut self, key: &str) -> Result<i64> {
        self.send(&["INCR", key])?;
        self.receive_number()
    }

    /// Whether no reply arrives within `time`. The connection stays usable.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn is_silent(&mut self, time: Duration) -> Result<bool> {
        if !self.reader.buffer().is_empty() {
            return Ok(false);
        }
        let stream = self.reader.get_ref();
        let patience = stream.read_timeout()?;
        stream.set_read_timeout(Some(time))?;
        let peeked = stream.peek(&mut [0]);
        stream.set_read_timeout(patience)?;
        match peeked {
            Ok(0) => bail!("the server closed the connection"),
            Ok(_) => Ok(false),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

fn read_reply(reader: &mut impl BufRead) -> Result<Reply> {
    let line = read_line(reader)?;
    let (kind, rest) = line.split_at_checked(1).context("an empty reply")?;
    Ok(match kind {
        "+" => Reply::Simple(rest.to_owned()),
        "-" => Reply::Error(rest.to_owned()),
        ":" => Reply::Number(rest.parse().with_context(|| format!("`{rest}` is no number"))?),
        "$" if rest == "-1" => Reply::Text(None),
        "$" => Reply::Text(Some(read_text(reader, rest.parse().context("length of a text")?)?)),
        "*" => {
            let count: usize = rest.parse().context("length of a list")?;
            Reply::List((0..count).map(|_| read_reply(reader)).collect::<Result<_>>()?)
        }
        _ => bail!("`{line}` is no reply"),
    })
}

fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = Vec::new();
    reader.by_ref().take(MAX_TEXT as u64).read_until(b'\n', &mut line).context("no reply")?;
    ensure!(line.ends_with(b"\r\n"), "the server closed the connection");
    line.truncate(line.len() - 2);
    String::from_utf8(line).context("the reply is no text")
}

fn read_text(reader: &mut impl Read, length: usize) -> Result<Vec<u8>> {
    ensure!(length <= MAX_TEXT, "a text of {length} bytes");
    let mut text = vec![0; length + 2];
    reader.read_exact(&mut text).context("the reply breaks off")?;
    ensure!(text.ends_with(b"\r\n"), "a text does not end where it should");
    text.truncate(length);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut bytes: &[u8]) -> Result<Reply> {
        read_reply(&mut bytes)
    }

    #[test]
    fn all_kinds_of_replies_are_read() {
        assert_eq!(read(b"+PONG\r\n").unwrap(), Reply::Simple("PONG".into()));
        assert_eq!(read(b"-ERR no\r\n").unwrap(), Reply::Error("ERR no".into()));
        assert_eq!(read(b":11\r\n").unwrap(), Reply::Number(11));
        assert_eq!(read(b"$-1\r\n").unwrap(), Reply::Text(None));
        let list = [Reply::Text(Some(b"a\r\nb".to_vec())), Reply::Number(-2)];
        assert_eq!(read(b"*2\r\n$4\r\na\r\nb\r\n:-2\r\n").unwrap(), Reply::List(list.to_vec()));
    }

    #[test]
    fn broken_replies_are_errors() {
        for bad in [&b""[..], b"\r\n", b":1", b":x\r\n", b"$5\r\nabc\r\n", b"$3\r\nabcde", b"?\r\n", b"*1\r\n"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
