//! A machine is killed, and its clients do not notice.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;
use pollux_tests::load::{Load, judge, wait_answers};
use pollux_tests::resp::{Client, Reply};
use pollux_tests::rig::{Platform, Rig, TAKEOVER_LIMIT, kills};
use pollux_tests::{history, seed, skip};

/// No reply takes so long as this when a backup dies or is replaced; it takes far less on an idle desk.
const UNNOTICED: Duration = Duration::from_secs(6);

#[test]
fn one_connection_survives_kill_after_kill() -> Result<()> {
    // In Bochs each takes a quarter of a minute.
    let kills = kills(match Platform::get() {
        Platform::Qemu => 6,
        Platform::Bochs => 2,
    })?;
    let mut random = seed::random();
    let mut rig = Rig::protected("kills", "counter", &[])?;
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    for number in 1..=kills {
        wait_answers(&mut rig, &load, 1)?;
        std::thread::sleep(Duration::from_micros(random.u64(0..1_500_000)));
        let backup = rig.file()?.machine("backup")?.name.clone();
        let before = load.answered();
        let dead = rig.kill("primary")?;
        rig.wait_role(&backup, "primary", TAKEOVER_LIMIT)?;
        wait_answers(&mut rig, &load, 1)?;
        println!("kill {number}: {dead} after {before} replies, {backup} went on");
        rig.start_backup()?;
    }
    wait_answers(&mut rig, &load, 10)?;
    let summary = judge(load)?;
    ensure!(summary.last == i64::try_from(summary.answered).ok());
    rig.wait_takeovers(kills)?;
    let status = rig.status()?;
    ensure!(status.notice("diverged").is_none(), "{:?}", status.notice("diverged"));
    rig.stop()
}

/// Its retransmission timers, not those of the rig's forwarder, decide when the client goes on.
#[test]
fn the_kernels_own_tcp_survives_a_kill() -> Result<()> {
    if !geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
        return skip("a tap interface needs root and /dev/net/tun");
    }
    let mut rig = Rig::protected("tap", "counter", &["--tap", "pollux-test"])?;
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    wait_answers(&mut rig, &load, 10)?;
    rig.kill("primary")?;
    wait_answers(&mut rig, &load, 10)?;
    judge(load)?;
    rig.wait_takeovers(1)?;
    rig.stop()
}

#[test]
fn a_new_backup_may_be_started_before_the_takeover() -> Result<()> {
    let mut rig = Rig::protected("eager", "counter", &[])?;
    let (service, epoch) = (rig.service()?, Instant::now());
    let loads: Vec<_> = (0..3).map(|_| Load::start(&service, "x", epoch)).collect::<Result<_>>()?;
    wait_answers(&mut rig, &loads[0], 1)?;
    let dead = rig.kill("primary")?;
    rig.wait_role(&dead, "dead", TAKEOVER_LIMIT)?;
    rig.start_backup()?;
    wait_answers(&mut rig, &loads[0], 1)?;
    let mut increments = Vec::new();
    for load in loads {
        increments.extend(load.stop()?);
    }
    println!("{:?}", history::check(1, &increments)?);
    rig.stop()
}

#[test]
fn a_benchmark_sees_no_error_during_a_kill() -> Result<()> {
    let available = Command::new("redis-benchmark").arg("--version").stdout(Stdio::null()).status();
    if available.is_err() {
        return skip("redis-benchmark is not installed (cargo xtask doctor --yes)");
    }
    let mut rig = Rig::protected("benchmark", "counter", &[])?;
    let service = rig.service()?;
    let (address, port) = service.split_once(':').context("service")?;
    let mut benchmark = Command::new("redis-benchmark");
    benchmark.args(["-h", address, "-p", port, "-c", "16", "-n", "8000", "-t", "incr,get,set", "--csv"]);
    let mut benchmark = benchmark.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    std::thread::sleep(Duration::from_millis(seed::random().u64(300..1000)));
    ensure!(benchmark.try_wait()?.is_none(), "the benchmark was over before the kill: make it longer");
    rig.kill("primary")?;
    rig.wait("the benchmark ends", Duration::from_secs(90), |_| Ok(benchmark.try_wait()?))
        .inspect_err(|_| drop(benchmark.kill()))?;
    let output = benchmark.wait_with_output()?;
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    println!("{text}");
    ensure!(output.status.success(), "redis-benchmark: {}", output.status);
    ensure!(!text.contains("rror"), "redis-benchmark complains");
    rig.wait_takeovers(1)?;
    rig.stop()
}

