//! The primary: inputs at exact stops, logged before they are applied; marks; the guest's run.

use super::transfer::Feeding;
use super::{Machine, RETRY, SLICE};
use crate::guest::{NANOSECOND, Stop};
use crate::world::Env;
use pollux_ft::{AppendError, Control, EntryRef, Position, Role, Seq};

/// Ticks that output may wait for more output, and frames that make its entry due at once.
const OUTPUT_DELAY: u64 = 200;
const OUTPUT_FRAMES: usize = 4;
/// Microseconds after which a guest that went on without entries gets a horizon.
const HORIZON: u64 = 20_000;
/// Microseconds between two steerings of the clock.
const STEER: u64 = 50_000;
/// Ticks, or microseconds if the guest ran at all, between two digests.
const DIGEST: u64 = 25_000;
const DIGEST_TIME: u64 = 50_000;

/// When the next digest is due: at a position, or at a time if the guest went on meanwhile.
#[derive(Debug, Default)]
pub(super) struct NextDigest {
    position: u64,
    after: u64,
    at: u64,
    slice: u32,
}

/// The log took no more: the guest waits.
struct Full;

impl Machine {
    /// Guest time goes on from where it is.
    pub(super) fn start_clock(&mut self, env: &Env) {
        self.origin = i128::from(env.now) * 1000 - i128::from(self.guest.time());
        self.next_clock = env.now;
        self.logged = (self.guest.position(), env.now);
        self.plan_digest(env);
    }

    fn plan_digest(&mut self, env: &Env) {
        let after = self.guest.position();
        let slice = self.next_digest.slice.wrapping_add(1);
        self.next_digest = NextDigest { position: after + DIGEST, after, at: env.now + DIGEST_TIME, slice };
    }

    fn digest_is_due(&self, env: &Env) -> bool {
        let (position, due) = (self.guest.position(), &self.next_digest);
        let reached = position >= due.position || (position > due.after && env.now >= due.at);
        self.node.role() == Role::Protected && reached
    }

    /// Applies what waits and runs the guest; returns when to look again.
    pub(super) fn live_step(&mut self, env: &mut Env) -> Option<u64> {
        if self.power_due && self.power(env).is_err() {
            return Some(env.now + RETRY);
        }
        if self.ended {
            return None;
        }
        if self.transfer_step(env) == Feeding::Guest || (self.switch_due && self.switch_over(env).is_err()) {
            return Some(env.now + RETRY);
        }
        if !self.node.role().runs_guest() {
            return None;
        }
        let paused = self.throttle.pause(self.local(env), self.lag(env));
        while self.goes_on() {
            self.mark_progress(env);
            if let Some(until) = paused {
                return Some(until.0 - self.clock_offset);
            }
            if self.gate.is_full() || self.inputs(env).is_err() {
                return Some(env.now + RETRY);
            }
            if self.guest.is_asleep() {
                let alarm = (i128::from(self.guest.alarm()) + self.origin).max(0) as u64;
                let horizon = if self.needs_horizon() { self.logged.1 + HORIZON } else { u64::MAX };
                return Some(alarm.div_ceil(1000).min(horizon));
            }
            let room = self.throttle.room_ns(self.lag(env)) / self.guest.nanoseconds(1).max(1);
            self.credit = self.credit.min(room);
            if self.credit == 0 {
                break;
            }
            self.run_guest(env);
            if self.power_due {
                return Some(env.now + 1);
            }
        }
        let ahead = self.target(u64::MAX) - self.guest.position();
        Some(env.now + (ahead.saturating_mul(1000) / self.speed + 1).min(SLICE))
    }

    /// The next position at which something is due, at most `most`.
    fn target(&self, most: u64) -> u64 {
        let seal = self.unsealed_since.map_or(u64::MAX, |since| since + OUTPUT_DELAY);
        let digest = if self.node.role() == Role::Protected { self.next_digest.position } else { u64::MAX };
        let position = self.guest.position();
        let event = self.guest.next_event();
        [event, seal, digest].into_iter().filter(|at| *at > position).min().unwrap_or(position + 1).min(most)
    }

    fn run_guest(&mut self, env: &mut Env) {
        let before = self.guest.position();
        let target = self.target(before + self.credit);
        match self.guest.run(target) {
            Stop::Frame(frame) => {
                self.unsealed_since.get_or_insert(self.guest.position());
                self.transmit(env, &frame);
            }
            Stop::PowerOff => self.power_due = true,
            Stop::Target | Stop::Asleep => {}
        }
        let after = self.guest.position();
        self.credit -= after - before;
        if self.node.role() == Role::Protected && after > before {
            let bound = env.plan.lag_bound / self.guest.nanoseconds(1).max(1);
            env.audit.runs_ahead(self.written(), Position(after), bound);
        }
    }

    /// How far the twin is behind, in nanoseconds of guest time; 0 as long as nobody follows.
    fn lag(&self, env: &Env) -> u64 {
        let follows = self.node.role() == Role::Protected;
        if follows { self.guest.nanoseconds(self.node.lag(self.local(env)).ticks) } else { 0 }
    }

