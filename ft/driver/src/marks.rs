//! When the primary makes the marks that backup and gate wait for: `Output` for frames that are held, `Horizon` for a
//! guest that went on without entries. Pure.

use pollux_ft::{Position, Span, Time};

/// How long marks may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// Ticks that output may wait for more output before an `Output` entry is made for it. Default 20,000.
    pub output_ticks: u64,
    /// Frames that make an `Output` entry due at once. Default 16.
    pub output_frames: usize,
    /// Wall time after which a guest that has gone on without any entry gets a `Horizon`. Default 50 ms.
    pub horizon: Span,
}

impl Default for Waits {
    fn default() -> Self {
        Self { output_ticks: 20_000, output_frames: 16, horizon: Span::from_millis(50) }
    }
}

/// Since when frames wait, and what the newest entry was.
#[derive(Debug, Clone, Copy, Default)]
pub struct Marks {
    waits: Waits,
    /// Position at which the oldest frame that waits for an `Output` entry was made.
    unsealed_since: Option<Position>,
    /// Where and when the newest entry was logged.
    logged: (Position, Time),
}

impl Marks {
    /// Before the first entry.
    #[must_use]
    pub fn new(waits: Waits) -> Self {
        Self { waits, ..Self::default() }
    }

    /// An entry was logged, or others need none before this.
    pub fn logged(&mut self, now: Time, position: Position) {
        self.logged = (position, now);
    }

    /// No frame waits for an entry any more.
    pub fn sealed(&mut self) {
        self.unsealed_since = None;
    }

    /// Whether an `Output` entry is due for the frames, `unsealed` in number, of a guest that stands at `position` and
    /// perhaps sleeps.
    pub fn output_due(&mut self, position: Position, unsealed: usize, asleep: bool) -> bool {
        if unsealed == 0 {
            self.unsealed_since = None;
            return false;
        }
        let since = *self.unsealed_since.get_or_insert(position);
        asleep || unsealed >= self.waits.output_frames || position.0 - since.0 >= self.waits.output_ticks
    }

    /// Where an `Output` entry will be due if the guest makes no more frames.
    #[must_use]
    pub fn output_at(&self) -> Option<Position> {
        self.unsealed_since.map(|since| Position(since.0 + self.waits.output_ticks))
    }

    /// When a guest that stands at `position` gets a `Horizon`; never if it has not moved since the newest entry.
    #[must_use]
    pub fn horizon_at(&self, position: Position) -> Option<Time> {
        let (logged, at) = self.logged;
        (position > logged).then(|| at.after(self.waits.horizon))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_waits_for_company_but_not_for_long() {
        let waits = Waits { output_ticks: 100, output_frames: 3, ..Waits::default() };
        let mut marks = Marks::new(waits);
        assert!(!marks.output_due(Position(5), 0, true));
        assert!(!marks.output_due(Position(10), 1, false));
        assert_eq!(marks.output_at(), Some(Position(110)));
        assert!(!marks.output_due(Position(109), 2, false), "the oldest frame counts");
        assert!(marks.output_due(Position(110), 2, false));
        assert!(marks.output_due(Position(20), 3, false), "enough of them");
        assert!(marks.output_due(Position(20), 1, true), "a sleeper makes no more");
        marks.sealed();
        assert_eq!(marks.output_at(), None);
        assert!(!marks.output_due(Position(120), 1, false));
        assert_eq!(marks.output_at(), Some(Position(220)));
    }

    #[test]
    fn a_horizon_is_for_who_moves() {
        let mut marks = Marks::default();
        marks.logged(Time(7), Position(10));
        assert_eq!(marks.horizon_at(Position(10)), None);
        assert_eq!(marks.horizon_at(Position(11)), Some(Time(50_007)));
    }
}
