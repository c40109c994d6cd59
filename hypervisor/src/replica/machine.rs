//! This machine as the driver sees it: wall clock, client card, link to the twin, line to the arbiter.

use alloc::string::String;
use alloc::vec::Vec;

use pollux_driver::{ArbiterLine, Clock, CopyState, DiskEnd, DiskRequest, Driver, LogLink, Outlet};
use pollux_ft::arbiter::Answer;
use pollux_ft::{HaltReason, Position, Role, Seq, Span, Term, Time, Verdict, WaitsFor};
use pollux_nic::e1000::E1000;
use pollux_nic::{Gate, GateMode, Mark};

use super::arbiter::Arbiter;
use super::client::Client;
use super::cut::Cut;
use super::debugger::Hold;
use super::disk::OwnDisk;
use super::drive::Drive;
use super::farewell::Farewell;
use super::link::{Change, End, Link};
use super::monitor;
use super::recorder::Recorder;
use super::service::Service;
use super::status::Figures;
use crate::config::{Config, StartRole};
use crate::guest::Guest;
use crate::host::apic::Apic;
use crate::host::clock::{self, WallClock};
use crate::host::interrupts::Fired;
use crate::host::nic::Route;
use crate::host::{reset, serial};
use crate::random::Random;

/// What to do when the first term of a primary is taken.
const ADVICE: &str = "this pair has run before: start this machine with role=backup; or, if no machine of the pair runs \
                      any more, give a 'first-term' above every term that the arbiter has given it";

/// Wall time between two lines about connections that were refused.
const STRANGERS: Span = Span::from_millis(10_000);

/// What a replica has around its driver.
pub(super) struct Machine {
    pub(super) config: Config,
    pub(super) apic: Apic,
    pub(super) clock: WallClock,
    pub(super) client: Option<Client>,
    /// The wire to the twin; a machine alone has none.
    pub(super) link: Option<Link>,
    /// This machine's own card on the client network, if it does not share that of the clients.
    pub(super) own_card: Option<(E1000, Route)>,
    pub(super) arbiter: Option<Arbiter>,
    /// Who answers people on the client network.
    pub(super) service: Option<Service>,
    pub(super) recorder: Option<Recorder>,
    pub(super) cut: Cut,
    pub(super) disk: OwnDisk,
    /// This machine's random numbers.
    pub(super) random: Random,
    pub(super) figures: Figures,
    /// Why the guest ended here, until the twin has our last words: who reads on the monitor that a machine has halted may
    /// switch it off.
    pub(super) ending: Option<String>,
    /// What a debugger wants.
    pub(super) hold: Hold,
    /// It is to be reset once it has halted.
    pub(super) starts_anew: bool,
    pub(super) farewell: Farewell,
    /// What it waits for until it has a guest, as was said last.
    pub(super) waits_for: Option<WaitsFor>,
    /// When a connection that is refused is next worth a line.
    pub(super) stranger_at: Time,
    /// The wall time when it was last looked at.
    pub(super) now: Time,
}

impl Machine {
    /// The gate, if there is one.
    pub(super) fn gate(&self) -> Option<&Gate> {
        self.client.as_ref().map(Client::gate)
    }

    fn set_mode(&mut self, mode: GateMode) {
        if let Some(client) = &mut self.client {
            client.nic().set_mode(mode);
        }
    }

    /// Takes in what came from the twin.
    pub(super) fn poll_link(&mut self, fired: Fired, driver: &mut Driver<Guest>) {
        let is_behind = self.disk.drive().is_some_and(Drive::is_behind);
        let Some(link) = &mut self.link else { return };
        let (now, node) = (self.now, driver.node_mut());
        link.interrupted(fired);
        link.set_end(if node.role().is_primary() { End::Listen } else { End::Connect });
        link.set_wanted(node.wants_connection());
        match link.poll(self.now, |meeting| node.handshake(meeting)) {
            Change::None => {}
            Change::Connected(handshake) => node.connected(now, *handshake),
            Change::Disconnected => node.disconnected(now),
        }
        link.receive(|bytes| {
            // What the drive has not taken waits in the stream.
            let room = if is_behind { 0 } else { node.receive_room().min(bytes.len()) };
            if room == 0 { 0 } else { node.receive(now, &bytes[..room]) }
        });
        link.receive_datagrams(|datagram| node.heartbeat_received(now, datagram));
        let (strangers, what) = link.take_strangers();
        node.strangers_came(strangers);
        if let Some(what) = what.filter(|_| self.now >= self.stranger_at) {
            self.stranger_at = self.now.after(STRANGERS);
            log::warn!("a connection on the log network was refused: {what}");
            monitor::event("stranger", "reason", &what);
        }
    }

