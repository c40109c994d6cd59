//! `--probe`: shows what a machine says of itself (`role=probe`), and ends.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::interrupt;
use crate::output::say;
use crate::rig::options::GivenOption;
use crate::rig::{Rig, printable};

/// What makes a machine of a rig a probe. What is on COM2 is not for the rig.
const OPTIONS: [&str; 2] = ["role=probe", "monitor=none"];
/// The report's first line begins so, and its last one is one of these, or begins like the second with a reason behind.
const TITLE: &str = "role=probe: ";
const GO: &str = "GO";
const NO_GO: &str = "NO-GO: ";
/// The hypervisor refuses to start.
const REFUSED: &str = " refused: ";
/// How long a report may take; Bochs boots from a disc.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the log is looked at.
const STEP: Duration = Duration::from_millis(50);

/// The options of the hypervisor, which win over the rig's and over what the user gave.
pub fn options() -> Result<Vec<GivenOption>> {
    OPTIONS.iter().map(|text| text.parse().map_err(anyhow::Error::msg)).collect()
}

/// Prints the report of the rig's only machine.
///
/// # Errors
/// When the verdict is NO-GO, and when there is none.
pub fn show(rig: &mut Rig, limit: Option<Duration>) -> Result<()> {
    let log = rig.directory().join("castor.log");
    let end = Instant::now() + limit.unwrap_or(PATIENCE);
    loop {
        rig.step(STEP)?;
        interrupt::check()?;
        let text = read(&log)?;
        match report(&text) {
            Found::Report(lines) => {
                lines.iter().for_each(|line| say!("{}", printable(line)));
                return match lines.last() {
                    Some(&GO) => Ok(()),
                    _ => bail!("this machine cannot run a pair"),
                };
            }
            Found::Refused(why) => bail!("the hypervisor refused to start: {}", printable(why)),
            Found::Nothing => {}
        }
        if let Err(error) = rig.is_over() {
            return Err(error.context("the machine made no report"));
        }
        if Instant::now() >= end {
            bail!("the machine made no report in time; its log is {}", log.display());
        }
    }
}

fn read(log: &Path) -> Result<String> {
    match fs::read(log) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", log.display())),
    }
}

/// What is in a log.
#[derive(Debug, PartialEq, Eq)]
enum Found<'a> {
    Nothing,
    /// All lines, the verdict last.
    Report(Vec<&'a str>),
    Refused(&'a str),
}

/// Looks at complete lines only.
fn report(log: &str) -> Found<'_> {
    let Some((complete, _)) = log.rsplit_once('\n') else { return Found::Nothing };
    let mut refusals = complete.lines().filter_map(|line| line.split_once(REFUSED));
    if let Some((_, why)) = refusals.find(|(who, _)| who.contains("ERROR")) {
        return Found::Refused(why.trim_end());
    }
    let mut lines = Vec::new();
    for line in complete.lines().map(str::trim_end).skip_while(|line| !line.starts_with(TITLE)) {
        lines.push(line);
        if line == GO || line.starts_with(NO_GO) {
            return Found::Report(lines);
        }
    }
    Found::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_taken_whole() {
        let log = "[    0.0] INFO  x: GO\r\nrole=probe: a machine\r\ncpu  x  ok\r\nGO\r\n";
        assert_eq!(report(log), Found::Report(vec!["role=probe: a machine", "cpu  x  ok", "GO"]));
        for len in 0..log.len() {
            assert_eq!(report(&log[..len]), Found::Nothing, "{len}");
        }
        let log = "role=probe: a machine\nNO-GO: a; b\nmore\n";
        assert_eq!(report(log), Found::Report(vec!["role=probe: a machine", "NO-GO: a; b"]));
    }

    #[test]
    fn a_refused_start_is_told_from_a_refused_counter() {
        let log = "[    0.0] WARN  choose: the counter 'pmu' is refused: none\n";
        assert_eq!(report(log), Found::Nothing);
        let log = format!("{log}[    0.0] ERROR metal: refused: option 'x' is unknown\n");
        assert_eq!(report(&log), Found::Refused("option 'x' is unknown"));
    }

    #[test]
    fn the_options_are_options() {
        assert_eq!(options().unwrap().len(), OPTIONS.len());
    }
}
