//! The machine around a driver, in small traits: real on metal, made of memory in a simulator.

use alloc::string::String;
use alloc::vec::Vec;

use pollux_ft::{Action, EntryRef, Kind, Position, Record, Seq, Term, Time};

use crate::Driver;
use crate::disk::{DiskEnd, DiskRequest};
use crate::guest::Guest;
use crate::takeover::TakeoverTimes;
use crate::transfer::Sent;

/// This machine's wall clock.
pub trait Clock {
    /// The time now; never less than before.
    fn now(&mut self) -> Time;

    /// The date now, in seconds since 1970, as the machine has it.
    fn unix_time(&mut self) -> u64;
}

/// What clients see of a machine: the client network's card behind its gate, and the console. A machine without such a
/// card loses all frames and gets none.
pub trait Outlet {
    /// A frame of the guest: the gate's mode says what becomes of it.
    fn transmit(&mut self, frame: &[u8]);

    /// Console text of a guest that runs for clients; it does not wait for anybody.
    fn console(&mut self, bytes: &[u8]);

    /// Nothing leaves, and nothing is kept.
    fn close(&mut self);

    /// What comes is kept for the case that this machine goes live.
    fn retain(&mut self);

    /// What comes waits for the ack of its `Output` entry. What is there already may leave.
    fn hold(&mut self);

    /// Everything that is held or retained leaves, and what comes leaves at once; the network is told that the guest
    /// is here.
    fn open(&mut self);

    /// The network is told again that the guest is here; what is held is not touched.
    fn announce(&mut self);

    /// Whether output leaves at once.
    fn is_open(&self) -> bool;

    /// Whether the guest must wait until frames have left.
    fn is_full(&self) -> bool;

    /// Whether frames that may leave are still here.
    fn has_ready(&self) -> bool;

    /// How many frames have neither an entry nor a position yet.
    fn unsealed(&self) -> usize;

    /// The guest, which made all frames so far, stands at `position`.
    fn guest_at(&mut self, position: Position);

    /// Where the guest stood when the oldest of them was first noticed.
    fn unsealed_since(&self) -> Option<Position>;

    /// They wait for the ack of `entry`.
    fn seal(&mut self, entry: Seq);

    /// They were made by a guest that has come to `position`, and are retained.
    fn seal_at(&mut self, position: Position);

    /// The twin holds the log up to `entry`.
    fn acked(&mut self, entry: Seq);

    /// The primary has sent what the guest made up to `position`.
    fn released(&mut self, position: Position);

    /// Sends what may leave, as far as the card has room.
    fn release(&mut self);

    /// The newest acked entry whose frames, and those of all entries before, have left; since output is held.
    fn sent(&self) -> Option<Seq>;

    /// Whether frames for the guest wait.
    fn has_input(&self) -> bool;

    /// The next frame for the guest; [`recycle`](Self::recycle) it or [`put_back`](Self::put_back).
    fn next_input(&mut self) -> Option<Vec<u8>>;

    /// The frame was applied.
    fn recycle(&mut self, frame: Vec<u8>);

    /// The frame could not be applied yet: it is the next one again.
    fn put_back(&mut self, frame: Vec<u8>);

    /// Throws away what waits for the guest, which is not here any more.
    fn forget_input(&mut self);
}

/// The wire to the twin, outwards. What comes in is handed to the node as it comes.
pub trait LogLink {
    /// Sends a datagram; it may get lost.
    fn send_datagram(&mut self, datagram: &[u8]);

    /// Takes stream bytes; returns how many.
    fn send(&mut self, bytes: &[u8]) -> usize;

    /// Lets what was taken go.
    fn flush(&mut self);

    /// Ends the stream: nothing more is taken from it, and what was handed to it still arrives, if nothing else fails. Of
    /// `rest`, which it did not take yet, it may still send something; returns how many bytes.
    fn hang_up(&mut self, rest: &[u8]) -> usize;
}

/// The line to the arbiter. Its answer is handed to the node.
pub trait ArbiterLine {
    /// Asks for `term`, again and again, until there is an answer; an earlier question is dropped.
    fn ask(&mut self, term: Term);

    /// Asks no more.
    fn withdraw(&mut self);
}

/// This machine's disk, which carries out what its guest asks of the guest's disk. A machine whose guest has no disk, or one
/// whose requests are done at once, is never asked.
pub trait Disk {
    /// Begins a request, one that writes with its `data`; none that overlaps with it is at work.
    fn begin_on_disk(&mut self, request: &DiskRequest, data: &[u8]);

    /// The next request that has ended, and how. What a flush is to make durable is when it ends. What a disk of the machine's
    /// own has read replaces what is in `read`; nothing else does.
    fn poll_disk(&mut self, read: &mut Vec<u8>) -> Option<DiskEnd>;

    /// When to look again, if that can be said.
    fn disk_ends_at(&self) -> Option<Time>;

    /// Nobody waits for what is at work any more.
    fn forget_disk(&mut self);