    /// Says that this machine has halted, once that is so and the twin knows.
    pub(super) fn report_end(&mut self, driver: &Driver<Guest>) {
        let speaks = driver.node().role() != Role::Halted || self.link.as_ref().is_some_and(Link::has_last_words);
        if !speaks && let Some(reason) = self.ending.take() {
            log::info!("halted");
            monitor::halt_event(&reason);
            self.report(driver);
        }
    }

    /// The part of this machine has ended: for an error it may be reset.
    pub(super) fn halts_for(&mut self, reason: &HaltReason) {
        let in_order = matches!(reason, HaltReason::PoweredOff | HaltReason::Stopped);
        self.starts_anew = self.config.resets && !in_order;
    }

    /// Starts this machine anew, if it has halted for an error, it is time to, and the syslog server was told.
    pub(super) fn reset_if_due(&mut self) {
        if self.starts_anew && self.ending.is_none() && reset::due_in() == Some(0) {
            let unsent = self.service.as_mut().is_some_and(Service::has_unsent_events);
            if !self.farewell.is_over(self.now, unsent) {
                return;
            }
            log::warn!("this machine resets itself (on-halt=reset)");
            serial::MONITOR.flush();
            reset::now();
        }
    }

    /// Says what this machine waits for until it has a guest, when that is something else.
    pub(super) fn report_waiting(&mut self, driver: &Driver<Guest>) {
        let waits_for = driver.node().waits_for(self.now);
        if core::mem::replace(&mut self.waits_for, waits_for) == waits_for {
            return;
        }
        let Some(waits_for) = waits_for else { return };
        log::info!("waiting for {waits_for}");
        if waits_for == WaitsFor::Twin && self.config.alone_after.is_none() {
            log::warn!(
                "should the other machine be dead for good, start this one with cold-start=alone-after:60s, or with \
                 role=primary and a first-term above every term that the arbiter has given"
            );
        }
        monitor::event("waits", "for", &waits_for);
    }

    /// Lets copies for the recorder move. Without one they are not even made.
    pub(super) fn poll_recorder(&mut self, driver: &mut Driver<Guest>) {
        let (Some(recorder), Some(link)) = (&mut self.recorder, &mut self.link) else { return };
        let (now, copies) = (self.now, driver.node_mut().copies());
        if let Some(why) = link.with_stack(|stack| recorder.poll(now, copies, stack)) {
            log::warn!("the recorder is lost, and the recording of this session with it: {why}");
            monitor::event("recording-lost", "reason", &why);
        }
    }

