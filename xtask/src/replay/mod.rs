//! `cargo xtask replay`: runs a recorded guest again, in one machine, and looks whether it is the same.
//!
//! The machine is a backup that never goes live, and has no clients; its primary is this process, which says what the
//! recording says, by ft's own code.

mod gdb;
mod list;
mod machine;
mod place;
mod run;

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use pollux_record::{Contents, Session, scan};

use self::machine::{Software, Unpacking};
use self::run::Run;
use crate::needs;
use crate::rig::accelerator;
use crate::rig::directory::PrivateDirectory;
use crate::rig::emulator::{Boot, Emulator, Hardware, RtcClock};
use crate::rig::printable;
use crate::rig::recording::Setup;
use crate::spinner::Spinner;

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
    /// Let GDB look at the first session, or at --session, forwards and backwards: on this port of 127.0.0.1, or a free one
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "0", conflicts_with = "list")]
    gdb: Option<u16>,
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
        let session = &contents.sessions[index];
        match arguments.gdb {
            // One guest is enough to look at.
            Some(port) => return gdb::serve(&replay, index, session, (port, arguments.flip)),
            None => replay.play(index, session, arguments.flip)?,
        }
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
#[derive(Debug)]
struct Replay<'a> {
    path: &'a Path,
    emulator: Emulator,
    setup: &'a Setup,
    software: &'a Software,
    directory: &'a Path,
}

impl Replay<'_> {
    fn play(&self, index: usize, session: &Session, flip: Option<u64>) -> Result<()> {
        let spinner = Spinner::start(format!("replaying session {}", index + 1));
        let mut run = Run::start(self, index, session, flip)?;
        let outcome = run.until_it_ends(session, &spinner)?;
        drop(spinner);
        run.report(&outcome, index, session, flip)
    }
}
