//! Arbiters in front of a real etcd cluster, over TLS with client certificates; skipped where there is no etcd.

mod etcd;
mod machine;
mod race;
mod server;
mod slow;

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use etcd::{Authority, Cluster, MEMBERS};
use pollux_arbiter::keys::{self, Pair};
use pollux_arbiter::{Holding, newest_at};
use pollux_ft::arbiter::{Answer, ArbiterId, Ask, Failure, Look, Manner, Question, Seen, Winner};
use pollux_ft::{NodeId, PairKey, Term};
use race::race;
use server::{PATIENCE, Server, program, serve};

const SECRET: [u8; 32] = [1; 32];

/// Arbiters in front of one cluster.
struct Desk {
    cluster: Cluster,
    keys: PathBuf,
    directory: tempfile::TempDir,
}

impl Desk {
    /// None where there is no etcd. One of its members has little room.
    fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let cluster = Cluster::start(directory.path(), Some(1)).unwrap()?;
        let keys = directory.path().join("keys");
        std::fs::DirBuilder::new().mode(0o700).create(&keys).unwrap();
        keys::write("pair", &SECRET, None, &keys.join("pair")).unwrap();
        Some(Self { cluster, keys, directory })
    }

    fn arbiter(&self) -> Server {
        self.told(&self.cluster.arguments())
    }

    /// One that is told this.
    fn told(&self, arguments: &[String]) -> Server {
        let mut command = program();
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(arguments);
        serve(command.arg("--keys").arg(&self.keys))
    }
}

fn question(term: u64, node: u64) -> Question {
    Question::new("pair", Term(term), NodeId(node), "castor")
}

/// One try, which may end without an answer.
fn ask<A: Ask>(address: SocketAddr, ask: &A) -> Result<A::Answer, Failure> {
    machine::ask(address, &Manner::Sealed((&PairKey::new(&SECRET)).into()), ask, 512)
}

/// As machines ask: again, until there is an answer.
fn win<A: Ask>(address: SocketAddr, question: &A) -> A::Answer {
    until(address, question, |answer| answer.ok())
}

