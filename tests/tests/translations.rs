//! What a CPU remembers of the guest's page tables never reaches the guest; and where it does, it is found.

use std::time::Duration;

use anyhow::{Result, ensure};
use pollux_tests::rig::{Platform, Rig};

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
