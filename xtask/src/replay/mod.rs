//! `cargo xtask replay`: runs a recorded guest again, in one machine, and looks whether it is the same.
//!
//! The machine is a backup that never goes live, and has no clients; its primary is this process, which says what the
//! recording says, by ft's own code.

mod list;
mod machine;
mod place;

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use pollux_ft::{Config, Meeting, NodeId, Protection, Role, Seq, Span, Time};
use pollux_record::{Contents, Outcome, Player, Reader, Record, Session, scan};

use self::machine::{News, Software, Stage, Unpacking};
use crate::output::say;
use crate::rig::accelerator;
use crate::rig::directory::PrivateDirectory;
use crate::rig::emulator::{Boot, Emulator, Hardware, RtcClock};
use crate::rig::options::{REPLAY_HEARTBEAT, REPLAY_SUSPECT};
use crate::rig::recording::Setup;
use crate::rig::{Slot, printable};
use crate::secret::Secret;
use crate::spinner::Spinner;
use crate::units::{format_bytes, format_count};
use crate::{interrupt, needs};

/// How long a machine may take until it asks for the state.
const START: Duration = Duration::from_secs(120);
/// How long a machine that found a difference may take to say where it stands.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// A machine that makes no progress for so long has stopped.
const STANDSTILL: Duration = Duration::from_secs(60);
/// How often progress is shown.
const SHOW: Duration = Duration::from_secs(1);
/// How long to wait when nothing can be done.
const REST: Duration = Duration::from_micros(500);

/// What plays the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum On {
    /// QEMU
    Qemu,
    /// Bochs
    Bochs,
}

/// What to replay.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// A recording, made by `--record`
    file: PathBuf,
    /// Only this session of it, from 1
    #[arg(long, value_name = "N")]
    session: Option<usize>,
    /// Say what is in it, and replay nothing
    #[arg(long)]
    list: bool,
    /// The emulator [default: the one that it was recorded in; counters and processors differ]
    #[arg(long, value_enum)]
    on: Option<On>,
    /// Change one bit of the frame with data, or of the typed text, in entry N or the next one with any: to see it found
    #[arg(long, value_name = "N")]
    flip: Option<u64>,
    /// Where the machine's logs go [default: nowhere]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Install what is missing
    #[arg(long)]
    yes: bool,
}

/// Does what `arguments` ask for.
pub fn run(arguments: &ReplayArgs) -> Result<()> {
    let path = &arguments.file;
    let mut unpacking = if arguments.list { None } else { Some(Unpacking::new()?) };
    let contents =
        scan(open(path)?, |name, piece| unpacking.as_mut().map_or(Ok(()), |unpacking| unpacking.take(name, piece)));
    let contents = contents.with_context(|| path.display().to_string())?;
    list::list(path, &contents)?;
    let Some(unpacking) = unpacking else { return Ok(()) };
    let setup = contents.setup.as_deref().context("the recording does not say how its machines were made")?;
    let setup: Setup = serde_json::from_str(setup).context("how the recording's machines were made")?;
    let emulator = emulator(arguments, &setup)?;
    needs::ensure_present(emulator.needs(), arguments.yes)?;
    let software = unpacking.finish()?;
    let chosen: Vec<_> = chosen(arguments, &contents)?;
    let private = PrivateDirectory::create()?;
    let directory = match &arguments.dir {
        Some(directory) => {
            std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
            directory.canonicalize()?
        }
        None => private.path().to_owned(),
    };
    for index in chosen {
        let replay = Replay { path, emulator, setup: &setup, software: &software, directory: &directory };
        replay.play(index, &contents.sessions[index], arguments.flip)?;
    }
    Ok(())
}

fn open(path: &Path) -> Result<BufReader<File>> {
    Ok(BufReader::new(File::open(path).with_context(|| format!("cannot read {}", path.display()))?))
}

