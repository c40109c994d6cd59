//! `history.jsonl`: what happened in a rig and when, one JSON object a line, for `cargo xtask timeline`.
//!
//! Events are written at once. What is measured all the time, such as the machines' statuses, is written as long as there
//! is room; of what networks carried the more seldom the more room is used.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::monitor::{Status, Takeover};
use super::network::{FabricStats, LinkSnapshot};
use super::roles::Role;
use crate::net::{NetworkStats, PortStats};

/// The file in a rig's directory.
pub const FILE: &str = "history.jsonl";
/// Bytes up to which measurements are written ...
const MEASUREMENTS: u64 = 12 << 20;
/// ... and events: a rig that runs for days keeps its first hours whole, and the events of many more.
const EVENTS: u64 = 16 << 20;
/// Time between two looks at the networks, at first.
const PERIOD: Duration = Duration::from_millis(100);
/// Each time that so many bytes are written, the period doubles.
const HALVING: u64 = 2 << 20;

/// Frames and bytes that a port sent since the start of the rig.
pub type Sent = (u64, u64);

/// What a line tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum Record {
    /// The rig starts; all times are counted from here.
    Start {
        /// Microseconds since 1970.
        unix_us: u64,
        /// The machines' names.
        machines: Vec<String>,
        /// What plays them.
        emulator: String,
    },
    /// Something happened, in words.
    Notice {
        /// Which.
        text: String,
    },
    /// A machine has another role.
    Role {
        /// Its name.
        machine: String,
        /// The role.
        role: Role,
    },
    /// Whether a backup follows the primary has changed.
    Protected {
        /// It does.
        on: bool,
    },
    /// A link was changed: the states of all that are not as at first, in the words of `rig link`.
    Links {
        /// By name.
        states: BTreeMap<String, String>,
    },
    /// A machine runs the guest instead of its twin.
    Takeover {
        /// Its name.
        machine: String,
        /// How long it took.
        #[serde(flatten)]
        times: Takeover,
    },
    /// What a machine says of itself.
    Status(Sample),
    /// What was sent on the networks so far.
    Traffic {
        /// On the client network: by each machine, and last by the clients.
        client: Vec<Sent>,
        /// On the log network: by each machine.
        log: Vec<Sent>,
    },
    /// The rig ends.
    End,
}

/// The part of a machine's status that is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// The machine.
    pub machine: String,
    /// Its term.
    pub term: u64,
    /// How far the guest has run, in ticks.
    pub position: u64,
    /// Frames in the gate.
    pub held: u64,
    /// How far the backup is behind, in microseconds.
    pub lag_us: u64,
    /// The same in log entries.
    pub lag_entries: u64,
    /// Log entries so far.
    pub entries: u64,
    /// Digests compared so far.
    pub digests: u64,
    /// Bytes of the last state transfer so far.
    pub transfer_bytes: u64,
}

impl Sample {
    /// What is kept of `status`.
    pub fn new(machine: &str, status: &Status) -> Self {
        Self {
            machine: machine.to_owned(),
            term: status.term,
            position: status.position,
            held: status.gate.held,
            lag_us: status.lag_us,
            lag_entries: status.lag_entries,
            entries: status.log.values().map(|amount| amount.n).fold(0, u64::saturating_add),
            digests: status.digests,
            transfer_bytes: status.transfer.bytes,
        }
    }
}

impl Record {
    /// The start of a rig, now.
    pub fn start(machines: Vec<String>, emulator: String) -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::Start { unix_us: since_1970.as_micros() as u64, machines, emulator }
    }

    /// The links that are not as they were at first.
    pub fn links(links: &[LinkSnapshot]) -> Self {
        let changed = links.iter().filter(|link| link.state != "up");
        Self::Links { states: changed.map(|link| (link.name.clone(), link.state.clone())).collect() }
    }

    /// What the networks have counted, with `machines` machines.
    pub fn traffic(stats: &FabricStats, machines: usize) -> Self {
        let sent = |port: &PortStats| (port.sent_frames, port.sent_bytes);
        let slots = |network: &NetworkStats| network.slots.iter().take(machines).map(sent).collect::<Vec<_>>();
        let [client, log] = &stats.networks;
        Self::Traffic { client: [slots(client), vec![sent(&client.host)]].concat(), log: slots(log) }
    }

    fn is_measured(&self) -> bool {
        matches!(self, Self::Status(_) | Self::Traffic { .. })
    }
}

/// A line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Seconds since the start.
    pub at: f64,
    /// What was then.
    #[serde(flatten)]
    pub record: Record,
}

/// The file as it grows.
#[derive(Debug)]
pub struct History<W: Write = File> {
    /// None when it could not be written: the rig matters more than its record.
    file: Option<W>,
    written: u64,
    looked: Duration,
    /// What the networks had carried, and whether that has been so for more than one look.
    traffic: Option<Record>,
    idle: bool,
}

impl History {
    /// Begins the file of a rig in `directory`.
    pub fn create(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE);
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self::new(file))
    }
}

impl<W: Write> History<W> {
    fn new(file: W) -> Self {
        Self { file: Some(file), written: 0, looked: Duration::ZERO, traffic: None, idle: false }
    }

