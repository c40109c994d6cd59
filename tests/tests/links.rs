//! Cables are cut, both ways or one way, and heal: the guest is never at two places, and no client loses anything.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pollux_tests::load::{Load, judge, wait_answers};
use pollux_tests::rig::{Platform, Rig, START_LIMIT};
use pollux_tests::{GUEST_MAC, capture, skip};

/// What is done to which links; `P` stands for the primary of that moment, `B` for its backup.
const FAULTS: &[(&str, &[(&str, &str)])] = &[
    ("log cut", &[("log", "down")]),
    ("clients cut off", &[("client", "down")]),
    ("all cut", &[("log", "down"), ("client", "down")]),
    ("primary alone", &[("log:P", "down"), ("client:P", "down")]),
    ("backup alone", &[("log:B", "down"), ("client:B", "down")]),
    ("primary off the client network", &[("client:P", "down")]),
    ("primary mute in the log", &[("log:P", "mute")]),
    ("primary deaf in the log", &[("log:P", "deaf")]),
    ("backup mute in the log", &[("log:B", "mute")]),
    ("backup deaf in the log", &[("log:B", "deaf")]),
    ("primary mute for clients", &[("client:P", "mute")]),
    ("primary deaf for clients", &[("client:P", "deaf")]),
    ("primary mute everywhere", &[("log:P", "mute"), ("client:P", "mute")]),
    ("primary deaf everywhere", &[("log:P", "deaf"), ("client:P", "deaf")]),
];
/// Three times the silence after which a machine is given up.
const SUSPECT: &str = "suspect=400ms";
const FAULT: Duration = Duration::from_millis(1200);
/// What `rig.json` says follows the truth within this time.
const TRUTH: Duration = Duration::from_secs(1);

/// Makes a fault, heals it, and brings the pair back to protection.
fn endure(rig: &mut Rig, load: &Load, faults: &[(&str, &str)]) -> Result<()> {
    let file = rig.file()?;
    let [primary, backup] = ["primary", "backup"].map(|role| file.machine(role).map(|machine| machine.name.clone()));
    let (primary, backup) = (primary?, backup?);
    let links: Vec<_> = faults.iter().map(|(link, _)| link.replace('P', &primary).replace('B', &backup)).collect();
    for (link, (_, fault)) in links.iter().zip(faults) {
        rig.link(link, &[fault])?;
    }
    std::thread::sleep(FAULT);
    for link in &links {
        rig.link(link, &["up"])?;
    }
    std::thread::sleep(TRUTH);
    let settled = rig.wait_file("protected, or one has lost", START_LIMIT, |file| {
        file.machine("primary").is_ok() && (file.protected || file.machine("dead").is_ok())
    })?;
    if settled.machine("dead").is_ok() {
        rig.start_backup()?;
    }
    wait_answers(rig, load, 10)
}

#[test]
fn no_cut_of_a_cable_makes_two_of_the_guest() -> Result<()> {
    if Platform::get() == Platform::Bochs {
        return skip("machines in Bochs keep pace only to within a second, and would suspect each other in vain");
    }
    let options = ["--capture", "--hypervisor-option", SUSPECT, "--hypervisor-option", "heartbeat=50ms"];
    let mut rig = Rig::protected("links", "counter", &options)?;
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    for (name, faults) in FAULTS {
        wait_answers(&mut rig, &load, 10)?;
        endure(&mut rig, &load, faults).with_context(|| format!("{name}: {faults:?}"))?;
        // A machine that was superseded and spoke again would be a move without a takeover. A takeover may be told of later
        // than its successor speaks.
        let status = rig.wait(&format!("{name}: a takeover for each move of the guest"), START_LIMIT, |rig| {
            let status = rig.status()?;
            println!(
                "{name}: {} takeovers, the guest moved {} times so far",
                status.takeovers.len(),
                status.guest_moves()
            );
            Ok((status.guest_moves() <= status.takeovers.len() as u64).then_some(status))
        })?;
        ensure!(status.notice("diverged").is_none(), "{name}: {:?}", status.notice("diverged"));
    }
    let summary = judge(load)?;
    let frames = capture::read(&rig.directory().join("client.pcap"))?;
    println!("{summary}; {}", capture::repeats(&frames, GUEST_MAC)?);
    ensure!(!rig.status()?.takeovers.is_empty(), "no fault made a machine take over");
    rig.stop()
}
