//! What happened in a rig, put in order: spans of time for what lasts, points for what does not. Times in seconds since
//! the rig's start.

use std::collections::BTreeMap;

use super::capture::{Packet, Transport, frames};
use super::requests::{Reader, Requests};
use crate::rig::history::{Line, Record, Sample, Sent};
use crate::rig::monitor::Takeover;
use crate::rig::roles::Role;

/// Something that lasted.
#[derive(Debug, Clone, PartialEq)]
pub struct Span<T> {
    /// From when ...
    pub from: f64,
    /// ... until when.
    pub to: f64,
    /// What.
    pub what: T,
}

/// A machine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// What it was.
    pub roles: Vec<Span<Role>>,
    /// What it said of itself.
    pub samples: Vec<(f64, Sample)>,
}

/// A takeover.
#[derive(Debug, Clone, PartialEq)]
pub struct Blackout {
    /// When it was over: the new primary had announced itself.
    pub end: f64,
    /// The new primary, by its number among the machines.
    pub heir: usize,
    /// How long its parts took.
    pub times: Takeover,
}

impl Blackout {
    /// When the old primary gave its last sign of life, or began to hand over.
    pub fn start(&self) -> f64 {
        self.end - self.times.total_ms / 1e3
    }

    /// The machine's message says how long a takeover took, and comes a little later than its end. The frame by which the
    /// new primary announced itself says when that was.
    fn put_at(&mut self, announced: &[f64]) {
        let since = self.end - self.times.total_ms / 2e3;
        let first = announced.iter().copied().find(|at| (since..self.end).contains(at));
        self.end = first.unwrap_or(self.end);
    }

    /// The parts in the order in which they follow each other: name, and from when to when.
    pub fn parts(&self) -> [Span<&'static str>; 4] {
        let Takeover { detect_ms, drain_ms, arbiter_ms, announce_ms, .. } = self.times;
        let mut from = self.start();
        [("detection", detect_ms), ("drain", drain_ms), ("arbiter", arbiter_ms), ("announcement", announce_ms)].map(
            |(what, ms)| {
                let span = Span { from, to: from + ms / 1e3, what };
                from = span.to;
                span
            },
        )
    }
}

/// Bytes that a machine sent on a network within a span of time.
pub type Flow = Span<f64>;

/// What is known of a rig.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Story {
    /// Its machines.
    pub machines: Vec<Machine>,
    /// What played them.
    pub emulator: String,
    /// When it started, in seconds since 1970.
    pub unix_s: f64,
    /// When it ended.
    pub end: f64,
    /// It was still running when this was read.
    pub runs: bool,
    /// While a backup followed.
    pub protected: Vec<Span<()>>,
    /// Links that were not as they should be, and how.
    pub faults: Vec<Span<(String, String)>>,
    /// Takeovers.
    pub blackouts: Vec<Blackout>,
    /// What was told while it ran.
    pub notices: Vec<(f64, String)>,
    /// What each machine sent on the log network: entries, acks, state transfers.
    pub log: Vec<Vec<Flow>>,
    /// That is of a capture, frame by frame, without heartbeats; otherwise of counters, with them.
    pub log_captured: bool,
    /// What clients asked, if it was captured.
    pub requests: Option<Requests>,
}

