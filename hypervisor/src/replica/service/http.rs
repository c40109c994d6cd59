//! One request and its response, as bytes: HTTP/1.1, a connection for each. See: RFC 9110, RFC 9112.
//!
//! Whatever comes, in whatever pieces, is answered by the same response; and nothing that comes makes it take more than
//! [`MAX_REQUEST`] bytes.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use httparse::{EMPTY_HEADER, Header};

/// Longest request line and headers, in bytes.
pub const MAX_HEAD: usize = 1 << 10;
/// Longest content, in bytes.
pub const MAX_CONTENT: usize = 256;
/// Longest request, in bytes.
pub const MAX_REQUEST: usize = MAX_HEAD + MAX_CONTENT;
/// Most headers.
const MAX_HEADERS: usize = 32;

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// The status, as on the monitor.
    Status,
    /// The same for Prometheus.
    Metrics,
    /// Whether this machine does its part.
    Health,
}

impl Page {
    /// All pages.
    pub const ALL: [Self; 3] = [Self::Status, Self::Metrics, Self::Health];

    /// Where it is.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Status => "/status",
            Self::Metrics => "/metrics",
            Self::Health => "/healthz",
        }
    }

    /// The methods that it knows, as `Allow` says them.
    const fn methods(self) -> &'static str {
        match self {
            Self::Status | Self::Metrics | Self::Health => "GET, HEAD",
        }
    }
}

/// A request that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it is about.
    pub page: Page,
    /// Only the head of the answer is wanted.
    pub head: bool,
    /// What was sent along.
    pub content: Vec<u8>,
}

/// What the bytes so far are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a request.
    Unfinished,
    /// A request; what may follow it is of no interest.
    Request(Request),
    /// Nothing that can be answered but by this.
    Refused(Response),
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Its status code.
    pub status: u16,
    kind: &'static str,
    /// Methods that would be right.
    allow: Option<&'static str>,
    content: String,
}

impl Response {
    /// Lines of text for people.
    pub fn text(status: u16, content: impl Into<String>) -> Self {
        let mut content = content.into();
        content.push('\n');
        Self { status, kind: "text/plain; charset=utf-8", allow: None, content }
    }

    /// JSON.
    pub fn json(content: String) -> Self {
        Self { status: 200, kind: "application/json", allow: None, content }
    }

    /// Metrics in the text format of Prometheus.
    pub fn metrics(content: String) -> Self {
        Self { status: 200, kind: "text/plain; version=0.0.4; charset=utf-8", allow: None, content }
    }

    /// Who was too slow.
    pub fn timeout() -> Self {
        Self::text(408, "the request did not come in time")
    }

    /// The bytes of it; only those of its head if `head`.
    pub fn encode(&self, head: bool) -> Vec<u8> {
        let Self { status, kind, allow, content } = self;
        let allow = allow.map_or_else(String::new, |methods| format!("Allow: {methods}\r\n"));
        let mut text = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Cache-Control: no-store\r\n\
             Connection: close\r\n\r\n",
            reason(*status),
            content.len()
        );
        if !head {
            text.push_str(content);
        }
        text.into_bytes()
    }
}

/// The usual words for the status codes that we use.
const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

/// Whether the bytes, of a request or the beginning of one, ask for the head of an answer alone.
pub fn asks_for_head(bytes: &[u8]) -> bool {
    // As the parser does: empty lines may come first.
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    bytes[start..].starts_with(b"HEAD ")
}

/// Reads a request, of which `bytes` are here so far.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head = &bytes[..bytes.len().min(MAX_HEAD)];
    let refused = |status, why: &str| Parsed::Refused(Response::text(status, why));
    let len = match request.parse(head) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if head.len() == MAX_HEAD => {
            return refused(431, "request line and headers may have 1024 bytes");
        }
        Ok(httparse::Status::Partial) => return Parsed::Unfinished,
        Err(httparse::Error::TooManyHeaders) => return refused(431, "there are too many headers"),
        Err(httparse::Error::Version) => return refused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here"),
        Err(_) => return refused(400, "that is no HTTP request"),
    };
    let content = match content_length(request.headers) {
        Ok(wanted) if bytes.len() - len < wanted => return Parsed::Unfinished,
        Ok(wanted) => &bytes[len..len + wanted],
        Err((status, why)) => return refused(status, why),
    };
    let hosts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host")).count();
    if hosts > 1 || hosts == 0 && request.version == Some(1) {
        return refused(400, "one Host must be named");
    }
    let (method, path) = (request.method.unwrap_or_default(), path(request.path.unwrap_or_default()));
    let Some(page) = Page::ALL.into_iter().find(|page| page.path() == path) else {
        let paths = Page::ALL.map(Page::path).join(", ");
        return Parsed::Refused(Response::text(404, format!("there is no such page; there are {paths}")));
    };
    if !page.methods().split(", ").any(|known| known == method) {
        let allow = Some(page.methods());
        let content = format!("{} knows only {}", page.path(), page.methods());
        return Parsed::Refused(Response { allow, ..Response::text(405, content) });
    }
    Parsed::Request(Request { page, head: asks_for_head(bytes), content: content.to_vec() })
}

/// How long the content is.
fn content_length(headers: &[Header<'_>]) -> Result<usize, (u16, &'static str)> {
    let mut length = None;
    for header in headers {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err((411, "the content's length must be said"));
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let digits = header.value.iter().all(u8::is_ascii_digit) && !header.value.is_empty();
            if !digits || length.is_some() {
                return Err((400, "Content-Length must be one number"));
            }
            // One with more digits than fit is too large, too.
            let text = str::from_utf8(header.value).unwrap_or_default();
            length = Some(text.parse().unwrap_or(usize::MAX));
        }
    }
    match length.unwrap_or(0) {
        wanted if wanted <= MAX_CONTENT => Ok(wanted),
        _ => Err((413, "the content may have 256 bytes")),
    }
}

