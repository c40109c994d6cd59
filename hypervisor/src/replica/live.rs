//! The machine that clients talk to: lets inputs into the guest at exact stops, logs them, and has output released.

use alloc::format;

use pollux_ft::{AppendError, Control, EntryRef, Kind, Position, Seq, Time};

use super::digest::{self, Digest, NextDigest};
use super::outlet::Live;
use super::{Replica, monitor};
use crate::guest::Stop;
use crate::platform::PowerEvent;

/// Ticks that the guest runs at most before the loop looks around; host interrupts end a run earlier.
const SLICE: u64 = 1 << 28;
/// Ticks that output may wait for more output before an `Output` entry is made for it.
const OUTPUT_DELAY: u64 = 20_000;
/// Frames that make an `Output` entry due at once.
const OUTPUT_FRAMES: usize = 16;
/// Wall time after which a guest that has gone on without any entry gets a `Horizon`, in microseconds.
const HORIZON_US: u64 = 50_000;

/// The log took no more: the guest waits.
struct LogFull;

impl Replica {
    /// One turn: apply what waits, or run the guest, or sleep.
    pub(super) fn live_step(&mut self) {
        // Before anything else: a state that is sent must not leave out what the guest has just asked for.
        if let Some(event) = self.power_due
            && self.power(event).is_err()
        {
            return self.sleep(Some(self.now_us + 1000));
        }
        if self.ended().is_some() {
            return;
        }
        if !self.transfer_stops_guest() {
            self.transfer_step();
        }
        // The last round may just have ended.
        if self.transfer_stops_guest() && self.guest.is_settled() {
            self.transfer_step();
            if self.transfer.is_some() {
                // The client card says nothing when it has room again.
                let until_us = self.output_waits().then_some(self.now_us + 1000);
                self.sleep(until_us);
            }
            return;
        }
        if let Some(until_us) = self.held_back_until() {
            self.figures.held_back += 1;
            // The twin may be behind only because it was told nothing.
            self.mark_progress();
            return self.sleep(Some(until_us));
        }
        if self.guest.is_settled() && self.apply_inputs().is_err() {
            return self.sleep(Some(self.now_us + 1000));
        }
        self.mark_progress();
        if self.switch_due && self.guest.is_settled() && self.typed.is_empty() {
            return self.switch_over();
        }
        if self.guest.is_halted() && !self.guest.can_wake() {
            return self.sleep_until_deadline();
        }
        let target = self.target();
        if target == self.guest.position() {
            return;
        }
        let mut live = Live { client: self.client.as_mut(), console: &mut self.figures.console, now_us: self.now_us };
        let stop = self.guest.run(target, &mut live);
        self.after_run(stop);
    }

    /// Until when the guest must wait for the twin, in wall time: buffers are full, or the twin is behind.
    fn held_back_until(&mut self) -> Option<u64> {
        if self.client.as_ref().is_some_and(|client| client.gate().is_full()) {
            return Some(self.now_us + 1000);
        }
        let lag_ns = self.lag_ns();
        self.throttle.pause(Time(self.now_us), lag_ns).map(|until| until.0)
    }

    /// How far the twin is behind, in nanoseconds of guest time; 0 as long as nobody follows.
    fn lag_ns(&self) -> u64 {
        let Some(peer) = self.peer.as_ref().filter(|_| self.is_protected()) else { return 0 };
        let lag = peer.node.lag(Time(self.now_us));
        u64::try_from((u128::from(lag.ticks) * u128::from(self.guest.platform.clock().rate())) >> 32)
            .unwrap_or(u64::MAX)
    }

    /// How many ticks the guest may run until the twin's lag reaches its bound.
    fn lag_room(&self) -> u64 {
        if !self.is_protected() {
            return u64::MAX;
        }
        let ns = u128::from(self.throttle.room_ns(self.lag_ns()));
        u64::try_from((ns << 32) / u128::from(self.guest.platform.clock().rate().max(1))).unwrap_or(u64::MAX)
    }

    /// Where to stop next: right ahead when something waits, else at the next thing that is due.
    fn target(&self) -> u64 {
        let position = self.guest.position();
        if !self.guest.is_settled() && (self.wants_stop() || self.transfer_stops_guest()) {
            return self.guest.next_stop();
        }
        let seal = self.unsealed_since.map_or(u64::MAX, |since| since + OUTPUT_DELAY);
        let digest = if self.is_protected() { self.next_digest.position } else { u64::MAX };
        let slice = SLICE.min(self.lag_room().max(1));
        [position + slice, seal, digest].into_iter().filter(|&target| target > position).min().unwrap_or(position + 1)
    }

