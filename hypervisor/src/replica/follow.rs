//! The backup: replays the log, and takes over when it is told to.

use alloc::format;
use alloc::string::String;
use core::fmt;

use pollux_ft::{Control, Entry, NotLive, Position, Time};

use super::digest::Digest;
use super::json::Json;
use super::outlet::Shadow;
use super::steering::Steering;
use super::{Replica, monitor};
use crate::guest::{Guest, Stop};
use crate::platform::{GuestTime, PowerEvent};

/// Ticks that a backup runs at most before it looks around.
const SLICE: u64 = 1 << 24;
/// Entries that are applied in one turn at most: heartbeats must not wait for long.
const AT_ONCE: usize = 64;
/// Latest guest time that a log may name, in nanoseconds: 146 years.
const MAX_GUEST_NS: u64 = 1 << 62;

impl Replica {
    /// Applies the entries that are due or runs towards the next one; with nothing to do, sleeps or goes live.
    pub(super) fn follow_step(&mut self) {
        let position = self.guest.position();
        match self.apply_entries(position) {
            Ok(0) => self.follow_log(position),
            Ok(_) => {}
            Err(details) => self.diverge(&details),
        }
    }

    fn follow_log(&mut self, position: u64) {
        let Some(peer) = &mut self.peer else { return };
        let node = &mut peer.node;
        let next = node.next_record().map(|record| record.position.0);
        let limit = node.run_limit().map(|limit| limit.0);
        let Some(target) = [next, limit].into_iter().flatten().min().filter(|&target| target > position) else {
            return self.log_is_empty(position);
        };
        let mut shadow = Shadow { client: self.client.as_mut(), now_us: self.now_us };
        let stop = self.guest.run(target.min(position + SLICE), &mut shadow);
        self.retain();
        let position = self.guest.position();
        if let Some(peer) = &mut self.peer {
            peer.node.progress(Position(position));
        }
        match stop {
            Stop::Target | Stop::Host | Stop::Output => {}
            Stop::Halted => self.diverge(&format!("the guest sleeps at {position}, the log says it ran to {target}")),
            // The primary says the same in the next entry, at this position; if it lived to say it.
            Stop::Power(event) if position == target => self.power_due = Some(event),
            Stop::Crashed if position == target => self.power_due = Some(PowerEvent::Reset),
            Stop::Power(_) | Stop::Crashed => {
                self.diverge(&format!("the guest ended at {position}, the log says it ran to {target}"));
            }
        }
    }

    /// Frames that the guest just made are kept until the primary is known to have sent them.
    fn retain(&mut self) {
        let released = self.peer.as_ref().map_or(0, |peer| peer.node.released().position.0);
        let Some(client) = &mut self.client else { return };
        if client.gate().unsealed() > 0 {
            client.nic().seal(self.guest.position());
        }
        client.nic().released(released);
    }

    /// Applies entries of this `position`; how many. The error says why this guest cannot be the primary's.
    fn apply_entries(&mut self, position: u64) -> Result<usize, String> {
        for applied in 0..AT_ONCE {
            let Some(peer) = &mut self.peer else { return Ok(applied) };
            let Some(record) = peer.node.next_record().filter(|record| record.position.0 == position) else {
                return Ok(applied);
            };
            let seq = record.seq.0;
            let done = apply(&record.entry, position, &mut self.guest);
            match done.map_err(|error| format!("entry {seq}: {error}"))? {
                Applied::Input => {}
                Applied::Digest => self.figures.digests += 1,
                Applied::Reset => self.power_due = None,
                Applied::SwitchOver => {
                    if let Some(takeover) = &mut self.takeover {
                        takeover.planned = true;
                    }
                }
            }
            peer.node.applied(Time(self.now_us), Position(position));
        }
        Ok(AT_ONCE)
    }

    fn log_is_empty(&mut self, position: u64) {
        match self.takeover {
            Some(takeover) if position >= takeover.last => self.go_live(position),
            _ => self.sleep(None),
        }
    }

