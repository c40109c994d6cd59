//! Asks an etcd, or an arbiter that speaks as one, which terms it has given.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;

use crate::ledger::{Holding, keys_of, newest};

/// How long it may take to connect, and to be silent.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer in bytes.
const MAX_ANSWER: u64 = 16 << 20;

#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    kvs: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    key: String,
    #[serde(default)]
    value: String,
}

/// The newest term that the arbiter at `address` has given to a machine of `pair`.
///
/// # Errors
/// When nobody answers there, or not as etcd does.
pub fn newest_at(address: SocketAddr, pair: &str) -> Result<Option<Holding>> {
    let [first, end] = keys_of(pair);
    let body = json!({ "key": STANDARD.encode(first), "range_end": STANDARD.encode(end) }).to_string();
    let text = post(address, "/v3/kv/range", &body).with_context(|| format!("cannot ask the arbiter at {address}"))?;
    let answer: Answer = serde_json::from_str(&text).context("the arbiter's answer is not etcd's")?;
    let decode = |text: &str| STANDARD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let keys: Vec<_> = answer.kvs.iter().filter_map(|kv| Some((decode(&kv.key)?, decode(&kv.value)?))).collect();
    Ok(newest(pair, keys.iter().map(|(key, value)| (key.as_str(), value.as_str()))))
}

/// By HTTP/1.0, so that the body ends with the connection.
fn post(address: SocketAddr, path: &str, body: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = body.len();
    stream.write_all(format!("POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes())?;
    let mut text = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP response")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "{}", refusal(status, body));
    Ok(body.to_owned())
}

/// What an arbiter means that does not answer with status 200. See: etcd 3.4, `rpctypes/error.go`.
fn refusal(status: &str, body: &str) -> String {
    #[derive(Deserialize)]
    struct Told {
        message: Option<String>,
        error: Option<String>,
    }
    const AUTHENTICATION: [&str; 3] = ["user name is empty", "invalid auth token", "permission denied"];
    let told = serde_json::from_str(body).ok().and_then(|Told { message, error }| message.or(error));
    let said = told.unwrap_or_else(|| body.lines().next().unwrap_or_default().to_owned());
    let mut text = format!("it says {:?} ({})", said.chars().take(160).collect::<String>(), status.trim());
    if AUTHENTICATION.iter().any(|part| said.contains(part)) {
        text += "; it wants authentication, which Pollux does not have: use an etcd without it, or switch it off there \
                 (etcdctl auth disable)";
    } else if said.contains("HTTPS server") {
        text += "; it wants TLS, which Pollux does not have: let it listen without (http://)";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Service, Store, Words};

    #[test]
    fn the_newest_term_is_found_from_afar() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        let mut store = Store::open(&file).unwrap();
        for key in ["pollux/p/2", "pollux/p/10", "pollux/q/99", "pollux/p/x"] {
            store.create(key, "00 castor").unwrap();
        }
        drop(store);
        let service = Service::start("127.0.0.1:0".parse().unwrap(), &file, Words::Etcd).unwrap();
        let address = service.address();
        assert_eq!(newest_at(address, "p").unwrap(), Some(Holding { term: 10, winner: "00 castor".into() }));
        assert_eq!(newest_at(address, "none").unwrap(), None);
        drop(service);
        assert!(newest_at(address, "p").unwrap_err().to_string().contains("cannot ask the arbiter"));
    }

    #[test]
    fn a_refusal_is_quoted_with_advice() {
        let etcd =
            "{\"error\":\"etcdserver: user name is empty\",\"message\":\"etcdserver: user name is empty\",\"code\":3}";
        let text = refusal("HTTP/1.0 400 Bad Request", etcd);
        for part in
            ["\"etcdserver: user name is empty\"", "400 Bad Request", "wants authentication", "etcdctl auth disable"]
        {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let text = refusal("HTTP/1.0 400 Bad Request", "Client sent an HTTP request to an HTTPS server.\n");
        assert!(text.contains("wants TLS"), "{text}");
        assert_eq!(refusal("HTTP/1.0 503 x", ""), "it says \"\" (HTTP/1.0 503 x)");
    }
}
