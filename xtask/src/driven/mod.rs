//! A rig that is driven from here, for measurements and lessons: this program, started once more.

pub mod client;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::interrupt;
use crate::platform::Platform;
use crate::process::Process;
use crate::rig::control::{Client, Request};
use crate::rig::directory;
use crate::rig::monitor::Status;
use crate::rig::roles::Role;
use crate::rig::snapshot::Snapshot;

/// A pair that is not protected by then never will be.
const PROTECTION_LIMIT: Duration = Duration::from_secs(180);
/// A twin that has not taken over by then never will.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(30);
/// How often is looked.
const POLL: Duration = Duration::from_millis(50);

/// A running rig; ended when dropped.
#[derive(Debug)]
pub struct DrivenRig {
    process: Process,
    directory: PathBuf,
    /// Removed at the end, if nobody gave a place.
    _temporary: Option<TempDir>,
    client: Client,
    service: String,
}

impl DrivenRig {
    /// Starts a rig on `platform` with further `arguments` of its verb.
    pub fn start(platform: Platform, arguments: &[&str]) -> Result<Self> {
        let temporary = tempfile::Builder::new().prefix("pollux-driven-").tempdir().context("temporary directory")?;
        let mut rig = Self::start_in(platform, temporary.path(), arguments)?;
        rig._temporary = Some(temporary);
        Ok(rig)
    }

    /// The same in a directory that stays.
    pub fn start_in(platform: Platform, directory: &Path, arguments: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let log = std::fs::File::create(directory.join("rig.out")).context("temporary file")?;
        let mut command = Command::new(std::env::current_exe().context("cannot find myself")?);
        command.args([platform.verb(), "--headless", "--port", "0", "--dir"]).arg(directory);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut process = Process::spawn(&mut command)?;
        let deadline = Instant::now() + PROTECTION_LIMIT;
        let client = loop {
            if let Ok(client) = Client::connect(directory) {
                break client;
            }
            if process.try_wait()?.is_some() || Instant::now() >= deadline {
                bail!("the rig does not start: {}", last_words(directory));
            }
            interrupt::check()?;
            std::thread::sleep(POLL);
        };
        let service = directory::read(directory)?.service;
        Ok(Self { process, directory: directory.to_owned(), _temporary: None, client, service })
    }

    /// A pair, once it is protected.
    pub fn pair(platform: Platform, arguments: &[&str]) -> Result<Self> {
        let mut rig = Self::start(platform, arguments)?;
        rig.wait_for_protection()?;
        Ok(rig)
    }

    /// Waits until a backup follows.
    pub fn wait_for_protection(&mut self) -> Result<()> {
        self.client.wait_for_protection(PROTECTION_LIMIT).with_context(|| last_words(&self.directory))
    }

    /// Where the guest can be reached.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// What is known.
    pub fn snapshot(&mut self) -> Result<Snapshot> {
        self.client.status()
    }

    /// The primary's last status.
    pub fn primary(&mut self) -> Result<Status> {
        let snapshot = self.snapshot()?;
        let status = snapshot.machine(Role::Primary).and_then(|machine| machine.status.clone());
        status.context("there is no primary")
    }

    /// Two statuses of the primary, about `apart` from each other.
    pub fn observe(&mut self, apart: Duration) -> Result<(Status, Status)> {
        let first = self.primary()?;
        pause(apart)?;
        let last = self.primary()?;
        if first.name != last.name || last.wall_ms <= first.wall_ms {
            bail!("the primary made no progress: {}", last_words(&self.directory));
        }
        Ok((first, last))
    }

    /// Kills the primary and waits until the other machine runs the guest alone, as takeover `number` (from 1).
    pub fn kill_primary(&mut self, number: usize) -> Result<()> {
        self.ask(&Request::Kill { target: "primary".to_owned() })?;
        self.wait_until("a takeover", TAKEOVER_LIMIT, |snapshot| snapshot.takeovers.len() >= number).map(drop)
    }

    /// Waits until what is known satisfies `met`; an error that says `what` was awaited, after `limit`.
    pub fn wait_until(&mut self, what: &str, limit: Duration, met: impl Fn(&Snapshot) -> bool) -> Result<Snapshot> {
        let deadline = Instant::now() + limit;
        loop {
            let snapshot = self.snapshot()?;
            if met(&snapshot) {
                return Ok(snapshot);
            }
            if Instant::now() >= deadline {
                bail!("{what}: not within {} s; {}", limit.as_secs(), last_words(&self.directory));
            }
            pause(POLL)?;
        }
    }

    /// Makes faults in a network's links.
    pub fn link(&mut self, network: &str, changes: &[&str]) -> Result<()> {
        let changes = changes.iter().map(|&change| change.to_owned()).collect();
        self.ask(&Request::Link { network: network.to_owned(), changes })
    }

    /// The sockets of a port in the client network that has no machine: the machine's end, and the switch's.
    pub fn free_port(&self) -> Result<[PathBuf; 2]> {
        let control = directory::read(&self.directory)?.control.context("the rig has ended")?;
        Ok(["client1.qemu", "client1.net"].map(|name| control.with_file_name(name)))
    }

    /// Where the rig's files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Ends the rig, which writes down what it has to.
    pub fn end(mut self) -> Result<()> {
        self.process.terminate()
    }

    /// Asks the rig for something.
    pub fn ask(&mut self, request: &Request) -> Result<()> {
        self.client.ask(request).map(drop)
    }

    /// Brings up a new backup and waits until the pair is protected.
    pub fn protect_again(&mut self) -> Result<()> {
        self.ask(&Request::StartBackup)?;
        self.wait_for_protection()
    }
}

impl Drop for DrivenRig {
    fn drop(&mut self) {
        // It ends its machines itself when asked politely; otherwise they end with it.
        let _ = self.process.terminate();
    }
}

/// Sleeps unless interrupted.
pub fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        interrupt::check()?;
        std::thread::sleep(POLL.min(end.saturating_duration_since(Instant::now())));
    }
    Ok(())
}

fn last_words(directory: &Path) -> String {
    crate::rig::tail(&directory.join("rig.out"), 12).join("\n")
}
