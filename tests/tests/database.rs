//! PostgreSQL in a protected Debian, and what its own clients see of kills; on drives of the machines' own, also of power cuts
//! of both.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pollux_tests::amount::amount;
use pollux_tests::debian;
use pollux_tests::rig::{LONG_LIFE, Platform, Rig, TAKEOVER_LIMIT, fresh_directory, kills};
use pollux_tests::skip;

const POSTGRESQL: u16 = 5432;
/// How long `pgbench` works.
const BUSY: Duration = Duration::from_secs(60);

/// What a client of PostgreSQL's prints.
fn postgres(program: &str, address: &str, arguments: &[&str]) -> Result<String> {
    let output = postgres_client(program, address, arguments)?.output().with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {said}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn postgres_client(program: &str, address: &str, arguments: &[&str]) -> Result<Command> {
    let (host, port) = address.split_once(':').context("no port")?;
    let mut command = Command::new(program);
    command.args(["-h", host, "-p", port, "-U", "postgres"]).args(arguments).env("LC_ALL", "C");
    Ok(command)
}

/// The number behind `label` in what `pgbench` says.
fn number(said: &str, label: &str) -> Result<u64> {
    let line =
        said.lines().find_map(|line| line.strip_prefix(label)).with_context(|| format!("no {label:?}: {said}"))?;
    let digits: String = line.trim().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("{label}{line}"))
}

/// Whether the clients are here.
fn has_clients() -> Result<bool> {
    let missing = ["psql", "pgbench"].iter().any(|program| Command::new(program).arg("--version").output().is_err());
    if missing {
        skip("psql and pgbench are not installed (Debian: postgresql-client, postgresql-contrib)")?;
    }
    Ok(!missing)
}

/// `pgbench` works through kills: each transaction that was confirmed is there, once, and the books balance.
fn books_balance(rig: &mut Rig, kills: usize) -> Result<()> {
    let address = rig.file()?.address(POSTGRESQL)?.to_owned();
    postgres("pgbench", &address, &["-q", "-i", "postgres"])?;
    let seconds = BUSY.as_secs().to_string();
    let mut command = postgres_client("pgbench", &address, &["-n", "-c", "4", "-T", &seconds, "postgres"])?;
    let mut clients =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("pgbench")?;
    for _ in 0..kills {
        std::thread::sleep(BUSY / 15);
        debian::kill_and_replace(rig, |_| {
            std::thread::sleep(BUSY / 15);
            Ok(())
        })?;
    }
    rig.wait("pgbench ends", 4 * BUSY, |_| Ok(clients.try_wait()?.map(drop)))?;
    let output = clients.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "pgbench: {said}{}", String::from_utf8_lossy(&output.stderr));
    let done = number(&said, "number of transactions actually processed:")?;
    ensure!(done > 0 && number(&said, "number of failed transactions:")? == 0, "{said}");
    let books = "SELECT (SELECT count(*) FROM pgbench_history), (SELECT sum(delta) FROM pgbench_history), \
                 (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
                 (SELECT sum(bbalance) FROM pgbench_branches)";
    let found = postgres("psql", &address, &["-At", "-c", books, "postgres"])?;
    let found: Vec<i64> = found.split('|').map(str::parse).collect::<Result<_, _>>().with_context(|| found.clone())?;
    println!("{done} transactions through {kills} kills; {found:?}");
    ensure!(found.len() == 5 && u64::try_from(found[0]) == Ok(done), "{done} were confirmed, {found:?}");
    ensure!(found[2..].iter().all(|sum| *sum == found[1]), "the books do not balance: {found:?}");
    debian::ensure_equal(rig, kills)
}

#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn transactions_survive_kills() -> Result<()> {
    let kills = kills(2)?;
    if !has_clients()? {
        return Ok(());
    }
    let Some(mut rig) = debian::protected("postgresql", &["--packages", "postgresql"], &[])? else { return Ok(()) };
    books_balance(&mut rig, kills)?;
    rig.stop()
}

/// A client that writes down numbers, each in a transaction of its own.
struct Ledger {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Ledger {
    fn open(address: &str) -> Result<Self> {
        let mut command = postgres_client("psql", address, &["-qAt", "postgres"])?;
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("psql")?;
        let (input, output) = (child.stdin.take().context("no pipe")?, child.stdout.take().context("no pipe")?);
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut ledger = Self { child, input, lines };
        writeln!(ledger.input, "CREATE TABLE IF NOT EXISTS ledger (number bigint PRIMARY KEY);")?;
        Ok(ledger)
    }

    /// Asks for a number to be written down.
    fn ask(&mut self, number: u64) -> Result<()> {
        writeln!(self.input, "INSERT INTO ledger VALUES ({number}) RETURNING number;").context("psql has ended")
    }

