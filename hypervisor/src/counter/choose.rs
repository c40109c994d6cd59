//! Which counter is used: what the option `counter=` allows and the self-test proves, and why.

use alloc::format;
use alloc::string::String;
use core::fmt;

use super::selftest::{self, Report, Stand, Tested};
use super::{Costs, Counter, Skid, pmu};
use crate::cpu::Meter;

/// What the option `counter=` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// The first that passes its self-test.
    #[default]
    Auto,
    /// Retired instructions, or nothing.
    Pmu,
    /// Ticks of the TSC, or nothing.
    Ticks,
}

/// A counter that passed its self-test.
pub struct Chosen {
    /// The counter.
    pub counter: Counter,
    /// What its self-test found.
    pub figures: Figures,
    /// Why it is this one, in a sentence without an end.
    pub why: String,
    /// The guest may read its TSC without an exit as long as that advances by one a tick: it reads exactly what the position
    /// says.
    pub lends_tsc: bool,
}

impl fmt::Debug for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chosen")
            .field("counter", &self.counter.identity())
            .field("why", &self.why)
            .finish_non_exhaustive()
    }
}

/// What the self-test of a counter found, for the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// Checks that it passed.
    pub checks: u64,
    /// How many ticks late the ends of runs came.
    pub skid: Skid,
    /// What counts besides instructions.
    pub costs: Costs,
    /// Distance in ticks from which on the guest is stepped to a stop.
    pub margin: u64,
    /// Single steps that a stop took, on average.
    pub steps_per_stop: u64,
}

/// Why no counter is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Tries what `wanted` allows, and takes the first that passes. All tables go to the log.
///
/// # Errors
/// Why each of them is refused.
pub fn choose(wanted: Wanted, stand: &mut dyn Stand) -> Result<Chosen, Refused> {
    let option = match wanted {
        Wanted::Auto => "counter=auto",
        Wanted::Pmu => return try_pmu(stand, "counter=pmu").map_err(Refused),
        Wanted::Ticks => return try_ticks(stand, "counter=ticks").map_err(Refused),
    };
    let no_pmu = match try_pmu(stand, &format!("{option}, and its self-test passed")) {
        Ok(chosen) => return Ok(chosen),
        Err(why) => why,
    };
    try_ticks(stand, &format!("{option}, its self-test passed, and {no_pmu}"))
        .map_err(|no_ticks| Refused(format!("no counter is exact here: {no_pmu}; {no_ticks}")))
}

fn try_pmu(stand: &mut dyn Stand, why: &str) -> Result<Chosen, String> {
    const REFUSED: &str = "the counter 'pmu' is refused";
    let claimed = stand.vcpu().instruction_counter().map_err(|error| format!("{REFUSED}: {error}"))?;
    let probe = pmu::selftest::untested(claimed);
    accept(REFUSED, &format!("{claimed:?}"), stand, why, probe, &mut |stand| pmu::selftest::run(stand, claimed))
}

fn try_ticks(stand: &mut dyn Stand, why: &str) -> Result<Chosen, String> {
    const REFUSED: &str = "the counter 'ticks' is refused";
    let calibration = stand.calibrate().map_err(|error| format!("{REFUSED}: {error}"))?;
    accept(REFUSED, &calibration, stand, why, selftest::untested_ticks(), &mut selftest::ticks)
}

/// Takes the counter that passes `test`, and puts its table on the log; or says why it is refused.
fn accept(
    refused: &str,
    claimed: &str,
    stand: &mut dyn Stand,
    why: &str,
    untested: Counter,
    test: &mut dyn FnMut(&mut dyn Stand) -> Result<Tested, Report>,
) -> Result<Chosen, String> {
    let tested = prove(stand, untested, test).map_err(|report| {
        stand.vcpu().guard_code(false);
        refusal(refused, claimed, &report)
    })?;
    log::info!("counter '{}', {claimed}, {tested}", tested.counter.name());
    let figures = Figures {
        checks: tested.report.checks.len() as u64,
        skid: tested.skid,
        costs: tested.counter.costs(),
        margin: tested.counter.margin(),
        steps_per_stop: tested.steps_per_stop,
    };
    let Tested { mut counter, .. } = tested;
    let lends_tsc = lends_tsc(stand, &mut counter);
    Ok(Chosen { counter, figures, why: why.into(), lends_tsc })
}

/// Tests the counter, and what its stops must leave no trace of. Where a guest that changes its own code executes something
/// else than it should, executed pages are guarded: most such CPUs show it at once, to a counter that is not tested yet.
fn prove(
    stand: &mut dyn Stand,
    mut untested: Counter,
    test: &mut dyn FnMut(&mut dyn Stand) -> Result<Tested, Report>,
) -> Result<Tested, Report> {
    if !stand.executes_any_code() {
        return test(stand);
    }
    let seen = selftest::changed_code(stand, &mut untested);
    let mut guarded = guards(stand, &seen);
    loop {
        let mut tested = test(stand)?;
        let mut hazards = selftest::hazards(stand, &mut tested.counter);
        if !guarded && guards(stand, &hazards) {
            guarded = true;
            continue;
        }
        tested.report.checks.append(&mut hazards.checks);
        return if tested.report.passed() { Ok(tested) } else { Err(tested.report) };
    }
}

/// Has executed pages guarded, if what a guest does that changes its own code asks for it, and the CPU can.
fn guards(stand: &mut dyn Stand, hazards: &Report) -> bool {
    let guards = !hazards.passed() && stand.vcpu().guard_code(true);
    if guards {
        log::info!("changed code is not executed as it should be, so executed pages are guarded:\n{hazards}");
    }
    guards
}

/// Whether the guest's clock reads need no exit; puts on the log why, or why not.
fn lends_tsc(stand: &mut dyn Stand, counter: &mut Counter) -> bool {
    if counter.meter() != Meter::Tsc || !stand.executes_any_code() {
        return false;
    }
    match selftest::clock_reads(stand, counter) {
        Some(report) if report.passed() => {
            log::info!("the guest reads its clock without an exit:\n{report}");
            true
        }
        Some(report) => {
            log::warn!("the guest's clock reads exit, since it would read something else:\n{report}");
            false
        }
        None => {
            log::info!("the guest's clock reads exit: this CPU has no other");
            false
        }
    }
}

/// Puts the table on the log, and returns the reason in a sentence.
fn refusal(refused: &str, claimed: &str, report: &Report) -> String {
    log::warn!("{refused}: {claimed}\n{report}");
    match report.checks.iter().find(|check| !check.passed()) {
        Some(check) => format!("{refused}: its self-test failed (see the table above): {check}"),
        None => format!("{refused}: its self-test has no results"),
    }
}
