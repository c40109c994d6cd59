//! Frames that the network device finds by itself: a driver that sends often is told not to say so, which would be an exit
//! for each frame.
//!
//! The queue is looked at instead whenever the guest leaves for something else, and at the latest [`LOOK_TICKS`] after it was
//! looked at last, until the guest sleeps: who has time to sleep has time to tell, and its answers leave at once. All that
//! follows from the guest's own instructions: twins look at the same positions. The interrupt for what was sent comes with the
//! next frame for the guest, or after [`OWED_NS`].

use super::clock::{GuestTime, Position};
use super::virtio::net::Net;
use super::{Outputs, Platform};
use crate::memory::GuestMemory;
use crate::state::{State, StateError, Visitor};

/// For how long a frame may lie in a queue of which the driver does not tell, in ticks: some 15 us of a processor.
pub const LOOK_TICKS: u64 = 50_000;
/// Who tells of frames twice within so many ticks sends often.
pub const OFTEN_TICKS: u64 = 4 * LOOK_TICKS;
/// For how long the interrupt for a frame that was sent may wait, in nanoseconds of guest time.
pub const OWED_NS: u64 = 4_000_000;
/// After so many looks in a row that each came late and found one frame, the driver waits for each: it is to tell again...
const LATE: u8 = 8;
/// ... and for so many ticks.
const TELLS_TICKS: u64 = 200 * LOOK_TICKS;

/// When the device looks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Watch {
    /// Where the driver last told of frames; or until where it is to tell of them.
    told: Option<Position>,
    /// Where the queue is looked at next at the latest; the driver need not tell.
    look: Option<Position>,
    /// Looks in a row that came late for one frame.
    late: u8,
    /// When the driver is interrupted for what was sent.
    owed: Option<GuestTime>,
}

impl Watch {
    /// The driver told of frames at `at`. Whether it is to be watched from now on.
    fn told(&mut self, at: Position) -> bool {
        match self.told {
            Some(until) if until > at => false,
            last => {
                self.told = Some(at);
                last.is_some_and(|last| at.since(last) <= OFTEN_TICKS) && self.look.is_none()
            }
        }
    }

    /// The guest sleeps: what it told of before does not count.
    fn slept(&mut self, at: Position) {
        self.told = self.told.filter(|told| *told > at);
    }

    /// `found` packets were in the queue at `at`. Whether it is watched further.
    fn looked(&mut self, at: Position, due: Position, found: u16) -> bool {
        match (found, at < due) {
            (0, in_time) => return in_time,
            (1, false) => self.late += 1,
            _ => self.late = 0,
        }
        if self.late < LATE {
            return true;
        }
        self.late = 0;
        self.told = Some(at.after(TELLS_TICKS));
        false
    }
}

impl Platform {
    /// Where [`look_for_frames`](Self::look_for_frames) is to be called at the latest: the guest must not run past it.
    #[must_use]
    pub const fn next_look(&self) -> Option<Position> {
        self.watch.look
    }

    /// Sends what the guest did not tell of. The guest stands at `at`, where it left for something that both twins see,
    /// perhaps to sleep, or which is [`next_look`](Self::next_look).
    pub fn look_for_frames(&mut self, at: Position, sleeps: bool, memory: &mut GuestMemory, out: &mut dyn Outputs) {
        if self.net.device.take_told() {
            if self.watch.told(at) && self.set_watched(true, memory) {
                self.watch.look = Some(at.after(LOOK_TICKS));
            }
            self.was_paid();
            return;
        }
        if sleeps {
            self.watch.slept(at);
        }
        let Some(due) = self.watch.look else { return };
        let mut found = 0;
        let live = self.net.work(memory, &mut self.lapic, |net, queues, memory| {
            let (packets, signals) = net.look(queues, memory, out)?;
            found = packets;
            Ok(signals)
        });
        // A device that may not touch memory now cannot ask to be told either: it looks until it can, or is reset.
        let watched = match live {
            true => self.watch.looked(at, due, found) && !sleeps,
            false => self.net.device.is_watched(),
        };
        self.watch.look = watched.then(|| at.after(LOOK_TICKS));
        if live && !watched {
            self.set_watched(false, memory);
        }
        self.update_net();
        // Also what could not be paid when it was due.
        if self.net.queues(Net::owes) {
            let now = self.clock.time_at(at);
            self.watch.owed.get_or_insert(now.after(OWED_NS));
        }
    }

    /// When the driver is interrupted for what was sent.
    pub(super) const fn owed(&self) -> Option<GuestTime> {
        self.watch.owed
    }

    /// Interrupts it, if it still wants that.
    pub(super) fn pay(&mut self, memory: &mut GuestMemory) {
        self.watch.owed = None;
        self.net.work(memory, &mut self.lapic, |_, queues, memory| Net::pay(queues, memory));
        self.update_net();
    }

    /// Nothing is owed any more, if a frame for the guest brought it.
    pub(super) fn was_paid(&mut self) {
        if !self.net.queues(Net::owes) {
            self.watch.owed = None;
        }
    }

    /// Tells the driver whether it must tell of frames. Whether there is one.
    fn set_watched(&mut self, watched: bool, memory: &mut GuestMemory) -> bool {
        self.net.work(memory, &mut self.lapic, |net, queues, memory| net.set_watched(watched, queues, memory))
    }
}

impl State for Watch {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        for place in [&mut self.told, &mut self.look] {
            let mut ticks = place.map(|position| position.0);
            v.option_u64(&mut ticks)?;
            *place = ticks.map(Position);
        }
        v.u8(&mut self.late)?;
        if self.late >= LATE {
            return Err(StateError::BadValue("how often frames were found late"));
        }
        let mut owed = self.owed.map(|time| time.0);
        v.option_u64(&mut owed)?;
        self.owed = owed.map(GuestTime);
        Ok(())
    }
}