    /// Whether something waits for an exact stop of a guest that runs.
    fn wants_stop(&self) -> bool {
        self.input_waits() || self.steering.is_due(self.now_us) || self.digest_is_due() || self.switch_due
    }

    /// Whether something from outside waits for an exact stop.
    fn input_waits(&self) -> bool {
        self.client.as_ref().is_some_and(super::client::Client::has_ingress) || !self.typed.is_empty()
    }

    /// Logs an entry at the guest's position. `None` when there is nobody to log for.
    fn log(&mut self, entry: EntryRef<'_>) -> Result<Option<Seq>, LogFull> {
        let (now, position, kind) = (Time(self.now_us), self.guest.position(), entry.kind());
        let Some(peer) = &mut self.peer else { return Ok(None) };
        match peer.node.append(now, Position(position), entry) {
            Ok(seq) => {
                (self.logged, self.logged_us) = (position, self.now_us);
                self.cut.boundary(&kind.name());
                Ok(Some(seq))
            }
            Err(AppendError::Full) => Err(LogFull),
            Err(AppendError::NotLogging) => Ok(None),
            Err(AppendError::BadData) => panic!("an entry of impossible length at position {position}"),
        }
    }

    /// Applies everything that waits at this exact stop, each input logged before it is applied.
    fn apply_inputs(&mut self) -> Result<(), LogFull> {
        self.steer()?;
        while let Some(frame) = self.client.as_mut().and_then(super::client::Client::next_frame) {
            let logged = self.log(EntryRef::PacketIn(&frame));
            if logged.is_ok() {
                self.guest.packet_in(&frame);
                self.figures.packets_in += 1;
            }
            let Some(client) = &mut self.client else { break };
            match logged {
                Ok(_) => client.recycle(frame),
                Err(full) => {
                    client.put_back(frame);
                    return Err(full);
                }
            }
        }
        if !self.typed.is_empty() {
            let typed = core::mem::take(&mut self.typed);
            let part = &typed[..typed.len().min(64)];
            let logged = self.log(EntryRef::ConsoleIn(part));
            self.typed = typed[if logged.is_ok() { part.len() } else { 0 }..].to_vec();
            logged?;
            self.guest.console_in(part);
        }
        self.log_digest()
    }

    /// Puts guest time on course when it is time to: regularly while the guest runs, and when it is about to wake.
    fn steer(&mut self) -> Result<(), LogFull> {
        let now = self.guest.now();
        let asleep = self.guest.is_halted();
        let due = if asleep {
            let deadline = self.guest.platform.next_deadline();
            let wakes = deadline.is_some_and(|deadline| self.steering.wall_of(deadline) <= self.now_us);
            wakes || (self.input_waits() && self.steering.is_due_at_wake(self.now_us, now))
        } else {
            self.steering.is_due(self.now_us)
        };
        if !due {
            return Ok(());
        }
        let steer = self.steering.steer(self.now_us, self.guest.position(), now, asleep);
        self.log(EntryRef::Clock { base_ns: steer.base.0, rate: steer.rate })?;
        self.guest.steer_clock(steer.base, steer.rate).unwrap_or_else(|error| panic!("steering: {error}"));
        Ok(())
    }

    /// Whether the guest has run far or long enough for the next digest.
    fn digest_is_due(&self) -> bool {
        let (position, due) = (self.guest.position(), &self.next_digest);
        self.is_protected() && (position >= due.position || (position > due.after && self.now_us >= due.at_us))
    }

    fn log_digest(&mut self) -> Result<(), LogFull> {
        if !self.digest_is_due() {
            return Ok(());
        }
        let digest = Digest::of(&mut self.guest, self.next_digest.slice);
        self.log(EntryRef::Digest { machine: digest.machine, slice: digest.slice, memory: digest.memory })?;
        self.figures.digests += 1;
        let position = self.guest.position();
        let slice = digest.next_slice(&self.guest);
        let all_compared = self.next_digest.all_compared || slice == 0;
        let interval_us = if all_compared { digest::INTERVAL_US } else { digest::FIRST_INTERVAL_US };
        self.next_digest = NextDigest {
            slice,
            all_compared,
            after: position,
            position: position + digest::INTERVAL,
            at_us: self.now_us + interval_us,
        };
        Ok(())
    }

