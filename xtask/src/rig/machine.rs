//! One running machine: its process, and what its monitor says.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::emulator::Emulator;
use super::logs::tail;
use super::monitor::{self, Claim, Line, Status};
use super::rates::{Rates, Sample};
use super::roles::Facts;
use super::serial::Listener;
use super::{Event, Slot};
use crate::process::Process;

/// A machine that says nothing for so long has stopped. It speaks once a second when its emulator gets enough CPU.
const SILENCE: Duration = Duration::from_secs(3);
/// Rates are taken over about this time.
const RATE_WINDOW: Duration = Duration::from_secs(2);
/// Lines that are repeated of what an emulator said before it ended.
const LAST_WORDS: usize = 4;
const SIGKILL: i32 = nix::sys::signal::Signal::SIGKILL as i32;

/// A machine's serial lines, to be connected by its emulator.
#[derive(Debug)]
pub struct Lines {
    monitor: Listener,
    /// For an emulator that does not write the log itself.
    log: Option<Listener>,
    log_path: PathBuf,
}

impl Lines {
    /// Opens those of the machine `name` in `emulator`, with sockets in `directory` and the log at `log_path`.
    pub fn open(emulator: Emulator, directory: &Path, name: &str, log_path: &Path) -> Result<Self> {
        let open = |line| Listener::open(emulator.transport(), &directory.join(format!("{name}-{line}")));
        let log = if emulator.appends() { None } else { Some(open("log")?) };
        Ok(Self { monitor: open("monitor")?, log, log_path: log_path.to_owned() })
    }

    /// What the emulator connects COM1 to.
    pub fn log_address(&self) -> Result<String> {
        match &self.log {
            Some(listener) => Ok(listener.address()),
            None => {
                let text = self.log_path.to_str().map(str::to_owned);
                text.with_context(|| format!("the path {} is not UTF-8", self.log_path.display()))
            }
        }
    }

    /// What the emulator connects COM2 to.
    pub fn monitor_address(&self) -> String {
        self.monitor.address()
    }
}

/// A machine whose process has been started.
#[derive(Debug)]
pub struct Machine {
    process: Process,
    /// Tells events of this process from those of its predecessors.
    generation: u64,
    monitor: Option<File>,
    /// Writes the log, if the emulator does not.
    log: Option<JoinHandle<()>>,
    ended: Arc<AtomicBool>,
    heard: Instant,
    status: Option<Status>,
    samples: VecDeque<Sample>,
    /// Why it said that it halts. A panicking hypervisor says so in an event and sends no status any more.
    halted: Option<String>,
    /// Where the emulator complains.
    complaints: PathBuf,
    /// Lines that were not understood.
    pub malformed: u64,
}

