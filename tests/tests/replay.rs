//! The log is a recording: what a rig's backups were told runs again, and is the same.

use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use pollux_tests::load::{Load, wait_answers};
use pollux_tests::resp::Client;
use pollux_tests::rig::{Rig, TAKEOVER_LIMIT, fresh_directory};
use pollux_tests::xtask::Artefacts;
use pollux_tests::{debian, desk, xtask};

/// Digests that are waited for, far longer than they take on a busy desk.
const DIGESTS: u64 = 2;
const LIMIT: Duration = Duration::from_secs(90);

/// Replays `file`; whether that was well, and all that was said.
fn replay(file: &Path, arguments: &[&str]) -> Result<(bool, String)> {
    let _place = desk::take(1);
    let output = xtask::command().arg("replay").arg(file).args(arguments).output().context("cannot start xtask")?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    Ok((output.status.success(), said))
}

/// The number before `word`.
fn number_before(said: &str, word: &str) -> Option<u64> {
    said.split(word).next()?.split_whitespace().last()?.parse().ok()
}

/// Waits until some more digests have been compared.
fn wait_digests(rig: &mut Rig) -> Result<()> {
    let goal = rig.fresh("backup")?.digests + DIGESTS;
    rig.wait("digests are compared", LIMIT, |rig| {
        Ok(rig.status()?.of("backup").filter(|backup| backup.digests >= goal).map(drop))
    })
}

/// Records a guest that serves and computes until its primary dies; in a directory of this name.
fn record(name: &str) -> Result<(Rig, PathBuf)> {
    let directory = fresh_directory(name)?;
    let file = directory.join("recording");
    let path = file.to_str().context("the path is not UTF-8")?;
    let arguments = ["--record", path, "--guest-args", "ip=10.0.2.15/24 gw=10.0.2.2 busy"];
    let mut rig = Rig::start_in(&directory, "counter", &arguments)?;
    rig.wait_protected()?;
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    wait_answers(&mut rig, &load, 10)?;
    wait_digests(&mut rig)?;
    let backup = rig.file()?.machine("backup")?.name.clone();
    rig.kill("primary")?;
    rig.wait_role(&backup, "primary", TAKEOVER_LIMIT)?;
    load.stop()?;
    Ok((rig, file))
}

/// What GDB and its server have said.
struct Debugged {
    gdb: String,
    server: String,
}

impl Debugged {
    /// The numbers behind `word` in a line of GDB's.
    fn numbers(&self, word: &str) -> Result<Vec<u64>> {
        let rest = self.gdb.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
        let rest = rest.with_context(|| format!("gdb says nothing of {word}"))?;
        rest.split_whitespace().map(|number| number.parse().context("a number")).collect()
    }
}

/// A stock GDB, which takes the symbols of `image`, looks at this session of `file` by this script; `None` where there is none.
fn debug(file: &Path, session: u64, image: &Path, script: &str) -> Result<Option<Debugged>> {
    let _place = desk::take(1);
    let mut server = xtask::command();
    server.arg("replay").arg(file).args(["--session", &session.to_string(), "--gdb"]).stdout(Stdio::piped());
    let mut server = server.spawn().context("cannot start xtask")?;
    let mut lines = BufReader::new(server.stdout.take().context("no output")?).lines();
    let mut said = String::new();
    let target = loop {
        let line = lines.next().context("the server ends")??;
        said += &format!("{line}\n");
        if line.starts_with("target remote") {
            break line;
        }
    };
    let path = file.with_extension("gdb");
    std::fs::write(
        &path,
        format!("set confirm off\nset pagination off\nset language c\n{target}\n{script}\ndetach\n"),
    )?;
    let gdb = Command::new("gdb").args(["-nx", "-batch", "-x"]).arg(&path).arg(image).output();
    let gdb = match gdb {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            server.kill()?;
            server.wait()?;
            println!("SKIPPED: there is no gdb (Debian's package `gdb`)");
            return Ok(None);
        }
        Err(error) => return Err(error).context("cannot start gdb"),
    };
    for line in lines {
        said += &format!("{}\n", line?);
    }
    let well = server.wait()?.success();
    let gdb = format!("{}{}", String::from_utf8_lossy(&gdb.stdout), String::from_utf8_lossy(&gdb.stderr));
    println!("{gdb}\n{said}");
    ensure!(well, "the server fails");
    Ok(Some(Debugged { gdb, server: said }))
}