    /// Makes the marks that the backup and the gate wait for: `Output` for frames that are held, `Horizon` for a guest
    /// that went on without entries.
    fn mark_progress(&mut self) {
        let position = self.guest.position();
        if let Some(peer) = &mut self.peer {
            peer.node.progress(Position(position));
        }
        let unsealed = self.client.as_ref().map_or(0, |client| client.gate().unsealed());
        if unsealed == 0 {
            self.unsealed_since = None;
        } else {
            let since = *self.unsealed_since.get_or_insert(position);
            let waited = self.guest.is_halted() || unsealed >= OUTPUT_FRAMES || position - since >= OUTPUT_DELAY;
            if waited {
                self.seal_output();
            }
        }
        if self.needs_horizon() && self.now_us.saturating_sub(self.logged_us) >= HORIZON_US {
            // A full log gets its horizon later.
            let _ = self.log(EntryRef::Horizon);
        }
    }

    /// Whether the guest has gone on since the newest entry and somebody follows.
    fn needs_horizon(&self) -> bool {
        self.guest.position() > self.logged && self.peer.as_ref().is_some_and(|peer| peer.node.is_logging())
    }

    /// Seals what the guest has put out, however little.
    fn seal_rest(&mut self) {
        if self.client.as_ref().is_some_and(|client| client.gate().unsealed() > 0) {
            self.seal_output();
        }
    }

    fn seal_output(&mut self) {
        // A full log: the frames stay held, and the next turn tries again.
        let Ok(seq) = self.log(EntryRef::Output) else { return };
        self.unsealed_since = None;
        let Some(client) = &mut self.client else { return };
        match seq {
            Some(seq) => {
                client.nic().seal(seq.0);
                if let Some(peer) = &mut self.peer {
                    peer.node.flush(Time(self.now_us));
                    peer.push(self.now_us);
                }
                self.cut.boundary(&"after the log was sent");
            }
            // Nobody to wait for: the protocol opens the gate by an action of its own.
            None => self.release(),
        }
    }

    fn sleep_until_deadline(&mut self) {
        self.steering.note_sleep();
        let deadline = self.guest.platform.next_deadline().map(|deadline| self.steering.wall_of(deadline));
        let horizon = self.needs_horizon().then_some(self.logged_us + HORIZON_US);
        self.sleep([deadline, horizon].into_iter().flatten().min());
    }

    /// Hands the guest over, here where it stands. What it has put out belongs to this side of the line.
    fn switch_over(&mut self) {
        self.seal_rest();
        let (now, position) = (Time(self.now_us), Position(self.guest.position()));
        let Some(peer) = &mut self.peer else { return };
        match peer.node.switch_over(now, position) {
            Ok(_) => {
                log::info!("handing the guest over at position {}", position.0);
                self.switch_due = false;
                peer.node.flush(now);
                self.push_peer();
            }
            Err(AppendError::Full) => self.sleep(Some(self.now_us + 1000)),
            Err(_) => {
                self.switch_due = false;
                monitor::event("refused", "reason", &"the backup was lost before the guest was handed over");
            }
        }
    }

    fn after_run(&mut self, stop: Stop) {
        match stop {
            Stop::Target | Stop::Host | Stop::Output => {}
            Stop::Halted => self.steering.note_sleep(),
            Stop::Power(PowerEvent::Off) => self.power_due = Some(PowerEvent::Off),
            Stop::Power(PowerEvent::Reset) | Stop::Crashed => {
                match self.guest.crash() {
                    Some(crash) => log::warn!("the guest crashed at position {}: {crash}", self.guest.position()),
                    None => log::info!("the guest asked for a reset at position {}", self.guest.position()),
                }
                self.power_due = Some(PowerEvent::Reset);
            }
        }
    }

    fn log_power_off(&mut self) -> Result<(), LogFull> {
        let (now, position) = (Time(self.now_us), self.guest.position());
        let node = self.peer.as_mut().map(|peer| &mut peer.node);
        if self.ending.power_off(node, now, position).map_err(|_| LogFull)? {
            self.cut.boundary(&Kind::Control.name());
        }
        Ok(())
    }

    /// Turns the guest off or starts it anew, on both machines at this position.
    fn power(&mut self, event: PowerEvent) -> Result<(), LogFull> {
        self.mark_progress();
        // Afterwards nothing is sealed any more: the machine halts, or the guest is another one.
        self.seal_rest();
        match event {
            PowerEvent::Off => self.log_power_off()?,
            PowerEvent::Reset => drop(self.log(EntryRef::Control(Control::Reset))?),
        }
        self.power_due = None;
        if let Some(peer) = &mut self.peer {
            peer.node.flush(Time(self.now_us));
        }
        self.push_peer();
        match event {
            PowerEvent::Off => {
                self.report_end();
                self.do_actions();
            }
            PowerEvent::Reset => {
                self.figures.resets += 1;
                if let Err(error) = self.guest.restart() {
                    self.end(format!("the guest cannot be started again: {error}"));
                }
            }
        }
        Ok(())
    }
}
