//! The exact-stop property on the machine itself: two runs of a guest that does everything, stopped at the same thousands
//! of random positions, one of them disturbed, must look the same at each.

use std::time::Duration;

use anyhow::{Result, ensure};
use pollux_tests::emulator::Machine;
use pollux_tests::rig::fresh_directory;
use pollux_tests::seed;

const STOPS: u64 = 2000;
/// Some seconds on an idle desk.
const LIMIT: Duration = Duration::from_secs(180);

fn stops_are_exact(seed: u64, guest_options: &str) -> Result<()> {
    let directory = fresh_directory("stops")?;
    let options =
        format!("role=stops stops={STOPS} seed={seed} guest-memory=16M guest-args=\"seed={seed}{guest_options}\"");
    println!("{options}");
    let mut machine = Machine::start(&directory, "stops", &options)?;
    let verdict = machine.wait_line("stops: ", LIMIT, |line| line.contains("PASS") || line.contains("FAIL"))?;
    println!("{verdict}");
    ensure!(verdict.contains(&format!("stops: PASS {STOPS} stops")), "{verdict}");
    Ok(())
}

#[test]
fn with_a_seed_that_is_always_the_same() -> Result<()> {
    stops_are_exact(1, "")
}

#[test]
fn with_a_local_apic_in_memory() -> Result<()> {
    stops_are_exact(2, " xapic")
}

#[test]
fn with_a_seed_that_is_never_the_same() -> Result<()> {
    stops_are_exact(seed::random().u64(3..1 << 32), "")
}
