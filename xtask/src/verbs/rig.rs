//! `cargo xtask rig`: asks a running rig for something.

use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use crate::interrupt;
use crate::output::{self, say};
use crate::rig::control::{Client, POLL, Request};
use crate::rig::directory::latest_link;
use crate::rig::monitor::Status;
use crate::rig::roles::Role;
use crate::units::parse_duration;
use crate::view::text;

/// How often machines are asked to forget a key: their status comes once a second.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Which rig, and what to do.
#[derive(Debug, Args)]
pub struct RigArgs {
    /// The rig's directory [default: that of the rig last started without --dir]
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show what is known
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Cut a machine's power (SIGKILL)
    Kill {
        /// primary, backup, castor or pollux
        target: String,
    },
    /// Start a dead machine
    Start {
        /// As what
        role: Startable,
        /// Return only when the guest is protected
        #[arg(long)]
        wait: bool,
        /// How long to wait
        #[arg(long, default_value = "60s", value_parser = parse_duration, requires = "wait")]
        timeout: Duration,
    },
    /// Put a fresh machine in the running backup's place: it is stopped in order, so that no client waits for a suspicion
    Replace {
        /// How long to wait until the guest is protected again
        #[arg(long, default_value = "60s", value_parser = parse_duration)]
        timeout: Duration,
    },
    /// Let primary and backup change their roles, without a failure
    Switch {
        /// How long to wait
        #[arg(long, default_value = "60s", value_parser = parse_duration)]
        timeout: Duration,
    },
    /// Change the pair's key while it runs
    Key {
        #[command(subcommand)]
        step: KeyStep,
    },
    /// Change a network's links
    Link {
        /// log, client, one machine's cable such as log:castor, or arbiter
        #[arg(value_name = "log|client[:MACHINE]|arbiter")]
        network: String,
        /// delay=5ms jitter=1ms loss=1% duplicate=1% reorder=1% down up; a machine's cable also mute, deaf
        #[arg(required = true)]
        changes: Vec<String>,
    },
    /// Write what is on the networks to client.pcap and log.pcap
    Capture {
        /// Start anew, or end
        switch: Switch,
    },
    /// Show the guest's console and send it each key that is typed, until Ctrl-]; or send it one line
    Console {
        /// The line
        line: Option<String>,
    },
    /// Send a line to a hypervisor's monitor (for tests)
    Command {
        /// primary, backup, castor or pollux
        target: String,
        /// The line
        #[arg(required = true)]
        words: Vec<String>,
    },
    /// End the rig
    Stop,
}

