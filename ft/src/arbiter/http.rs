//! Reads one HTTP/1.1 response, in pieces of any length and within bounds. See: RFC 9112.

use alloc::vec::Vec;
use core::fmt;

/// Longest status line, headers, chunk headers and trailers together, in bytes.
pub const MAX_HEAD: usize = 8 << 10;
/// Longest body in bytes; an answer of etcd has about 400.
pub const MAX_BODY: usize = 16 << 10;

/// Why a response was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpError {
    /// Its status is not 200.
    Status(u16),
    /// It breaks the rules of HTTP, or uses what we do not know.
    Malformed,
    /// It is longer than [`MAX_HEAD`] or [`MAX_BODY`].
    TooLarge,
    /// The connection ended before it did.
    Truncated,
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "the arbiter answers with HTTP status {status}"),
            Self::Malformed => f.write_str("what comes from the arbiter is no HTTP response"),
            Self::TooLarge => f.write_str("the arbiter's response is too large"),
            Self::Truncated => f.write_str("the arbiter closed the connection within its response"),
        }
    }
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Part {
    #[default]
    StatusLine,
    Headers,
    /// So many bytes of the body.
    Counted(usize),
    /// The body, up to the end of the connection.
    ToTheEnd,
    ChunkSize,
    /// So many bytes of a chunk.
    Chunk(usize),
    ChunkEnd,
    Trailers,
    Complete,
    Failed(HttpError),
}

/// A response that is being received.
#[derive(Debug, Default)]
pub(super) struct Response {
    part: Part,
    /// 0 before the status line.
    status: u16,
    line: Vec<u8>,
    /// Bytes of lines so far.
    head: usize,
    length: Option<usize>,
    chunked: bool,
    body: Vec<u8>,
}

impl Response {
    /// The body, as far as it has come; also that of a response whose status is not 200.
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    /// Takes more bytes. Whether the response is complete; what follows it is ignored.
    pub(super) fn receive(&mut self, mut bytes: &[u8]) -> Result<bool, HttpError> {
        while !bytes.is_empty() && self.part != Part::Complete {
            let taken = self.take(bytes).map_err(|error| self.fail(error))?;
            bytes = &bytes[taken..];
        }
        if self.part == Part::Complete { self.check_status().map(|()| true) } else { Ok(false) }
    }

    /// A refusal is one however it goes on.
    fn fail(&mut self, error: HttpError) -> HttpError {
        let error = self.check_status().err().unwrap_or(error);
        self.part = Part::Failed(error);
        error
    }

    fn check_status(&self) -> Result<(), HttpError> {
        if matches!(self.status, 0 | 200) { Ok(()) } else { Err(HttpError::Status(self.status)) }
    }

    /// The connection has ended.
    pub(super) fn closed(&mut self) -> Result<(), HttpError> {
        match self.part {
            Part::Complete | Part::ToTheEnd => self.check_status(),
            Part::Failed(error) => Err(error),
            _ => Err(self.fail(HttpError::Truncated)),
        }
    }

