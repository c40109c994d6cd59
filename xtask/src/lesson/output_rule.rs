//! Lesson 1: the same number twice.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::Lesson;
use super::chart::answers;
use super::stage::{Stage, TAKEOVER_LIMIT};
use crate::driven::client::Client;
use crate::driven::pause;
use crate::rig::control::Request;

pub(super) const LESSON: Lesson = Lesson {
    number: 1,
    title: "The output rule",
    question: "Why must an answer wait until the twin has the log?",
    show,
    why: "An answer that has left promises that the guest has done what it tells, and a promise binds the successor, too. \
          The successor knows no more than the log that it holds, so what a client may see must not run ahead of that log. \
          So the gate holds each frame until the twin has acknowledged the log up to it, and the price is a round trip.",
};

/// The twin, which hears nothing more, takes over after this; until then there is time to count and to kill.
const SUSPECT: &str = "suspect=2500ms";
/// By its name: on a busy desk the roles may have changed by the time of the kill.
const PRIMARY: &str = "castor";
const ATTEMPTS: usize = 3;
/// How long a client waits for an answer that the rule keeps back.
const SILENCE: Duration = Duration::from_millis(400);
/// And for one that it does not keep back, on a busy desk.
const PATIENCE: Duration = Duration::from_secs(2);

fn show(stage: &Stage) -> Result<Vec<String>> {
    let without = attempt(stage, "without-the-rule", PATIENCE, &["--hypervisor-option", SUSPECT, "break=output-rule"])?;
    let with = attempt(stage, "with-the-rule", SILENCE, &["--hypervisor-option", SUSPECT])?;
    ensure!(without == (Some(11), 11), "without the rule the client saw {without:?}: was the desk too busy?");
    ensure!(with == (None, 12), "with the rule the client saw {with:?}: was the desk too busy?");
    let row = |seen: Seen| {
        let first = seen.0.map_or_else(|| "silence".to_owned(), |answer| answer.to_string());
        ["10".to_owned(), "cut".to_owned(), first, "power cut".to_owned(), seen.1.to_string()].to_vec()
    };
    let mut picture = answers(&[
        ("", ["INCR", "log network", "INCR", "primary", "INCR"].map(str::to_owned).to_vec()),
        ("without the rule", row(without)),
        ("with the rule", row(with)),
    ]);
    picture.push("    With the rule 11 was counted as well: it reached its client from the successor.".to_owned());
    Ok(picture)
}

/// The answer before the power cut, if one came, and the one after it.
type Seen = (Option<u64>, u64);

/// A desk may stand still for longer than the twin waits: then once more.
fn attempt(stage: &Stage, name: &str, patience: Duration, options: &[&str]) -> Result<Seen> {
    for _ in 0..ATTEMPTS {
        if let Some(seen) = scene(stage, name, patience, options)? {
            return Ok(seen);
        }
        stage.tell("the twin took over before the power cut: the desk is busy");
    }
    bail!("the twin took over before the power cut, {ATTEMPTS} times: the desk is too busy")
}

/// Counts to ten, cuts the log network, counts once more, kills the primary, counts again; none when that came too late.
fn scene(stage: &Stage, name: &str, patience: Duration, options: &[&str]) -> Result<Option<Seen>> {
    let mut rig = stage.pair(name, "counter", options)?;
    let mut client = Client::connect(rig.service())?;
    for expected in 1..=10 {
        ensure!(client.increment("x")? == expected);
    }
    // Also what follows the tenth answer reaches the twin.
    pause(Duration::from_millis(300))?;
    rig.link("log", &["down"])?;
    client.ask("x")?;
    let first = client.answer(patience)?;
    stage.tell(&match first {
        Some(answer) => format!("counted to 10, cut the log network, counted again: {answer}"),
        None => "counted to 10, cut the log network, asked again: no answer".to_owned(),
    });
    if !rig.snapshot()?.takeovers.is_empty() {
        rig.end()?;
        return Ok(None);
    }
    rig.ask(&Request::Kill { target: PRIMARY.to_owned() })?;
    rig.wait_until("a takeover", TAKEOVER_LIMIT, |snapshot| !snapshot.takeovers.is_empty())?;
    if first.is_none() {
        // TCP asks the successor by itself.
        ensure!(
            client.answer(Duration::from_secs(20))? == Some(11),
            "the successor did not answer what was asked before"
        );
    }
    let last = Client::connect(rig.service())?.increment("x")?;
    stage.tell(&format!("killed the primary, asked its successor: {last}"));
    stage.end(rig)?;
    Ok(Some((first, last)))
}
