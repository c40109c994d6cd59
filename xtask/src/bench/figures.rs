//! How each figure is measured. Ratios come from one run on one desk; times in a rig are indications.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::client::{Counting, load};
use super::report::{Figure, Wanted, quantile};
use super::rig::{BenchRig, pause};
use crate::rig::control::Request;
use crate::rig::monitor::{Amount, Status};

/// Measures one or more figures.
type Measure = fn() -> Result<Vec<Figure>>;

/// All figures by name.
pub const ALL: [(&str, Measure); 8] = [
    ("start", start),
    ("blackout", blackout),
    ("throughput", throughput),
    ("latency", latency),
    ("overhead", overhead),
    ("log-compute", log_compute),
    ("log-idle", log_idle),
    ("log-frame", log_frame),
];

/// Kills in one run.
const KILLS: usize = 5;
/// For how long a rate is taken.
const WINDOW: Duration = Duration::from_secs(10);
/// How long after a start caches, calibration and TCP have settled.
const SETTLE: Duration = Duration::from_secs(3);
/// Clients that load the guest at the same time.
const CLIENTS: usize = 16;

fn start() -> Result<Vec<Figure>> {
    let mut rig = BenchRig::pair(&[])?;
    let seconds = rig.snapshot()?.first_protected_s.context("never protected")?;
    Ok(vec![Figure::new("start to protected", Wanted::AtMost(15.0), seconds, "s", "machines started to protected")])
}

fn blackout() -> Result<Vec<Figure>> {
    let mut rig = BenchRig::pair(&[])?;
    let mut blackouts = Vec::new();
    for round in 0..KILLS {
        let client = Counting::start(rig.service(), &format!("blackout-{round}"))?;
        // Not in step with anything in the rig.
        pause(Duration::from_millis(700 + 137 * round as u64))?;
        rig.ask(&Request::Kill { target: "primary".to_owned() })?;
        pause(Duration::from_secs(6))?;
        let times = client.finish()?;
        blackouts.push(times.into_iter().fold(0.0, f64::max));
        rig.protect_again()?;
        pause(SETTLE)?;
    }
    let takeovers = rig.snapshot()?.takeovers;
    ensure!(takeovers.len() == KILLS, "{} takeovers were reported for {KILLS} kills", takeovers.len());
    let median = |name: &str, values: Vec<f64>| quantile(&values, 0.5).with_context(|| format!("no {name}"));
    let part = |name: &str, of: fn(&crate::rig::snapshot::TakeoverEntry) -> f64| -> Result<Figure> {
        let value = median(name, takeovers.iter().map(of).collect())?;
        Ok(Figure::new(&format!("  {name}"), Wanted::Anything, value / 1e3, "s", "median, by the hypervisor's clock"))
    };
    let worst = quantile(&blackouts, 1.0).context("no blackout")?;
    let note = format!("median of {KILLS} kills, longest {worst:.2} s; no answer lost or doubled");
    Ok(vec![
        Figure::new("blackout seen by the client", Wanted::AtMost(2.5), median("blackout", blackouts)?, "s", note),
        part("detection", |takeover| takeover.times.detect_ms)?,
        part("drain", |takeover| takeover.times.drain_ms)?,
        part("arbiter", |takeover| takeover.times.arbiter_ms)?,
        part("announcement", |takeover| takeover.times.announce_ms)?,
    ])
}

fn throughput() -> Result<Vec<Figure>> {
    let measure = |rig: &BenchRig| -> Result<f64> {
        load(rig.service(), CLIENTS, SETTLE)?;
        Ok(load(rig.service(), CLIENTS, WINDOW)?.1)
    };
    let solo = {
        let mut rig = BenchRig::start(&["--solo"])?;
        wait_for_answer(&mut rig)?;
        measure(&rig)?
    };
    let protected = measure(&BenchRig::pair(&[])?)?;
    let note = format!("{CLIENTS} clients, {protected:.0} against {solo:.0} requests/s");
    Ok(vec![Figure::new("throughput, protected / solo", Wanted::AtLeast(0.7), protected / solo, "", note)])
}

fn latency() -> Result<Vec<Figure>> {
    let mut rig = BenchRig::pair(&[])?;
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
        let wanted = if delay == "5ms" { Wanted::Between(10.0, 13.0) } else { Wanted::Anything };
        let name = format!("latency added by {delay} one way");
        figures.push(Figure::new(&name, wanted, median - base, "ms", "median, one client"));
    }
    Ok(figures)
}

fn overhead() -> Result<Vec<Figure>> {
    let (first, last) = observe("compute")?;
    let host = last.host_ticks.saturating_sub(first.host_ticks) as f64;
    let guest = last.guest_ticks.saturating_sub(first.guest_ticks) as f64;
    ensure!(host > 0.0 && guest > 0.0 && guest <= host, "the counters do not fit: guest {guest}, all {host}");
    let note = format!("protected, over {:.1} G guest instructions", guest / 1e9);
    Ok(vec![Figure::new(
        "hypervisor's share of instructions",
        Wanted::AtMost(2.0),
        (1.0 - guest / host) * 100.0,
        "%",
        note,
    )])
}

fn log_compute() -> Result<Vec<Figure>> {
    log_rate("log of a computing guest", "compute", 100.0)
}

fn log_idle() -> Result<Vec<Figure>> {
    log_rate("log of an idle guest", "idle", 40.0)
}

fn log_frame() -> Result<Vec<Figure>> {
    let mut rig = BenchRig::pair(&[])?;
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
fn log_rate(name: &str, guest: &str, wanted: f64) -> Result<Vec<Figure>> {
    let (first, last) = observe(guest)?;
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

/// A protected pair with `guest`, at two moments.
fn observe(guest: &str) -> Result<(Status, Status)> {
    let mut rig = BenchRig::pair(&["--guest", guest])?;
    pause(SETTLE)?;
    rig.observe(WINDOW * 2)
}

/// Waits until the guest answers for the first time.
fn wait_for_answer(rig: &mut BenchRig) -> Result<()> {
    for _ in 0..300 {
        if rig.snapshot()?.first_answer_s.is_some() {
            return Ok(());
        }
        pause(Duration::from_millis(100))?;
    }
    anyhow::bail!("the guest does not answer")
}
