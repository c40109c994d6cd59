//! What users, guests and networks do wrong gets a clear answer, and nothing is left behind.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use pollux_tests::GUEST_MAC;
use pollux_tests::cable::Cable;
use pollux_tests::frames::{self, Socket};
use pollux_tests::resp::Client;
use pollux_tests::rig::{END_LIMIT, Platform, Rig, START_LIMIT, fresh_directory, is_running};
use pollux_tests::seed;
use pollux_tests::xtask::{self, Artefacts};
use smoltcp::wire::TcpControl;

const PATIENCE: Duration = Duration::from_secs(20);
/// All of the guest `hostile`, but for those with tests of their own below.
const HOSTILE_CASES: [&str; 25] = [
    "msr",
    "ports",
    "mmio",
    "mmio-unaligned",
    "mmio-instructions",
    "control-registers",
    "hidden-instructions",
    "pci-absent",
    "bar-over-ram",
    "lapic",
    "timer-storm",
    "uart-wide",
    "timer-flood",
    "ring-outside",
    "ring-unaligned",
    "queue-size",
    "descriptor-outside",
    "descriptor-loop",
    "descriptor-index",
    "available-jump",
    "indirect",
    "wrong-direction",
    "short-frames",
    "long-frame",
    "registers",
];
const IP: &str = "ip=10.0.2.15/24 gw=10.0.2.2";

/// The rig must end with an error that contains all of `words`.
fn refused(mut rig: Rig, words: &[&str]) -> Result<()> {
    let status = rig.wait_end(START_LIMIT)?;
    let output = rig.read("xtask.log");
    ensure!(!status.success(), "no error\n{output}");
    let missing: Vec<_> = words.iter().filter(|word| !output.contains(**word)).collect();
    ensure!(missing.is_empty(), "{missing:?} is not in\n{output}");
    let left: Vec<_> = rig.machine_pids().unwrap_or_default().into_iter().filter(|pid| is_running(*pid)).collect();
    ensure!(left.is_empty(), "left running: {left:?}");
    Ok(())
}

#[test]
fn an_unknown_hypervisor_option_is_named() -> Result<()> {
    refused(Rig::start("option", "idle", &["--hypervisor-option", "frobnicate=1"])?, &["frobnicate"])
}

#[test]
fn a_pair_with_a_key_does_not_do_without() -> Result<()> {
    let key = fresh_directory("keys")?.join("key");
    fs::write(&key, [7; 32])?;
    let given = ["--key", key.to_str().context("path")?, "--hypervisor-option", "insecure=on"];
    refused(Rig::start("key", "idle", &given)?, &["'key'", "contradict"])
}

#[test]
fn a_pair_without_a_key_says_that_it_is_insecure() -> Result<()> {
    let mut rig = Rig::start("insecure", "counter", &["--key", "none"])?;
    rig.wait("both machines warn", START_LIMIT, |rig| {
        let warned = ["castor.log", "pollux.log"].iter().all(|log| rig.read(log).contains("INSECURE"));
        Ok(warned.then_some(()))
    })?;
    rig.stop()
}

#[test]
fn contradictory_and_malformed_hypervisor_options_are_named() -> Result<()> {
    refused(Rig::start("option-value", "idle", &["--hypervisor-option", "heartbeat=soon"])?, &["heartbeat"])?;
    refused(Rig::start("option-memory", "idle", &["--hypervisor-option", "guest-memory=7"])?, &["guest-memory"])?;
    refused(Rig::start("option-disk", "idle", &["--hypervisor-option", "disk=image"])?, &["disk=image", "no module"])
}

#[test]
fn a_guest_that_is_no_elf_is_refused() -> Result<()> {
    let path = fresh_directory("images")?.join("script");
    fs::write(&path, "#!/bin/sh\necho hello\n")?;
    refused(Rig::start("no-elf", path.to_str().context("path")?, &[])?, &["no ELF", "script"])?;
    // One that only begins like an ELF gets as far as the hypervisor.
    let path = path.with_file_name("stub");
    fs::write(&path, [b"\x7fELF".as_slice(), &[0xff; 2000]].concat())?;
    refused(Rig::start("bad-elf", path.to_str().context("path")?, &[])?, &["image is not"])
}

