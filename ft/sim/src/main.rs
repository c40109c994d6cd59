//! `pollux-sim`: runs seeds, replays one, breaks rules on purpose.

use anyhow::{Result, bail, ensure};
use clap::Parser;
use pollux_ft::Mutation;
use pollux_sim::mutations::{self, try_mutation};
use pollux_sim::run::{self, Report, Summary, run_many, run_seed};
use pollux_sim::{Figures, Keep, Kind, model};
use std::io::IsTerminal;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Lines of the trace that are shown before a violation.
const LAST: usize = 40;
/// How often progress is shown on a terminal, and elsewhere.
const TICK: Duration = Duration::from_millis(500);
const LINE: Duration = Duration::from_secs(60);

/// Simulate the replication protocol.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds to run
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "seed")]
    seeds: u64,
    /// The first seed to run; else seeds that were hardly ever run, and the first one is printed
    #[arg(long, conflicts_with = "seed")]
    from: Option<u64>,
    /// Run seeds until one breaks a rule
    #[arg(long, conflicts_with_all = ["seeds", "seed"])]
    forever: bool,
    /// Run only this seed
    #[arg(long)]
    seed: Option<u64>,
    /// Print all that happens
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Break a rule on purpose, by its name
    #[arg(long)]
    mutation: Option<String>,
    /// Break every rule on purpose, one by one: each must be noticed
    #[arg(long, conflicts_with_all = ["seed", "seeds", "from", "forever", "mutation"])]
    mutations: bool,
    /// Check the model of the decisions in all orders of events, whole and with each rule broken
    #[arg(long, conflicts_with_all = ["seed", "seeds", "from", "forever", "mutation", "mutations"])]
    model: bool,
    /// Threads
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024), conflicts_with = "seed")]
    threads: Option<u16>,
}

fn main() -> ExitCode {
    match work(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn work(arguments: &Arguments) -> Result<()> {
    run::catch_panics();
    let cores = || std::thread::available_parallelism().map_or(1, Into::into);
    let threads = arguments.threads.map_or_else(cores, usize::from);
    let mutation = arguments.mutation.as_deref().map(find_mutation).transpose()?;
    if arguments.mutations {
        return mutation_table(threads);
    }
    if arguments.model {
        return check_model(threads);
    }
    if let Some(seed) = arguments.seed {
        return one_seed(seed, mutation, arguments.trace);
    }
    let from = arguments.from.unwrap_or_else(fresh_seed);
    if arguments.forever {
        return many_seeds(from..u64::MAX, true, threads, mutation);
    }
    let Some(end) = from.checked_add(arguments.seeds) else {
        bail!("there are no {} seeds from {from} on: the last one is {}", arguments.seeds, u64::MAX - 1);
    };
    many_seeds(from..end, false, threads, mutation)
}

/// A seed that was hardly ever run before, by the clock, and short enough to be read out.
fn fresh_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| u64::from(now.subsec_nanos()))
}

fn find_mutation(name: &str) -> Result<Mutation> {
    let found = Mutation::ALL.into_iter().find(|mutation| format!("{mutation:?}") == name);
    let Some(found) = found else {
        let names: Vec<_> = Mutation::ALL.iter().map(|mutation| format!("{mutation:?}")).collect();
        bail!("there is no mutation `{name}`: they are {}", names.join(", "));
    };
    Ok(found)
}

fn one_seed(seed: u64, mutation: Option<Mutation>, trace: bool) -> Result<()> {
    let report = run_seed(seed, mutation, if trace { Keep::All } else { Keep::Last(LAST) });
    if trace || report.violation.is_some() {
        print_trace(&report);
    }
    print_figures(&report.figures);
    println!("trace hash  {:016x}", report.hash);
    ensure!(report.violation.is_none(), "seed {seed} broke a rule");
    Ok(())
}

fn print_trace(report: &Report) {
    for line in &report.lines {
        println!("{line}");
    }
    if let Some(violation) = &report.violation {
        println!("VIOLATION of {} at {} us: {}", violation.check, violation.at, violation.text);
    }
}

/// Runs seeds, all of them or `forever`, until one breaks a rule.
fn many_seeds(seeds: Range<u64>, forever: bool, threads: usize, mutation: Option<Mutation>) -> Result<()> {
    println!("from seed   {}", seeds.start);
    let started = Instant::now();
    let ticker = Ticker::new(if forever { None } else { Some(seeds.end - seeds.start) });
    let summary = run_many(seeds, threads, mutation, forever, &|done, simulated| ticker.show(done, simulated));
    ticker.clear();
    let seconds = started.elapsed().as_secs_f64();
    print_figures(&summary.figures);
    println!("trace hash  {:016x}", summary.hash);
    println!("violations  {}", summary.broken.len());
    println!("took        {seconds:.1} s on {threads} threads");
    report_broken(&summary, mutation)
}