#[test]
fn nobody_notices_that_the_backup_dies() -> Result<()> {
    let mut rig = Rig::protected("backup-dies", "counter", &[])?;
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    wait_answers(&mut rig, &load, 10)?;
    let console = rig.read("console.log");
    ensure!(console.lines().any(|line| line == "counter: listening on 10.0.2.15:6379"), "{console}");
    rig.kill("backup")?;
    rig.wait_file("unprotected", TAKEOVER_LIMIT, |file| !file.protected)?;
    wait_answers(&mut rig, &load, 10)?;
    rig.start_backup()?;
    wait_answers(&mut rig, &load, 10)?;
    let summary = judge(load)?;
    // Output waits for acks until the backup is given up, after a second.
    let limit = Platform::get().longest(UNNOTICED);
    ensure!(summary.longest_wait < limit, "a reply took {:?}", summary.longest_wait);
    ensure!(rig.status()?.takeovers.is_empty());
    rig.stop()
}

#[test]
fn the_roles_change_without_a_failure() -> Result<()> {
    let mut rig = Rig::protected("switch", "counter", &[])?;
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    for number in 1..=4 {
        wait_answers(&mut rig, &load, 10)?;
        let file =
            rig.wait_file("a backup", TAKEOVER_LIMIT, |file| file.protected && file.machine("backup").is_ok())?;
        let backup = file.machine("backup")?.name.clone();
        println!("{}", rig.ask(&["switch"])?.trim());
        let takeovers = rig.wait_takeovers(number)?;
        let last = takeovers.last().context("no takeover")?;
        ensure!(last["planned"] == true && last["name"] == *backup, "{takeovers:?}");
        rig.wait_role(&backup, "primary", TAKEOVER_LIMIT)?;
        // Nobody had to be suspected: that takes a second.
        let limit = Platform::get().longest(Duration::from_millis(500)).as_secs_f64() * 1e3;
        ensure!(last["detect_ms"].as_f64().is_some_and(|detection| detection < limit), "{last}");
    }
    wait_answers(&mut rig, &load, 10)?;
    let summary = judge(load)?;
    println!("the longest wait for a reply was {:?}", summary.longest_wait);
    rig.stop()
}

#[test]
fn the_last_reply_before_a_power_off_is_sent() -> Result<()> {
    let mut rig = Rig::protected("power-off", "counter", &[])?;
    let mut client = Client::connect(&rig.service()?, TAKEOVER_LIMIT)?;
    ensure!(client.increment("x")? == 1);
    // The guest sends the reply and switches itself off at once.
    client.send(&["SHUTDOWN"])?;
    ensure!(client.receive()? == Reply::Simple("OK".into()));
    // Both machines halt, without a takeover, and with them the rig.
    let status = rig.wait_end(TAKEOVER_LIMIT)?;
    ensure!(status.success(), "{status}\n{}", rig.report());
    for machine in ["castor.log", "pollux.log"] {
        let log = rig.read(machine);
        ensure!(log.contains("the guest powered off") && !log.contains("draining"), "{machine}:\n{log}");
    }
    Ok(())
}

