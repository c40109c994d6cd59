//! Lesson 6: who goes on when nobody is dead.

use anyhow::{Context, Result, ensure};

use super::Lesson;
use super::chart::answers;
use super::stage::{Stage, TAKEOVER_LIMIT};
use crate::driven::DrivenRig;
use crate::driven::client::Client;
use crate::rig::monitor::Claim;
use crate::rig::snapshot::Snapshot;

pub(super) const LESSON: Lesson = Lesson {
    number: 6,
    title: "Two primaries",
    question: "Both machines live and cannot hear each other: which one goes on?",
    show,
    why: "Silence does not tell a dead twin from a cut cable, so each of the two has the same reason to go on alone. If both \
          do, one guest becomes two with the same address, and two clients are told the same number. A third party that gives \
          each term away once decides it, and whoever it refuses halts before it answers anybody.",
};

const NAMES: [&str; 2] = ["castor", "pollux"];

fn show(stage: &Stage) -> Result<Vec<String>> {
    let without = scene(stage, "without-an-arbiter", &["--arbiter", "none"], 2)?;
    let with = scene(stage, "with-an-arbiter", &[], 1)?;
    ensure!(without == [Some(11), Some(11)], "without an arbiter the machines answered {without:?}");
    let one = with.iter().flatten().copied().eq([11]);
    ensure!(one, "with an arbiter the machines answered {with:?}");
    let row = |seen: [Option<u64>; 2]| {
        seen.map(|answer| answer.map_or_else(|| "halted".to_owned(), |n| n.to_string())).to_vec()
    };
    Ok(answers(&[
        ("INCR, asked of", NAMES.map(str::to_owned).to_vec()),
        ("without an arbiter", row(without)),
        ("with an arbiter", row(with)),
    ]))
}

/// Counts to ten, cuts the log network, waits until it is decided, and asks each of the `left` machines that are left to count.
fn scene(stage: &Stage, name: &str, options: &[&str], left: usize) -> Result<[Option<u64>; 2]> {
    let mut rig = stage.pair(name, "counter", options)?;
    let mut client = Client::connect(rig.service())?;
    for expected in 1..=10 {
        ensure!(client.increment("x")? == expected);
    }
    drop(client);
    rig.link("log", &["down"])?;
    let decided = move |snapshot: &Snapshot| {
        let count = |claim| snapshot.machines.iter().filter(|machine| machine.claim == Some(claim)).count();
        // Whoever still believes in its backup has not decided yet.
        let undecided = snapshot.machines.iter().filter_map(|machine| machine.status.as_ref());
        let undecided = undecided.filter(|status| status.role == Claim::Primary).any(|status| status.protected);
        !undecided && count(Claim::Primary) == left && count(Claim::Halted) == 2 - left
    };
    let what = if left == 2 { "both run the guest" } else { "one runs the guest and the other has halted" };
    let snapshot = rig.wait_until(what, TAKEOVER_LIMIT, decided)?;
    stage.tell(&format!("cut the log network: {what}"));
    let mut seen = [None; 2];
    for (index, name) in NAMES.into_iter().enumerate() {
        let machine = snapshot.machines.iter().find(|machine| machine.name == name).context("a machine is missing")?;
        if machine.claim == Some(Claim::Primary) {
            let answer = ask(&mut rig, name, NAMES[1 - index])?;
            stage.tell(&format!("a client that reaches {name} only is told {answer}"));
            seen[index] = Some(answer);
        }
    }
    stage.end(rig)?;
    Ok(seen)
}

/// What a client is told on whose network there is only one of the machines.
fn ask(rig: &mut DrivenRig, name: &str, other: &str) -> Result<u64> {
    rig.link(&format!("client:{other}"), &["down"])?;
    let answer = Client::connect(rig.service())?.increment("x").with_context(|| format!("a client of {name}"));
    rig.link(&format!("client:{other}"), &["up"])?;
    answer
}