fn emulator(arguments: &ReplayArgs, setup: &Setup) -> Result<Emulator> {
    let on = match (arguments.on, setup.emulator.as_str()) {
        (Some(on), _) => on,
        (None, "qemu") => On::Qemu,
        (None, "bochs") => On::Bochs,
        (None, other) => bail!("recorded in {}, which this program does not know; see --on", printable(other)),
    };
    Ok(match on {
        On::Bochs => Emulator::Bochs,
        On::Qemu => {
            let (wish, nic) = setup.wish();
            let (accelerator, _) = accelerator::choose(wish, &accelerator::nested_kvm(Path::new("/")))?;
            Emulator::Qemu(accelerator, Hardware { nic, rtc: RtcClock::Host, boot: Boot::Kernel })
        }
    })
}

/// The sessions that are to be replayed, from 0.
fn chosen(arguments: &ReplayArgs, contents: &Contents) -> Result<Vec<usize>> {
    let whole = |index: &usize| contents.sessions[*index].state.is_some();
    match arguments.session {
        None => {
            let all: Vec<_> = (0..contents.sessions.len()).filter(whole).collect();
            ensure!(!all.is_empty(), "there is no session with a complete state in the recording");
            Ok(all)
        }
        Some(number) => {
            let index = number.checked_sub(1).filter(|index| *index < contents.sessions.len());
            let index = index.with_context(|| format!("there is no session {number} in the recording"))?;
            ensure!(whole(&index), "session {number} breaks off before its state is complete");
            Ok(vec![index])
        }
    }
}

/// What all sessions are replayed with.
struct Replay<'a> {
    path: &'a Path,
    emulator: Emulator,
    setup: &'a Setup,
    software: &'a Software,
    directory: &'a Path,
}

/// A session being replayed.
struct Run {
    stage: Stage,
    player: Player,
    reader: Reader<BufReader<File>>,
    stream: Option<TcpStream>,
    started: Instant,
    /// Since when the machine follows.
    follows: Option<Instant>,
    moved: Instant,
    stands: Option<String>,
}

impl Replay<'_> {
    fn play(&self, index: usize, session: &Session, flip: Option<u64>) -> Result<()> {
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
        let mut reader = Reader::new(open(self.path)?)?;
        // Behind the beginning of this session.
        let mut begun = 0;
        while begun <= index {
            let record = reader.next_record()?.context("the session is gone from the recording")?;
            begun += usize::from(matches!(record, Record::Session { .. }));
        }
        let spinner = Spinner::start(format!("replaying session {}", index + 1));
        let stage = Stage::start(self.emulator, self.setup, self.software, key, self.directory)?;
        let started = Instant::now();
        let mut run = Run { stage, player, reader, stream: None, started, follows: None, moved: started, stands: None };
        let outcome = run.until_it_ends(session, &spinner)?;
        drop(spinner);
        run.report(&outcome, index, session, flip)
    }
}

impl Run {
    fn now(&self) -> Time {
        Time(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn until_it_ends(&mut self, session: &Session, spinner: &Spinner) -> Result<Outcome> {
        let mut show_at = self.started + SHOW;
        loop {
            interrupt::check()?;
            let mut moved = self.receive()?;
            moved |= self.feed()?;
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
            let halted = self.listen()?;
            if let Some(outcome) = self.player.outcome().cloned() {
                self.wait_for_place(&outcome)?;
                return Ok(outcome);
            }
            if let Some(why) = halted {
                bail!("the machine has halted: {}\n{}", printable(&why), self.stage.last_words());
            }
            let patience = if self.stream.is_some() { STANDSTILL } else { START };
            ensure!(self.moved.elapsed() < patience, "the machine does nothing\n{}", self.stage.last_words());
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

    /// Hears the machine's monitor; why it has halted, if it has.
    fn listen(&mut self) -> Result<Option<String>> {
        let mut halted = None;
        for news in self.stage.news()? {
            match news {
                News::Stands(fields) => self.stands = Some(place::describe(&fields)),
                News::Halted(why) => halted = Some(why),
            }
        }
        Ok(halted)
    }

    /// A machine that found a difference says where, on another line than that it did.
    fn wait_for_place(&mut self, outcome: &Outcome) -> Result<()> {
        let until = Instant::now() + LAST_WORDS;
        while matches!(outcome, Outcome::Diverged(_)) && self.stands.is_none() && Instant::now() < until {
            if self.listen()?.is_some() {
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

    fn report(&mut self, outcome: &Outcome, index: usize, session: &Session, flip: Option<u64>) -> Result<()> {
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
