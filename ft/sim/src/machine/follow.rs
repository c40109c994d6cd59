//! The backup: replays the log, and goes live when it is told to.

use super::{Machine, RETRY, SLICE};
use crate::check::Check;
use crate::guest::Stop;
use crate::world::Env;
use pollux_ft::{Position, Record};

impl Machine {
    /// Applies entries and runs the guest as far as the log allows; returns when to look again.
    pub(super) fn follow_step(&mut self, env: &mut Env) -> Option<u64> {
        while self.goes_on() && self.node.role().is_backup() {
            // Asked before the log is drained, too: the node is the one to refuse.
            if self.takeover {
                self.go_live(env);
                if !self.node.role().is_backup() {
                    break;
                }
            }
            let position = self.guest.position();
            let record = self.node.next_record();
            let limit = self.node.run_limit()?.0;
            if let Some(record) = record.filter(|record| record.position.0 <= position).cloned() {
                self.apply(env, &record);
                continue;
            }
            let target = record.map_or(limit, |record| record.position.0.min(limit));
            if target <= position {
                self.retain();
                return None;
            }
            if self.credit == 0 {
                return Some(env.now + ((target - position).saturating_mul(1000) / self.speed + 1).min(SLICE));
            }
            self.run_shadow(env, target);
        }
        None
    }

    fn run_shadow(&mut self, env: &mut Env, target: u64) {
        let before = self.guest.position();
        let stop = self.guest.run(target.min(before + self.credit));
        let position = self.guest.position();
        self.credit -= position - before;
        self.node.progress(Position(position));
        env.audit.follows(self.followed(), self.node.newest(), Position(position));
        match stop {
            Stop::Frame(frame) => {
                self.transmit(env, &frame);
                self.retain();
            }
            Stop::Target => self.retain(),
            Stop::PowerOff if position == target => {}
            Stop::Asleep | Stop::PowerOff => {
                self.diverge(env, &format!("the guest ended at {position}, the log says it ran to {target}"));
            }
        }
    }

    /// Frames are kept until the primary is known to have sent them.
    fn retain(&mut self) {
        if self.gate.unsealed() > 0 {
            self.gate.seal(self.guest.position());
        }
        self.gate.released(self.node.released().position.0);
    }

    fn apply(&mut self, env: &mut Env, record: &Record) {
        let log = self.followed();
        self.note(env, record.seq.0, || format!("applies entry {}: {:?}", record.seq.0, record.entry.borrow().kind()));
        if !self.guest.apply(&record.entry.borrow()) {
            return self.diverge(env, &format!("the digest of entry {} differs", record.seq.0));
        }
        if !self.flipped {
            let position = Position(self.guest.position());
            env.audit.applied(log, record.seq, position, self.guest.machine_digest());
        }
        self.node.applied(self.local(env), record.position);
    }

    fn go_live(&mut self, env: &mut Env) {
        let (log, held, position) = (self.followed(), self.node.newest(), self.guest.position());
        let asked = self.node.asks_for();
        let result = self.node.went_live(self.local(env), Position(position));
        if asked.is_none() && self.node.asks_for().is_some() {
            self.check_suspicion(env);
        }
        if result.is_err() {
            return;
        }
        self.takeover = false;
        let term = self.node.term().0;
        self.note(env, term, || format!("LIVE in term {term}"));
        env.audit.goes_live(self.id, log, held, Position(position), &self.history);
        env.audit.takes_over_output(self.index, self.gate.held());
        env.figures.takeovers += 1;
        self.start_clock(env);
        self.open_gate(env);
        // The guest runs from the next turn on.
        self.credit = 0;
        env.wake_soon(self.index, RETRY);
    }

    /// The guest here is not the primary's.
    pub(super) fn diverge(&mut self, env: &mut Env, details: &str) {
        self.note(env, 0, || format!("DIVERGED: {details}"));
        if self.flipped {
            env.figures.flips_found += 1;
        } else {
            env.audit.broken(Check::ReplicasEqual, details.to_owned());
        }
        self.node.diverged(details);
    }
}
