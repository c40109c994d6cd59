//! Machines that cannot hear each other, or the arbiter: never do two of them answer clients.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pollux_tests::load::{Load, judge, wait_answers};
use pollux_tests::rig::{Rig, START_LIMIT, TAKEOVER_LIMIT};
use pollux_tests::status::Status;
use pollux_tests::{GUEST_MAC, capture};

/// Questions in vain after which a machine is taken to wait for the arbiter.
const IN_VAIN: u64 = 3;

/// A protected pair, a client on its only connection, and the names of primary and backup.
struct Scene {
    rig: Rig,
    load: Load,
    primary: String,
    backup: String,
}

impl Scene {
    fn new(name: &str) -> Result<Self> {
        let mut rig = Rig::protected(name, "counter", &["--capture"])?;
        let load = Load::start(&rig.service()?, "x", Instant::now())?;
        wait_answers(&mut rig, &load, 10)?;
        let file = rig.file()?;
        let [primary, backup] =
            ["primary", "backup"].map(|role| file.machine(role).map(|machine| machine.name.clone()));
        Ok(Self { rig, load, primary: primary?, backup: backup? })
    }

    fn answers(&mut self) -> Result<()> {
        wait_answers(&mut self.rig, &self.load, 10)
    }

    fn reigns(&self, term: u64, name: &str) -> Result<()> {
        let status = self.rig.status()?;
        ensure!(status.reign() == Some((term, name)), "term {term} is not {name}'s: {:?}", status.arbiter);
        Ok(())
    }

    /// Waits until `name` has asked for term 2 in vain, several times.
    fn wait_in_vain(&mut self, name: &str) -> Result<Status> {
        self.rig.wait(&format!("{name} waits for the arbiter"), TAKEOVER_LIMIT, |rig| {
            let status = rig.status()?.of(name).cloned();
            Ok(status.filter(|status| status.arbiter.asks_for == 2 && status.arbiter.failures >= IN_VAIN))
        })
    }

    /// Waits until `name` says itself that it has halted, as the term went to its twin. Its process lives.
    fn wait_halted(&mut self, name: &str) -> Result<()> {
        self.rig.wait(&format!("{name} halts"), TAKEOVER_LIMIT, |rig| {
            let status = rig.status()?;
            let machine = status.machine(name).context("a machine")?;
            Ok((machine.claim.as_deref() == Some("halted")).then_some(()))
        })?;
        let status = self.rig.status()?;
        ensure!(status.machine(name).is_some_and(|machine| machine.role == "dead" && machine.pid.is_some()));
        let reason = "the arbiter gave term 2 to another machine";
        ensure!(status.notice(&format!("{name}: halt")).is_some_and(|notice| notice.contains(reason)));
        Ok(())
    }

    /// A new backup follows, and the client has noticed nothing.
    fn end(mut self) -> Result<()> {
        self.rig.start_backup()?;
        self.answers()?;
        let summary = judge(self.load)?;
        println!("the longest wait for a reply was {:?}", summary.longest_wait);
        let frames = capture::read(&self.rig.directory().join("client.pcap"))?;
        println!("{:?}", capture::repeats(&frames, GUEST_MAC)?);
        ensure!(self.rig.status()?.notice("diverged").is_none());
        self.rig.stop()
    }
}

#[test]
fn each_reign_is_won_at_the_arbiter() -> Result<()> {
    let mut scene = Scene::new("reigns")?;
    scene.reigns(1, &scene.primary)?;
    let names = [scene.backup.clone(), scene.primary.clone()];
    for (term, heir) in (2..).zip(&names) {
        scene.rig.kill("primary")?;
        scene.rig.wait_role(heir, "primary", TAKEOVER_LIMIT)?;
        scene.reigns(term, heir)?;
        scene.answers()?;
        scene.rig.start_backup()?;
    }
    // It is the primary who asks when the backup is lost.
    scene.rig.kill("backup")?;
    scene.rig.wait("the primary wins", TAKEOVER_LIMIT, |rig| {
        Ok((rig.status()?.reign() == Some((4, &names[1]))).then_some(()))
    })?;
    scene.answers()?;
    scene.end()
}

