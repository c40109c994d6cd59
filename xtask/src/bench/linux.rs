//! Debian's kernel and Redis: what exits and protection cost a whole operating system, beside the same on plain QEMU.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::figures::{CLIENTS, SETTLE, WINDOW, wait_for_answer, wait_until_compared};
use super::plain::PlainQemu;
use super::report::{Figure, Wanted, quantile};
use crate::driven::client::load;
use crate::driven::{DrivenRig, pause};
use crate::guest::debian::{self, Built};
use crate::platform::Platform;
use crate::rig::monitor::Status;

/// A guest that has not answered by then never will.
pub(super) const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// What clients saw.
struct Seen {
    requests: usize,
    rate: f64,
    /// Median, in seconds.
    latency: f64,
}

impl Seen {
    fn of(service: &str, clients: usize) -> Result<Self> {
        let (times, rate) = load(service, clients, WINDOW)?;
        Ok(Self { requests: times.len(), rate, latency: quantile(&times, 0.5).context("no answer")? })
    }

    fn told(&self) -> String {
        format!("{:.0} requests/s at {:.2} ms", self.rate, self.latency * 1e3)
    }
}

/// How long a guest took to its first answer, in seconds, and what one client and many saw then.
struct Served {
    boot: f64,
    one: Seen,
    many: Seen,
}

/// Ratios and counts of Debian's Redis: alone on plain QEMU, under one machine, under a pair.
pub fn linux(bench: &Bench) -> Result<Vec<Figure>> {
    let (guest, place) = debian::ensure_usual(false)?;
    let place = place.to_str().context("the guest's place is not UTF-8")?;
    let plain = if bench.platform == Platform::Qemu { Some(on_plain_qemu(bench, &guest)?) } else { None };
    let mut figures = Vec::new();
    let solo = solo(bench, place, &mut figures)?;
    let pair = pair(bench, place, guest.memory, &mut figures)?;
    if let Some(plain) = &plain {
        figures.extend(beside("plain QEMU", plain, "solo", &solo, [Wanted::AtLeast(0.6), Wanted::Anything]));
        let note = format!("{:.1} s against {:.1} s to the first answer", solo.boot, plain.boot);
        figures.push(Figure::new("boot, solo / plain QEMU", Wanted::AtMost(2.0), solo.boot / plain.boot, "", note));
    }
    figures.extend(beside("solo", &solo, "pair", &pair, [Wanted::AtLeast(0.85), Wanted::AtLeast(0.5)]));
    Ok(figures)
}

/// How many requests a second `served` answers for each of `base`'s, for one client and for many.
fn beside(base_name: &str, base: &Served, name: &str, served: &Served, wanted: [Wanted; 2]) -> [Figure; 2] {
    let figure = |clients: &str, wanted, base: &Seen, served: &Seen| {
        let note = format!("{} against {}", served.told(), base.told());
        Figure::new(&format!("INCR, {clients}, {name} / {base_name}"), wanted, served.rate / base.rate, "", note)
    };
    [
        figure("1 client", wanted[0], &base.one, &served.one),
        figure(&format!("{CLIENTS} clients"), wanted[1], &base.many, &served.many),
    ]
}

fn solo(bench: &Bench, guest: &str, figures: &mut Vec<Figure>) -> Result<Served> {
    let mut rig = bench.start(&["--guest", guest, "--solo"])?;
    let boot = wait_for_answer(&mut rig)?;
    let booted = fresh(&mut rig)?;
    pause(SETTLE)?;
    let (first, last) = (fresh(&mut rig)?, {
        pause(WINDOW)?;
        fresh(&mut rig)?
    });
    let idle = Change::between(&first, &last)?;
    let exits = idle.exits.values().sum::<f64>() / idle.seconds;
    figures.push(Figure::new(
        "exits of an idle Linux",
        Wanted::AtMost(50.0),
        exits,
        "1/s",
        idle.by_reason(idle.seconds),
    ));
    let one = requests(&mut rig, 1, "solo, 1 client", Wanted::AtMost(6.0), figures)?;
    let many = requests(&mut rig, CLIENTS, "solo, 16 clients", Wanted::Anything, figures)?;
    let all = booted.exits.values().sum::<u64>() as f64;
    let note = BootExits(&booted).to_string();
    figures.push(Figure::new("exits of a boot", Wanted::Anything, all, "", note));
    Ok(Served { boot, one, many })
}

fn pair(bench: &Bench, guest: &str, memory: u64, figures: &mut Vec<Figure>) -> Result<Served> {
    let mut rig = bench.pair(&["--guest", guest])?;
    let boot = wait_for_answer(&mut rig)?;
    wait_until_compared(&mut rig, memory)?;
    pause(SETTLE)?;
    let (first, last) = (fresh(&mut rig)?, {
        pause(WINDOW)?;
        fresh(&mut rig)?
    });
    let idle = Change::between(&first, &last)?;
    let note = format!("both ways, over {:.1} s", idle.seconds);
    let rate = idle.wire * 8.0 / 1e3 / idle.seconds;
    figures.push(Figure::new("log of an idle Linux", Wanted::AtMost(20.0), rate, "kbit/s", note));
    let one = requests(&mut rig, 1, "pair, 1 client", Wanted::Anything, figures)?;
    let many = requests(&mut rig, CLIENTS, "pair, 16 clients", Wanted::Anything, figures)?;
    Ok(Served { boot, one, many })
}