    /// Takes some of `bytes`, which are not empty; how many.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, HttpError> {
        match self.part {
            Part::Failed(error) => Err(error),
            Part::Complete => Ok(bytes.len()),
            Part::ToTheEnd => self.take_body(bytes),
            Part::Counted(left) => {
                let taken = self.take_body(&bytes[..left.min(bytes.len())])?;
                self.part = if taken == left { Part::Complete } else { Part::Counted(left - taken) };
                Ok(taken)
            }
            Part::Chunk(left) => {
                let taken = self.take_body(&bytes[..left.min(bytes.len())])?;
                self.part = if taken == left { Part::ChunkEnd } else { Part::Chunk(left - taken) };
                Ok(taken)
            }
            Part::StatusLine | Part::Headers | Part::ChunkSize | Part::ChunkEnd | Part::Trailers => {
                self.take_line(bytes)
            }
        }
    }

    fn take_body(&mut self, bytes: &[u8]) -> Result<usize, HttpError> {
        if self.body.len() + bytes.len() > MAX_BODY {
            return Err(HttpError::TooLarge);
        }
        self.body.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn take_line(&mut self, bytes: &[u8]) -> Result<usize, HttpError> {
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        self.head += taken;
        if self.head > MAX_HEAD {
            return Err(HttpError::TooLarge);
        }
        self.line.extend_from_slice(&bytes[..taken]);
        if end.is_some() {
            let line = core::mem::take(&mut self.line);
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            self.part = self.line(line.strip_suffix(b"\r").unwrap_or(line))?;
        }
        Ok(taken)
    }

    /// Understands a line without its end; what comes next.
    fn line(&mut self, line: &[u8]) -> Result<Part, HttpError> {
        if line.iter().any(|&byte| byte.is_ascii_control() && byte != b'\t') {
            return Err(HttpError::Malformed);
        }
        match self.part {
            Part::StatusLine => {
                self.status = status(line).ok_or(HttpError::Malformed)?;
                Ok(Part::Headers)
            }
            Part::Headers if line.is_empty() => self.begin_body(),
            Part::Headers => self.header(line).map(|()| Part::Headers),
            Part::ChunkSize => match chunk_size(line)? {
                0 => Ok(Part::Trailers),
                size => Ok(Part::Chunk(size)),
            },
            Part::ChunkEnd if line.is_empty() => Ok(Part::ChunkSize),
            Part::Trailers if line.is_empty() => Ok(Part::Complete),
            Part::Trailers => Ok(Part::Trailers),
            _ => Err(HttpError::Malformed),
        }
    }

    fn header(&mut self, line: &[u8]) -> Result<(), HttpError> {
        let colon = line.iter().position(|&byte| byte == b':').ok_or(HttpError::Malformed)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || name.iter().any(|byte| !byte.is_ascii_graphic()) {
            return Err(HttpError::Malformed);
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = number(value, 10).ok_or(HttpError::Malformed)?;
            if self.length.replace(length).is_some_and(|other| other != length) {
                return Err(HttpError::Malformed);
            }
        }
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(HttpError::Malformed);
            }
            self.chunked = true;
        }
        Ok(())
    }

    /// See: RFC 9112, 6.3.
    fn begin_body(&self) -> Result<Part, HttpError> {
        match (self.chunked, self.length) {
            // Two lengths are a sign of somebody who plays tricks.
            (true, Some(_)) => Err(HttpError::Malformed),
            (true, None) => Ok(Part::ChunkSize),
            (false, Some(length)) if length > MAX_BODY => Err(HttpError::TooLarge),
            (false, Some(0)) => Ok(Part::Complete),
            (false, Some(length)) => Ok(Part::Counted(length)),
            (false, None) => Ok(Part::ToTheEnd),
        }
    }
}

/// The code of a status line such as `HTTP/1.1 200 OK`.
fn status(line: &[u8]) -> Option<u16> {
    let (version, rest) = line.strip_prefix(b"HTTP/1.")?.split_first()?;
    let (code, reason) = rest.strip_prefix(b" ")?.split_at_checked(3)?;
    let well_formed = version.is_ascii_digit() && (reason.is_empty() || reason.starts_with(b" "));
    let code = number(code, 10)?;
    if well_formed { u16::try_from(code).ok() } else { None }
}

/// The size in front of a chunk, without its extensions.
fn chunk_size(line: &[u8]) -> Result<usize, HttpError> {
    let end = line.iter().position(|&byte| byte == b';').unwrap_or(line.len());
    let size = number(line[..end].trim_ascii_end(), 16).ok_or(HttpError::Malformed)?;
    if size > MAX_BODY { Err(HttpError::TooLarge) } else { Ok(size) }
}

