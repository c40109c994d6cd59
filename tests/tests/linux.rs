//! Debian's own kernel and Redis, from Debian's packages, as a protected guest.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pollux_tests::load::{Load, judge, wait_answers};
use pollux_tests::rig::{DEBIAN, Platform, Rig, TAKEOVER_LIMIT};
use pollux_tests::xtask;

/// From the start until Redis answers; on an idle desk it takes a tenth of that.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// A desk that is busy must not be taken for a dead twin.
const PATIENT: &str = "suspect=3s";
/// What an unreachable registry makes xtask say.
const UNREACHABLE: &str = "`apt-get update";

#[test]
fn debians_redis_survives_kills_under_one_connection() -> Result<()> {
    if Platform::get() == Platform::Bochs {
        println!("SKIPPED: Linux takes minutes to boot in Bochs");
        return Ok(());
    }
    let built = xtask::run(&["guest", "debian", "--packages", "redis-server"])?;
    let said = String::from_utf8_lossy(&built.stderr);
    if !built.status.success() && (said.contains(UNREACHABLE) || said.contains("is missing")) {
        println!("SKIPPED: Debian's packages cannot be fetched here: {said}");
        return Ok(());
    }
    ensure!(built.status.success(), "xtask guest debian: {said}");

    let mut rig = Rig::start("linux", DEBIAN, &["--hypervisor-option", PATIENT])?;
    rig.wait("Redis answers", BOOT_LIMIT, |rig| Ok(rig.read("xtask.log").contains("the guest answers").then_some(())))?;
    rig.wait_protected()?;
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    for _ in 0..2 {
        wait_answers(&mut rig, &load, 20)?;
        let backup = rig.file()?.machine("backup")?.name.clone();
        rig.kill("primary")?;
        rig.wait_role(&backup, "primary", TAKEOVER_LIMIT)?;
        wait_answers(&mut rig, &load, 20)?;
        rig.start_backup()?;
    }
    wait_answers(&mut rig, &load, 20)?;
    let summary = judge(load)?;
    ensure!(summary.last == i64::try_from(summary.answered).ok());
    let status = rig.status()?;
    ensure!(status.takeovers.len() == 2, "{} takeovers after 2 kills", status.takeovers.len());
    ensure!(status.notice("diverged").is_none(), "{:?}", status.notice("diverged"));
    rig.stop()
}
