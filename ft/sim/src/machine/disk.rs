//! A machine's own disk: each request takes its time, and one may fail.

use super::devices::InWorld;
use pollux_driver::{DiskEnd, DiskRequest, DiskStatus};
use pollux_ft::{EntryRef, Role, Time, disk};
use std::collections::BTreeMap;

/// A disk at work.
#[derive(Debug, Default)]
pub(crate) struct OwnDisk {
    /// Requests, and when they end.
    at_work: Vec<(u64, DiskRequest)>,
    /// How those ended whose end the guest has not seen.
    ended: BTreeMap<u64, DiskStatus>,
    /// The next request fails.
    pub(crate) fails: bool,
}

impl pollux_driver::Disk for InWorld<'_> {
    fn begin_on_disk(&mut self, request: &DiskRequest, _: &[u8]) {
        let plan = &self.env.plan;
        let usual = self.env.rng.below(2 * plan.disk_latency + 1);
        let slow = if self.env.slow[self.own.index] { self.env.rng.below(plan.config.suspect_after.0) } else { 0 };
        self.own.disk.at_work.push((self.env.now + usual + slow, *request));
    }

    fn poll_disk(&mut self, _: &mut Vec<u8>) -> Option<DiskEnd> {
        let disk = &mut self.own.disk;
        let at = disk.at_work.iter().position(|(ends_at, _)| *ends_at <= self.env.now)?;
        let (_, DiskRequest { id, .. }) = disk.at_work.swap_remove(at);
        let status = if core::mem::take(&mut disk.fails) { DiskStatus::Failed } else { DiskStatus::Done };
        self.env.figures.disk_ends[status as usize] += 1;
        disk.ended.insert(id, status);
        Some(DiskEnd { id, status })
    }

    fn disk_ends_at(&self) -> Option<Time> {
        let first = self.own.disk.at_work.iter().map(|(ends_at, _)| *ends_at).min()?;
        Some(Time(first + self.own.clock_offset))
    }

    fn forget_disk(&mut self) {
        (self.own.disk.at_work, self.own.disk.ended) = Default::default();
    }
}

impl InWorld<'_> {
    /// The guest here has seen an entry; the machine is in this role.
    pub(super) fn check_disk(&mut self, entry: &EntryRef<'_>, role: Role) {
        let EntryRef::DiskDone(data) = entry else { return };
        for end in disk::decode(data).unwrap_or_default() {
            let own = self.own.disk.ended.remove(&end.id);
            if !self.own.flipped {
                self.env.audit.disk_told(self.own.index, &end, own, role);
            }
        }
    }
}