#[derive(Debug, Subcommand)]
enum KeyStep {
    /// Make the key in this file valid beside the one that the pair has (`cargo xtask key new` makes one)
    Add {
        /// The file
        file: PathBuf,
    },
    /// Forget the older key, once machines and arbiter have shown that they do without it
    Forget {
        /// How long to wait
        #[arg(long, default_value = "60s", value_parser = parse_duration)]
        timeout: Duration,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Startable {
    Backup,
}

/// Does what `arguments` ask for.
pub fn run(arguments: RigArgs) -> Result<()> {
    let directory = arguments.dir.unwrap_or_else(latest_link);
    let mut client = Client::connect(&directory)?;
    match arguments.verb {
        Verb::Status { json } => {
            let snapshot = client.status()?;
            if json {
                say!("{}", serde_json::to_string_pretty(&snapshot)?);
            } else {
                output::lines(text::status(&snapshot));
            }
            Ok(())
        }
        Verb::Kill { target } => ask(&mut client, &Request::Kill { target }),
        Verb::Start { role: Startable::Backup, wait, timeout } => {
            ask(&mut client, &Request::StartBackup)?;
            if wait { client.wait_for_protection(timeout) } else { Ok(()) }
        }
        Verb::Replace { timeout } => replace(&mut client, timeout),
        Verb::Switch { timeout } => switch(&mut client, timeout),
        Verb::Key { step: KeyStep::Add { file } } => {
            let file = file.canonicalize().with_context(|| format!("the key {}", file.display()))?;
            ask(&mut client, &Request::AddKey { file })
        }
        Verb::Key { step: KeyStep::Forget { timeout } } => forget_key(&mut client, timeout),
        Verb::Link { network, changes } => ask(&mut client, &Request::Link { network, changes }),
        Verb::Capture { switch } => ask(&mut client, &Request::Capture { on: switch == Switch::On }),
        Verb::Console { line: Some(line) } => ask(&mut client, &console_request(&line)),
        Verb::Console { line: None } => console(&mut client, &directory),
        Verb::Command { target, words } => ask(&mut client, &Request::Command { target, text: words.join(" ") }),
        Verb::Stop => {
            client.stop()?;
            say!("the rig has ended");
            Ok(())
        }
    }
}

fn ask(client: &mut Client, request: &Request) -> Result<()> {
    say!("{}", client.ask(request)?.message);
    Ok(())
}

/// Takes the backup out of service in order, and starts a new one.
fn replace(client: &mut Client, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    let old = client.status()?.machine(Role::Backup).context("there is no backup to replace")?.name.clone();
    client.ask(&Request::Command { target: old.clone(), text: "stop".to_owned() })?;
    while client.status()?.machines.iter().any(|machine| machine.name == old && machine.role != Role::Dead) {
        interrupt::check()?;
        if Instant::now() >= deadline {
            bail!("{old} has not stopped after {} s", timeout.as_secs());
        }
        std::thread::sleep(POLL);
    }
    ask(client, &Request::StartBackup)?;
    client.wait_for_protection(deadline.saturating_duration_since(Instant::now()))
}

/// Asks for a planned change of roles, and waits until the guest runs, protected, on the other machine.
fn switch(client: &mut Client, timeout: Duration) -> Result<()> {
    let before = client.status()?.takeovers.len();
    let text = "switch".to_owned();
    client.ask(&Request::Command { target: "primary".to_owned(), text })?;
    let deadline = Instant::now() + timeout;
    loop {
        let snapshot = client.status()?;
        if snapshot.protected
            && let Some(takeover) = snapshot.takeovers.get(before)
        {
            say!("{} {}", takeover.name, takeover.times);
            return Ok(());
        }
        interrupt::check()?;
        if Instant::now() >= deadline {
            let refusal = snapshot.notices.iter().rev().find(|notice| notice.text.contains("refused"));
            let why = refusal.map_or_else(String::new, |notice| format!(": {}", notice.text));
            bail!("the roles have not changed after {} s{why}", timeout.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

/// Has the old key forgotten, and waits until nobody has it any more.
fn forget_key(client: &mut Client, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let message = client.ask(&Request::ForgetKey)?.message;
        let snapshot = client.status()?;
        if snapshot.keys.len() < 2 {
            say!("{message}");
            return Ok(());
        }
        interrupt::check()?;
        if Instant::now() >= deadline {
            let running = snapshot.machines.iter().filter(|machine| machine.pid.is_some());
            let needs = running.filter_map(|machine| {
                let why = needs_old_key(machine.status.as_ref(), &snapshot.keys[0])?;
                Some(format!("{}: {why}", machine.name))
            });
            let needs: Vec<_> = needs.collect();
            bail!("the old key is still needed after {} s: {}", timeout.as_secs(), needs.join("; "));
        }
        std::thread::sleep(ASK_AGAIN);
    }
}

/// Why a machine does not do without the old key yet.
fn needs_old_key(status: Option<&Status>, newest: &str) -> Option<String> {
    let Some(status) = status else { return Some("it has said nothing yet".to_owned()) };
    if status.key != newest && status.old_key != newest {
        return Some(format!("it lacks the key {newest}; `rig key add` with the same file gives it to it"));
    }
    if status.old_key.is_empty() {
        return None;
    }
    let why = if status.old_key_is_needed.is_empty() { "it was told to forget it" } else { &status.old_key_is_needed };
    Some(why.to_owned())
}

fn console_request(line: &str) -> Request {
    Request::Command { target: "primary".to_owned(), text: format!("console {line}") }
}

/// Most bytes of a command to type: each takes two digits, and the hypervisor's commands are short.
const MAX_TYPED: usize = 200;
/// What ends a console, as in telnet: Ctrl-].
const ESCAPE: u8 = 0x1D;

/// Follows the console until interrupted. What comes from the standard input goes to the guest: from a terminal each key as it
/// is, so that the guest's own line editing and Ctrl-C work, and until Ctrl-]; otherwise lines.
fn console(client: &mut Client, directory: &Path) -> Result<()> {
    let path = directory.join("console.log");
    let mut file = std::fs::File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    file.seek(SeekFrom::End(-4096)).or_else(|_| file.rewind().map(|()| 0))?;
    let raw = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if raw {
        say!("Ctrl-] ends this console, not the guest");
    }
    let terminal = raw.then(RawTerminal::enter).transpose()?;
    let (sender, typed) = std::sync::mpsc::channel();
    std::thread::spawn(move || read_keys(std::io::stdin().lock(), &sender));
    let mut output = std::io::stdout();
    while !interrupt::pending() {
        let written = std::io::copy(&mut file, &mut output)?;
        output.flush()?;
        match typed.recv_timeout(if written > 0 { Duration::ZERO } else { POLL / 5 }) {
            Ok(keys) if terminal.is_some() && keys.contains(&ESCAPE) => break,
            Ok(keys) => {
                for part in keys.chunks(MAX_TYPED) {
                    client.ask(&type_request(part))?;
                }
            }
            // Looked at also when nothing is typed, so that we end with the rig.
            Err(_) if written == 0 => drop(client.status()?),
            Err(_) => {}
        }
    }
    drop(terminal);
    say!("");
    Ok(())
}

/// Passes on what is typed until it ends or nobody listens.
fn read_keys(mut input: impl Read, sender: &Sender<Vec<u8>>) {
    let mut buffer = [0; 1024];
    while let Ok(len @ 1..) = input.read(&mut buffer) {
        if sender.send(buffer[..len].to_owned()).is_err() {
            break;
        }
    }
}

fn type_request(keys: &[u8]) -> Request {
    let digits: String = keys.iter().map(|key| format!("{key:02x}")).collect();
    Request::Command { target: "primary".to_owned(), text: format!("type {digits}") }
}

/// A terminal that passes on each key as it is, until this is dropped.
struct RawTerminal;

impl RawTerminal {
    fn enter() -> Result<Self> {
        ratatui::crossterm::terminal::enable_raw_mode().context("cannot read single keys from the terminal")?;
        Ok(Self)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing more.
        let _ = ratatui::crossterm::terminal::disable_raw_mode();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_who_lacks_the_next_key() {
        let needs = |key: &str, old_key: &str, why: &str| {
            let (key, old_key, old_key_is_needed) = (key.into(), old_key.into(), why.into());
            needs_old_key(Some(&Status { key, old_key, old_key_is_needed, ..Status::default() }), "0b")
        };
        assert_eq!(needs("0b", "", ""), None);
        assert_eq!(needs("0b", "0a", "the twin").as_deref(), Some("the twin"));
        assert!(needs("0b", "0a", "").unwrap().contains("was told"));
        // Machines that were given the keys in another order have both.
        assert_eq!(needs("0a", "0b", "the twin").as_deref(), Some("the twin"));
        assert!(needs("0a", "", "").unwrap().contains("lacks the key 0b"));
        assert!(needs_old_key(None, "0b").is_some());
    }
}
