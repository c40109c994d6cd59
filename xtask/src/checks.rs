//! `cargo xtask test`: every check, with a closing summary.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::artefacts::{self, ARBITERS_ETCD, GUESTS, HYPERVISOR, METAL, SIMULATION, SIMULATOR};
use crate::needs::{self, Need, State};
use crate::output::{self, say};
use crate::platform::Platform;
use crate::process::Process;
use crate::transcript::{Tee, Transcript};
use crate::{interrupt, rig};

/// The package of the end-to-end tests.
const END_TO_END: &str = "pollux-tests";
/// A step that takes longer hangs; one with tests of minutes may be told to do much.
const STEP_LIMIT: Duration = Duration::from_secs(5400);
const LONG_STEP_LIMIT: Duration = Duration::from_secs(12 * 3600);
/// How many tests are named for the time that they took.
const LONGEST: usize = 12;

/// Which checks.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Only this part
    part: Option<Part>,
    /// Only the tests whose name contains this
    filter: Option<String>,
    /// End-to-end tests on this emulator only
    #[arg(long, value_name = "EMULATOR")]
    on: Option<Platform>,
    /// Also the end-to-end tests that take minutes each
    #[arg(long)]
    long: bool,
    /// Install what is missing
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Format, lints, unit tests and the build for bare metal
    Host,
    /// End-to-end tests
    Rig,
}

/// What is tested in Bochs unless a filter says otherwise: what depends on the processor, the cards or the clock, in four
/// minutes. All tests would take half an hour, and guests that never sleep leave a backup there no speed to catch up with.
const IN_BOCHS: [&str; 9] = [
    "with_a_seed_that_is_always_the_same",
    "vector_registers_keep_what_they_hold",
    "twins_see_the_same_translations",
    "one_connection_survives_kill_after_kill",
    "nobody_notices_that_the_backup_dies",
    "the_roles_change_without_a_failure",
    "digests_of_a_serving_guest_stay_equal",
    "a_flipped_bit_of_a_register_is_found",
    "nonsense_on_both_networks_harms_nothing",
];

/// See [`IN_BOCHS`].
const WHY_SELECTED: &str = "a selection; all of them: cargo xtask test rig \"\" --on bochs";

/// A command that must succeed.
#[derive(Debug)]
struct Step {
    name: &'static str,
    command: Command,
    /// Why it leaves tests out that exist, if it does.
    selection: Option<&'static str>,
    /// What its tests took is known: they run one after the other, but for those of a machine alone.
    timed: bool,
    /// When it hangs.
    limit: Duration,
}

/// How a step went.
#[derive(Debug)]
struct Outcome {
    name: &'static str,
    failure: Option<String>,
    transcript: Transcript,
    selection: Option<&'static str>,
    timed: bool,
    duration: Duration,
}

/// Runs what was asked for, all of it even when something fails.
pub fn run(arguments: &TestArgs) -> Result<()> {
    let wanted = |part| arguments.part.is_none_or(|only| only == part);
    let mut required = vec![Need::Target];
    // Tests that lack one of these say so and are skipped.
    let mut useful = vec![Need::Etcd];
    let mut steps = Vec::new();
    let filter = arguments.filter.as_deref();
    if wanted(Part::Host) {
        useful.extend([Need::Protoc, Need::Qemu, Need::Bochs, Need::Grub, Need::QemuImg, Need::Tshark]);
    }
    let platforms = Platform::value_variants().iter().copied();
    let platforms = platforms.filter(|&platform| wanted(Part::Rig) && arguments.on.is_none_or(|only| only == platform));
    if wanted(Part::Rig) {
        required.push(Need::Redis);
        useful.extend([Need::Uefi, Need::CardRoms, Need::Protoc, Need::Gdb]);
    }
    required.extend(platforms.clone().flat_map(Platform::needs));
    needs::ensure_present(&required, arguments.yes)?;
    let absent = needs::install_if_possible(&useful, arguments.yes)?;
    if wanted(Part::Host) {
        // Without protoc, what is built with it is left out.
        let with_etcd = matches!(Need::Protoc.state()?, State::Present(_));
        steps.extend(host_steps(filter, with_etcd));
    }
    for platform in platforms {
        steps.push(rig_step(platform, filter, arguments.long)?);
    }
    let mut outcomes = Vec::new();
    for step in steps {
        outcomes.push(run_step(step)?);
    }
    output::lines(summary(&outcomes));
    output::lines(not_tested(&outcomes, &absent));
    output::lines(in_short(&outcomes));
    let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
    ensure!(failed == 0, "{failed} of {} steps failed", outcomes.len());
    if let Some(filter) = filter {
        ensure!(found_any(&outcomes), "no test has `{filter}` in its name");
    }
    Ok(())
}

/// Whether a test was found, be it one that takes too long to be run.
fn found_any(outcomes: &[Outcome]) -> bool {
    outcomes.iter().any(|Outcome { transcript, .. }| !transcript.took.is_empty() || !transcript.skipped.is_empty())
}

