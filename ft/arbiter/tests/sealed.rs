//! The arbiter as the machines of pairs with keys see it, and as everybody else does.

mod machine;
mod own;
mod race;
mod server;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use machine::connect;
use own::{command, desk, start};
use pollux_arbiter::keys::{self, Pair};
use pollux_arbiter::{Holding, newest_at};
use pollux_ft::arbiter::sealed::{ArbiterKey, Call, Pending, Query};
use pollux_ft::arbiter::{Answer, ArbiterId, Ask, Failure, Look, Manner, Question, Seen, Winner};
use pollux_ft::{NodeId, PairKey, Term};
use race::race;
use server::{Server, program};
use tempfile::TempDir;

const PAIR: [u8; 32] = [1; 32];
const OTHER: [u8; 32] = [2; 32];

fn key(secret: [u8; 32]) -> ArbiterKey {
    ArbiterKey::from(&PairKey::new(&secret))
}

/// A folder with the keys of the pairs `pair` and `other`, and a place for the file.
fn pairs() -> (TempDir, PathBuf, PathBuf) {
    let (directory, file) = desk();
    let folder = directory.path().join("keys");
    std::fs::create_dir(&folder).unwrap();
    std::process::Command::new("chmod").arg("go=").arg(&folder).status().unwrap();
    keys::write("pair", &PAIR, None, &folder.join("pair")).unwrap();
    keys::write("other", &OTHER, None, &folder.join("other")).unwrap();
    (directory, file, folder)
}

fn ours(file: &Path, keys: &Path) -> Server {
    start(file, Some(keys))
}

fn question(term: u64, node: u64, machine: &str) -> Question {
    Question::new("pair", Term(term), NodeId(node), machine)
}

/// One try as a machine with this pair's key makes it.
fn ask_with<A: Ask>(address: SocketAddr, secret: [u8; 32], ask: &A, piece: usize) -> Result<A::Answer, Failure> {
    machine::ask(address, &Manner::Sealed(key(secret)), ask, piece)
}

fn ask<A: Ask>(address: SocketAddr, question: &A) -> Result<A::Answer, Failure> {
    ask_with(address, PAIR, question, 4096)
}

fn taken_by(node: u64, machine: &str) -> Result<Answer, Failure> {
    Ok(Answer::Taken { by: Winner { node: Some(NodeId(node)), machine: machine.into() } })
}

/// All that comes back for `bytes`, until the end of the connection.
fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let (mut stream, mut answer) = (connect(address), Vec::new());
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn each_term_is_given_once_and_for_ever() {
    let (_directory, file, folder) = pairs();
    let server = ours(&file, &folder);
    let at = server.address;
    let look = || ask(at, &Look::new("pair")).unwrap();
    let Seen { arbiter: Some(seen), newest: Some(Term(0)) } = look() else { panic!("{:?}", look()) };
    let (castor, pollux) = (question(1, 0xC, "castor"), question(1, 0xD, "pollux"));
    assert_eq!(ask(at, &castor), Ok(Answer::Granted));
    assert_eq!(ask(at, &castor), Ok(Answer::Granted), "the answer may have been lost");
    assert_eq!(ask(at, &pollux), taken_by(0xC, "castor"));
    assert_eq!(ask_with(at, PAIR, &pollux, 1), taken_by(0xC, "castor"));
    assert_eq!(ask(at, &question(10, 0xD, "pollux")), Ok(Answer::Granted));
    // Another pair has terms of its own.
    let other = Question::new("other", Term(1), NodeId(0xE), "helen");
    assert_eq!(ask_with(at, OTHER, &other, 7), Ok(Answer::Granted));
    assert_eq!(
        ask(at, &question(11, 0xD, "pollux").of(Some(ArbiterId(seen.0 ^ 1)))),
        Err(Failure::Stranger { agreed: ArbiterId(seen.0 ^ 1), found: seen })
    );
    let newest = Seen { arbiter: Some(seen), newest: Some(Term(11)) };
    assert_eq!(look(), newest);
    drop(server);
    let again = ours(&file, &folder);
    assert_eq!(ask(again.address, &pollux), taken_by(0xC, "castor"));
    assert_eq!(ask(again.address, &Look::new("pair")), Ok(newest), "it is the same arbiter");
}

/// Of many that ask at once, one wins each term, and all hear of the same one.
#[test]
fn of_many_one_wins() {
    let (_directory, file, folder) = pairs();
    let server = ours(&file, &folder);
    for term in 100..105 {
        race(term, |node| ask(server.address, &question(term, node, "racer")).unwrap());
    }
}

