//! `cargo xtask doctor`: what this desk can run.

use std::path::Path;

use anyhow::Result;

use crate::needs::{Need, State, ensure_present, install_if_possible, is_root};
use crate::output::{self, say};
use crate::rig::accelerator::{self, Accelerator, Wish};
use crate::rig::emulator::version;

/// A line of the table.
#[derive(Debug)]
struct Row {
    what: &'static str,
    usable: bool,
    detail: String,
    /// The command that changes it, if one does.
    remedy: Option<String>,
}

/// Prints the table; with `yes`, installs first what is missing. An error if something necessary is missing at the end.
pub fn run(yes: bool) -> Result<()> {
    let (optional, required): (Vec<_>, Vec<_>) = Need::ALL.into_iter().partition(|need| need.is_optional());
    if yes {
        ensure_present(&required, true)?;
        // What remains missing is in the table.
        install_if_possible(&optional, true)?;
    }
    let mut rows = required.into_iter().map(needed).collect::<Result<Vec<_>>>()?;
    let complete = rows.iter().all(|row| row.usable);
    for need in optional {
        rows.push(needed(need)?);
    }
    rows.extend([acceleration(), root()]);
    output::lines(table(&rows));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    say!("\ncores: {cores} (a pair wants 2, a core for each machine)");
    if complete {
        say!("ready: cargo xtask qemu, cargo xtask bochs");
        return Ok(());
    }
    anyhow::bail!("something necessary is missing: type the commands above, or `cargo xtask doctor --yes`")
}

fn needed(need: Need) -> Result<Row> {
    let row = |usable, detail, remedy| Row { what: need.name(), usable, detail, remedy };
    Ok(match need.state()? {
        State::Present(detail) => {
            let verdict = version::verdict(need, detail.trim_start_matches("version "));
            row(true, verdict.map_or_else(|| detail.clone(), |verdict| format!("{detail}; {verdict}")), None)
        }
        State::Missing => row(false, format!("missing; needed for: {}", need.purpose()), Some(need.command_line())),
        State::Unusable(why) => row(false, why, Some(need.command_line())),
    })
}

/// What `--accel auto` would take.
fn acceleration() -> Row {
    let kvm = accelerator::nested_kvm(Path::new("/"));
    let detail = match accelerator::choose(Wish::Auto, &kvm) {
        Ok((Accelerator::Kvm(_), why)) => format!("{why}; --accel auto takes it"),
        Ok((Accelerator::Tcg, why)) => format!("{why}; --accel auto takes tcg"),
        Err(error) => format!("{error:#}"),
    };
    Row { what: "KVM (optional)", usable: kvm.is_ok(), detail, remedy: None }
}

fn root() -> Row {
    let tun = Path::new("/dev/net/tun").exists();
    let (usable, detail) = match (is_root(), tun) {
        (true, true) => (true, "yes"),
        (true, false) => (false, "no /dev/net/tun"),
        (false, _) => (false, "not root"),
    };
    Row { what: "--tap (optional)", usable, detail: detail.to_owned(), remedy: None }
}

fn table(rows: &[Row]) -> Vec<String> {
    let width = rows.iter().map(|row| row.what.len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for row in rows {
        let mark = if row.usable { "yes" } else { "no" };
        lines.push(format!("{:<width$}  {mark:<3}  {}", row.what, row.detail));
        lines.extend(row.remedy.as_ref().map(|remedy| format!("{:<width$}       {remedy}", "")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_stand_below_what_they_cure() {
        let row = |what, usable, remedy: Option<&str>| Row {
            what,
            usable,
            detail: "detail".into(),
            remedy: remedy.map(str::to_owned),
        };
        let lines = table(&[row("long name", true, None), row("x", false, Some("apt-get install y"))]);
        assert_eq!(lines, ["long name  yes  detail", "x          no   detail", "                apt-get install y"]);
    }

    #[test]
    fn necessary_things_come_with_their_command() {
        assert!(Need::Target.command_line().starts_with("rustup"));
        assert!(Need::Qemu.command_line().contains("apt-get install -y --no-install-recommends qemu-system-x86"));
    }
}
