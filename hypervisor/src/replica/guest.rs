//! Our guest as its driver sees it.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pollux_driver::{DiskRequest, Output, PowerEvent, Stop};
use pollux_ft::{Control, EntryRef, Position, disk};

use crate::guest::Guest;
use crate::memory::PageSet;
use crate::platform::{GuestTime, Outputs};

/// Hands the platform's output on to the driver.
struct Out<'a, O>(&'a mut O);

impl<O: Output> Outputs for Out<'_, O> {
    fn frame(&mut self, frame: &[u8]) {
        self.0.frame(frame);
    }

    fn console(&mut self, bytes: &[u8]) {
        self.0.console(bytes);
    }

    fn power(&mut self, _: PowerEvent) {}
}

impl pollux_driver::Guest for Guest {
    fn begin(&mut self, unix_time: u64) {
        self.platform.set_birth(unix_time);
    }

    fn position(&self) -> Position {
        Guest::position(self)
    }

    fn time(&self) -> GuestTime {
        self.now()
    }

    fn rate(&self) -> u64 {
        self.platform.clock().rate()
    }

    fn is_settled(&self) -> bool {
        Guest::is_settled(self)
    }

    fn next_stop(&self) -> Position {
        Guest::next_stop(self)
    }

    fn is_idle(&self) -> bool {
        Guest::is_halted(self) && !self.can_wake()
    }

    fn is_halted(&self) -> bool {
        Guest::is_halted(self)
    }

    fn next_deadline(&self) -> Option<GuestTime> {
        self.platform.next_deadline()
    }

    fn run(&mut self, target: Position, out: &mut impl Output) -> Stop {
        let stop = Guest::run(self, target, &mut Out(out));
        let position = Guest::position(self);
        match stop {
            Stop::Power(PowerEvent::Reset) => log::info!("the guest asked for a reset at position {position}"),
            Stop::Crashed => {
                log::warn!("the guest crashed at position {position}: {}", self.crash().unwrap_or_default());
            }
            _ => {}
        }
        stop
    }

    fn prepare_reset(&mut self) -> bool {
        Guest::prepare_reset(self)
    }

    fn apply(&mut self, entry: &EntryRef<'_>) -> Result<(), String> {
        match *entry {
            EntryRef::Clock { base_ns, rate } => {
                self.steer_clock(GuestTime(base_ns), rate).map_err(|error| format!("{error}"))?;
            }
            EntryRef::PacketIn(frame) => self.packet_in(frame),
            EntryRef::ConsoleIn(bytes) => self.console_in(bytes),
            EntryRef::DiskDone(data) => {
                let ends = disk::decode(data).map_err(|error| format!("{error}"))?;
                self.disk_done(&ends).map_err(|id| format!("disk request {id} is not in flight"))?;
            }
            EntryRef::Control(Control::Reset) => {
                self.restart().map_err(|error| format!("the guest cannot be started again: {error}"))?;
            }
            EntryRef::Horizon | EntryRef::Output | EntryRef::Digest { .. } | EntryRef::Control(_) => {}
        }
        Ok(())
    }

    fn next_disk_request(&mut self) -> Option<DiskRequest> {
        self.platform.next_disk_request()
    }

    fn disk_data(&self, id: u64) -> &[u8] {
        self.platform.disk_data(id)
    }

    fn disk_read_came(&mut self, id: u64, data: &[u8]) {
        self.platform.disk_read_came(id, data);
    }

    fn hash(&mut self) -> u64 {
        Guest::hash(self)
    }

    fn memory(&self) -> &[u8] {
        self.memory.all()
    }

    fn memory_mut(&mut self, start: u64, len: u64) -> Option<&mut [u8]> {
        self.memory.all_mut(start, len)
    }

    fn track_memory(&mut self) {
        Guest::track_memory(self);
    }

    fn stop_tracking(&mut self) {
        Guest::stop_tracking(self);
    }

    fn take_dirty(&mut self) -> PageSet {
        Guest::take_dirty(self)
    }

    fn save(&mut self) -> Vec<u8> {
        Guest::save(self)
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), String> {
        Guest::load(self, bytes).map_err(|error| format!("{error}"))
    }
}
