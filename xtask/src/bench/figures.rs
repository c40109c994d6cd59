//! How each figure is measured. Ratios come from one run on one desk; times in a rig are indications.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::linux::linux;
use super::mmu::mmu;
use super::pgbench::pgbench;
use super::report::{Figure, Wanted, quantile};
use crate::driven::client::{Counting, load};
use crate::driven::{DrivenRig, pause};
use crate::platform::Platform;
use crate::rig::control::Request;
use crate::rig::monitor::{Amount, Status, Takeover, Transfer};
use crate::rig::roles::Role;

/// Measures one or more figures.
type Measure = fn(&Bench) -> Result<Vec<Figure>>;

/// All figures by name.
pub const ALL: [(&str, Measure); 13] = [
    ("start", start),
    ("blackout", blackout),
    ("throughput", throughput),
    ("latency", latency),
    ("overhead", overhead),
    ("exits", exits),
    ("transfer", transfer),
    ("log-compute", log_compute),
    ("log-idle", log_idle),
    ("log-frame", log_frame),
    ("linux", linux),
    ("mmu", mmu),
    ("pgbench", pgbench),
];

/// For how long a rate is taken.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
/// How long after a start caches, calibration and TCP have settled.
pub(super) const SETTLE: Duration = Duration::from_secs(3);
/// What one digest takes in of the guest's memory, and how long the first time over 64 MiB may take.
const SLICE: u64 = 256 << 10;
const FIRST_DIGESTS_LIMIT: Duration = Duration::from_secs(60);
/// The memory of our guests here, and of that which computes.
pub(super) const MEMORY: u64 = 64 << 20;
/// Clients that load the guest at the same time.
pub(super) const CLIENTS: usize = 16;
/// How often throughput is compared.
const ROUNDS: usize = 3;

impl Bench {
    pub(super) fn start(&self, arguments: &[&str]) -> Result<DrivenRig> {
        DrivenRig::start(self.platform, &self.with_software(arguments))
    }

    pub(super) fn pair(&self, arguments: &[&str]) -> Result<DrivenRig> {
        DrivenRig::pair(self.platform, &self.with_software(arguments))
    }

    fn with_software<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        let hypervisor = self.hypervisor.iter().flat_map(|path| ["--hypervisor", path]);
        let key = self.key.iter().flat_map(|key| ["--key", key]);
        arguments.iter().copied().chain(hypervisor).chain(key).collect()
    }

    /// What is wanted of figures that depend on the speed of the machine: limits are for QEMU.
    fn in_qemu(&self, wanted: Wanted) -> Wanted {
        if self.platform == Platform::Qemu { wanted } else { Wanted::Anything }
    }
}

fn start(bench: &Bench) -> Result<Vec<Figure>> {
    let mut rig = bench.pair(&[])?;
    let seconds = rig.snapshot()?.first_protected_s.context("never protected")?;
    Ok(vec![Figure::new(
        "start to protected",
        bench.in_qemu(Wanted::AtMost(15.0)),
        seconds,
        "s",
        "machines started to protected",
    )])
}

fn blackout(bench: &Bench) -> Result<Vec<Figure>> {
    let mut rig = bench.pair(&[])?;
    let kills = bench.kills as usize;
    let mut blackouts = Vec::new();
    for round in 1..=kills {
        let client = Counting::start(rig.service(), &format!("blackout-{round}"))?;
        // Not in step with anything in the rig.
        pause(Duration::from_millis(700 + 137 * (round as u64 % 16)))?;
        rig.kill_primary(round)?;
        pause(SETTLE)?;
        let times = client.finish()?;
        blackouts.push(times.into_iter().fold(0.0, f64::max));
        rig.protect_again()?;
        pause(SETTLE)?;
    }
    let takeovers = rig.snapshot()?.takeovers;
    ensure!(takeovers.len() == kills, "{} takeovers were reported for {kills} kills", takeovers.len());
    let part = |name: &str, of: fn(&Takeover) -> f64| -> Result<Figure> {
        let seconds: Vec<_> = takeovers.iter().map(|takeover| of(&takeover.times) / 1e3).collect();
        let (median, longest) = middle_and_longest(&seconds)?;
        let note = format!("median, longest {longest:.4} s, by the hypervisor's clock");
        Ok(Figure::new(&format!("  {name}"), Wanted::Anything, median, "s", note))
    };
    let (median, longest) = middle_and_longest(&blackouts)?;
    let note = format!("median of {kills} kills, longest {longest:.2} s; no answer lost or doubled");
    Ok(vec![
        Figure::new("blackout seen by the client", bench.in_qemu(Wanted::AtMost(2.5)), median, "s", note),
        part("detection", |times| times.detect_ms)?,
        part("arbiter", |times| times.arbiter_ms)?,
        part("drain", |times| times.drain_ms)?,
        part("announcement", |times| times.announce_ms)?,
    ])
}