/// Lets clients count, and says what a request cost.
fn requests(
    rig: &mut DrivenRig,
    clients: usize,
    name: &str,
    wanted: Wanted,
    figures: &mut Vec<Figure>,
) -> Result<Seen> {
    load(rig.service(), clients, SETTLE)?;
    let first = fresh(rig)?;
    let seen = Seen::of(rig.service(), clients)?;
    let change = Change::between(&first, &fresh(rig)?)?;
    let count = seen.requests as f64;
    let exits = change.exits.values().sum::<f64>() / count;
    let note = change.by_reason(count);
    figures.push(Figure::new(&format!("exits per INCR, {name}"), wanted, exits, "", note));
    let note = format!("instructions; the guest's own: {:.1} k; {}", change.guest / count / 1e3, seen.told());
    let own = (change.host - change.guest) / count / 1e3;
    figures.push(Figure::new("  the hypervisor's", Wanted::Anything, own, "k", note));
    Ok(seen)
}

/// A status of the primary that is made after this was asked.
pub(super) fn fresh(rig: &mut DrivenRig) -> Result<Status> {
    let before = rig.primary()?.wall_ms;
    let deadline = Instant::now() + BOOT_LIMIT;
    loop {
        let status = rig.primary()?;
        // The next one may have been on its way.
        if status.wall_ms > before + 500 {
            return Ok(status);
        }
        ensure!(Instant::now() < deadline, "the primary says nothing");
        pause(Duration::from_millis(20))?;
    }
}

/// What happened between two statuses.
pub(super) struct Change {
    seconds: f64,
    pub(super) exits: BTreeMap<String, f64>,
    guest: f64,
    pub(super) host: f64,
    wire: f64,
}

impl Change {
    pub(super) fn between(first: &Status, last: &Status) -> Result<Self> {
        ensure!(first.name == last.name && last.wall_ms > first.wall_ms, "the primary made no progress");
        let more = |of: fn(&Status) -> u64| of(last).saturating_sub(of(first)) as f64;
        let exits = last.exits.iter().map(|(reason, count)| {
            (reason.clone(), count.saturating_sub(first.exits.get(reason).copied().unwrap_or(0)) as f64)
        });
        Ok(Self {
            seconds: more(|status| status.wall_ms) / 1e3,
            exits: exits.collect(),
            guest: more(|status| status.guest_ticks),
            host: more(|status| status.host_ticks),
            wire: more(|status| status.wire_tx.saturating_add(status.wire_rx)),
        })
    }

    /// Exits for each of `parts`, the most frequent first.
    pub(super) fn by_reason(&self, parts: f64) -> String {
        let mut exits: Vec<_> = self.exits.iter().map(|(reason, count)| (reason, count / parts)).collect();
        exits.sort_by(|one, other| other.1.total_cmp(&one.1));
        let told =
            exits.iter().filter(|(_, count)| *count >= 0.05).map(|(reason, count)| format!("{reason} {count:.1}"));
        told.collect::<Vec<_>>().join(", ")
    }
}

/// Exits since the start, the most frequent first.
struct BootExits<'a>(&'a Status);

impl std::fmt::Display for BootExits<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut exits: Vec<_> = self.0.exits.iter().filter(|(_, count)| **count >= 50).collect();
        exits.sort_by(|one, other| other.1.cmp(one.1));
        let told = exits.iter().map(|(reason, count)| format!("{reason} {count}"));
        f.write_str(&told.collect::<Vec<_>>().join(", "))
    }
}

/// The same guest as a machine of its own.
fn on_plain_qemu(bench: &Bench, guest: &Built) -> Result<Served> {
    let plain = PlainQemu::start(bench, guest)?;
    pause(SETTLE)?;
    load(plain.service(), 1, SETTLE)?;
    let one = Seen::of(plain.service(), 1)?;
    load(plain.service(), CLIENTS, SETTLE)?;
    Ok(Served { boot: plain.boot(), one, many: Seen::of(plain.service(), CLIENTS)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(wall_ms: u64, tsc: u64, hlt: u64) -> Status {
        let exits = [("tsc".to_owned(), tsc), ("hlt".to_owned(), hlt)].into();
        Status {
            name: "castor".to_owned(),
            wall_ms,
            exits,
            guest_ticks: 5 * tsc,
            host_ticks: 9 * tsc,
            ..Status::default()
        }
    }

    #[test]
    fn exits_are_told_by_reason() {
        let change = Change::between(&status(1000, 100, 7), &status(3000, 300, 8)).unwrap();
        assert_eq!((change.seconds, change.guest, change.host), (2.0, 1000.0, 1800.0));
        assert_eq!(change.by_reason(10.0), "tsc 20.0, hlt 0.1");
        assert!(Change::between(&status(1000, 0, 0), &status(1000, 1, 0)).is_err());
        assert_eq!(BootExits(&status(1, 49, 200)).to_string(), "hlt 200");
    }
}
