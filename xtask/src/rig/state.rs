//! The rig itself.

mod answer;
mod boot;
mod keys;
mod news;
mod revive;

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::arbiter::{Arbiter, Choice};
use super::control;
use super::directory::{Directory, PrivateDirectory};
use super::emulator::{Card, MachineSpec, Purpose};
use super::history::{History, Record};
use super::logs::tail;
use super::machine::{Lines, Machine};
use super::network::{NetworkConfig, Networks};
use super::options::{CommandLine, Disk, Part};
use super::recording::{RECORDER, Recording, Setup};
use super::roles::Role;
use super::snapshot::{Notice, TakeoverEntry};
use super::{Config, Event, SLOTS, Slot, probe};
use crate::net::Forward;
use crate::output::{complain, say};
use crate::secret::Secret;
use crate::units::format_bytes;

/// Events that may wait for the main loop before their senders have to.
const QUEUE: usize = 1024;
/// Events handled in one step, so that a flood of them does not keep us from the rest.
const BATCH: usize = 256;
/// How often the networks are asked whether they are still there.
const NETWORK_CHECK: Duration = Duration::from_secs(1);

/// A place for a machine.
#[derive(Debug)]
struct Place {
    slot: Slot,
    machine: Option<Machine>,
    serial: PathBuf,
    last_end: Option<String>,
    /// Since when its role is dead.
    dead_since: Option<Instant>,
}

/// A running rig. Dropping it ends everything that was started.
#[derive(Debug)]
pub struct Rig {
    places: Vec<Place>,
    networks: Networks,
    arbiter: Option<Arbiter>,
    recording: Option<Recording>,
    networks_checked: Instant,
    private: PrivateDirectory,
    directory: Directory,
    config: Config,
    events: Receiver<Event>,
    sender: SyncSender<Event>,
    generation: u64,
    started: Instant,
    service: String,
    roles: Vec<Role>,
    protected: bool,
    protection_changed: Instant,
    first_protected: Option<Duration>,
    first_answer: Option<Duration>,
    takeovers: Vec<TakeoverEntry>,
    notices: Vec<Notice>,
    shown_notices: usize,
    console: Option<File>,
    history: History,
    powered_off: bool,
    stop: bool,
}

impl Rig {
    /// Starts everything.
    pub fn start(config: Config, directory: Directory) -> Result<Self> {
        let private = PrivateDirectory::create()?;
        let choice = if config.solo { Choice::Off } else { config.arbiter };
        let options = &config.options;
        let arbiter = Arbiter::start(choice, directory.path(), options.pair(), options.key.as_ref())?;
        let recording = start_recording(&config)?;
        let boot = config.emulator.boots_by_network().then(|| boot::prepare(&config, private.path())).transpose()?;
        let networks = Networks::start(&NetworkConfig {
            transport: config.emulator.transport(),
            sockets: private.path(),
            captures: config.capture.then(|| directory.path()),
            forwards: &config.forwards,
            tap: config.tap.as_deref(),
            arbiter: arbiter.as_ref().map(Arbiter::addresses),
            station: recording.as_ref().map(|recording| (RECORDER, recording.address())),
            boot,
            pair: !config.solo,
            seed: config.seed,
        })?;
        let (sender, events) = mpsc::sync_channel(QUEUE);
        control::serve(&private.path().join("control"), sender.clone())?;
        let service = networks.service();
        let slots = if config.solo { &SLOTS[..1] } else { &SLOTS[..] };
        let places = slots.iter().map(|&slot| new_place(slot, directory.path())).collect::<Result<Vec<_>>>()?;
        let console = File::create(directory.path().join("console.log")).context("cannot write console.log")?;
        let mut history = History::create(directory.path())?;
        let now = Instant::now();
        let names = slots.iter().map(|slot| slot.name().to_owned()).collect();
        history.write(now, Record::start(names, config.emulator.description().to_owned()));
        let mut rig = Self {
            roles: vec![Role::Dead; places.len()],
            places,
            networks,
            arbiter,
            recording,
            networks_checked: now,
            private,
            directory,
            config,
            events,
            sender,
            generation: 0,
            started: now,
            service: service.to_string(),
            protected: false,
            protection_changed: now,
            first_protected: None,
            first_answer: None,
            takeovers: Vec::new(),
            notices: Vec::new(),
            shown_notices: 0,
            console: Some(console),
            history,
            powered_off: false,
            stop: false,
        };
        let parts: &[_] = match () {
            () if rig.config.solo => &[Part::Solo],
            () if rig.config.late_backup => &[Part::Primary],
            () => &[Part::Primary, Part::Backup],
        };
        for (index, &part) in parts.iter().enumerate() {
            rig.start_machine(index, part)?;
        }
        rig.update()?;
        let services = rig.config.services.iter();
        let services: Vec<_> =
            services.filter_map(|service| Some((rig.networks.address(service.port)?, *service))).collect();
        if !services.is_empty() {
            probe::start(services, rig.sender.clone());
        }
        Ok(rig)
    }

