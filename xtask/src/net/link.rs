//! What a cable does to the frames that cross it. Pure: randomness and time come in as arguments.

use std::time::Duration;

use anyhow::{Result, ensure};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

/// The longest delay or jitter that is accepted.
pub const MAX_DELAY: Duration = Duration::from_secs(60);

/// How a link behaves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinkSettings {
    /// Connected, or cut.
    pub up: bool,
    /// Nothing gets through that the machine at the end of this cable sends.
    pub mute: bool,
    /// Nothing gets through to the machine at the end of this cable.
    pub deaf: bool,
    /// One way, in each direction.
    pub delay: Duration,
    /// Added to the delay: uniform between zero and this. Frames stay in order.
    pub jitter: Duration,
    /// Share of frames lost, 0 to 1.
    pub loss: f64,
    /// Share of frames delivered twice, 0 to 1.
    pub duplicate: f64,
    /// Share of frames held back so that later ones overtake them, 0 to 1.
    pub reorder: f64,
}

impl Default for LinkSettings {
    fn default() -> Self {
        Self {
            up: true,
            mute: false,
            deaf: false,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
        }
    }
}

/// A change of [`LinkSettings`]; what is none stays as it is. Shares must be within 0 to 1, times at most a minute.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LinkChange {
    /// Connected in both ways, or cut.
    pub up: Option<bool>,
    /// The machine's frames are lost, or not.
    pub mute: Option<bool>,
    /// Frames for the machine are lost, or not.
    pub deaf: Option<bool>,
    /// One way, in each direction.
    pub delay: Option<Duration>,
    /// Added to the delay at random, at most.
    pub jitter: Option<Duration>,
    /// Share of frames lost, 0 to 1.
    pub loss: Option<f64>,
    /// Share of frames delivered twice, 0 to 1.
    pub duplicate: Option<f64>,
    /// Share of frames held back so that later ones overtake them, 0 to 1.
    pub reorder: Option<f64>,
}

impl LinkChange {
    /// Whether all values are within their ranges.
    pub fn check(&self) -> Result<()> {
        for (name, share) in [("loss", self.loss), ("duplicate", self.duplicate), ("reorder", self.reorder)] {
            let share = share.unwrap_or(0.0);
            ensure!((0.0..=1.0).contains(&share), "{name}: {share} is not between 0 and 1");
        }
        for (name, time) in [("delay", self.delay), ("jitter", self.jitter)] {
            let time = time.unwrap_or_default();
            ensure!(time <= MAX_DELAY, "{name}: {time:?} is longer than {MAX_DELAY:?}");
        }
        Ok(())
    }
}

/// A frame's way through the links between two ports.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Transit {
    /// Time it takes, before order is restored.
    pub delay: Duration,
    /// It arrives twice.
    pub twice: bool,
    /// It does not wait for its turn: later frames overtake it.
    pub overtaken: bool,
}

/// Which way a frame crosses a cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the switch.
    FromMachine,
    /// From the switch.
    ToMachine,
}

/// Why a link did not let a frame through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is cut.
    Down,
    /// Bad luck.
    Lost,
}

impl LinkSettings {
    /// Takes over what `change` gives; it must have been checked.
    pub fn apply(&mut self, change: &LinkChange) {
        self.up = change.up.unwrap_or(self.up);
        self.mute = change.mute.unwrap_or(self.mute);
        self.deaf = change.deaf.unwrap_or(self.deaf);
        self.delay = change.delay.unwrap_or(self.delay);
        self.jitter = change.jitter.unwrap_or(self.jitter);
        self.loss = change.loss.unwrap_or(self.loss);
        self.duplicate = change.duplicate.unwrap_or(self.duplicate);
        self.reorder = change.reorder.unwrap_or(self.reorder);
    }

    /// Whether frames get through at all.
    pub fn is_open(&self, direction: Direction) -> bool {
        let blocked = match direction {
            Direction::FromMachine => self.mute,
            Direction::ToMachine => self.deaf,
        };
        self.up && !blocked
    }

    /// Sends a frame through. Links without a random setting draw no number, so that their traffic does not disturb
    /// the sequence of the others.
    pub fn cross(&self, mut transit: Transit, direction: Direction, rng: &mut Rng) -> Result<Transit, Refusal> {
        if !self.is_open(direction) {
            return Err(Refusal::Down);
        }
        if happens(self.loss, rng) {
            return Err(Refusal::Lost);
        }
        transit.delay += self.delay;
        if !self.jitter.is_zero() {
            transit.delay += self.jitter.mul_f64(rng.f64());
        }
        transit.twice |= happens(self.duplicate, rng);
        if happens(self.reorder, rng) {
            transit.overtaken = true;
            // Long enough that the next frame of a busy link gets past, also without any delay set.
            transit.delay += Duration::from_millis(1) + self.delay / 2;
        }
        Ok(transit)
    }
}

