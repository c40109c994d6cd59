//! PostgreSQL in a Debian, asked by this desk's `pgbench`: with `mmu=tracked` against `mmu=native`.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::figures::SETTLE;
use super::linux::{BOOT_LIMIT, Change, fresh};
use super::report::{Figure, Wanted};
use crate::driven::pause;
use crate::guest::debian;
use crate::platform::Platform;
use crate::process;
use crate::rig::directory;

/// The port of PostgreSQL.
const PORT: u16 = 5432;
/// Clients at the same time, and for how many seconds.
const CLIENTS: &str = "4";
const SECONDS: &str = "15";
/// How the line begins that says how many transactions were done in a second, and in all.
const RATE: &str = "tps = ";
const COUNT: &str = "number of transactions actually processed: ";

/// What was reached, and what it cost.
struct Served {
    rate: f64,
    count: f64,
    change: Change,
}

/// Transactions a second.
pub fn pgbench(bench: &Bench) -> Result<Vec<Figure>> {
    ensure!(bench.platform == Platform::Qemu, "Linux takes minutes to boot in {}", bench.platform.verb());
    let (_, place) = debian::ensure_with(&["postgresql"], false)?;
    let place = place.to_str().context("the guest's place is not UTF-8")?;
    let (native, tracked) = (under(bench, place, "mmu=native")?, under(bench, place, "mmu=tracked")?);
    let note = format!("{:.1} against {:.1} transactions/s of {CLIENTS} clients", tracked.rate, native.rate);
    let ratio = tracked.rate / native.rate;
    let mut figures = vec![Figure::new("pgbench, tracked / native", Wanted::AtLeast(0.9), ratio, "", note)];
    for (mode, Served { count, change, .. }) in [("tracked", &tracked), ("native", &native)] {
        let exits = change.exits.values().sum::<f64>() / count;
        let note = format!("{:.0} k instructions; {}", change.host / count / 1e3, change.by_reason(*count));
        figures.push(Figure::new(&format!("  exits each, {mode}"), Wanted::Anything, exits, "", note));
    }
    Ok(figures)
}

/// One machine with this option, once its database is there.
fn under(bench: &Bench, guest: &str, option: &str) -> Result<Served> {
    let mut rig = bench.start(&["--guest", guest, "--solo", "--hypervisor-option", option])?;
    rig.wait_until("an answer", BOOT_LIMIT, |snapshot| snapshot.first_answer_s.is_some())?;
    let file = directory::read(rig.directory())?;
    let forward = file.forwards.iter().find(|forward| forward.guest_port == PORT);
    let address = &forward.context("no port leads to the database")?.address;
    ask(address, &["-q", "-i"])?;
    pause(SETTLE)?;
    let first = fresh(&mut rig)?;
    let said = ask(address, &["-n", "-c", CLIENTS, "-T", SECONDS])?;
    let change = Change::between(&first, &fresh(&mut rig)?)?;
    Ok(Served { rate: number(&said, RATE)?, count: number(&said, COUNT)?, change })
}

/// What `pgbench` says.
fn ask(address: &str, arguments: &[&str]) -> Result<String> {
    let (host, port) = address.split_once(':').context("no port")?;
    let mut command = Command::new("pgbench");
    command.args(["-h", host, "-p", port, "-U", "postgres"]).args(arguments).arg("postgres").env("LC_ALL", "C");
    let output = process::output(&mut command)?.context("pgbench is not installed (Debian: postgresql-contrib)")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "pgbench {}: {}", arguments.join(" "), complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The number behind `label` at the beginning of a line.
fn number(said: &str, label: &str) -> Result<f64> {
    let line = said.lines().find_map(|line| line.strip_prefix(label));
    let word = line.and_then(|line| line.split([' ', '/']).next());
    word.and_then(|word| word.parse().ok()).with_context(|| format!("pgbench does not say `{label}`: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_what_pgbench_says() {
        let said = "scaling factor: 1\nnumber of transactions actually processed: 4215\nlatency average = 1.2 ms\n\
                    tps = 140.508241 (without initial connection time)\n";
        assert_eq!((number(said, COUNT).unwrap(), number(said, RATE).unwrap()), (4215.0, 140.508241));
        assert_eq!(number("number of transactions actually processed: 7/7\n", COUNT).unwrap(), 7.0);
        assert!(number("tps = none\n", RATE).unwrap_err().to_string().contains("tps = none"));
    }
}
