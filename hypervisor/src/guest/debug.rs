//! A debugger's stops, in a guest that follows a recording: positions, instructions at an address, changes of memory.
//!
//! The guest must run as it did without them. So nothing of it is changed for a stop, no byte of code and no debug register:
//! pages with something to stop at are [kept from it](crate::cpu::Vcpu::keep_pages). An entry ends before an instruction
//! that needs one of them; the instruction is looked at, and run alone with the pages given back. Where a CPU can keep no
//! pages, each instruction is run alone. What is a stop depends on the guest alone, and not on how it was run.

use alloc::vec::Vec;

use pollux_ft::Position;

use super::Guest;
use crate::cpu::{Exit, Right};
use crate::memory::{Gpa, PAGE_SIZE};

/// Addresses to stop at, of both kinds together, at most.
pub const MOST: usize = 16;
/// Bytes of one watched range at most.
pub const MOST_WATCHED: u64 = 64;

/// Why a guest stands still for a debugger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DebugStop {
    /// It is where it was to run to, before anything is applied there.
    Arrived,
    /// The next instruction is the one at this linear address.
    Break(u64),
    /// Memory at this linear address has another value than before.
    Watch {
        /// The address.
        linear: u64,
        /// An input has changed it, at this position; else the instruction that led here.
        by_input: bool,
    },
}

/// What to stop at on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stops {
    /// Nothing.
    None,
    /// All that was set.
    All,
    /// All but the instruction at which the guest stands.
    Ahead,
}

impl Stops {
    /// As the monitor's command `debug` calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::All => "all",
            Self::Ahead => "ahead",
        }
    }

    /// The one with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::None, Self::All, Self::Ahead].into_iter().find(|stops| stops.name() == name)
    }
}

/// Memory that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Watch {
    linear: u64,
    len: u64,
    /// As it was when it was last looked at; fewer bytes when it is not mapped.
    bytes: Vec<u8>,
}

/// What a debugger wants.
#[derive(Debug, Default)]
pub(super) struct Debugger {
    breaks: Vec<u64>,
    watches: Vec<Watch>,
    /// While the guest runs for it: how far.
    run: Option<Run>,
    stop: Option<DebugStop>,
    /// The CPU can keep pages.
    keeps: bool,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    until: Position,
    /// Whether breaks and watches count.
    armed: bool,
    /// The instruction here, by its linear address, was looked at: it may run.
    passed: Option<(Position, u64)>,
    /// That one is left by the interrupt that waits: the guest cannot take it yet.
    is_first: bool,
}

