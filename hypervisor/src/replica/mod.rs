//! This machine at work: joins its devices with the guest's driver.
//!
//! One thread does everything in turn: take in what the host's devices have, give the driver its turn, sleep if that has
//! nothing to do. What is done when, and why, is written in [`pollux_driver`].

pub mod arbiter;
mod client;
mod console;
mod cut;
mod debugger;
mod disk;
pub mod drive;
mod farewell;
mod front;
mod guest;
pub mod json;
mod keys;
pub mod label;
pub mod link;
mod machine;
pub mod monitor;
mod observe;
mod recorder;
mod report;
mod service;
pub mod stack;
mod station;
mod status;
pub mod syslog;

use alloc::format;
use alloc::string::String;

use pollux_driver::{Clock, Driver, Duty, Next, Tuning};
use pollux_ft::arbiter::Manner;
use pollux_ft::{Identity, Node, NodeId, Protection, Span, Start, Time};
use pollux_nic::MacAddress;
use pollux_nic::e1000::E1000;
use xxhash_rust::xxh64::xxh64;

use self::arbiter::Arbiter;
use self::client::{Client, Speaker};
use self::cut::Cut;
use self::debugger::Hold;
use self::disk::OwnDisk;
use self::drive::Drive;
use self::farewell::Farewell;
use self::link::{End, Link};
use self::machine::Machine;
use self::monitor::{Command, Monitor};
use self::recorder::Recorder;
use self::service::Service;
use self::station::Station;
use self::status::Figures;
use crate::broken::BrokenRule;
use crate::config::{Config, Disk, StartRole};
use crate::guest::Guest;
use crate::host::apic::Apic;
use crate::host::clock::{self, WallClock};
use crate::host::nic::Route;
use crate::host::watchdog::Watchdog;
use crate::host::{interrupts, reset};
use crate::platform::clock::RATE_ONE;
use crate::random::Random;

/// Longest time that the machine sleeps without looking around.
const LONGEST_SLEEP: Span = Span::from_millis(1000);

/// What a replica is made of.
pub struct Parts {
    /// The options.
    pub config: Config,
    /// This CPU's interrupt controller.
    pub apic: Apic,
    /// The wall clock.
    pub clock: WallClock,
    /// This machine's random numbers.
    pub random: Random,
    /// What protects the words of this machine and its twin.
    pub protection: Protection,
    /// The guest; loaded, or empty on a machine that starts as backup.
    pub guest: Guest,
    /// The card that clients are on.
    pub client: Option<(E1000, Route)>,
    /// The card that the twin is on.
    pub log: Option<(E1000, Route)>,
    /// This machine's own place on the client network.
    pub machine: Option<MachinePlace>,
    /// The drive that the guest's disk lies on.
    pub drive: Option<(Drive, Route)>,
    /// What resets this machine if it hangs.
    pub watchdog: Option<Watchdog>,
}

/// By what a machine is known on the client network, beside the guest.
pub struct MachinePlace {
    /// Its MAC address; not the guest's.
    pub mac: MacAddress,
    /// Its card, if it does not share the client card.
    pub card: Option<(E1000, Route)>,
}

/// One machine at work.
pub struct Replica {
    driver: Driver<Guest>,
    machine: Machine,
    monitor: Monitor,
    watchdog: Option<Watchdog>,
}

