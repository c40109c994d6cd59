//! Runs of seeds: one, or many on all cores.

use crate::check::{Check, Violation};
use crate::figures::Figures;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::trace::Keep;
use crate::world::World;
use nix::time::{ClockId, clock_gettime};
use pollux_ft::Mutation;
use std::cell::RefCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Longest time of a processor that one run may take: ten thousand times what it takes. While this program stands still,
/// or waits for a processor, it takes none.
const LONGEST: Duration = Duration::from_secs(120);
/// Time between two looks at the runs under way.
const LOOK: Duration = Duration::from_secs(1);

/// How one seed ended.
#[derive(Debug, Clone)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What happened, in numbers; of a run that panicked nothing but its existence.
    pub figures: Figures,
    /// The first rule that was broken.
    pub violation: Option<Violation>,
    /// A hash of all that happened.
    pub hash: u64,
    /// What happened, in words, as far as it was kept.
    pub lines: Vec<String>,
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps the words of a panic instead of printing them: a panic of a simulated machine is a result.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|info| PANIC.with(|text| *text.borrow_mut() = info.to_string())));
}

/// Runs one seed, with a rule broken if wanted.
#[must_use]
pub fn run_seed(seed: u64, mutation: Option<Mutation>, keep: Keep) -> Report {
    let mut plan = Plan::new(&mut Rng::new(seed, 1)).perhaps_auto(&mut Rng::new(seed, 9));
    plan.config.mutation = mutation;
    run_plan(seed, plan, keep)
}

fn run_plan(seed: u64, plan: Plan, keep: Keep) -> Report {
    match catch_unwind(AssertUnwindSafe(|| World::new(seed, plan, keep))) {
        Ok(world) => report(seed, world, World::run),
        Err(_) => {
            let violation = Violation { check: Check::NoPanic, at: 0, text: last_panic() };
            Report { seed, figures: Figures::default(), violation: Some(violation), hash: 0, lines: Vec::new() }
        }
    }
}

/// What the last panic of this thread said, on one line.
fn last_panic() -> String {
    PANIC.with(|text| text.borrow().replace('\n', " "))
}

/// Lets a world run and tells how that ended.
pub(crate) fn report(seed: u64, mut world: World, run: impl FnOnce(&mut World)) -> Report {
    let panicked = catch_unwind(AssertUnwindSafe(|| run(&mut world))).is_err();
    if panicked {
        world.env.audit.broken(Check::NoPanic, last_panic());
    }
    let outcome = world.outcome();
    Report {
        seed,
        figures: outcome.figures,
        violation: outcome.violation,
        hash: outcome.trace.hash(),
        lines: outcome.trace.into_lines(),
    }
}

/// What many seeds came to.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Together.
    pub figures: Figures,
    /// Those that broke a rule, by seed.
    pub broken: Vec<Report>,
    /// A hash over the hashes of all seeds.
    pub hash: u64,
}

/// Hears how many runs are done, and how many microseconds they simulated.
pub type OnProgress<'a> = dyn Fn(u64, u64) + Sync + 'a;

/// The time of processors that all threads of this program have used together.
fn used() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("a process has such a clock").into()
}

/// The runs under way on the threads: since when, by [`used`], and of which seed.
#[derive(Debug)]
struct Watch(Mutex<Vec<Option<(Duration, u64)>>>);

impl Watch {
    fn new(threads: usize) -> Self {
        Self(Mutex::new(vec![None; threads]))
    }

    fn set(&self, thread: usize, run: Option<u64>, now: Duration) {
        self.0.lock().expect("no thread panics with the lock")[thread] = run.map(|seed| (now, seed));
    }

    /// A run that has taken too long: its share of what all threads used meanwhile, as each of them computes all the time.
    /// It cannot be ended: a machine of it runs in circles, where no event ends.
    fn stuck(&self, now: Duration) -> Option<u64> {
        let runs = self.0.lock().expect("no thread panics with the lock");
        let longest = LONGEST * runs.iter().flatten().count() as u32;
        runs.iter().flatten().find(|(since, _)| now.saturating_sub(*since) > longest).map(|(_, seed)| *seed)
    }

