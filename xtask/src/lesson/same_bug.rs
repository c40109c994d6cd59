//! Lesson 10: a bug in the guest happens twice.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Lesson;
use super::chart::answers;
use super::stage::{Stage, TAKEOVER_LIMIT};
use crate::driven::client::Client;
use crate::driven::pause;

pub(super) const LESSON: Lesson = Lesson {
    number: 10,
    title: "A bug happens twice",
    question: "Does the backup help against a bug of the guest?",
    show,
    why: "A backup that executes the same instructions with the same inputs makes the same mistake, at the same instruction. \
          This kind of fault tolerance masks machines that stop, and neither bugs of the software nor wrong inputs. \
          What it gives instead is a bug that can be made to happen again: the log of that minute is all it takes.",
};

const LIMIT: Duration = Duration::from_secs(20);

fn show(stage: &Stage) -> Result<Vec<String>> {
    let mut rig = stage.pair("a-bug", "counter", &[])?;
    let mut client = Client::connect(rig.service())?;
    for expected in 1..=10 {
        ensure!(client.increment("x")? == expected);
    }
    client.say("DEBUG SEGFAULT")?;
    stage.tell("counted to 10, and sent the request that the server has a bug for");
    let mut waited = Duration::ZERO;
    let places = loop {
        let of = |machine: &str| crashed_at(&rig.directory().join(format!("{machine}.log")));
        if let Some(places) = of("castor").zip(of("pollux")) {
            break places;
        }
        ensure!(waited < LIMIT, "the guest did not crash on both machines");
        pause(Duration::from_millis(50))?;
        waited += Duration::from_millis(50);
    };
    stage.tell(&format!("castor's guest crashed at position {}, pollux' at {}", places.0, places.1));
    ensure!(places.0 == places.1, "the twins crashed at different positions: {places:?}");
    let first = Client::connect(rig.service())?.increment("x")?;
    rig.wait_for_protection().context("both go on with a fresh guest")?;
    rig.kill_primary(1)?;
    rig.wait_until("a takeover", TAKEOVER_LIMIT, |snapshot| !snapshot.takeovers.is_empty())?;
    let second = Client::connect(rig.service())?.increment("x")?;
    stage.tell(&format!("counted again: {first}; killed the primary, asked its successor: {second}"));
    ensure!((first, second) == (1, 2), "after the crash the guest counted {first} and {second}");
    stage.end(rig)?;
    let row = |place: &str| [place.to_owned(), "reset".to_owned()].to_vec();
    Ok(answers(&[
        ("", ["crashed at", "then"].map(str::to_owned).to_vec()),
        ("castor", row(&places.0)),
        ("pollux", row(&places.1)),
    ]))
}

/// The position at which a machine's guest crashed, if its log says so.
fn crashed_at(log: &Path) -> Option<String> {
    let text = std::fs::read_to_string(log).ok()?;
    let rest = text.split("the guest crashed at position ").nth(1)?;
    Some(rest.split(|c: char| !c.is_ascii_digit()).next()?.to_owned())
}