    /// The rig's directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Whether a machine runs the guest instead of its twin, or did.
    pub fn has_taken_over(&self) -> bool {
        !self.takeovers.is_empty()
    }

    /// The local ports that lead to the guest.
    pub fn forwards(&self) -> &[Forward] {
        self.networks.forwards()
    }

    /// The machines' names, and where each answers by HTTP, if it does.
    pub fn stations(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> + '_ {
        self.places.iter().filter_map(|place| Some((place.slot.name(), self.networks.http(place.slot)?)))
    }

    /// Where clients reach the guest.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Handles what has happened, waiting for something no longer than `patience`.
    pub fn step(&mut self, patience: Duration) -> Result<()> {
        if let Ok(event) = self.events.recv_timeout(patience) {
            self.handle(event)?;
        }
        for _ in 0..BATCH {
            let Ok(event) = self.events.try_recv() else { break };
            self.handle(event)?;
        }
        for index in 0..self.places.len() {
            let place = &mut self.places[index];
            if let Some(how) = place.machine.as_mut().map(Machine::ended).transpose()?.flatten() {
                self.bury(index, how);
            }
        }
        self.revive();
        if self.history.is_due(self.started)
            && let Ok(stats) = self.networks.stats()
        {
            self.history.traffic(self.started, Record::traffic(&stats, self.places.len()));
        }
        if self.networks_checked.elapsed() >= NETWORK_CHECK {
            self.networks_checked = Instant::now();
            if let Some(why) = self.recording.as_mut().and_then(Recording::trouble) {
                self.notice(format!("the recording has ended, and the rig goes on: {why}"));
                self.recording = None;
            }
            if let Err(ended) = self.networks.stats() {
                self.networks.end().context("the networks failed")?;
                return Err(ended);
            }
        }
        self.update()
    }

