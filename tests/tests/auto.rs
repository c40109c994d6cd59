//! A pair that nobody tells what it is: a machine that is killed comes back by itself, and so do both.

use std::time::Duration;

use anyhow::{Result, ensure};
use pollux_tests::resp::Client;
use pollux_tests::rig::{Platform, Rig, START_LIMIT, TAKEOVER_LIMIT};
use pollux_tests::skip;

/// Short times, so that a cold start takes a second of listening; a machine that died boots again after a while.
const AUTO: [&str; 8] = [
    "--role",
    "auto",
    "--revive",
    "200ms",
    "--hypervisor-option",
    "suspect=600ms",
    "--hypervisor-option",
    "heartbeat=50ms",
];
/// How long a client waits for its answer.
const ANSWER: Duration = Duration::from_secs(20);

/// The counter's next value.
fn count(rig: &Rig) -> Result<i64> {
    Client::connect(&rig.service()?, ANSWER)?.increment("x")
}

#[test]
fn a_pair_comes_back_by_itself() -> Result<()> {
    let mut rig = Rig::protected("auto", "counter", &AUTO)?;
    ensure!(count(&rig)? == 1);
    let survivor = rig.file()?.machine("backup")?.name.clone();
    let dead = rig.kill("primary")?;
    rig.wait_role(&survivor, "primary", TAKEOVER_LIMIT)?;
    // As a backup, though its command line says the same as before.
    rig.wait_role(&dead, "backup", START_LIMIT)?;
    rig.wait_protected()?;
    ensure!(count(&rig)? == 2, "the guest lives on");

    // The power of the whole site fails: no machine has the guest any more, and another one is created.
    let before = rig.machine_pids()?;
    rig.kill(&survivor)?;
    rig.kill(&dead)?;
    let is_new = |pid: Option<i32>| pid.is_some_and(|pid| !before.contains(&pid));
    rig.wait_file("another pair", START_LIMIT, |file| {
        file.protected && file.machines.iter().all(|machine| is_new(machine.pid))
    })?;
    ensure!(count(&rig)? == 1, "it is a new guest");
    let status = rig.status()?;
    ensure!(status.notice("diverged").is_none(), "{:?}", status.notice("diverged"));
    rig.stop()
}

/// The machine's watchdog resets it, which ends its process: the rig starts it again as a server's firmware does.
#[test]
fn a_machine_that_hangs_comes_back_by_itself() -> Result<()> {
    if Platform::get() == Platform::Bochs {
        return skip("its machines have no watchdog");
    }
    let mut options = AUTO.to_vec();
    for option in ["test-commands=on", "on-halt=reset", "resets-an-hour=3600", "watchdog=2s"] {
        options.extend(["--hypervisor-option", option]);
    }
    let mut rig = Rig::protected("watchdog", "counter", &options)?;
    ensure!(count(&rig)? == 1);
    let survivor = rig.file()?.machine("backup")?.name.clone();
    let hung = rig.file()?.machine("primary")?.clone();
    rig.command("primary", &["hang"])?;
    rig.wait_role(&survivor, "primary", TAKEOVER_LIMIT)?;
    rig.wait_file("the one that hung is another process", START_LIMIT, |file| {
        file.machine(&hung.name).is_ok_and(|machine| machine.pid.is_some() && machine.pid != hung.pid)
    })?;
    rig.wait_role(&hung.name, "backup", START_LIMIT)?;
    rig.wait_protected()?;
    ensure!(count(&rig)? == 2, "the guest lives on");
    rig.stop()
}
