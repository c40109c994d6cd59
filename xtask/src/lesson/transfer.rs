//! Lesson 8: state transfer against log.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Lesson;
use super::chart::bars;
use super::stage::{Stage, TAKEOVER_LIMIT};
use crate::driven::client::Counting;
use crate::driven::pause;
use crate::rig::control::Request;
use crate::rig::roles::Role;
use crate::units::format_count;

pub(super) const LESSON: Lesson = Lesson {
    number: 8,
    title: "State transfer against log",
    question: "Why send the inputs, and not the state that they lead to?",
    show,
    why: "A guest that computes changes megabytes of memory by itself, and all of that follows from a few inputs at known \
          instructions. Sending the inputs takes few bytes, and in return both machines have to compute the same, exactly, \
          which is hard with more than one processor. Checkpoints need no exactness, send what has changed again and again, \
          and hold all output until each is through.",
};

/// Memory that the guest fills, and how much of it it writes anew each second: little, as a busy desk transfers two
/// megabytes a second, and what changes is transferred again.
const GUEST: &str = "ip=10.0.2.15/24 gw=10.0.2.2 fill=12M rewrite=1M";
const WINDOW: Duration = Duration::from_secs(10);

fn show(stage: &Stage) -> Result<Vec<String>> {
    let mut rig = stage.pair("log", "counter", &["--guest-memory", "80M", "--guest-args", GUEST])?;
    let client = Counting::start(rig.service(), "x")?;
    pause(Duration::from_secs(1))?;
    let (first, last) = rig.observe(WINDOW)?;
    let seconds = (last.wall_ms - first.wall_ms) as f64 / 1e3;
    let sent = last.wire_tx.saturating_sub(first.wire_tx) as f64;
    stage.tell(&format!("{seconds:.0} s of work for a client: {} bytes on the log network", format_count(sent)));
    let answers = client.finish()?.len();
    // The first backup came before the guest had filled its memory.
    let before = rig.primary()?.transfer.bytes;
    rig.ask(&Request::Kill { target: "backup".to_owned() })?;
    rig.wait_until("the guest unprotected", TAKEOVER_LIMIT, |snapshot| !snapshot.protected)?;
    rig.protect_again()?;
    let settled = rig.wait_until("the transfer's figures", TAKEOVER_LIMIT, |snapshot| {
        let primary = snapshot.machine(Role::Primary).and_then(|machine| machine.status.as_ref());
        primary.is_some_and(|status| status.protected && status.transfer.bytes != before)
    })?;
    let status =
        settled.machine(Role::Primary).and_then(|machine| machine.status.clone()).context("there is no primary")?;
    let state = status.transfer.bytes as f64;
    stage.tell(&format!("the state for a new backup: {} bytes, once", format_count(state)));
    stage.end(rig)?;
    let rewritten = seconds * f64::from(1 << 20);
    ensure!(sent < state, "the log of {seconds:.0} s took {sent} bytes, the state {state}");
    let row = |name: &str, bytes: f64| (name.to_owned(), bytes, format!("{} bytes", format_count(bytes)));
    let mut picture = bars(&[
        row(&format!("log of {seconds:.0} s, {answers} answers"), sent),
        row("the whole state, once", state),
        row(&format!("memory rewritten in {seconds:.0} s"), rewritten),
    ]);
    picture.push("    The last bar is what the guest was told to rewrite, and what checkpoints would have to send at least once.".to_owned());
    Ok(picture)
}