/// GDB goes to where the counter's store is written, forwards and backwards, and the guest stays what was recorded.
fn look_with_gdb(file: &Path) -> Result<()> {
    let source = include_str!("../guests/src/store.rs");
    let line = source.lines().position(|line| line.contains("pub fn set(&mut self")).context("Store::set")? + 1;
    // Of the store, which is the first argument, the bytes of all that it holds lie behind the map.
    let script = format!(
        "info line store.rs:{line}
        tbreak *$_
        continue
        printf \"called %llu %llu\\n\", $position, (unsigned long long) $rip
        set $bytes = (unsigned long long *) ($rdi + 24)
        watch -l *$bytes
        continue
        printf \"first %llu %llu\\n\", $position, *$bytes
        stepi
        printf \"step %llu %llu\\n\", $position, (unsigned long long) $rip
        reverse-stepi
        printf \"back %llu %llu\\n\", $position, *$bytes
        continue
        printf \"second %llu %llu\\n\", $position, *$bytes
        reverse-continue
        printf \"before %llu %llu\\n\", $position, *$bytes
        stepi
        printf \"again %llu %llu\\n\", $position, *$bytes
        monitor digest
        monitor entries
        x/1xb 0xffffffff00000000
        delete
        continue"
    );
    let script: String = script.lines().map(|line| format!("{}\n", line.trim())).collect();
    let Some(said) = debug(file, 1, Artefacts::get().path("counter")?, &script)? else { return Ok(()) };
    let [called, first, step, back] = ["called", "first", "step", "back"].map(|word| said.numbers(word));
    let [second, before, again] = ["second", "before", "again"].map(|word| said.numbers(word));
    let (called, first, second) = (called?, first?, second?);
    // A key and a value of a byte each, beside 96 for an entry; then a value of two bytes.
    ensure!(first[0] > called[0] && first[1] == 98 && second[0] > first[0] && second[1] == 99);
    ensure!(step?[0] == first[0] + 1 && back? == first);
    ensure!(before? == [second[0] - 1, 98] && again? == second);
    ensure!(said.gdb.contains("Cannot access memory at address 0xffffffff00000000"), "there is no such memory");
    ensure!(said.gdb.contains("digests were equal"), "the digests are not told");
    ensure!(said.gdb.lines().filter(|line| line.starts_with("entry ")).count() >= 5, "the log near by is not told");
    ensure!(said.gdb.contains("The recording ends here."), "its end is not found");
    ensure!(said.server.contains("session 1 is EQUAL"), "the guest is not what was recorded");
    Ok(())
}

/// It runs again with all digests equal, and one frame that is not the same is found.
#[test]
fn a_recorded_guest_runs_again() -> Result<()> {
    let (rig, file) = record("replay")?;
    rig.stop()?;
    let (well, said) = replay(&file, &[])?;
    ensure!(well && said.contains("the machine took over, in term 2"), "{said}");
    ensure!(said.contains("session 1 is EQUAL"), "{said}");
    let digests = number_before(&said, " digests compared").context("no digests")?;
    ensure!(digests >= DIGESTS, "{said}");
    look_with_gdb(&file)?;
    let (well, said) = replay(&file, &["--flip", "1"])?;
    ensure!(!well && said.contains("changed on request: entry ") && said.contains("session 1 DIFFERS"), "{said}");
    ensure!(said.contains("differs at position ") && said.contains("rflags"), "{said}");
    Ok(())
}

/// The successor's backup begins another session, which runs again, too.
#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn a_recording_goes_on_after_a_takeover() -> Result<()> {
    let (mut rig, file) = record("replay-takeover")?;
    rig.start_backup()?;
    wait_digests(&mut rig)?;
    rig.stop()?;
    let (well, said) = replay(&file, &[])?;
    ensure!(well && said.contains("session 1 is EQUAL") && said.contains("session 2 is EQUAL"), "{said}");
    ensure!(said.contains("not recorded: positions "), "{said}");
    Ok(())
}