/// With a filter only the step that has tests to filter.
fn host_steps(filter: Option<&str>, with_etcd: bool) -> Vec<Step> {
    let step = |name, arguments: &[&str]| {
        let mut command = artefacts::cargo();
        command.args(arguments);
        Step { name, command, selection: None, timed: false, limit: STEP_LIMIT }
    };
    let document = |name, arguments: &[&str]| {
        let mut documented = step(name, arguments);
        documented.command.env("RUSTDOCFLAGS", "-D warnings");
        documented
    };
    let simulate = |name, arguments: &[&str]| {
        step(name, &[&["run", "--quiet", "--profile", SIMULATION, "-p", SIMULATOR, "--"], arguments].concat())
    };
    let mut tests =
        step("unit tests", &["test", "--workspace", "--exclude", GUESTS, "--exclude", END_TO_END, "--no-fail-fast"]);
    let etcd = if with_etcd { &ARBITERS_ETCD[..] } else { &[] };
    tests.command.args(etcd).arg("--").args(filter).arg("--show-output");
    if filter.is_some() {
        return vec![tests];
    }
    let lint = ["--", "-D", "warnings"];
    let host = [&["clippy", "--workspace", "--exclude", GUESTS, "--all-targets"], etcd, &lint[..]].concat();
    let metal = [&["clippy", "-p", HYPERVISOR, "-p", GUESTS, "--target", METAL], &lint[..]].concat();
    vec![
        step("format", &["fmt", "--all", "--check"]),
        step("lints, host", &host),
        step("lints, bare metal", &metal),
        document("documentation, host", &[&["doc", "--workspace", "--no-deps"], etcd].concat()),
        document("documentation, bare metal", &["doc", "-p", HYPERVISOR, "-p", GUESTS, "--no-deps", "--target", METAL]),
        tests,
        simulate("simulation", &["--seeds", "10000"]),
        simulate("broken rules", &["--mutations"]),
        simulate("model", &["--model"]),
        // Their programs only build for bare metal; what they are made of is tested here.
        step("unit tests, guests", &["test", "-p", GUESTS, "--lib"]),
        // Apart, as for a rig: a shared build would give both the features of either.
        step("hypervisor", &["build", "--release", "-p", HYPERVISOR, "--target", METAL]),
        step("guests", &["build", "--release", "-p", GUESTS, "--target", METAL]),
    ]
}

/// The tests start rigs by this very program: one pair at a time, which fills two cores, or two machines that are alone
/// (`desk.rs` of the tests sees to that).
fn rig_step(platform: Platform, filter: Option<&str>, long: bool) -> Result<Step> {
    let mut command = artefacts::cargo();
    command
        .args(["test", "-p", END_TO_END, "--no-fail-fast", "--"])
        .args(filter)
        .args(["--test-threads=2", "--show-output"]);
    if long {
        command.arg("--include-ignored");
    }
    let selection = (platform == Platform::Bochs && filter.is_none()).then_some(WHY_SELECTED);
    if selection.is_some() {
        command.arg("--exact").args(IN_BOCHS);
    }
    command.env("POLLUX_XTASK", std::env::current_exe().context("cannot find myself")?);
    command.env("POLLUX_RIG_PARENT", rig::directory::default_parent());
    command.env("POLLUX_RIG", platform.verb());
    let name = match platform {
        Platform::Qemu => "end to end, QEMU",
        Platform::Bochs => "end to end, Bochs",
    };
    let limit = if long { LONG_STEP_LIMIT } else { STEP_LIMIT };
    Ok(Step { name, command, selection, timed: true, limit })
}

fn run_step(mut step: Step) -> Result<Outcome> {
    let words: Vec<_> = step.command.get_args().map(|word| word.to_string_lossy()).collect();
    say!("\n== {}: cargo {}", step.name, words.join(" "));
    step.command.stdin(Stdio::null()).stdout(Stdio::piped());
    // A panic names its place. Backtraces, those of panics that a test expects as well, would hide what failed.
    step.command.env("RUST_BACKTRACE", "0");
    let started = Instant::now();
    let mut process = Process::spawn(&mut step.command)?;
    let tee = process.child_mut().stdout.take().map(Tee::start);
    let result = process.wait(step.limit);
    let transcript = tee.map(Tee::end).unwrap_or_default();
    interrupt::check()?;
    let failure = match result {
        Ok(status) if status.success() => None,
        Ok(status) => Some(status.to_string()),
        Err(error) => Some(format!("{error:#}")),
    };
    let Step { name, selection, timed, .. } = step;
    Ok(Outcome { name, failure, transcript, selection, timed, duration: started.elapsed() })
}

