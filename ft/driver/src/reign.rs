//! The guest lives on this machine alone from here on. Before anybody may notice, its drive says so: until that is durable the
//! guest stands still and nothing leaves.

use alloc::string::String;

use pollux_ft::Time;

use crate::driver::{Driver, Next};
use crate::guest::Guest;
use crate::host::{CopyState, Event, Host};
use crate::takeover::TakeoverTimes;

/// How it came to that.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reign {
    /// The guest begins its life.
    Begins,
    /// Its backup is lost.
    GoesOn,
    /// It was taken over at this time; what its parts took so far.
    TakesOver(Time, TakeoverTimes),
}

impl<G: Guest> Driver<G> {
    /// The guest lives here alone as soon as the drive, if there is one, says so.
    pub(crate) fn reign(&mut self, host: &mut impl Host<G>, reign: Reign) {
        if host.drive_bytes() > 0
            && let Err(why) = host.drive_reigns(self.node.term(), matches!(reign, Reign::Begins))
        {
            return self.end_dumb(host, &why);
        }
        // A takeover goes on as one.
        self.reign.get_or_insert(reign);
        self.enter_reign(host);
    }

    /// One that waits for the drive.
    pub(crate) fn await_reign(&mut self, host: &mut impl Host<G>) -> Next {
        self.enter_reign(host);
        match self.reign {
            None => Next::Again,
            Some(_) => {
                self.steering.note_pause();
                self.poll_disk(host);
                Next::Wait(self.disk_ends_at(host))
            }
        }
    }

    fn enter_reign(&mut self, host: &mut impl Host<G>) {
        let state = if host.drive_bytes() > 0 { host.reign_state() } else { CopyState::Done };
        match state {
            CopyState::Busy => return,
            CopyState::Done => {}
            CopyState::Failed => {
                let why = String::from("the drive does not take down that the guest lives on this machine alone");
                return self.end_dumb(host, &why);
            }
        }
        match self.reign.take() {
            None => {}
            Some(Reign::GoesOn) => self.open_gate(host),
            Some(Reign::Begins) => {
                // It stood still until now.
                self.guest.begin(host.unix_time());
                self.start_clock();
                self.open_gate(host);
            }
            Some(Reign::TakesOver(since, times)) => {
                self.open_gate(host);
                let times = TakeoverTimes { announce: host.now().since(since), ..times };
                host.observe(Event::TookOver(&times), self);
            }
        }
    }

    /// The guest ends, and what it said nobody is to hear.
    fn end_dumb(&mut self, host: &mut impl Host<G>, why: &str) {
        host.close();
        self.end(host, why);
    }

    /// Everything that is held may leave, and what comes leaves at once.
    fn open_gate(&mut self, host: &mut impl Host<G>) {
        host.open();
        self.announcements.went_live(self.now);
    }
}