fn happens(share: f64, rng: &mut Rng) -> bool {
    share > 0.0 && rng.f64() < share
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(settings: LinkSettings, seed: u64, frames: usize) -> Vec<Result<Transit, Refusal>> {
        let mut rng = Rng::with_seed(seed);
        (0..frames).map(|_| settings.cross(Transit::default(), Direction::ToMachine, &mut rng)).collect()
    }

    #[test]
    fn a_seed_decides_everything() {
        let jitter = Duration::from_millis(3);
        let settings = LinkSettings { jitter, loss: 0.1, duplicate: 0.1, reorder: 0.1, ..LinkSettings::default() };
        assert_eq!(run(settings, 7, 1000), run(settings, 7, 1000));
        assert_ne!(run(settings, 7, 1000), run(settings, 8, 1000));
    }

    #[test]
    fn shares_are_kept() {
        let settings = LinkSettings { loss: 0.05, duplicate: 0.2, ..LinkSettings::default() };
        let fates = run(settings, 1, 100_000);
        let lost = fates.iter().filter(|fate| fate.is_err()).count();
        let twice = fates.iter().flatten().filter(|transit| transit.twice).count();
        assert!((4_700..5_300).contains(&lost), "{lost}");
        assert!((18_500..19_500).contains(&twice), "{twice}");
    }

    #[test]
    fn extremes_are_exact() {
        let all = LinkSettings { loss: 1.0, ..LinkSettings::default() };
        assert!(run(all, 1, 1000).iter().all(|fate| *fate == Err(Refusal::Lost)));
        let none = LinkSettings { delay: Duration::from_millis(5), ..LinkSettings::default() };
        let expected = Transit { delay: Duration::from_millis(5), ..Transit::default() };
        assert!(run(none, 1, 1000).iter().all(|fate| *fate == Ok(expected)));
        let down = LinkSettings { up: false, ..LinkSettings::default() };
        assert_eq!(run(down, 1, 1), [Err(Refusal::Down)]);
    }

    #[test]
    fn a_cable_can_be_cut_one_way() {
        for (mute, deaf) in [(false, false), (true, false), (false, true), (true, true)] {
            let cable = LinkSettings { mute, deaf, ..LinkSettings::default() };
            assert_eq!(cable.is_open(Direction::FromMachine), !mute);
            assert_eq!(cable.is_open(Direction::ToMachine), !deaf);
        }
        let down = LinkSettings { up: false, ..LinkSettings::default() };
        assert!(!down.is_open(Direction::FromMachine) && !down.is_open(Direction::ToMachine));
    }

    #[test]
    fn delays_add_up_and_jitter_stays_within_its_bound() {
        let (delay, jitter) = (Duration::from_millis(5), Duration::from_millis(2));
        let first = LinkSettings { delay, jitter, ..LinkSettings::default() };
        let mut rng = Rng::with_seed(3);
        for _ in 0..1000 {
            let [there, away] = [Direction::FromMachine, Direction::ToMachine];
            let halfway = first.cross(Transit::default(), there, &mut rng).unwrap();
            let transit = first.cross(halfway, away, &mut rng).unwrap();
            assert!((2 * delay..=2 * (delay + jitter)).contains(&transit.delay), "{transit:?}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let change = LinkChange::default();
        assert!(change.check().is_ok());
        for share in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(LinkChange { loss: Some(share), ..change.clone() }.check().is_err(), "{share}");
            assert!(LinkChange { reorder: Some(share), ..change.clone() }.check().is_err(), "{share}");
        }
        assert!(LinkChange { delay: Some(MAX_DELAY * 2), ..change.clone() }.check().is_err());
        assert!(LinkChange { delay: Some(MAX_DELAY), loss: Some(1.0), ..change }.check().is_ok());
    }

    #[test]
    fn a_change_keeps_what_it_does_not_name() {
        let mut settings = LinkSettings { loss: 0.5, ..LinkSettings::default() };
        settings.apply(&LinkChange { up: Some(false), delay: Some(MAX_DELAY), ..LinkChange::default() });
        assert_eq!(settings, LinkSettings { up: false, delay: MAX_DELAY, loss: 0.5, ..LinkSettings::default() });
    }
}
