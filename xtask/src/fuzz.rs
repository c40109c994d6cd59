//! `cargo xtask fuzz`: searches for inputs that break what reads bytes from outside.
//!
//! The targets and their corpus are `tests/fuzz`; the search is libFuzzer's, guided by coverage. Stable Rust can be built
//! with that: the pass is part of LLVM, and only sanitizers, which code without `unsafe` hardly needs, are not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::artefacts;
use crate::needs::{self, Need};
use crate::output::say;
use crate::process::Process;
use crate::units::parse_duration;

/// Slowest input that is no fault, in seconds.
const SLOWEST: u32 = 10;
/// Longest input that is tried: two pages and a little, or a hundred messages.
const LONGEST: usize = 16 << 10;
/// On top of the time that was asked for: loading the corpus, and a last slow input.
const GRACE: Duration = Duration::from_secs(600);

/// What to fuzz.
#[derive(Debug, Args)]
pub struct FuzzArgs {
    /// The target; all of them, one after the other, if none is named
    target: Option<String>,
    /// How long each target is searched
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    duration: Duration,
    /// Seed of the search; each search has another one by default, and says which
    #[arg(long)]
    seed: Option<u32>,
    /// Only run the target with this input, such as that of a crash
    #[arg(long, value_name = "FILE", requires = "target", conflicts_with = "keep")]
    input: Option<PathBuf>,
    /// Afterwards replace the corpus in the tree by the fewest inputs, old and new, that cover the same
    #[arg(long)]
    keep: bool,
    /// Install what is missing
    #[arg(long)]
    yes: bool,
}

/// Fuzzes what was asked for; an input that breaks a target is an error.
pub fn run(arguments: &FuzzArgs) -> Result<()> {
    let all = targets()?;
    let wanted: Vec<_> = match &arguments.target {
        Some(name) => {
            ensure!(all.contains(name), "there is no target `{name}`; the targets are {}", all.join(", "));
            vec![name.clone()]
        }
        None => all,
    };
    needs::ensure_present(&[Need::Cxx], arguments.yes)?;
    let program = artefacts::build_fuzzer()?;
    for name in wanted {
        let target = Target::new(&program, name)?;
        match &arguments.input {
            Some(input) => target.repeat(input)?,
            None => target.search(arguments)?,
        }
        if arguments.keep {
            target.keep()?;
        }
    }
    Ok(())
}

fn corpus() -> PathBuf {
    artefacts::root().join("tests/fuzz/corpus")
}

/// Each target has a folder of its own in the corpus; a test sees to that.
fn targets() -> Result<Vec<String>> {
    let corpus = corpus();
    let folders = fs::read_dir(&corpus).with_context(|| format!("cannot read {}", corpus.display()))?;
    let mut names = Vec::new();
    for folder in folders {
        names.push(folder?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// One target and its places.
struct Target<'a> {
    program: &'a Path,
    name: String,
    /// Inputs in the tree.
    corpus: PathBuf,
    /// Inputs that were found here and cover more.
    found: PathBuf,
    /// Inputs that broke something.
    broken: PathBuf,
}

impl<'a> Target<'a> {
    fn new(program: &'a Path, name: String) -> Result<Self> {
        let place = artefacts::target_directory().join("fuzz");
        let (found, broken) = (place.join("found").join(&name), place.join("broken").join(&name));
        for directory in [&found, &broken] {
            fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        }
        Ok(Self { program, corpus: corpus().join(&name), name, found, broken })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command.env("POLLUX_FUZZ_TARGET", &self.name).env("RUST_BACKTRACE", "1");
        command.arg(format!("-timeout={SLOWEST}")).arg("-rss_limit_mb=2048");
        command.arg(format!("-artifact_prefix={}/", self.broken.display()));
        command
    }

    fn search(&self, arguments: &FuzzArgs) -> Result<()> {
        let seconds = arguments.duration.as_secs().max(1);
        say!("== {}: {seconds} s", self.name);
        let mut command = self.command();
        command
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={LONGEST}"))
            .arg("-print_final_stats=1");
        if let Some(seed) = arguments.seed {
            command.arg(format!("-seed={seed}"));
        }
        command.args([&self.found, &self.corpus]);
        let before = SystemTime::now();
        let status = Process::spawn(&mut command)?.wait(arguments.duration + GRACE)?;
        if status.success() {
            return Ok(());
        }
        match self.newest_broken(before)? {
            Some(input) => bail!(
                "{} was broken; the input is {}; to run it again: cargo xtask fuzz {} --input {}",
                self.name,
                input.display(),
                self.name,
                input.display()
            ),
            None => bail!("the fuzzer of {} failed ({status})", self.name),
        }
    }

    fn newest_broken(&self, since: SystemTime) -> Result<Option<PathBuf>> {
        let mut newest = None;
        for file in fs::read_dir(&self.broken)? {
            let file = file?;
            let time = file.metadata()?.modified()?;
            // Times of files may be a little coarser than the clock.
            if time + Duration::from_secs(1) >= since && newest.as_ref().is_none_or(|(newest, _)| time > *newest) {
                newest = Some((time, file.path()));
            }
        }
        Ok(newest.map(|(_, path)| path))
    }

    fn repeat(&self, input: &Path) -> Result<()> {
        ensure!(input.is_file(), "there is no file {}", input.display());
        let status = Process::spawn(self.command().arg(input))?.wait(GRACE)?;
        ensure!(status.success(), "{} is broken by {} ({status})", self.name, input.display());
        say!("{} survives {}", self.name, input.display());
        Ok(())
    }

    /// The new corpus is made beside the old one, which is there until the new one is whole.
    fn keep(&self) -> Result<()> {
        let fresh = tempfile::tempdir_in(artefacts::target_directory().join("fuzz")).context("a fresh corpus")?;
        let mut command = self.command();
        // How often code runs makes no input worth keeping, only that it runs: else there would be thousands.
        command.args(["-set_cover_merge=1", "-use_counters=0"]).arg(fresh.path()).args([&self.corpus, &self.found]);
        let status = Process::spawn(&mut command)?.wait(GRACE)?;
        ensure!(status.success(), "the corpus of {} cannot be merged ({status})", self.name);
        let kept = fs::read_dir(fresh.path())?.collect::<std::io::Result<Vec<_>>>()?;
        ensure!(!kept.is_empty(), "nothing is left of the corpus of {}", self.name);
        for old in fs::read_dir(&self.corpus)? {
            fs::remove_file(old?.path())?;
        }
        for input in &kept {
            fs::copy(input.path(), self.corpus.join(input.file_name()))?;
        }
        say!("{}: {} inputs kept", self.name, kept.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_folders_of_the_corpus() {
        let names = targets().unwrap();
        assert!(names.is_sorted() && names.contains(&"heartbeat".to_owned()), "{names:?}");
    }

    #[test]
    fn an_unknown_target_is_named() {
        let arguments = FuzzArgs {
            target: Some("nonsense".into()),
            duration: Duration::from_secs(1),
            seed: None,
            input: None,
            keep: false,
            yes: false,
        };
        let error = run(&arguments).unwrap_err().to_string();
        assert!(error.contains("`nonsense`") && error.contains("heartbeat"), "{error}");
    }
}
