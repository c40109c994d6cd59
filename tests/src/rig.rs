//! A rig as a test sees it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;

use crate::amount::amount;
use crate::desk::{self, Place};
use crate::status::{RigStatus, Status};
use crate::xtask::{self, Artefacts};

/// How often something that is awaited is looked at.
const POLL: Duration = Duration::from_millis(50);
/// A rig that a test forgets ends by itself.
const LIFE: [&str; 2] = ["--for", "900s"];
/// Arguments of a rig that a test needs for longer.
pub const LONG_LIFE: [&str; 2] = ["--for", "3h"];
/// From the start to *protected*, and from a new backup's start likewise. Other programs may keep the processors busy.
pub const START_LIMIT: Duration = Duration::from_secs(60);
/// From a failure until the guest answers again. The suspicion takes a second; the rest is for a desk that is busy.
pub const TAKEOVER_LIMIT: Duration = Duration::from_secs(20);
/// From a signal to the end.
pub const END_LIMIT: Duration = Duration::from_secs(15);

/// How often a test kills the primary: `usual` unless `POLLUX_KILLS` says otherwise.
///
/// # Errors
/// When that is no number.
pub fn kills(usual: usize) -> Result<usize> {
    amount("POLLUX_KILLS", usual)
}

/// What plays the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// QEMU
    Qemu,
    /// Bochs
    Bochs,
}

impl Platform {
    /// What `cargo xtask test rig` runs the tests on.
    ///
    /// # Panics
    /// When it says nothing that we know.
    #[must_use]
    pub fn get() -> Self {
        match std::env::var("POLLUX_RIG").as_deref() {
            Ok("qemu") => Self::Qemu,
            Ok("bochs") => Self::Bochs,
            other => panic!("POLLUX_RIG={other:?}: run these tests by `cargo xtask test rig`"),
        }
    }

    /// The verb of `cargo xtask`.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Bochs => "bochs",
        }
    }

    /// How long a reply may take that takes less than `usual` in QEMU: machines in Bochs keep pace with the wall clock, and
    /// with each other, only to within two seconds, and suspect each other later.
    #[must_use]
    pub fn longest(self, usual: Duration) -> Duration {
        match self {
            Self::Qemu => usual,
            Self::Bochs => usual + Duration::from_secs(5),
        }
    }

    /// How much longer things may take than in QEMU.
    fn patience(self) -> u32 {
        match self {
            Self::Qemu => 1,
            Self::Bochs => 3,
        }
    }
}

/// `rig.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct RigFile {
    /// Where clients reach the guest.
    pub service: String,
    /// The same for its UDP port 7.
    pub udp: Option<String>,
    /// All ports that lead to the guest.
    #[serde(default)]
    pub forwards: Vec<Forward>,
    /// The machines.
    pub machines: Vec<Entry>,
    /// Whether a backup follows the primary.
    pub protected: bool,
    /// The control socket.
    pub control: Option<PathBuf>,
}

/// A port in it.
#[derive(Debug, Clone, Deserialize)]
pub struct Forward {
    /// Where clients come.
    pub address: String,
    /// Where it leads.
    pub guest_port: u16,
}

/// A machine in it.
#[derive(Debug, Clone, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: String,
    /// Its process.
    pub pid: Option<i32>,
    /// Where it answers by HTTP.
    #[serde(default)]
    pub http: Option<String>,
}

impl RigFile {
    /// Where clients reach a port of the guest.
    ///
    /// # Errors
    /// When none leads there.
    pub fn address(&self, guest_port: u16) -> Result<&str> {
        let forward = self.forwards.iter().find(|forward| forward.guest_port == guest_port);
        Ok(&forward.with_context(|| format!("no port leads to {guest_port}: {self:?}"))?.address)
    }

    /// The machine in `role`, or with that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn machine(&self, role: &str) -> Result<&Entry> {
        let found = self.machines.iter().find(|machine| machine.role == role || machine.name == role);
        found.with_context(|| format!("there is no {role}: {self:?}"))
    }
}

/// A running rig. Dropping it ends it.
#[derive(Debug)]
pub struct Rig {
    child: Child,
    directory: PathBuf,
    _place: Place,
}

impl Rig {
    /// Starts `guest`, one of ours or a path, with further arguments of the rig, in the directory of test `name`.
    ///
    /// # Errors
    /// When `xtask` cannot be started. What it does then is awaited by other calls.
    pub fn start(name: &str, guest: &str, arguments: &[&str]) -> Result<Self> {
        Self::start_in(&fresh_directory(name)?, guest, arguments)
    }

