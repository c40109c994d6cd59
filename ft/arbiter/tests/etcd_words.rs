//! The arbiter in etcd's plain words: the same questions to ours and to a real etcd, and what only ours must stand.
//!
//! The part with etcd is skipped, with a message, where there is no `etcd` (Debian: `etcd-server`) in the path.

mod machine;
mod own;
mod race;
mod server;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use own::{command, desk};
use pollux_ft::arbiter::{Answer, Ask, Failure, Look, Manner, Question, Seen, Try, Winner};
use pollux_ft::{NodeId, Term};
use race::race;
use serde_json::Value;
use server::{PATIENCE, Server};

fn ours(file: &Path) -> Server {
    own::start(file, None)
}

/// An etcd with its data in `directory`; none if there is no etcd.
fn etcd(directory: &Path) -> Option<Server> {
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (address, peers) = (free(), format!("http://{}", free()));
    let client = format!("http://{address}");
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(directory).args([
        "--listen-client-urls",
        &client,
        "--advertise-client-urls",
        &client,
    ]);
    command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
    command.args(["--initial-cluster", &format!("default={peers}")]);
    let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(process) = process else {
        println!("SKIPPED: etcd is not installed (cargo xtask doctor --yes)");
        return None;
    };
    let server = Server { process, address };
    let healthy = || raw(address, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").contains("\"true\"");
    let deadline = Instant::now() + PATIENCE;
    while !healthy() {
        assert!(Instant::now() < deadline, "etcd does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    Some(server)
}

/// Sends bytes and returns all that comes back; nothing if nobody is there.
fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut text = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(request);
        let _ = stream.read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn question(term: u64, node: u64, machine: &str) -> Question {
    Question::new("test-pair", Term(term), NodeId(node), machine)
}

/// One try as a machine makes it, in pieces of `piece` bytes in both directions.
fn ask<A: Ask>(address: SocketAddr, question: &A, piece: usize) -> Result<A::Answer, Failure> {
    machine::ask(address, &Manner::Etcd, question, piece)
}

fn taken_by(node: u64, machine: &str) -> Result<Answer, Failure> {
    Ok(Answer::Taken { by: Winner { node: Some(NodeId(node)), machine: machine.into() } })
}

/// What every arbiter must do.
fn suite(address: SocketAddr) {
    // A look changes nothing, before and after.
    let look = Look::new("test-pair");
    let looks = |piece| matches!(ask(address, &look, piece), Ok(Seen { arbiter: Some(_), newest: None }));
    assert!(looks(4096) && looks(1));
    let mut newest = look.clone();
    newest.want_newest(true);
    let newest = |piece| ask(address, &newest, piece).map(|seen| seen.newest);
    assert_eq!(newest(4096), Ok(Some(Term(0))));
    let (castor, pollux) = (question(1, 0xC, "castor"), question(1, 0xD, "pollux"));
    assert_eq!(ask(address, &castor, 4096), Ok(Answer::Granted));
    assert_eq!(ask(address, &castor, 4096), Ok(Answer::Granted), "the answer may have been lost");
    assert_eq!(ask(address, &pollux, 4096), taken_by(0xC, "castor"));
    assert_eq!(ask(address, &pollux, 1), taken_by(0xC, "castor"));
    // Another term, and another pair.
    assert_eq!(ask(address, &question(2, 0xD, "pollux"), 7), Ok(Answer::Granted));
    assert_eq!(ask(address, &question(10, 0xD, "pollux"), 1), Ok(Answer::Granted));
    let other = Question::new("other-pair", Term(1), NodeId(0xE), "helen");
    assert_eq!(ask(address, &other, 4096), Ok(Answer::Granted));
    assert!(looks(4096));
    // The newest of this pair's, though the keys of terms are not in the order of their numbers.
    assert_eq!((newest(4096), newest(1)), (Ok(Some(Term(10))), Ok(Some(Term(10)))));
    compete(address);
}

/// The status and the body of the answer to a call.
fn post(address: SocketAddr, path: &str, body: &str) -> (u16, Value) {
    let length = body.len();
    // By HTTP/1.0, so that the body ends with the connection.
    let answer = raw(address, format!("POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").expect(&answer);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect(head);
    (status, serde_json::from_str(body).unwrap_or_default())
}

/// Calls that both must answer alike, in this order: `$K` and so on are keys in base64. Not among them is what etcds
/// differ in: 3.4 takes `null` as a body and two kinds of value in one comparison, but no target in small letters and none
/// whose number is a string; 3.5.16 the other way round.
const CALLS: &[(&str, &str)] = &[
    (
        "txn",
        r#"{"compare":[{"target":"CREATE","result":"EQUAL","key":"$K","createRevision":"0"}],"success":[{"requestPut":{"key":"$K","value":"$V"}}],"failure":[{"requestRange":{"key":"$K"}}]}"#,
    ),
    (
        "txn",
        r#"{"compare":[{"target":1,"result":0,"key":"$K","create_revision":0}],"success":[{"request_put":{"key":"$K","value":"$V"}}],"failure":[{"request_range":{"key":"$K"}}]}"#,
    ),
    ("txn", r#"{"success":[{"request_put":{"key":"$L","value":""}},{"request_range":{"key":"$L"}}]}"#),
    ("txn", "{}"),
    ("txn", ""),
    ("txn", "[]"),
    ("txn", "{"),
    ("txn", r#"{"compare":null,"success":null}"#),
    ("txn", r#"{"compare":[{}]}"#),
    ("txn", r#"{"compare":[{"key":null,"target":null}]}"#),
    ("txn", r#"{"success":[{}]}"#),
    ("txn", r#"{"success":[{"request_range":{}}]}"#),
    ("txn", r#"{"success":[{"request_put":{"value":"$V"}}]}"#),
    ("txn", r#"{"success":[{"request_put":{"key":"!"}}]}"#),
    ("txn", r#"{"compare":[{"key":"$K","version":1}]}"#),
    ("txn", r#"{"compare":[{"key":"$K","version":1.5}]}"#),
    ("txn", r#"{"compare":[{"key":"$K","version":"x"}]}"#),
    ("txn", r#"{"compare":[{"key":"$K","version":99999999999999999999}]}"#),
    ("txn", r#"{"compare":[{"key":"$K","target":"CREATE","version":1}]}"#),
    (
        "txn",
        r#"{"compare":[{"key":"$K","target":"CREATE","create_revision":-1}],"success":[{"request_put":{"key":"$N"}}]}"#,
    ),
    ("txn", r#"{"compare":[{"key":"$K","target":"MOD","result":"GREATER","mod_revision":1}]}"#),
    ("txn", r#"{"compare":[{"key":"$K","target":"MOD","result":"LESS","modRevision":"1"}]}"#),
    ("txn", r#"{"compare":[{"key":"$K","target":"VALUE","result":"NOT_EQUAL","value":"$V"}]}"#),
    ("txn", r#"{"compare":[{"key":"$N","target":"VALUE","value":""}]}"#),
    ("txn", r#"{"compare":[{"key":"$K","target":"LEASE","lease":0}]}"#),
    ("range", r#"{"key":"$K"}"#),
    ("range", r#"{"key":"$L"}"#),
    ("range", r#"{"key":"$N"}"#),
    ("range", "{}"),
    ("range", ""),
    ("range", r#"{"key":"AA==","rangeEnd":"AA=="}"#),
    ("range", r#"{"key":"$K","range_end":"AA=="}"#),
    ("range", r#"{"key":"AA==","range_end":"AA==","limit":1}"#),
    ("range", r#"{"key":"AA==","range_end":"AA==","limit":"0","serializable":true}"#),
    ("range", r#"{"key":"AA==","range_end":"AA==","countOnly":true}"#),
    ("range", r#"{"key":"AA==","range_end":"AA==","keys_only":true}"#),
    ("range", r#"{"key":"AA==","range_end":"AA==","sort_order":"DESCEND","sort_target":"MOD"}"#),
    ("range", r#"{"key":"AA==","range_end":"AA==","sortOrder":2,"sortTarget":0,"limit":1}"#),
];

/// What a client would notice: all but who answers, and the wording of what is malformed. What is wrong stands in
/// `message`; etcd 3.4 says it in `error` as well, 3.5.16 no more.
fn essence((status, mut body): (u16, Value)) -> (u16, Value) {
    if let Some(header) = body.get_mut("header").and_then(Value::as_object_mut) {
        for name in ["cluster_id", "member_id", "raft_term"] {
            assert!(header.remove(name).is_some_and(|value| value.is_string()), "{name}");
        }
    }
    if status != 200 {
        assert!(body["message"].is_string(), "{body}");
        assert!(body.get("error").is_none_or(|error| *error == body["message"]), "{body}");
        body = body["code"].clone();
    }
    (status, body)
}

#[test]
fn ours_answers_as_etcd_does() {
    let (directory, file) = desk();
    let ours = ours(&file);
    let Some(etcd) = etcd(directory.path()) else { return };
    let mut differences = Vec::new();
    for (call, body) in CALLS {
        let body = body.replace("$K", "a2s=").replace("$L", "bGw=").replace("$N", "bm4=").replace("$V", "dnY=");
        let answer = |server: &Server| essence(post(server.address, &format!("/v3/kv/{call}"), &body));
        let (ours, etcds) = (answer(&ours), answer(&etcd));
        if ours != etcds {
            differences.push(format!("{call} {body}\n  ours {ours:?}\n  etcd {etcds:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Of many that ask at once, one wins each term, and all hear of the same one.
fn compete(address: SocketAddr) {
    for term in 100..110 {
        race(term, |node| ask(address, &question(term, node, "racer"), 4096).unwrap());
    }
}

#[test]
fn ours_gives_each_term_once() {
    let (_directory, file) = desk();
    suite(ours(&file).address);
}

#[test]
fn etcd_gives_each_term_once() {
    let (directory, _) = desk();
    if let Some(server) = etcd(directory.path()) {
        suite(server.address);
    }
}

#[test]
fn nothing_granted_is_forgotten_when_the_power_fails() {
    let (_directory, file) = desk();
    for term in 1..=10 {
        let server = ours(&file);
        assert_eq!(ask(server.address, &question(term, term, "castor"), 4096), Ok(Answer::Granted));
        // With a request half sent.
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(&question(term + 1, 99, "pollux").request("x")[..150]).unwrap();
        drop(server);
        let server = ours(&file);
        for term in 1..=term {
            let answer = ask(server.address, &question(term, 99, "pollux"), 4096);
            assert_eq!(answer, taken_by(term, "castor"));
        }
    }
}

/// Killed at any moment under load, it forgets no term that it granted, and grants none twice.
#[test]
fn kills_under_load_split_no_term() {
    let (_directory, file) = desk();
    let mut granted = Vec::new();
    for round in 0..5u64 {
        let server = ours(&file);
        let address = server.address;
        let asker = std::thread::spawn(move || {
            let mut won = Vec::new();
            for term in round * 1000 + 1.. {
                let question = question(term, round, "castor");
                let Ok(mut stream) = TcpStream::connect(address) else { return won };
                let (mut attempt, mut text) = (Try::default(), Vec::new());
                let _ = stream.write_all(&question.request("x"));
                let _ = stream.read_to_end(&mut text);
                match attempt.receive(&question, &text) {
                    Ok(Some(Answer::Granted)) => won.push((term, round)),
                    Ok(Some(answer)) => panic!("{answer:?}"),
                    _ => return won,
                }
            }
            won
        });
        std::thread::sleep(Duration::from_millis(100 + 37 * round));
        drop(server);
        granted.extend(asker.join().unwrap());
    }
    assert!(granted.len() > 10, "{granted:?}");
    let server = ours(&file);
    for (term, node) in granted {
        assert_eq!(ask(server.address, &question(term, 99, "pollux"), 4096), taken_by(node, "castor"));
    }
}

#[test]
fn people_and_strangers_get_answers() {
    let (_directory, file) = desk();
    let server = ours(&file);
    assert_eq!(ask(server.address, &question(1, 0xC, "castor"), 4096), Ok(Answer::Granted));
    let post = |path: &str, body: &str| {
        let length = body.len();
        raw(server.address, format!("POST {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes())
    };
    // `pollux/` to `pollux0`.
    let listed = post("/v3/kv/range", "{\"key\":\"cG9sbHV4Lw==\",\"range_end\":\"cG9sbHV4MA==\"}");
    assert!(listed.starts_with("HTTP/1.1 200 ") && listed.contains("\"count\":\"1\""), "{listed}");
    for (path, body, status) in [
        ("/v3/kv/txn", "{", 400),
        ("/v3/kv/txn", "{\"success\":[{\"request_delete_range\":{}}]}", 400),
        ("/v3/kv/put", "{}", 501),
        ("/v3/maintenance/status", "{}", 501),
        ("/v2/keys", "{}", 404),
        ("/health", "", 405),
    ] {
        let response = post(path, body);
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {response}");
    }
    assert!(raw(server.address, b"nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
    // Those who connect and say nothing do not keep others from being served.
    let _silent: Vec<_> = (0..20).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    assert_eq!(ask(server.address, &question(1, 0xD, "pollux"), 4096), taken_by(0xC, "castor"));
}

#[test]
fn a_file_that_cannot_be_trusted_is_refused() {
    let text = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let (_directory, file) = desk();
    let server = ours(&file);
    let second = command(&file, None).output().unwrap();
    assert!(!second.status.success() && text(&second).contains("another arbiter"), "{}", text(&second));
    drop(server);
    // A line with a wrong checksum, and a file of an older form.
    for (content, named) in [
        ("pollux arbiter 2 00000000000000ab\n0000000000000000 pollux/p/1 x\n", "line 2"),
        ("pollux arbiter 1\n", "does not begin with `pollux arbiter 2`"),
    ] {
        std::fs::write(&file, content).unwrap();
        let refused = command(&file, None).output().unwrap();
        assert!(!refused.status.success() && text(&refused).contains(named), "{}", text(&refused));
    }
}