    fn go_live(&mut self, position: u64) {
        let Some(mut takeover) = self.takeover.take() else { return };
        let Some(peer) = &mut self.peer else { return };
        let now_us = self.clock.now_us();
        let drained_us = *takeover.drained_us.get_or_insert(now_us);
        let term = match peer.node.went_live(Time(now_us), Position(position)) {
            Ok(term) => term,
            Err(NotLive::NotGranted) => {
                self.takeover = Some(takeover);
                self.do_actions();
                return self.sleep(None);
            }
            Err(error) => return log::warn!("not going live: {error}"),
        };
        // Guest time goes on from where the log ended.
        let rate = self.guest.platform.clock().rate();
        self.steering = Steering::start(now_us, position, self.guest.now(), rate);
        self.now_us = now_us;
        (self.logged, self.logged_us) = (position, now_us);
        self.open_gate();
        let times = TakeoverTimes {
            detect: takeover.suspected_us.saturating_sub(takeover.heard_us),
            drain: drained_us - takeover.suspected_us,
            arbiter: now_us - drained_us,
            announce: self.clock.now_us() - now_us,
        };
        self.figures.takeovers += 1;
        log::warn!("live in term {} at position {position}: {times}", term.0);
        let mut json = Json::line("event");
        json.text("event", "takeover").number("term", term.0).flag("planned", takeover.planned);
        times.report(&mut json);
        monitor::send(json);
        self.report();
    }
}

/// What an entry was.
enum Applied {
    Input,
    Digest,
    Reset,
    SwitchOver,
}

/// Applies an entry to the guest, which stands at its `position`. The error says why it does not fit this guest.
fn apply(entry: &Entry, position: u64, guest: &mut Guest) -> Result<Applied, String> {
    match entry {
        Entry::Clock { base_ns, .. } if *base_ns > MAX_GUEST_NS => {
            return Err(format!("guest time {base_ns} ns is absurd"));
        }
        Entry::Clock { base_ns, rate } => {
            guest.steer_clock(GuestTime(*base_ns), *rate).map_err(|error| format!("{error}"))?;
        }
        Entry::PacketIn(frame) => guest.packet_in(frame),
        Entry::ConsoleIn(bytes) => guest.console_in(bytes),
        Entry::Horizon | Entry::Output => {}
        Entry::Digest { machine, slice, memory } => {
            let logged = Digest { machine: *machine, slice: *slice, memory: *memory };
            let own = Digest::of(guest, *slice);
            if let Some(what) = logged.difference(&own) {
                return Err(format!("{what} differs at position {position}: {own:x?}, logged {logged:x?}"));
            }
            return Ok(Applied::Digest);
        }
        Entry::Control(Control::PowerOff) => log::info!("the guest powered off"),
        Entry::Control(Control::Reset) => {
            guest.restart().map_err(|error| format!("the guest cannot be started again: {error}"))?;
            return Ok(Applied::Reset);
        }
        Entry::Control(Control::SwitchOver) => {
            log::info!("the primary hands the guest over");
            return Ok(Applied::SwitchOver);
        }
    }
    Ok(Applied::Input)
}

/// What a takeover took, in microseconds.
struct TakeoverTimes {
    /// From the last sign of life to the suspicion.
    detect: u64,
    /// To execute the rest of the log.
    drain: u64,
    /// To win the term.
    arbiter: u64,
    /// To open the gate and tell the switch.
    announce: u64,
}

impl TakeoverTimes {
    fn total(&self) -> u64 {
        self.detect + self.drain + self.arbiter + self.announce
    }

    fn report(&self, json: &mut Json) {
        json.millis("detect_ms", self.detect)
            .millis("drain_ms", self.drain)
            .millis("arbiter_ms", self.arbiter)
            .millis("announce_ms", self.announce)
            .millis("total_ms", self.total());
    }
}

impl fmt::Display for TakeoverTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: u64| us / 1000;
        write!(f, "silent for {} ms, log drained in {} ms, ", ms(self.detect), ms(self.drain))?;
        write!(f, "term won in {} ms, announced in {} ms", ms(self.arbiter), ms(self.announce))
    }
}
