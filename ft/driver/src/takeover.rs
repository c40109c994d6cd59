//! Going live. Whether a takeover is under way, and whether it may end so, says the node alone; here is done what it
//! takes, and measured how long.

use core::fmt;

use pollux_ft::{NotLive, Span, Term, Time};

use crate::driver::Driver;
use crate::guest::Guest;
use crate::host::{Event, Host};

/// How the takeover goes that the node wants.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Takeover {
    /// When the primary gave its last sign of life, and when it was given up.
    heard: Time,
    suspected: Time,
    /// When all of the log had been executed.
    drained: Option<Time>,
    /// The primary handed the guest over.
    pub(crate) planned: bool,
}

/// What a takeover was, and how long its parts took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakeoverTimes {
    /// The term that was won.
    pub term: Term,
    /// The primary handed the guest over.
    pub planned: bool,
    /// From the last sign of life to the suspicion.
    pub detect: Span,
    /// To execute the rest of the log.
    pub drain: Span,
    /// To win the term.
    pub arbiter: Span,
    /// To open the gate and tell the network.
    pub announce: Span,
}

impl TakeoverTimes {
    /// All together.
    #[must_use]
    pub fn total(&self) -> Span {
        Span(self.detect.0 + self.drain.0 + self.arbiter.0 + self.announce.0)
    }
}

impl fmt::Display for TakeoverTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |span: Span| span.0 / 1000;
        write!(f, "silent for {} ms, log drained in {} ms, ", ms(self.detect), ms(self.drain))?;
        write!(f, "term won in {} ms, announced in {} ms", ms(self.arbiter), ms(self.announce))
    }
}

impl<G: Guest> Driver<G> {
    /// The node gave the primary up.
    pub(crate) fn begin_takeover(&mut self) {
        let heard = self.node.last_heard();
        self.takeover = Takeover { heard, suspected: self.now, ..Takeover::default() };
    }

    /// Goes live if the node agrees; whether it does.
    pub(crate) fn goes_live(&mut self, host: &mut impl Host<G>) -> bool {
        let (now, position) = (host.now(), self.guest.position());
        let result = self.node.went_live(now, position);
        host.observe(Event::AskedToGoLive, self);
        if result != Err(NotLive::NotDrained) {
            self.takeover.drained.get_or_insert(now);
        }
        let Ok(term) = result else { return false };
        self.now = now;
        host.observe(Event::WentLive, self);
        // Before the first frame leaves: who handed the guest over need not wait for a heartbeat.
        self.push(host);
        // Guest time goes on from where the log ended.
        self.start_clock();
        self.marks.logged(now, position);
        self.open_gate(host);
        let Takeover { heard, suspected, drained, planned } = core::mem::take(&mut self.takeover);
        let drained = drained.unwrap_or(now);
        let times = TakeoverTimes {
            term,
            planned,
            detect: suspected.since(heard),
            drain: drained.since(suspected),
            arbiter: now.since(drained),
            announce: host.now().since(now),
        };
        host.observe(Event::TookOver(&times), self);
        true
    }
}
