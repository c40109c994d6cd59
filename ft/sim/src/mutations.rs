//! The table of broken rules: each must be noticed within a bounded number of seeds.

use crate::check::Check;
use crate::run::{Report, run_many};
use crate::stories;
use pollux_ft::Mutation;

/// Seeds within which a broken rule must be noticed.
pub const SEEDS: u64 = 5000;
/// The same where a story tells of it: seeds are tried, but need not notice.
pub const SEEDS_OF_A_STORY: u64 = 400;

/// How a broken rule was noticed.
#[derive(Debug, Clone)]
pub struct Row {
    /// The rule.
    pub mutation: Mutation,
    /// The first seed that showed it.
    pub caught: Option<Report>,
    /// What a story said that shows it.
    pub told: Option<&'static str>,
}

impl Row {
    /// How many seeds it took.
    #[must_use]
    pub fn seeds(&self) -> Option<u64> {
        self.caught.as_ref().map(|report| report.seed + 1)
    }

    /// The check that noticed it.
    #[must_use]
    pub fn check(&self) -> Option<Check> {
        self.caught.as_ref()?.violation.as_ref().map(|violation| violation.check)
    }
}

/// Breaks a rule and runs seeds until one notices.
#[must_use]
pub fn try_mutation(mutation: Mutation, threads: usize) -> Row {
    let seeds = if stories::is_told(mutation) { SEEDS_OF_A_STORY } else { SEEDS };
    let mut summary = run_many(0..seeds, threads, Some(mutation), true, &|_, _| ());
    let caught = (!summary.broken.is_empty()).then(|| summary.broken.remove(0));
    Row { mutation, caught, told: stories::told_of(mutation) }
}
