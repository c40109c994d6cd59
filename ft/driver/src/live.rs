//! The machine that clients talk to: lets inputs into the guest at exact stops, logs them, and has output released.

use pollux_ft::{AppendError, Control, EntryRef, Mutation, Position, Seq, Time, disk};

use crate::digest::hash_slice;
use crate::driver::{Driver, Next};
use crate::guest::{Guest, Output, PowerEvent, Stop};
use crate::host::{Boundary, Event, Host, Outlet};
use crate::steering::Standing;

/// Bytes of console input in one entry at most.
const TYPED_AT_ONCE: usize = 64;

/// The log took no more: the guest waits.
pub(crate) struct LogFull;

/// The outputs of a guest that runs for clients: frames go to the gate, which decides when they leave.
struct Live<'a, H>(&'a mut H);

impl<H: Outlet> Output for Live<'_, H> {
    fn frame(&mut self, frame: &[u8]) {
        self.0.transmit(frame);
    }

    fn console(&mut self, bytes: &[u8]) {
        self.0.console(bytes);
    }
}

impl<G: Guest> Driver<G> {
    /// Applies what waits, or runs the guest, or lets it sleep.
    pub(crate) fn live_step(&mut self, host: &mut impl Host<G>) -> Next {
        self.poll_disk(host);
        self.yield_to_better_disk(host);
        // Before anything else: a state that is sent must not leave out what the guest has just asked for.
        if let Some(event) = self.power_due {
            if event == PowerEvent::Reset && !self.guest.prepare_reset() {
                self.mark_progress(host);
                return Next::Again;
            }
            return if self.power(host, event).is_err() { self.retry() } else { Next::Again };
        }
        if !self.transfer_stops_guest() {
            self.transfer_step(host);
        }
        // The last round may just have ended.
        if self.transfer_stops_guest() && self.guest.is_settled() {
            self.transfer_step(host);
            // Else what has ended is due for ever, and nobody sleeps.
            self.poll_disk(host);
            return match self.transfer {
                // The client card says nothing when it has room again.
                Some(_) if host.has_ready() => self.retry(),
                Some(_) => Next::Wait(self.disk_ends_at(host)),
                None => Next::Again,
            };
        }
        if let Some(until) = self.held_back_until(host) {
            host.observe(Event::HeldBack, self);
            // The twin may be behind only because it was told nothing.
            self.mark_progress(host);
            return Next::Wait(Some(until));
        }
        if self.guest.is_settled() && self.apply_inputs(host).is_err() {
            return self.retry();
        }
        self.mark_progress(host);
        if self.switch_due && self.guest.is_settled() && self.typed.is_empty() {
            return self.switch_over(host);
        }
        if self.guest.is_idle() {
            return self.sleep(host);
        }
        if let Some(until) = self.steering.ahead_until(self.now, self.guest.time()) {
            self.steering.note_pause();
            return Next::Wait(Some(until));
        }
        self.run_guest(host)
    }

    fn run_guest(&mut self, host: &mut impl Host<G>) -> Next {
        let stop = self.guest.run(self.target(host), &mut Live(host));
        match stop {
            Stop::Target | Stop::Host | Stop::Output => {}
            Stop::Halted => self.steering.note_sleep(),
            Stop::Power(event) => self.power_due = Some(event),
            Stop::Crashed => self.power_due = Some(PowerEvent::Reset),
        }
        host.observe(Event::Ran, self);
        Next::Again
    }

    /// Until when the guest must wait for the twin: buffers are full, or the twin is behind.
    fn held_back_until(&mut self, host: &impl Host<G>) -> Option<Time> {
        let until = if host.is_full() {
            Some(self.now.after(self.tuning.retry))
        } else {
            let lag = self.lag_ns();
            self.throttle.pause(self.now, lag)
        };
        if until.is_some() {
            self.steering.note_pause();
        }
        until
    }

    /// How far the twin is behind, in nanoseconds; 0 as long as nobody follows.
    fn lag_ns(&self) -> u64 {
        if !self.is_protected() {
            return 0;
        }
        let ns = (u128::from(self.node.lag(self.now).ticks) * u128::from(self.steering.full_speed())) >> 32;
        u64::try_from(ns).unwrap_or(u64::MAX)
    }

    /// How many ticks the guest may run until the twin's lag reaches its bound.
    fn lag_room(&self) -> u64 {
        if !self.is_protected() {
            return u64::MAX;
        }
        let ns = u128::from(self.throttle.room_ns(self.lag_ns()));
        u64::try_from((ns << 32) / u128::from(self.steering.full_speed().max(1))).unwrap_or(u64::MAX)
    }

