//! What the one who sees everything gets to know of a driver.

use super::devices::InWorld;
use super::{followed, note, view};
use crate::check::{Check, LogId};
use crate::guest::Driven;
use pollux_driver::{Boundary, Driver, Event, Guest, Observer};
use pollux_ft::{Action, Control, EntryRef, HaltReason, Node, Role};

/// Longest time that it takes to check a state, in microseconds.
const LOOKING: u64 = 60_000;

impl InWorld<'_> {
    /// The log that this machine writes.
    pub(super) fn written(&self, node: &Node) -> LogId {
        (self.own.id, node.session())
    }

    /// Shows the world what this machine is now.
    pub(crate) fn show(&mut self, driver: &Driver<Driven>) {
        let node = driver.node();
        self.env.audit.look(self.own.index, Some(view(self.own, node)), &self.env.arbiter);
        self.env.audit.gate_holds(self.own.index, self.own.gate.held());
        if node.role().is_backup() {
            self.env.audit.holds(followed(node), node.newest());
        }
        self.own.suspicion.asks = node.asks_for();
        assert_eq!(node.invariants(), Ok(()), "machine {} as {:?}", self.own.index, node.role());
        self.check_memory(node);
    }

    fn check_memory(&mut self, node: &Node) {
        let (config, index) = (&self.env.plan.config, self.own.index);
        let queued = node.transmit().len();
        if queued > config.send_buffer_bytes + pollux_ft::seal::MAX_SEALED {
            return self.broken(Check::Memory, format!("machine {index} has {queued} bytes to send"));
        }
        let most = config.max_entries as usize;
        let follows = node.role().is_backup() && !self.own.flipped;
        let backlog = if follows { self.env.audit.backlog(followed(node)) } else { 0 };
        if backlog > most {
            let text = format!("machine {index} has {backlog} entries to apply, at most {most} are allowed");
            self.broken(Check::Memory, text);
        }
    }

    fn asked(&mut self, action: &Action, driver: &Driver<Driven>) {
        if matches!(action, Action::Started { .. }) {
            self.own.creates_at = Some(self.env.date());
        }
        if !matches!(action, Action::Release(_) | Action::LoadMemory { .. } | Action::LoadMachine(_)) {
            note(self.env, self.own.index, driver, 1, || format!("{action:?}"));
        }
        let figures = &mut self.env.figures;
        match action {
            Action::Protected => figures.protections += 1,
            Action::Refused { .. } => figures.refusals += 1,
            Action::HandedOver { .. } => {
                figures.switch_overs += 1;
                self.own.history.clear();
            }
            Action::Abandoned { .. } | Action::Beaten { .. } => self.own.history.clear(),
            Action::Started { .. } if self.env.plan.auto => self.env.creates_guest(self.own.index),
            Action::BeginLoad => (self.own.flipped, self.own.hangs) = (false, false),
            Action::StateLoaded { .. } => self.own.is_busy_for(self.env.rng.below(LOOKING)),
            Action::TakeOver { .. } => self.suspect(driver.node()),
            Action::TakeOverCancelled => figures.cancelled += 1,
            Action::Halt { reason: HaltReason::PoweredOff } => self.env.audit.powered_off(),
            _ => {}
        }
    }

    /// An entry was applied here; it has a number if somebody follows.
    fn applied(&mut self, seq: Option<pollux_ft::Seq>, entry: EntryRef<'_>, driver: &Driver<Driven>) {
        self.check_disk(&entry, driver.node().role());
        let power_off = entry == EntryRef::Control(Control::PowerOff);
        match seq {
            Some(seq) => {
                let log = self.written(driver.node());
                self.env.audit.logged(log, seq, driver.guest().machine_digest(), power_off);
            }
            None if power_off => self.env.audit.powered_off(),
            None => {}
        }
    }

    fn went_live(&mut self, driver: &Driver<Driven>) {
        let (node, position) = (driver.node(), driver.guest().position());
        let term = node.term().0;
        note(self.env, self.own.index, driver, term, || format!("LIVE in term {term}"));
        self.check_need();
        self.env.audit.goes_live(self.own.id, followed(node), node.newest(), position, &self.own.history);
        self.env.audit.takes_over_output(self.own.index, self.own.gate.held());
        self.env.figures.takeovers += 1;
    }

    fn diverged(&mut self, details: &str, driver: &Driver<Driven>) {
        note(self.env, self.own.index, driver, 0, || format!("DIVERGED: {details}"));
        if self.own.flipped {
            self.env.figures.flips_found += 1;
        } else {
            self.broken(Check::ReplicasEqual, details.to_owned());
        }
    }
}

impl Observer<Driven> for InWorld<'_> {
    fn observe(&mut self, event: Event<'_>, driver: &Driver<Driven>) {
        let (node, guest, index) = (driver.node(), driver.guest(), self.own.index);
        let position = guest.position();
        match event {
            Event::Asked(action) => self.asked(action, driver),
            Event::Done => {
                if let Some(date) = self.own.creates_at.take() {
                    assert_eq!(driver.guest().born(), Some(date), "a guest's first date is that of its creation");
                }
                self.show(driver);
            }
            Event::Logged(seq) => {
                self.own.log = self.written(node);
                self.env.audit.appended(self.own.log, seq, position);
            }
            Event::Applied(seq, entry) => self.applied(seq, entry, driver),
            Event::Ran if node.role() == Role::Protected => {
                // A new primary goes by the speed of the one before until it has measured its own.
                let fastest = self.env.plan.speeds[..self.env.plan.machines].iter().max().copied().unwrap_or_default();
                let bound = self.env.plan.lag_bound * fastest / 1_000_000;
                self.env.audit.runs_ahead(self.written(node), position, bound);
            }
            Event::StateSent(_) => {
                let log = self.written(node);
                self.env.audit.state_sent(log, node.newest(), position, &self.own.history);
                note(self.env, index, driver, position.0, || "the state is sent".to_owned());
            }
            Event::HandsOver(seq) => {
                self.env.audit.appended(self.written(node), seq, position);
                self.env.audit.logged(self.written(node), seq, guest.machine_digest(), false);
                note(self.env, index, driver, seq.0, || format!("hands over with entry {}", seq.0));
            }
            Event::StateComplete => {
                note(self.env, index, driver, position.0, || "the state is complete".to_owned());
                self.own.history = self.env.audit.history(followed(node));
            }
            Event::Followed => self.env.audit.follows(followed(node), node.newest(), position),
            Event::Replayed(record) => {
                let (seq, kind) = (record.seq, record.entry.borrow().kind());
                note(self.env, index, driver, seq.0, || format!("applies entry {}: {kind:?}", seq.0));
                self.check_disk(&record.entry.borrow(), node.role());
                if !self.own.flipped {
                    self.env.audit.applied(followed(node), seq, position, guest.machine_digest());
                }
            }
            Event::AskedToGoLive => {
                if self.own.suspicion.asks.is_none() && node.asks_for().is_some() {
                    self.check_suspicion(node);
                }
                self.own.suspicion.asks = node.asks_for();
            }
            Event::WentLive => self.went_live(driver),
            Event::Diverged(details) => self.diverged(details, driver),
            Event::DiskFailed(what) => note(self.env, index, driver, 0, || format!("its disk FAILS: {what}")),
            Event::Ended(reason) => note(self.env, index, driver, 0, || reason.to_owned()),
            Event::Ran | Event::Changed | Event::HeldBack | Event::HandOverFailed | Event::TookOver(_) => {}
        }
    }

    fn goes_on(&mut self, at: Boundary) -> bool {
        self.boundary(at)
    }
}