#[test]
fn a_running_backup_is_replaced() -> Result<()> {
    let mut rig = Rig::protected("replace", "counter", &[])?;
    let before = rig.file()?.machine("backup")?.clone();
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    wait_answers(&mut rig, &load, 10)?;
    rig.ask(&["replace"])?;
    let file = rig.wait_protected()?;
    let after = file.machine("backup")?;
    ensure!(after.name == before.name && after.pid != before.pid, "{before:?} {after:?}");
    wait_answers(&mut rig, &load, 10)?;
    let summary = judge(load)?;
    println!("the longest wait for a reply was {:?}", summary.longest_wait);
    let status = rig.status()?;
    ensure!(status.notice("twin silent").is_none(), "somebody had to be suspected\n{}", rig.report());
    let limit = Platform::get().longest(UNNOTICED);
    ensure!(summary.longest_wait < limit, "a reply took {:?}", summary.longest_wait);
    ensure!(status.takeovers.is_empty());
    rig.stop()
}

/// A machine says that it has halted when its twin has its last words, and not before: what switches it off at that word
/// takes no farewell with it.
#[test]
fn a_farewell_arrives_before_the_machine_is_switched_off() -> Result<()> {
    let mut rig = Rig::protected("farewell", "counter", &[])?;
    let backup = rig.file()?.machine("backup")?.name.clone();
    rig.link("log", &["delay=300ms"])?;
    rig.command(&backup, &["stop"])?;
    rig.wait_role(&backup, "dead", TAKEOVER_LIMIT)?;
    let status = rig.status()?;
    let at = |text: &str| status.notices.iter().position(|notice| notice.text.contains(text));
    let (heard, halted) = (at("twin left in order"), at("stopped by command"));
    ensure!(heard.is_some() && heard < halted, "{heard:?} {halted:?}\n{}", rig.report());
    ensure!(status.notice("twin silent").is_none(), "somebody had to be suspected\n{}", rig.report());
    ensure!(status.takeovers.is_empty());
    rig.stop()
}

/// The primary's figure about its last transfer.
fn transfer(rig: &mut Rig, key: &str) -> Result<f64> {
    let status = rig.fresh("primary")?;
    status.more["transfer"][key].as_f64().with_context(|| format!("no transfer.{key}"))
}

#[test]
fn a_guest_that_rewrites_its_memory_is_protected_while_it_runs() -> Result<()> {
    let mut arguments =
        vec!["--guest-memory", "128M", "--guest-args", "ip=10.0.2.15/24 gw=10.0.2.2 fill=16M rewrite=1M"];
    if Platform::get() == Platform::Bochs {
        // A machine there has 25 million instructions a second, and ciphers take 30 a byte: the guest would write faster.
        arguments.extend(["--key", "none"]);
    }
    let mut rig = Rig::protected("rewrite", "counter", &arguments)?;
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    wait_answers(&mut rig, &load, 1)?;
    // A transfer at the start would find little memory in use; and this one's figures are of the full memory.
    rig.kill("backup")?;
    rig.wait_file("unprotected", TAKEOVER_LIMIT, |file| !file.protected)?;
    rig.start_backup()?;
    let [rounds, pause, bytes] = ["rounds", "pause_ms", "bytes"].map(|key| transfer(&mut rig, key));
    let (rounds, pause, bytes) = (rounds?, pause?, bytes?);
    println!("{rounds} rounds, {bytes} bytes, guest stopped for {pause} ms");
    ensure!(bytes > f64::from(16 << 20) && rounds >= 2.0);
    ensure!(pause < 1000.0, "the guest stood still for {pause} ms");
    // Whatever was missed would differ: the first time around all of memory is compared quickly.
    rig.wait("all of memory is compared", Duration::from_secs(120), |rig| {
        let status = rig.status()?;
        ensure!(status.notice("diverged").is_none());
        Ok(status.of("backup").filter(|backup| backup.digests >= 128 * 4).map(drop))
    })?;
    rig.kill("primary")?;
    wait_answers(&mut rig, &load, 10)?;
    judge(load)?;
    rig.stop()
}