    /// Waits until that is confirmed.
    fn confirmed(&mut self, number: u64) -> Result<()> {
        match self.lines.recv_timeout(2 * TAKEOVER_LIMIT) {
            Ok(said) if said == number.to_string() => Ok(()),
            other => bail!("{other:?} instead of {number}"),
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What there is of the disk of each machine, without what the hypervisor keeps behind it.
const DISK: u64 = 512 << 20;
const GUEST: [&str; 3] = ["--packages", "postgresql", "--data-on-disk"];

/// That file system and content of both drives are whole, and the same.
fn drives_are_whole(directory: &Path) -> Result<()> {
    let mut disks = Vec::new();
    for machine in ["castor", "pollux"] {
        let disk = directory.join(format!("{machine}.disk"));
        let mut bytes = fs::read(directory.join(format!("{machine}.drive")))?;
        bytes.truncate(usize::try_from(DISK)?);
        fs::write(&disk, &bytes)?;
        disks.push(bytes);
        let output = Command::new("e2fsck").arg("-fn").arg(&disk).output().context("e2fsck")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{machine}: {said}");
        println!("{machine}: {}", said.lines().last().unwrap_or_default());
        fs::remove_file(&disk)?;
    }
    let differ = disks[0].iter().zip(&disks[1]).position(|(a, b)| a != b);
    ensure!(differ.is_none(), "the drives differ at byte {differ:?}");
    Ok(())
}

/// `POLLUX_KILLS` kills under `pgbench`, an even number; then `POLLUX_CUTS` times the power of both machines fails while a client
/// writes, and they begin again with what is on their drives: nothing that was confirmed is missing.
#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn a_database_on_drives_survives_kills_and_power_cuts() -> Result<()> {
    let (kills, cuts) = (kills(2)?, amount("POLLUX_CUTS", 2)?);
    ensure!(kills.is_multiple_of(2), "castor is told to begin after a power cut: it must have lived last");
    if Platform::get() == Platform::Bochs {
        return skip("Bochs has no NVMe drive");
    }
    if !has_clients()? {
        return Ok(());
    }
    let Some(place) = debian::build(&GUEST)? else { return Ok(()) };
    let directory = fresh_directory("database")?;
    let size = format!("nvme:{}M", DISK >> 20);
    let arguments = [&["--disk", &size, "--hypervisor-option", debian::PATIENT], &LONG_LIFE[..]].concat();
    let mut rig = begin(&directory, &place, &arguments)?;
    books_balance(&mut rig, kills)?;
    let mut written = 0;
    for cut in 0..cuts {
        let address = rig.file()?.address(POSTGRESQL)?.to_owned();
        let mut ledger = Ledger::open(&address)?;
        for _ in 0..100 {
            written += 1;
            ledger.ask(written)?;
            ledger.confirmed(written)?;
        }
        // One more is under way.
        ledger.ask(written + 1)?;
        std::thread::sleep(Duration::from_millis(3 * cut));
        for process in rig.machine_pids()? {
            kill(Pid::from_raw(process), Signal::SIGKILL)?;
        }
        // It ends by itself, and not well.
        drop(rig);
        rig = begin(&directory, &place, &arguments)?;
        let address = rig.file()?.address(POSTGRESQL)?.to_owned();
        let count = "SELECT count(*), max(number) FROM ledger";
        let found = postgres("psql", &address, &["-At", "-c", count, "postgres"])?;
        println!("power cut {cut}: {written} were confirmed, the ledger has {found}");
        let whole = |n: u64| found == format!("{n}|{n}");
        ensure!(whole(written) || whole(written + 1), "{written} were confirmed, the ledger has {found}");
        written += u64::from(whole(written + 1));
    }
    let address = rig.file()?.address(POSTGRESQL)?.to_owned();
    let sums = "SELECT count(*) FROM pgbench_history";
    println!("{} entries of pgbench's are there", postgres("psql", &address, &["-At", "-c", sums, "postgres"])?);
    off(rig)?;
    drives_are_whole(&directory)
}

/// A protected guest with what is on the drives in `directory`.
fn begin(directory: &Path, place: &str, arguments: &[&str]) -> Result<Rig> {
    let mut rig = Rig::start_in(directory, place, arguments)?;
    rig.wait("the guest's services answer", debian::BOOT_LIMIT, |rig| {
        let said = rig.read("xtask.log");
        let last = said.rsplit("cargo xtask rig").next().unwrap_or_default();
        Ok(last.contains("the guest answers").then_some(()))
    })?;
    rig.wait_file("protected", debian::BOOT_LIMIT, |file| file.protected)?;
    Ok(rig)
}

/// The guest switches itself off, in order; the rig ends then.
fn off(mut rig: Rig) -> Result<()> {
    let said = |rig: &Rig, what: &str| rig.read("console.log").matches(what).count();
    rig.wait("a login", debian::BOOT_LIMIT, |rig| Ok((said(rig, "login: ") > 0).then_some(())))?;
    let prompts = said(&rig, "# ");
    rig.ask(&["console", "root"])?;
    rig.wait("a shell", debian::BOOT_LIMIT, |rig| Ok((said(rig, "# ") > prompts).then_some(())))?;
    rig.ask(&["console", "poweroff"])?;
    ensure!(rig.wait_end(debian::BOOT_LIMIT)?.success(), "{}", rig.report());
    debian::ensure_undisturbed(&rig)
}
