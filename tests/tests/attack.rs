//! Somebody on both networks without the key, under load and while machines die: nothing comes of it but counts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pollux_tests::amount::amount;
use pollux_tests::attacker::{Attacker, Means};
use pollux_tests::cable::Cable;
use pollux_tests::debian::PATIENT;
use pollux_tests::load::{Load, judge, wait_answers};
use pollux_tests::rig::{Platform, Rig, TAKEOVER_LIMIT, fresh_directory};
use pollux_tests::{seed, skip, xtask};

/// How long he tries, unless `POLLUX_ATTACK_MINUTES` says otherwise.
const MINUTES: u64 = 2;
/// Between two deaths.
const BETWEEN: Duration = Duration::from_secs(12);
/// How long the survivor is alone with him.
const ALONE: Duration = Duration::from_secs(4);
/// What counts what he does, and must have counted something.
const COUNTED: [&str; 4] =
    ["heartbeats_malformed", "heartbeats_late", "heartbeats_unanswered", "log_refused_strangers"];

/// The largest count of each machine's life, summed.
#[derive(Default)]
struct Counts(BTreeMap<(String, &'static str), u64>, BTreeMap<&'static str, u64>);

impl Counts {
    fn look(&mut self, rig: &Rig) -> Result<()> {
        for machine in &rig.status()?.machines {
            let Some(status) = &machine.status else { continue };
            for name in COUNTED {
                let now = status.errors.get(name).copied().unwrap_or_else(|| status.counter(name));
                let before = self.0.insert((machine.name.clone(), name), now).unwrap_or(0);
                // A machine that was started anew begins at zero.
                *self.1.entry(name).or_default() += if now >= before { now - before } else { now };
            }
        }
        Ok(())
    }
}

fn attack(name: &str, time: Duration) -> Result<()> {
    let key = fresh_directory(&format!("{name}-key"))?.join("key");
    let path = key.to_str().context("a path that is no text")?;
    ensure!(xtask::run(&["key", "new", path])?.status.success(), "no key");
    // A busy desk must not be taken for a dead twin.
    let options = ["--capture", "--key", path, "--hypervisor-option", PATIENT];
    // A former life, whose words he has kept.
    let mut former = Rig::protected(&format!("{name}-former"), "counter", &options)?;
    let load = Load::start(&former.service()?, "x", Instant::now())?;
    wait_answers(&mut former, &load, 20)?;
    judge(load)?;
    let kept = former.directory().join("log.pcap");
    former.stop()?;

    let mut rig = Rig::protected(name, "counter", &options)?;
    let (cables, directory) = (Cable::all(&rig)?, rig.directory().to_owned());
    ensure!(cables.len() >= 4, "only {cables:?}");
    let arbiter = rig.status()?.arbiter.context("no arbiter")?.address.parse()?;
    let attacker = Attacker::start(Means { cables, directory, arbiter, former: kept }, seed::random())?;
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    let (begun, mut counts, mut deaths) = (Instant::now(), Counts::default(), [0; 2]);
    while begun.elapsed() < time || deaths.contains(&0) {
        let next = Instant::now() + BETWEEN.min(time / 4);
        while Instant::now() < next {
            std::thread::sleep(Duration::from_millis(500));
            counts.look(&rig)?;
            ensure!(rig.file()?.protected, "protection was lost\n{}", rig.report());
            let takeovers = rig.status()?.takeovers.len();
            ensure!(takeovers == deaths[0], "{takeovers} takeovers for {} deaths of a primary", deaths[0]);
        }
        wait_answers(&mut rig, &load, 10)?;
        let heir = rig.file()?.machine("backup")?.name.clone();
        let dies = usize::from(deaths[0] > deaths[1]);
        rig.kill(["primary", "backup"][dies])?;
        deaths[dies] += 1;
        if dies == 0 {
            rig.wait_role(&heir, "primary", TAKEOVER_LIMIT)?;
        } else {
            rig.wait("the primary goes on alone", TAKEOVER_LIMIT, |rig| Ok((!rig.file()?.protected).then_some(())))?;
        }
        wait_answers(&mut rig, &load, 10)?;
        // Who is alone listens: now he can knock.
        std::thread::sleep(ALONE);
        counts.look(&rig)?;
        rig.start_backup()?;
    }
    let deeds = attacker.stop()?;
    let status = rig.status()?;
    println!("{deeds:#?}\ncounted {:#?}\ndeaths {deaths:?}, {:?}", counts.1, judge(load)?);
    ensure!(status.takeovers.len() == deaths[0] && status.notice("diverged").is_none(), "{}", rig.report());
    for log in ["castor.log", "pollux.log"] {
        ensure!(!["PANIC", "DIVERGED"].iter().any(|word| rig.read(log).contains(word)), "{}", rig.report());
    }
    for name in COUNTED {
        ensure!(counts.1.get(name).is_some_and(|&count| count > 0), "{name} counted nothing");
    }
    rig.stop()
}

#[test]
#[ignore = "takes minutes: cargo xtask test rig nothing_comes_of_an_attack --long"]
fn nothing_comes_of_an_attack() -> Result<()> {
    if Platform::get() == Platform::Bochs {
        return skip("machines in Bochs take one frame in an emulated millisecond: he would drown all others");
    }
    let minutes = amount("POLLUX_ATTACK_MINUTES", MINUTES)?;
    attack("attack", Duration::from_secs(60 * minutes))
}
