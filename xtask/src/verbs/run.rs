//! `cargo xtask qemu` and `cargo xtask bochs`: builds, starts a rig, shows it, and ends it.

use std::io::IsTerminal;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use super::probe;
use crate::guest::Probe;
use crate::net::{Forward, MAX_FORWARDS, Protocol};
use crate::output::{complain, say};
use crate::rig::accelerator::{self, Wish};
use crate::rig::arbiter::Choice;
use crate::rig::directory::{Directory, UDP_PORT, latest_link};
use crate::rig::emulator::{Boot, Emulator, Hardware, NicModel, RtcClock};
use crate::rig::options::{GUEST_PORT, parse_forward};
use crate::rig::software::{COUNTER, Software, SoftwareArgs};
use crate::rig::{Config, Rig};
use crate::secret::Secret;
use crate::units::parse_duration;
use crate::view::{Key, View, live::Live, plain::Plain};
use crate::{interrupt, needs, timeline};

/// The main loop looks at least so often after its children and the keyboard.
const STEP: Duration = Duration::from_millis(20);
/// How long the networks go on when the guest has powered off: its last frames are on their way to clients.
const LAST_FRAMES: Duration = Duration::from_millis(500);

/// Options of a rig in QEMU.
#[derive(Debug, Args)]
pub struct QemuArgs {
    #[command(flatten)]
    run: RunArgs,
    /// How the emulator runs instructions
    #[arg(long, value_enum, default_value_t = Wish::Auto)]
    accel: Wish,
    /// The model of the network cards
    #[arg(long, value_enum, default_value_t = NicModel::E1000e)]
    nic: NicModel,
    /// What the machines boot from, and by which firmware
    #[arg(long, value_enum, default_value_t = Boot::Kernel)]
    boot: Boot,
    /// What runs the machines' wall clocks: `vm`, for what is measured in instructions
    #[arg(long, value_enum, default_value_t = RtcClock::Host, hide = true)]
    rtc: RtcClock,
}

/// Who says what the machines of a pair are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoleChoice {
    /// The rig: one is the primary, whoever comes later a backup
    Told,
    /// They themselves
    Auto,
}

/// When a rig's backup starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackupStart {
    /// With the primary
    Now,
    /// When the guest's services answer; of a guest that is not known, when it answers `PING` at port 6379
    Answering,
}

/// Options of a rig.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Run the guest on one machine, without replication
    #[arg(long)]
    solo: bool,
    /// Show what one machine says of itself (role=probe): whether it can run a pair, and why not; then end
    #[arg(long, conflicts_with_all = ["solo", "backup", "role", "revive", "record"])]
    probe: bool,
    /// When the backup starts [default: now; answering for a guest debian with a known service]
    #[arg(long, value_enum, value_name = "now|answering", conflicts_with = "solo")]
    backup: Option<BackupStart>,
    /// Print plain lines instead of the live view
    #[arg(long)]
    headless: bool,
    /// Where rig.json and the logs go [default: a fresh directory under target/rig]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The local TCP port that leads to the guest; 0 takes any free one
    #[arg(long, default_value_t = 7777)]
    port: u16,
    /// A local UDP port that leads to the guest's UDP port 7
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    udp: Option<u16>,
    /// Another local port that leads to the guest (repeatable): PORT:GUESTPORT, with /udp behind for UDP; PORT 0 takes any
    #[arg(long, value_name = "PORT:GUESTPORT", value_parser = parse_forward)]
    forward: Vec<Forward>,
    /// End after this time, such as 60s
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    limit: Option<Duration>,
    #[command(flatten)]
    software: SoftwareArgs,
    /// Make the client network this kernel interface instead of forwarding a port (root)
    #[arg(long, value_name = "NAME", conflicts_with_all = ["udp", "forward"])]
    tap: Option<String>,
    /// `auto`: nobody tells the machines what they are: they find out, and come back as they were started
    #[arg(long, value_enum, default_value = "told", value_name = "told|auto", conflicts_with = "solo")]
    role: RoleChoice,
    /// Start a dead machine again, as a backup, this long after its end, as a server does that boots after a power cut
    #[arg(long, value_name = "TIME", value_parser = parse_duration, conflicts_with = "solo")]
    revive: Option<Duration>,
    /// Record what the backups are told, from each state on, for `cargo xtask replay`; all of the guest is in this file
    #[arg(long, value_name = "FILE", conflicts_with = "solo")]
    record: Option<PathBuf>,
    /// Capture both networks into client.pcap and log.pcap
    #[arg(long)]
    capture: bool,
    /// The arbiter: `own` to the rig, one at HOST:PORT with the pair's key (or two in front of one store, one for the client network
    /// and one for the log network), an etcd in plain words (INSECURE), or `none`
    #[arg(long, default_value = "own", value_name = "own|none|[etcd://]HOST:PORT[,HOST:PORT]")]
    arbiter: Choice,
    /// Seed of the networks' random faults
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Runs a rig in QEMU until somebody ends it.
pub fn qemu(arguments: QemuArgs) -> Result<()> {
    let (accelerator, why) = accelerator::choose(arguments.accel, &accelerator::nested_kvm(Path::new("/")))?;
    let hardware = Hardware { nic: arguments.nic, rtc: arguments.rtc, boot: arguments.boot };
    run(Emulator::Qemu(accelerator, hardware), &why, arguments.run)
}