/// The median and the largest of some values.
fn middle_and_longest(values: &[f64]) -> Result<(f64, f64)> {
    quantile(values, 0.5).zip(quantile(values, 1.0)).context("no value")
}

fn throughput(bench: &Bench) -> Result<Vec<Figure>> {
    let measure = |rig: &DrivenRig| -> Result<f64> {
        load(rig.service(), CLIENTS, SETTLE)?;
        Ok(load(rig.service(), CLIENTS, WINDOW)?.1)
    };
    // One close after the other: a desk is not equally fast all the time.
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let solo = {
            let mut rig = bench.start(&["--solo"])?;
            wait_for_answer(&mut rig)?;
            measure(&rig)?
        };
        let mut pair = bench.pair(&[])?;
        wait_until_compared(&mut pair, MEMORY)?;
        let protected = measure(&pair)?;
        drop(pair);
        rounds.push((protected / solo, protected, solo));
    }
    rounds.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (ratio, protected, solo) = rounds[ROUNDS / 2];
    let (least, most) = (rounds[0].0, rounds[ROUNDS - 1].0);
    let note = format!(
        "{CLIENTS} clients, {protected:.0} against {solo:.0} requests/s; {least:.2} to {most:.2} in {ROUNDS} rounds"
    );
    Ok(vec![Figure::new("throughput, protected / solo", bench.in_qemu(Wanted::AtLeast(0.7)), ratio, "", note)])
}

fn latency(bench: &Bench) -> Result<Vec<Figure>> {
    let mut rig = bench.pair(&[])?;
    let mut medians = Vec::new();
    let delays = ["0", "500us", "5ms", "20ms"];
    for delay in delays {
        rig.ask(&Request::Link { network: "log".to_owned(), changes: vec![format!("delay={delay}")] })?;
        pause(SETTLE)?;
        let times = load(rig.service(), 1, WINDOW)?.0;
        medians.push(quantile(&times, 0.5).context("no answer")? * 1e3);
    }
    let base = medians[0];
    let mut figures = vec![Figure::new("latency, no delay", Wanted::Anything, base, "ms", "median, one client")];
    for (delay, median) in delays.into_iter().zip(medians).skip(1) {
        let wanted = if delay == "5ms" { bench.in_qemu(Wanted::Between(10.0, 13.0)) } else { Wanted::Anything };
        let name = format!("latency added by {delay} one way");
        figures.push(Figure::new(&name, wanted, median - base, "ms", "median, one client"));
    }
    Ok(figures)
}

fn overhead(bench: &Bench) -> Result<Vec<Figure>> {
    let (first, last) = observe_computing(bench)?;
    let host = last.host_ticks.saturating_sub(first.host_ticks) as f64;
    let guest = last.guest_ticks.saturating_sub(first.guest_ticks) as f64;
    ensure!(host > 0.0 && guest > 0.0 && guest <= host, "the counters do not fit: guest {guest}, all {host}");
    let note = format!("protected, over {:.1} G guest instructions", guest / 1e9);
    Ok(vec![Figure::new(
        "hypervisor's share of instructions",
        bench.in_qemu(Wanted::AtMost(2.0)),
        (1.0 - guest / host) * 100.0,
        "%",
        note,
    )])
}

