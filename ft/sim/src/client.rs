//! Clients: each asks, waits for the answer, asks again when none comes, and remembers what it saw.

use crate::check::{Audit, Check};
use crate::frame::{POWER_OFF, RESET, Reply, Request};
use crate::rng::Rng;
use std::collections::BTreeMap;

/// After how long a request is sent again, in microseconds; doubled each time, as TCP does.
const RETRY: u64 = 200_000;
/// The longest of these times.
const MOST_RETRY: u64 = 1_600_000;

#[derive(Debug)]
struct Client {
    /// Number of the current request, and whether its answer is still wanted.
    number: u64,
    waiting: bool,
    /// Greatest answer that any client had when the request was first sent.
    floor: u64,
    sent_at: u64,
    /// When the newest request that was answered had first been sent.
    served: u64,
    retry: u64,
    /// The answers, by request.
    answers: Vec<u64>,
    /// What the timer event must say to count.
    timer: u64,
}

/// All clients, and what they know together.
#[derive(Debug)]
pub(crate) struct Clients {
    clients: Vec<Client>,
    rng: Rng,
    think: u64,
    /// Who got which answer.
    seen: BTreeMap<u64, usize>,
    resting: bool,
    /// Answers of guests that are no more.
    former: u64,
    pub(crate) longest_wait: u64,
}

/// What a client does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// The frame it sends.
    pub(crate) frame: Option<Vec<u8>>,
    /// When it wants to be called again: after so many microseconds, with this timer.
    pub(crate) timer: Option<(u64, u64)>,
}

impl Clients {
    pub(crate) fn new(count: usize, think: u64, rng: Rng) -> Self {
        let client = || Client {
            number: 0,
            waiting: false,
            floor: 0,
            sent_at: 0,
            served: 0,
            retry: RETRY,
            answers: Vec::new(),
            timer: 0,
        };
        let clients = (0..count).map(|_| client()).collect();
        Self { clients, rng, think, seen: BTreeMap::new(), resting: false, former: 0, longest_wait: 0 }
    }

    pub(crate) fn count(&self) -> usize {
        self.clients.len()
    }

    /// No new requests from here on; those under way are still repeated.
    pub(crate) fn rest(&mut self) {
        self.resting = true;
    }

    /// Nobody waits for an answer.
    pub(crate) fn all_answered(&self) -> bool {
        self.clients.iter().all(|client| !client.waiting)
    }

    /// Every client was answered to a request that it made at `since` or later.
    pub(crate) fn served_since(&self, since: u64) -> bool {
        self.clients.iter().all(|client| client.served >= since)
    }

    /// Answers so far.
    pub(crate) fn answers(&self) -> u64 {
        self.former + self.seen.len() as u64
    }

    /// Another guest begins: it knows of no request, and nobody waits for answers of the former one.
    pub(crate) fn begin_anew(&mut self) {
        self.former += self.seen.len() as u64;
        self.seen.clear();
        for client in &mut self.clients {
            (client.number, client.waiting) = (0, false);
            client.answers.clear();
        }
    }

    /// The timer of `client` rang.
    pub(crate) fn timer(&mut self, now: u64, client: usize, timer: u64) -> Step {
        let newest = self.seen.last_key_value().map_or(0, |(value, _)| *value);
        let padding = self.rng.below(400) as usize;
        let state = &mut self.clients[client];
        if state.timer != timer {
            return Step { frame: None, timer: None };
        }
        if state.waiting {
            state.retry = (state.retry * 2).min(MOST_RETRY);
        } else if self.resting {
            return Step { frame: None, timer: None };
        } else {
            state.number += 1;
            (state.waiting, state.floor, state.sent_at, state.retry) = (true, newest, now, RETRY);
        }
        state.timer += 1;
        let frame = Request { client: client as u64, number: state.number }.encode(padding);
        Step { frame: Some(frame), timer: Some((state.retry, state.timer)) }
    }

    /// The request that ends the guest.
    pub(crate) fn power_off() -> Vec<u8> {
        Request { client: 0, number: POWER_OFF }.encode(0)
    }

    /// The request that makes the guest ask for a reset.
    pub(crate) fn reset() -> Vec<u8> {
        Request { client: 0, number: RESET }.encode(0)
    }

    /// A frame of the guest arrives at `client`.
    pub(crate) fn receive(&mut self, now: u64, client: usize, reply: &Reply, audit: &mut Audit) -> Option<(u64, u64)> {
        let pause = self.rng.below(2 * self.think + 1);
        let state = &mut self.clients[client];
        if reply.number < state.number || !state.waiting {
            // It comes twice; the first one counted.
            let known = reply.number.checked_sub(1).and_then(|index| state.answers.get(index as usize));
            if known != Some(&reply.value) {
                let text = format!("client {client} has {known:?} for request {}, now {}", reply.number, reply.value);
                audit.broken(Check::ClientHistory, text);
            }
            return None;
        }
        if reply.number > state.number {
            audit.broken(Check::ClientHistory, format!("client {client} never made request {}", reply.number));
            return None;
        }
        state.answers.push(reply.value);
        state.waiting = false;
        state.served = state.sent_at;
        state.timer += 1;
        self.longest_wait = self.longest_wait.max(now - state.sent_at);
        let (floor, timer) = (state.floor, state.timer);
        if let Some(other) = self.seen.insert(reply.value, client) {
            let text = format!("clients {other} and {client} both got {}", reply.value);
            audit.broken(Check::ClientHistory, text);
        } else if reply.value <= floor {
            let text = format!("client {client} got {} after {floor} had been given", reply.value);
            audit.broken(Check::ClientHistory, text);
        }
        Some((pause, timer))
    }

    /// At the end, when everybody was answered: all numbers were given, none was left out.
    pub(crate) fn check_gaps(&self, audit: &mut Audit) {
        let (given, newest) = (self.seen.len() as u64, self.seen.last_key_value().map_or(0, |(value, _)| *value));
        if self.all_answered() && given != newest {
            audit.broken(Check::ClientHistory, format!("{given} answers were given, the newest is {newest}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(client: u64, number: u64, value: u64) -> Reply {
        Reply { index: 0, chain: 0, time: 0, client, number, value }
    }

    /// Two clients with a request each; what the check says to these answers.
    fn judge(answers: &[Reply]) -> Option<Check> {
        let mut clients = Clients::new(2, 0, Rng::new(1, 1));
        let mut audit = Audit::new(true);
        let mut timers = [0; 2];
        for answer in answers {
            let client = answer.client as usize;
            let step = clients.timer(0, client, timers[client]);
            assert!(step.frame.is_some());
            match clients.receive(1, client, answer, &mut audit) {
                Some((_, timer)) => timers[client] = timer,
                None => timers[client] = step.timer.map_or(0, |(_, timer)| timer),
            }
        }
        clients.check_gaps(&mut audit);
        audit.violation().map(|violation| violation.check)
    }

    #[test]
    fn a_proper_history_passes() {
        assert_eq!(judge(&[reply(0, 1, 1), reply(1, 1, 2), reply(0, 2, 3)]), None);
    }

    #[test]
    fn bad_histories_are_found() {
        let bad = Some(Check::ClientHistory);
        assert_eq!(judge(&[reply(0, 1, 1), reply(1, 1, 1)]), bad, "the same number twice");
        assert_eq!(judge(&[reply(0, 1, 2), reply(1, 1, 1)]), bad, "an older number after a newer one");
        assert_eq!(judge(&[reply(0, 1, 1), reply(1, 1, 3)]), bad, "a number left out");
        assert_eq!(judge(&[reply(0, 7, 1)]), bad, "an answer to nothing");
    }
}
