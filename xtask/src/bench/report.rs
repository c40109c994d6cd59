//! A figure, and the table of them.

use std::fmt;

use serde::Serialize;

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// Within these.
    Between(f64, f64),
    /// Told for information.
    Anything,
}

impl Wanted {
    fn accepts(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
            Self::Between(low, high) => (low..=high).contains(&value),
            Self::Anything => true,
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "<= {limit}"),
            Self::AtLeast(limit) => write!(f, ">= {limit}"),
            Self::Between(low, high) => write!(f, "{low} to {high}"),
            Self::Anything => f.write_str("-"),
        }
    }
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// What it should be.
    pub wanted: Wanted,
    /// What it is; none if it could not be measured, see `note`.
    pub measured: Option<f64>,
    /// The unit of both.
    pub unit: &'static str,
    /// How it was measured, or why not.
    pub note: String,
}

impl Figure {
    /// A figure that was measured.
    pub fn new(name: &str, wanted: Wanted, measured: f64, unit: &'static str, note: impl Into<String>) -> Self {
        Self { name: name.to_owned(), wanted, measured: Some(measured), unit, note: note.into() }
    }

    /// A figure that could not be measured.
    pub fn failed(name: &str, why: &str) -> Self {
        Self { name: name.to_owned(), wanted: Wanted::Anything, measured: None, unit: "", note: why.to_owned() }
    }

    /// Whether it is as wanted. No data is a failure.
    pub fn reached(&self) -> bool {
        self.measured.is_some_and(|value| self.wanted.accepts(value))
    }
}

/// All figures as lines.
pub fn table(figures: &[Figure]) -> Vec<String> {
    let width = figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0).max("figure".len());
    let mut lines =
        vec![format!("{:<width$}  {:>14}  {:>12}  {:<8}      note", "figure", "wanted", "measured", "unit")];
    lines.extend(figures.iter().map(|figure| {
        let measured = figure.measured.map_or_else(|| "none".to_owned(), |value| format!("{value:.3}"));
        let mark = if figure.reached() { "ok" } else { "MISS" };
        let Figure { name, wanted, unit, note, .. } = figure;
        let note = note.lines().next().unwrap_or_default();
        format!("{name:<width$}  {:>14}  {measured:>12}  {unit:<8}  {mark:<4}  {note}", wanted.to_string())
    }));
    lines
}

/// The value below which `share` (0 to 1) of `values` lie.
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    sorted.get(((last as f64) * share.clamp(0.0, 1.0)).round() as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_data_is_a_miss() {
        assert!(!Figure::failed("x", "no rig").reached());
        assert!(!Figure::new("x", Wanted::AtMost(1.0), f64::NAN, "", "").reached());
    }

    #[test]
    fn limits_belong_to_what_is_wanted() {
        let reached = |wanted, value| Figure::new("x", wanted, value, "s", "").reached();
        assert!(reached(Wanted::AtMost(2.5), 2.5) && !reached(Wanted::AtMost(2.5), 2.6));
        assert!(reached(Wanted::AtLeast(0.7), 0.7) && !reached(Wanted::AtLeast(0.7), 0.6));
        assert!(reached(Wanted::Between(10.0, 13.0), 11.0) && !reached(Wanted::Between(10.0, 13.0), 9.0));
    }

    #[test]
    fn quantiles() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), Some(2.0));
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 1.0), Some(3.0));
    }

    #[test]
    fn the_table_marks_misses() {
        let lines = table(&[
            Figure::new("start", Wanted::AtMost(15.0), 4.2, "s", "built binaries"),
            Figure::failed("blackout", "no rig\nmore"),
        ]);
        assert!(lines[1].contains("<= 15") && lines[1].contains("ok"), "{lines:?}");
        assert!(lines[2].contains("MISS  no rig") && !lines[2].contains("more"), "{lines:?}");
    }
}