/// Puts the lines of a history in order.
pub fn of_history(lines: &[Line]) -> Story {
    let mut story = Story { runs: true, ..Story::default() };
    let (mut protected, mut links, mut sent) =
        (None, BTreeMap::<String, (f64, String)>::new(), Vec::<(f64, Sent)>::new());
    for Line { at, record } in lines {
        let at = *at;
        story.end = story.end.max(at);
        let index = |name: &str| story.machines.iter().position(|machine| machine.name == name);
        match record {
            Record::Start { unix_us, machines, emulator } => {
                let machine = |name: &String| Machine { name: name.clone(), ..Machine::default() };
                story.machines = machines.iter().map(machine).collect();
                story.log = vec![Vec::new(); machines.len()];
                (story.unix_s, story.emulator) = (*unix_us as f64 / 1e6, emulator.clone());
            }
            Record::Notice { text } => story.notices.push((at, text.clone())),
            Record::Role { machine, role } => {
                if let Some(index) = index(machine) {
                    let roles = &mut story.machines[index].roles;
                    if let Some(last) = roles.last_mut() {
                        last.to = at;
                    }
                    roles.push(Span { from: at, to: at, what: *role });
                }
            }
            Record::Protected { on: true } => protected = Some(at),
            Record::Protected { on: false } => {
                story.protected.extend(protected.take().map(|from| Span { from, to: at, what: () }));
            }
            Record::Links { states } => {
                links.retain(|name, (from, state)| {
                    let same = states.get(name) == Some(state);
                    if !same {
                        story.faults.push(Span { from: *from, to: at, what: (name.clone(), state.clone()) });
                    }
                    same
                });
                for (name, state) in states {
                    links.entry(name.clone()).or_insert_with(|| (at, state.clone()));
                }
            }
            Record::Takeover { machine, times } => {
                if let Some(heir) = index(machine) {
                    story.blackouts.push(Blackout { end: at, heir, times: times.clone() });
                }
            }
            Record::Status(sample) => {
                if let Some(index) = index(&sample.machine) {
                    story.machines[index].samples.push((at, sample.clone()));
                }
            }
            Record::Traffic { log, .. } => {
                for (flows, (sent, now)) in story.log.iter_mut().zip(sent.iter().zip(log)) {
                    let bytes = now.1.saturating_sub(sent.1.1) as f64;
                    if bytes > 0.0 {
                        flows.push(Span { from: sent.0, to: at, what: bytes });
                    }
                }
                sent = log.iter().map(|now| (at, *now)).collect();
            }
            Record::End => story.runs = false,
        }
    }
    let end = story.end;
    for last in story.machines.iter_mut().filter_map(|machine| machine.roles.last_mut()) {
        last.to = end;
    }
    story.protected.extend(protected.map(|from| Span { from, to: end, what: () }));
    story.faults.extend(links.into_iter().map(|(name, (from, state))| Span { from, to: end, what: (name, state) }));
    story.faults.sort_by(|a, b| a.what.0.cmp(&b.what.0).then(a.from.total_cmp(&b.from)));
    story
}

impl Story {
    /// Adds what a capture of the client network tells of requests to `guest`; none when it is no capture.
    pub fn add_client_capture(&mut self, file: &[u8], guest: [u8; 4]) -> Option<()> {
        let mut reader = Reader::default();
        let mut is_empty = true;
        // A directory that is used again may hold what an earlier rig captured.
        let mut announced = Vec::new();
        for frame in frames(file)?.filter(|frame| frame.unix_s() >= self.unix_s) {
            is_empty = false;
            if frame.announces() {
                announced.push(frame.unix_s() - self.unix_s);
            }
            if let Some(packet) = Packet::parse(frame.bytes) {
                reader.packet(frame.unix_s() - self.unix_s, &packet, guest);
            }
        }
        self.requests = (!is_empty).then(|| reader.finish());
        self.blackouts.iter_mut().for_each(|blackout| blackout.put_at(&announced));
        Some(())
    }

    /// Adds what a capture of the log network tells, whose machines have these MAC addresses; none when it is no capture.
    pub fn add_log_capture(&mut self, file: &[u8], macs: &[[u8; 6]]) -> Option<()> {
        let mut flows = vec![Vec::new(); self.machines.len()];
        for frame in frames(file)?.filter(|frame| frame.unix_s() >= self.unix_s) {
            let Some(packet) = Packet::parse(frame.bytes) else { continue };
            let machine = macs.iter().position(|mac| *mac == packet.source_mac);
            let (Some(flows), Transport::Tcp { .. }) =
                (machine.and_then(|index| flows.get_mut(index)), packet.transport)
            else {
                continue;
            };
            if !packet.data.is_empty() && !is_arbiters(&packet) {
                let at = frame.unix_s() - self.unix_s;
                flows.push(Span { from: at, to: at, what: packet.data.len() as f64 });
            }
        }
        if flows.iter().any(|flows| !flows.is_empty()) {
            (self.log, self.log_captured) = (flows, true);
        }
        Some(())
    }
}

