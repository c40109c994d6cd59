//! What a machine says on its monitor (COM2): one JSON object a line.
//!
//! A machine may be of another version than we are, so that unknown keys are kept and missing ones read as zero.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Longer lines are dropped and counted as malformed.
pub const MAX_LINE: usize = 64 * 1024;

/// What a machine says its role is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Claim {
    /// It runs the guest for the clients.
    #[serde(alias = "solo")]
    Primary,
    /// It follows the log.
    Backup,
    /// It has stopped for good.
    Halted,
    /// It starts, looks for its twin or receives the state.
    #[default]
    #[serde(other)]
    Joining,
}

/// Entries and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Amount {
    /// How many.
    pub n: u64,
    /// Their bytes on the wire.
    pub bytes: u64,
    /// The part of these that came from outside, such as the frame of a packet.
    pub data: u64,
}

/// The output gate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gate {
    /// Frames held now.
    pub held: u64,
    /// Their bytes.
    pub held_bytes: u64,
    /// For how long the oldest of them has been held, in microseconds.
    pub oldest_us: u64,
    /// The longest that any frame was held, in microseconds.
    pub max_us: u64,
    /// Frames sent so far.
    pub released: u64,
    /// Frames that were retained as backup and sent when going live: the client may see them twice.
    pub resent: u64,
    /// Frames that a backup forgot for lack of room.
    pub forgotten: u64,
    /// Frames dropped so far.
    pub dropped: u64,
}

/// What the self-test of the instruction counter found, and what has been seen since.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CounterTest {
    /// What must be equal on both twins.
    pub identity: String,
    /// Why it is this counter.
    pub why: String,
    /// Checks that it passed.
    pub checks: u64,
    /// Largest skid of an overflow in the test, in instructions.
    pub skid: u64,
    /// All skids of the test, as a histogram.
    pub skids: String,
    /// Exits and events that count, as an instruction does.
    pub costs: String,
    /// Distance in instructions from which on the guest is stepped to a stop.
    pub margin: u64,
    /// Single steps that a stop took in the test, on average.
    pub steps_per_stop: u64,
    /// Largest skid seen since.
    pub skid_seen: u64,
    /// All of them, as a histogram.
    pub skids_seen: String,
    /// Overflows that came late or not at all.
    pub late: u64,
    /// Overflow interrupts when none was due.
    pub spurious: u64,
}

/// State transfer to a new backup.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Transfer {
    /// Bytes sent or received.
    pub bytes: u64,
    /// Pages that were not zero.
    pub pages: u64,
    /// Rounds over memory: the first over all of it, each later one over what changed meanwhile.
    pub rounds: u64,
    /// From the start to the end, in milliseconds.
    pub total_ms: f64,
    /// For how long the guest stood still, in milliseconds.
    pub pause_ms: f64,
}

/// The guest's disk, and what the guest did with it on this machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Disk {
    /// Its size; 0 when there is none.
    pub bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards and writes of zeros.
    pub zeroed: u64,
}

/// The machine's questions to the arbiter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Asking {
    /// How it is asked: `sealed`, or `etcd`, in plain words.
    pub words: String,
    /// Answers that were not its own.
    pub unauthentic: u64,
    /// The term that it asks for now; 0 if it asks for none.
    pub asks_for: u64,
    /// Connections that it began.
    pub tries: u64,
    /// Those that brought no answer.
    pub failures: u64,
    /// Terms that it won.
    pub granted: u64,
    /// Terms that others had won.
    pub taken: u64,
    /// How long the last answer took, in microseconds.
    pub answer_us: u64,
    /// Looks whether the arbiter would give a term.
    pub looks: u64,
    /// Why it would not now, by each way of which that is known.
    pub trouble: String,
    /// By no way it would.
    pub useless: bool,
}

