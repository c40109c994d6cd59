//! The primary's power is cut at every boundary of the protocol, one after another.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pollux_tests::amount::amount;
use pollux_tests::history::{self, Increment};
use pollux_tests::resp::{Client, Reply};
use pollux_tests::rig::{Platform, Rig};
use pollux_tests::{GUEST_MAC, capture, skip};

/// Cuts in one run: each boundary of the script once. `POLLUX_CUTS` says otherwise.
const CUTS: usize = 36;
/// No reply may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Two clients of one counter: one connection that outlives all cuts, and one that is new for each script.
struct Clients {
    service: String,
    old: Client,
    epoch: Instant,
    increments: Vec<Increment>,
}

impl Clients {
    fn connect(service: String) -> Result<Self> {
        let old = Client::connect(&service, PATIENCE)?;
        Ok(Self { service, old, epoch: Instant::now(), increments: Vec::new() })
    }

    /// The workload: it opens and closes a connection, counts on both, writes and reads back.
    fn script(&mut self, text: &str) -> Result<()> {
        let mut new = Client::connect(&self.service, PATIENCE)?;
        self.increment(None)?;
        self.increment(Some(&mut new))?;
        new.send(&["SET", "text", text])?;
        ensure!(new.receive()? == Reply::Simple("OK".into()));
        new.send(&["INCR", "x"])?;
        let invoked = self.epoch.elapsed();
        new.send(&["GET", "text"])?;
        let value = new.receive_number()?;
        self.increments.push(Increment { invoked, reply: Some((self.epoch.elapsed(), value)) });
        let read = new.receive()?;
        ensure!(read == Reply::Text(Some(text.into())), "{text} was written, {read:?} is there");
        drop(new);
        self.increment(None)
    }

    fn increment(&mut self, new: Option<&mut Client>) -> Result<()> {
        let invoked = self.epoch.elapsed();
        let value = new.unwrap_or(&mut self.old).increment("x")?;
        self.increments.push(Increment { invoked, reply: Some((self.epoch.elapsed(), value)) });
        Ok(())
    }
}

/// Where all machines that were cut so far say that they were.
fn cuts_of(rig: &Rig) -> BTreeMap<String, usize> {
    let mut places = BTreeMap::new();
    for log in ["castor.log", "pollux.log"].map(|name| rig.read(name)) {
        for (_, place) in log.lines().filter_map(|line| line.split_once("the power is cut: ")) {
            *places.entry(place.to_owned()).or_default() += 1;
        }
    }
    places
}

fn count(rig: &Rig) -> usize {
    cuts_of(rig).values().sum()
}

#[test]
fn no_boundary_is_a_bad_moment_to_die() -> Result<()> {
    if Platform::get() == Platform::Bochs {
        return skip("machines in Bochs keep pace only to within a second, and would suspect each other in vain");
    }
    let goal = amount("POLLUX_CUTS", CUTS)?;
    let mut arguments = Vec::new();
    for option in ["test-commands=on", "heartbeat=50ms", "suspect=400ms"] {
        arguments.extend(["--hypervisor-option", option]);
    }
    let mut rig = Rig::protected("cuts", "counter", &arguments)?;
    rig.ask(&["capture", "on"])?;
    let mut clients = Clients::connect(rig.service()?)?;
    let (mut cuts, mut boundary) = (0, 1);
    while cuts < goal {
        let backup = rig.file()?.machine("backup")?.name.clone();
        rig.command("primary", &["cut", &boundary.to_string()])?;
        clients.script(&format!("{cuts}-{boundary}"))?;
        (cuts, boundary) = (cuts + 1, boundary + 1);
        if count(&rig) < cuts {
            // The script was over before: all its boundaries have had their turn. Idle guests have some, too.
            rig.wait("the cut", PATIENCE, |rig| Ok((count(rig) == cuts).then_some(())))?;
            println!("{cuts} cuts: after all {} boundaries of the script once more", boundary - 2);
            boundary = 1;
        }
        rig.wait_role(&backup, "primary", PATIENCE)?;
        rig.start_backup()?;
    }
    clients.script("the end")?;
    rig.wait_takeovers(cuts)?;
    let status = rig.status()?;
    ensure!(status.notice("diverged").is_none(), "{:?}", status.notice("diverged"));
    println!("{:#?}", cuts_of(&rig));
    history::write(&rig.directory().join("history"), &clients.increments)?;
    let summary = history::check(1, &clients.increments)?;
    ensure!(summary.unanswered == 0);
    let frames = capture::read(&rig.directory().join("client.pcap"))?;
    let repeats = capture::repeats(&frames, GUEST_MAC).context("what the guest sent")?;
    println!("{cuts} cuts: {summary}; {repeats}");
    rig.stop()
}