impl Guest {
    /// Has the guest stop at instructions at these linear addresses, and when memory at those (with a length in bytes)
    /// changes; in place of what was set before.
    ///
    /// # Errors
    /// When it is more than can be.
    pub fn set_stops(&mut self, breaks: &[u64], watches: &[(u64, u64)]) -> Result<(), &'static str> {
        if breaks.len() + watches.len() > MOST || watches.iter().any(|&(_, len)| len > MOST_WATCHED) {
            return Err("more to stop at than can be");
        }
        let watch = |&(linear, len)| Watch { linear, len, bytes: Vec::new() };
        self.debugger.breaks = breaks.to_vec();
        self.debugger.watches = watches.iter().map(watch).collect();
        Ok(())
    }

    /// From here on the guest runs until this position, or until it comes to one of the `stops`.
    pub fn debug_until(&mut self, until: Position, stops: Stops) {
        self.debugger.stop = None;
        let passed = (stops == Stops::Ahead).then(|| self.here());
        self.debugger.run = Some(Run { until, armed: stops != Stops::None, passed, is_first: false });
        // Any page will do to find out.
        self.debugger.keeps = self.vcpu.keep_pages(&[(Gpa(0), Right::Execute)]);
        self.vcpu.keep_pages(&[]);
        let mut watches = core::mem::take(&mut self.debugger.watches);
        for watch in &mut watches {
            watch.bytes = self.peek(watch.linear, watch.len as usize);
        }
        self.debugger.watches = watches;
    }

    /// A guest that runs for a debugger stops at the next exact stop: here, if this is one. (It may wait for the log.)
    pub fn debug_interrupt(&mut self) {
        let next = self.next_stop();
        if let Some(run) = &mut self.debugger.run {
            run.until = run.until.min(next);
            if self.settled {
                self.debug_look(false);
            }
        }
    }

    /// Why it has stopped for the debugger, since this was last asked.
    pub fn take_debug_stop(&mut self) -> Option<DebugStop> {
        self.debugger.stop.take()
    }

    /// Looks, before an entry, whether the guest is to stop, and how far it may run; `entered`: since the run began.
    pub(super) fn debug_limit(&mut self, target: Position, entered: bool) -> Result<Position, ()> {
        let Some(run) = self.debugger.run else { return Ok(target) };
        if self.debug_look(entered) {
            return Err(());
        }
        let position = self.position();
        let limit = target.min(run.until.max(position));
        if !run.armed {
            return Ok(limit);
        }
        // An event comes before the instruction, and its handler's first at the same position: that is one to look at, too.
        let delivers = self.is_delivering();
        let alone = run.passed == Some(self.here());
        let taken_first = alone && !run.is_first && self.can_wake();
        if self.debugger.keeps {
            let runs_alone = alone && !taken_first;
            let pages = if runs_alone || delivers { Vec::new() } else { self.pages_to_keep() };
            self.vcpu.keep_pages(&pages);
        } else if !alone && self.is_settled() && self.breaks_here() {
            return Err(());
        }
        Ok(match alone || !self.debugger.keeps {
            _ if delivers => position,
            true => limit.min(position.after(1)),
            false => limit,
        })
    }

    /// Whether the guest is to stop where it stands: for what has changed, or as it has arrived.
    fn debug_look(&mut self, entered: bool) -> bool {
        let Some(run) = self.debugger.run else { return false };
        let stop = match run.armed.then(|| self.changed()).flatten() {
            Some(linear) => Some(DebugStop::Watch { linear, by_input: !entered }),
            None => (self.position() >= run.until && !self.is_delivering()).then_some(DebugStop::Arrived),
        };
        if stop.is_some() {
            self.debug_stop(stop);
        }
        stop.is_some()
    }

    /// An entry has ended for a page that was kept. Where an event needs it, it is that which comes next.
    pub(super) fn debug_exit(&mut self, exit: Exit) -> Result<(), ()> {
        let looks = exit == Exit::Kept && !self.is_delivering();
        if looks && self.breaks_here() { Err(()) } else { Ok(()) }
    }

    /// Where it stands, and the linear address of the next instruction.
    fn here(&self) -> (Position, u64) {
        (self.position(), self.code_at().0)
    }

    /// Whether the next instruction is one to stop at; it may run after that.
    fn breaks_here(&mut self) -> bool {
        let here = self.here();
        let Some(run) = &mut self.debugger.run else { return false };
        (run.is_first, run.passed) = (run.passed == Some(here), Some(here));
        let breaks = !run.is_first && self.debugger.breaks.contains(&here.1);
        if breaks {
            self.debug_stop(Some(DebugStop::Break(here.1)));
        }
        breaks
    }

    fn debug_stop(&mut self, stop: Option<DebugStop>) {
        self.debugger.stop = stop;
        self.debugger.run = None;
        self.vcpu.keep_pages(&[]);
    }

    /// The first watched address whose memory is not as it was.
    fn changed(&self) -> Option<u64> {
        let is_changed = |watch: &&Watch| self.peek(watch.linear, watch.len as usize) != watch.bytes;
        self.debugger.watches.iter().find(is_changed).map(|watch| watch.linear)
    }

    /// The pages where what is to be stopped at is now. (Where that changes the guest has left for it, unless it walks its
    /// own tables.)
    fn pages_to_keep(&self) -> Vec<(Gpa, Right)> {
        let breaks = self.debugger.breaks.iter().map(|&linear| (linear, Right::Execute));
        let ends = |watch: &Watch| [watch.linear, watch.linear.wrapping_add(watch.len.saturating_sub(1))];
        let watches = self.debugger.watches.iter().flat_map(ends).map(|linear| (linear, Right::Write));
        let mut pages: Vec<(Gpa, Right)> = Vec::new();
        for (linear, right) in breaks.chain(watches) {
            let Some(Gpa(gpa)) = self.look_up_now(linear) else { continue };
            let page = Gpa(gpa & !(PAGE_SIZE - 1));
            match pages.iter_mut().find(|(known, _)| *known == page) {
                Some((_, known)) if *known != right => *known = Right::Both,
                Some(_) => {}
                None => pages.push((page, right)),
            }
        }
        pages
    }
}