/// A machine's status; every counter counts from the machine's start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The machine's name.
    pub name: String,
    /// Its role.
    pub role: Claim,
    /// Whether a backup follows.
    pub protected: bool,
    /// For how long, in milliseconds.
    pub protected_ms: u64,
    /// `running`, `halted` or `off`.
    pub guest_state: String,
    /// The guest's position.
    pub position: u64,
    /// Guest time in nanoseconds.
    pub guest_ns: u64,
    /// Wall clock since the machine's start in milliseconds.
    pub wall_ms: u64,
    /// Instructions of the whole machine while it was not idle.
    pub host_ticks: u64,
    /// Instructions of the guest.
    pub guest_ticks: u64,
    /// What protects its words and its twin's: `key`, or `insecure`; nothing for a machine alone.
    pub security: String,
    /// The fingerprint of its newest key ...
    pub key: String,
    /// ... of the old one, while it has two ...
    pub old_key: String,
    /// ... and why that one cannot be forgotten yet.
    pub old_key_is_needed: String,
    /// The term that it is in; 0 before the first.
    pub term: u64,
    /// What it asks the arbiter.
    pub arbiter: Asking,
    /// How far the backup is behind, in log entries ...
    pub lag_entries: u64,
    /// ... in ticks of the guest ...
    pub lag_ticks: u64,
    /// ... and in microseconds.
    pub lag_us: u64,
    /// Log entries by kind.
    pub log: BTreeMap<String, Amount>,
    /// Bytes sent on the log NIC, heartbeats left out.
    pub wire_tx: u64,
    /// Bytes received on the log NIC, heartbeats left out.
    pub wire_rx: u64,
    /// Bytes of heartbeats, both ways.
    pub heartbeat_bytes: u64,
    /// The output gate.
    pub gate: Gate,
    /// Exits by reason.
    pub exits: BTreeMap<String, u64>,
    /// The guest's disk.
    pub disk: Disk,
    /// State digests compared.
    pub digests: u64,
    /// How often this machine took over.
    pub takeovers: u64,
    /// The last state transfer.
    pub transfer: Transfer,
    /// Refused input and other errors by name.
    pub errors: BTreeMap<String, u64>,
    /// The backend of the instruction counter.
    pub counter: String,
    /// Its self-test.
    pub counter_test: CounterTest,
    /// What this version of xtask does not know.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A takeover as the new primary reports it; times in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Takeover {
    /// From the last sign of life to the suspicion.
    pub detect_ms: f64,
    /// Replay of the rest of the log.
    pub drain_ms: f64,
    /// Winning the next term.
    pub arbiter_ms: f64,
    /// Telling the switch.
    pub announce_ms: f64,
    /// All of it.
    pub total_ms: f64,
    /// Whether the old primary handed the guest over.
    pub planned: bool,
}

impl fmt::Display for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { detect_ms, drain_ms, arbiter_ms, announce_ms, total_ms, planned } = self;
        let how = if *planned { "was handed the guest" } else { "took over" };
        write!(
            f,
            "{how} in {total_ms:.0} ms \
             (detection {detect_ms:.0}, drain {drain_ms:.1}, arbiter {arbiter_ms:.1}, announcement {announce_ms:.1})"
        )
    }
}

/// One line of a monitor.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// Periodic, and at once when role or protection changes.
    Status(Box<Status>),
    /// A twin was lost and this machine carries on.
    Takeover(Takeover),
    /// Anything else that happened: its name, and what belongs to it.
    Event(String, Map<String, Value>),
    /// What the guest wrote to its console.
    Console(String),
}

/// Reads one line; the error says what is wrong with it.
pub fn parse(line: &str) -> Result<Line, serde_json::Error> {
    #[derive(Deserialize)]
    struct Event {
        event: String,
        #[serde(flatten)]
        fields: Map<String, Value>,
    }
    #[derive(Deserialize)]
    struct Console {
        text: String,
    }
    let mut object: Map<String, Value> = serde_json::from_str(line)?;
    let kind = object.remove("t");
    let value = Value::Object(object);
    match kind.as_ref().and_then(Value::as_str) {
        Some("status") => serde_json::from_value(value).map(Line::Status),
        Some("console") => serde_json::from_value(value).map(|Console { text }| Line::Console(text)),
        Some("event") => {
            let Event { event, fields } = serde_json::from_value(value)?;
            if event == "takeover" {
                return serde_json::from_value(Value::Object(fields)).map(Line::Takeover);
            }
            Ok(Line::Event(event, fields))
        }
        _ => Err(serde::de::Error::custom("the key \"t\" is none of status, event, console")),
    }
}