    /// The same in a given directory.
    ///
    /// # Errors
    /// See [`start`](Self::start).
    pub fn start_in(directory: &Path, guest: &str, arguments: &[&str]) -> Result<Self> {
        let artefacts = Artefacts::get();
        let is_path = guest.contains('/');
        let image = if is_path { Path::new(guest) } else { artefacts.path(guest)? };
        let mut command = xtask::command();
        command.args([Platform::get().verb(), "--headless"]);
        if !arguments.contains(&LIFE[0]) {
            command.args(LIFE);
        }
        if !arguments.contains(&"--port") {
            command.args(["--port", "0"]);
        }
        command.arg("--dir").arg(directory).arg("--guest").arg(image);
        command.arg("--hypervisor").arg(artefacts.path("hypervisor")?).args(arguments);
        let output = File::options().create(true).append(true).open(directory.join("xtask.log"))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let place = desk::take(if arguments.contains(&"--solo") { 1 } else { desk::CORES });
        let child = command.spawn().context("cannot start xtask")?;
        Ok(Self { child, directory: directory.to_owned(), _place: place })
    }

    /// Starts a pair and waits until it is protected.
    ///
    /// # Errors
    /// When it does not become protected.
    pub fn protected(name: &str, guest: &str, arguments: &[&str]) -> Result<Self> {
        let mut rig = Self::start(name, guest, arguments)?;
        rig.wait_protected()?;
        Ok(rig)
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A file of its directory, such as `castor.log`, or `xtask.log`: all that xtask printed. Empty when there is none.
    #[must_use]
    pub fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.directory.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// `rig.json`.
    ///
    /// # Errors
    /// When there is none, or it cannot be understood.
    pub fn file(&self) -> Result<RigFile> {
        let text = fs::read_to_string(self.directory.join("rig.json")).context("rig.json")?;
        serde_json::from_str(&text).with_context(|| format!("rig.json: {text}"))
    }

    /// Where clients reach the guest.
    ///
    /// # Errors
    /// See [`file`](Self::file).
    pub fn service(&self) -> Result<String> {
        Ok(self.file()?.service)
    }

    /// The processes of the machines that run.
    ///
    /// # Errors
    /// See [`file`](Self::file).
    pub fn machine_pids(&self) -> Result<Vec<i32>> {
        Ok(self.file()?.machines.iter().filter_map(|machine| machine.pid).collect())
    }

    /// Everything that the rig tells.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Result<RigStatus> {
        serde_json::from_str(&self.ask(&["status", "--json"])?).context("status")
    }

