//! State digests: equal while all is well, and different soon after a bit has flipped.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pollux_tests::amount::amount;
use pollux_tests::load::Load;
use pollux_tests::rig::Rig;

/// Ticks between two digests, and bytes of memory in each. See hypervisor/src/replica/digest.rs.
const INTERVAL: u64 = 1 << 25;
const SLICE: u64 = 256 << 10;
/// Small, so that its last slice has its turn soon.
const MEMORY: u64 = 8 << 20;
/// Digests of a serving guest that are waited for; `POLLUX_DIGESTS` says otherwise.
const DIGESTS: u64 = 4;
/// Far more than the bound takes on a busy desk.
const LIMIT: Duration = Duration::from_secs(90);

/// Waits until both have compared `more` further digests; none may differ.
fn wait_digests(rig: &mut Rig, more: u64) -> Result<()> {
    let goal = rig.fresh("backup")?.digests + more;
    rig.wait("digests are compared", LIMIT, |rig| {
        let status = rig.status()?;
        ensure!(status.notice("diverged").is_none(), "{:?}", status.notice("diverged"));
        Ok(status.of("backup").filter(|backup| backup.digests >= goal).map(drop))
    })
}

#[test]
fn digests_of_a_serving_guest_stay_equal() -> Result<()> {
    // It computes between requests, so that a digest is due several times a second.
    let mut rig = Rig::protected("digests-counter", "counter", &["--guest-args", "ip=10.0.2.15/24 gw=10.0.2.2 busy"])?;
    let service = rig.service()?;
    let loads = (0..4).map(|_| Load::start(&service, "x", Instant::now())).collect::<Result<Vec<_>>>()?;
    let goal = amount("POLLUX_DIGESTS", DIGESTS)?;
    for _ in 0..goal.div_ceil(DIGESTS) {
        wait_digests(&mut rig, DIGESTS)?;
    }
    let backup = rig.fresh("backup")?;
    let answers = loads.into_iter().map(|load| Ok(load.stop()?.len())).sum::<Result<usize>>()?;
    ensure!(answers > 0 && rig.file()?.protected);
    println!("{} digests equal up to position {}, {answers} answers", backup.digests, backup.position);
    rig.stop()
}

/// Flips a bit in the backup's copy of a computing guest. Within `bound` ticks that must be found and stop the backup,
/// while the primary goes on.
fn flip_is_found(name: &str, command: &[&str], bound: u64) -> Result<()> {
    let memory = format!("{}M", MEMORY >> 20);
    let arguments = ["--guest-memory", &memory, "--hypervisor-option", "test-commands=on"];
    let mut rig = Rig::protected(name, "compute", &arguments)?;
    wait_digests(&mut rig, 2)?;
    let victim = rig.file()?.machine("backup")?.name.clone();
    rig.command("backup", command)?;
    let log = format!("{victim}.log");
    rig.wait("the bit is flipped", LIMIT, |rig| Ok(rig.read(&log).contains("flipped: true").then_some(())))?;
    // The backup is never ahead of the primary: the bit was flipped before this position.
    let after = rig.fresh("primary")?.position;
    let notice =
        rig.wait("the flipped bit is found", LIMIT, |rig| Ok(rig.status()?.notice("diverged").map(str::to_owned)))?;
    let found = position_in(&notice).with_context(|| format!("no position in `{notice}`"))?;
    println!("{notice}");
    ensure!(found <= after + bound, "found at {found}, flipped before {after}: later than {bound} ticks");
    rig.wait_role(&victim, "dead", LIMIT)?;
    // Until the primary has read why its backup went, the guest may stand still: it is as far ahead as it may be.
    rig.wait_file("unprotected", LIMIT, |file| !file.protected)?;
    rig.wait_progress("primary")?;
    // What is replaced is right again.
    rig.start_backup()?;
    rig.stop()
}

/// The number behind the word `position`, or `at`.
fn position_in(notice: &str) -> Option<u64> {
    ["position ", "at "].iter().find_map(|before| {
        let rest = notice.split(before).nth(1)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    })
}

#[test]
fn a_flipped_bit_of_memory_is_found() -> Result<()> {
    // Near the end, where the guest does not write: nothing else would make it right again.
    let address = format!("{:#x}", MEMORY - 0x1234);
    flip_is_found("flip-memory", &["flip-memory", &address, "3"], (MEMORY / SLICE + 1) * INTERVAL)
}

#[test]
fn a_flipped_bit_of_a_register_is_found() -> Result<()> {
    // The stack pointer is always in use.
    flip_is_found("flip-register", &["flip-register", "rsp", "5"], 2 * INTERVAL)
}

#[test]
fn bits_are_flipped_only_where_tests_are_allowed() -> Result<()> {
    let mut rig = Rig::protected("flip-refused", "compute", &[])?;
    rig.command("backup", &["flip-register", "rsp", "5"])?;
    rig.wait("the command is refused", LIMIT, |rig| Ok(rig.status()?.notice("test-commands=on").map(drop)))?;
    wait_digests(&mut rig, 2)?;
    rig.stop()
}
