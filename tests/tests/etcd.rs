//! A real etcd as the arbiter, where one is installed (Debian: etcd-server), and arbiters that take each other's place.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pollux_tests::arbiter::{Desk, free, keys, wait_trouble};
use pollux_tests::load::{Load, judge, wait_answers};
use pollux_tests::rig::{Rig, START_LIMIT, TAKEOVER_LIMIT, fresh_directory};
use pollux_tests::skip;

/// An etcd of one node; ended when dropped.
struct Etcd {
    process: Child,
    directory: PathBuf,
    clients: String,
    peers: String,
    options: &'static [&'static str],
}

impl Etcd {
    /// At free addresses, with data of its own in the directory of test `name`; none where there is no etcd.
    fn fresh(name: &str, options: &'static [&'static str]) -> Result<Option<Self>> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            return skip("etcd is not installed (cargo xtask doctor --yes)").map(|()| None);
        }
        Self::start(&fresh_directory(name)?, free()?, free()?, options).map(Some)
    }

    fn start(directory: &Path, clients: String, peers: String, options: &'static [&'static str]) -> Result<Self> {
        let log = File::create(directory.join("etcd.log"))?;
        let (at, between) = (format!("http://{clients}"), format!("http://{peers}"));
        let mut command = Command::new("etcd");
        command.args(["--name", "one", "--data-dir"]).arg(directory.join("data"));
        command.args(["--listen-client-urls", &at, "--advertise-client-urls", &at]);
        command.args(["--listen-peer-urls", &between, "--initial-advertise-peer-urls", &between]);
        command.args(["--initial-cluster", &format!("one={between}")]).args(options);
        let process = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("etcd")?;
        let etcd = Self { process, directory: directory.to_owned(), clients, peers, options };
        let deadline = Instant::now() + START_LIMIT;
        // It listens long before it serves.
        while !etcd.is_healthy() {
            ensure!(Instant::now() < deadline, "etcd does not serve at {}", etcd.clients);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(etcd)
    }

    /// What `--arbiter` calls it.
    fn name(&self) -> String {
        format!("etcd://{}", self.clients)
    }

    fn is_healthy(&self) -> bool {
        self.ask("GET /health", "").is_ok_and(|answer| answer.contains("\"true\""))
    }

    /// The whole answer to a request.
    fn ask(&self, what: &str, body: &str) -> Result<String> {
        let mut stream = TcpStream::connect(&self.clients)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let length = body.len();
        write!(stream, "{what} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// A call that must succeed.
    fn call(&self, path: &str, body: &str) -> Result<()> {
        let answer = self.ask(&format!("POST /v3/{path}"), body)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        Ok(())
    }

    /// Writes until it takes no more.
    fn fill(&self) -> Result<()> {
        let value = "AAAA".repeat(200_000);
        for key in 1000..1100 {
            let answer = self.ask("POST /v3/kv/put", &format!("{{\"key\":\"{key}\",\"value\":\"{value}\"}}"))?;
            if answer.starts_with("HTTP/1.1 429") {
                return Ok(());
            }
        }
        bail!("etcd takes everything");
    }

    /// Forgets what filled it, and what it was warned of.
    fn make_room(&self) -> Result<()> {
        // The keys of `fill`, in base64.
        self.call("kv/deleterange", "{\"key\":\"1000\",\"range_end\":\"1100\"}")?;
        self.call("kv/compaction", "{\"revision\":\"10\",\"physical\":true}")?;
        self.call("maintenance/defragment", "{}")?;
        // An alarm is disarmed for each member by name.
        let alarms = self.ask("POST /v3/maintenance/alarm", "{}")?;
        let member = alarms.split("\"memberID\":\"").nth(1).and_then(|rest| rest.split('"').next());
        let member = member.with_context(|| format!("no alarm: {alarms}"))?;
        let disarm = format!("{{\"action\":\"DEACTIVATE\",\"alarm\":\"NOSPACE\",\"memberID\":\"{member}\"}}");
        self.call("maintenance/alarm", &disarm)
    }

    fn want_authentication(&self) -> Result<()> {
        self.call("auth/user/add", "{\"name\":\"root\",\"password\":\"x\"}")?;
        self.call("auth/user/grant", "{\"user\":\"root\",\"role\":\"root\"}")?;
        self.call("auth/enable", "{}")
    }

    fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// The same data, at the same addresses.
    fn start_again(&self) -> Result<Self> {
        Self::start(&self.directory, self.clients.clone(), self.peers.clone(), self.options)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

#[test]
fn an_etcd_decides_who_goes_live() -> Result<()> {
    let Some(mut etcd) = Etcd::fresh("etcd-data", &[])? else { return Ok(()) };
    let mut rig = Rig::protected("etcd", "counter", &["--arbiter", &etcd.name()])?;
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    for term in 2..=3 {
        wait_answers(&mut rig, &load, 10)?;
        let heir = rig.file()?.machine("backup")?.name.clone();
        if term == 3 {
            // Without it nobody goes live, and nothing is lost.
            etcd.kill()?;
        }
        rig.kill("primary")?;
        if term == 3 {
            rig.wait("a question in vain", TAKEOVER_LIMIT, |rig| {
                Ok(rig.status()?.of(&heir).filter(|status| status.arbiter.failures > 0).map(drop))
            })?;
            ensure!(rig.file()?.machine(&heir)?.role == "backup");
            etcd = etcd.start_again()?;
        }
        rig.wait_role(&heir, "primary", TAKEOVER_LIMIT)?;
        wait_answers(&mut rig, &load, 10)?;
        let reached = rig.fresh("primary")?.term;
        ensure!(reached == term, "term {reached} after takeover into term {term}");
        rig.start_backup()?;
    }
    judge(load)?;
    rig.stop()
}

#[test]
fn an_etcd_of_no_use_is_told_of_before_it_is_needed() -> Result<()> {
    const FULL: &str = "etcdserver: mvcc: database space exceeded";
    const BOTH: [&str; 2] = ["castor", "pollux"];
    let Some(etcd) = Etcd::fresh("etcd-full-data", &["--quota-backend-bytes=16777216"])? else { return Ok(()) };
    let name = etcd.name();
    let watch = ["--arbiter", &name, "--hypervisor-option", "arbiter-watch=1s"];
    let mut rig = Rig::protected("etcd-full", "counter", &watch)?;
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    wait_answers(&mut rig, &load, 10)?;
    wait_trouble(&mut rig, &BOTH, "")?;
    etcd.fill()?;
    wait_trouble(&mut rig, &BOTH, FULL)?;
    ensure!(rig.status()?.notice("arbiter-trouble").is_some_and(|notice| notice.contains(FULL)));
    // Nobody goes live, and the reason is told again; when there is room, all goes on.
    let heir = rig.file()?.machine("backup")?.name.clone();
    rig.kill("primary")?;
    rig.wait("a question in vain", TAKEOVER_LIMIT, |rig| {
        Ok(rig.status()?.of(&heir).filter(|status| status.arbiter.failures > 0).map(drop))
    })?;
    ensure!(rig.file()?.machine(&heir)?.role == "backup");
    let log = rig.read(&format!("{heir}.log"));
    ensure!(log.contains("asking the arbiter") && log.contains(&format!("\"{FULL}\" (HTTP status 429)")), "{log}");
    etcd.make_room()?;
    rig.wait_role(&heir, "primary", TAKEOVER_LIMIT)?;
    wait_answers(&mut rig, &load, 10)?;
    wait_trouble(&mut rig, &[&heir], "")?;
    ensure!(rig.status()?.notice("arbiter-well").is_some());
    rig.start_backup()?;
    etcd.want_authentication()?;
    wait_trouble(&mut rig, &BOTH, "wants authentication")?;
    judge(load)?;
    rig.stop()?;
    // Nor does a rig start with it.
    let mut refused = Rig::start("etcd-guarded", "counter", &watch)?;
    let end = refused.wait_end(START_LIMIT)?;
    let said = refused.read("xtask.log");
    ensure!(!end.success() && said.contains("user name is empty") && said.contains("etcdctl auth disable"), "{said}");
    Ok(())
}

/// Another arbiter in the place of theirs could grant a term a second time: its word does not count.
#[test]
fn an_arbiter_that_has_forgotten_everything_is_another_one() -> Result<()> {
    const STRANGER: &str = "the twins agreed on";
    let directory = fresh_directory("forgetful-data")?;
    let address = free()?;
    let (key, folder) = keys(&directory)?;
    let theirs = Desk::start(&address, &directory.join("theirs"), &folder)?;
    let key = key.to_str().context("a path that is no text")?;
    let watch = ["--arbiter", &address, "--key", key, "--hypervisor-option", "arbiter-watch=1s"];
    let mut rig = Rig::protected("forgetful", "counter", &watch)?;
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    wait_answers(&mut rig, &load, 10)?;
    wait_trouble(&mut rig, &["castor", "pollux"], "")?;
    drop(theirs);
    let other = Desk::start(&address, &directory.join("other"), &folder)?;
    wait_trouble(&mut rig, &["castor", "pollux"], STRANGER)?;
    let heir = rig.file()?.machine("backup")?.name.clone();
    rig.kill("primary")?;
    rig.wait("a question in vain", TAKEOVER_LIMIT, |rig| {
        Ok(rig.status()?.of(&heir).filter(|status| status.arbiter.failures > 1).map(drop))
    })?;
    ensure!(rig.file()?.machine(&heir)?.role == "backup", "a stranger's grant was taken");
    drop(other);
    let _theirs = Desk::start(&address, &directory.join("theirs"), &folder)?;
    rig.wait_role(&heir, "primary", TAKEOVER_LIMIT)?;
    wait_answers(&mut rig, &load, 10)?;
    judge(load)?;
    rig.stop()
}
