//! The guest on a machine, which gives it time to run and stops it whenever that is used up, in the middle of anything.

use super::{Guest, PAGES, Stop};
use crate::rng::mix;
use pollux_driver::clock::GuestTime;
use pollux_driver::pages::PageSet;
use pollux_driver::{DiskRequest, Output, PowerEvent};
use pollux_ft::{EntryRef, Position};

/// A guest that is driven.
#[derive(Debug)]
pub(crate) struct Driven {
    guest: Guest,
    /// Ticks that it may still run.
    credit: u64,
    /// Ticks that it would have run beyond that.
    missing: u64,
    /// It stands at an exact stop.
    settled: bool,
    /// Half of what a reset takes is done.
    half_reset: bool,
    /// When it began its life, if it did so here.
    born: Option<u64>,
}

impl Driven {
    pub(crate) fn new(guest: Guest) -> Self {
        Self { guest, credit: 0, missing: 0, settled: true, half_reset: false, born: None }
    }

    /// It may run for so many ticks; what was not used is forfeit.
    pub(crate) fn grant(&mut self, credit: u64) {
        (self.credit, self.missing) = (credit, 0);
    }

    /// Ticks that it wanted to run when it was stopped.
    pub(crate) fn missing(&self) -> u64 {
        self.missing
    }

    /// The date at which it began its life here.
    pub(crate) fn born(&self) -> Option<u64> {
        self.born
    }

    /// See [`Guest::flip`].
    pub(crate) fn flip(&mut self, bit: u64) {
        self.guest.flip(bit);
    }

    /// See [`Guest::machine_digest`].
    pub(crate) fn machine_digest(&self) -> u64 {
        self.guest.machine_digest()
    }
}

impl pollux_driver::Guest for Driven {
    fn begin(&mut self, unix_time: u64) {
        assert_eq!(self.guest.position, 0, "a guest begins its life once");
        self.born = Some(unix_time);
    }

    fn position(&self) -> Position {
        Position(self.guest.position)
    }

    fn time(&self) -> GuestTime {
        GuestTime(self.guest.time())
    }

    fn rate(&self) -> u64 {
        self.guest.clock.rate()
    }

    fn is_settled(&self) -> bool {
        self.settled
    }

    fn next_stop(&self) -> Position {
        Position(self.guest.position + u64::from(!self.settled))
    }

    fn is_idle(&self) -> bool {
        self.guest.is_asleep()
    }

    fn is_halted(&self) -> bool {
        self.guest.is_asleep()
    }

    fn next_deadline(&self) -> Option<GuestTime> {
        Some(GuestTime(self.guest.alarm))
    }

    fn run(&mut self, target: Position, out: &mut impl Output) -> pollux_driver::Stop {
        let before = self.guest.position;
        let most = target.0.min(before + self.credit);
        if most == before && target.0 > before {
            self.missing = target.0.min(self.guest.next_event()) - before;
            return pollux_driver::Stop::Host;
        }
        let stop = self.guest.run(most);
        let position = self.guest.position;
        self.credit -= position - before;
        self.settled = true;
        match stop {
            Stop::Target if position == most && most < target.0 => {
                self.missing = target.0.min(self.guest.next_event()) - position;
                // A guest that sleeps has come to an exact stop; one that runs stands perhaps in the middle of something.
                self.settled = self.guest.is_asleep() || mix(position, before).is_multiple_of(2);
                pollux_driver::Stop::Host
            }
            Stop::Target => pollux_driver::Stop::Target,
            Stop::Frame(frame) => {
                out.frame(&frame);
                pollux_driver::Stop::Output
            }
            Stop::Asleep => pollux_driver::Stop::Halted,
            Stop::PowerOff => pollux_driver::Stop::Power(PowerEvent::Off),
            Stop::Reset => pollux_driver::Stop::Power(PowerEvent::Reset),
        }
    }

    fn prepare_reset(&mut self) -> bool {
        core::mem::replace(&mut self.half_reset, true)
    }

    fn apply(&mut self, entry: &EntryRef<'_>) -> Result<(), String> {
        self.half_reset = false;
        assert!(self.settled, "an entry was applied away from an exact stop");
        if self.guest.apply(entry) {
            Ok(())
        } else {
            Err("guest time would run backwards, or a disk request ends that was not made".to_owned())
        }
    }

    fn next_disk_request(&mut self) -> Option<DiskRequest> {
        self.guest.disk.as_mut()?.next_request()
    }

    fn disk_data(&self, _: u64) -> &[u8] {
        &[]
    }

    fn disk_read_came(&mut self, _: u64, _: &[u8]) {}

    fn hash(&mut self) -> u64 {
        self.guest.machine_digest()
    }

    fn memory(&self) -> &[u8] {
        &self.guest.memory
    }

    fn memory_mut(&mut self, start: u64, len: u64) -> Option<&mut [u8]> {
        self.guest.memory.get_mut(start as usize..)?.get_mut(..len as usize)
    }

    fn track_memory(&mut self) {
        self.guest.dirty = Some(PageSet::new(PAGES));
    }

    fn stop_tracking(&mut self) {
        self.guest.dirty = None;
    }

    fn take_dirty(&mut self) -> PageSet {
        let dirty = self.guest.dirty.as_mut();
        dirty.map_or_else(|| PageSet::new(0), |dirty| core::mem::replace(dirty, PageSet::new(PAGES)))
    }

    fn save(&mut self) -> Vec<u8> {
        self.guest.save()
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), String> {
        (self.settled, self.half_reset) = (true, false);
        if self.guest.load(bytes) { Ok(()) } else { Err("that is no saved state".to_owned()) }
    }
}
