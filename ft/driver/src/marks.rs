//! When the primary makes the marks that backup and gate wait for: `Output` for frames that are held, `Horizon` for a
//! guest that went on without entries; and when the log is sent without anybody waiting for it. Pure.

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
    /// For so long a guest may have run, sleep not counted, before the backup is told how far it has come. What a guest does
    /// that hardly runs waits for as long as batches may. Default 50 ms.
    pub untold: Span,
}

impl Default for Waits {
    fn default() -> Self {
        let wait = Span::from_millis(50);
        Self { output_ticks: 20_000, output_frames: 16, horizon: wait, untold: wait }
    }
}

/// What the newest entry was.
#[derive(Debug, Clone, Copy, Default)]
pub struct Marks {
    waits: Waits,
    /// Where and when the newest entry was logged.
    logged: (Position, Time),
    /// How far the guest had come when the log was last sent for that.
    told: Position,
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

    /// Whether an `Output` entry is due for the frames that wait for one, `unsealed` in number, of a guest that stands at
    /// `position`, made the first of them at `since`, and perhaps sleeps.
    #[must_use]
    pub fn output_due(&self, position: Position, unsealed: usize, since: Position, asleep: bool) -> bool {
        asleep || unsealed >= self.waits.output_frames || position >= self.output_at(since)
    }

    /// Where an `Output` entry will be due if the guest makes no more frames than those that it made from `since` on.
    #[must_use]
    pub fn output_at(&self, since: Position) -> Position {
        since.after(self.waits.output_ticks)
    }

    /// Whether a guest that stands at `position` has run for so long that its log should be sent, at `speed` nanoseconds per
    /// tick (32.32 fixed point). Of another guest nothing was told.
    #[must_use]
    pub fn telling_due(&self, position: Position, speed: u64) -> bool {
        if position < self.told {
            return true;
        }
        let ran_ns = (u128::from(position.0.saturating_sub(self.told.0)) * u128::from(speed)) >> 32;
        ran_ns >= u128::from(self.waits.untold.0) * 1000
    }

    /// The log was sent up to `position`.
    pub fn told(&mut self, position: Position) {
        self.told = position;
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
        let (marks, since) = (Marks::new(waits), Position(10));
        assert!(!marks.output_due(since, 1, since, false));
        assert_eq!(marks.output_at(since), Position(110));
        assert!(!marks.output_due(Position(109), 2, since, false));
        assert!(marks.output_due(Position(110), 2, since, false));
        assert!(marks.output_due(Position(20), 3, since, false), "enough of them");
        assert!(marks.output_due(Position(20), 1, since, true), "a sleeper makes no more");
    }

    #[test]
    fn the_log_is_sent_for_who_runs() {
        let mut marks = Marks::default();
        // Two nanoseconds per tick.
        let speed = 2 << 32;
        assert!(!marks.telling_due(Position(24_999_999), speed));
        assert!(marks.telling_due(Position(25_000_000), speed));
        marks.told(Position(25_000_000));
        assert!(!marks.telling_due(Position(49_999_999), speed));
        assert!(marks.telling_due(Position(u64::MAX), u64::MAX), "no overflow");
        assert!(marks.telling_due(Position(7), speed), "a guest that began later");
    }

    #[test]
    fn a_horizon_is_for_who_moves() {
        let mut marks = Marks::default();
        marks.logged(Time(7), Position(10));
        assert_eq!(marks.horizon_at(Position(10)), None);
        assert_eq!(marks.horizon_at(Position(11)), Some(Time(50_007)));
    }
}