    /// Lets the arbiter's ways move, and hands an answer to the node.
    pub(super) fn poll_arbiter(&mut self, driver: &mut Driver<Guest>) {
        let (Some(arbiter), Some(link)) = (&mut self.arbiter, &mut self.link) else { return };
        let may_look = driver.node().may_look_at_arbiter();
        arbiter.agree_on(driver.node().agreed_arbiter());
        arbiter.want_newest(driver.node().wants_newest_term());
        let answer = arbiter.poll(self.now, may_look, link);
        for news in arbiter.take_news() {
            if news.trouble.is_some() {
                log::warn!("{news}");
                monitor::event("arbiter-trouble", "what", &news);
            } else {
                log::info!("{news}");
                monitor::event("arbiter-well", "what", &news);
            }
        }
        if let Some(seen) = arbiter.take_seen() {
            let node = driver.node_mut();
            if let Some(arbiter) = seen.arbiter {
                node.arbiter_seen(arbiter);
            }
            if let Some(newest) = seen.newest {
                node.terms_seen(self.now, newest);
            }
        }
        let Some((term, answer)) = answer else { return };
        let verdict = match answer {
            Answer::Granted => {
                log::info!("term {} is ours", term.0);
                monitor::event("term-granted", "term", &term.0);
                Verdict::Granted
            }
            Answer::Taken { by } => {
                log::error!("term {} is taken by {by}", term.0);
                if driver.node().role() == Role::Starting && self.config.role != StartRole::Auto {
                    log::error!("{ADVICE}");
                }
                monitor::event("term-taken", "by", &by);
                Verdict::Taken
            }
        };
        driver.node_mut().arbiter_answered(self.now, term, verdict);
    }
}

impl Clock for Machine {
    fn now(&mut self) -> Time {
        self.now = self.clock.now();
        self.now
    }

    fn unix_time(&mut self) -> u64 {
        clock::unix_time()
    }
}

impl Outlet for Machine {
    fn transmit(&mut self, frame: &[u8]) {
        if let Some(client) = &mut self.client {
            client.transmit(frame, self.now);
        }
    }

    fn console(&mut self, bytes: &[u8]) {
        self.figures.console.take(bytes);
    }

    fn close(&mut self) {
        self.set_mode(GateMode::Closed);
    }

    fn retain(&mut self) {
        self.set_mode(GateMode::Retained);
    }

    fn hold(&mut self) {
        self.set_mode(GateMode::Held);
    }

    fn open(&mut self) {
        if let Some(client) = &mut self.client {
            client.open(self.now);
        }
    }

    fn announce(&mut self) {
        if let Some(client) = &mut self.client {
            client.announce();
        }
    }

    fn sent(&self) -> Option<Seq> {
        self.gate().and_then(Gate::sent).map(Seq)
    }

    fn is_open(&self) -> bool {
        self.gate().is_some_and(|gate| gate.mode() == GateMode::Open)
    }

    fn is_full(&self) -> bool {
        self.gate().is_some_and(Gate::is_full)
    }

    fn has_ready(&self) -> bool {
        self.gate().is_some_and(|gate| gate.ready() > 0)
    }

    fn unsealed(&self) -> usize {
        self.gate().map_or(0, Gate::unsealed)
    }

    fn guest_at(&mut self, position: Position) {
        if let Some(client) = &mut self.client {
            client.nic().guest_at(position.0);
        }
    }

    fn unsealed_since(&self) -> Option<Position> {
        self.gate().and_then(Gate::unsealed_since).map(Position)
    }

    fn seal(&mut self, entry: Seq) {
        if let Some(client) = &mut self.client {
            client.nic().seal(Mark::Seq(entry.0));
        }
    }

    fn seal_at(&mut self, position: Position) {
        if let Some(client) = &mut self.client {
            client.nic().seal(Mark::Position(position.0));
        }
    }

    fn acked(&mut self, entry: Seq) {
        if let Some(client) = &mut self.client {
            client.nic().acked(entry.0);
        }
    }

    fn released(&mut self, position: Position) {
        if let Some(client) = &mut self.client {
            client.nic().released(position.0);
        }
    }

    fn release(&mut self) {
        let Some(client) = &mut self.client else { return };
        if !self.cut.is_armed() {
            return client.release(self.now);
        }
        while client.gate().ready() > 0 {
            self.cut.boundary(&"before a frame leaves");
            if !client.release_next(self.now) {
                break;
            }
            self.cut.boundary(&"after a frame left");
        }
    }

    fn has_input(&self) -> bool {
        self.client.as_ref().is_some_and(Client::has_input)
    }

    fn next_input(&mut self) -> Option<Vec<u8>> {
        self.client.as_mut()?.next_input()
    }

    fn recycle(&mut self, frame: Vec<u8>) {
        if let Some(client) = &mut self.client {
            client.recycle(frame);
        }
    }