    /// What has happened since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        let fresh = self.notices[self.shown_notices.min(self.notices.len())..].to_vec();
        self.shown_notices = self.notices.len();
        fresh
    }

    /// Whether somebody asked for the end at the control socket.
    pub fn stop_requested(&self) -> bool {
        self.stop
    }

    /// Whether no machine is left that could go on; the guest having ended properly is fine, anything else an error.
    pub fn is_over(&self) -> Result<bool> {
        if self.roles.iter().any(|role| *role != Role::Dead) {
            return Ok(false);
        }
        if self.powered_off {
            return Ok(true);
        }
        if self.config.auto && self.config.revive.is_some() {
            return Ok(false);
        }
        let mut report = "no machine is left".to_owned();
        for place in &self.places {
            let halted =
                place.machine.as_ref().and_then(Machine::halt_reason).map(|reason| format!("halted: {reason}"));
            let how = halted.or_else(|| place.last_end.clone()).unwrap_or_else(|| "halted".to_owned());
            report += &format!("\n{}: {how}; the end of {}:\n", place.slot.name(), place.serial.display());
            report += &tail(&place.serial, 8).join("\n");
        }
        bail!(report)
    }

    /// Cuts the power of `primary`, `backup` or a machine by name.
    pub fn kill(&mut self, target: &str) -> Result<String> {
        let index = self.find(target)?;
        let name = self.places[index].slot.name();
        let Some(machine) = &mut self.places[index].machine else { bail!("{name} is dead already") };
        machine.kill();
        self.bury(index, "killed on request".to_owned());
        self.update()?;
        Ok(format!("killed {name}"))
    }

    /// Starts a dead machine as backup, unless there is a backup already or one is on its way.
    pub fn start_backup(&mut self) -> Result<String> {
        if self.config.solo {
            bail!("this rig has one machine only (--solo)");
        }
        self.update()?;
        let Some(index) = self.roles.iter().position(|role| *role == Role::Dead) else {
            let roles = self.places.iter().zip(&self.roles);
            let other = roles.map(|(place, role)| format!("{} is {}", place.slot.name(), role.word()));
            return Ok(format!("nothing to start: {}", other.collect::<Vec<_>>().join(", ")));
        };
        if self.roles.iter().all(|role| *role == Role::Dead) && !self.config.auto {
            bail!("both machines are dead: there is no guest left to protect");
        }
        if let Some(machine) = &mut self.places[index].machine {
            machine.kill();
            self.bury(index, "ended to be started anew".to_owned());
        }
        self.start_machine(index, Part::Backup)?;
        self.update()?;
        let part = if self.config.auto { Part::Auto } else { Part::Backup };
        Ok(format!("started {} as {}", self.places[index].slot.name(), part.word()))
    }

    fn start_machine(&mut self, index: usize, part: Part) -> Result<()> {
        let part = if self.config.auto { Part::Auto } else { part };
        let place = &self.places[index];
        let (slot, name) = (place.slot, place.slot.name());
        let emulator = self.config.emulator;
        let asked = self.arbiter.as_ref().map(Arbiter::asked);
        let options = CommandLine::new(slot, part, emulator, asked, &self.config.options);
        let card = |&purpose: &Purpose| -> Result<Card> {
            let network = purpose.network();
            let guests_own = purpose == Purpose::Client && emulator.nics_are_strict();
            let mac = options.value("guest-mac").filter(|_| guests_own).unwrap_or_else(|| slot.mac(network));
            Ok(Card { purpose, plug: self.networks.plug(network, slot)?, mac: mac.to_owned() })
        };
        let cards = emulator.cards().iter().map(card).collect::<Result<_>>()?;
        let keys = self.config.options.key_modules();
        let secrets = keys.filter(|_| part != Part::Solo).chain([("seed", Secret::draw()?)]).collect();
        let lines = Lines::open(emulator, self.private.path(), name, &place.serial)?;
        let command = emulator.command(&MachineSpec {
            name,
            memory_mib: self.machine_memory_mib(&options)?,
            hypervisor: &self.config.hypervisor,
            guest: &self.config.guest,
            secrets,
            options,
            directory: self.directory.path(),
            private: self.private.path(),
            log: lines.log_address()?,
            monitor: lines.monitor_address(),
            cards,
            drive: self.config.options.disk.and_then(Disk::drive_bytes),
        })?;
        self.generation += 1;
        let complaints = self.directory.path().join(format!("{name}.emulator.log"));
        let machine = Machine::start(slot, self.generation, command, lines, complaints, &self.sender)?;
        let text = format!("{name}: started as {} (pid {})", part.word(), machine.pid());
        self.places[index].machine = Some(machine);
        self.notice(text);
        Ok(())
    }

    /// How much memory a machine needs that is started with `options`.
    fn machine_memory_mib(&self, options: &CommandLine) -> Result<u64> {
        let files = self.config.guest.len()?;
        Ok((options.machine_memory(&self.config.options, files) + self.config.emulator.firmware_memory()) >> 20)
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Connected { slot, generation, stream } => {
                if let Some(machine) = &mut self.places[slot.index()].machine {
                    machine.connect(generation, stream);
                }
            }
            Event::Monitor { slot, generation, line } => {
                let machine = self.places[slot.index()].machine.as_mut();
                if machine.is_some_and(|machine| machine.hear(generation, &line)) {
                    self.update()?;
                    self.note_line(slot, line);
                }
            }
            Event::Malformed { slot, generation, text, column, error } => {
                if let Some(machine) = &mut self.places[slot.index()].machine {
                    machine.count_malformed(generation);
                    if machine.malformed == 1 {
                        let text: String = text.chars().skip(column.saturating_sub(40)).take(80).collect();
                        self.notice(format!("{}: its monitor says `{text}`: {error}", slot.name()));
                    }
                }
            }
            Event::Control { request, reply } => {
                let response = self.answer(request);
                // Whoever asked may be gone.
                let _ = reply.send(response);
            }
            Event::Answered if self.first_answer.is_none() => {
                let after = self.started.elapsed();
                self.first_answer = Some(after);
                self.notice(format!("the guest answers, {:.1} s after the start", after.as_secs_f64()));
                if self.config.late_backup && self.places.get(1).is_some_and(|place| place.machine.is_none()) {
                    self.start_machine(1, Part::Backup)?;
                    self.update()?;
                }
            }
            Event::Answered => {}
        }
        Ok(())
    }

    /// The place of `primary`, `backup` or a machine by name.
    fn find(&self, target: &str) -> Result<usize> {
        let position = |role| self.roles.iter().position(|other| *other == role);
        let found = match target {
            "primary" => position(Role::Primary),
            "backup" => position(Role::Backup).or_else(|| position(Role::Primary).and(position(Role::Joining))),
            name => {
                let slot: Slot = name.parse().map_err(anyhow::Error::msg)?;
                self.places.iter().position(|place| place.slot == slot)
            }
        };
        found.with_context(|| format!("there is no {target} at the moment"))
    }

    fn bury(&mut self, index: usize, how: String) {
        let place = &mut self.places[index];
        place.machine = None;
        let text = format!("{}: its process has ended ({how})", place.slot.name());
        place.last_end = Some(how);
        self.notice(text);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // First the last words for the recorder: those of machines that die now are lost on their way.
        if let Some(recording) = self.recording.take() {
            match recording.finish() {
                Ok(Some((path, sessions, size))) => {
                    say!("recording: {}, {}, {sessions} sessions", path.display(), format_bytes(size as f64));
                }
                Ok(None) => {}
                Err(error) => complain!("warning: {error:#}"),
            }
        }
        self.places.clear();
        self.history.write(self.started, Record::End);
        for result in [self.networks.end(), self.directory.close()] {
            if let Err(error) = result {
                complain!("warning: {error:#}");
            }
        }
    }
}

/// Begins to record, if that was asked for.
fn start_recording(config: &Config) -> Result<Option<Recording>> {
    let Some(path) = &config.record else { return Ok(None) };
    let (options, emulator) = (&config.options, config.emulator);
    let line = CommandLine::new(Slot::Pollux, Part::Backup, emulator, None, options);
    let memory = line.machine_memory(options, config.guest.len()?) >> 20;
    let setup = Setup::new(emulator, memory, line.words().collect());
    Recording::start(path, &setup, &config.hypervisor, &config.guest, options.pair(), options.key.as_ref()).map(Some)
}

fn new_place(slot: Slot, directory: &Path) -> Result<Place> {
    let serial = directory.join(format!("{}.log", slot.name()));
    File::create(&serial).with_context(|| format!("cannot write {}", serial.display()))?;
    Ok(Place { slot, machine: None, serial, last_end: None, dead_since: None })
}