/// What failed is said again here: in the output of a whole run it is hard to find.
fn summary(outcomes: &[Outcome]) -> Vec<String> {
    let mut lines = vec![String::new()];
    for outcome in outcomes.iter().filter(|outcome| outcome.failure.is_some()) {
        lines.push(format!("== {}: what failed", outcome.name));
        lines.extend(outcome.transcript.of_failure().cloned());
    }
    for outcome in outcomes.iter().filter(|outcome| outcome.timed) {
        lines.push(format!("== {}: the tests that took longest", outcome.name));
        let longest = outcome.transcript.longest(LONGEST);
        lines.extend(longest.iter().map(|(took, name)| format!("{:>7.1} s  {name}", took.as_secs_f64())));
    }
    lines.push("== summary".to_owned());
    lines.extend(outcomes.iter().map(|outcome| {
        let result = outcome.failure.as_ref().map_or_else(|| "ok".to_owned(), |why| format!("FAILED ({why})"));
        format!("{:<20} {:>7.1} s  {result}", outcome.name, outcome.duration.as_secs_f64())
    }));
    let total: Duration = outcomes.iter().map(|outcome| outcome.duration).sum();
    lines.push(format!("{:<20} {:>7.1} s", "total", total.as_secs_f64()));
    lines
}

/// The last lines where something failed: logs that show only the end of a run have its reason.
fn in_short(outcomes: &[Outcome]) -> Vec<String> {
    let mut lines = Vec::new();
    for outcome in outcomes.iter().filter(|outcome| outcome.failure.is_some()) {
        lines.push(format!("== {}: what failed, in short", outcome.name));
        lines.extend(outcome.transcript.of_failure_in_short().into_iter().cloned());
    }
    lines
}

/// What was not tested, and why. `absent` says what could not be installed.
fn not_tested(outcomes: &[Outcome], absent: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    for Outcome { name, transcript, selection, .. } in outcomes {
        lines.extend(transcript.skipped.iter().map(|test| format!("{name}: {test}")));
        if let Some(why) = selection.filter(|_| transcript.filtered > 0) {
            lines.push(format!("{name}: {} tests: {why}", transcript.filtered));
        }
    }
    lines.extend_from_slice(absent);
    lines.insert(0, if lines.is_empty() { "== nothing was skipped" } else { "== skipped" }.to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_for_bochs_exist() {
        let directory = artefacts::root().join("tests/tests");
        let files =
            std::fs::read_dir(directory).unwrap().map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
        let sources: String = files.collect();
        for name in IN_BOCHS {
            assert!(sources.contains(&format!("#[test]\nfn {name}()")), "{name}");
        }
    }

    fn outcome(name: &'static str, transcript: Transcript) -> Outcome {
        let duration = Duration::from_millis(1500);
        Outcome { name, failure: None, transcript, selection: None, timed: false, duration }
    }

    #[test]
    fn the_last_lines_name_what_was_not_tested() {
        let skipping = |skipped: &[&str], filtered| Transcript {
            skipped: skipped.iter().map(|&test| test.to_owned()).collect(),
            filtered,
            ..Transcript::default()
        };
        let unit = outcome("unit tests", skipping(&["a: no etcd", "b: no QEMU"], 3));
        let mut bochs = outcome("Bochs", skipping(&[], 20));
        bochs.selection = Some("a selection");
        let lines = not_tested(&[unit, bochs], &["etcd: apt-get fails".to_owned()]);
        // Tests that the user's own filter left out are none that were skipped.
        let expected = [
            "== skipped",
            "unit tests: a: no etcd",
            "unit tests: b: no QEMU",
            "Bochs: 20 tests: a selection",
            "etcd: apt-get fails",
        ];
        assert_eq!(lines, expected);
        assert_eq!(not_tested(&[outcome("format", skipping(&[], 0))], &[]), ["== nothing was skipped"]);
    }

    #[test]
    fn the_summary_names_what_failed() {
        let format = outcome("format", Transcript::default());
        let failures = vec!["---- it stdout ----".to_owned()];
        let mut guests = outcome("guests", Transcript { failures, ..Transcript::default() });
        guests.failure = Some("exit status: 101".to_owned());
        let outcomes = [format, guests];
        let text = summary(&outcomes).join("\n");
        assert!(text.contains("format                   1.5 s  ok"), "{text}");
        assert!(text.contains("FAILED (exit status: 101)"), "{text}");
        assert!(text.contains("total                    3.0 s"), "{text}");
        assert!(text.contains("== guests: what failed\n---- it stdout ----\n== summary"), "{text}");
        assert_eq!(in_short(&outcomes), ["== guests: what failed, in short", "---- it stdout ----"]);
    }

    #[test]
    fn a_filter_that_finds_nothing_is_an_error() {
        let ran = Transcript { took: vec![(Duration::ZERO, "a_test".to_owned())], ..Transcript::default() };
        let ignored = Transcript { skipped: ["a_test: takes minutes".to_owned()].into(), ..Transcript::default() };
        let none = || outcome("guests", Transcript { filtered: 9, ..Transcript::default() });
        assert!(!found_any(&[none(), none()]));
        assert!(found_any(&[none(), outcome("QEMU", ran)]) && found_any(&[outcome("QEMU", ignored)]));
    }

    #[test]
    fn a_filter_leaves_only_tests() {
        assert_eq!(host_steps(Some("gate"), false).len(), 1);
        assert!(host_steps(None, true).len() > 1);
    }
}