    /// Waits until `look` finds something, at most for `limit`, which is longer where machines are slow.
    ///
    /// # Errors
    /// When it does not, or the rig ends, or `look` fails.
    pub fn wait<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let limit = limit * Platform::get().patience();
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = look(self).with_context(|| format!("waiting: {what}\n{}", self.report()))? {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the rig ended ({status}) while waiting: {what}\n{}", self.report());
            }
            ensure!(Instant::now() < deadline, "not within {} s: {what}\n{}", limit.as_secs(), self.report());
            std::thread::sleep(POLL);
        }
    }

    /// Waits until `rig.json`, which appears some time after the start, satisfies `condition`.
    ///
    /// # Errors
    /// See [`wait`](Self::wait).
    pub fn wait_file(&mut self, what: &str, limit: Duration, condition: impl Fn(&RigFile) -> bool) -> Result<RigFile> {
        self.wait(what, limit, |rig| Ok(rig.file().ok().filter(&condition)))
    }

    /// Waits until a backup follows.
    ///
    /// # Errors
    /// See [`wait`](Self::wait).
    pub fn wait_protected(&mut self) -> Result<RigFile> {
        self.wait_file("protected", START_LIMIT, |file| file.protected)
    }

    /// Waits until the machine `name` has `role`.
    ///
    /// # Errors
    /// See [`wait`](Self::wait).
    pub fn wait_role(&mut self, name: &str, role: &str, limit: Duration) -> Result<RigFile> {
        let has = |file: &RigFile| file.machine(name).is_ok_and(|machine| machine.role == role);
        self.wait_file(&format!("{name} is {role}"), limit, has)
    }

    /// The takeovers so far, of which there must be `count`. A client can hear the successor before the rig has read that
    /// it took over.
    ///
    /// # Errors
    /// When there are fewer after a while, or more.
    pub fn wait_takeovers(&mut self, count: usize) -> Result<Vec<Value>> {
        let takeovers = self.wait(&format!("{count} takeovers"), END_LIMIT, |rig| {
            Ok(Some(rig.status()?.takeovers).filter(|takeovers| takeovers.len() >= count))
        })?;
        ensure!(takeovers.len() == count, "{} takeovers instead of {count}", takeovers.len());
        Ok(takeovers)
    }

    /// A status that the machine in `role` made after this call.
    ///
    /// # Errors
    /// When it does not report.
    pub fn fresh(&mut self, role: &str) -> Result<Status> {
        let name = self.file()?.machine(role)?.name.clone();
        let mut seen = Vec::new();
        self.wait(&format!("{name}, the {role}, reports"), END_LIMIT, |rig| {
            // Without being asked it reports once a second.
            rig.ask(&["command", &name, "status"])?;
            let Some(own) = rig.status()?.of(&name).cloned() else { return Ok(None) };
            if !seen.contains(&own.wall_ms) {
                seen.push(own.wall_ms);
            }
            // The first is old, and the second may have been under way already.
            Ok((seen.len() > 2).then_some(own))
        })
    }

    /// Waits until the guest has got further on the machine in `role`.
    ///
    /// # Errors
    /// When it stands still.
    pub fn wait_progress(&mut self, role: &str) -> Result<()> {
        let before = self.fresh(role)?.position;
        self.wait(&format!("the {role} gets beyond {before}"), END_LIMIT, |rig| {
            Ok(rig.status()?.of(role).filter(|own| own.position > before).map(drop))
        })
    }

    /// Cuts the power of the machine in `role` (SIGKILL); its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill(&self, role: &str) -> Result<String> {
        let file = self.file()?;
        let machine = file.machine(role)?;
        let pid = machine.pid.with_context(|| format!("{role} has no process"))?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        Ok(machine.name.clone())
    }

    /// Starts a dead machine as backup and waits until the guest is protected.
    ///
    /// # Errors
    /// When that does not happen.
    pub fn start_backup(&mut self) -> Result<()> {
        self.ask(&["start", "backup"])?;
        self.wait_protected().map(drop)
    }

    /// Changes a link, such as `log`.
    ///
    /// # Errors
    /// When the rig refuses.
    pub fn link(&self, network: &str, changes: &[&str]) -> Result<()> {
        self.ask(&[&["link", network], changes].concat()).map(drop)
    }

    /// Sends a command to a hypervisor's monitor.
    ///
    /// # Errors
    /// When the rig refuses.
    pub fn command(&self, role: &str, words: &[&str]) -> Result<()> {
        self.ask(&[&["command", role], words].concat()).map(drop)
    }

    /// Asks by `xtask rig`; what it prints.
    ///
    /// # Errors
    /// What it complains about.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let output = xtask::command().arg("rig").arg("--dir").arg(&self.directory).args(words).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "xtask rig {}: {errors}", words.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Sends a signal to xtask itself.
    ///
    /// # Errors
    /// When it is not there any more.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid(), signal)?)
    }

    /// Waits for the end of xtask.
    ///
    /// # Errors
    /// When it does not end.
    pub fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let limit = limit * Platform::get().patience();
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "xtask does not end within {} s\n{}", limit.as_secs(), self.report());
            std::thread::sleep(POLL);
        }
    }

    /// Ends the rig as a user does who has seen enough.
    ///
    /// # Errors
    /// When it does not end, or with an error.
    pub fn stop(mut self) -> Result<()> {
        self.ask(&["stop"])?;
        let status = self.wait_end(END_LIMIT)?;
        ensure!(status.success(), "the rig ended with {status}\n{}", self.report());
        Ok(())
    }

    /// For the message of a failure: the last lines of all logs.
    #[must_use]
    pub fn report(&self) -> String {
        let mut report = format!("in {}", self.directory.display());
        for name in ["xtask.log", "castor.log", "pollux.log"] {
            let text = self.read(name);
            let lines: Vec<_> = text.lines().collect();
            report += &format!("\n--- {name}\n{}", lines[lines.len().saturating_sub(12)..].join("\n"));
        }
        report
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // When SIGTERM is not enough SIGKILL is: the machines end with xtask.
        if kill(self.pid(), Signal::SIGTERM).is_err() || self.wait_end(END_LIMIT).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// An empty directory for test `name`. It stays after the test, for those who want to know more.
///
/// # Errors
/// When it cannot be made.
pub fn fresh_directory(name: &str) -> Result<PathBuf> {
    let directory = xtask::rig_parent().join(format!("test-{name}"));
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    Ok(directory)
}

/// Whether a process is there and not merely waiting to be buried.
#[must_use]
pub fn is_running(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    !matches!(state, Some("Z" | "X"))
}
