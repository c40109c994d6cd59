//! One HTTP/1.1 request and its response, on a connection of their own. See: RFC 9112.
//!
//! Failures have etcd's form: the status, and a message with gRPC's code. See: grpc, `doc/statuscodes.md`.

use std::io::{ErrorKind, Read, Write};
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::kv::{self, CallError};
use crate::service::lock;
use crate::store::Store;

/// Longest request line and headers in bytes.
const MAX_HEAD: usize = 8 << 10;
/// Longest body in bytes.
const MAX_BODY: usize = 16 << 10;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Such as `POST`.
    pub method: String,
    /// Such as `/v3/kv/txn`, without what follows a `?`.
    pub path: String,
    /// What follows the headers.
    pub body: Vec<u8>,
}

/// A response.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Value,
}

impl Response {
    /// Success.
    pub fn ok(body: Value) -> Self {
        Self { status: 200, body }
    }

    /// A failure, in the form in which etcd tells it; `code` is gRPC's.
    pub fn error(status: u16, code: u16, text: &str) -> Self {
        Self { status, body: json!({ "error": text, "message": text, "code": code }) }
    }

    /// Sends it; nothing follows it on this connection.
    pub fn send(&self, stream: &mut impl Write) -> std::io::Result<()> {
        let reason = match self.status {
            200 => "OK",
            404 => "Not Found",
            405 => "Method Not Allowed",
            429 => "Too Many Requests",
            500 => "Internal Server Error",
            501 => "Not Implemented",
            _ => "Bad Request",
        };
        let (status, body) = (self.status, self.body.to_string());
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n"
        );
        stream.write_all((head + &body).as_bytes())
    }
}

/// What is supported.
const SUPPORTED: &str = "it has POST /v3/kv/txn and /v3/kv/range, and GET /health";

/// Answers the request that comes by `stream`.
pub fn serve(stream: &mut (impl Read + Write), store: &Mutex<Store>) -> std::io::Result<()> {
    match receive(stream) {
        Ok(request) => answer(&request, store).send(stream),
        Err(RequestError::Bad(what)) => Response::error(400, 3, what).send(stream),
        Err(RequestError::Gone) => Ok(()),
    }
}

/// One request after the other.
fn answer(request: &Request, store: &Mutex<Store>) -> Response {
    let mut store = lock(store);
    let result = match (request.method.as_str(), request.path.as_str()) {
        ("POST", "/v3/kv/txn") => kv::transaction(&mut store, &request.body),
        ("POST", "/v3/kv/range") => kv::range(&store, &request.body),
        ("GET", "/health") => Ok(json!({ "health": "true" })),
        (_, "/v3/kv/txn" | "/v3/kv/range") => return Response::error(405, 12, "only by POST"),
        (_, "/health") => return Response::error(405, 12, "only by GET"),
        (_, path) if path.starts_with("/v3") => {
            return Response::error(501, 12, &format!("{path} is not supported by this arbiter; {SUPPORTED}"));
        }
        (_, path) => return Response::error(404, 5, &format!("there is no {path}; {SUPPORTED}")),
    };
    match result {
        Ok(body) => Response::ok(body),
        Err(error @ CallError::Bad(_)) => Response::error(400, 3, &error.to_string()),
        Err(error) if store.has_failed() => Response::error(500, 13, &error.to_string()),
        Err(error) => Response::error(429, 8, &error.to_string()),
    }
}

/// Why there is no request.
#[derive(Debug)]
pub enum RequestError {
    /// The connection ended, broke, or was silent for too long: there is nobody to answer to.
    Gone,
    /// It is wrong; what is.
    Bad(&'static str),
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Counted(usize),
    Chunked,
}

/// What the head of a request says.
struct Head {
    method: String,
    path: String,
    length: Length,
    /// The client waits for a word before it sends the body.
    expects: bool,
}

/// Receives a request.
///
/// # Errors
/// See [`RequestError`].
pub fn receive(stream: &mut (impl Read + Write)) -> Result<Request, RequestError> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = find(&bytes, b"\r\n\r\n") {
            break end;
        }
        if bytes.len() >= MAX_HEAD {
            return Err(RequestError::Bad("the headers are too long"));
        }
        read_more(stream, &mut bytes)?;
    };
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| RequestError::Bad("the headers are not UTF-8"))?;
    let Head { method, path, length, expects } = parse_head(text).map_err(RequestError::Bad)?;
    let mut rest = bytes.split_off(end + 4);
    if expects && rest.is_empty() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").map_err(|_| RequestError::Gone)?;
    }
    let body = match length {
        Length::Counted(length) => {
            while rest.len() < length {
                read_more(stream, &mut rest)?;
            }
            rest.truncate(length);
            rest
        }
        Length::Chunked => receive_chunks(stream, rest)?,
    };
    Ok(Request { method, path, body })
}