/// A session may end by a hand-over, or since the guest switches itself off: GDB comes to its end, and back from there.
#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn gdb_comes_to_any_end() -> Result<()> {
    let directory = fresh_directory("replay-ends")?;
    let file = directory.join("recording");
    let path = file.to_str().context("the path is not UTF-8")?;
    let mut rig = Rig::start_in(&directory, "counter", &["--record", path])?;
    rig.wait_protected()?;
    wait_digests(&mut rig)?;
    let backup = rig.file()?.machine("backup")?.name.clone();
    rig.ask(&["switch"])?;
    rig.wait_role(&backup, "primary", TAKEOVER_LIMIT)?;
    rig.wait_protected()?;
    wait_digests(&mut rig)?;
    let mut client = Client::connect(&rig.service()?, TAKEOVER_LIMIT)?;
    client.send(&["SHUTDOWN"])?;
    let status = rig.wait_end(TAKEOVER_LIMIT)?;
    ensure!(status.success(), "{status}\n{}", rig.report());
    for session in [1, 2] {
        let script = "continue
            printf \"end %llu\\n\", $position
            continue
            reverse-stepi
            printf \"before %llu\\n\", $position
            stepi
            printf \"again %llu\\n\", $position";
        let script: String = script.lines().map(|line| format!("{}\n", line.trim())).collect();
        let Some(said) = debug(&file, session, Path::new("/dev/null"), &script)? else { return Ok(()) };
        let [end, before, again] = ["end", "before", "again"].map(|word| said.numbers(word));
        let (end, before) = (end?, before?);
        ensure!(said.server.contains(&format!(" to {} (ready", end[0])), "that is not its end");
        ensure!(said.gdb.matches("The recording ends here.").count() == 2 && before[0] + 1 == end[0] && again? == end);
        ensure!(said.server.contains(&format!("session {session} is EQUAL")), "the guest is not what was recorded");
    }
    Ok(())
}

/// A whole boot of Debian, from its first seconds on.
#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn a_recorded_boot_of_debian_runs_again() -> Result<()> {
    let directory = fresh_directory("replay-debian")?;
    let file = directory.join("recording");
    let path = file.to_str().context("the path is not UTF-8")?;
    let guest = ["--packages", "redis-server"];
    let Some(rig) = debian::protected("replay-debian", &guest, &["--backup", "now", "--record", path])? else {
        return Ok(());
    };
    rig.stop()?;
    let (well, said) = replay(&file, &[])?;
    ensure!(well && said.contains("session 1 is EQUAL"), "{said}");
    let bounds = said.split(", positions ").nth(1).and_then(|rest| rest.split(", ").next()).context("positions")?;
    let (begin, end) = bounds.split_once(" to ").context("two positions")?;
    look_at_linux(&file, begin.parse()?, end.parse()?)
}

/// An instruction of Linux, wherever the guest is in the middle of the recording, is found from the beginning on; the time
/// before is found from the end.
fn look_at_linux(file: &Path, begin: u64, end: u64) -> Result<()> {
    let middle = begin + (end - begin) / 2;
    let script = format!(
        "monitor position {middle}
        maintenance flush register-cache
        set $address = $rip
        printf \"middle %llu %llu\\n\", $position, (unsigned long long) $address
        x/2i $rip
        monitor position {begin}
        maintenance flush register-cache
        tbreak *$address
        continue
        printf \"found %llu %llu\\n\", $position, (unsigned long long) $rip
        stepi
        reverse-stepi
        printf \"again %llu %llu\\n\", $position, (unsigned long long) $rip"
    );
    let script: String = script.lines().map(|line| format!("{}\n", line.trim())).collect();
    let Some(said) = debug(file, 1, Path::new("/dev/null"), &script)? else { return Ok(()) };
    let [middle, found, again] = ["middle", "found", "again"].map(|word| said.numbers(word));
    let (middle, found) = (middle?, found?);
    ensure!(found[1] == middle[1] && (begin..=middle[0]).contains(&found[0]) && again? == found);
    ensure!(said.server.contains("session 1 is EQUAL"), "the guest is not what was recorded");
    Ok(())
}
