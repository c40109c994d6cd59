//! Lesson 9: duplicates at the cut-over.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Lesson;
use super::chart::bars;
use super::stage::{Stage, TAKEOVER_LIMIT};
use crate::driven::client::Counting;
use crate::driven::{DrivenRig, pause};
use crate::rig::control::Request;
use crate::rig::directory;

pub(super) const LESSON: Lesson = Lesson {
    number: 9,
    title: "Duplicates at the cut-over",
    question: "What does a client see twice when the primary dies?",
    show,
    why: "The successor cannot know which of the last frames had left before the power failed, so it sends all of which it was \
          not told. TCP drops what it has seen by its sequence numbers, so a client of a stream never notices. A client of \
          datagrams does, and has to expect that anyhow, since networks double datagrams without any help from us.",
};

/// With the twin so far away, much has left of which it was not told yet.
const DELAY: &str = "delay=20ms";
const CLIENTS: usize = 8;
/// Between two datagrams.
const PACE: Duration = Duration::from_millis(2);

fn show(stage: &Stage) -> Result<Vec<String>> {
    let mut rig = stage.pair("tcp", "counter", &["--capture"])?;
    rig.link("log", &[DELAY])?;
    let clients = (0..CLIENTS).map(|n| Counting::start(rig.service(), &format!("c{n}")));
    let clients = clients.collect::<Result<Vec<_>>>()?;
    pause(Duration::from_secs(1))?;
    power_cut(&mut rig)?;
    rig.wait_until("a takeover", TAKEOVER_LIMIT, |snapshot| !snapshot.takeovers.is_empty())?;
    pause(Duration::from_secs(1))?;
    // Each client checks that every answer is its last one and one more.
    let answers: usize = clients.into_iter().map(|client| Ok(client.finish()?.len())).sum::<Result<_>>()?;
    let resent = resent(&mut rig)?;
    stage.tell(&format!(
        "TCP: the successor sent {resent} frames that it was not sure of; {answers} answers, none twice"
    ));
    stage.end(rig)?;

    let (asked, seen) = datagrams(stage)?;
    let twice = seen.values().filter(|count| **count > 1).count();
    stage.tell(&format!("UDP: of {asked} datagrams {} were answered, {twice} of them twice", seen.len()));
    ensure!(
        resent > 0 && twice > 0,
        "{resent} frames were sent again, {twice} datagrams were seen twice: nothing was under way"
    );
    Ok(bars(&[
        ("TCP: frames sent again".to_owned(), resent as f64, format!("{resent}")),
        ("TCP: answers that a client saw twice".to_owned(), 0.0, "0".to_owned()),
        ("UDP: answers that a client saw twice".to_owned(), twice as f64, format!("{twice}")),
    ]))
}

/// The primary dies, and with it what it had on its way to its twin.
fn power_cut(rig: &mut DrivenRig) -> Result<()> {
    rig.link("log", &["down"])?;
    rig.ask(&Request::Kill { target: "primary".to_owned() })
}

/// Frames that were kept and sent when the successor went live.
fn resent(rig: &mut DrivenRig) -> Result<u64> {
    let known = rig.wait_until("the successor's status", TAKEOVER_LIMIT, |snapshot| {
        snapshot.machines.iter().any(|machine| machine.status.as_ref().is_some_and(|status| status.takeovers > 0))
    })?;
    let resent = known.machines.iter().filter_map(|machine| machine.status.as_ref()).map(|status| status.gate.resent);
    resent.max().context("no machine has said anything")
}

/// Sends numbered datagrams to a guest that sends each back, one at a time, and kills the primary meanwhile: how many were sent, and how
/// often each came back.
fn datagrams(stage: &Stage) -> Result<(u32, BTreeMap<u32, usize>)> {
    let mut rig = stage.pair("udp", "poll-rx", &["--capture", "--forward", "0:7/udp"])?;
    rig.link("log", &[DELAY])?;
    let file = directory::read(rig.directory())?;
    let echo = file.forwards.iter().find(|entry| entry.guest_port == 7).context("no port leads to the echo")?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(&echo.address)?;
    socket.set_nonblocking(true)?;
    let (mut asked, mut seen, mut killed, started) = (0u32, BTreeMap::new(), None, Instant::now());
    let mut buffer = [0; 64];
    loop {
        while let Ok(length) = socket.recv(&mut buffer) {
            if let Some(number) = buffer[..length].first_chunk() {
                *seen.entry(u32::from_le_bytes(*number)).or_insert(0) += 1;
            }
        }
        if killed.is_none() && started.elapsed() > Duration::from_millis(1500) && seen.len() > 50 {
            power_cut(&mut rig)?;
            killed = Some(asked);
        }
        // Until the successor answers what was asked after the power cut, and a while longer.
        let answered_since = killed.and_then(|killed| seen.range(killed..).next_back()).map(|(number, _)| *number);
        if answered_since.zip(killed).is_some_and(|(number, killed)| number > killed + 200) {
            break;
        }
        ensure!(
            started.elapsed() < TAKEOVER_LIMIT + Duration::from_secs(10),
            "the echo does not answer ({} answers)",
            seen.len()
        );
        // What the queues on the way do not take is lost, as datagrams are.
        let _ = socket.send(&asked.to_le_bytes());
        asked += 1;
        pause(PACE)?;
    }
    stage.end(rig)?;
    Ok((asked, seen))
}