fn exits(bench: &Bench) -> Result<Vec<Figure>> {
    let mut rig = bench.pair(&[])?;
    wait_until_compared(&mut rig, MEMORY)?;
    load(rig.service(), CLIENTS, SETTLE)?;
    let first = both(&mut rig)?;
    let requests = load(rig.service(), CLIENTS, WINDOW)?.0.len();
    let last = both(&mut rig)?;
    drop(rig);
    let mut figures = vec![exit_rate("exits while 16 clients count", &first[0], &last[0])?];
    for ((name, first), last) in ["primary", "backup"].into_iter().zip(&first).zip(&last) {
        let own = |status: &Status| status.host_ticks.saturating_sub(status.guest_ticks);
        let each = own(last).saturating_sub(own(first)) as f64 / requests as f64;
        let wanted = bench.in_qemu(Wanted::AtMost(3000.0));
        let note = format!("for each of {requests} requests of {CLIENTS} clients");
        figures.push(Figure::new(&format!("  the hypervisor's instructions, {name}"), wanted, each, "", note));
    }
    let (first, last) = observe_computing(bench)?;
    figures.push(exit_rate("exits while the guest computes", &first, &last)?);
    Ok(figures)
}

/// A status of primary and backup that is made after this was asked: each makes one a second.
fn both(rig: &mut DrivenRig) -> Result<[Status; 2]> {
    let status = |rig: &mut DrivenRig| -> Result<[Status; 2]> {
        let snapshot = rig.snapshot()?;
        let status = |role| snapshot.machine(role).and_then(|machine| machine.status.clone());
        Ok([status(Role::Primary).context("there is no primary")?, status(Role::Backup).context("there is no backup")?])
    };
    let (before, deadline) = (status(rig)?, Instant::now() + FIRST_DIGESTS_LIMIT);
    loop {
        let now = status(rig)?;
        if before.iter().zip(&now).all(|(before, now)| now.wall_ms > before.wall_ms) {
            return Ok(now);
        }
        ensure!(Instant::now() < deadline, "a machine says nothing");
        pause(Duration::from_millis(20))?;
    }
}

/// Exits per second of the machine's wall clock.
fn exit_rate(name: &str, first: &Status, last: &Status) -> Result<Figure> {
    let seconds = last.wall_ms.saturating_sub(first.wall_ms) as f64 / 1e3;
    let by_reason: BTreeMap<&str, u64> = last
        .exits
        .iter()
        .map(|(reason, count)| (reason.as_str(), count.saturating_sub(first.exits.get(reason).copied().unwrap_or(0))))
        .collect();
    let all = by_reason.values().sum::<u64>() as f64;
    ensure!(seconds > 0.0 && all > 0.0, "no exits in {seconds} s");
    let (reason, most) = by_reason.iter().max_by_key(|(_, count)| **count).context("no reasons")?;
    let note = format!("per second; the most by {reason}: {:.0} %", *most as f64 / all * 100.0);
    Ok(Figure::new(name, Wanted::Anything, all / seconds, "1/s", note))
}

/// A new backup for a guest that rewrites its memory: how long the guest stands still with pre-copy, and without.
fn transfer(bench: &Bench) -> Result<Vec<Figure>> {
    let guest = ["--guest-memory", "256M", "--guest-args", "ip=10.0.2.15/24 gw=10.0.2.2 fill=180M rewrite=10M"];
    let measure = |mode: &str| -> Result<Transfer> {
        let option = format!("transfer={mode}");
        let mut rig = bench.pair(&[&guest[..], &["--hypervisor-option", &option]].concat())?;
        pause(SETTLE)?;
        rig.ask(&Request::Kill { target: "backup".to_owned() })?;
        pause(SETTLE)?;
        rig.protect_again()?;
        // The status of the transfer's end.
        pause(Duration::from_secs(1))?;
        Ok(rig.primary()?.transfer)
    };
    let (live, stop) = (measure("live")?, measure("stop")?);
    let told = |transfer: &Transfer| {
        let megabytes = transfer.bytes as f64 / 1e6;
        format!("{megabytes:.0} MB in {} rounds; 256 MiB, 10 MB/s rewritten", transfer.rounds)
    };
    let figure = |name, wanted, value, transfer| Figure::new(name, wanted, value, "ms", told(transfer));
    Ok(vec![
        figure("pause for a new backup", bench.in_qemu(Wanted::AtMost(100.0)), live.pause_ms, &live),
        figure("  all of its transfer", Wanted::Anything, live.total_ms, &live),
        figure("pause with transfer=stop", Wanted::Anything, stop.pause_ms, &stop),
    ])
}

