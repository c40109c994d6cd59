//! What runs add up to.

use crate::world::fault::Kind;
use std::collections::BTreeMap;

/// Counts of one run, or of many.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Figures {
    /// Runs.
    pub seeds: u64,
    /// Simulated time in microseconds.
    pub simulated: u64,
    /// Events.
    pub events: u64,
    /// Faults by kind.
    pub faults: BTreeMap<Kind, u64>,
    /// Datagrams of attackers.
    pub attacks: u64,
    /// Times that a backup went live because its primary was lost.
    pub takeovers: u64,
    /// Times that a pair had changed its key.
    pub key_changes: u64,
    /// Takeovers that were called off.
    pub cancelled: u64,
    /// Planned changes of roles that were carried out.
    pub switch_overs: u64,
    /// Times that the client network was told where the guest is.
    pub announcements: u64,
    /// Times that protection was reached.
    pub protections: u64,
    /// Refused pairings.
    pub refusals: u64,
    /// Terms won at the arbiter.
    pub terms: u64,
    /// Frames on the client wire, and those of them that came twice.
    pub frames: u64,
    /// See [`Figures::frames`].
    pub duplicates: u64,
    /// Answers that clients got.
    pub answers: u64,
    /// Longest time that a client waited for an answer, in microseconds.
    pub longest_wait: u64,
    /// Bits flipped in a backup that it found.
    pub flips_found: u64,
    /// Guests that switched themselves off.
    pub power_offs: u64,
    /// Disk requests that were done, and those that failed, on all machines.
    pub disk_ends: [u64; 2],
    /// Guests lost because several faults came together.
    pub lost: u64,
    /// Guests created by machines that started by themselves.
    pub created: u64,
}

impl Figures {
    /// Adds another run's figures.
    pub fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.simulated += other.simulated;
        self.events += other.events;
        for (kind, count) in &other.faults {
            *self.faults.entry(*kind).or_default() += count;
        }
        self.attacks += other.attacks;
        self.takeovers += other.takeovers;
        self.key_changes += other.key_changes;
        self.cancelled += other.cancelled;
        self.switch_overs += other.switch_overs;
        self.announcements += other.announcements;
        self.protections += other.protections;
        self.refusals += other.refusals;
        self.terms += other.terms;
        self.frames += other.frames;
        self.duplicates += other.duplicates;
        self.answers += other.answers;
        self.longest_wait = self.longest_wait.max(other.longest_wait);
        self.flips_found += other.flips_found;
        self.power_offs += other.power_offs;
        self.lost += other.lost;
        self.created += other.created;
        (0..2).for_each(|status| self.disk_ends[status] += other.disk_ends[status]);
    }
}
