//! One HTTP/1.1 request and its response, on a connection of their own. See: RFC 9112.

use std::io::{ErrorKind, Read, Write};

use serde_json::{Value, json};

/// Longest request line and headers in bytes.
const MAX_HEAD: usize = 8 << 10;
/// Longest body in bytes.
const MAX_BODY: usize = 16 << 10;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Such as `POST`.
    pub method: String,
    /// Such as `/v3/kv/txn`.
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

    /// A failure, in the form in which etcd tells it.
    pub fn error(status: u16, text: &str) -> Self {
        Self { status, body: json!({ "error": text, "message": text }) }
    }

    /// Sends it; nothing follows it on this connection.
    pub fn send(&self, stream: &mut impl Write) -> std::io::Result<()> {
        let reason = match self.status {
            200 => "OK",
            404 => "Not Found",
            405 => "Method Not Allowed",
            500 => "Internal Server Error",
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

/// Why there is no request.
#[derive(Debug)]
pub enum RequestError {
    /// The connection ended, broke, or was silent for too long: there is nobody to answer to.
    Gone,
    /// It is wrong; what is.
    Bad(&'static str),
}

/// Receives a request.
///
/// # Errors
/// See [`RequestError`].
pub fn receive(stream: &mut impl Read) -> Result<Request, RequestError> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if bytes.len() >= MAX_HEAD {
            return Err(RequestError::Bad("the headers are too long"));
        }
        read_more(stream, &mut bytes)?;
    };
    let text = std::str::from_utf8(&bytes[..head]).map_err(|_| RequestError::Bad("the headers are not UTF-8"))?;
    let (method, path, length) = parse_head(text).map_err(RequestError::Bad)?;
    let mut body = bytes.split_off(head + 4);
    while body.len() < length {
        read_more(stream, &mut body)?;
    }
    body.truncate(length);
    Ok(Request { method, path, body })
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

/// Method, path and length of the body.
fn parse_head(text: &str) -> Result<(String, String, usize), &'static str> {
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(path), Some("HTTP/1.0" | "HTTP/1.1"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("the request line is malformed");
    };
    let mut length = None;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("a header is malformed")?;
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("a body must have a Content-Length");
        }
        if name.eq_ignore_ascii_case("content-length") {
            let value: usize = value.trim().parse().map_err(|_| "Content-Length is no number")?;
            if length.replace(value).is_some_and(|other| other != value) {
                return Err("there are two different Content-Lengths");
            }
        }
    }
    match length.unwrap_or(0) {
        length if length > MAX_BODY => Err("the body is too long"),
        length => Ok((method.to_owned(), path.to_owned(), length)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Gives one piece a read.
    struct Pieces<'a>(&'a [u8], usize);

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
            let request = receive(&mut Pieces(POST, size)).unwrap();
            assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/v3/kv/txn"));
            assert_eq!(request.body, b"{  }");
        }
    }

    #[test]
    fn what_is_cut_off_is_not_carried_out() {
        for length in 0..POST.len() - 8 {
            assert!(matches!(receive(&mut Pieces(&POST[..length], 9)), Err(RequestError::Gone)), "{length}");
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
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            &long,
        ] {
            assert!(matches!(receive(&mut bad.as_bytes()), Err(RequestError::Bad(_))), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = receive(&mut &bytes[..]);
            let _ = receive(&mut &[b"GET / HTTP/1.1\r\n", &bytes[..], b"\r\n\r\n"].concat()[..]);
        }
    }
}
