//! The backup: replays the log, and takes over when it is told to.

use alloc::format;
use alloc::string::String;

use pollux_ft::{Control, Entry, Position, Role};

use crate::digest::hash_slice;
use crate::driver::{Driver, Next};
use crate::guest::{Guest, Output, PowerEvent, Stop};
use crate::host::{Event, Host, Outlet};

/// Entries that are applied in one turn at most: heartbeats must not wait for long.
const AT_ONCE: usize = 64;
/// Latest guest time that a log may name, in nanoseconds: 146 years.
const MAX_GUEST_NS: u64 = 1 << 62;

/// The outputs of a guest that follows a log: frames go to the gate, which retains them in case that this machine goes
/// live; the console is the primary's affair.
struct Shadow<'a, H>(&'a mut H);

impl<H: Outlet> Output for Shadow<'_, H> {
    fn frame(&mut self, frame: &[u8]) {
        self.0.transmit(frame);
    }

    fn console(&mut self, _: &[u8]) {}
}

impl<G: Guest> Driver<G> {
    /// Applies the entries that are due or runs towards the next one; with nothing to do, sleeps or goes live.
    pub(crate) fn follow_step(&mut self, host: &mut impl Host<G>) -> Next {
        self.poll_disk(host);
        // Asked before the log is drained, too: the node is the one to refuse.
        if self.node.role() == Role::Draining && self.take_over(host) {
            return Next::Again;
        }
        if self.node.leaves_log(host.now()) {
            return Next::Wait(None);
        }
        match self.apply_entries(host) {
            Ok(false) => self.follow_log(host),
            Ok(true) => Next::Again,
            Err(details) => self.diverge(host, &details),
        }
    }

    /// Runs to the next entry, or to the newest position held.
    fn follow_log(&mut self, host: &mut impl Host<G>) -> Next {
        let position = self.guest.position();
        let next = self.node.next_record().map(|record| record.position);
        let Some(target) =
            [next, self.node.run_limit()].into_iter().flatten().min().filter(|&target| target > position)
        else {
            self.retain(host);
            return Next::Wait(self.disk_ends_at(host));
        };
        let slice = position.after(self.tuning.follow_slice);
        let stop = self.guest.run(target.min(slice), &mut Shadow(host));
        self.retain(host);
        let position = self.guest.position();
        self.node.progress(position);
        host.observe(Event::Followed, self);
        match stop {
            Stop::Target | Stop::Host | Stop::Output => Next::Again,
            // The primary says the same in the next entry, at this position; if it lived to say it.
            Stop::Power(event) if position == target => {
                self.power_due = Some(event);
                Next::Again
            }
            Stop::Crashed if position == target => {
                self.power_due = Some(PowerEvent::Reset);
                Next::Again
            }
            Stop::Halted => self.ends_early(host, target, "sleeps"),
            Stop::Power(_) | Stop::Crashed => self.ends_early(host, target, "ended"),
        }
    }

    fn ends_early(&mut self, host: &mut impl Host<G>, target: Position, how: &str) -> Next {
        let position = self.guest.position().0;
        self.diverge(host, &format!("the guest {how} at {position}, the log says it ran to {}", target.0))
    }

    /// Frames that the guest made are kept until the primary is known to have sent them.
    fn retain(&mut self, host: &mut impl Host<G>) {
        if host.unsealed() > 0 {
            host.seal_at(self.guest.position());
        }
        host.released(self.node.released().position);
    }

    /// Applies entries of this position; whether to come again at once, as there may be more. The error says why this guest
    /// cannot be the primary's.
    fn apply_entries(&mut self, host: &mut impl Host<G>) -> Result<bool, String> {
        let position = self.guest.position();
        for applied in 0..AT_ONCE {
            let Some(record) = self.node.next_record().filter(|record| record.position == position) else {
                return Ok(applied > 0);
            };
            let takes_over = matches!(record.entry, Entry::Control(Control::SwitchOver));
            if let Entry::DiskDone(data) = &record.entry {
                let (seq, data) = (record.seq, data.clone());
                // It comes later, at this very position.
                if !self.awaits_disk(host, &data).map_err(|error| format!("entry {}: {error}", seq.0))? {
                    return Ok(false);
                }
            }
            if takes_over && self.disk.has_failed() {
                // The guest would hear of an error that the primary's disk has not.
                self.give_up_for_disk(host);
                return Ok(true);
            }
            let Some(record) = self.node.next_record() else { return Ok(true) };
            match &record.entry {
                Entry::Clock { base_ns, .. } if *base_ns > MAX_GUEST_NS => {
                    return Err(format!("entry {}: guest time {base_ns} ns is absurd", record.seq.0));
                }
                Entry::Digest { machine, slice, memory } => {
                    let memory_here = hash_slice(self.guest.memory(), *slice, self.tuning.digests.slice);
                    let (logged, own) = ((*machine, *memory), (self.guest.hash(), memory_here));
                    if let Some(what) = difference(logged, own) {
                        let seq = record.seq.0;
                        return Err(format!(
                            "entry {seq}: {what} differs at position {}: {own:x?}, logged {logged:x?}, slice {slice}",
                            position.0
                        ));
                    }
                }
                Entry::Clock { rate, .. } => self.followed_speed.note(*rate),
                Entry::Control(Control::Reset) => {
                    // It is applied when all is ready: later, at this very position.
                    if !self.guest.prepare_reset() {
                        return Ok(true);
                    }
                    self.power_due = None;
                }
                _ => {}
            }
            self.guest.apply(&record.entry.borrow()).map_err(|error| format!("entry {}: {error}", record.seq.0))?;
            self.disk.saw(&record.entry.borrow());
            host.observe(Event::Replayed(record), self);
            self.node.applied(self.now, position);
        }
        Ok(true)
    }

    /// The guest here is not the primary's.
    pub(crate) fn diverge(&mut self, host: &mut impl Host<G>, details: &str) -> Next {
        host.observe(Event::Diverged(details), self);
        self.node.diverged(details);
        Next::Again
    }
}

/// What differs between the hashes of machine and memory that were `logged`, and our `own`.
fn difference(logged: (u64, u64), own: (u64, u64)) -> Option<&'static str> {
    match (logged.0 == own.0, logged.1 == own.1) {
        (true, true) => None,
        (false, _) => Some("CPU or platform"),
        (true, false) => Some("memory"),
    }
}
