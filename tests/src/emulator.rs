//! One machine in QEMU without a rig, from the same description as a rig's.

use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::xtask::Artefacts;

const TCG: &str = include_str!("../../qemu/tcg.args");
const MACHINE: &str = include_str!("../../qemu/machine.args");

/// A machine alone, its network cards connected to nothing. Dropping it ends it.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    serial: std::path::PathBuf,
    _sockets: tempfile::TempDir,
    _monitor: UnixListener,
}

impl Machine {
    /// Starts the hypervisor with `options` and `guest`; its log goes to `directory`.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn start(directory: &Path, guest: &str, options: &str) -> Result<Self> {
        let artefacts = Artefacts::get();
        // The path of a socket must be short.
        let sockets = tempfile::Builder::new().prefix("pollux-test-").tempdir()?;
        let socket = |name: &str| sockets.path().join(name).display().to_string();
        let monitor = UnixListener::bind(socket("monitor"))?;
        let serial = directory.join("serial.log");
        let mut command = Command::new("qemu-system-x86_64");
        for line in TCG.lines().chain(MACHINE.lines()).map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (flag, value) = line.split_once(' ').map_or((line, None), |(flag, value)| (flag, Some(value)));
            command.arg(flag);
            if let Some(value) = value {
                let value = value
                    .replace("{name}", "alone")
                    .replace("{memory-mib}", "128")
                    .replace("{hypervisor}", &artefacts.path("hypervisor")?.display().to_string())
                    .replace("{guest}", &artefacts.path(guest)?.display().to_string())
                    .replace("{options}", options)
                    .replace("{serial}", &serial.display().to_string())
                    .replace("{monitor}", &socket("monitor"))
                    .replace("{nic}", "e1000")
                    .replace("{client-mac}", "52:54:00:10:00:01")
                    .replace("{client-local}", &socket("client"))
                    .replace("{client-remote}", &socket("client-nobody"))
                    .replace("{log-mac}", "52:54:00:20:00:01")
                    .replace("{log-local}", &socket("log"))
                    .replace("{log-remote}", &socket("log-nobody"));
                command.arg(value);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(directory.join("emulator.log"))?);
        let child = command.spawn().context("cannot start QEMU")?;
        Ok(Self { child, serial, _sockets: sockets, _monitor: monitor })
    }

    /// Waits for a line of the log that contains `text` and is what is `wanted`.
    ///
    /// # Errors
    /// When none appears, or the machine ends before.
    pub fn wait_line(&mut self, text: &str, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.child.try_wait()?;
            let log = fs::read(&self.serial).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            // A line that is not finished yet comes again.
            let complete = log.rsplit_once('\n').map_or("", |(complete, _)| complete);
            if let Some(line) = complete.lines().find(|line| line.contains(text) && wanted(line)) {
                return Ok(line.to_owned());
            }
            if let Some(status) = ended {
                bail!("QEMU ended with {status}, no `{text}` in\n{log}");
            }
            if Instant::now() >= deadline {
                bail!("no `{text}` within {} s in\n{log}", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