    /// Writes what is the case since `started`.
    pub fn write(&mut self, started: Instant, record: Record) {
        self.write_at(started.elapsed(), record);
    }

    fn write_at(&mut self, at: Duration, record: Record) {
        let bound = if record.is_measured() { MEASUREMENTS } else { EVENTS };
        let Some(file) = &mut self.file else { return };
        let line = Line { at: (at.as_secs_f64() * 1e6).round() / 1e6, record };
        let Ok(mut text) = serde_json::to_string(&line) else { return };
        text.push('\n');
        let size = text.len() as u64;
        if self.written + size > bound {
            return;
        }
        match file.write_all(text.as_bytes()) {
            Ok(()) => self.written += size,
            Err(_) => self.file = None,
        }
    }

    /// Whether it is time to look at the networks.
    pub fn is_due(&self, started: Instant) -> bool {
        self.is_due_at(started.elapsed())
    }

    fn is_due_at(&self, at: Duration) -> bool {
        let doublings = u32::try_from(self.written / HALVING).unwrap_or(u32::MAX).min(8);
        self.written < MEASUREMENTS && at.saturating_sub(self.looked) >= PERIOD * (1 << doublings)
    }

    /// Writes what the networks carried if it is more than before.
    pub fn traffic(&mut self, started: Instant, record: Record) {
        self.traffic_at(started.elapsed(), record);
    }

    fn traffic_at(&mut self, at: Duration, record: Record) {
        let idle_since = std::mem::replace(&mut self.looked, at);
        if self.traffic.as_ref() == Some(&record) {
            self.idle = true;
            return;
        }
        // The time until when there was nothing, so that what is new is not spread over a long silence.
        if let (Some(before), true) = (self.traffic.replace(record.clone()), std::mem::take(&mut self.idle)) {
            self.write_at(idle_since, before);
        }
        self.write_at(at, record);
    }
}

/// Reads a history. Lines that are none of ours, as of another version, are left out; so is a last one that is cut off.
pub fn parse(text: &str) -> Vec<Line> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(bytes: u64) -> Record {
        Record::Traffic { client: vec![(1, bytes); 3], log: vec![(2, 7); 2] }
    }

    fn text(history: History<Vec<u8>>) -> String {
        String::from_utf8(history.file.unwrap()).unwrap()
    }

    #[test]
    fn what_is_written_can_be_read() {
        let records = [
            Record::start(vec!["castor".into(), "pollux".into()], "an emulator".into()),
            Record::Notice { text: "a \"quoted\" <word>\n".into() },
            Record::Role { machine: "castor".into(), role: Role::Primary },
            Record::Protected { on: true },
            Record::Links { states: [("log".to_owned(), "down".to_owned())].into() },
            Record::Takeover { machine: "pollux".into(), times: Takeover { total_ms: 1005.5, ..Takeover::default() } },
            Record::Status(Sample::new("castor", &Status { term: 3, ..Status::default() })),
            traffic(9),
            Record::End,
        ];
        let mut history = History::new(Vec::new());
        for (ms, record) in (0..).zip(&records) {
            history.write_at(Duration::from_millis(ms), record.clone());
        }
        let text = text(history);
        let lines = parse(&format!("{text}{{\"is\":\"later\",\"at\":1}}\n\n{{\"at\":5.0,\"is\":\"no"));
        assert_eq!(lines.iter().map(|line| &line.record).collect::<Vec<_>>(), records.iter().collect::<Vec<_>>());
        assert_eq!(lines[3].at, 0.003);
        assert!(text.lines().nth(3).unwrap().starts_with(r#"{"at":0.003,"is":"protected","on":true"#), "{text}");
    }

    #[test]
    fn the_file_is_bounded_and_events_have_room_left() {
        let mut history = History::new(Vec::new());
        let long = Record::Status(Sample { machine: "x".repeat(60_000), ..Sample::default() });
        assert!(history.is_due_at(PERIOD));
        for _ in 0..100 {
            history.write_at(Duration::ZERO, long.clone());
        }
        assert!(!history.is_due_at(PERIOD) && history.is_due_at(4 * PERIOD));
        for _ in 0..200 {
            history.write_at(Duration::ZERO, long.clone());
        }
        let measured = history.written;
        assert!(measured <= MEASUREMENTS && measured > MEASUREMENTS - 70_000);
        for _ in 0..100 {
            history.write_at(Duration::ZERO, Record::Notice { text: "y".repeat(60_000) });
        }
        assert!(history.written <= EVENTS && history.written > EVENTS - 70_000);
        history.write_at(Duration::ZERO, Record::End);
        assert!(matches!(parse(&text(history)).last(), Some(Line { record: Record::End, .. })));
    }

    #[test]
    fn silence_is_written_once() {
        let mut history = History::new(Vec::new());
        for (ms, bytes) in [(100, 5), (200, 5), (300, 5), (400, 8), (500, 9)] {
            history.traffic_at(Duration::from_millis(ms), traffic(bytes));
        }
        let lines = parse(&text(history));
        let seen: Vec<_> = lines.iter().map(|line| (line.at, line.record.clone())).collect();
        assert_eq!(seen, [(0.1, traffic(5)), (0.3, traffic(5)), (0.4, traffic(8)), (0.5, traffic(9))]);
    }
}
