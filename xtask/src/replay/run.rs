//! A session that is replayed: the recording on one side, the machine on the other.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pollux_ft::{Config, Meeting, NodeId, Protection, Role, Seq, Span, Time};
use pollux_record::{Outcome, Player, Reader, Record, Session};
use serde_json::{Map, Value};

use super::machine::{News, Stage};
use super::{Replay, open, place};
use crate::interrupt;
use crate::output::say;
use crate::rig::options::{REPLAY_HEARTBEAT, REPLAY_SUSPECT};
use crate::rig::{Slot, printable};
use crate::secret::Secret;
use crate::spinner::Spinner;
use crate::units::{format_bytes, format_count};

/// How long a machine that found a difference may take to say where it stands.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// A machine that makes no progress for so long has stopped.
const STANDSTILL: Duration = Duration::from_secs(60);
/// How often progress is shown.
const SHOW: Duration = Duration::from_secs(1);
/// How long a machine may take until it asks for the state.
const START: Duration = Duration::from_secs(120);
/// How long to wait when nothing can be done.
pub const REST: Duration = Duration::from_micros(500);

/// A session being replayed.
#[derive(Debug)]
pub struct Run {
    stage: Stage,
    /// The machine's primary.
    pub player: Player,
    reader: Reader<BufReader<File>>,
    stream: Option<TcpStream>,
    /// The recording waits.
    pub waits: bool,
    started: Instant,
    /// Since when the machine follows.
    follows: Option<Instant>,
    moved: Instant,
    /// Where the guest stood when a difference was found.
    pub stands: Option<String>,
    /// Why the machine has halted.
    pub halted: Option<String>,
    /// What it answered to a debugger, and was not taken.
    pub answers: VecDeque<(String, Map<String, Value>)>,
}

/// Reads the recording, from behind the beginning of this session on.
pub fn reader_at(replay: &Replay<'_>, index: usize) -> Result<Reader<BufReader<File>>> {
    let mut reader = Reader::new(open(replay.path)?)?;
    let mut begun = 0;
    while begun <= index {
        let record = reader.next_record()?.context("the session is gone from the recording")?;
        begun += usize::from(matches!(record, Record::Session { .. }));
    }
    Ok(reader)
}

