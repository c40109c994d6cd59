//! What a CPU remembers of the guest's page tables never reaches the guest; and where it does, it is found.

use std::time::Duration;

use anyhow::{Result, ensure};
use pollux_tests::amount::amount;
use pollux_tests::debian::{ensure_equal, ensure_undisturbed, kill_and_replace};
use pollux_tests::rig::{LONG_LIFE, Platform, Rig, kills};

/// Edits of page tables with and without a flush: of accessed bits, and of whatever there is.
const GUESTS: [&str; 2] = ["adbits", "translations"];
/// Corners of paging, in which it need not show.
const CORNERS: &str = "paging";
/// Far more than it takes on a busy desk.
const LIMIT: Duration = Duration::from_secs(120);

/// Digests that are waited for: some 10^8 instructions.
fn digests() -> u64 {
    match Platform::get() {
        Platform::Qemu => 12,
        Platform::Bochs => 4,
    }
}

#[test]
fn twins_see_the_same_translations() -> Result<()> {
    for guest in GUESTS.into_iter().chain([CORNERS]) {
        let mut rig = Rig::protected(&format!("tracked-{guest}"), guest, &["--hypervisor-option", "mmu=tracked"])?;
        let goal = rig.fresh("backup")?.digests + digests();
        rig.wait("digests are compared", LIMIT, |rig| {
            let status = rig.status()?;
            ensure!(status.notice("diverged").is_none(), "{guest}: {:?}", status.notice("diverged"));
            Ok(status.of("backup").filter(|backup| backup.digests >= goal).map(drop))
        })?;
        ensure!(rig.file()?.protected, "{guest} is not protected any more");
        rig.stop()?;
    }
    Ok(())
}

/// A log link as it is on a bad day.
const LOSSY: [&str; 5] = ["delay=1ms", "jitter=1ms", "loss=1%", "duplicate=1%", "reorder=1%"];

/// Each guest runs for `POLLUX_INSTRUCTIONS`, while its primary is killed `POLLUX_KILLS` times.
#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn twins_see_the_same_translations_through_kills_and_on_a_lossy_link() -> Result<()> {
    let usual = match Platform::get() {
        Platform::Qemu => 1_000_000_000,
        Platform::Bochs => 100_000_000,
    };
    let (goal, kills): (u64, usize) = (amount("POLLUX_INSTRUCTIONS", usual)?, kills(2)?);
    for guest in GUESTS.into_iter().chain([CORNERS]) {
        let arguments = [&["--hypervisor-option", "mmu=tracked"], &LONG_LIFE[..]].concat();
        let mut rig = Rig::protected(&format!("endures-{guest}"), guest, &arguments)?;
        rig.link("log", &LOSSY)?;
        let step = goal / (kills as u64 + 1);
        let mut digests = 0;
        for part in 1..=kills {
            digests += wait_position(&mut rig, step * part as u64)?;
            kill_and_replace(&mut rig, |_| Ok(()))?;
        }
        digests += wait_position(&mut rig, goal)?;
        ensure_undisturbed(&rig)?;
        ensure_equal(&mut rig, kills)?;
        ensure!(rig.file()?.protected, "{guest} is not protected any more");
        println!("{guest}: {digests} digests equal, {kills} kills, {goal} instructions");
        rig.stop()?;
    }
    Ok(())
}

/// Waits until the backup has got to `position`; the digests that it has compared by then.
fn wait_position(rig: &mut Rig, position: u64) -> Result<u64> {
    // A backup that is a second behind goes at the speed of its own replay.
    let limit = LIMIT + Duration::from_micros(position);
    rig.wait(&format!("position {position}"), limit, |rig| {
        ensure_undisturbed(rig)?;
        let status = rig.status()?;
        Ok(status.of("backup").filter(|backup| backup.position >= position).map(|backup| backup.digests))
    })
}

#[test]
fn what_the_cpu_remembers_makes_twins_diverge() -> Result<()> {
    for guest in GUESTS {
        // They may diverge before anybody has seen them protected.
        let mut rig = Rig::start(&format!("native-{guest}"), guest, &["--hypervisor-option", "mmu=native"])?;
        rig.wait("the twins diverge", LIMIT, |rig| Ok(rig.read("pollux.log").contains("DIVERGED").then_some(())))?;
        rig.stop()?;
    }
    Ok(())
}

#[test]
fn a_cpu_that_remembers_does_not_walk_the_guests_tables() -> Result<()> {
    let mut rig = Rig::start("mmu-auto", "idle", &["--solo"])?;
    rig.wait("the self-test's verdict", LIMIT, |rig| {
        let log = rig.read("castor.log");
        Ok(log.contains("the hypervisor walks the guest's page tables").then_some(()))
    })?;
    rig.stop()
}