/// The next line of `reader` without its end, cut off at [`MAX_LINE`]; `None` at the end. A line that is not complete at the
/// end does not count: its writer was killed within it.
pub fn read_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    loop {
        let available = reader.fill_buf()?;
        if available.is_empty() {
            return Ok(None);
        }
        let end = available.iter().position(|&byte| byte == b'\n');
        let part = &available[..end.unwrap_or(available.len())];
        let room = MAX_LINE - line.len();
        line.extend_from_slice(&part[..part.len().min(room)]);
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            let text = String::from_utf8_lossy(&line);
            return Ok(Some(text.trim_end_matches('\r').to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn status(text: &str) -> Status {
        match parse(text) {
            Ok(Line::Status(status)) => *status,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_status_is_read() {
        let status = status(
            r#"{"t":"status","name":"castor","role":"primary","protected":true,"position":18446744073709551615,
                "log":{"clock":{"n":3,"bytes":60},"packet":{"n":1}},"exits":{"io":7},"counter":"pmu",
                "counter_test":{"checks":41,"skid":18,"margin":256},"new":{"a":1}}"#,
        );
        assert_eq!((status.role, status.protected, status.position), (Claim::Primary, true, u64::MAX));
        assert_eq!(status.log["clock"], Amount { n: 3, bytes: 60, data: 0 });
        assert_eq!(status.log["packet"], Amount { n: 1, bytes: 0, data: 0 });
        assert_eq!(status.exits["io"], 7);
        let test = CounterTest { checks: 41, skid: 18, margin: 256, ..CounterTest::default() };
        assert_eq!((status.counter.as_str(), status.counter_test), ("pmu", test));
        assert!(status.more.contains_key("new"));
    }

    #[test]
    fn roles_are_lenient() {
        for (text, claim) in [("solo", Claim::Primary), ("halted", Claim::Halted), ("ascending", Claim::Joining)] {
            assert_eq!(status(&format!(r#"{{"t":"status","role":"{text}"}}"#)).role, claim);
        }
        assert_eq!(status(r#"{"t":"status"}"#), Status::default());
    }

    #[test]
    fn events_are_read() {
        let takeover = parse(r#"{"t":"event","event":"takeover","detect_ms":1000,"drain_ms":1.5,"total_ms":1004.5}"#);
        let expected = Takeover { detect_ms: 1000.0, drain_ms: 1.5, total_ms: 1004.5, ..Takeover::default() };
        assert_eq!(takeover.unwrap(), Line::Takeover(expected));
        let Ok(Line::Event(name, fields)) = parse(r#"{"t":"event","event":"divergence","position":7}"#) else {
            panic!()
        };
        assert_eq!((name.as_str(), fields["position"].as_u64()), ("divergence", Some(7)));
        assert_eq!(parse(r#"{"t":"console","text":"hi"}"#).unwrap(), Line::Console("hi".into()));
    }

    #[test]
    fn other_lines_are_errors() {
        for bad in ["", "[]", "null", "SeaBIOS", r#"{"t":"x"}"#, r#"{"event":"x"}"#, r#"{"t":"status","position":-1}"#]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lines_are_cut_and_rests_are_dropped() {
        let long = "x".repeat(MAX_LINE + 5);
        let input = format!("one\r\n{long}\n\nlast without end");
        let mut reader = BufReader::with_capacity(7, input.as_bytes());
        let mut next = || read_line(&mut reader).unwrap();
        assert_eq!(next().as_deref(), Some("one"));
        assert_eq!(next().map(|line| line.len()), Some(MAX_LINE));
        assert_eq!(next().as_deref(), Some(""));
        assert_eq!(next(), None);
    }
}
