//! An arbiter that refuses: what it says, and what can be done about it.

use alloc::string::String;
use core::fmt;

use super::json::{BadJson, Reader};

/// The longest that is quoted, in characters.
const MAX_QUOTE: usize = 160;

const NO_AUTHENTICATION: &str = "it wants authentication, which Pollux does not have: use an etcd without it, or \
                                 switch it off there (etcdctl auth disable)";

/// Parts of what an etcd says, and what to do. See: etcd 3.4, `etcdserver/api/v3rpc/rpctypes/error.go`.
const ADVICE: [(&str, &str); 8] = [
    (
        "database space exceeded",
        "it is full: make room there (etcdctl compact, defrag) or raise its quota, then etcdctl alarm disarm",
    ),
    ("corrupt", "its members do not agree about their data: repair it, then etcdctl alarm disarm"),
    ("user name is empty", NO_AUTHENTICATION),
    ("invalid auth token", NO_AUTHENTICATION),
    ("permission denied", NO_AUTHENTICATION),
    (
        "HTTPS server",
        "it wants TLS, which Pollux does not have: let it listen without (http://) on the machines' network",
    ),
    ("no leader", "most of its members are down or cut off"),
    ("timed out", "most of its members are down or cut off, or its disk is too slow"),
];

/// A response whose status is not 200.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: u16,
    /// What the arbiter says; printable and short; empty if that is nothing.
    pub said: String,
}

impl Refusal {
    /// Reads the body of a response with this status: etcd's JSON, or the first line of any other text.
    #[must_use]
    pub fn new(status: u16, body: &[u8]) -> Self {
        let text = message(body).unwrap_or_else(|BadJson| {
            let line = body.split(|&byte| byte == b'\n').next().unwrap_or_default();
            String::from_utf8_lossy(line).into_owned()
        });
        Self { status, said: text.chars().filter(|c| !c.is_control()).take(MAX_QUOTE).collect() }
    }

    /// What can be done about it, as far as is known.
    #[must_use]
    pub fn advice(&self) -> Option<&'static str> {
        ADVICE.iter().find(|(part, _)| self.said.contains(part)).map(|(_, advice)| *advice)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.said.as_str() {
            "" => write!(f, "the arbiter answers with HTTP status {}", self.status)?,
            said => write!(f, "the arbiter says \"{said}\" (HTTP status {})", self.status)?,
        }
        self.advice().map_or(Ok(()), |advice| write!(f, "; {advice}"))
    }
}

/// What etcd's JSON for an error says.
fn message(body: &[u8]) -> Result<String, BadJson> {
    let mut found = [None, None];
    let mut reader = Reader::new(body);
    reader.object(|reader, name| {
        let place = match name {
            "message" => 0,
            "error" => 1,
            _ => return reader.skip(),
        };
        found[place] = reader.string_if_one()?;
        Ok(())
    })?;
    reader.finish()?;
    found.into_iter().flatten().find(|text| !text.is_empty()).ok_or(BadJson)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use proptest::prelude::*;

    #[test]
    fn etcd_is_quoted_and_advice_is_given() {
        let full = "etcdserver: mvcc: database space exceeded";
        for body in [
            "{\"error\":\"etcdserver: mvcc: database space exceeded\",\
             \"message\":\"etcdserver: mvcc: database space exceeded\",\"code\":8}",
            "{\"error\":\"etcdserver: mvcc: database space exceeded\",\"code\":8}",
            "{\"code\":8, \"message\":\"etcdserver: mvcc: database space exceeded\", \"details\":[]}",
            "{\"error\":{\"x\":[1]}, \"message\":\"etcdserver: mvcc: database space exceeded\"}",
        ] {
            let refusal = Refusal::new(429, body.as_bytes());
            assert_eq!(refusal.said, full, "{body}");
            assert!(refusal.to_string().contains("(HTTP status 429); it is full"), "{refusal}");
        }
        let body = "{\"error\":\"etcdserver: user name is empty\",\"code\":3}";
        let text = Refusal::new(400, body.as_bytes()).to_string();
        assert!(text.contains("user name is empty") && text.contains("wants authentication"), "{text}");
        let text = Refusal::new(400, b"Client sent an HTTP request to an HTTPS server.\n").to_string();
        assert!(text.contains("HTTPS server.\"") && text.contains("wants TLS"), "{text}");
    }

    #[test]
    fn what_says_nothing_is_told_by_its_status() {
        for body in ["", "\n\n", "\u{1}\u{7f}"] {
            let text = Refusal::new(503, body.as_bytes()).to_string();
            assert_eq!(text, "the arbiter answers with HTTP status 503");
        }
        assert_eq!(Refusal::new(500, b"{\"x\":1}").said, "{\"x\":1}");
    }

    proptest! {
        #[test]
        fn any_body_is_short_and_printable(status: u16, body: Vec<u8>) {
            let said = Refusal::new(status, &body).said;
            prop_assert!(said.chars().count() <= MAX_QUOTE && !said.chars().any(char::is_control));
        }
    }
}
