//! What a driver does, in words for people, as events on the monitor, and as figures.

use alloc::format;
use alloc::string::String;

use pollux_driver::pages::PAGE_SIZE;
use pollux_driver::takeover::TakeoverTimes;
use pollux_driver::transfer::Sent;
use pollux_driver::{Boundary, Driver, Event, Observer};
use pollux_ft::{Action, Control, Entry, EntryRef, Position};

use super::debugger::Hold;
use super::json::Json;
use super::machine::Machine;
use super::monitor;
use crate::config::StartRole;
use crate::guest::{Guest, REGISTERS};

impl Machine {
    fn asked(&mut self, action: &Action) {
        match action {
            Action::BeginTransfer => log::info!("a backup joins: sending the state"),
            Action::Protected => {
                log::info!("protected: the backup follows");
                self.figures.protected_since = Some(self.now);
            }
            Action::Unprotected { reason } => {
                log::warn!("unprotected: {reason}; the guest goes on here alone");
                monitor::event("unprotected", "reason", &reason);
                self.figures.protected_since = None;
            }
            Action::Started { term } => log::info!("the guest starts in term {}", term.0),
            Action::HandedOver { term } => {
                log::warn!("handed over: the twin runs the guest in term {}; joining it", term.0);
                monitor::event("handed-over", "term", &term.0);
                self.figures.protected_since = None;
            }
            Action::Beaten { reason } => {
                log::warn!("the guest held here is out of date: {reason}; joining the other machine");
                monitor::event("beaten", "reason", reason);
                self.ending = None;
                self.figures.protected_since = None;
            }
            Action::Halt { reason } => self.halts_for(reason),
            Action::BeginLoad => log::info!("receiving the guest's state"),
            Action::TakeOver { last } => {
                log::warn!("the primary is gone: draining the log up to position {last}");
            }
            Action::TakeOverCancelled => log::info!("the primary was heard again: following it as before"),
            Action::Abandoned { reason } => {
                log::warn!("the guest held here is worthless: {reason}; joining again");
                monitor::event("abandoned", "reason", &reason);
            }
            Action::Refused { reason, .. } => {
                log::error!("pairing refused: {reason}");
                monitor::event("refused", "reason", &reason);
            }
            _ => {}
        }
    }

    fn state_sent(&mut self, sent: &Sent, position: Position) {
        let Sent { pages, machine, rounds, total, pause } = sent;
        self.figures.transfer_pages = *pages;
        self.figures.transfer_bytes = pages * PAGE_SIZE + *machine as u64;
        self.figures.transfer_rounds = u64::from(*rounds);
        self.figures.transfer = *total;
        self.figures.transfer_pause = *pause;
        log::info!(
            "state sent at position {position}: {pages} pages in {rounds} rounds and {} ms, {machine} bytes of CPU and \
             platform, guest stopped for {} ms",
            total.0 / 1000,
            pause.0 / 1000
        );
    }

    fn took_over(&mut self, times: &TakeoverTimes, driver: &Driver<Guest>) {
        self.figures.takeovers += 1;
        log::warn!("live in term {} at position {}: {times}", times.term.0, driver.guest().position());
        let mut json = Json::line("event");
        json.text("event", "takeover")
            .number("term", times.term.0)
            .flag("planned", times.planned)
            .millis("detect_ms", times.detect)
            .millis("drain_ms", times.drain)
            .millis("arbiter_ms", times.arbiter)
            .millis("announce_ms", times.announce)
            .millis("total_ms", times.total());
        monitor::send(json);
        self.report(driver);
    }
}

/// Bytes of code that are shown.
const CODE: usize = 48;

impl Machine {
    /// Says where the guest stands, with what in its registers: in the log, and to whoever replays a recording.
    fn show_place(&self, guest: &Guest) {
        let (registers, (code_at, bits)) = (guest.registers(), guest.code_at());
        let code: String = guest.peek(code_at, CODE).iter().map(|byte| format!("{byte:02x}")).collect();
        log::error!("it stands at {:#x} (linear {code_at:#x}), {bits}-bit code {code}; {registers:x?}", registers.rip);
        if self.config.role != StartRole::Replay {
            return;
        }
        let mut json = Json::line("event");
        json.text("event", "stands").number("position", guest.position().0).number("code_at", code_at);
        json.number("bits", bits.into()).text("code", &code).object("registers", |json| {
            for (name, value) in REGISTERS.iter().zip(registers.gpr.iter().chain([&registers.rip, &registers.rflags])) {
                json.number(name, *value);
            }
        });
        monitor::send(json);
    }
}

impl Observer<Guest> for Machine {
    fn observe(&mut self, event: Event<'_>, driver: &Driver<Guest>) {
        match event {
            Event::Asked(action) => self.asked(action),
            Event::Changed => self.report(driver),
            Event::Applied(_, EntryRef::PacketIn(_)) => self.figures.packets_in += 1,
            Event::Applied(_, EntryRef::Digest { .. }) => self.figures.digests += 1,
            Event::Applied(_, EntryRef::Control(Control::Reset)) => self.figures.resets += 1,
            Event::HeldBack => self.figures.held_back += 1,
            Event::StateSent(sent) => self.state_sent(&sent, driver.guest().position()),
            Event::HandsOver(_) => log::info!("handing the guest over at position {}", driver.guest().position()),
            Event::HandOverFailed => {
                monitor::event("refused", "reason", &"the backup was lost before the guest was handed over");
            }
            Event::StateComplete => {
                log::info!("state complete at position {}: following the log", driver.guest().position());
                self.hold_if_wanted(driver.guest());
            }
            Event::Replayed(record) => match record.entry {
                Entry::Digest { .. } => self.figures.digests += 1,
                Entry::Control(Control::PowerOff) => log::info!("the guest powered off"),
                Entry::Control(Control::SwitchOver) => log::info!("the primary hands the guest over"),
                _ => {}
            },
            Event::TookOver(times) => self.took_over(times, driver),
            Event::Diverged(details) => {
                log::error!("DIVERGED: {details}");
                monitor::event("diverged", "details", &details);
                self.show_place(driver.guest());
            }
            Event::DiskFailed(what) => {
                log::error!("this machine's disk failed: {what}");
                monitor::event("disk-failed", "what", &what);
            }
            Event::Ended(reason) => {
                log::warn!("the guest ends here: {reason}");
                self.ending = Some(reason.into());
            }
            Event::Done
            | Event::Logged(_)
            | Event::Applied(..)
            | Event::Ran
            | Event::Followed
            | Event::AskedToGoLive
            | Event::WentLive => {}
        }
    }

    fn goes_on(&mut self, at: Boundary) -> bool {
        match at {
            Boundary::Logged(kind) => self.cut.boundary(&kind.name()),
            Boundary::Sent => self.cut.boundary(&"after the log was sent"),
            Boundary::Step => return self.hold != Hold::Stands,
            Boundary::Action | Boundary::Send => {}
        }
        true
    }
}
