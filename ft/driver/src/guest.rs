//! The guest as its driver sees it: something that can be stopped at exact positions.

use alloc::string::String;
use alloc::vec::Vec;

use pollux_ft::{EntryRef, Position};

use crate::clock::GuestTime;
use crate::disk::DiskRequest;
use crate::pages::PageSet;

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The target was reached exactly.
    Target,
    /// The machine wants attention; the guest stands somewhere, perhaps not at an exact stop.
    Host,
    /// The guest put out frames, or asked something of its disk, at an exact stop.
    Output,
    /// The guest waits for an interrupt, at an exact stop.
    Halted,
    /// The guest is off or wants a reset, at an exact stop.
    Power(PowerEvent),
    /// The guest did what no machine survives, and starts anew, at an exact stop.
    Crashed,
}

/// The guest wants its machine off or reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerEvent {
    /// Soft off (ACPI S5).
    Off,
    /// A reset, by whatever button the machine has.
    Reset,
}

/// Where a running guest's output goes.
pub trait Output {
    /// A frame for the network.
    fn frame(&mut self, frame: &[u8]);
    /// Text of the console.
    fn console(&mut self, bytes: &[u8]);
}

/// A guest.
///
/// Its state changes only by [`run`](Self::run), by [`apply`](Self::apply) at an exact stop, and by loading another.
pub trait Guest {
    /// It begins its life, at this date in seconds since 1970. It has not run yet.
    fn begin(&mut self, unix_time: u64);

    /// How far it has run.
    fn position(&self) -> Position;

    /// Guest time at this position.
    fn time(&self) -> GuestTime;

    /// Nanoseconds of guest time per tick, 32.32 fixed point.
    fn rate(&self) -> u64;

    /// Whether it stands at an exact stop, so that an entry may be applied right here.
    fn is_settled(&self) -> bool;

    /// The earliest position at which an entry may be applied.
    fn next_stop(&self) -> Position;

    /// Whether it sleeps, and nothing is there that it would wake for before time passes or an entry comes.
    fn is_idle(&self) -> bool;

    /// Whether it waits for an interrupt, which perhaps is there.
    fn is_halted(&self) -> bool;

    /// Guest time at which its next timer fires.
    fn next_deadline(&self) -> Option<GuestTime>;

    /// Runs until exactly `target`, or until something else ends the run. Does nothing when the guest is there.
    fn run(&mut self, target: Position, out: &mut impl Output) -> Stop;

    /// Gets a share of memory ready for a reset that is sure to come, so that the machine can attend to its twin in between:
    /// all of it may take longer than a twin may be silent. Whether all shares are done; until the reset is applied, or
    /// another state is loaded, the guest is of no use.
    fn prepare_reset(&mut self) -> bool;

    /// Applies an entry at this exact stop. Those that change nothing of a guest, such as `Horizon`, are ignored.
    ///
    /// # Errors
    /// Says why it does not fit this guest.
    fn apply(&mut self, entry: &EntryRef<'_>) -> Result<(), String>;

    /// The next request to its disk that it was not asked for yet, in the order in which they were made; after loading a
    /// state all that are in flight, once more. None of a disk whose requests are done at once, where they are made.
    fn next_disk_request(&mut self) -> Option<DiskRequest>;

    /// What a request that was asked for writes; nothing if its data is part of this state already, or it writes none.
    fn disk_data(&self, id: u64) -> &[u8];

    /// The machine's disk has ended a request, which read this if it reads. The guest sees it when the entry that tells of the
    /// end is applied; until then it is no part of its state.
    fn disk_read_came(&mut self, id: u64, data: &[u8]);

    /// Hash of everything but memory.
    fn hash(&mut self) -> u64;

    /// All of its memory, a whole number of pages: RAM and whatever else is sent and compared page by page, such as a disk.
    fn memory(&self) -> &[u8];

    /// The bytes of memory `start .. start + len`, to be overwritten; `None` when they are not all memory.
    fn memory_mut(&mut self, start: u64, len: u64) -> Option<&mut [u8]>;

    /// Begins to notice which pages of memory change, whoever writes them.
    fn track_memory(&mut self);

    /// Ends it.
    fn stop_tracking(&mut self);

    /// The pages that changed since tracking began or since the last call; none when nothing is tracked.
    fn take_dirty(&mut self) -> PageSet;

    /// Everything but memory, as bytes.
    fn save(&mut self) -> Vec<u8>;

    /// Loads what [`save`](Self::save) made.
    ///
    /// # Errors
    /// Says why these bytes are no saved state.
    fn load(&mut self, bytes: &[u8]) -> Result<(), String>;
}