/// The arbiter has its place on the same network.
fn is_arbiters(packet: &Packet<'_>) -> bool {
    [packet.from.1, packet.to.1].contains(&crate::net::ARBITER_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::history::parse;

    const LINES: &str = r#"
{"at":0.0,"is":"start","unix_us":1000000000,"machines":["castor","pollux"],"emulator":"QEMU"}
{"at":0.1,"is":"role","machine":"castor","role":"joining"}
{"at":0.5,"is":"role","machine":"castor","role":"primary"}
{"at":1.0,"is":"protected","on":true}
{"at":1.0,"is":"traffic","client":[[0,0],[0,0],[1,60]],"log":[[1,100],[0,0]]}
{"at":1.5,"is":"traffic","client":[[0,0],[0,0],[1,60]],"log":[[3,350],[0,0]]}
{"at":2.0,"is":"links","states":{"log":"up delay=5ms"}}
{"at":3.0,"is":"links","states":{"log":"down","client:castor":"up mute"}}
{"at":3.5,"is":"links","states":{"client:castor":"up mute"}}
{"at":4.0,"is":"protected","on":false}
{"at":4.5,"is":"takeover","machine":"pollux","detect_ms":1000,"drain_ms":200,"arbiter_ms":30,"announce_ms":0.5,"total_ms":1230.5}
{"at":5.0,"is":"status","machine":"pollux","held":3}
{"at":6.0,"is":"protected","on":true}
{"at":7.0,"is":"notice","text":"last"}
"#;

    #[test]
    fn what_lasts_becomes_spans() {
        let story = of_history(&parse(LINES));
        let span = |from, to| Span { from, to, what: () };
        assert_eq!(story.protected, [span(1.0, 4.0), span(6.0, 7.0)]);
        let roles: Vec<_> = story.machines[0].roles.iter().map(|role| (role.from, role.to, role.what)).collect();
        assert_eq!(roles, [(0.1, 0.5, Role::Joining), (0.5, 7.0, Role::Primary)]);
        let faults: Vec<_> =
            story.faults.iter().map(|f| (f.what.0.as_str(), f.what.1.as_str(), f.from, f.to)).collect();
        let cable = ("client:castor", "up mute", 3.0, 7.0);
        assert_eq!(faults, [cable, ("log", "up delay=5ms", 2.0, 3.0), ("log", "down", 3.0, 3.5)]);
        assert_eq!(story.log, [vec![Span { from: 1.0, to: 1.5, what: 250.0 }], vec![]]);
        assert_eq!(story.machines[1].samples[0].1.held, 3);
        assert!(story.runs && story.end == 7.0);
    }

    #[test]
    fn the_parts_of_a_blackout_follow_each_other() {
        let story = of_history(&parse(LINES));
        let parts = story.blackouts[0].parts();
        let ends: Vec<_> = parts.iter().map(|part| (part.what, (part.to * 1e4).round() / 1e4)).collect();
        assert_eq!(ends, [("detection", 4.2695), ("drain", 4.4695), ("arbiter", 4.4995), ("announcement", 4.5)]);
    }

    #[test]
    fn a_takeover_ends_with_its_announcement() {
        let mut blackout = of_history(&parse(LINES)).blackouts.remove(0);
        blackout.put_at(&[1.0, 3.5, 4.6]);
        assert_eq!(blackout.end, 4.5);
        blackout.put_at(&[3.5, 4.4, 4.45]);
        assert_eq!(blackout.end, 4.4);
    }

    #[test]
    fn lines_about_nobody_known_do_no_harm() {
        let story = of_history(&parse(
            "{\"at\":1.0,\"is\":\"role\",\"machine\":\"x\",\"role\":\"dead\"}\n{\"at\":2.0,\"is\":\"end\"}",
        ));
        assert_eq!((story.machines.len(), story.end, story.runs), (0, 2.0, false));
    }
}