/// Runs a rig in Bochs until somebody ends it.
pub fn bochs(arguments: RunArgs) -> Result<()> {
    run(Emulator::Bochs, "as asked for", arguments)
}

fn run(emulator: Emulator, why: &str, arguments: RunArgs) -> Result<()> {
    let directory = Directory::take(arguments.dir.as_deref())?;
    let mut forwards = forwards(&arguments);
    check_ports(&arguments, &forwards)?;
    needs::ensure_present(emulator.needs(), arguments.software.yes)?;
    interrupt::check()?;
    let Software { hypervisor, guest, mut options, mut services, boots_long } =
        arguments.software.build(|| Secret::draw().map(Some))?;
    options.record = arguments.record.is_some();
    if arguments.probe {
        options.given.extend(probe::options()?);
        services.clear();
    }
    // One machine boots faster than two that share a desk.
    let usual = if boots_long && !services.is_empty() { BackupStart::Answering } else { BackupStart::Now };
    let backup = arguments.backup.unwrap_or(usual);
    if services.is_empty() && backup == BackupStart::Answering && !arguments.probe {
        services.push(COUNTER);
    }
    add_services(&mut forwards, &services);
    let names: Vec<_> = services.iter().map(|service| (service.port, service.name)).collect();
    let limit = arguments.limit;
    let live = !arguments.headless && std::io::stdout().is_terminal() && std::io::stdin().is_terminal();

    say!("emulator: {} ({why})", emulator.description());
    say!("directory: {}", directory.path().display());
    if arguments.dir.is_none() {
        remember_latest(&directory);
    }
    let config = Config {
        emulator,
        hypervisor,
        solo: arguments.solo || arguments.probe,
        forwards,
        tap: arguments.tap,
        capture: arguments.capture,
        record: arguments.record,
        arbiter: arguments.arbiter,
        seed: arguments.seed,
        auto: arguments.role == RoleChoice::Auto,
        revive: arguments.revive,
        services,
        // Machines that find out by themselves what they are need each other for that.
        late_backup: backup == BackupStart::Answering && arguments.role == RoleChoice::Told,
        guest,
        options,
    };
    let mut rig = Rig::start(config, directory)?;
    if arguments.probe {
        return probe::show(&mut rig, limit);
    }
    let service = rig.service();
    let (address, port) = service.split_once(':').unwrap_or((service, ""));
    let host = if address == "127.0.0.1" { String::new() } else { format!(" -h {address}") };
    say!("service: {service} (try: redis-cli{host} -p {port} INCR x)");

    for forward @ Forward { protocol, local, guest_port } in rig.forwards().iter().skip(1) {
        let service = names.iter().find(|(port, _)| forward.leads_to(*port));
        let name = service.map_or_else(String::new, |(_, name)| format!(", {name}"));
        say!("forwarded: {local} ({}) to the guest's port {guest_port}{name}", protocol.name());
    }
    for (name, address) in rig.stations() {
        say!("{name}: http://{address}/status, /metrics, /healthz");
    }
    if arguments.software.is_default() {
        say!("guest: `counter`, a small one of our own; a whole Linux: cargo xtask qemu --guest debian");
    }

    let mut view: Box<dyn View> = if live { Box::new(Live::new()?) } else { Box::new(Plain::new()) };
    let result = drive(&mut rig, view.as_mut(), limit);
    // The terminal first, so that what follows can be read.
    drop(view);
    let (path, worth_a_look) = (rig.directory().to_owned(), rig.has_taken_over());
    drop(rig);
    if worth_a_look {
        match timeline::write(&path) {
            Ok(page) => say!("timeline: {}", page.display()),
            Err(error) => complain!("warning: no timeline: {error:#}"),
        }
    }
    result
}

