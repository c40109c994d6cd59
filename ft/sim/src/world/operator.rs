//! Somebody who changes the pair's key while it is at work, again and again.
//!
//! A machine gets the next key while it runs, and on the medium that it starts from; and is told to forget the old one. Where
//! faults come in a storm he takes no care whether the others have the next one already: it is the machines' to refuse.

use super::World;
use super::event::Event;
use crate::net::MACHINES;
use crate::plan::Faults;
use crate::rng::Rng;
use pollux_ft::{PairKey, Protection};

/// Runs of pairs with a key in which he is there, per thousand.
const RUNS: u64 = 500;

/// The operator.
#[derive(Debug)]
pub(crate) struct Operator {
    rng: Rng,
    is_here: bool,
    /// The number of the old key.
    old: u8,
    /// The keys that machines start with.
    media: [Protection; MACHINES],
}

fn key(number: u8) -> PairKey {
    PairKey::new(&[number; 32])
}

impl Operator {
    /// Of a pair that begins with this protection, that of key number `first`.
    pub(super) fn new(mut rng: Rng, protection: &Protection, first: u8) -> Self {
        let is_here = protection.is_secure() && rng.chance(RUNS);
        Self { rng, is_here, old: first, media: core::array::from_fn(|_| protection.clone()) }
    }

    /// Whether there is one.
    #[cfg(test)]
    pub(crate) fn is_here(&self) -> bool {
        self.is_here
    }

    /// What a machine starts with.
    pub(crate) fn medium(&self, machine: usize) -> Protection {
        self.media[machine].clone()
    }

    /// All keys that any machine has.
    pub(super) fn all_keys(&self, protection: &Protection) -> Protection {
        let mut all = protection.clone();
        if self.is_here {
            all = key(self.old).into();
            all.add(key(self.next())).expect("there is room");
        }
        all
    }

    fn next(&self) -> u8 {
        self.old.wrapping_add(1)
    }

    fn has_next(&self, machine: usize) -> bool {
        self.media[machine].fingerprints().contains(&key(self.next()).fingerprint())
    }
}

impl World {
    /// The operator begins, if he is there.
    pub(super) fn operate_later(&mut self) {
        if self.env.operator.is_here {
            let pause = self.env.operator.rng.between(10_000, 400_000);
            self.env.queue.push(self.env.now + pause, Event::Operate);
        }
    }

    /// The operator does something.
    pub(super) fn operate(&mut self) {
        let machines = self.slots.len();
        let careful = self.env.plan.faults == Faults::OneByOne || !self.phase.has_faults();
        let all_have = (0..machines).all(|machine| self.env.operator.has_next(machine));
        let machine = self.env.operator.rng.below(machines as u64) as usize;
        if !self.phase.has_faults() {
            // In the end everybody gets the key.
            (0..machines).for_each(|machine| self.add_key(machine));
        } else if self.env.operator.rng.chance(600) {
            self.add_key(machine);
        }
        if (all_have || !careful) && self.env.operator.rng.chance(400) {
            self.forget_key(machine);
        }
        let next = Protection::from(key(self.env.operator.next()));
        if self.env.operator.media[..machines].iter().all(|medium| *medium == next) {
            self.env.operator.old = self.env.operator.next();
            self.env.figures.key_changes += 1;
        }
        self.operate_later();
    }

    fn add_key(&mut self, machine: usize) {
        let next = self.env.operator.next();
        // It may have it already.
        let _ = self.env.operator.media[machine].add(key(next));
        if let Some(machine) = self.awake(machine) {
            let _ = machine.driver.node_mut().add_key(key(next));
        }
    }

    fn forget_key(&mut self, index: usize) {
        let (old, now) = (key(self.env.operator.old).fingerprint(), self.env.now);
        let Some(machine) = self.awake(index) else { return };
        if machine.forget_key(now, old) {
            // The medium of one that was not awake when it came has the next key alone now.
            self.env.operator.media[index] = key(self.env.operator.next()).into();
        }
    }
}
