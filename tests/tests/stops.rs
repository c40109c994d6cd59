//! The exact-stop property on the machine itself: two runs of a guest that does everything, stopped at the same thousands
//! of random positions, one of them disturbed, must look the same at each.

use std::time::Duration;

use anyhow::{Result, ensure};
use pollux_tests::amount::amount;
use pollux_tests::rig::{Platform, Rig};
use pollux_tests::seed;

/// Stops in one run: about twenty a second in Bochs. `POLLUX_STOPS` says otherwise.
fn stops() -> Result<u64> {
    let usual = match Platform::get() {
        Platform::Qemu => 1000,
        Platform::Bochs => 300,
    };
    amount("POLLUX_STOPS", usual)
}

/// Some seconds on an idle desk.
const LIMIT: Duration = Duration::from_secs(180);

/// Runs `guest`, with these arguments behind its seed; `case` tells its directory from those of tests that run beside it.
fn stops_are_exact(guest: &str, case: &str, stops: u64, seed: u64, guest_arguments: &str) -> Result<()> {
    stops_are_exact_with(guest, case, stops, seed, guest_arguments, &[])
}

/// The same with further arguments of the rig.
fn stops_are_exact_with(
    guest: &str,
    case: &str,
    stops: u64,
    seed: u64,
    guest_arguments: &str,
    more: &[&str],
) -> Result<()> {
    let options = [format!("stops={stops}"), format!("seed={seed}")];
    let arguments = format!("seed={seed}{guest_arguments}");
    println!("{options:?} {arguments}");
    let options = ["--hypervisor-option", "role=stops", &options[0], &options[1]];
    let arguments = [&["--solo", "--guest-memory", "16M", "--guest-args", &arguments], &options[..], more].concat();
    let mut rig = Rig::start(&format!("{guest}-{case}"), guest, &arguments)?;
    let verdict = |log: &str| {
        // A line that is not finished yet comes again.
        let (complete, _) = log.rsplit_once('\n')?;
        let line = complete.lines().find(|line| line.contains("stops: PASS") || line.contains("stops: FAIL"));
        line.map(str::to_owned)
    };
    let verdict = rig.wait("the verdict", LIMIT, |rig| Ok(verdict(&rig.read("castor.log"))))?;
    println!("{verdict}");
    ensure!(verdict.contains(&format!("stops: PASS {stops} stops")), "{verdict}");
    Ok(())
}

/// The state is transferred at some of the stops.
const TRANSFERS: [&str; 2] = ["--hypervisor-option", "transfer=stop"];

/// Behind a transfer no translation is there, so that deliveries are interrupted; and single steps are among all that the guest
/// does. In Bochs this seed had a clock read by a handler, whose delivery was resumed, come a tick too early.
#[test]
fn with_a_seed_that_is_always_the_same() -> Result<()> {
    stops_are_exact_with("stops", "same", stops()? / 2, 1, " case=mixed", &TRANSFERS)
}

#[test]
fn with_a_local_apic_in_memory() -> Result<()> {
    stops_are_exact("stops", "xapic", stops()? / 2, 2, " xapic")
}

#[test]
fn with_a_seed_that_is_never_the_same() -> Result<()> {
    stops_are_exact("stops", "fresh", stops()? / 2, seed::random().u64(3..1 << 32), "")
}

/// Debug traps, some of which wait for the end of an interrupt shadow, and among them stops at which the state is transferred.
#[test]
#[ignore = "takes minutes: cargo xtask test rig in_debug_traps_behind_shadows --long"]
fn in_debug_traps_behind_shadows() -> Result<()> {
    // Breakpoints of a guest bring down QEMU 7.2.
    let case = match Platform::get() {
        Platform::Qemu => " case=steps",
        Platform::Bochs => " case=debug",
    };
    stops_are_exact_with("stops", "debug", stops()? / 2, seed::random().u64(3..1 << 32), case, &TRANSFERS)
}

/// SMAP, accesses that are not the instruction's own, interrupt shadows, large pages, devices in such, 32-bit paging and PAE.
#[test]
fn in_the_corners_of_paging() -> Result<()> {
    let cases = ["protection", "implicit", "shadow", "large", "compatible", "devices", "recursive"];
    cases.into_iter().try_for_each(|case| {
        stops_are_exact("paging", case, stops()? / 100, seed::random().u64(3..1 << 32), &format!(" case={case}"))
    })
}

/// Events whose tables are not translated yet.
#[test]
fn in_deliveries_that_miss_translations() -> Result<()> {
    stops_are_exact("paging", "delivery", stops()? / 20, seed::random().u64(3..1 << 32), " case=delivery")
}

/// Interrupts, each of which must be taken at the first boundary at which the guest can take it, and not ten instructions later:
/// while other threads of the emulator move lines of the machine's.
#[test]
fn in_windows_for_interrupts() -> Result<()> {
    stops_are_exact("paging", "timer", stops()? / 20, seed::random().u64(3..1 << 32), " case=timer")
}

/// Each way to become able to take an interrupt, and to lose that again, in long mode: an exit every few instructions.
#[test]
#[ignore = "takes minutes: cargo xtask test rig in_windows_of_every_kind --long"]
fn in_windows_of_every_kind() -> Result<()> {
    stops_are_exact_with("stops", "windows", stops()? / 40, seed::random().u64(3..1 << 32), " case=windows", &TRANSFERS)
}

/// Some minutes of [`in_windows_for_interrupts`].
#[test]
#[ignore = "takes minutes: cargo xtask test rig in_very_many_windows_for_interrupts --long"]
fn in_very_many_windows_for_interrupts() -> Result<()> {
    (0..30).try_for_each(|_| {
        stops_are_exact("paging", "timers", stops()? / 10, seed::random().u64(3..1 << 32), " case=timer")
    })
}

/// It leaves for the hypervisor every few instructions.
#[test]
fn in_a_guest_that_edits_its_page_tables() -> Result<()> {
    stops_are_exact("translations", "stops", stops()? / 8, seed::random().u64(3..1 << 32), "")
}

/// The disk is part of what must be the same at each stop; much of its work is done at other positions than it was asked for.
#[test]
fn in_a_guest_with_a_disk() -> Result<()> {
    stops_are_exact_with("disk", "stops", stops()? / 4, seed::random().u64(3..1 << 32), "", &["--disk", "1M"])
}