    /// Hands the guest over to the backup, with all its output sealed.
    fn switch_over(&mut self, env: &mut Env) -> Result<(), Full> {
        if self.gate.unsealed() > 0 {
            self.seal_output(env);
        }
        let position = Position(self.guest.position());
        self.node.progress(position);
        let seq = match self.node.switch_over(self.local(env), position) {
            Ok(seq) => seq,
            Err(AppendError::Full) => return Err(Full),
            Err(_) => {
                self.switch_due = false;
                return Ok(());
            }
        };
        self.switch_due = false;
        env.audit.appended(self.written(), seq, position);
        env.audit.logged(self.written(), seq, self.guest.machine_digest(), false);
        self.note(env, seq.0, || format!("hands over with entry {}", seq.0));
        Ok(())
    }

    /// Logs an entry at the guest's position; `None`: there is nobody to log for.
    fn log(&mut self, env: &mut Env, entry: EntryRef<'_>) -> Result<Option<Seq>, Full> {
        let (now, position) = (self.local(env), Position(self.guest.position()));
        match self.node.append(now, position, entry) {
            Ok(seq) => {
                self.logged = (position.0, env.now);
                env.audit.appended(self.written(), seq, position);
                Ok(Some(seq))
            }
            Err(AppendError::Full) => Err(Full),
            Err(AppendError::NotLogging) => Ok(None),
            Err(AppendError::BadData) => panic!("an entry of impossible length"),
        }
    }

    /// Logs an input and lets the guest see it.
    fn input(&mut self, env: &mut Env, entry: EntryRef<'_>) -> Result<(), Full> {
        let seq = self.log(env, entry)?;
        assert!(self.guest.apply(&entry), "a guest that differs from itself");
        if let Some(seq) = seq {
            env.audit.logged(self.written(), seq, self.guest.machine_digest(), false);
        }
        Ok(())
    }

    /// Applies everything that waits at this exact stop.
    fn inputs(&mut self, env: &mut Env) -> Result<(), Full> {
        self.steer(env)?;
        if self.reset_due {
            self.input(env, EntryRef::Control(Control::Reset))?;
            self.reset_due = false;
        }
        while let Some(frame) = self.ingress.pop_front() {
            if let Err(full) = self.input(env, EntryRef::PacketIn(&frame)) {
                self.ingress.push_front(frame);
                return Err(full);
            }
        }
        if self.digest_is_due(env) {
            let slice = self.next_digest.slice;
            let memory = self.guest.slice(slice);
            self.input(env, EntryRef::Digest { machine: self.guest.machine_digest(), slice, memory })?;
            self.plan_digest(env);
        }
        Ok(())
    }

    fn steer(&mut self, env: &mut Env) -> Result<(), Full> {
        let wanted = u64::try_from(i128::from(env.now) * 1000 - self.origin).unwrap_or(0);
        let rings = self.guest.is_asleep() && wanted >= self.guest.alarm();
        if !rings && env.now < self.next_clock {
            return Ok(());
        }
        let own = self.guest.time();
        // A guest that runs is put forward only when it is far behind; else its time runs a little faster or slower.
        let jump = self.guest.is_asleep() || wanted > own + 20_000_000;
        let base_ns = if jump { wanted.max(own) } else { own };
        let exact = 1_000_000 * NANOSECOND / self.speed;
        let rate = if wanted > own { exact + exact / 16 } else { exact - exact / 16 };
        self.input(env, EntryRef::Clock { base_ns, rate })?;
        self.next_clock = env.now + STEER;
        Ok(())
    }

    /// Makes the marks that backup and gate wait for.
    fn mark_progress(&mut self, env: &mut Env) {
        let position = self.guest.position();
        self.node.progress(Position(position));
        let unsealed = self.gate.unsealed();
        if unsealed == 0 {
            self.unsealed_since = None;
        } else {
            let since = *self.unsealed_since.get_or_insert(position);
            if self.guest.is_asleep() || unsealed >= OUTPUT_FRAMES || position - since >= OUTPUT_DELAY {
                self.seal_output(env);
            }
        }
        if self.needs_horizon() && env.now - self.logged.1 >= HORIZON {
            // A full log gets its horizon later.
            drop(self.log(env, EntryRef::Horizon));
        }
    }

    fn needs_horizon(&self) -> bool {
        self.guest.position() > self.logged.0 && self.node.is_logging()
    }

    fn seal_output(&mut self, env: &mut Env) {
        let Ok(seq) = self.log(env, EntryRef::Output) else { return };
        self.unsealed_since = None;
        if let Some(seq) = seq {
            self.gate.seal(seq.0);
            self.seals.push_back((seq.0, self.history.len() as u64));
            self.node.flush(self.local(env));
        }
        self.release(env);
    }

    /// The guest switches itself off, on both machines at this position.
    fn power(&mut self, env: &mut Env) -> Result<(), Full> {
        self.mark_progress(env);
        let seq = self.log(env, EntryRef::Control(Control::PowerOff))?;
        self.power_due = false;
        self.ended = true;
        self.note(env, 0, || "the guest switches itself off".to_owned());
        if let Some(seq) = seq {
            env.audit.logged(self.written(), seq, self.guest.machine_digest(), true);
            self.node.flush(self.local(env));
        }
        Ok(())
    }
}
