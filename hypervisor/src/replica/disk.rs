//! The disk in the machine's memory as one that takes its time: when a request ends, and how. Its bytes are the guest's state,
//! and are moved when the guest hears of the end.

use alloc::vec::Vec;

use pollux_driver::{DiskEnd, DiskRequest, DiskStatus};
use pollux_ft::{Span, Time};

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
pub(super) struct TimedDisk {
    latency: Span,
    slower: Span,
    fails: bool,
    at_work: Vec<(Time, u64)>,
    /// Requests that this machine's disk failed.
    pub(super) failed: u64,
    /// Most requests that were at work at once.
    pub(super) deepest: usize,
}

impl TimedDisk {
    /// A disk that takes `latency` for each request.
    pub(super) fn new(latency: Span) -> Self {
        Self { latency, ..Self::default() }
    }

    /// Requests at work.
    pub(super) fn depth(&self) -> usize {
        self.at_work.len()
    }

    pub(super) fn begin(&mut self, request: &DiskRequest, now: Time) {
        self.at_work.push((now.after(self.latency).after(self.slower), request.id));
        self.deepest = self.deepest.max(self.at_work.len());
    }

    pub(super) fn poll(&mut self, now: Time) -> Option<DiskEnd> {
        let at = self.at_work.iter().position(|(due, _)| *due <= now)?;
        let (_, id) = self.at_work.remove(at);
        let fails = core::mem::take(&mut self.fails);
        self.failed += u64::from(fails);
        Some(DiskEnd { id, status: if fails { DiskStatus::Failed } else { DiskStatus::Done } })
    }

    pub(super) fn ends_at(&self) -> Option<Time> {
        self.at_work.iter().map(|(due, _)| *due).min()
    }

    pub(super) fn forget(&mut self) {
        self.at_work.clear();
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
        let mut disk = TimedDisk::new(Span(100));
        let request = |id| DiskRequest { id, operation: DiskOperation::Read, start: 0, len: 512 };
        disk.begin(&request(1), Time(1000));
        disk.suffer(DiskFault::Slow(Span(50)));
        disk.begin(&request(2), Time(1000));
        assert_eq!((disk.depth(), disk.ends_at(), disk.poll(Time(1099))), (2, Some(Time(1100)), None));
        assert_eq!(disk.poll(Time(1100)), Some(DiskEnd { id: 1, status: DiskStatus::Done }));
        disk.suffer(DiskFault::Error);
        assert_eq!((disk.poll(Time(1100)), disk.ends_at()), (None, Some(Time(1150))));
        assert_eq!(disk.poll(Time(1150)), Some(DiskEnd { id: 2, status: DiskStatus::Failed }));
        disk.begin(&request(3), Time(2000));
        disk.suffer(DiskFault::None);
        assert_eq!((disk.ends_at(), disk.failed, disk.deepest), (Some(Time(2150)), 1, 2));
        disk.forget();
        assert_eq!((disk.poll(Time(9999)), disk.ends_at()), (None, None));
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