impl Replica {
    /// Puts the parts together.
    ///
    /// # Panics
    /// When the configuration passed its checks but the protocol refuses it (a bug of ours).
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { config, apic, mut clock, mut random, protection, guest, client, log, machine, drive, watchdog } =
            parts;
        let now = clock.now();
        let mut client = client.map(|(nic, route)| Client::new(nic, route, speaker(&config)));
        let id = make_id(&mut random);
        let manners = config.arbiter.manners(&protection);
        let record_keys = protection.records();
        let node = make_node(&config, protection, &guest, id, now);
        let mut link = log.and_then(|(nic, route)| make_link(&config, random.fork(), nic, route));
        let mac = machine.as_ref().map(|place| place.mac);
        let own_card = machine.and_then(|place| place.card);
        if let (Some(mac), None, Some(client)) = (mac, &own_card, &mut client) {
            client.nic().add_machine_address(mac).expect("the machine's address was checked");
        }
        let arbiter = link.as_mut().and_then(|link| make_arbiter((&config, &manners), id, random.fork(), link, mac));
        let service = make_service(&config, random.fork(), mac);
        let recorder = link.as_mut().zip(config.record).map(|(link, server)| {
            let (pair, random) = (config.pair.clone(), random.fork());
            link.with_stack(|stack| (Recorder::new(server, record_keys, pair, random, stack), false))
        });
        let mut tuning = Tuning { transfer_stops: config.transfer_stops, ..Tuning::default() };
        if guest.counter().lends_tsc {
            // At any other rate the guest's clock reads would exit.
            tuning.rates = RATE_ONE..=RATE_ONE;
        }
        let disk = OwnDisk::new(config.disk_latency, drive);
        let (cut, figures, ending) = (Cut::default(), Figures::default(), None);
        Self {
            driver: Driver::new(now, node, guest, tuning),
            machine: Machine {
                config,
                apic,
                clock,
                client,
                link,
                own_card,
                arbiter,
                service,
                recorder,
                cut,
                disk,
                random,
                figures,
                ending,
                hold: Hold::No,
                starts_anew: false,
                farewell: Farewell::default(),
                waits_for: None,
                stranger_at: Time(0),
                now,
            },
            monitor: Monitor::default(),
            watchdog,
        }
    }

    /// Runs for ever.
    pub fn run(mut self) -> ! {
        if let Some(rule) = self.machine.config.broken_rule {
            log::warn!("break={}: a rule is switched off, {}", rule.name(), rule.warning());
            if let Some(client) = self.machine.client.as_mut().filter(|_| rule == BrokenRule::OutputRule) {
                client.nic().break_output_rule(true);
            }
        }
        if self.machine.link.is_some() && !self.driver.node().is_secure() {
            log::warn!("INSECURE: this pair has no key: everybody on the log network can decide who runs the guest");
        }
        if self.driver.node().is_secure() && self.machine.arbiter.as_ref().is_some_and(|arbiter| !arbiter.is_sealed()) {
            log::warn!(
                "INSECURE: the arbiter is asked in plain words (arbiter=etcd://): everybody on the way can answer for it"
            );
        }
        self.driver.start(&mut self.machine);
        loop {
            self.poll();
            let next = self.driver.turn(&mut self.machine);
            self.machine.debug_stopped(&mut self.driver);
            self.machine.report_end(&self.driver);
            self.machine.reset_if_due();
            if let Some(watchdog) = &mut self.watchdog {
                watchdog.goes_on(self.machine.now);
            }
            if let Next::Wait(until) = next {
                self.sleep(until);
            }
        }
    }

    /// Takes in what the host's devices have.
    fn poll(&mut self) {
        let (machine, driver) = (&mut self.machine, &mut self.driver);
        let fired = interrupts::take_fired();
        if fired.line(clock::RTC_LINE) {
            machine.clock.poll();
        }
        machine.now();
        crate::host::logger::set_time(machine.now);
        machine.poll_client(fired, driver.duty() == Duty::Live);
        machine.disk.work(fired, machine.now);
        machine.poll_link(fired, driver);
        machine.poll_arbiter(driver);
        machine.poll_service(driver);
        machine.send_for_machine();
        machine.poll_recorder(driver);
        let speaking = monitor::pump();
        if self.machine.clock.has_ticked() {
            self.serve_monitor();
            self.machine.report_waiting(&self.driver);
            if !speaking {
                self.machine.report_if_due(&self.driver);
            }
        }
    }

    fn serve_monitor(&mut self) {
        while let Some(command) = self.monitor.poll() {
            match command {
                Ok(command) if command.is_for_tests() && !self.machine.config.test_commands => {
                    monitor::event("refused", "reason", &"this command needs test-commands=on");
                }
                Ok(command) => self.obey(command),
                Err(reason) => monitor::event("refused", "reason", &reason),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let driver = &mut self.driver;
        match command {
            Command::Status => self.machine.report(driver),
            Command::Stop => driver.stop(&mut self.machine),
            Command::Switch if driver.request_switch() => {}
            Command::Switch => monitor::event("refused", "reason", &"there is no backup to hand the guest over to"),
            Command::AddKey(key) => self.machine.add_key(driver, &key),
            Command::ForgetKey { fingerprint, force } => self.machine.forget_key(driver, fingerprint, force),
            Command::Console(bytes) => {
                if let Err(refused) = driver.type_text(&bytes) {
                    monitor::event("refused", "reason", &refused);
                }
            }
            Command::Debug(command) => self.machine.debug(command, driver),
            Command::Cut(count) => self.machine.cut.arm(count),
            Command::Hang => {
                log::warn!("test: this machine hangs");
                reset::hang();
            }
            Command::Disk(fault) if self.machine.config.disk_takes_time() => self.machine.disk.suffer(fault),
            Command::Disk(_) => {
                monitor::event("refused", "reason", &"this command needs a disk on a drive, or with disk-latency=")
            }
            Command::FlipMemory(gpa, bit) => {
                let done = driver.guest_mut().flip_memory_bit(gpa, bit);
                log::warn!("test: bit {bit} of guest memory at {gpa:?} flipped: {done}");
            }
            Command::FlipRegister(name, bit) => {
                let done = driver.guest_mut().flip_register_bit(&name, bit);
                log::warn!("test: bit {bit} of {name} flipped: {done}");
            }
        }
    }

    /// Sleeps until a device or a timer wants attention, at most until wall time `until`.
    fn sleep(&mut self, until: Option<Time>) {
        let machine = &mut self.machine;
        let link = machine.link.as_ref().and_then(Link::poll_at);
        let arbiter = machine.arbiter.as_mut().and_then(|arbiter| arbiter.poll_at(machine.now));
        let recorder = machine.recorder.as_ref().and_then(Recorder::poll_at);
        let service = machine.service.as_mut().and_then(|service| service.poll_at(machine.now));
        let farewell = machine.farewell.look_at(machine.now);
        let wake = [until, link, arbiter, service, recorder, farewell].into_iter().flatten().min();
        let Span(us) = wake.map_or(LONGEST_SLEEP, |at| at.since(machine.now)).min(LONGEST_SLEEP);
        if us == 0 {
            return interrupts::open_window();
        }
        let before = clock::cycles();
        machine.apic.arm_timer(u32::try_from(us * machine.clock.speeds().timer).unwrap_or(u32::MAX).max(1));
        interrupts::wait();
        machine.apic.arm_timer(0);
        machine.figures.slept += clock::cycles() - before;
    }
}

/// For whom the guest may speak on the client network.
fn speaker(config: &Config) -> Speaker {
    let options = &config.arbiter;
    let machine = options.machine_address.map(|own| own.address);
    let servers = options.servers.iter().flatten().map(|server| *server.ip());
    let others = servers.chain(machine).chain(options.machine_peer).chain(options.machine_gateway).collect();
    Speaker { mac: MacAddress(config.guest_mac), bridges: config.guest_bridges, others }
}

/// A name for this start of this machine: one that starts again is another one. 0 is nobody.
fn make_id(random: &mut Random) -> NodeId {
    NodeId(random.number().max(1))
}

/// The node; a machine alone is a primary that nobody can join.
fn make_node(config: &Config, protection: Protection, guest: &Guest, id: NodeId, now: Time) -> Node {
    let (start, protocol) = match config.role {
        StartRole::Primary => (Start::Primary, config.protocol()),
        StartRole::Backup | StartRole::Replay => (Start::Backup, config.protocol()),
        StartRole::Auto => (Start::Auto, config.protocol()),
        StartRole::Solo | StartRole::Stops | StartRole::Probe => (Start::Primary, pollux_ft::Config::default()),
    };
    let protocol = pollux_ft::Config { protection, ..protocol };
    let identity = Identity {
        node: id,
        pair: config.pair.clone(),
        build: concat!(env!("CARGO_PKG_VERSION"), " ", env!("POLLUX_SOURCES")).into(),
        cpu_digest: guest.platform.cpuid_digest(),
        cpu_name: cpu_name(),
        counter: alloc::format!("{}, {}", guest.counter().counter.identity(), guest.paging_name()),
        guest_memory: guest.memory.all().len() as u64,
        guest_image: guest.image_name(),
        disk: disk_name(config, guest),
        guest_mac: config.guest_mac,
        guest_bridges: config.guest_bridges,
        broken_rule: config.broken_rule.map_or("", BrokenRule::name).into(),
    };
    Node::new(now, start, protocol, identity).expect("options were checked")
}

fn make_link(config: &Config, random: Random, nic: E1000, route: Route) -> Option<Link> {
    let end = match config.role {
        StartRole::Primary => End::Listen,
        StartRole::Backup | StartRole::Auto | StartRole::Replay => End::Connect,
        StartRole::Solo | StartRole::Stops | StartRole::Probe => return None,
    };
    Some(Link::new(nic, route, config.log_address?, config.log_peer?, end, random))
}

fn make_arbiter(
    (config, manners): (&Config, &[Manner]),
    id: NodeId,
    mut random: Random,
    link: &mut Link,
    mac: Option<MacAddress>,
) -> Option<Arbiter> {
    let options = &config.arbiter;
    if !options.is_used() {
        return None;
    }
    let routes = options.routes(config.log_address).expect("options were checked");
    let station = mac.zip(options.machine_address);
    let station = station.map(|(mac, own)| Station::new(mac, own, options.machine_gateway, random.fork()));
    let name = (config.pair.as_str(), config.name.as_str(), id);
    Some(Arbiter::new(name, routes, (manners, options), random, link, station))
}

/// Who answers people, and tells a syslog server what happens, if that is wanted.
fn make_service(config: &Config, random: Random, mac: Option<MacAddress>) -> Option<Service> {
    let options = &config.arbiter;
    let (mac, own) = mac.zip(options.machine_address)?;
    if config.http.is_none() && config.syslog.is_none() {
        return None;
    }
    let mut service = Service::new(mac, own, options.machine_gateway, config.http, random);
    if let Some(server) = config.syslog {
        service.log_to(server, &config.name);
    }
    Some(service)
}

/// The guest's disk as it is at the start: `guest` has not run yet.
fn disk_name(config: &Config, guest: &Guest) -> String {
    let bytes = guest.platform.disk().map_or(0, |(bytes, _)| bytes);
    let ends = if config.disk_takes_time() { ", takes its time" } else { "" };
    match &config.disk {
        Disk::None => "none".into(),
        Disk::Drive(_) => format!("drive, {bytes} bytes of it"),
        Disk::Ram(_) => format!("ram of {bytes} bytes{ends}"),
        Disk::Image => format!("image of {bytes} bytes, {:016x}{ends}", xxh64(guest.memory.disk(0, bytes), 0)),
    }
}

/// Vendor, name and model of this CPU, for people who wonder why two are no twins.
fn cpu_name() -> String {
    let cpuid = raw_cpuid::CpuId::new();
    let (vendor, brand) = (cpuid.get_vendor_info(), cpuid.get_processor_brand_string());
    let brand = brand.as_ref().map_or("unnamed CPU", |brand| brand.as_str().trim());
    let mut name = format!("{} {brand}", vendor.as_ref().map_or("unknown vendor", |vendor| vendor.as_str()));
    if let Some(model) = cpuid.get_feature_info() {
        let (family, number, stepping) = (model.family_id(), model.model_id(), model.stepping_id());
        name += &format!(" (family {family}, model {number}, stepping {stepping})");
    }
    name
}