    fn put_back(&mut self, frame: Vec<u8>) {
        if let Some(client) = &mut self.client {
            client.put_back(frame);
        }
    }

    fn forget_input(&mut self) {
        if let Some(client) = &mut self.client {
            client.forget_input();
        }
    }
}

impl LogLink for Machine {
    fn send_datagram(&mut self, datagram: &[u8]) {
        if let Some(link) = &mut self.link {
            link.send_datagram(datagram);
        }
    }

    fn send(&mut self, bytes: &[u8]) -> usize {
        self.link.as_mut().map_or(0, |link| link.send(bytes))
    }

    fn flush(&mut self) {
        if let Some(link) = &mut self.link {
            link.push(self.now);
        }
    }

    fn hang_up(&mut self, rest: &[u8]) -> usize {
        self.link.as_mut().map_or(0, |link| link.finish(self.now, rest))
    }
}

impl pollux_driver::Disk for Machine {
    fn begin_on_disk(&mut self, request: &DiskRequest, data: &[u8]) {
        self.disk.begin(request, data, self.now);
    }

    fn poll_disk(&mut self, read: &mut Vec<u8>) -> Option<DiskEnd> {
        self.disk.poll(read, self.now)
    }

    fn disk_ends_at(&self) -> Option<Time> {
        self.disk.ends_at()
    }

    fn forget_disk(&mut self) {
        self.disk.forget();
    }

    fn drive_bytes(&self) -> u64 {
        self.disk.drive().map_or(0, Drive::bytes)
    }

    fn drive_reigns(&mut self, term: Term, creates: bool) -> Result<(), String> {
        let (now, generation) = (self.now, self.random.number());
        let Some(drive) = self.disk.drive_mut() else { return Ok(()) };
        drive.reign(term, creates, generation, now)
    }

    fn reign_state(&self) -> CopyState {
        self.disk.drive().map_or(CopyState::Done, Drive::reign_state)
    }

    fn drive_shared(&mut self) {
        if let Some(drive) = self.disk.drive_mut() {
            drive.share();
        }
    }

    fn drive_label(&self) -> Vec<u8> {
        self.disk.drive().map_or_else(Vec::new, |drive| drive.label().encode())
    }

    fn fetch(&mut self, start: u64, len: u64) {
        let now = self.now;
        if let Some(drive) = self.disk.drive_mut() {
            drive.fetch(start, len, now);
        }
    }

    fn fetched(&mut self) -> Option<(u64, Option<Vec<u8>>)> {
        self.disk.drive_mut()?.fetched()
    }

    fn forget_fetched(&mut self) {
        if let Some(drive) = self.disk.drive_mut() {
            drive.forget_fetched();
        }
    }

    fn begin_copy(&mut self, label: &[u8]) -> Result<(), String> {
        let now = self.now;
        let Some(drive) = self.disk.drive_mut() else { return Ok(()) };
        log::info!("receiving the disk");
        drive.begin_copy(label, now)
    }

    fn store(&mut self, start: u64, len: u64, data: &[u8]) {
        let now = self.now;
        if let Some(drive) = self.disk.drive_mut() {
            drive.store(start, len, data, now);
        }
    }

    fn end_copy(&mut self) {
        let now = self.now;
        if let Some(drive) = self.disk.drive_mut() {
            drive.end_copy(now);
        }
    }

    fn copy_state(&self) -> CopyState {
        self.disk.drive().map_or(CopyState::Done, Drive::copy_state)
    }
}

impl ArbiterLine for Machine {
    fn ask(&mut self, term: Term) {
        let (Some(arbiter), Some(link)) = (&mut self.arbiter, &mut self.link) else { return };
        log::info!("asking the arbiter for term {}", term.0);
        monitor::event("asks-arbiter", "term", &term.0);
        arbiter.ask(self.now, term, link);
    }

    fn withdraw(&mut self) {
        if let (Some(arbiter), Some(link)) = (&mut self.arbiter, &mut self.link) {
            arbiter.cancel(link);
        }
    }
}