#[test]
fn without_an_arbiter_nobody_goes_live() -> Result<()> {
    let mut scene = Scene::new("no-arbiter")?;
    scene.rig.link("arbiter", &["down"])?;
    scene.answers()?;
    scene.rig.kill("primary")?;
    let backup = scene.backup.clone();
    let waiting = scene.wait_in_vain(&backup)?;
    ensure!(waiting.gate.released == 0 && waiting.term < 2, "the backup went live: {waiting:?}");
    let (status, file) = (scene.rig.status()?, scene.rig.file()?);
    ensure!(file.machine(&backup)?.role == "backup" && !file.protected && status.takeovers.is_empty());
    let answered = scene.load.answered();
    let failures = scene.wait_in_vain(&backup)?.arbiter.failures;
    scene.rig.wait("another question in vain", TAKEOVER_LIMIT, |rig| {
        Ok(rig.status()?.of(&backup).filter(|status| status.arbiter.failures > failures).map(drop))
    })?;
    ensure!(scene.load.answered() == answered, "somebody answered");
    scene.rig.link("arbiter", &["up"])?;
    scene.rig.wait_role(&backup, "primary", TAKEOVER_LIMIT)?;
    scene.reigns(2, &backup)?;
    scene.answers()?;
    let takeovers = scene.rig.wait_takeovers(1)?;
    ensure!(takeovers[0]["arbiter_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{takeovers:?}");
    scene.end()
}

#[test]
fn the_loser_of_a_split_halts() -> Result<()> {
    let mut scene = Scene::new("split")?;
    scene.rig.link("log", &["down"])?;
    let file = scene.rig.wait_file("one has lost", TAKEOVER_LIMIT, |file| file.machine("dead").is_ok())?;
    let loser = file.machine("dead")?.name.clone();
    let winner = if loser == scene.primary { &scene.backup } else { &scene.primary }.clone();
    println!("{loser} lost");
    scene.wait_halted(&loser)?;
    scene.rig.wait_role(&winner, "primary", TAKEOVER_LIMIT)?;
    scene.reigns(2, &winner)?;
    scene.answers()?;
    scene.rig.link("log", &["up"])?;
    scene.end()
}

#[test]
fn nobody_answers_until_a_split_is_decided() -> Result<()> {
    let mut scene = Scene::new("undecided")?;
    scene.rig.link("arbiter", &["down"])?;
    scene.rig.link("log", &["down"])?;
    let names = [scene.primary.clone(), scene.backup.clone()];
    for name in &names {
        scene.wait_in_vain(name)?;
    }
    let answered = scene.load.answered();
    let released = scene.wait_in_vain(&names[0])?.gate.released;
    for name in &names {
        let failures = scene.wait_in_vain(name)?.arbiter.failures;
        scene.rig.wait("another question in vain", TAKEOVER_LIMIT, |rig| {
            Ok(rig.status()?.of(name).filter(|status| status.arbiter.failures > failures).map(drop))
        })?;
    }
    ensure!(scene.load.answered() == answered, "somebody answered");
    ensure!(scene.wait_in_vain(&names[0])?.gate.released == released, "the primary's output left");
    ensure!(scene.wait_in_vain(&names[1])?.gate.released == 0, "the backup's output left");
    scene.rig.link("arbiter", &["up"])?;
    let file = scene.rig.wait_file("one has lost", TAKEOVER_LIMIT, |file| file.machine("dead").is_ok())?;
    let loser = file.machine("dead")?.name.clone();
    scene.wait_halted(&loser)?;
    scene.answers()?;
    scene.rig.link("log", &["up"])?;
    scene.end()
}

/// The backup asks over the client network in its own name, as the log network is cut; the primary cannot ask at all.
#[test]
fn a_primary_that_was_cut_off_learns_that_it_lost() -> Result<()> {
    let mut scene = Scene::new("cut-off")?;
    let [primary, backup] = [scene.primary.clone(), scene.backup.clone()];
    let cable = format!("client:{primary}");
    scene.rig.link(&cable, &["down"])?;
    scene.rig.link("log", &["down"])?;
    let waiting = scene.wait_in_vain(&primary)?;
    scene.rig.wait_role(&backup, "primary", TAKEOVER_LIMIT)?;
    scene.reigns(2, &backup)?;
    scene.answers()?;
    let status = scene.rig.status()?;
    let old = status.machine(&primary).context("the old primary")?;
    ensure!(old.role == "dead" && old.claim.as_deref() == Some("primary"), "{old:?}");
    scene.rig.link(&cable, &["up"])?;
    scene.wait_halted(&primary)?;
    let released = scene.rig.status()?.of(&primary).context("its last status")?.gate.released;
    ensure!(released == waiting.gate.released, "output left the machine that had lost");
    scene.answers()?;
    scene.rig.link("log", &["up"])?;
    scene.end()
}

/// The arbiter is on the log network only, and the twin, which has another address than it should, never answers there.
#[test]
fn a_dead_twin_does_not_hide_the_arbiter() -> Result<()> {
    let mut options = ["--hypervisor-option"; 4];
    (options[1], options[3]) = ("arbiter=10.1.0.3", "pollux:log-address=10.1.0.9/24");
    let mut rig = Rig::start("split-neighbours", "counter", &options)?;
    rig.wait_file("the machines", START_LIMIT, |file| file.machine("primary").is_ok())?;
    let asking = rig.wait("the first term", START_LIMIT, |rig| {
        Ok(rig.status()?.of("castor").filter(|status| status.term == 1).map(|status| status.arbiter.clone()))
    })?;
    ensure!(asking.answer_us < 2_000_000, "{asking:?}");
    rig.stop()
}
