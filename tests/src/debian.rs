//! Debian's own kernels and services as guests.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::rig::{LONG_LIFE, Platform, Rig, TAKEOVER_LIMIT};
use crate::status::Status;
use crate::{skip, xtask};

/// From the start until services answer, and until a guest of that size is protected. On an idle desk it takes a tenth.
pub const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// A desk that is busy must not be taken for a dead twin.
pub const PATIENT: &str = "suspect=3s";
/// The same in Bochs, where machines are some times slower.
const PATIENT_IN_BOCHS: &str = "suspect=8s";
/// What an unreachable registry makes xtask say.
const UNREACHABLE: &str = "`apt-get update";

/// A protected Debian whose services have answered, built with the arguments `guest` of `xtask guest debian`; none where it
/// cannot be had.
///
/// # Errors
/// When it cannot be built, or does not become protected.
pub fn protected(name: &str, guest: &[&str], arguments: &[&str]) -> Result<Option<Rig>> {
    let in_bochs = Platform::get() == Platform::Bochs;
    if in_bochs && std::env::var_os("POLLUX_KILLS").is_none() {
        return skip("Linux takes minutes to boot in Bochs: POLLUX_KILLS=3 asks for that").map(|()| None);
    }
    let Some(place) = build(guest)? else { return Ok(None) };
    let life: &[&str] = if in_bochs && !arguments.contains(&LONG_LIFE[0]) { &LONG_LIFE } else { &[] };
    let options = if in_bochs { PATIENT_IN_BOCHS } else { PATIENT };
    let mut rig = Rig::start(name, &place, &[&["--hypervisor-option", options], life, arguments].concat())?;
    rig.wait("the guest's services answer", BOOT_LIMIT, |rig| {
        Ok(rig.read("xtask.log").contains("the guest answers").then_some(()))
    })?;
    rig.wait_file("protected", BOOT_LIMIT, |file| file.protected)?;
    Ok(Some(rig))
}

/// Builds a Debian with these arguments of `xtask guest debian`; its place, or none where its packages cannot be fetched.
///
/// # Errors
/// When it cannot be built.
pub fn build(guest: &[&str]) -> Result<Option<String>> {
    // The user's own choice stays as it is.
    let built = xtask::run(&[&["guest", "debian", "--aside"], guest].concat())?;
    let said = String::from_utf8_lossy(&built.stderr);
    if !built.status.success() && (said.contains(UNREACHABLE) || said.contains("is missing")) {
        return skip(&format!("Debian's packages cannot be fetched here: {said}")).map(|()| None);
    }
    ensure!(built.status.success(), "xtask guest debian: {said}");
    let told = String::from_utf8_lossy(&built.stdout);
    let place = told.lines().find_map(|line| line.strip_prefix("place ")).context("xtask guest names no place")?;
    Ok(Some(place.trim().to_owned()))
}

/// Kills the primary, waits until its twin goes on; `meanwhile` happens then, and at its end there is a new backup.
///
/// # Errors
/// When one of that does not happen.
pub fn kill_and_replace(rig: &mut Rig, meanwhile: impl FnOnce(&mut Rig) -> Result<()>) -> Result<()> {
    let backup = rig.file()?.machine("backup")?.name.clone();
    rig.kill("primary")?;
    rig.wait_role(&backup, "primary", TAKEOVER_LIMIT)?;
    meanwhile(rig)?;
    rig.ask(&["start", "backup"])?;
    rig.wait_file("protected again", BOOT_LIMIT, |file| file.protected).map(drop)
}

/// That no twins have differed, and no machine has found a bug of its own.
///
/// # Errors
/// When one has.
pub fn ensure_undisturbed(rig: &Rig) -> Result<()> {
    for machine in ["castor.log", "pollux.log"] {
        let log = rig.read(machine);
        let bad = log.lines().find(|line| ["PANIC", "DIVERGED"].iter().any(|word| line.contains(word)));
        ensure!(bad.is_none(), "{machine}: {bad:?}\n{}", rig.report());
    }
    Ok(())
}

/// Waits until the backup has compared `more` further digests.
///
/// # Errors
/// When it does not, or one differs.
pub fn wait_digests(rig: &mut Rig, more: u64) -> Result<Status> {
    let goal = rig.fresh("backup")?.digests + more;
    rig.wait("digests are compared", BOOT_LIMIT, |rig| {
        ensure_undisturbed(rig)?;
        Ok(rig.status()?.of("backup").filter(|backup| backup.digests >= goal).cloned())
    })
}

/// That so many takeovers have happened, and that the twins were equal all along.
///
/// # Errors
/// When it is not so.
pub fn ensure_equal(rig: &mut Rig, takeovers: usize) -> Result<()> {
    rig.wait_takeovers(takeovers)?;
    let status = rig.status()?;
    ensure!(status.notice("diverged").is_none(), "{:?}", status.notice("diverged"));
    Ok(())
}

/// A key for the guests of all tests, so that they need not be built anew: the private one; the public one is beside it.
/// None where there is no OpenSSH.
///
/// # Errors
/// When it cannot be made.
pub fn ssh_key() -> Result<Option<PathBuf>> {
    if Command::new("ssh").arg("-V").output().is_err() {
        return skip("ssh is not installed (Debian: openssh-client)").map(|()| None);
    }
    let path = xtask::rig_parent().join("ssh-key");
    if !path.is_file() {
        std::fs::create_dir_all(xtask::rig_parent())?;
        let mut command = Command::new("ssh-keygen");
        let output = command.args(["-q", "-t", "ed25519", "-N", "", "-C", "tests", "-f"]).arg(&path).output();
        let output = output.context("ssh-keygen")?;
        ensure!(output.status.success(), "ssh-keygen: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(Some(path))
}