/// Digits and nothing else.
fn number(digits: &[u8], radix: u32) -> Option<usize> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0usize, |value, &digit| {
        value.checked_mul(radix as usize)?.checked_add(char::from(digit).to_digit(radix)? as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<String, HttpError> {
        let mut response = Response::default();
        if !response.receive(text.as_bytes())? {
            response.closed()?;
        }
        Ok(String::from_utf8_lossy(response.body()).into_owned())
    }

    fn body(headers: &str, body: &str) -> Result<String, HttpError> {
        read(&format!("HTTP/1.1 200 OK\r\n{headers}\r\n{body}"))
    }

    #[test]
    fn bodies_end_in_three_ways() {
        assert_eq!(body("Content-Length: 3\r\n", "abc and more").unwrap(), "abc");
        assert_eq!(body("Content-length:3\nX: \n", "abc").unwrap(), "abc");
        assert_eq!(body("", "to the end").unwrap(), "to the end");
        let chunks = "3\r\nabc\r\n0A ;x=y\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nmore";
        assert_eq!(body("Transfer-Encoding: Chunked\r\n", chunks).unwrap(), "abc0123456789");
        assert_eq!(body("Content-Length: 0\r\n", "").unwrap(), "");
    }

    #[test]
    fn what_is_cut_off_is_no_response() {
        for (headers, text) in
            [("Content-Length: 3\r\n", "ab"), ("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n")]
        {
            assert_eq!(body(headers, text), Err(HttpError::Truncated));
        }
        assert_eq!(read(""), Err(HttpError::Truncated));
        assert_eq!(read("HTTP/1.1 200 OK\r\nX: y\r\n"), Err(HttpError::Truncated));
    }

    #[test]
    fn only_success_counts() {
        assert_eq!(read("HTTP/1.0 503 Service Unavailable\r\n"), Err(HttpError::Status(503)));
        assert_eq!(read("HTTP/1.1 404\r\n"), Err(HttpError::Status(404)));
        // However it goes on, or does not.
        for rest in ["\r\n", "Content-Length: 9\r\n\r\nab", "no colon\r\n", "Content-Length: 99999\r\n\r\n"] {
            assert_eq!(read(&format!("HTTP/1.1 429 Too Many Requests\r\n{rest}")), Err(HttpError::Status(429)));
        }
        for bad in ["HTTP/2 200 OK\r\n", "HTTP/1.1 20 OK\r\n", "HTTP/1.1 2000 OK\r\n", "ssh-2.0\n", "\n", "HTTP/1.1 \n"]
        {
            assert_eq!(read(bad), Err(HttpError::Malformed), "{bad}");
        }
    }

    #[test]
    fn the_body_of_a_refusal_is_kept() {
        let mut response = Response::default();
        let head = b"HTTP/1.1 429 Too Many Requests\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(response.receive(head), Ok(false));
        assert_eq!(response.receive(b"4\r\nfull\r\n0\r\n\r\n"), Err(HttpError::Status(429)));
        assert_eq!(response.body(), b"full");
    }

    #[test]
    fn malformed_headers_are_refused() {
        for bad in [
            "no colon\r\n",
            ": x\r\n",
            " folded: x\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 1e1\r\n",
            "Content-Length: 99999999999999999999999\r\n",
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            "Transfer-Encoding: gzip\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
            "X: a\rb\r\n",
        ] {
            assert_eq!(body(bad, "xy"), Err(HttpError::Malformed), "{bad}");
        }
        for bad in ["\r\n", "x\r\n", "3\r\nabcd\r\n", "ffffffffffffffffffff\r\n"] {
            assert_eq!(body("Transfer-Encoding: chunked\r\n", bad), Err(HttpError::Malformed), "{bad}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let endless = "x".repeat(MAX_BODY + 1);
        assert_eq!(read(&endless), Err(HttpError::TooLarge));
        assert_eq!(body(&"X: y\r\n".repeat(MAX_HEAD), ""), Err(HttpError::TooLarge));
        assert_eq!(body("", &endless), Err(HttpError::TooLarge));
        assert_eq!(body("Content-Length: 16385\r\n", ""), Err(HttpError::TooLarge));
        assert_eq!(body("Transfer-Encoding: chunked\r\n", "4001\r\n"), Err(HttpError::TooLarge));
        assert_eq!(body("Transfer-Encoding: chunked\r\n", &"1\r\nx\r\n".repeat(MAX_BODY)), Err(HttpError::TooLarge));
    }

    #[test]
    fn the_largest_are_taken() {
        let most = "x".repeat(MAX_BODY);
        assert_eq!(body("", &most).as_ref(), Ok(&most));
        assert_eq!(body("Content-Length: 16384\r\n", &most).as_ref(), Ok(&most));
        let chunk = format!("4000\r\n{most}\r\n0\r\n\r\n");
        assert_eq!(body("Transfer-Encoding: chunked\r\n", &chunk).as_ref(), Ok(&most));
        let start = "HTTP/1.1 200 OK\r\nX: \r\n\r\n";
        let head = |length: usize| start.replace("X: ", &format!("X: {}", "y".repeat(length - start.len())));
        assert_eq!((read(&head(MAX_HEAD)), read(&head(MAX_HEAD + 1))), (Ok(String::new()), Err(HttpError::TooLarge)));
    }

    #[test]
    fn a_chunk_ends_where_it_says() {
        assert_eq!(body("Transfer-Encoding: chunked\r\n", "1\r\nx\r\n0\r\n\r\n"), Ok("x".into()));
        for bad in ["1\r\nxy\r\n0\r\n\r\n", "1\r\nx0\r\n\r\n", "1\r\nx5\r\n0\r\n\r\n"] {
            assert_eq!(body("Transfer-Encoding: chunked\r\n", bad), Err(HttpError::Malformed), "{bad}");
        }
    }

    #[test]
    fn trailers_end_with_an_empty_line() {
        let chunks = "1\r\nx\r\n0\r\nTrailer: x\r\n";
        assert_eq!(body("Transfer-Encoding: chunked\r\n", chunks), Err(HttpError::Truncated));
        assert_eq!(body("Transfer-Encoding: chunked\r\n", &format!("{chunks}\r\n")), Ok("x".into()));
    }

    #[test]
    fn a_failure_stays_one() {
        let mut response = Response::default();
        assert_eq!(response.receive(b"nonsense\n"), Err(HttpError::Malformed));
        assert_eq!(response.receive(b"HTTP/1.1 200 OK\n"), Err(HttpError::Malformed));
        assert_eq!(response.closed(), Err(HttpError::Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let mut response = Response::default();
            let _ = response.receive(&bytes);
            let _ = response.closed();
        }
    }
}