/// Asks again until `found` finds something in what came of it.
fn until<A: Ask, T>(address: SocketAddr, question: &A, found: impl Fn(Result<A::Answer, Failure>) -> Option<T>) -> T {
    let deadline = Instant::now() + 3 * PATIENCE;
    loop {
        if let Some(found) = found(ask(address, question)) {
            return found;
        }
        assert!(Instant::now() < deadline, "no such answer in time");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The text in which the arbiter refuses, once that contains `part`.
fn refused(address: SocketAddr, part: &str) -> String {
    until(address, &Look::new("pair"), |answer| match answer {
        Err(Failure::Told(why)) if why.contains(part) => Some(why),
        _ => None,
    })
}

fn taken_by(node: u64) -> Answer {
    Answer::Taken { by: Winner { node: Some(NodeId(node)), machine: "castor".into() } }
}

fn store(address: SocketAddr) -> ArbiterId {
    win(address, &Look::new("pair")).arbiter.unwrap()
}

/// Many ask both arbiters at once.
fn compete(arbiters: [SocketAddr; 2], term: u64) {
    race(term, |node| win(arbiters[node as usize % 2], &question(term, node)));
}

#[test]
fn arbiters_in_front_of_a_cluster_are_one() {
    let Some(mut desk) = Desk::start() else { return };
    let arbiters = [desk.arbiter(), desk.arbiter()];
    let [one, two] = [0, 1].map(|n: usize| arbiters[n].address);
    let id = store(one);
    assert_eq!(store(two), id, "two arbiters in front of one store are one");
    assert_eq!(win(one, &question(1, 0xC)), Answer::Granted);
    assert_eq!(win(two, &question(1, 0xC)), Answer::Granted, "the answer may have been lost");
    assert_eq!([one, two].map(|at| win(at, &question(1, 0xD))), [taken_by(0xC), taken_by(0xC)]);
    for term in 2..5 {
        compete([one, two], term);
    }
    assert_eq!(win(one, &question(10, 0xD)), Answer::Granted);
    assert_eq!(win(two, &question(9, 0xC)), Answer::Granted);
    let newest = Seen { arbiter: Some(id), newest: Some(Term(10)) };
    assert_eq!([one, two].map(|at| win(at, &Look::new("pair"))), [newest; 2]);
    // Each member may die; whoever asks again hears what it would have heard.
    for member in 0..MEMBERS {
        desk.cluster.kill(member).unwrap();
        compete([one, two], 20 + member as u64);
        assert_eq!(win(one, &question(1, 0xD)), taken_by(0xC));
        desk.cluster.revive(member).unwrap();
        compete([one, two], 30 + member as u64);
    }
    // Without a majority there is no term, and machines hear why; then it goes on, and so it does behind other arbiters.
    desk.cluster.kill(0).unwrap();
    desk.cluster.kill(2).unwrap();
    for at in [one, two] {
        let why = refused(at, "etcd");
        assert!(matches!(ask(at, &question(40, 0xC)), Err(Failure::Told(_))), "{why}");
    }
    drop(arbiters);
    let late = desk.arbiter();
    for member in [0, 2] {
        desk.cluster.revive(member).unwrap();
    }
    assert_eq!(win(late.address, &question(40, 0xD)), Answer::Granted);
    assert_eq!((win(late.address, &question(1, 0xD)), store(late.address)), (taken_by(0xC), id));
    // One member is full: then none writes, and it is told beforehand. What was given stays given.
    desk.cluster.fill().unwrap();
    refused(late.address, "database space exceeded");
    assert!(matches!(ask(late.address, &question(41, 0xC)), Err(Failure::Told(_))));
    assert_eq!(win(late.address, &question(40, 0xC)), taken_by(0xD));
    desk.cluster.make_room().unwrap();
    assert_eq!(win(late.address, &question(41, 0xC)), Answer::Granted);
    people_see_the_terms(&desk, late.address);
    // A cluster that begins anew, with the same names at the same addresses, is another one.
    for member in 0..MEMBERS {
        desk.cluster.kill(member).unwrap();
        std::fs::remove_dir_all(desk.cluster.data(member)).unwrap();
    }
    for member in 0..MEMBERS {
        desk.cluster.revive(member).unwrap();
    }
    let other = until(late.address, &Look::new("pair"), |answer| answer.ok().filter(|seen| seen.arbiter != Some(id)));
    assert_eq!(other.newest, Some(Term(0)));
    let mut agreed = question(1, 0xD);
    agreed = agreed.of(Some(id));
    assert!(matches!(ask(late.address, &agreed), Err(Failure::Stranger { .. })));
}

/// A cluster whose rounds take 160 ms answers a look in time, and a question the second time at the latest; machines that wait for
/// longer, and an arbiter that knows it, need one try.
#[test]
fn a_slow_cluster_answers_who_waits_for_it() {
    let Some(desk) = Desk::start() else { return };
    let slow = desk.cluster.arguments_by(|member| slow::relay(member, Duration::from_millis(80)));
    let usual = desk.told(&slow);
    let id = store(usual.address);
    assert_eq!(win(usual.address, &question(1, 0xC)), Answer::Granted);
    assert_eq!(win(usual.address, &question(1, 0xD)), taken_by(0xC));
    let patient = desk.told(&[&slow[..], &["--timeout".to_owned(), "5s".to_owned()]].concat());
    assert_eq!(store(patient.address), id);
    for term in 2..6 {
        assert_eq!(ask(patient.address, &question(term, 0xC)), Ok(Answer::Granted));
    }
}

fn people_see_the_terms(desk: &Desk, at: SocketAddr) {
    let pair = Pair::new("pair", &PairKey::new(&SECRET));
    let winner = "000000000000000c castor".to_owned();
    assert_eq!(newest_at(at, &pair).unwrap(), Some(Holding { term: 41, winner }));
    let output = program().arg("terms").args(desk.cluster.arguments()).output().unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    assert!(listed.contains("pollux/pair/1 000000000000000c castor\n"), "{listed}");
    assert_eq!(listed.lines().count(), 14, "{listed}");
}

/// Neither has the other's word for anything: members take no arbiter without a certificate that they know, and an arbiter
/// takes no member whose certificate it does not know.
#[test]
fn strangers_are_no_cluster_and_no_arbiter() {
    let Some(desk) = Desk::start() else { return };
    let authority = Authority::new(&desk.directory.path().join("strange")).unwrap();
    let strange = authority.sign("arbiter").unwrap();
    let private = |path: &Path| std::process::Command::new("chmod").arg("go=").arg(path).status().unwrap();
    private(&strange.key);
    let told = |change: &[(&str, &Path)]| {
        let mut command = program();
        command.args(["serve", "--listen", "127.0.0.1:0"]).arg("--keys").arg(&desk.keys);
        let mut arguments = desk.cluster.arguments();
        for (name, path) in change {
            let place = arguments.iter().position(|word| word == name).unwrap();
            arguments[place + 1] = path.display().to_string();
        }
        let server = serve(command.args(arguments));
        assert!(matches!(ask(server.address, &question(1, 0xE)), Err(Failure::Told(_))));
        refused(server.address, "etcd")
    };
    // Members may close without a word.
    told(&[("--etcd-cert", &strange.certificate), ("--etcd-key", &strange.key)]);
    let why = told(&[("--etcd-ca", &authority.papers.certificate)]);
    assert!(why.contains("ertificate"), "{why}");
    assert_eq!(win(desk.arbiter().address, &question(1, 0xC)), Answer::Granted, "nobody has taken it");
    // What can never work is refused at once.
    let mut arguments = desk.cluster.arguments();
    arguments[1] = arguments[1].replace("https://", "http://");
    let mut command = program();
    let output = command.args(["serve", "--keys"]).arg(&desk.keys).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("is no https://"), "{said}");
}