    /// Where to stop next: right ahead when something waits, else at the next thing that is due.
    fn target(&self, host: &impl Host<G>) -> Position {
        let position = self.guest.position();
        if !self.guest.is_settled() && (self.wants_stop(host) || self.transfer_stops_guest()) {
            return self.guest.next_stop();
        }
        let slice = position.after(self.tuning.slice.min(self.lag_room().max(1)));
        let digest = self.is_protected().then_some(self.next_digest.position);
        let step = self.steering.step_at(self.now, self.guest.time());
        let output = host.unsealed_since().map(|since| self.marks.output_at(since));
        let due = [Some(slice), output, digest, step].into_iter().flatten();
        due.filter(|&target| target > position).min().unwrap_or(position.after(1))
    }

    /// Whether something waits for an exact stop of a guest that runs.
    fn wants_stop(&self, host: &impl Host<G>) -> bool {
        self.input_waits(host) || self.clock_is_due() || self.digest_is_due() || self.switch_due
    }

    /// Whether the time of a guest that runs is to be put on course.
    fn clock_is_due(&self) -> bool {
        self.steering.is_due(self.now, self.guest.position(), self.guest.time())
    }

    /// Whether something from outside waits for an exact stop.
    fn input_waits(&self, host: &impl Host<G>) -> bool {
        host.has_input() || !self.typed.is_empty() || self.disk.is_due(self.tells_disk_errors())
    }

    /// Logs an entry at the guest's position. `None` when there is nobody to log for.
    fn log(&mut self, host: &mut impl Host<G>, entry: EntryRef<'_>) -> Result<Option<Seq>, LogFull> {
        let position = self.guest.position();
        match self.node.append(self.now, position, entry) {
            Ok(seq) => {
                self.marks.logged(self.now, position);
                host.observe(Event::Logged(seq), self);
                let _ = host.goes_on(Boundary::Logged(entry.kind()));
                Ok(Some(seq))
            }
            Err(AppendError::Full) => Err(LogFull),
            Err(AppendError::NotLogging) => Ok(None),
            Err(AppendError::BadData) => panic!("an entry of impossible length at position {}", position.0),
        }
    }

    /// Logs an input and, only then, lets the guest see it.
    fn input(&mut self, host: &mut impl Host<G>, entry: EntryRef<'_>) -> Result<(), LogFull> {
        let seq = self.log(host, entry)?;
        self.guest.apply(&entry).unwrap_or_else(|error| panic!("an input of ours does not fit the guest: {error}"));
        if !self.node.config().broken(Mutation::DiskDoneTwice) {
            self.disk.saw(&entry);
        }
        host.observe(Event::Applied(seq, entry), self);
        Ok(())
    }

    /// Applies everything that waits at this exact stop.
    fn apply_inputs(&mut self, host: &mut impl Host<G>) -> Result<(), LogFull> {
        self.steer(host)?;
        while let Some(frame) = host.next_input() {
            match self.input(host, EntryRef::PacketIn(&frame)) {
                Ok(()) => host.recycle(frame),
                Err(full) => {
                    host.put_back(frame);
                    return Err(full);
                }
            }
        }
        if !self.typed.is_empty() {
            let mut typed = core::mem::take(&mut self.typed);
            let part = typed.len().min(TYPED_AT_ONCE);
            let done = self.input(host, EntryRef::ConsoleIn(&typed[..part]));
            typed.drain(..if done.is_ok() { part } else { 0 });
            self.typed = typed;
            done?;
        }
        let ends = self.disk.due(self.tells_disk_errors(), self.node.config());
        if !ends.is_empty() {
            self.input(host, EntryRef::DiskDone(&disk::encode(&ends)))?;
        }
        self.log_digest(host)
    }

    /// Puts guest time on course when it is time to: regularly while the guest runs, and when it is about to wake.
    fn steer(&mut self, host: &mut impl Host<G>) -> Result<(), LogFull> {
        let guest = Standing {
            position: self.guest.position(),
            time: self.guest.time(),
            asleep: self.guest.is_halted(),
            deadline: self.guest.next_deadline(),
        };
        let due = if guest.asleep {
            let wakes = guest.deadline.is_some_and(|time| self.steering.wall_of(time) <= self.now);
            wakes || (self.input_waits(host) && self.steering.is_due_at_wake(self.now, guest.time))
        } else {
            self.clock_is_due()
        };
        if !due {
            return Ok(());
        }
        let steer = self.steering.steer(self.now, guest);
        self.input(host, EntryRef::Clock { base_ns: steer.base.0, rate: steer.rate })
    }