    /// Bytes of the guest's disk, if it lies on a drive of the machine's own and not in the guest's memory; else 0, and nothing
    /// below is asked.
    fn drive_bytes(&self) -> u64 {
        0
    }

    /// The guest lives here alone from here on, in `term`; `creates`: it begins its life. The drive says so before the guest
    /// writes to it.
    ///
    /// # Errors
    /// Why the guest must not begin its life with what is on this drive.
    fn drive_reigns(&mut self, _term: Term, _creates: bool) -> Result<(), String> {
        Ok(())
    }

    /// How far the drive is with saying so: nothing leaves before it is durable.
    fn reign_state(&self) -> CopyState {
        CopyState::Done
    }

    /// A new backup may have all that is on the drive from here on.
    fn drive_shared(&mut self) {}

    /// What the drive is known by: a page.
    fn drive_label(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Begins to read a block of the guest's disk, for a new backup.
    fn fetch(&mut self, _start: u64, _len: u64) {}

    /// The next block that was read, or that could not be: where it begins, and its bytes.
    fn fetched(&mut self) -> Option<(u64, Option<Vec<u8>>)> {
        None
    }

    /// Nobody waits for blocks that are being read.
    fn forget_fetched(&mut self) {}

    /// What is on the drive is replaced by what is on the one with this label.
    ///
    /// # Errors
    /// Why it must not be; then nothing was written.
    fn begin_copy(&mut self, _label: &[u8]) -> Result<(), String> {
        Ok(())
    }

    /// Writes `len` bytes of the guest's disk: `data` or, if that is empty, zeros.
    fn store(&mut self, _start: u64, _len: u64, _data: &[u8]) {}

    /// All was handed over: makes it durable, and says so on the drive.
    fn end_copy(&mut self) {}

    /// How far that is.
    fn copy_state(&self) -> CopyState {
        CopyState::Done
    }
}

/// How far something is that is to become durable: a copy whose last piece was handed over, or what a drive says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyState {
    /// The drive is at work.
    Busy,
    /// It is durable.
    Done,
    /// The drive failed.
    Failed,
}

/// Who looks on: counts, reports, checks, and for tests lets the power fail.
pub trait Observer<G> {
    /// Something happened. The driver is as it is right then.
    fn observe(&mut self, event: Event<'_>, driver: &Driver<G>);

    /// The driver comes to a point at which a machine that goes out leaves its twin with other knowledge than at the one
    /// before. Whether it goes on; if not, it does nothing more in this turn that others could notice.
    ///
    /// This is the seam by which tests let machines go out or stand still wherever they can.
    #[must_use]
    fn goes_on(&mut self, at: Boundary) -> bool;
}

/// A point between two steps of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boundary {
    /// Before something is done that the node asked for.
    Action,
    /// Before the guest runs, or something is applied to it.
    Step,
    /// An entry was logged; none of it was sent. What is logged must be applied: the answer does not count.
    Logged(Kind),
    /// Before a heartbeat, or bytes of the stream, are handed to the link.
    Send,
    /// The log was handed to the link up to an `Output` entry. The answer does not count.
    Sent,
}

/// What an observer gets to know.
#[derive(Debug)]
pub enum Event<'a> {
    /// The node wants this done; it is not done yet.
    Asked(&'a Action),
    /// It was done.
    Done,
    /// All that it wanted was done, and some of it changed what this machine is.
    Changed,
    /// Primary: an entry has this number. It is not applied yet.
    Logged(Seq),
    /// Primary: an entry was applied. `None`: nobody needed it in the log.
    Applied(Option<Seq>, EntryRef<'a>),
    /// Primary: the guest has run.
    Ran,
    /// Primary: the guest has to wait for the twin.
    HeldBack,
    /// Primary: all of the state was handed over.
    StateSent(Sent),
    /// Primary: the guest is handed over with this entry.
    HandsOver(Seq),
    /// Primary: it was to be handed over, and the backup was lost before.
    HandOverFailed,
    /// Backup: the guest's state is complete, and it follows from here on.
    StateComplete,
    /// Backup: the guest has run.
    Followed,
    /// Backup: this entry was applied.
    Replayed(&'a Record),
    /// Backup: the node was asked whether it may go live.
    AskedToGoLive,
    /// Backup: it is the primary now; its gate is not open yet.
    WentLive,
    /// Its gate is open.
    TookOver(&'a TakeoverTimes),
    /// Backup: its guest is not the primary's.
    Diverged(&'a str),
    /// This machine's disk failed, and this is what comes of it.
    DiskFailed(&'a str),
    /// The guest does not run here any more.
    Ended(&'a str),
}

/// All of a machine.
pub trait Host<G: Guest>: Clock + Outlet + LogLink + ArbiterLine + Disk + Observer<G> {}

impl<G: Guest, H: Clock + Outlet + LogLink + ArbiterLine + Disk + Observer<G>> Host<G> for H {}
