//! Lesson 7: draining the log before going live.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::Lesson;
use super::brake::Brake;
use super::chart::answers;
use super::stage::{Stage, TAKEOVER_LIMIT};
use crate::driven::client::Client;
use crate::rig::control::Request;

pub(super) const LESSON: Lesson = Lesson {
    number: 7,
    title: "Draining before going live",
    question: "Why does a successor execute old log before it answers anybody?",
    show,
    why: "An answer leaves when the backup holds the log up to it, and the backup may execute that log much later. If it went live \
          where its guest stands, it would continue at a moment before answers that clients have seen. So it executes all that it \
          holds first, and what lag it has is a part of the pause.",
};

/// The slow backup runs for the first of these and then stands still for the second, again and again.
const RUNS: Duration = Duration::from_millis(12);
const STANDS: Duration = Duration::from_millis(36);
/// A backup that leaves its log leaves it soon.
const HEARTBEAT: &str = "heartbeat=20ms";
const ATTEMPTS: usize = 4;
/// How long it falls behind.
const FALLS_BEHIND: Duration = Duration::from_secs(2);

fn show(stage: &Stage) -> Result<Vec<String>> {
    let without = attempt(stage)?;
    let with = scene(stage, "with-the-rule", &[])?;
    ensure!(with.1 == with.0 + 1, "with the rule the client saw {with:?}");
    let row = |seen: (u64, u64)| [seen.0.to_string(), "power cut".to_owned(), seen.1.to_string()].to_vec();
    Ok(answers(&[
        ("", ["last INCR", "primary", "next INCR"].map(str::to_owned).to_vec()),
        ("without the rule", row(without)),
        ("with the rule", row(with)),
    ]))
}

/// Without the rule: on a busy desk the primary may have been as slow as its backup; then once more.
fn attempt(stage: &Stage) -> Result<(u64, u64)> {
    for _ in 0..ATTEMPTS {
        let seen = scene(stage, "without-the-rule", &["break=drain"])?;
        if seen.1 <= seen.0 {
            return Ok(seen);
        }
        stage.tell("the backup was not behind: the desk is busy");
    }
    bail!("the backup was not behind, {ATTEMPTS} times: the desk is too busy")
}

/// What the last answer before the power cut was, and the first one after it.
fn scene(stage: &Stage, name: &str, options: &[&str]) -> Result<(u64, u64)> {
    let options = [HEARTBEAT].iter().chain(options).flat_map(|option| ["--hypervisor-option", option]);
    let options: Vec<_> = ["--guest-args", "ip=10.0.2.15/24 gw=10.0.2.2 busy"].into_iter().chain(options).collect();
    let mut rig = stage.pair(name, "counter", &options)?;
    let mut client = Client::connect(rig.service())?;
    let brake = Brake::on(&mut rig, RUNS, STANDS)?;
    let started = Instant::now();
    let mut last = client.increment("x")?;
    while started.elapsed() < FALLS_BEHIND {
        last = client.increment("x")?;
    }
    rig.ask(&Request::Kill { target: "primary".to_owned() })?;
    // A machine that stands still again and again finds that it was away, and suspects nobody.
    drop(brake);
    rig.wait_until("a takeover", TAKEOVER_LIMIT, |snapshot| !snapshot.takeovers.is_empty())?;
    let next = Client::connect(rig.service())?.increment("x")?;
    stage.tell(&format!("told {last} while the backup was behind; killed the primary, asked its successor: {next}"));
    stage.end(rig)?;
    Ok((last, next))
}
