//! `cargo xtask qemu`: builds, starts a rig, shows it, and ends it.

use std::io::IsTerminal;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::accelerator::{self, Wish};
use super::arbiter::Choice;
use super::directory::{Directory, default_parent};
use super::emulator::{Emulator, NicModel};
use super::options::{Common, GUEST_ARGUMENTS, GivenOption, parse_guest_arguments};
use super::{Config, Rig};
use crate::units::{parse_duration, parse_size};
use crate::view::{Key, View, live::Live, plain::Plain};
use crate::{artefacts, interrupt, needs};

/// The guest that speaks the protocol the rig can probe.
const PROBED_GUEST: &str = "counter";
/// The main loop looks at least so often after its children and the keyboard.
const STEP: Duration = Duration::from_millis(20);
/// Guest memory that makes sense.
const MEMORY_RANGE: std::ops::RangeInclusive<u64> = 8 << 20..=3 << 30;

/// Options of a rig.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Run the guest on one machine, without replication
    #[arg(long)]
    solo: bool,
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
    /// End after this time, such as 60s
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    limit: Option<Duration>,
    /// One of our guests, or the path of an image
    #[arg(long, default_value = PROBED_GUEST, value_name = "NAME|PATH")]
    guest: String,
    /// The guest's command line
    #[arg(long, default_value = GUEST_ARGUMENTS, value_name = "TEXT", value_parser = parse_guest_arguments)]
    guest_args: String,
    /// The guest's memory
    #[arg(long, default_value = "64M", value_name = "SIZE", value_parser = parse_memory)]
    guest_memory: u64,
    /// How the emulator runs instructions
    #[arg(long, value_enum, default_value_t = Wish::Auto)]
    accel: Wish,
    /// The model of the network cards
    #[arg(long, value_enum, default_value_t = NicModel::E1000e)]
    nic: NicModel,
    /// Make the client network this kernel interface instead of forwarding a port (root)
    #[arg(long, value_name = "NAME", conflicts_with = "udp")]
    tap: Option<String>,
    /// Capture both networks into client.pcap and log.pcap
    #[arg(long)]
    capture: bool,
    /// The arbiter: `own` to the rig, one at HOST:PORT (an etcd), or `none`
    #[arg(long, default_value = "own", value_name = "own|none|HOST:PORT")]
    arbiter: Choice,
    /// Seed of the networks' random faults
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// An option of the hypervisors, or of one: [MACHINE:]KEY=VALUE (repeatable)
    #[arg(long, value_name = "OPTION", num_args = 1..)]
    hypervisor_option: Vec<GivenOption>,
    /// Use this hypervisor instead of building one
    #[arg(long, value_name = "PATH")]
    hypervisor: Option<PathBuf>,
    /// Install what is missing
    #[arg(long)]
    yes: bool,
}

fn parse_memory(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if !bytes.is_multiple_of(2 << 20) || !MEMORY_RANGE.contains(&bytes) {
        return Err(format!("`{text}` is not an even number of MiB from 8M to 3G"));
    }
    Ok(bytes)
}

/// Runs a rig until somebody ends it.
pub fn run(arguments: RunArgs) -> Result<()> {
    let (accelerator, why) = accelerator::choose(arguments.accel, &accelerator::nested_kvm(Path::new("/")))?;
    let emulator = Emulator::Qemu(accelerator);
    let directory = Directory::take(arguments.dir.as_deref())?;
    check_ports(&arguments)?;
    needs::ensure_present(emulator.needs(), arguments.yes)?;
    interrupt::check()?;
    // The guest first: a wrong name should not have to wait for the hypervisor's build.
    let guest = artefacts::guest(&arguments.guest, arguments.guest_memory)?;
    let hypervisor = match &arguments.hypervisor {
        Some(path) => path.canonicalize().with_context(|| format!("hypervisor {}", path.display()))?,
        None => artefacts::build_hypervisor()?,
    };
    let limit = arguments.limit;
    let live = !arguments.headless && std::io::stdout().is_terminal() && std::io::stdin().is_terminal();

    println!("emulator: {} ({why})", emulator.description());
    println!("directory: {}", directory.path().display());
    if arguments.dir.is_none() {
        remember_latest(&directory);
    }
    let config = Config {
        emulator,
        hypervisor,
        solo: arguments.solo,
        nic: arguments.nic,
        port: arguments.port,
        udp: arguments.udp,
        tap: arguments.tap,
        capture: arguments.capture,
        arbiter: arguments.arbiter,
        seed: arguments.seed,
        probe: arguments.guest == PROBED_GUEST,
        guest,
        options: Common {
            guest_memory: arguments.guest_memory,
            guest_arguments: arguments.guest_args,
            given: arguments.hypervisor_option,
        },
    };
    let mut rig = Rig::start(config, directory)?;
    let service = rig.service();
    let (address, port) = service.split_once(':').unwrap_or((service, ""));
    let host = if address == "127.0.0.1" { String::new() } else { format!(" -h {address}") };
    println!("service: {service} (try: redis-cli{host} -p {port} INCR x)");

    let mut view: Box<dyn View> = if live { Box::new(Live::new()?) } else { Box::new(Plain::new()) };
    let result = drive(&mut rig, view.as_mut(), limit);
    // The terminal first, so that what follows can be read.
    drop(view);
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
        let over = rig.is_over()?;
        if over || interrupt::pending() || rig.stop_requested() || end.is_some_and(|end| Instant::now() >= end) {
            return Ok(());
        }
    }
}

/// Refuses ports in use before anything is built or started.
fn check_ports(arguments: &RunArgs) -> Result<()> {
    if arguments.tap.is_some() {
        if !needs::is_root() {
            bail!("--tap creates a network interface and needs root");
        }
        return Ok(());
    }
    let advice = |port| format!("cannot use port {port} on 127.0.0.1: choose another");
    TcpListener::bind((Ipv4Addr::LOCALHOST, arguments.port))
        .with_context(|| advice(arguments.port) + " with --port")?;
    if let Some(port) = arguments.udp {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| advice(port) + " with --udp")?;
    }
    Ok(())
}

/// Where the newest rig in the default place is, for `cargo xtask rig` without `--dir`.
pub fn latest_link() -> PathBuf {
    default_parent().join("latest")
}

/// Only a convenience: its failure is none of the rig's.
fn remember_latest(directory: &Directory) {
    let link = latest_link();
    let _ = std::fs::remove_file(&link);
    let _ = std::os::unix::fs::symlink(directory.path(), &link);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_limits() {
        assert_eq!(parse_memory("64M"), Ok(64 << 20));
        for bad in ["1M", "4G", "64", "5000K", "x"] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }
}
