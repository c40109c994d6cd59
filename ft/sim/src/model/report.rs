//! The whole check: the model within all bounds, then each broken rule, and the tables of what came of it.

use super::{Bounds, Broken, Outcome, Planned, always, check, possible};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How wide the ways to a broken property are printed.
const WIDTH: usize = 110;

/// What a check of the model within bounds came to.
#[derive(Debug, Clone)]
struct Row {
    bounds: Bounds,
    broken: Option<Broken>,
    outcome: Outcome,
    took: Duration,
}

/// What all checks came to.
#[derive(Debug, Clone)]
pub struct Report {
    whole: Vec<Row>,
    broken: Vec<Row>,
}

impl Report {
    /// Runs all checks, each on one of `threads` threads.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        let whole = Bounds::ALL.map(|bounds| (bounds, None)).into_iter();
        let broken = Broken::ALL.into_iter().map(|rule| (rule.bounds(), Some(rule)));
        let mut whole = run(&whole.chain(broken).collect::<Vec<_>>(), threads);
        let broken = whole.split_off(Bounds::ALL.len());
        Self { whole, broken }
    }

    /// What is wrong: properties that do not hold or are not possible, and broken rules that do no harm.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let fails = self.whole.iter().flat_map(|row| {
            row.outcome.broken.iter().map(|(property, _)| format!("`{property}` does not hold ({})", row.bounds.name))
        });
        let never = possible().filter(|property| self.found_in(property).is_empty());
        let harmless = self.broken.iter().filter(|row| row.outcome.broken.is_empty());
        fails
            .chain(never.map(|property| format!("`{property}` never happens")))
            .chain(harmless.filter_map(|row| Some(format!("{:?} does no harm", row.broken?))))
            .collect()
    }

    /// The bounds within which something possible happened.
    fn found_in(&self, property: &str) -> Vec<&'static str> {
        let rows = self.whole.iter().filter(|row| row.outcome.happened.contains(&property));
        rows.map(|row| row.bounds.name).collect()
    }

    fn broken_in(&self, property: &str) -> impl Iterator<Item = (&Row, &[String])> {
        self.whole.iter().filter_map(move |row| {
            let (_, way) = row.outcome.broken.iter().find(|(name, _)| *name == property)?;
            Some((row, way.as_slice()))
        })
    }
}

/// Checks one after the other on each thread.
fn run(jobs: &[(Bounds, Option<Broken>)], threads: usize) -> Vec<Row> {
    let next = AtomicUsize::new(0);
    let rows = Mutex::new(Vec::new());
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some((bounds, broken)) = jobs.get(index).copied() else { return };
            let started = Instant::now();
            let outcome = check(bounds, broken);
            let row = Row { bounds, broken, outcome, took: started.elapsed() };
            rows.lock().expect("no thread panics with the lock").push((index, row));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut rows = rows.into_inner().expect("no thread panics with the lock");
    rows.sort_by_key(|(index, _)| *index);
    rows.into_iter().map(|(_, row)| row).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "bounds          machines  terms  sessions  inputs  restarts  burns    states  depth  seconds")?;
        for Row { bounds, outcome, took, .. } in &self.whole {
            let Bounds { name, machines, terms, sessions, inputs, restarts, burns, planned, .. } = bounds;
            write!(f, "{name:<14} {machines:>9} {terms:>6} {sessions:>9} {inputs:>7} {restarts:>9} {burns:>6}")?;
            write!(f, " {:>9} {:>6} {:>8.1}", outcome.states, outcome.depth, took.as_secs_f64())?;
            writeln!(f, "{}", planned_words(planned))?;
        }
        writeln!(f, "\nmust always hold")?;
        for property in always() {
            let fails: Vec<_> = self.broken_in(property).collect();
            writeln!(f, "    {:<7} {property}", if fails.is_empty() { "holds" } else { "FAILS" })?;
            if let Some((row, way)) = fails.first() {
                writeln!(f, "            within the bounds of {}:", row.bounds.name)?;
                write_way(f, way)?;
            }
        }
        writeln!(f, "\nmust be possible")?;
        for property in possible() {
            let found = self.found_in(property);
            let seen = if found.is_empty() {
                "NEVER".to_owned()
            } else {
                format!("in {} of {}", found.len(), self.whole.len())
            };
            writeln!(f, "    {seen:<7} {property}")?;
        }
        writeln!(f, "\nbroken rule             states  steps  what does not hold then, and a way there")?;
        self.broken.iter().try_for_each(|row| write_broken(f, row))
    }
}

fn planned_words(planned: &[Planned]) -> String {
    let words = planned.iter().map(|what| match what {
        Planned::Stop => "stops",
        Planned::SwitchOver => "switch-overs",
        Planned::PowerOff => "power-off",
    });
    words.map(|word| format!("  +{word}")).collect()
}

fn write_broken(f: &mut fmt::Formatter<'_>, row: &Row) -> fmt::Result {
    let name = row.broken.map(|rule| format!("{rule:?}")).unwrap_or_default();
    let states = row.outcome.states;
    match row.outcome.broken.first() {
        Some((property, way)) => {
            writeln!(f, "{name:<20} {states:>9} {:>6}  {property}", way.len())?;
            write_way(f, way)
        }
        None => writeln!(f, "{name:<20} {states:>9}         NOTHING"),
    }
}

/// As few lines as the steps fit on.
fn write_way(f: &mut fmt::Formatter<'_>, way: &[String]) -> fmt::Result {
    let mut line = String::new();
    for (index, step) in way.iter().enumerate() {
        let end = if index + 1 == way.len() { "." } else { "; " };
        if line.len() + step.len() + end.len() > WIDTH {
            writeln!(f, "    {}", line.trim_end())?;
            line.clear();
        }
        line += step;
        line += end;
    }
    writeln!(f, "    {line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let row = |broken, outcome| Row { bounds: Bounds::INPUTS, broken, outcome, took: Duration::ZERO };
        let fine = Outcome { states: 1, depth: 1, broken: Vec::new(), happened: possible().collect() };
        let good = Report { whole: vec![row(None, fine.clone())], broken: Vec::new() };
        assert_eq!(good.failures(), Vec::<String>::new());

        let way = vec!["castor loses power".to_owned()];
        let fails = Outcome { broken: vec![("so it is", way)], happened: possible().skip(1).collect(), ..fine.clone() };
        let bad = Report { whole: vec![row(None, fails)], broken: vec![row(Some(Broken::StreamIsProof), fine)] };
        let missing = format!("`{}` never happens", possible().next().expect("there are some"));
        let expected = ["`so it is` does not hold (inputs)", &missing, "StreamIsProof does no harm"];
        assert_eq!(bad.failures(), expected);
        let text = bad.to_string();
        assert!(text.contains("NEVER") && text.contains("NOTHING"), "{text}");
    }
}
