//! The disk among the guest's devices: where it is plugged in, and when it goes on by itself.

use pollux_driver::{DiskEnd, DiskRequest};

use super::clock::GuestTime;
use super::virtio::Device;
use super::virtio::block::{Block, DiskStats, Storage};
use super::virtio::transport::{BAR_LEN, Transport};
use super::{NET_BAR, NET_PIN, NET_SLOT, Platform};
use crate::memory::GuestMemory;
use crate::state::{State, StateError, Visitor};

/// PCI device number of the disk's function on bus 0.
pub(super) const SLOT: u8 = NET_SLOT + 1;
/// Interrupt pin of its INTA, as the DSDT's `_PRT` says.
const PIN: u8 = NET_PIN + 1;
/// Where firmware would have placed its BAR.
const BAR: u32 = NET_BAR + BAR_LEN;
/// Guest time after which it goes on with what was too much to be done at once, in nanoseconds.
const PAUSE_NS: u64 = 100_000;

/// A disk as a PCI function.
pub(super) fn plug(disk: Block<Storage>) -> Transport<Block<Storage>> {
    Transport::new(disk, BAR, PIN)
}

impl Platform {
    /// Size of the disk in bytes, and what was done with it; `None` when there is none.
    #[must_use]
    pub fn disk(&self) -> Option<(u64, DiskStats)> {
        self.disk.as_ref().map(|disk| (disk.device.bytes(), disk.device.stats()))
    }

    /// The next request to a disk that takes its time of which the machine's disk does not know.
    pub fn next_disk_request(&mut self) -> Option<DiskRequest> {
        self.disk.as_mut()?.device.next_request()
    }

    /// What the request in flight writes; nothing of one that writes zeros, or nothing.
    #[must_use]
    pub fn disk_data(&self, id: u64) -> &[u8] {
        self.disk.as_ref().map_or(&[], |disk| disk.device.data(id))
    }

    /// What the request in flight has read came from the machine's drive; the guest sees it when the request ends.
    pub fn disk_read_came(&mut self, id: u64, data: &[u8]) {
        if let Some(disk) = &mut self.disk {
            disk.device.read_came(id, data);
        }
    }

    /// Whether there is one.
    #[must_use]
    pub fn has_disk_request(&self) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.device.has_request())
    }

    /// The machine's disk knows of no request any more.
    pub fn ask_disk_again(&mut self) {
        if let Some(disk) = &mut self.disk {
            disk.device.ask_again();
        }
    }

    /// Requests to the disk ended. The error is one that is not in flight; then nothing has happened.
    ///
    /// # Errors
    /// See above.
    pub fn disk_done(&mut self, now: GuestTime, memory: &mut GuestMemory, ends: &[DiskEnd]) -> Result<(), u64> {
        let in_flight = |id| self.disk.as_ref().is_some_and(|disk| disk.device.is_in_flight(id));
        if let Some(unknown) = ends.iter().find(|end| !in_flight(end.id)) {
            return Err(unknown.id);
        }
        let Some(disk) = &mut self.disk else { return Ok(()) };
        if !disk.work(memory, &mut self.lapic, |block, queues, memory| block.complete(ends, queues, memory)) {
            // Nobody is there to be answered, and so nothing that could be malformed.
            let _ = disk.device.complete(ends, &mut [], memory);
        }
        self.update_disk(now);
        Ok(())
    }

    pub(super) fn reset_disk(&mut self) {
        self.disk_due = None;
        self.disk = self.disk.take().map(|disk| {
            let mut device = disk.device;
            device.reset();
            plug(device)
        });
    }

    pub(super) fn resume_disk(&mut self, now: GuestTime, memory: &mut GuestMemory) {
        self.disk_due = None;
        let Some(disk) = &mut self.disk else { return };
        if !disk.work(memory, &mut self.lapic, |block, queues, memory| block.resume(queues, memory)) {
            disk.device.give_up();
        }
        self.update_disk(now);
    }

    pub(super) fn update_disk(&mut self, now: GuestTime) {
        let Some(disk) = &self.disk else { return };
        self.ioapic.set_line(PIN, disk.line(), &mut self.lapic);
        if disk.device.is_unfinished() {
            self.disk_due.get_or_insert(now.after(PAUSE_NS));
        }
    }

    /// Whether there is a disk is part of what the machine is made of.
    pub(super) fn visit_disk(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        let mut has_disk = self.disk.is_some();
        v.bool(&mut has_disk)?;
        match &mut self.disk {
            Some(disk) if has_disk => disk.visit(v)?,
            None if !has_disk => {}
            _ => return Err(StateError::BadValue("the presence of a disk")),
        }
        let mut due = self.disk_due.map(|time| time.0);
        v.option_u64(&mut due)?;
        self.disk_due = due.map(GuestTime);
        Ok(())
    }
}
