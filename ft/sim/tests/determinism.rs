//! All of a run comes from its seed, and nothing from the machine that simulates it.

use pollux_ft::Mutation;
use pollux_sim::Keep;
use pollux_sim::run::{Summary, run_many, run_seed};

const SEEDS: u64 = 24;

#[test]
fn the_same_seed_gives_the_same_run_to_the_byte() {
    for seed in 0..SEEDS {
        let [one, two] = [(); 2].map(|()| run_seed(seed, None, Keep::All));
        assert!(one.lines.len() > 50, "seed {seed} has a trace of {} lines", one.lines.len());
        assert_eq!(one.lines.join("\n"), two.lines.join("\n"), "seed {seed}");
        assert_eq!((one.hash, &one.figures), (two.hash, &two.figures), "seed {seed}");
        assert_eq!(one.violation, two.violation, "seed {seed}");
    }
}

#[test]
fn what_is_kept_of_a_trace_does_not_change_its_hash() {
    for seed in 0..SEEDS / 4 {
        let [all, last, nothing] = [Keep::All, Keep::Last(10), Keep::Nothing].map(|keep| run_seed(seed, None, keep));
        assert_eq!((last.hash, nothing.hash), (all.hash, all.hash), "seed {seed}");
        assert_eq!(last.lines, all.lines[all.lines.len() - 10..], "seed {seed}");
    }
}

#[test]
fn different_seeds_give_different_runs() {
    let hashes: std::collections::BTreeSet<_> =
        (0..SEEDS).map(|seed| run_seed(seed, None, Keep::Nothing).hash).collect();
    assert_eq!(hashes.len() as u64, SEEDS);
}

/// What a summary says that must not depend on the threads.
fn essence(summary: &Summary) -> (u64, String, Vec<(u64, u64, String)>) {
    let broken = summary.broken.iter().map(|report| (report.seed, report.hash, format!("{:?}", report.violation)));
    (summary.hash, format!("{:?}", summary.figures), broken.collect())
}

#[test]
fn the_number_of_threads_does_not_matter() {
    // Without a violation, and with some.
    for mutation in [None, Some(Mutation::SupersededGoesOn)] {
        let run = |threads| essence(&run_many(0..SEEDS, threads, mutation, false, &|_, _| ()));
        let one = run(1);
        assert_eq!(one.2.is_empty(), mutation.is_none(), "{:?}", one.2);
        assert_eq!(run(2), one);
        assert_eq!(run(5), one);
    }
}

#[test]
fn the_first_seed_that_breaks_a_rule_does_not_depend_on_threads() {
    let first = |threads| {
        let summary = run_many(0..SEEDS, threads, Some(Mutation::SupersededGoesOn), true, &|_, _| ());
        summary.broken.first().map(|report| (report.seed, report.hash))
    };
    let one = first(1);
    assert!(one.is_some());
    assert_eq!([first(2), first(5)], [one; 2]);
}
