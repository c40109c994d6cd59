//! What a machine says of itself before anything runs on it.

use anyhow::{Result, ensure};
use pollux_tests::rig::Platform;
use pollux_tests::xtask;

/// In an emulator whose TSC counts instructions: without the counter of ticks there is none.
#[test]
fn a_machine_says_whether_it_can_run_a_pair() -> Result<()> {
    let verb = Platform::get().verb();
    let good = xtask::run(&[verb, "--probe"])?;
    let text = String::from_utf8_lossy(&good.stdout).into_owned();
    ensure!(good.status.success() && text.trim_end().ends_with("\nGO"), "{text}");
    for line in
        ["virtualization ", "counter ticks ", "positions          ticks of an emulated clock", "cards ", "IOMMU "]
    {
        ensure!(text.lines().any(|seen| seen.starts_with(line)), "no line `{line}`:\n{text}");
    }
    let bad = xtask::run(&[verb, "--probe", "--hypervisor-option", "counter=pmu"])?;
    let text = String::from_utf8_lossy(&bad.stdout).into_owned();
    ensure!(!bad.status.success() && text.contains("\nNO-GO: no exact counter"), "{text}");
    Ok(())
}
