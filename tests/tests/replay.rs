//! The log is a recording: what a rig's backups were told runs again, and is the same.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pollux_tests::load::{Load, wait_answers};
use pollux_tests::rig::{Rig, TAKEOVER_LIMIT, fresh_directory};
use pollux_tests::{debian, desk, xtask};

/// Digests that are waited for, far longer than they take on a busy desk.
const DIGESTS: u64 = 2;
const LIMIT: Duration = Duration::from_secs(90);

/// Replays `file`; whether that was well, and all that was said.
fn replay(file: &Path, arguments: &[&str]) -> Result<(bool, String)> {
    let _place = desk::take(1);
    let output = xtask::command().arg("replay").arg(file).args(arguments).output().context("cannot start xtask")?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    Ok((output.status.success(), said))
}

/// The number before `word`.
fn number_before(said: &str, word: &str) -> Option<u64> {
    said.split(word).next()?.split_whitespace().last()?.parse().ok()
}

/// Waits until some more digests have been compared.
fn wait_digests(rig: &mut Rig) -> Result<()> {
    let goal = rig.fresh("backup")?.digests + DIGESTS;
    rig.wait("digests are compared", LIMIT, |rig| {
        Ok(rig.status()?.of("backup").filter(|backup| backup.digests >= goal).map(drop))
    })
}

/// Records a guest that serves and computes until its primary dies; in a directory of this name.
fn record(name: &str) -> Result<(Rig, PathBuf)> {
    let directory = fresh_directory(name)?;
    let file = directory.join("recording");
    let path = file.to_str().context("the path is not UTF-8")?;
    let arguments = ["--record", path, "--guest-args", "ip=10.0.2.15/24 gw=10.0.2.2 busy"];
    let mut rig = Rig::start_in(&directory, "counter", &arguments)?;
    rig.wait_protected()?;
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    wait_answers(&mut rig, &load, 10)?;
    wait_digests(&mut rig)?;
    let backup = rig.file()?.machine("backup")?.name.clone();
    rig.kill("primary")?;
    rig.wait_role(&backup, "primary", TAKEOVER_LIMIT)?;
    load.stop()?;
    Ok((rig, file))
}

/// It runs again with all digests equal, and one frame that is not the same is found.
#[test]
fn a_recorded_guest_runs_again() -> Result<()> {
    let (rig, file) = record("replay")?;
    rig.stop()?;
    let (well, said) = replay(&file, &[])?;
    ensure!(well && said.contains("the machine took over, in term 2"), "{said}");
    ensure!(said.contains("session 1 is EQUAL"), "{said}");
    let digests = number_before(&said, " digests compared").context("no digests")?;
    ensure!(digests >= DIGESTS, "{said}");
    let (well, said) = replay(&file, &["--flip", "1"])?;
    ensure!(!well && said.contains("changed on request: entry ") && said.contains("session 1 DIFFERS"), "{said}");
    ensure!(said.contains("differs at position ") && said.contains("rflags"), "{said}");
    Ok(())
}

/// The successor's backup begins another session, which runs again, too.
#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn a_recording_goes_on_after_a_takeover() -> Result<()> {
    let (mut rig, file) = record("replay-takeover")?;
    rig.start_backup()?;
    wait_digests(&mut rig)?;
    rig.stop()?;
    let (well, said) = replay(&file, &[])?;
    ensure!(well && said.contains("session 1 is EQUAL") && said.contains("session 2 is EQUAL"), "{said}");
    ensure!(said.contains("not recorded: positions "), "{said}");
    Ok(())
}

/// A whole boot of Debian, from its first seconds on.
#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn a_recorded_boot_of_debian_runs_again() -> Result<()> {
    let directory = fresh_directory("replay-debian")?;
    let file = directory.join("recording");
    let path = file.to_str().context("the path is not UTF-8")?;
    let guest = ["--packages", "redis-server"];
    let Some(rig) = debian::protected("replay-debian", &guest, &["--backup", "now", "--record", path])? else {
        return Ok(());
    };
    rig.stop()?;
    let (well, said) = replay(&file, &[])?;
    ensure!(well && said.contains("session 1 is EQUAL"), "{said}");
    Ok(())
}
