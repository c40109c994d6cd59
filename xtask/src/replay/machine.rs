//! One machine that replays, and what it says.

use std::fs::{self, File};
use std::io::{Error, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};

use crate::guest::GuestFiles;
use crate::rig::directory::PrivateDirectory;
use crate::rig::emulator::{Card, Emulator, MachineSpec, Purpose};
use crate::rig::machine::{Lines, Machine};
use crate::rig::monitor::Line;
use crate::rig::network::{NetworkConfig, Networks};
use crate::rig::options::CommandLine;
use crate::rig::recording::{HYPERVISOR, Setup};
use crate::rig::{Event, Slot, tail};
use crate::secret::Secret;

/// The machine's name.
const NAME: &str = "replay";
/// The port of the log; see hypervisor/src/replica/link.rs.
const LOG_PORT: u16 = 7001;
/// Events that may wait.
const QUEUE: usize = 1024;
/// Most bytes of software: a machine's memory is not larger.
const MOST: u64 = 3 << 30;
/// The machine's place: that of the rig's backup.
const SLOT: Slot = Slot::Pollux;

/// The software in a recording, unpacked.
#[derive(Debug)]
pub struct Software {
    directory: PrivateDirectory,
    /// The hypervisor's image.
    hypervisor: PathBuf,
    guest: GuestFiles,
}

/// Takes the files of a recording as they are read.
#[derive(Debug)]
pub struct Unpacking {
    directory: PrivateDirectory,
    /// Bytes that may still come.
    room: u64,
}

impl Unpacking {
    /// Into a directory for us alone.
    pub fn new() -> Result<Self> {
        Ok(Self { directory: PrivateDirectory::create()?, room: MOST })
    }

    /// The next piece of the file called `name`; those of other names are left out.
    ///
    /// # Errors
    /// When it cannot be written, or all of it together fits into no machine.
    pub fn take(&mut self, name: &str, piece: &[u8]) -> std::io::Result<()> {
        if name != HYPERVISOR && !GuestFiles::NAMES.contains(&name) {
            return Ok(());
        }
        let room = self.room.checked_sub(piece.len() as u64);
        self.room =
            room.ok_or_else(|| Error::new(ErrorKind::FileTooLarge, "the software in it fits into no machine"))?;
        File::options().create(true).append(true).open(self.directory.path().join(name))?.write_all(piece)
    }

    /// All of it has come.
    pub fn finish(self) -> Result<Software> {
        let hypervisor = self.directory.path().join(HYPERVISOR);
        ensure!(hypervisor.is_file(), "there is no hypervisor in the recording");
        let guest = GuestFiles::unpacked(self.directory.path()).context("there is no guest in the recording")?;
        Ok(Software { directory: self.directory, hypervisor, guest })
    }
}

/// What a machine says that matters here.
#[derive(Debug)]
pub enum News {
    /// It cannot go on, or will not begin.
    Halted(String),
    /// Where the guest stands, when it found a difference.
    Stands(Map<String, Value>),
    /// It answers to a debugger: the event's name and fields.
    Answer(String, Map<String, Value>),
}

/// A machine, and the wire to it.
#[derive(Debug)]
pub struct Stage {
    machine: Machine,
    _networks: Networks,
    /// Where it comes to.
    pub listener: TcpListener,
    events: Receiver<Event>,
    log: PathBuf,
}

impl Stage {
    /// Starts a machine of this software in `emulator`, made as it was `setup`; it gets this key. Its log goes into
    /// `directory`.
    pub fn start(
        emulator: Emulator,
        setup: &Setup,
        software: &Software,
        key: Secret,
        directory: &Path,
    ) -> Result<Self> {
        let private = software.directory.path();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
        listener.set_nonblocking(true).context("cannot listen")?;
        let primary = SocketAddrV4::new(Slot::Castor.log_address().parse().context("castor's address")?, LOG_PORT);
        let networks = Networks::start(&NetworkConfig {
            transport: emulator.transport(),
            sockets: private,
            captures: None,
            forwards: &[],
            tap: None,
            arbiter: None,
            station: Some((primary, listener.local_addr().context("cannot listen")?)),
            boot: None,
            pair: false,
            seed: 0,
        })?;
        let options = CommandLine::replay(&setup.options, emulator);
        let card = |&purpose: &Purpose| -> Result<Card> {
            let network = purpose.network();
            Ok(Card { purpose, plug: networks.plug(network, SLOT)?, mac: SLOT.mac(network).to_owned() })
        };
        let log = directory.join(format!("{NAME}.log"));
        fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
        let lines = Lines::open(emulator, private, NAME, &log)?;
        let command = emulator.command(&MachineSpec {
            name: NAME,
            memory_mib: setup.memory_mib,
            hypervisor: &software.hypervisor,
            guest: &software.guest,
            secrets: vec![("key", key), ("seed", Secret::draw()?)],
            options,
            directory,
            private,
            log: lines.log_address()?,
            monitor: lines.monitor_address(),
            cards: emulator.cards().iter().map(card).collect::<Result<_>>()?,
            drive: None,
        })?;
        let (sender, events) = mpsc::sync_channel(QUEUE);
        let complaints = directory.join(format!("{NAME}.emulator.log"));
        let machine = Machine::start(SLOT, 1, command, lines, complaints, &sender)?;
        Ok(Self { machine, _networks: networks, listener, events, log })
    }

    /// What it has said since the last call. An error if its process has ended.
    pub fn news(&mut self) -> Result<Vec<News>> {
        let mut news = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Connected { generation, stream, .. } => self.machine.connect(generation, stream),
                Event::Monitor { generation, line, .. } => {
                    self.machine.hear(generation, &line);
                    if let Line::Event(name, fields) = line {
                        match name.as_str() {
                            "stands" => news.push(News::Stands(fields)),
                            "halt" => {
                                news.push(News::Halted(self.machine.halt_reason().unwrap_or_default().to_owned()))
                            }
                            name if name == "refused" || name.starts_with("debug-") => {
                                news.push(News::Answer(name.to_owned(), fields));
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if let Some(how) = self.machine.ended()? {
            news.push(News::Halted(format!("its process has ended ({how})")));
        }
        Ok(news)
    }

    /// Types a command at its monitor.
    pub fn command(&mut self, text: &str) -> Result<()> {
        self.machine.command(text)
    }

    /// What its log says last.
    pub fn last_words(&self) -> String {
        tail(&self.log, 8).join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_has_an_end() {
        let mut unpacking = Unpacking { room: 5, ..Unpacking::new().unwrap() };
        unpacking.take("kernel", b"abc").unwrap();
        unpacking.take("../elsewhere", b"not kept, and not counted").unwrap();
        unpacking.take(HYPERVISOR, b"de").unwrap();
        assert!(unpacking.take("kernel", b"f").unwrap_err().to_string().contains("fits into no machine"));
        let software = unpacking.finish().unwrap();
        assert_eq!(fs::read(software.directory.path().join("kernel")).unwrap(), b"abc");
    }
}