/// A body in chunks; trailers are left unread. See: RFC 9112, 7.1.
fn receive_chunks(stream: &mut impl Read, mut rest: Vec<u8>) -> Result<Vec<u8>, RequestError> {
    const MALFORMED: RequestError = RequestError::Bad("a chunk is malformed");
    let mut body = Vec::new();
    loop {
        let end = loop {
            match find(&rest, b"\r\n") {
                Some(end) => break end,
                None if rest.len() > MAX_HEAD => return Err(MALFORMED),
                None => read_more(stream, &mut rest)?,
            }
        };
        let line = std::str::from_utf8(&rest[..end]).map_err(|_| MALFORMED)?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let size = usize::from_str_radix(digits, 16).ok().filter(|_| plain).ok_or(MALFORMED)?;
        if size == 0 {
            return Ok(body);
        }
        if size > MAX_BODY - body.len() {
            return Err(TOO_LONG);
        }
        rest.drain(..end + 2);
        while rest.len() < size + 2 {
            read_more(stream, &mut rest)?;
        }
        if rest[size..size + 2] != *b"\r\n" {
            return Err(MALFORMED);
        }
        body.extend(rest.drain(..size));
        rest.drain(..2);
    }
}

const TOO_LONG: RequestError = RequestError::Bad("the body is too long");

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn read_more(stream: &mut impl Read, bytes: &mut Vec<u8>) -> Result<(), RequestError> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Err(RequestError::Gone),
            Ok(count) => {
                bytes.extend_from_slice(&buffer[..count]);
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(RequestError::Gone),
        }
    }
}

fn parse_head(text: &str) -> Result<Head, &'static str> {
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(path), Some("HTTP/1.0" | "HTTP/1.1"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("the request line is malformed");
    };
    let (mut length, mut chunked, mut expects) = (None, false, false);
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("a header is malformed")?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.eq_ignore_ascii_case("chunked");
            if !chunked {
                return Err("of transfer encodings only chunked is supported");
            }
        }
        expects |= name.eq_ignore_ascii_case("expect") && value.eq_ignore_ascii_case("100-continue");
        if name.eq_ignore_ascii_case("content-length") {
            let value: usize = value.parse().map_err(|_| "Content-Length is no number")?;
            if length.replace(value).is_some_and(|other| other != value) {
                return Err("there are two different Content-Lengths");
            }
        }
    }
    let length = match (chunked, length.unwrap_or(0)) {
        (true, _) if length.is_some() => return Err("a body in chunks has no Content-Length"),
        (true, _) => Length::Chunked,
        (false, length) if length > MAX_BODY => return Err("the body is too long"),
        (false, length) => Length::Counted(length),
    };
    let path = path.split('?').next().unwrap_or_default();
    Ok(Head { method: method.to_owned(), path: path.to_owned(), length, expects })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Gives one piece a read; takes what is written.
    struct Pieces<'a>(&'a [u8], usize, Vec<u8>);

    impl Write for Pieces<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.2.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn pieces(bytes: &[u8], size: usize) -> Pieces<'_> {
        Pieces(bytes, size, Vec::new())
    }

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = self.1.min(self.0.len()).min(buffer.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    const POST: &[u8] = b"POST /v3/kv/txn HTTP/1.1\r\nHost: x\r\ncontent-length: 4\r\n\r\n{  }and more";

    #[test]
    fn a_request_comes_in_any_pieces() {
        for size in [1, 2, 3, 7, 1000] {
            let request = receive(&mut pieces(POST, size)).unwrap();
            assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/v3/kv/txn"));
            assert_eq!(request.body, b"{  }");
        }
    }

    #[test]
    fn a_body_may_come_in_chunks_and_after_a_word() {
        let text = b"POST /v3/kv/range?pretty=1 HTTP/1.1\r\nExpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n\
                     2;x=y\r\n{ \r\n1\r\n}\r\n0\r\n\r\n";
        for size in 1..text.len() {
            let mut stream = pieces(text, size);
            let request = receive(&mut stream).unwrap();
            assert_eq!((request.path.as_str(), &request.body[..]), ("/v3/kv/range", &b"{ }"[..]));
            // Whoever has sent something of the body does not wait.
            let head = text.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
            let waits = head % size == 0;
            assert_eq!(stream.2 == b"HTTP/1.1 100 Continue\r\n\r\n", waits, "{size}");
        }
    }

    #[test]
    fn what_is_cut_off_is_not_carried_out() {
        for length in 0..POST.len() - 8 {
            assert!(matches!(receive(&mut pieces(&POST[..length], 9)), Err(RequestError::Gone)), "{length}");
        }
    }

    #[test]
    fn bad_requests_are_told_so() {
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9000));
        for bad in [
            "GET /\r\n\r\n",
            "GET / HTTP/2\r\n\r\n",
            "GET / x HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 99999\r\n\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4001\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
            &long,
        ] {
            assert!(matches!(receive(&mut pieces(bad.as_bytes(), 4096)), Err(RequestError::Bad(_))), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = receive(&mut pieces(&bytes, 7));
            let _ = receive(&mut pieces(&[b"GET / HTTP/1.1\r\n", &bytes[..], b"\r\n\r\n"].concat(), 7));
            let chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
            let _ = receive(&mut pieces(&[chunked, &bytes[..]].concat(), 7));
        }
    }
}
