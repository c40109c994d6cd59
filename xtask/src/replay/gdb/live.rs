//! A machine that replays, as a debugger sees it.

use std::collections::{BTreeMap, VecDeque};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use pollux_ft::EntryRef;
use pollux_ft::batch::Batch;
use pollux_ft::message::Message;
use pollux_record::{Outcome, Record, Session};
use serde_json::{Map, Value};

use super::debugger::{Machine, Refused, Stop, Stops};
use crate::replay::Replay;
use crate::replay::run::{REST, Run, reader_at};
use crate::rig::printable;

/// How long an answer may take that needs no run of the guest.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a machine may take from its start to the complete state: gigabytes take their time.
const START: Duration = Duration::from_secs(600);
/// Entries of the log that are shown before the guest's position, and from there on.
const AROUND: usize = 5;
/// Bytes of memory that it tells at once.
const PIECE: u64 = 1024;

/// A machine that replays a session for a debugger.
#[derive(Debug)]
pub struct Live<'a> {
    replay: &'a Replay<'a>,
    index: usize,
    session: &'a Session,
    flip: Option<u64>,
    /// None only while one machine takes the place of another.
    run: Option<Run>,
    stops: String,
    position: u64,
    /// Why it goes no further.
    over: Option<String>,
    /// How long the last way back to the beginning took.
    pub rewound_in: Duration,
}

impl<'a> Live<'a> {
    /// Starts a machine; its guest stands at the session's beginning. `flip` is as without a debugger.
    pub fn start(replay: &'a Replay<'a>, index: usize, session: &'a Session, flip: Option<u64>) -> Result<Self> {
        let started = Instant::now();
        let run = Run::start(replay, index, session, flip)?;
        let (stops, position, over) = ("debug stops".to_owned(), 0, None);
        let run = Some(run);
        let mut live = Self { replay, index, session, flip, run, stops, position, over, rewound_in: Duration::ZERO };
        live.begin()?;
        live.rewound_in = started.elapsed();
        Ok(live)
    }

    fn begin(&mut self) -> Result<()> {
        self.played()?.waits = true;
        while !self.played()?.has_come() {
            self.turn()?;
            self.played()?.check_life()?;
        }
        self.ask("debug hold", "debug-ok").context("the recorded hypervisor knows no debugger")?;
        self.played()?.waits = false;
        let stop = self.answer("debug-stop", START)?;
        self.position = number(&stop, "position")?;
        let stops = self.stops.clone();
        self.ask(&stops, "debug-ok").map(drop)
    }

    fn played(&mut self) -> Result<&mut Run> {
        self.run.as_mut().context("there is no machine any more")
    }

    /// Lets machine and recording go on, and rests if there is nothing to do.
    pub fn turn(&mut self) -> Result<()> {
        if !self.played()?.turn()? {
            thread::sleep(REST);
        }
        Ok(())
    }

    /// The next of what it says to a debugger.
    fn take(&mut self, name: &str) -> Result<Option<Map<String, Value>>> {
        while let Some((event, fields)) = self.played()?.answers.pop_front() {
            if event == name {
                return Ok(Some(fields));
            }
            if event == "refused" {
                let why = fields.get("reason").and_then(Value::as_str).unwrap_or("it does not say why");
                return Err(Refused(printable(why).to_string()).into());
            }
        }
        Ok(None)
    }

    fn answer(&mut self, name: &str, patience: Duration) -> Result<Map<String, Value>> {
        let until = Instant::now() + patience;
        loop {
            if let Some(fields) = self.take(name)? {
                return Ok(fields);
            }
            // One that found a difference has halted, and can be looked at.
            if let Some(why) = &self.played()?.halted.clone().filter(|_| self.over.is_none()) {
                bail!("the machine has halted: {}", printable(why));
            }
            ensure!(Instant::now() < until, "the machine does not answer");
            self.turn()?;
        }
    }

    fn ask(&mut self, command: &str, answer: &str) -> Result<Map<String, Value>> {
        self.played()?.answers.clear();
        self.played()?.command(command)?;
        self.answer(answer, PATIENCE)
    }

    /// It goes no further: why. Where it stands, if it says so.
    fn end(&mut self, why: String) -> Stop {
        self.over = Some(why.clone());
        let registers = self.ask("debug registers", "debug-registers");
        if let Ok(position) = registers.and_then(|fields| number(&fields, "position")) {
            self.position = position;
        }
        Stop::Over(why)
    }

    /// Digests that were compared so far, and were equal.
    pub fn digests(&self) -> u64 {
        self.run.as_ref().map_or(0, |run| run.player.progress().digests)
    }