/// The main loop.
fn drive(rig: &mut Rig, view: &mut dyn View, limit: Option<Duration>) -> Result<()> {
    let end = limit.map(|limit| Instant::now() + limit);
    loop {
        rig.step(STEP)?;
        for notice in rig.take_notices() {
            view.notice(&notice)?;
        }
        view.refresh(rig)?;
        let answer = match view.key()? {
            None => Ok(String::new()),
            Some(Key::KillPrimary) => rig.kill("primary"),
            Some(Key::KillBackup) => rig.kill("backup"),
            Some(Key::NewBackup) => rig.start_backup(),
            Some(Key::Quit) => return Ok(()),
        };
        view.answer(match answer {
            Ok(text) => text,
            Err(error) => format!("{error:#}"),
        })?;
        if rig.is_over()? {
            std::thread::sleep(LAST_FRAMES);
            return Ok(());
        }
        if interrupt::pending() || rig.stop_requested() || end.is_some_and(|end| Instant::now() >= end) {
            return Ok(());
        }
    }
}

/// All ports that lead to the guest, that of its usual service first.
fn forwards(arguments: &RunArgs) -> Vec<Forward> {
    let service = Forward::new(Protocol::Tcp, arguments.port, GUEST_PORT);
    let echo = arguments.udp.map(|port| Forward::new(Protocol::Udp, port, UDP_PORT));
    [service].into_iter().chain(echo).chain(arguments.forward.iter().copied()).collect()
}

/// Adds a free port for each service that none leads to yet, as far as there are any left.
fn add_services(forwards: &mut Vec<Forward>, services: &[Probe]) {
    for service in services {
        if !forwards.iter().any(|forward| forward.leads_to(service.port)) && forwards.len() < MAX_FORWARDS {
            forwards.push(Forward::new(Protocol::Tcp, 0, service.port));
        }
    }
}

/// Refuses ports in use before anything is built or started.
fn check_ports(arguments: &RunArgs, forwards: &[Forward]) -> Result<()> {
    if arguments.tap.is_some() {
        if !needs::is_root() {
            bail!("--tap creates a network interface and needs root");
        }
        return Ok(());
    }
    // All are held until all were tried: two that are the same are found as well.
    let mut held: (Vec<TcpListener>, Vec<UdpSocket>) = Default::default();
    for forward in forwards {
        let option = match forward {
            Forward { guest_port: GUEST_PORT, protocol: Protocol::Tcp, .. } => "--port",
            Forward { guest_port: UDP_PORT, protocol: Protocol::Udp, .. } => "--udp",
            _ => "--forward",
        };
        let advice = || format!("cannot use port {}: choose another with {option}", forward.local);
        match forward.protocol {
            Protocol::Tcp => held.0.push(TcpListener::bind(forward.local).with_context(advice)?),
            Protocol::Udp => held.1.push(UdpSocket::bind(forward.local).with_context(advice)?),
        }
    }
    Ok(())
}

/// Only a convenience: its failure is none of the rig's.
fn remember_latest(directory: &Directory) {
    let link = latest_link();
    let _ = std::fs::remove_file(&link);
    let _ = std::os::unix::fs::symlink(directory.path(), &link);
}