    /// Whether the guest has run far or long enough for the next digest.
    fn digest_is_due(&self) -> bool {
        self.is_protected() && self.next_digest.is_due(self.now, self.guest.position())
    }

    fn log_digest(&mut self, host: &mut impl Host<G>) -> Result<(), LogFull> {
        if !self.digest_is_due() {
            return Ok(());
        }
        let (slice, often) = (self.next_digest.slice, self.tuning.digests);
        let memory = hash_slice(self.guest.memory(), slice, often.slice);
        let machine = self.guest.hash();
        self.input(host, EntryRef::Digest { machine, slice, memory })?;
        let bytes = self.guest.memory().len() as u64;
        self.next_digest.made(self.now, self.guest.position(), bytes, often);
        Ok(())
    }

    /// Makes the marks that the backup and the gate wait for.
    fn mark_progress(&mut self, host: &mut impl Host<G>) {
        let position = self.guest.position();
        self.node.progress(position);
        host.guest_at(position);
        if let Some(since) = host.unsealed_since()
            && self.marks.output_due(position, host.unsealed(), since, self.guest.is_halted())
        {
            self.seal_output(host);
        }
        if self.horizon_at().is_some_and(|at| at <= self.now) {
            // A full log gets its horizon later.
            let _ = self.log(host, EntryRef::Horizon);
        }
        if self.marks.telling_due(position, self.steering.full_speed()) && self.node.flush(self.now) {
            self.marks.told(position);
        }
    }

    /// When a guest that somebody follows has gone on for long enough without an entry.
    fn horizon_at(&self) -> Option<Time> {
        self.marks.horizon_at(self.guest.position()).filter(|_| self.node.is_logging())
    }

    /// Seals what the guest has put out, however little.
    fn seal_rest(&mut self, host: &mut impl Host<G>) {
        if host.unsealed() > 0 {
            self.seal_output(host);
        }
    }

    fn seal_output(&mut self, host: &mut impl Host<G>) {
        // A full log: the frames stay held, and the next turn tries again.
        let Ok(seq) = self.log(host, EntryRef::Output) else { return };
        match seq {
            Some(seq) => {
                host.seal(seq);
                self.node.flush(self.now);
                self.push(host);
                let _ = host.goes_on(Boundary::Sent);
            }
            // Nobody to wait for: the protocol opens the gate by an action of its own.
            None => self.release(host),
        }
    }

    /// The guest sleeps until its next timer or the end of a disk request, or until its backup wants to hear how far it has come.
    fn sleep(&mut self, host: &mut impl Host<G>) -> Next {
        // What was taken from a ring by the end of others is not asked for yet.
        self.poll_disk(host);
        self.steering.note_sleep();
        let deadline = self.guest.next_deadline().map(|deadline| self.steering.wall_of(deadline));
        Next::Wait([deadline, self.horizon_at(), self.disk_ends_at(host)].into_iter().flatten().min())
    }

    /// Hands the guest over, here where it stands. What it has put out belongs to this side of the line.
    fn switch_over(&mut self, host: &mut impl Host<G>) -> Next {
        self.seal_rest(host);
        match self.node.switch_over(self.now, self.guest.position()) {
            Ok(seq) => {
                self.switch_due = false;
                host.observe(Event::HandsOver(seq), self);
                self.node.flush(self.now);
            }
            Err(AppendError::Full) => return self.retry(),
            Err(_) => {
                self.switch_due = false;
                host.observe(Event::HandOverFailed, self);
            }
        }
        Next::Again
    }

    /// Turns the guest off or starts it anew, on both machines at this position.
    fn power(&mut self, host: &mut impl Host<G>, event: PowerEvent) -> Result<(), LogFull> {
        self.mark_progress(host);
        // Afterwards nothing is sealed any more: the machine halts, or the guest is another one.
        self.seal_rest(host);
        let entry = EntryRef::Control(match event {
            PowerEvent::Off => Control::PowerOff,
            PowerEvent::Reset => Control::Reset,
        });
        let seq = self.log(host, entry)?;
        self.power_due = None;
        self.node.flush(self.now);
        let result = self.guest.apply(&entry);
        host.observe(Event::Applied(seq, entry), self);
        match (event, result) {
            // Its node outlives it until the twin knows; one without a twin ended with the entry.
            (PowerEvent::Off, _) => self.guest_ends(host, "the guest powered off"),
            (PowerEvent::Reset, Ok(())) => {}
            (PowerEvent::Reset, Err(error)) => self.end(host, &error),
        }
        Ok(())
    }
}