#[test]
fn a_guest_that_is_too_large_is_refused() -> Result<()> {
    let mut image = fs::read(Artefacts::get().path("idle")?)?;
    let path = fresh_directory("large")?.join("large");
    // A file longer than the guest's memory.
    let file = fs::File::create(&path)?;
    fs::write(&path, &image)?;
    file.set_len(20 << 20)?;
    let text = path.to_str().context("path")?;
    refused(Rig::start("large-file", text, &["--guest-memory", "16M"])?, &["does not fit"])?;
    // A short file with a segment longer than the guest's memory: the first program header of type PT_LOAD.
    let first = usize::try_from(u64::from_le_bytes(image[32..40].try_into()?))?;
    let header = (0..16).map(|index| first + index * 56).find(|&at| image[at..at + 4] == [1, 0, 0, 0]);
    let header = header.context("the guest has no segment")?;
    image[header + 40..header + 48].copy_from_slice(&(1u64 << 30).to_le_bytes());
    fs::write(&path, &image)?;
    refused(Rig::start("large-segment", text, &["--guest-memory", "16M"])?, &["memory"])
}

#[test]
fn twins_with_different_guest_memory_do_not_pair() -> Result<()> {
    let mut rig = Rig::start("memory-differs", "counter", &["--hypervisor-option", "pollux:guest-memory=32M"])?;
    rig.wait("the pairing is refused and explained", START_LIMIT, |rig| {
        let logs = rig.read("castor.log") + &rig.read("pollux.log");
        let explained = |line: &str| line.contains("memory") && line.contains("67108864") && line.contains("33554432");
        Ok(logs.lines().any(explained).then_some(()))
    })?;
    // The guest does not suffer from it.
    ensure!(Client::connect(&rig.service()?, PATIENCE)?.increment("x")? == 1);
    ensure!(!rig.file()?.protected);
    rig.stop()
}

/// Options that one machine alone was given: each would do harm only when the other machine is lost.
#[test]
fn twins_with_different_options_do_not_pair() -> Result<()> {
    for (option, explained) in [
        ("arbiter=none", "options 'arbiter' differ: one asked in sealed words and none"),
        ("guest-mac=52:54:00:12:34:57", "options 'guest-mac' differ: 52:54:00:12:34:56 and 52:54:00:12:34:57"),
        ("disk=ram:1M", "options 'disk' differ: none and ram of 1048576 bytes"),
        ("break=output-rule", "options 'break' differ: none and output-rule"),
    ] {
        let name = format!("differs-{}", option.split('=').next().unwrap_or_default());
        let mut rig = Rig::start(&name, "counter", &["--hypervisor-option", &format!("pollux:{option}")])?;
        rig.wait("both machines explain why they do not pair", START_LIMIT, |rig| {
            let told = ["castor.log", "pollux.log"].iter().all(|log| rig.read(log).contains(explained));
            Ok(told.then_some(()))
        })?;
        ensure!(!rig.file()?.protected, "{option}");
        ensure!(Client::connect(&rig.service()?, PATIENCE)?.increment("x")? == 1);
        rig.stop()?;
    }
    Ok(())
}

#[test]
fn a_triple_fault_restarts_the_guest() -> Result<()> {
    restarts("triple", &[])
}

/// What the hypervisor injects cannot be delivered.
#[test]
fn an_injected_exception_that_becomes_a_triple_fault_restarts_the_guest() -> Result<()> {
    restarts("triple-injected", &["--guest-args", "ip=10.0.2.15/24 gw=10.0.2.2 case=injected"])
}

fn restarts(name: &str, arguments: &[&str]) -> Result<()> {
    let mut rig = Rig::start(name, "triple", arguments)?;
    rig.wait("the crash is reported", START_LIMIT, |rig| Ok(rig.read("castor.log").contains("crashed").then_some(())))?;
    rig.wait("the guest is restarted again and again", START_LIMIT, |rig| {
        let status = rig.status()?;
        Ok(status.of("primary").filter(|primary| primary.counter("resets") >= 2).map(drop))
    })?;
    rig.stop()
}

/// Runs one case of the guest `hostile`, which must come to its proper end.
fn survives(case: &str, more: &[&str]) -> Result<()> {
    let arguments = format!("{IP} case={case}");
    let mut rig = Rig::start(&format!("hostile-{case}"), "hostile", &[&["--guest-args", &arguments], more].concat())?;
    let status = rig.wait_end(Duration::from_secs(60)).with_context(|| case.to_owned())?;
    let console = rig.read("console.log");
    ensure!(status.success(), "{case}: {status}\n{console}\n{}", rig.report());
    for line in [format!("hostile: {case} survived"), "hostile: end".to_owned()] {
        ensure!(console.contains(&line), "{case}:\n{console}");
    }
    for machine in ["castor.log", "pollux.log"] {
        let log = rig.read(machine);
        ensure!(!["panic", "DIVERGED", "crashed"].iter().any(|word| log.contains(word)), "{case}: {}", rig.report());
    }
    Ok(())
}