/// Says how far the runs are, now and then: in place on a terminal, else by lines if they have no end.
struct Ticker {
    of: Option<u64>,
    in_place: bool,
    started: Instant,
    next: Mutex<Instant>,
}

impl Ticker {
    fn new(of: Option<u64>) -> Self {
        let started = Instant::now();
        Self { of, in_place: std::io::stderr().is_terminal(), started, next: Mutex::new(started + TICK) }
    }

    fn show(&self, done: u64, simulated: u64) {
        let (Ok(mut next), true) = (self.next.try_lock(), self.in_place || self.of.is_none()) else { return };
        let now = Instant::now();
        if now < *next {
            return;
        }
        *next = now + if self.in_place { TICK } else { LINE };
        let all = self.of.map(|of| format!(" of {of}")).unwrap_or_default();
        let speed = done as f64 / now.duration_since(self.started).as_secs_f64();
        let text = format!("{done}{all} seeds, {speed:.0} a second, {:.2} simulated hours", hours(simulated));
        if self.in_place { eprint!("\r\x1b[K{text}") } else { eprintln!("{text}") }
    }

    fn clear(&self) {
        if self.in_place {
            eprint!("\r\x1b[K");
        }
    }
}

fn hours(microseconds: u64) -> f64 {
    microseconds as f64 / 3.6e9
}

/// Shows the end of the first run that broke a rule, and how to see more.
fn report_broken(summary: &Summary, mutation: Option<Mutation>) -> Result<()> {
    let Some(first) = summary.broken.first() else { return Ok(()) };
    for report in summary.broken.iter().take(10) {
        if let Some(violation) = &report.violation {
            println!("seed {:>6}: {}: {}", report.seed, violation.check, violation.text);
        }
    }
    println!("\nthe last events of seed {}:", first.seed);
    print_trace(&run_seed(first.seed, mutation, Keep::Last(LAST)));
    let broken = mutation.map(|mutation| format!(" --mutation {mutation:?}")).unwrap_or_default();
    println!("to replay it: cargo xtask sim --seed {} --trace{broken}", first.seed);
    bail!("{} seeds broke a rule", summary.broken.len())
}

fn mutation_table(threads: usize) -> Result<()> {
    println!("{:<22} {:>6}  caught by", "broken rule", "seeds");
    let mut missed = 0;
    for mutation in Mutation::ALL {
        let row = try_mutation(mutation, threads);
        let name = format!("{mutation:?}");
        match row.caught.as_ref().and_then(|report| report.violation.as_ref().map(|found| (report.seed, found))) {
            Some((seed, found)) => println!("{name:<22} {:>6}  {}: {}", seed + 1, found.check, found.text),
            None if row.told.is_some() => {
                println!("{name:<22} {:>6}  a story: {}", "-", row.told.unwrap_or_default());
            }
            None => {
                missed += 1;
                println!("{name:<22} {:>6}  NOTHING", mutations::SEEDS);
            }
        }
    }
    ensure!(missed == 0, "{missed} broken rules were not noticed");
    Ok(())
}

fn check_model(threads: usize) -> Result<()> {
    let started = Instant::now();
    let report = model::Report::new(threads);
    print!("{report}");
    println!("\ntook {:.1} s on {threads} threads", started.elapsed().as_secs_f64());
    let failures = report.failures();
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

fn print_figures(figures: &Figures) {
    println!("seeds       {}", figures.seeds);
    println!("simulated   {:.2} hours, {} events", hours(figures.simulated), figures.events);
    println!(
        "service     {} answers, {} frames, {} of them twice",
        figures.answers, figures.frames, figures.duplicates
    );
    println!("            longest wait of a client {} ms", figures.longest_wait / 1000);
    println!(
        "roles       {} takeovers, {} called off, {} switch-overs",
        figures.takeovers, figures.cancelled, figures.switch_overs
    );
    println!(
        "            {} protections, {} terms, {} refused pairings",
        figures.protections, figures.terms, figures.refusals
    );
    println!("            {} announcements", figures.announcements);
    println!("disks       {} requests done, {} failed", figures.disk_ends[0], figures.disk_ends[1]);
    println!("ends        {} power-offs, {} guests lost to several faults at once", figures.power_offs, figures.lost);
    println!("            {} guests created by machines that started by themselves", figures.created);
    let faults: u64 = figures.faults.values().sum();
    println!("faults      {faults}");
    for kind in Kind::ALL {
        println!("            {:>7} {kind}", figures.faults.get(&kind).copied().unwrap_or_default());
    }
    println!("            {:>7} flipped bits found", figures.flips_found);
    println!("            {:>7} datagrams of attackers", figures.attacks);
    println!("            {:>7} changes of a key", figures.key_changes);
}
