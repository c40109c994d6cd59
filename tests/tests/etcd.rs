//! A real etcd as the arbiter, where one is installed (Debian: etcd-server).

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pollux_tests::load::{Load, judge, wait_answers};
use pollux_tests::rig::{Rig, START_LIMIT, TAKEOVER_LIMIT, fresh_directory};
use pollux_tests::skip;

/// An etcd of one node; ended when dropped.
struct Etcd {
    process: Child,
    directory: PathBuf,
    clients: String,
    peers: String,
}

impl Etcd {
    fn start(directory: &Path, clients: String, peers: String) -> Result<Self> {
        let log = File::create(directory.join("etcd.log"))?;
        let (at, between) = (format!("http://{clients}"), format!("http://{peers}"));
        let mut command = Command::new("etcd");
        command.args(["--name", "one", "--data-dir"]).arg(directory.join("data"));
        command.args(["--listen-client-urls", &at, "--advertise-client-urls", &at]);
        command.args(["--listen-peer-urls", &between, "--initial-advertise-peer-urls", &between]);
        command.args(["--initial-cluster", &format!("one={between}")]);
        let process = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("etcd")?;
        let etcd = Self { process, directory: directory.to_owned(), clients, peers };
        let deadline = Instant::now() + START_LIMIT;
        // It listens long before it serves.
        while !etcd.is_healthy() {
            ensure!(Instant::now() < deadline, "etcd does not serve at {}", etcd.clients);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(etcd)
    }

    fn is_healthy(&self) -> bool {
        let ask = || {
            let mut stream = TcpStream::connect(&self.clients)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, std::io::Error>(answer)
        };
        ask().is_ok_and(|answer| answer.contains("\"true\""))
    }

    fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// The same data, at the same addresses.
    fn start_again(&self) -> Result<Self> {
        Self::start(&self.directory, self.clients.clone(), self.peers.clone())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

#[test]
fn an_etcd_decides_who_goes_live() -> Result<()> {
    if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
        return skip("etcd is not installed (cargo xtask doctor --yes)");
    }
    let mut etcd = Etcd::start(&fresh_directory("etcd-data")?, free_address()?, free_address()?)?;
    let mut rig = Rig::protected("etcd", "counter", &["--arbiter", &etcd.clients])?;
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