#[test]
fn a_hostile_guest_harms_only_itself() -> Result<()> {
    // A machine alone keeps one core busy.
    std::thread::scope(|scope| {
        let halves = HOSTILE_CASES.chunks(HOSTILE_CASES.len().div_ceil(2));
        let workers: Vec<_> =
            halves.map(|cases| scope.spawn(|| cases.iter().try_for_each(|case| survives(case, &["--solo"])))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a panic"))?)
    })
}

/// Bochs' CPU faults them, as hardware does, and so do we where we follow the guest's paging. QEMU's lets the guest set
/// them, and then refuses to enter it.
#[test]
fn a_guest_that_sets_reserved_bits_of_cr4_harms_only_itself() -> Result<()> {
    survives("cr4-reserved", &["--solo"])?;
    if Platform::get() == Platform::Bochs {
        return Ok(());
    }
    let arguments = format!("{IP} case=cr4-reserved");
    let native = ["--guest-args", &arguments, "--solo", "--hypervisor-option", "mmu=native"];
    let mut rig = Rig::start("cr4", "hostile", &native)?;
    rig.wait("the crash is reported", START_LIMIT, |rig| {
        Ok(rig.read("castor.log").contains("the CPU refuses the guest's state").then_some(()))
    })?;
    ensure!(!rig.read("castor.log").contains("PANIC"), "{}", rig.report());
    rig.stop()
}

/// Frames of all lengths full of nonsense, with beginnings that let them pass the first checks.
fn nonsense(random: &mut fastrand::Rng) -> Vec<u8> {
    // An empty datagram would mean to QEMU that the cable is gone.
    let length = random.usize(1..1600);
    let mut frame: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
    let destinations: [&[u8]; 4] = [&[0xff; 6], &GUEST_MAC, &[0x52, 0x54, 0, 0x10, 0, 1], &[0x52, 0x54, 0, 0x20, 0, 1]];
    let types: [&[u8]; 3] = [&[8, 0, 0x45, 0], &[8, 6, 0, 1], &[8, 0, 0x4f, 0xff]];
    for (at, bytes) in [(0, random.choice(destinations)), (12, random.choice(types))] {
        let Some(bytes) = bytes else { continue };
        if let Some(place) = frame.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
    frame
}

#[test]
fn nonsense_on_both_networks_harms_nothing() -> Result<()> {
    let mut rig = Rig::protected("nonsense", "counter", &[])?;
    let mut client = Client::connect(&rig.service()?, PATIENCE)?;
    ensure!(client.increment("x")? == 1);
    let cables = Cable::all(&rig)?;
    ensure!(cables.len() >= 4, "only {cables:?}");
    let mut random = seed::random();
    let mut sent = 0;
    for expected in 2..=200 {
        for cable in &cables {
            sent += usize::from(cable.send(&nonsense(&mut random)));
        }
        ensure!(client.increment("x")? == expected);
    }
    println!("{sent} frames to {cables:?}");
    ensure!(sent > 100);
    rig.wait_protected()?;
    let before = rig.fresh("backup")?.position;
    ensure!(client.increment("x")? == 201);
    rig.wait("the backup executes that too", PATIENCE, |rig| {
        Ok(rig.status()?.of("backup").filter(|backup| backup.position > before).map(drop))
    })?;
    let status = rig.status()?;
    ensure!(status.takeovers.is_empty() && status.notice("diverged").is_none(), "{}", rig.report());
    rig.stop()
}

/// The first segment of a TCP connection from a host that is not there to the port of the log at the primary.
fn stray_syn() -> Vec<u8> {
    let from = Socket { mac: [0x52, 0x54, 0, 0x77, 0, 1], ip: [10, 1, 0, 77], port: 40_000 };
    let to = Socket { mac: [0xff; 6], ip: [10, 1, 0, 1], port: 7001 };
    frames::segment(from, to, TcpControl::Syn, (1, None), &[])
}

#[test]
fn a_stray_connection_does_not_keep_the_twin_out() -> Result<()> {
    let mut rig = Rig::protected("stray", "counter", &[])?;
    let cables = Cable::all(&rig)?;
    rig.kill("backup")?;
    rig.wait("the primary is alone", START_LIMIT, |rig| Ok(rig.status()?.notice("unprotected").map(drop)))?;
    ensure!(cables.iter().filter(|cable| cable.send(&stray_syn())).count() > 0);
    rig.start_backup()?;
    rig.stop()
}

#[test]
fn a_port_in_use_is_named() -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    refused(Rig::start("port", "idle", &["--port", &port])?, &[&port, "--port"])
}

#[test]
fn a_directory_belongs_to_one_rig() -> Result<()> {
    let mut first = Rig::start("shared", "idle", &["--solo"])?;
    first.wait_role("castor", "primary", START_LIMIT)?;
    let directory = first.directory().to_str().context("path")?.to_owned();
    let verb = Platform::get().verb();
    let second = xtask::run(&[verb, "--headless", "--port", "0", "--dir", &directory, "--for", "60s"])?;
    let errors = String::from_utf8_lossy(&second.stderr).into_owned();
    ensure!(!second.status.success() && errors.contains("another rig runs in"), "{errors}");
    // The first one is as it was.
    ensure!(first.file()?.machine("castor")?.role == "primary");
    first.stop()
}

#[test]
fn wrong_arguments_are_explained() -> Result<()> {
    let directory = fresh_directory("arguments")?;
    let directory = directory.to_str().context("path")?;
    let verb = Platform::get().verb();
    let cases: [(&[&str], &str); 12] = [
        (&[verb, "--guest", "nobody", "--dir", directory, "--port", "0"], "nobody"),
        (&[verb, "--guest-memory", "1M"], "8M to 3G"),
        (&[verb, "--disk", "1000"], "no multiple of 512"),
        (&[verb, "--guest", "idle", "--disk", "4G", "--dir", directory, "--port", "0"], "do not fit into one machine"),
        (
            &[verb, "--guest", "idle", "--disk-image", "/nowhere/disk", "--dir", directory, "--port", "0"],
            "/nowhere/disk",
        ),
        (&["qemu", "--accel", "kvm"], "kvm"),
        (
            &[verb, "--hypervisor", "/nowhere/at-all", "--guest", "/bin/sh", "--dir", directory, "--port", "0"],
            "/nowhere",
        ),
        (&[verb, "--for", "soon"], "soon"),
        (&[verb, "--hypervisor-option", "helen:x=1"], "helen"),
        (&["rig", "--dir", directory, "status"], directory),
        (&["rig", "--dir", "/nowhere/at-all", "kill", "primary"], "/nowhere"),
        (&["frobnicate"], "frobnicate"),
    ];
    for (arguments, word) in cases {
        let output = xtask::run(arguments)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{arguments:?} is accepted");
        ensure!(errors.contains(word) && !errors.contains("panicked"), "{arguments:?}: {errors}");
    }
    Ok(())
}

#[test]
fn orders_to_a_rig_that_make_no_sense_are_refused() -> Result<()> {
    let mut rig = Rig::start("orders", "idle", &["--solo"])?;
    rig.wait_role("castor", "primary", START_LIMIT)?;
    let cases: [(&[&str], &str); 6] = [
        (&["kill", "backup"], "backup"),
        (&["kill", "helen"], "helen"),
        (&["start", "backup"], "--solo"),
        (&["link", "moon", "down"], "moon"),
        (&["link", "log", "delay=soon"], "soon"),
        (&["link", "log", "loss=200%"], "200%"),
    ];
    for (words, expected) in cases {
        match rig.ask(words) {
            Ok(answer) => anyhow::bail!("{words:?} is accepted: {answer}"),
            Err(error) => ensure!(format!("{error:#}").contains(expected), "{words:?}: {error:#}"),
        }
    }
    rig.stop()
}

#[test]
fn signals_leave_nothing_running() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL] {
        let mut rig = Rig::start("signals", "idle", &[])?;
        // In the middle of the start, too.
        let file = rig.wait_file("both machines run", START_LIMIT, |file| {
            file.machines.iter().filter(|machine| machine.pid.is_some()).count() == 2
        })?;
        let pids: Vec<_> = file.machines.iter().filter_map(|machine| machine.pid).collect();
        ensure!(pids.iter().all(|pid| is_running(*pid)));
        rig.signal(signal)?;
        rig.wait_end(END_LIMIT)?;
        // After SIGKILL the kernel ends them, which takes a moment.
        let deadline = std::time::Instant::now() + END_LIMIT;
        while pids.iter().any(|pid| is_running(*pid)) {
            ensure!(std::time::Instant::now() < deadline, "{signal}: {pids:?} are left running");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}