impl Run {
    /// Starts a machine, and stands before the beginning of this session.
    pub fn start(replay: &Replay<'_>, index: usize, session: &Session, flip: Option<u64>) -> Result<Self> {
        let key = Secret::draw()?;
        let span = |duration: Duration| Span(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
        let config = Config {
            heartbeat_interval: span(REPLAY_HEARTBEAT),
            suspect_after: span(REPLAY_SUSPECT),
            ack_timeout: span(REPLAY_SUSPECT * 3),
            receive_buffer_bytes: usize::try_from(session.claim.settings.log_buffer).context("log-buffer")?,
            protection: Protection::from(key.pair_key()),
            ..Config::default()
        };
        let id = NodeId(fastrand::u64(1..));
        let player = Player::new(Time(0), config, session.claim.identity.clone(), id);
        let mut player = player.map_err(anyhow::Error::msg)?;
        if let Some(entry) = flip {
            player.flip(Seq(entry));
        }
        let reader = reader_at(replay, index)?;
        let stage = Stage::start(replay.emulator, replay.setup, replay.software, key, replay.directory)?;
        let started = Instant::now();
        Ok(Self {
            stage,
            player,
            reader,
            stream: None,
            waits: false,
            started,
            follows: None,
            moved: started,
            stands: None,
            halted: None,
            answers: VecDeque::new(),
        })
    }

    /// Does what can be done now; whether there was anything.
    pub fn turn(&mut self) -> Result<bool> {
        interrupt::check()?;
        let mut moved = self.receive()?;
        moved |= !self.waits && self.feed()?;
        let (now, before) = (self.now(), self.player.progress());
        self.player.turn(now);
        // The machine hears all that matters on the stream.
        while self.player.node().poll_datagram(now).is_some() {}
        moved |= self.send()?;
        if self.player.progress() != before {
            self.moved = Instant::now();
        }
        if self.follows.is_none() && self.player.node().role() == Role::Protected {
            self.follows = Some(Instant::now());
        }
        self.listen()?;
        Ok(moved)
    }

    /// Has the machine's monitor obey; what it answers is in `answers`.
    pub fn command(&mut self, text: &str) -> Result<()> {
        self.moved = Instant::now();
        self.stage.command(text)
    }

    /// Whether the machine has come, so that it can be commanded.
    pub fn has_come(&self) -> bool {
        self.stream.is_some()
    }

    /// An error if the machine has halted, or has done nothing for longer than it may.
    pub fn check_life(&self) -> Result<()> {
        if let Some(why) = &self.halted {
            bail!("the machine has halted: {}\n{}", printable(why), self.stage.last_words());
        }
        let patience = if self.stream.is_some() { STANDSTILL } else { START };
        ensure!(self.moved.elapsed() < patience, "the machine does nothing\n{}", self.stage.last_words());
        Ok(())
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// Plays all of it.
    pub fn until_it_ends(&mut self, session: &Session, spinner: &Spinner) -> Result<Outcome> {
        let mut show_at = Instant::now() + SHOW;
        loop {
            let moved = self.turn()?;
            if let Some(outcome) = self.player.outcome().cloned() {
                self.wait_for_place(&outcome)?;
                return Ok(outcome);
            }
            self.check_life()?;
            if Instant::now() >= show_at {
                show_at += SHOW;
                spinner.detail(&self.progress(session));
            }
            if !moved {
                std::thread::sleep(REST);
            }
        }
    }

    /// Takes what the machine says on the stream; whether there was anything.
    fn receive(&mut self) -> Result<bool> {
        let now = self.now();
        let Some(stream) = &mut self.stream else {
            let Ok((stream, _)) = self.stage.listener.accept() else { return Ok(false) };
            stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).context("the machine's connection")?;
            let [listener, dialer] = [Slot::Castor, Slot::Pollux].map(|slot| slot.log_address().parse::<Ipv4Addr>());
            let random = *Secret::draw()?.bytes().first_chunk().context("a secret has 32 bytes")?;
            let handshake = self.player.node().handshake(&Meeting { dialer: dialer?, listener: listener?, random });
            self.player.node().connected(now, handshake);
            (self.stream, self.moved) = (Some(stream), Instant::now());
            return Ok(true);
        };
        let mut buffer = [0; 64 << 10];
        let room = self.player.node().receive_room().min(buffer.len());
        if room == 0 {
            return Ok(false);
        }
        match stream.read(&mut buffer[..room]) {
            Ok(0) => self.hung_up(now),
            Ok(len) => {
                self.player.node().receive(now, &buffer[..len]);
                return Ok(true);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.hung_up(now),
        }
        Ok(false)
    }

    fn hung_up(&mut self, now: Time) {
        self.stream = None;
        self.player.node().disconnected(now);
    }

    /// Hands the player as much of the recording as it takes.
    fn feed(&mut self) -> Result<bool> {
        let mut fed = false;
        while self.player.wants() {
            let now = self.now();
            fed = true;
            match self.reader.next_record() {
                Ok(Some(Record::Message(kind, payload))) => {
                    self.player.message(now, kind, &payload).map_err(anyhow::Error::msg)?;
                }
                Ok(Some(Record::SessionEnd(_) | Record::Session { .. }) | None) => self.player.complete(),
                Ok(Some(_)) => {}
                // It was said already that it breaks off.
                Err(error) if matches!(error.fault, pollux_record::file::Fault::Truncated) => self.player.complete(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(fed)
    }

    fn send(&mut self) -> Result<bool> {
        let node = self.player.node();
        let Some(stream) = self.stream.as_mut().filter(|_| !node.transmit().is_empty()) else { return Ok(false) };
        match stream.write(node.transmit()) {
            Ok(sent) => {
                node.transmitted(sent);
                Ok(sent > 0)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            // The end is seen when it is read.
            Err(_) => Ok(false),
        }
    }

    /// Hears the machine's monitor.
    fn listen(&mut self) -> Result<()> {
        for news in self.stage.news()? {
            match news {
                News::Stands(fields) => self.stands = Some(place::describe(&fields)),
                News::Halted(why) => self.halted = Some(why),
                News::Answer(name, fields) => self.answers.push_back((name, fields)),
            }
        }
        Ok(())
    }

    /// A machine that found a difference says where, on another line than that it did.
    fn wait_for_place(&mut self, outcome: &Outcome) -> Result<()> {
        let until = Instant::now() + LAST_WORDS;
        while matches!(outcome, Outcome::Diverged(_)) && self.stands.is_none() && Instant::now() < until {
            self.listen()?;
            if self.halted.is_some() {
                break;
            }
            std::thread::sleep(REST);
        }
        Ok(())
    }

    fn progress(&self, session: &Session) -> String {
        let progress = self.player.progress();
        if self.follows.is_none() {
            return format!(
                "state: {} of {}",
                format_bytes(progress.state as f64),
                format_bytes(session.state_bytes as f64)
            );
        }
        let first = session.state.map_or(0, |state| state.0);
        let share = progress.position.0.saturating_sub(first) as f64 / (session.position.0 - first).max(1) as f64;
        format!("{:.0}%, position {}, {} digests equal", share * 100.0, progress.position, progress.digests)
    }

    /// Says how it ended.
    pub fn report(&mut self, outcome: &Outcome, index: usize, session: &Session, flip: Option<u64>) -> Result<()> {
        let progress = self.player.progress();
        let number = index + 1;
        match (flip, self.player.flipped()) {
            (Some(_), Some(entry)) => say!("changed on request: entry {}", entry.0),
            (Some(from), None) => bail!("nothing was changed: no entry from {from} on brings the guest anything"),
            (None, _) => {}
        }
        match outcome {
            Outcome::Equal => {}
            Outcome::Diverged(details) => {
                let details = printable(details);
                say!("session {number} DIFFERS after {} equal digests: {details}", progress.digests);
                if let Some(stands) = &self.stands {
                    say!("{}", stands.trim_end());
                }
                bail!("the guest that was replayed is not the one that was recorded");
            }
            Outcome::Failed(why) => bail!("{}\n{}", printable(why), self.stage.last_words()),
        }
        let first = session.state.map_or(0, |state| state.0);
        let ticks = session.position.0 - first;
        let took = self.follows.map_or(Duration::ZERO, |since| since.elapsed()).as_secs_f64();
        let original = session.times[2].saturating_sub(session.times[1]) as f64 / 1e6;
        say!(
            "session {number} is EQUAL: {} entries, {} instructions, {} digests compared; {took:.1} s, recorded in \
             {original:.1} s ({:.1} times as fast)",
            progress.entries,
            format_count(ticks as f64),
            progress.digests,
            original / took.max(0.001),
        );
        Ok(())
    }
}
