//! This machine's disk: when a request ends, and how. One in memory takes the time that it is told to: its bytes are the guest's
//! state, and are moved when the guest hears of the end. Otherwise a drive does the work.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use pollux_driver::{DiskEnd, DiskRequest, DiskStatus};
use pollux_ft::{Span, Time};

use super::drive::Drive;
use crate::host::interrupts::Fired;
use crate::host::nic::Route;

/// What a test makes of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFault {
    /// The next request fails.
    Error,
    /// Each request takes so much longer.
    Slow(Span),
    /// All is well again.
    None,
}

impl DiskFault {
    /// Reads what follows the command's name.
    ///
    /// # Errors
    /// It is none of them.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text.split_once('=') {
            None if text == "error" => Ok(Self::Error),
            None if text == "well" => Ok(Self::None),
            Some(("slow", time)) => crate::config::duration(time).map(Self::Slow),
            _ => Err("disk needs one of error, slow=50ms, well"),
        }
    }
}

/// Requests at work.
#[derive(Debug, Default)]
pub(super) struct OwnDisk {
    drive: Option<(Drive, Route)>,
    /// What the drive has ended and nobody was told of yet: how, and what it has read.
    done: BTreeMap<u64, (DiskStatus, Vec<u8>)>,
    latency: Span,
    slower: Span,
    fails: bool,
    at_work: Vec<(Time, u64)>,
    /// Requests that this machine's disk failed.
    pub(super) failed: u64,
    /// Most requests that were at work at once.
    pub(super) deepest: usize,
}

impl OwnDisk {
    /// A disk on a drive or in memory, which takes at least `latency` for each request.
    pub(super) fn new(latency: Span, mut drive: Option<(Drive, Route)>) -> Self {
        if let Some((drive, _)) = &mut drive {
            drive.let_interrupt();
        }
        Self { latency, drive, ..Self::default() }
    }

    /// The drive, if it lies on one.
    pub(super) fn drive(&self) -> Option<&Drive> {
        self.drive.as_ref().map(|(drive, _)| drive)
    }

    /// The drive, if it lies on one.
    pub(super) fn drive_mut(&mut self) -> Option<&mut Drive> {
        self.drive.as_mut().map(|(drive, _)| drive)
    }

    /// Lets a drive move, which perhaps has interrupted.
    pub(super) fn work(&mut self, fired: Fired, now: Time) {
        let Some((drive, route)) = &mut self.drive else { return };
        drive.work(now);
        while let Some((end, read)) = drive.next_end() {
            self.done.insert(end.id, (end.status, read));
        }
        if route.fired(fired) {
            route.rearm();
        }
    }

    /// Requests at work.
    pub(super) fn depth(&self) -> usize {
        self.at_work.len()
    }

    pub(super) fn begin(&mut self, request: &DiskRequest, data: &[u8], now: Time) {
        if let Some((drive, _)) = &mut self.drive {
            drive.begin(request, data, now);
        }
        self.at_work.push((now.after(self.latency).after(self.slower), request.id));
        self.deepest = self.deepest.max(self.at_work.len());
    }

    pub(super) fn poll(&mut self, read: &mut Vec<u8>, now: Time) -> Option<DiskEnd> {
        let at = self.at_work.iter().position(|(due, id)| *due <= now && self.is_done(*id))?;
        let (_, id) = self.at_work.remove(at);
        let mut status = DiskStatus::Done;
        if let Some(done) = self.done.remove(&id) {
            (status, *read) = done;
        }
        if core::mem::take(&mut self.fails) {
            status = DiskStatus::Failed;
        }
        self.failed += u64::from(status == DiskStatus::Failed);
        Some(DiskEnd { id, status })
    }

    /// Whether a request waits for nothing but its time.
    fn is_done(&self, id: u64) -> bool {
        self.drive.is_none() || self.done.contains_key(&id)
    }

    pub(super) fn ends_at(&self) -> Option<Time> {
        let timed = self.at_work.iter().filter(|(_, id)| self.is_done(*id)).map(|(due, _)| *due).min();
        let look = self.drive.as_ref().and_then(|(drive, _)| drive.next_look());
        timed.into_iter().chain(look).min()
    }

    pub(super) fn forget(&mut self) {
        self.at_work.clear();
        self.done.clear();
        if let Some((drive, _)) = &mut self.drive {
            drive.forget();
        }
    }

    pub(super) fn suffer(&mut self, fault: DiskFault) {
        (self.fails, self.slower) = match fault {
            DiskFault::Error => (true, self.slower),
            DiskFault::Slow(span) => (self.fails, span),
            DiskFault::None => (false, Span(0)),
        };
    }
}

#[cfg(test)]
mod tests {
    use pollux_driver::DiskOperation;

    use super::*;

    #[test]
    fn requests_take_their_time_and_one_may_fail() {
        let mut disk = OwnDisk::new(Span(100), None);
        let request = |id| DiskRequest { id, operation: DiskOperation::Read, start: 0, len: 512, durable: false };
        disk.begin(&request(1), &[], Time(1000));
        disk.suffer(DiskFault::Slow(Span(50)));
        disk.begin(&request(2), &[], Time(1000));
        assert_eq!((disk.depth(), disk.ends_at(), disk.poll(&mut Vec::new(), Time(1099))), (2, Some(Time(1100)), None));
        assert_eq!(disk.poll(&mut Vec::new(), Time(1100)), Some(DiskEnd { id: 1, status: DiskStatus::Done }));
        disk.suffer(DiskFault::Error);
        assert_eq!((disk.poll(&mut Vec::new(), Time(1100)), disk.ends_at()), (None, Some(Time(1150))));
        assert_eq!(disk.poll(&mut Vec::new(), Time(1150)), Some(DiskEnd { id: 2, status: DiskStatus::Failed }));
        disk.begin(&request(3), &[], Time(2000));
        disk.suffer(DiskFault::None);
        assert_eq!((disk.ends_at(), disk.failed, disk.deepest), (Some(Time(2150)), 1, 2));
        disk.forget();
        assert_eq!((disk.poll(&mut Vec::new(), Time(9999)), disk.ends_at()), (None, None));
    }

    #[test]
    fn faults_are_understood_or_refused() {
        assert_eq!(DiskFault::parse("error"), Ok(DiskFault::Error));
        assert_eq!(DiskFault::parse("slow=50ms"), Ok(DiskFault::Slow(Span::from_millis(50))));
        assert_eq!(DiskFault::parse("well"), Ok(DiskFault::None));
        for bad in ["", "slow", "slow=", "slow=50", "error=1", "gone"] {
            assert!(DiskFault::parse(bad).is_err(), "{bad}");
        }
    }
}
