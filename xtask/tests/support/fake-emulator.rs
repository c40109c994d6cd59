//! Stands in for QEMU or Bochs in `tests/rig.rs`: takes its arguments and plays a machine that only talks on its monitor.
//!
//! The twins see each other by files in a directory that they share. A backup becomes primary when its twin's process is
//! gone.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::kill;
use nix::unistd::Pid;

const PERIOD: Duration = Duration::from_millis(20);

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--version") {
        let version = std::env::var("FAKE_VERSION").unwrap_or_else(|_| "7.2.22".to_owned());
        println!("QEMU emulator version {version} (fake)");
        return Ok(());
    }
    let (options, mut stream, directory) = match value(&arguments, "-f", "") {
        Some(settings) => bochs(settings)?,
        None => qemu(&arguments)?,
    };
    let option = |key: &str| {
        let words = options.split([' ', '\'']);
        let found = words.into_iter().find_map(|option| option.strip_prefix(key)?.strip_prefix('='));
        found.map(str::to_owned).with_context(|| format!("no {key}="))
    };
    let mut machine = Machine {
        name: option("name")?,
        role: if option("role")? == "backup" { "joining" } else { "primary" },
        alone: option("role")? == "solo",
        directory,
    };
    writeln!(stream, "no JSON: noise of the firmware")?;
    loop {
        let protected = machine.step(&mut stream)?;
        let Machine { name, role, .. } = &machine;
        writeln!(
            stream,
            r#"{{"t":"status","name":"{name}","role":"{role}","protected":{protected},"guest_ticks":1000}}"#
        )?;
        machine.obey(&mut stream)?;
    }
}

fn value<'a>(arguments: &'a [String], flag: &str, prefix: &str) -> Option<&'a str> {
    let pairs = arguments.windows(2).filter(|pair| pair[0] == flag);
    pairs.map(|pair| pair[1].as_str()).find(|value| value.starts_with(prefix))
}

/// The hypervisor's options, the monitor, and where the twins meet: from QEMU's arguments.
fn qemu(arguments: &[String]) -> Result<(String, File, PathBuf)> {
    let options = value(arguments, "-append", "role=").context("no -append")?;
    let monitor = value(arguments, "-chardev", "socket,id=monitor").context("no monitor")?;
    let monitor = monitor.split("path=").nth(1).context("no path of the monitor")?;
    let stream = UnixStream::connect(monitor).context("monitor")?;
    stream.set_read_timeout(Some(PERIOD))?;
    let directory = Path::new(monitor).parent().context("no directory")?.to_owned();
    Ok((options.to_owned(), OwnedFd::from(stream).into(), directory))
}

/// The same from the settings of Bochs, and from the disc. Writes a line of log.
fn bochs(settings: &str) -> Result<(String, File, PathBuf)> {
    let settings = fs::read_to_string(settings).context("settings")?;
    let setting = |line: &str, key: &str| {
        let line = settings.lines().find(|other| other.starts_with(line)).with_context(|| format!("no {line}"))?;
        let found = line.split(", ").find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        found.map(str::to_owned).with_context(|| format!("no {key} in {line}"))
    };
    writeln!(TcpStream::connect(setting("com1:", "dev")?).context("log")?, "Bochs was started")?;
    let stream = TcpStream::connect(setting("com2:", "dev")?).context("monitor")?;
    stream.set_read_timeout(Some(PERIOD))?;
    // The file with the options lies uncompressed on the disc.
    let disc = fs::read(setting("ata0-master:", "path")?).context("disc")?;
    let start = b"multiboot2 /boot/pollux ";
    let found = disc.windows(start.len()).position(|window| window == start).context("no options on the disc")?;
    let rest = &disc[found + start.len()..];
    let line = rest.split(|&byte| byte == b'\n').next().unwrap_or_default();
    Ok((String::from_utf8(line.to_owned())?, OwnedFd::from(stream).into(), std::env::current_dir()?))
}

struct Machine {
    name: String,
    role: &'static str,
    alone: bool,
    directory: PathBuf,
}

impl Machine {
    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.fake"))
    }

    /// The role of the twin, if its process is there.
    fn twin(&self) -> Option<String> {
        let name = if self.name == "castor" { "pollux" } else { "castor" };
        let text = fs::read_to_string(self.file(name)).ok()?;
        let (pid, role) = text.split_once(' ')?;
        let alive = kill(Pid::from_raw(pid.parse().ok()?), None).is_ok();
        alive.then(|| role.to_owned())
    }

    /// Follows the twin; whether this machine is protected.
    fn step(&mut self, stream: &mut File) -> Result<bool> {
        let twin = if self.alone { None } else { self.twin() };
        match (self.role, twin.as_deref()) {
            ("joining", Some("primary")) => self.role = "backup",
            ("backup", None) => {
                self.role = "primary";
                writeln!(stream, r#"{{"t":"event","event":"takeover","detect_ms":20,"drain_ms":1,"total_ms":21}}"#)?;
            }
            _ => {}
        }
        let temporary = self.file(&format!("{}.new", self.name));
        fs::write(&temporary, format!("{} {}", std::process::id(), self.role))?;
        fs::rename(&temporary, self.file(&self.name))?;
        Ok(self.role == "primary" && twin.as_deref() == Some("backup"))
    }

    /// Reads commands for a short while.
    fn obey(&mut self, stream: &mut File) -> Result<()> {
        let mut buffer = [0; 256];
        let length = match stream.read(&mut buffer) {
            // The rig is gone.
            Ok(0) => std::process::exit(0),
            Ok(length) => length,
            Err(_) => return Ok(()),
        };
        for line in String::from_utf8_lossy(&buffer[..length]).lines() {
            match line.split_once(' ') {
                Some(("console", text)) => writeln!(stream, r#"{{"t":"console","text":"{text}\n"}}"#)?,
                None if line == "halt" => self.role = "halted",
                None if line == "panic" => {
                    write!(stream, "{{\"t\":\"sta\n{{\"t\":\"event\",\"event\":\"halt\",\"reason\":\"panic\"}}\n")?;
                    std::thread::sleep(Duration::from_secs(3600));
                }
                None if line == "power-off" => {
                    writeln!(stream, r#"{{"t":"event","event":"halt","reason":"the guest powered off"}}"#)?;
                    self.role = "halted";
                }
                _ => writeln!(stream, r#"{{"t":"event","event":"unknown-command"}}"#)?,
            }
        }
        Ok(())
    }
}