    /// Ends this program, with the seed's name, when a run does not end; returns when `all_done`.
    fn watch(&self, all_done: &AtomicBool) {
        while !all_done.load(Ordering::Relaxed) {
            if let Some(seed) = self.stuck(used()) {
                let longest = LONGEST.as_secs();
                eprintln!("error: the run of seed {seed} does not end: nothing came of it in {longest} s of computing");
                std::process::exit(1);
            }
            std::thread::park_timeout(LOOK);
        }
    }
}

/// Runs `seeds` on `threads` threads. With `first`, no new seeds are begun once one has broken a rule; all seeds before
/// it are still run, so that the lowest such seed does not depend on the threads. A run that does not end ends the
/// program.
pub fn run_many(
    seeds: Range<u64>,
    threads: usize,
    mutation: Option<Mutation>,
    first: bool,
    progress: &OnProgress<'_>,
) -> Summary {
    let next = AtomicU64::new(seeds.start);
    let (done, simulated) = (AtomicU64::new(0), AtomicU64::new(0));
    let (stop, all_done) = (AtomicBool::new(false), AtomicBool::new(false));
    let total = Mutex::new(Summary::default());
    let watch = Watch::new(threads);
    let work = |thread: usize| {
        let mut own = Summary::default();
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            watch.set(thread, Some(seed), used());
            let report = run_seed(seed, mutation, Keep::Nothing);
            watch.set(thread, None, used());
            own.figures.add(&report.figures);
            own.hash = own.hash.wrapping_add(crate::rng::mix(seed, report.hash));
            let before = simulated.fetch_add(report.figures.simulated, Ordering::Relaxed);
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, before + report.figures.simulated);
            if report.violation.is_some() {
                stop.fetch_or(first, Ordering::Relaxed);
                own.broken.push(report);
            }
        }
        let mut total = total.lock().expect("no thread panics with the lock");
        total.figures.add(&own.figures);
        total.hash = total.hash.wrapping_add(own.hash);
        total.broken.append(&mut own.broken);
    };
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch.watch(&all_done));
        let work = &work;
        let workers: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        let ends: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        // Also after a panic of ours: the watcher would look on for ever.
        all_done.store(true, Ordering::Relaxed);
        watcher.thread().unpark();
        ends.into_iter().for_each(|end| end.expect("a panic of a run is caught"));
    });
    let mut total = total.into_inner().expect("no thread panics with the lock");
    total.broken.sort_by_key(|report| report.seed);
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_computes_for_too_long_is_named() {
        let (watch, start) = (Watch::new(3), Duration::from_secs(1000));
        assert_eq!(watch.stuck(start * 1000), None, "nothing runs");
        watch.set(1, Some(7), start);
        assert_eq!((watch.stuck(start + LONGEST), watch.stuck(start + LONGEST + LOOK)), (None, Some(7)));
        // Two that compute share the time.
        watch.set(0, Some(8), start + LONGEST);
        assert_eq!((watch.stuck(start + 2 * LONGEST), watch.stuck(start + 2 * LONGEST + LOOK)), (None, Some(7)));
        watch.set(1, None, start);
        assert_eq!(watch.stuck(start + 2 * LONGEST), None);
    }

    #[test]
    fn a_world_that_cannot_be_made_is_told_like_a_panic_in_it() {
        let mut plan = Plan::new(&mut Rng::new(7, 1));
        plan.config.batch_delay = plan.config.suspect_after;
        let violation = run_plan(7, plan, Keep::Nothing).violation;
        assert_eq!(violation.map(|violation| violation.check), Some(Check::NoPanic));
    }

    #[test]
    fn who_computes_uses_time() {
        let start = used();
        while used() < start + Duration::from_millis(1) {}
    }
}
