//! Lesson 11: a backup that lags.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Lesson;
use super::brake::Brake;
use super::chart::bars;
use super::stage::{Stage, TAKEOVER_LIMIT};
use crate::driven::pause;
use crate::rig::control::Request;

pub(super) const LESSON: Lesson = Lesson {
    number: 11,
    title: "A backup that lags",
    question: "What happens when the backup's machine is slower than the primary's?",
    show,
    why: "Whatever the backup has not executed yet it must execute before it may go live, and the time that this takes \
          beyond the detection is a part of the takeover. Left alone, the lag of a slower machine would grow without end, and \
          so would that pause. So the primary slows its \
          own guest down to the speed of its backup, and the guest is as fast as the slower of the two machines.",
};

/// The slow backup runs for the first of these and then stands still for the second, again and again.
const RUNS: Duration = Duration::from_millis(12);
const STANDS: Duration = Duration::from_millis(36);
/// How often it is asked how far the backup is behind; the most counts.
const LOOKS: u32 = 20;
const WINDOW: Duration = Duration::from_secs(6);

/// What was seen of a pair.
struct Seen {
    mips: f64,
    lag_ms: f64,
    drain_ms: f64,
}

fn show(stage: &Stage) -> Result<Vec<String>> {
    let even = scene(stage, "equal-machines", false)?;
    let slow = scene(stage, "a-slow-backup", true)?;
    let rows = |name: &str, unit: &str, of: fn(&Seen) -> f64| {
        let row = |words: &str, seen| (format!("{name}, {words}"), of(seen), format!("{:.1} {unit}", of(seen)));
        bars(&[row("equal machines", &even), row("slow backup", &slow)])
    };
    ensure!(
        slow.mips < even.mips * 0.8 && slow.lag_ms > even.lag_ms,
        "the guest ran at {:.1} and {:.1} MIPS, the lag was {:.1} and {:.1} ms: was the desk busy?",
        even.mips,
        slow.mips,
        even.lag_ms,
        slow.lag_ms
    );
    let parts = [
        rows("guest's speed", "MIPS", |seen| seen.mips),
        rows("most lag", "ms", |seen| seen.lag_ms),
        rows("drain in the takeover", "ms", |seen| seen.drain_ms),
    ];
    Ok(parts.concat())
}

fn scene(stage: &Stage, name: &str, slow: bool) -> Result<Seen> {
    let mut rig = stage.pair(name, "compute", &[])?;
    let brake = if slow { Some(Brake::on(&mut rig, RUNS, STANDS)?) } else { None };
    pause(Duration::from_secs(2))?;
    let (first, mut lag_us) = (rig.primary()?, 0);
    for _ in 0..LOOKS {
        pause(WINDOW / LOOKS)?;
        lag_us = rig.primary()?.lag_us.max(lag_us);
    }
    let last = rig.primary()?;
    let seconds = (last.wall_ms - first.wall_ms) as f64 / 1e3;
    let mips = last.guest_ticks.saturating_sub(first.guest_ticks) as f64 / seconds / 1e6;
    let lag_ms = lag_us as f64 / 1e3;
    rig.ask(&Request::Kill { target: "primary".to_owned() })?;
    // A machine that stands still again and again finds that it was away, and suspects nobody.
    drop(brake);
    let after = rig.wait_until("the takeover", TAKEOVER_LIMIT, |snapshot| !snapshot.takeovers.is_empty())?;
    let drain_ms = after.takeovers.first().context("no takeover")?.times.drain_ms;
    stage.tell(&format!(
        "{mips:.1} MIPS, up to {lag_ms:.1} ms behind, {drain_ms:.1} ms to drain the log after the primary's death"
    ));
    stage.end(rig)?;
    Ok(Seen { mips, lag_ms, drain_ms })
}
