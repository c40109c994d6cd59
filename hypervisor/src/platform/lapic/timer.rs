//! The local APIC's timer: one-shot, periodic and TSC-deadline over guest time.
//! See: SDM volume 3 (revision 083), 11.5.4.

use super::super::clock::GuestTime;
use crate::state::{State, StateError, Visitor};

/// Shortest period of a periodic timer. A guest that asks for less would leave no time to run between two
/// interrupts; hardware has its own floor, set by how fast it delivers.
pub(super) const MIN_PERIOD_NS: u64 = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
}

/// Mode field of the timer's LVT entry; the reserved value behaves as one-shot.
const fn mode(lvt: u32) -> Mode {
    match lvt >> 17 & 3 {
        1 => Mode::Periodic,
        2 => Mode::TscDeadline,
        _ => Mode::OneShot,
    }
}

/// The timer. Methods take the LVT entry, which lives with the other entries.
#[derive(Debug, Clone)]
pub(super) struct Timer {
    divide: u32,
    initial: u32,
    deadline: Option<u64>,
    tsc_deadline: u64,
}

impl Timer {
    pub(super) const fn new() -> Self {
        Self { divide: 0, initial: 0, deadline: None, tsc_deadline: 0 }
    }

    pub(super) const fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) const fn divide_register(&self) -> u32 {
        self.divide
    }

    pub(super) const fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    pub(super) const fn deadline(&self) -> Option<GuestTime> {
        match self.deadline {
            Some(ns) => Some(GuestTime(ns)),
            None => None,
        }
    }

    /// Nanoseconds per count: the divide value 2, 4, … 128, 1 is encoded in bits 0, 1 and 3.
    const fn count_ns(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        1 << ((code + 1) & 7)
    }

    /// Counts left at `now`; 0 in TSC-deadline mode, when expired and when never started.
    pub(super) fn current(&self, now: GuestTime) -> u32 {
        match self.deadline {
            Some(ns) if self.tsc_deadline == 0 => {
                GuestTime(ns).since(now).div_ceil(self.count_ns()).min(u64::from(self.initial)) as u32
            }
            _ => 0,
        }
    }

    /// Initial count written: starts, or with 0 stops. Ignored in TSC-deadline mode.
    pub(super) fn start(&mut self, count: u32, lvt: u32, now: GuestTime) {
        if mode(lvt) == Mode::TscDeadline {
            return;
        }
        self.initial = count;
        self.run(count, lvt, now);
    }

    fn run(&mut self, count: u32, lvt: u32, now: GuestTime) {
        let mut ns = u64::from(count) * self.count_ns();
        if mode(lvt) == Mode::Periodic {
            ns = ns.max(MIN_PERIOD_NS);
        }
        self.deadline = (count != 0).then(|| now.after(ns).0);
    }

    /// Divide configuration written: what is left runs on at the new speed.
    pub(super) fn set_divide(&mut self, value: u32, lvt: u32, now: GuestTime) {
        let left = self.current(now);
        self.divide = value & 0xB;
        if left != 0 {
            self.run(left, lvt, now);
        }
    }

    /// The LVT entry changes from `old` to `new`: a switch from or to TSC-deadline mode disarms.
    pub(super) fn mode_changed(&mut self, old: u32, new: u32) {
        if (mode(old) == Mode::TscDeadline) != (mode(new) == Mode::TscDeadline) {
            self.deadline = None;
            self.tsc_deadline = 0;
        }
    }

    /// IA32_TSC_DEADLINE written while the TSC reads `tsc`.
    pub(super) fn arm_tsc(&mut self, value: u64, lvt: u32, tsc: u64, now: GuestTime) {
        if mode(lvt) == Mode::TscDeadline {
            self.tsc_deadline = value;
            self.deadline = (value != 0).then(|| now.after(value.saturating_sub(tsc)).0);
        }
    }

    /// Whether the timer expired by `now`; if so it stops, or starts its next period.
    pub(super) fn expire(&mut self, lvt: u32, now: GuestTime) -> bool {
        let Some(due) = self.deadline else { return false };
        if due > now.0 {
            return false;
        }
        self.tsc_deadline = 0;
        self.deadline = None;
        if mode(lvt) == Mode::Periodic {
            let period = (u64::from(self.initial) * self.count_ns()).max(MIN_PERIOD_NS);
            let missed = now.since(GuestTime(due)) / period;
            self.deadline = due.checked_add(period.saturating_mul(missed + 1));
        }
        true
    }
}

impl State for Timer {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.u32(&mut self.divide)?;
        v.u32(&mut self.initial)?;
        v.option_u64(&mut self.deadline)?;
        v.u64(&mut self.tsc_deadline)
    }
}