fn log_compute(bench: &Bench) -> Result<Vec<Figure>> {
    log_rate(bench, "log of a computing guest", "compute", 100.0)
}

fn log_idle(bench: &Bench) -> Result<Vec<Figure>> {
    log_rate(bench, "log of an idle guest", "idle", 40.0)
}

fn log_frame(bench: &Bench) -> Result<Vec<Figure>> {
    let mut rig = bench.pair(&[])?;
    load(rig.service(), CLIENTS, SETTLE)?;
    let first = rig.primary()?;
    load(rig.service(), CLIENTS, WINDOW)?;
    pause(Duration::from_secs(1))?;
    let last = rig.primary()?;
    let frames = |status: &Status| status.log.get("packet").map_or(0, |packets| packets.n);
    let received = frames(&last).saturating_sub(frames(&first)) as f64;
    ensure!(received > 0.0, "no frame was logged");
    // All entries, of every kind, without the frames themselves.
    let added = |status: &Status| -> u64 {
        status.log.values().map(|amount: &Amount| amount.bytes.saturating_sub(amount.data)).sum()
    };
    let beyond = added(&last).saturating_sub(added(&first)) as f64 / received;
    let note = format!("entries of all kinds without the frames, over {received:.0} frames");
    Ok(vec![Figure::new("log bytes per received frame", Wanted::AtMost(48.0), beyond, "B", note)])
}

/// Everything on the log link but heartbeats, per second of guest time.
fn log_rate(bench: &Bench, name: &str, guest: &str, wanted: f64) -> Result<Vec<Figure>> {
    let (first, last) = observe(bench, guest)?;
    let wire = |status: &Status| status.wire_tx.saturating_add(status.wire_rx);
    let bits = wire(&last).saturating_sub(wire(&first)) as f64 * 8.0;
    let guest = last.guest_ns.saturating_sub(first.guest_ns) as f64 / 1e9;
    let wall = last.wall_ms.saturating_sub(first.wall_ms) as f64 / 1e3;
    // Guest time stands still while nothing wakes the guest; it is the wall's when it goes on.
    let (seconds, clock) = if guest > 0.0 { (guest, "guest") } else { (wall, "wall") };
    ensure!(seconds > 0.0, "no time went by");
    let note = format!("both ways, over {seconds:.1} s of {clock} time");
    Ok(vec![Figure::new(name, Wanted::AtMost(wanted), bits / 1e3 / seconds, "kbit/s", note)])
}

/// A protected pair whose guest computes, at two moments after digests have gone over all of a new backup's memory: until
/// then they come faster.
fn observe_computing(bench: &Bench) -> Result<(Status, Status)> {
    let mut rig = bench.pair(&["--guest", "compute", "--guest-memory", "64M"])?;
    wait_until_compared(&mut rig, MEMORY)?;
    rig.observe(WINDOW * 2)
}

/// Waits until digests have gone over all of a guest's memory, of `memory` bytes, once: until then they come faster. A guest
/// without work would sleep, and a sleeper is not compared.
pub(super) fn wait_until_compared(rig: &mut DrivenRig, memory: u64) -> Result<()> {
    let slices = memory / SLICE;
    let limit = FIRST_DIGESTS_LIMIT * u32::try_from(memory.div_ceil(MEMORY))?;
    let deadline = Instant::now() + limit;
    let client = Counting::start(rig.service(), "compared").ok();
    while rig.primary()?.digests < slices {
        ensure!(Instant::now() < deadline, "{} digests of {slices}", rig.primary()?.digests);
        pause(Duration::from_millis(200))?;
    }
    client.map_or(Ok(()), |client| client.finish().map(drop))
}

/// A protected pair with `guest`, at two moments.
fn observe(bench: &Bench, guest: &str) -> Result<(Status, Status)> {
    let mut rig = bench.pair(&["--guest", guest])?;
    pause(SETTLE)?;
    rig.observe(WINDOW * 2)
}

/// Waits until the guest answers for the first time; the seconds since the start until then.
pub(super) fn wait_for_answer(rig: &mut DrivenRig) -> Result<f64> {
    for _ in 0..600 {
        if let Some(seconds) = rig.snapshot()?.first_answer_s {
            return Ok(seconds);
        }
        pause(Duration::from_millis(100))?;
    }
    anyhow::bail!("the guest does not answer")
}