    /// What the log holds around the guest's position, a line each: number, position, kind, and what it brings.
    ///
    /// # Errors
    /// When the recording cannot be read any more.
    pub fn entries(&self) -> Result<String> {
        let mut reader = reader_at(self.replay, self.index)?;
        let (mut near, mut behind) = (VecDeque::new(), 0);
        // One that breaks off was said to do so.
        while behind < AROUND
            && let Ok(Some(record)) = reader.next_record()
        {
            let (kind, payload) = match record {
                Record::Message(kind, payload) => (kind, payload),
                Record::Session { .. } | Record::SessionEnd(_) => break,
                _ => continue,
            };
            let Ok(Message::Entries(batch)) = Message::decode(kind, &payload) else { continue };
            let mut batch = Batch::open(batch).map_err(|_| anyhow!("a malformed batch"))?;
            while let Some((seq, position, entry)) = batch.next_entry().map_err(|_| anyhow!("a malformed entry"))? {
                let bytes = match entry {
                    EntryRef::PacketIn(data) | EntryRef::ConsoleIn(data) | EntryRef::DiskDone(data) => data.len(),
                    _ => 0,
                };
                let bytes = if bytes > 0 { format!(", {bytes} bytes") } else { String::new() };
                near.push_back(format!("entry {} at {position}: {}{bytes}", seq.0, entry.kind().name()));
                behind += usize::from(position.0 >= self.position);
                if behind == 0 && near.len() > AROUND {
                    near.pop_front();
                }
                if behind == AROUND {
                    break;
                }
            }
        }
        Ok(near.into_iter().collect::<Vec<_>>().join("\n"))
    }

    /// Where the guest stood when a difference was found.
    pub fn stands(&self) -> Option<&str> {
        self.run.as_ref()?.stands.as_deref()
    }

    /// Plays the rest, and says how it ended, as a replay without a debugger does.
    pub fn finish(mut self) -> Result<()> {
        if self.over.is_none() {
            self.played()?.command(&format!("debug run-to {} none", u64::MAX))?;
        }
        let spinner = crate::spinner::Spinner::start("replaying the rest".to_owned());
        let (index, session, flip) = (self.index, self.session, self.flip);
        let outcome = self.played()?.until_it_ends(session, &spinner)?;
        drop(spinner);
        self.played()?.report(&outcome, index, session, flip)
    }
}

fn number(fields: &Map<String, Value>, name: &str) -> Result<u64> {
    fields.get(name).and_then(Value::as_u64).with_context(|| format!("the machine's answer has no {name}"))
}

impl Machine for Live<'_> {
    fn bounds(&self) -> (u64, u64) {
        (self.session.state.map_or(0, |state| state.0), self.session.position.0)
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn rewind(&mut self) -> Result<()> {
        let started = Instant::now();
        // They have the same wires.
        self.run = None;
        self.run = Some(Run::start(self.replay, self.index, self.session, self.flip)?);
        self.over = None;
        self.begin()?;
        self.rewound_in = started.elapsed();
        Ok(())
    }

    fn run(&mut self, until: u64, stops: Stops, interrupted: &mut dyn FnMut() -> bool) -> Result<Stop> {
        if let Some(why) = &self.over {
            return Ok(Stop::Over(why.clone()));
        }
        self.played()?.answers.clear();
        self.played()?.command(&format!("debug run-to {until} {}", stops.name()))?;
        let (mut gives_up, mut ends) = (false, false);
        loop {
            if let Some(stop) = self.take("debug-stop")? {
                self.position = number(&stop, "position")?;
                let address = number(&stop, "address")?;
                return Ok(match stop.get("why").and_then(Value::as_str).unwrap_or_default() {
                    "break" => Stop::Break(address),
                    "watch" => Stop::Watch(address),
                    "input" => Stop::Input(address),
                    _ if gives_up && self.position < until => Stop::Interrupted,
                    _ => Stop::Arrived,
                });
            }
            let powered_off = self.session.powered_off;
            match self.played()?.player.outcome() {
                // One that switches itself off comes to its end by itself, and the player's part is over before.
                Some(Outcome::Equal) if !ends && !powered_off => {
                    // It stands at the end, or waits there for more of the log: then it stands by this.
                    ends = true;
                    self.played()?.command("debug interrupt")?;
                }
                Some(Outcome::Diverged(why)) => {
                    let why = format!("The replay DIFFERS from the recording: {}", printable(why));
                    return Ok(self.end(why));
                }
                Some(Outcome::Failed(why)) => {
                    let why = format!("The replay goes no further: {}", printable(why));
                    return Ok(self.end(why));
                }
                Some(Outcome::Equal) | None => {}
            }
            self.played()?.check_life()?;
            if !gives_up && interrupted() {
                gives_up = true;
                self.played()?.command("debug interrupt")?;
            }
            self.turn()?;
        }
    }

    fn set_stops(&mut self, breaks: &[u64], watches: &[(u64, u64)]) -> Result<()> {
        let mut command = "debug stops".to_owned();
        breaks.iter().for_each(|address| command += &format!(" break={address:x}"));
        watches.iter().for_each(|(address, len)| command += &format!(" watch={address:x}:{len}"));
        if command != self.stops {
            self.ask(&command, "debug-ok")?;
            self.stops = command;
        }
        Ok(())
    }

    fn registers(&mut self) -> Result<BTreeMap<String, u64>> {
        let fields = self.ask("debug registers", "debug-registers")?;
        let registers = fields.get("registers").and_then(Value::as_object).context("the answer has no registers")?;
        Ok(registers.iter().filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect())
    }

    fn read(&mut self, address: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len {
            let piece = PIECE.min(len - bytes.len() as u64);
            let from = address.wrapping_add(bytes.len() as u64);
            let fields = self.ask(&format!("debug read {from:x} {piece}"), "debug-memory")?;
            let text = fields.get("bytes").and_then(Value::as_str).unwrap_or_default();
            let got = crate::replay::place::bytes_of_hex(text).context("the answer is no memory")?;
            let all = got.len() as u64 == piece;
            bytes.extend(got);
            if !all {
                break;
            }
        }
        Ok(bytes)
    }
}