/// Who has no key of a pair, or another pair's, gets no byte, and takes no term.
#[test]
fn strangers_get_no_answer_and_no_term() {
    let (_directory, file, folder) = pairs();
    let server = ours(&file, &folder);
    let at = server.address;
    assert_eq!(ask_with(at, [9; 32], &question(1, 0xE, "eve"), 4096), Err(Failure::Unanswered));
    let genuine = |nonce| Pending::ask(&key(PAIR), question(1, 0xC, "castor").call(), [nonce; 24]).1;
    let record = genuine(1);
    for place in 0..record.len() {
        let mut changed = record.clone();
        changed[place] ^= 1;
        // The other end is closed behind it, so that a longer length waits for nothing.
        assert_eq!(raw(at, &changed), b"", "byte {place}");
    }
    assert_eq!(raw(at, &record[..record.len() - 1]), b"");
    assert_eq!(raw(at, &[&record[..], b"x"].concat()), b"");
    for bytes in [&b"POST /v3/kv/txn HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"[..], b"", &[0xff; 2000]] {
        assert_eq!(raw(at, bytes), b"");
    }
    // The key of one pair is none of another one.
    let greedy =
        Call { pair: "pair".into(), query: Query::Term { term: Term(1), node: NodeId(1), machine: "h".into() } };
    let (pending, record) = Pending::ask(&key(OTHER), greedy, [5; 24]);
    let (_, verdict) = pending.open(&raw(at, &record)).unwrap();
    assert!(format!("{verdict:?}").contains("its pair is pair"), "{verdict:?}");
    assert_eq!(ask(at, &question(1, 0xD, "pollux")), Ok(Answer::Granted), "nobody has taken it");
}

/// A question that somebody recorded and sends again is not answered again: a machine draws another number for each try.
#[test]
fn a_question_sent_again_changes_nothing() {
    let (_directory, file, folder) = pairs();
    let server = ours(&file, &folder);
    let (first, record) = Pending::ask(&key(PAIR), question(1, 0xC, "castor").call(), [1; 24]);
    let answer = raw(server.address, &record);
    assert_eq!(raw(server.address, &record), b"");
    let (second, record) = Pending::ask(&key(PAIR), question(1, 0xC, "castor").call(), [2; 24]);
    assert!(second.open(&answer).is_err());
    let other = raw(server.address, &record);
    assert_ne!(answer[..40], other[..40], "a nonce came twice");
    assert_eq!(first.open(&answer), second.open(&other), "it asks anew");
    assert_eq!(ask(server.address, &question(1, 0xD, "pollux")), taken_by(0xC, "castor"));
}

#[test]
fn connections_that_say_nothing_keep_nobody_out() {
    let (_directory, file, folder) = pairs();
    let server = ours(&file, &folder);
    let half = &Pending::ask(&key(PAIR), question(1, 0xE, "eve").call(), [1; 24]).1[..50];
    let _open: Vec<_> = (0..300)
        .map(|_| {
            let mut stream = connect(server.address);
            let _ = stream.write_all(half);
            stream
        })
        .collect();
    assert_eq!(ask(server.address, &question(1, 0xC, "castor")), Ok(Answer::Granted));
}

#[test]
fn nothing_granted_is_forgotten_when_the_power_fails() {
    let (_directory, file, folder) = pairs();
    for term in 1..=5 {
        let server = ours(&file, &folder);
        assert_eq!(ask(server.address, &question(term, term, "castor")), Ok(Answer::Granted));
        drop(server);
        let server = ours(&file, &folder);
        for term in 1..=term {
            assert_eq!(ask(server.address, &question(term, 99, "pollux")), taken_by(term, "castor"));
        }
    }
}

#[test]
fn people_see_the_terms() {
    let (directory, file, folder) = pairs();
    let server = ours(&file, &folder);
    let (pair, at) = (Pair::new("pair", &PairKey::new(&PAIR)), server.address);
    assert_eq!(newest_at(at, &pair).unwrap(), None);
    for term in [2, 10, 9] {
        assert_eq!(ask(at, &question(term, 0xC, "castor")), Ok(Answer::Granted));
    }
    let winner = "000000000000000c castor".to_owned();
    assert_eq!(newest_at(at, &pair).unwrap(), Some(Holding { term: 10, winner }));
    let strange = Pair::new("pair", &PairKey::new(&[9; 32]));
    assert!(format!("{:#}", newest_at(at, &strange).unwrap_err()).contains("no key of this pair"));
    // The program, with the pair's key in a file; and the terms in the file while it serves.
    let secret = directory.path().join("secret");
    std::fs::write(&secret, PAIR).unwrap();
    let (at, secret, made) = (at.to_string(), secret.to_str().unwrap(), directory.path().join("made"));
    let output = |arguments: &[&str]| {
        let output = program().args(arguments).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (newest, _) = output(&["newest", "--at", &at, "--pair", "pair", "--key", secret]);
    assert_eq!(newest, "pair 10 000000000000000c castor\n");
    let (listed, _) = output(&["terms", "--file", file.to_str().unwrap()]);
    assert_eq!(listed.lines().count(), 3);
    assert!(listed.contains("pollux/pair/9 000000000000000c castor\n"), "{listed}");
    output(&["key", "--pair", "pair", "--key", secret, made.to_str().unwrap()]);
    assert_eq!(std::fs::read(made).unwrap(), std::fs::read(folder.join("pair")).unwrap());
}

#[test]
fn what_it_must_not_start_with_is_refused() {
    let (_directory, file, folder) = pairs();
    let refuses = |command: &mut std::process::Command, named: &str| {
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(named), "{said}");
    };
    refuses(program().args(["serve", "--file"]).arg(&file), "--keys");
    refuses(command(&file, Some(&folder)).arg("--insecure-etcd"), "cannot be used with");
    refuses(&mut command(&file, Some(&file)), "cannot read");
    let _server = ours(&file, &folder);
    refuses(&mut command(&file, Some(&folder)), "another arbiter");
    std::fs::write(folder.join("odd"), "odd").unwrap();
    std::process::Command::new("chmod").arg("go=").arg(folder.join("odd")).status().unwrap();
    refuses(&mut command(&file, Some(&folder)), "is no arbiter's key");
}