/// The path of a request's target, also if that is a whole URL.
fn path(target: &str) -> &str {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    path.split('?').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    const _: () = assert!(MAX_HEAD == 1024 && MAX_CONTENT == 256, "the messages say so");

    #[test]
    fn what_asks_for_a_head_is_known_from_its_beginning() {
        for (bytes, expected) in
            [("HEAD /", true), ("\r\nHEAD / x", true), ("GET / HEAD ", false), ("HEADER /", false), ("", false)]
        {
            assert_eq!(asks_for_head(bytes.as_bytes()), expected, "{bytes}");
        }
        let Parsed::Request(request) = parse(b"\r\nHEAD /status HTTP/1.0\r\n\r\n") else { panic!() };
        assert!(request.head);
    }

    fn status(bytes: &[u8]) -> u16 {
        match parse(bytes) {
            Parsed::Unfinished => 0,
            Parsed::Request(_) => 200,
            Parsed::Refused(response) => response.status,
        }
    }

    #[test]
    fn requests_are_answered_as_they_should_be() {
        let long = format!("GET /status HTTP/1.1\r\nHost: a\r\nX: {}", "y".repeat(1000));
        let many = format!("GET /status HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(MAX_HEADERS));
        for (text, expected) in [
            ("GET /status HTTP/1.1\r\nHost: a\r\n\r\n", 200),
            ("GET /metrics?x=1 HTTP/1.1\r\nhost: a\r\n\r\n", 200),
            ("GET http://10.0.2.21/healthz HTTP/1.1\r\nHost: 10.0.2.21\r\n\r\n", 200),
            ("HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 200),
            ("GET /status HTTP/1.0\r\n\r\n", 200),
            ("GET /status HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab", 200),
            ("GET /status HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na", 0),
            ("GET /status HTTP/1.1\r\nHost: a\r\n", 0),
            ("", 0),
            ("GET /status HTTP/1.1\r\n\r\n", 400),
            ("GET /status HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET /status HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
            ("GET /status HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
            ("GET\r\n\r\n", 400),
            ("\x16\x03\x01\x02\0", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 404),
            ("GET /statuses HTTP/1.1\r\nHost: a\r\n\r\n", 404),
            ("GET http://10.0.2.21 HTTP/1.1\r\nHost: a\r\n\r\n", 404),
            ("POST /status HTTP/1.1\r\nHost: a\r\n\r\n", 405),
            ("get /status HTTP/1.1\r\nHost: a\r\n\r\n", 405),
            ("GET /status HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
            ("GET /status HTTP/1.1\r\nHost: a\r\nContent-Length: 257\r\n\r\n", 413),
            ("GET /status HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n", 413),
            (&long, 431),
            (&many, 431),
            ("GET /status HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        ] {
            assert_eq!(status(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn a_refused_method_is_told_which_would_be_right() {
        let Parsed::Refused(response) = parse(b"DELETE /metrics HTTP/1.1\r\nHost: a\r\n\r\n") else { panic!() };
        let text = String::from_utf8(response.encode(false)).unwrap();
        assert!(text.contains("\r\nAllow: GET, HEAD\r\n"), "{text}");
    }

    /// What the bytes are answered by when they come in pieces of these lengths.
    fn in_pieces(bytes: &[u8], cuts: &[usize]) -> Parsed {
        let mut end = 0_usize;
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            end = bytes.len().min(end.saturating_add(cut));
            let parsed = parse(&bytes[..end.min(MAX_REQUEST)]);
            if parsed != Parsed::Unfinished {
                return parsed;
            }
        }
        Parsed::Unfinished
    }

    /// Requests that are right in most places, and bytes that are not.
    fn anything() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            "(GET|POST|HEAD) (/status|/metrics|/healthz|/|http://x/status) HTTP/1\\.[0-2]\r\n"
                .prop_map(String::into_bytes),
            "(Host|Content-Length|Transfer-Encoding|X): [a-c0-9]{0,4}\r?\n".prop_map(String::into_bytes),
            Just(b"\r\n".to_vec()),
            prop::collection::vec(any::<u8>(), 0..40),
            (0usize..1200).prop_map(|len| vec![b'x'; len]),
        ];
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_get_one_proper_answer(
            bytes in anything(),
            cuts in prop::collection::vec(1usize..200, 0..40),
            head: bool,
        ) {
            let whole = in_pieces(&bytes, &[]);
            prop_assert_eq!(&in_pieces(&bytes, &cuts), &whole);
            prop_assert_eq!(&in_pieces(&bytes, &vec![1; bytes.len()]), &whole);
            let response = match whole {
                Parsed::Unfinished => {
                    prop_assert!(bytes.len() < MAX_REQUEST, "it could never end");
                    Response::timeout()
                }
                Parsed::Request(request) => Response::text(200, format!("{request:?}")),
                Parsed::Refused(response) => response,
            };
            let encoded = response.encode(head);
            let mut headers = [EMPTY_HEADER; 8];
            let mut read = httparse::Response::new(&mut headers);
            let Ok(httparse::Status::Complete(len)) = read.parse(&encoded) else { panic!("no response") };
            prop_assert_eq!(read.code, Some(response.status));
            prop_assert_ne!(read.reason, Some("Unknown"));
            let said = read.headers.iter().find(|header| header.name == "Content-Length").unwrap().value;
            prop_assert_eq!(str::from_utf8(said).unwrap().parse(), Ok(response.content.len()));
            prop_assert_eq!(encoded.len() - len, if head { 0 } else { response.content.len() });
        }
    }
}
