//! Going live. Whether a takeover is under way, since when, and whether it may end so, the node alone knows; here is done
//! what it takes.

use core::fmt;

use pollux_ft::{Span, Term};

use crate::driver::Driver;
use crate::guest::Guest;
use crate::host::{Event, Host};
use crate::reign::Reign;

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
    /// To have the drive say so, to open the gate and to tell the network.
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
    /// Goes live if the node agrees; whether it does.
    pub(crate) fn take_over(&mut self, host: &mut impl Host<G>) -> bool {
        let (now, position) = (host.now(), self.guest.position());
        let result = self.node.go_live(now, position);
        host.observe(Event::AskedToGoLive, self);
        let Ok(taken) = result else { return false };
        self.now = now;
        host.observe(Event::WentLive, self);
        // Before the first frame leaves: who handed the guest over need not wait for a heartbeat.
        self.push(host);
        // Guest time goes on from where the log ended.
        self.start_clock();
        self.marks.logged(now, position);
        let times = TakeoverTimes {
            term: taken.term,
            planned: taken.planned,
            detect: taken.suspected.since(taken.heard),
            drain: taken.drained.since(taken.suspected),
            arbiter: now.since(taken.drained),
            announce: Span(0),
        };
        self.reign(host, Reign::TakesOver(now, times));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_takeover_is_told_in_ms_and_its_parts_add_up() {
        let span = Span::from_millis;
        let (detect, drain, arbiter, announce) = (span(1000), span(200), span(30), span(4));
        let times = TakeoverTimes { term: Term(2), planned: false, detect, drain, arbiter, announce };
        assert_eq!(times.total(), span(1234));
        let text = "silent for 1000 ms, log drained in 200 ms, term won in 30 ms, announced in 4 ms";
        assert_eq!(times.to_string(), text);
    }
}
