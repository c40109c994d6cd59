//! Lessons 3 to 5: what makes twins differ, found by their digests.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Lesson;
use super::chart::answers;
use super::stage::Stage;
use crate::driven::client::Client;
use crate::driven::{DrivenRig, pause};
use crate::rig::directory;
use crate::rig::snapshot::Snapshot;

pub(super) const EXACT_STOP: Lesson = Lesson {
    number: 3,
    title: "One instruction late",
    question: "What if the backup gets an interrupt one instruction too late?",
    show: |stage| show(stage, &SERVER, "exact-stop"),
    why: "An interrupt saves the address of the instruction that it comes before, so that one instruction more leaves another \
          address on the guest's stack and other values in its registers. From there on the twins are two different guests, \
          although no client may notice for hours. So the log names the instruction, the counter stops there exactly, \
          and digests of both machines are compared all the time in case it does not.",
};

pub(super) const TIME: Lesson = Lesson {
    number: 4,
    title: "What time is it",
    question: "What if each twin reads the clock of its own machine?",
    show: |stage| show(stage, &SERVER, "time"),
    why: "A clock is an input like any other, and two machines read theirs at different moments and get different times. \
          VMware FT logs each result; here guest time is computed from the number of instructions that the guest has executed, so \
          that both read the same and the log holds nothing but a correction now and then. A guest that reads the clock \
          ten thousand times a second then costs no byte of the log.",
};

pub(super) const BOUNCE_BUFFER: Lesson = Lesson {
    number: 5,
    title: "A packet in pieces",
    question: "What does a guest see that looks at its receive buffer while the packet arrives?",
    show: |stage| show(stage, &POLLER, "bounce-buffer"),
    why: "A network card writes a packet into memory while the processor executes, and a guest that looks may find one half \
          of it, at an instruction that depends on both machines' speed. The twin would have to see the same half at the same \
          instruction, and no log can say that. So packets go to a buffer of the hypervisor first, and are copied into \
          guest memory as a whole while the guest is stopped at the instruction that the log names.",
};

/// How long twins that are the same are watched.
const DIGESTS: u64 = 8;
const LIMIT: Duration = Duration::from_secs(60);
const PACE: Duration = Duration::from_millis(20);

/// A guest and how it is given inputs.
struct Subject {
    guest: &'static str,
    arguments: &'static [&'static str],
    /// Begins to talk to the guest; what it returns is called again and again.
    talk: fn(&DrivenRig) -> Result<Talk>,
}

/// Says something to a guest.
type Talk = Box<dyn FnMut() -> Result<()>>;

/// Counts, and computes between requests.
const SERVER: Subject = Subject {
    guest: "counter",
    arguments: &["--guest-args", "ip=10.0.2.15/24 gw=10.0.2.2 busy"],
    talk: |rig| {
        let mut client = Client::connect(rig.service())?;
        Ok(Box::new(move || client.increment("x").map(drop)))
    },
};

/// Looks at its receive buffer all the time.
const POLLER: Subject = Subject {
    guest: "poll-rx",
    arguments: &["--forward", "0:7/udp"],
    talk: |rig| {
        let file = directory::read(rig.directory())?;
        let echo = file.forwards.iter().find(|entry| entry.guest_port == 7).context("no port leads to the echo")?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(&echo.address)?;
        socket.set_nonblocking(true)?;
        Ok(Box::new(move || {
            // What is lost or not taken is sent again the next time.
            let _ = socket.send(&[0x5A; 400]);
            let mut buffer = [0; 512];
            while socket.recv(&mut buffer).is_ok() {}
            Ok(())
        }))
    },
};

/// What became of twins.
struct Outcome {
    /// Digests that were equal.
    equal: u64,
    /// How they differed.
    difference: Option<String>,
    /// Packets that the guest saw in part.
    torn: usize,
}

fn show(stage: &Stage, subject: &Subject, rule: &str) -> Result<Vec<String>> {
    let broken = format!("break={rule}");
    let without = scene(stage, "without-the-rule", subject, &["--hypervisor-option", &broken])?;
    let with = scene(stage, "with-the-rule", subject, &[])?;
    ensure!(without.difference.is_some(), "the twins stayed the same without the rule");
    if let Some(difference) = &with.difference {
        bail!("the twins differ with the rule: {difference}");
    }
    ensure!(with.torn == 0, "with the rule the guest saw a part of a packet");
    let row = |seen: &Outcome| {
        let end = if seen.difference.is_some() { "they differ" } else { "all equal" };
        let torn = if subject.guest == POLLER.guest { format!("{} torn", seen.torn) } else { String::new() };
        [format!("{} digests", seen.equal), end.to_owned(), torn].to_vec()
    };
    let mut picture = answers(&[("without the rule", row(&without)), ("with the rule", row(&with))]);
    picture.extend(without.difference.iter().map(|difference| format!("    {difference}")));
    Ok(picture)
}

/// Talks to a guest until its twins differ, or until enough digests were equal.
fn scene(stage: &Stage, name: &str, subject: &Subject, options: &[&str]) -> Result<Outcome> {
    // Without the rule the twins may differ at once: then they are protected for a moment only.
    let mut rig = stage.begin(name, subject.guest, &[subject.arguments, options].concat())?;
    rig.wait_until("a backup", LIMIT, |snapshot| snapshot.first_protected_s.is_some())?;
    let mut talk = (subject.talk)(&rig)?;
    let started = Instant::now();
    let (mut equal, mut difference) = (0, None);
    while difference.is_none() && equal < DIGESTS {
        ensure!(started.elapsed() < LIMIT, "{equal} digests in {} s: was the desk busy?", LIMIT.as_secs());
        talk()?;
        pause(PACE)?;
        let snapshot = rig.snapshot()?;
        equal = compared(&snapshot).max(equal);
        difference =
            snapshot.notices.iter().find(|notice| notice.text.contains("diverged")).map(|notice| notice.text.clone());
    }
    stage.tell(&match &difference {
        Some(difference) => format!("the twins are not the same any more: {difference}"),
        None => format!("{equal} digests compared, all equal"),
    });
    let directory = rig.directory().to_owned();
    stage.end(rig)?;
    let console = std::fs::read_to_string(directory.join("console.log")).unwrap_or_default();
    Ok(Outcome { equal, difference, torn: console.matches("TORN").count() })
}

/// Digests that a backup has compared and found equal.
fn compared(snapshot: &Snapshot) -> u64 {
    let digests = snapshot.machines.iter().filter_map(|machine| machine.status.as_ref()).map(|status| status.digests);
    digests.max().unwrap_or(0)
}