impl Machine {
    /// Starts `command`, whose serial lines will be connected to `lines`; what the monitor says is sent to `events`. What
    /// the emulator itself writes goes to the file `complaints`.
    pub fn start(
        slot: Slot,
        generation: u64,
        mut command: Command,
        lines: Lines,
        complaints: PathBuf,
        events: &SyncSender<Event>,
    ) -> Result<Self> {
        let file = File::create(&complaints).with_context(|| format!("cannot write {}", complaints.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let process = Process::spawn(&mut command)?;
        let ended = Arc::new(AtomicBool::new(false));
        let Lines { monitor: listener, log, log_path } = lines;
        let (flag, sender) = (Arc::clone(&ended), events.clone());
        spawn(format!("monitor-{}", slot.name()), move || read_monitor(slot, generation, &listener, &flag, &sender))?;
        let log = match log {
            None => None,
            Some(listener) => {
                let flag = Arc::clone(&ended);
                Some(spawn(format!("log-{}", slot.name()), move || copy_log(&listener, &log_path, &flag))?)
            }
        };
        let heard = Instant::now();
        let samples = VecDeque::new();
        let (monitor, status, halted, malformed) = (None, None, None, 0);
        Ok(Self { process, generation, monitor, log, ended, heard, status, samples, halted, complaints, malformed })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Its last status.
    pub fn status(&self) -> Option<&Status> {
        self.status.as_ref()
    }

    /// Time since it said anything, or since it was started.
    pub fn silence(&self) -> Duration {
        self.heard.elapsed()
    }

    /// Per second, over the last two seconds.
    pub fn rates(&self) -> Option<Rates> {
        Rates::between(self.samples.front()?, self.samples.back()?)
    }

    /// What its role is derived from.
    pub fn facts(&self) -> Facts {
        let status = self.status.as_ref();
        Facts {
            alive: true,
            claim: if self.has_halted() { Some(Claim::Halted) } else { status.map(|status| status.role) },
            protected: status.is_some_and(|status| status.protected),
            term: status.map_or(0, |status| status.term),
            silent: self.silence() > SILENCE,
        }
    }

    /// Whether the hypervisor says that it has halted.
    pub fn has_halted(&self) -> bool {
        self.halted.is_some() || self.status.as_ref().is_some_and(|status| status.role == Claim::Halted)
    }

    /// Why it has halted, if it has said so.
    pub fn halt_reason(&self) -> Option<&str> {
        self.halted.as_deref()
    }

    /// Takes note of a line; `false` when it belongs to an earlier process in this slot.
    pub fn hear(&mut self, generation: u64, line: &Line) -> bool {
        if generation != self.generation {
            return false;
        }
        self.heard = Instant::now();
        if let Line::Event(name, fields) = line
            && name == "halt"
        {
            let reason = fields.get("reason").and_then(Value::as_str).unwrap_or("no reason given");
            self.halted = Some(reason.to_owned());
        }
        if let Line::Status(status) = line {
            self.samples.push_back(Sample::new(self.heard, status));
            while self.samples.get(1).is_some_and(|second| self.heard - second.at >= RATE_WINDOW) {
                self.samples.pop_front();
            }
            self.status = Some((**status).clone());
        }
        true
    }

    /// Its monitor is connected.
    pub fn connect(&mut self, generation: u64, stream: File) {
        if generation == self.generation {
            self.monitor = Some(stream);
        }
    }

    /// Takes note of a line that was not understood.
    pub fn count_malformed(&mut self, generation: u64) {
        if generation == self.generation {
            self.malformed += 1;
        }
    }

    /// Sends a command to the hypervisor.
    pub fn command(&mut self, text: &str) -> Result<()> {
        if text.contains(['\n', '\r']) {
            bail!("a command is one line");
        }
        let Some(stream) = &mut self.monitor else { bail!("the monitor is not connected") };
        stream.write_all(format!("{text}\n").as_bytes()).context("cannot write to the monitor")
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<String>> {
        let Some(status) = self.process.try_wait()? else { return Ok(None) };
        self.finish_log();
        let how = describe(status);
        // Who was killed has nothing to complain about, and Bochs talks all the time.
        let words = if status.signal() == Some(SIGKILL) { Vec::new() } else { tail(&self.complaints, LAST_WORDS) };
        let words = words.join("; ");
        Ok(Some(if words.is_empty() { how } else { format!("{how}: {words}") }))
    }

    /// Cuts its power.
    pub fn kill(&mut self) {
        self.process.kill();
        self.finish_log();
    }

    /// Waits until everything that the machine wrote before its end is in the log.
    fn finish_log(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // A log that cannot be written is none of the machine's business.
        let _ = self.log.take().map(JoinHandle::join);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => {
            let name = nix::sys::signal::Signal::try_from(signal).map_or("unknown", nix::sys::signal::Signal::as_str);
            format!("killed by {name}")
        }
        (None, None) => "ended".to_owned(),
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name).spawn(body).context("cannot start a thread")
}

/// The thread that appends what COM1 says to the log, for emulators that do not.
fn copy_log(listener: &Listener, path: &Path, ended: &AtomicBool) {
    let Some(mut line) = listener.accept(ended) else { return };
    if let Ok(mut file) = File::options().append(true).open(path) {
        // Ends with the machine. On a full disk what is missing is missing.
        let _ = std::io::copy(&mut line, &mut file);
    }
}

/// What a machine's first line says behind the words of its firmware, which UEFI has on all serial lines; none if all of
/// it is the firmware's. It moves its cursor about, and the hypervisor never does.
fn behind_firmware(text: &str) -> Option<&str> {
    const ESCAPE: char = '\u{1b}';
    if !text.contains(ESCAPE) {
        return Some(text);
    }
    text.rfind("{\"t\":").map(|start| &text[start..])
}

/// The thread of one machine's monitor. It ends with the connection, or when nobody listens to it any more.
fn read_monitor(slot: Slot, generation: u64, listener: &Listener, ended: &AtomicBool, events: &SyncSender<Event>) {
    let Some(stream) = listener.accept(ended) else { return };
    let Ok(writer) = stream.try_clone() else { return };
    if events.send(Event::Connected { slot, generation, stream: writer }).is_err() {
        return;
    }
    let mut reader = BufReader::new(stream);
    let mut heard = false;
    while let Ok(Some(text)) = monitor::read_line(&mut reader) {
        // A panicking hypervisor ends a line that may have been under way.
        if text.is_empty() {
            continue;
        }
        let own = if heard { Some(text.as_str()) } else { behind_firmware(&text) };
        let Some(own) = own else { continue };
        heard = true;
        let event = match monitor::parse(own) {
            Ok(line) => Event::Monitor { slot, generation, line },
            Err(error) => Event::Malformed { slot, generation, text, column: error.column(), error: error.to_string() },
        };
        if events.send(event).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_is_told_from_the_hypervisor() {
        let own = "{\"t\":\"status\",\"x\":{}}";
        assert_eq!(behind_firmware(own), Some(own));
        assert_eq!(behind_firmware(&format!("\u{1b}[2J\u{1b}[01;01HBdsDxe {own}")), Some(own));
        assert_eq!(behind_firmware("\u{1b}[2J"), None);
        // What is nobody's is told.
        assert_eq!(behind_firmware("gibberish"), Some("gibberish"));
    }
}
