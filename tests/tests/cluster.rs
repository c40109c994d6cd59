//! Arbiters in front of a real etcd cluster over TLS; skipped where there is no etcd.

#[path = "../../ft/arbiter/tests/etcd/mod.rs"]
mod etcd;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use etcd::Cluster;
use pollux_tests::arbiter::{Desk, free, keys, wait_trouble};
use pollux_tests::load::{Load, judge, wait_answers};
use pollux_tests::rig::{Rig, TAKEOVER_LIMIT, fresh_directory, kills};
use pollux_tests::xtask;

/// What the machines' arbiters have in front of them.
struct Fronts {
    cluster: Cluster,
    addresses: [String; 2],
    arbiters: [Option<Desk>; 2],
    folder: PathBuf,
}

/// What is amiss while the primary dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Amiss {
    Nothing,
    Member(usize),
    Arbiter(usize),
    Majority,
    Full,
}

impl Fronts {
    fn arbiter(&self, index: usize) -> Result<Option<Desk>> {
        Desk::with(&self.addresses[index], &self.cluster.arguments(), &self.folder).map(Some)
    }

    fn spoil(&mut self, what: Amiss) -> Result<()> {
        match what {
            Amiss::Nothing => Ok(()),
            Amiss::Member(member) => self.cluster.kill(member),
            Amiss::Arbiter(index) => {
                self.arbiters[index] = None;
                Ok(())
            }
            Amiss::Majority => self.cluster.kill(0).and_then(|()| self.cluster.kill(2)),
            Amiss::Full => self.cluster.fill(),
        }
    }

    fn mend(&mut self, what: Amiss) -> Result<()> {
        match what {
            Amiss::Nothing => Ok(()),
            Amiss::Member(member) => self.cluster.revive(member),
            Amiss::Arbiter(index) => {
                self.arbiters[index] = self.arbiter(index)?;
                Ok(())
            }
            Amiss::Majority => self.cluster.revive(0).and_then(|()| self.cluster.revive(2)),
            Amiss::Full => self.cluster.make_room(),
        }
    }
}

/// Each network leads to an arbiter of its own, and both keep their terms in one cluster of three members over TLS. Primaries die under load
/// while a member, or an arbiter, is dead, where there is no majority, and where a member is full.
#[test]
#[ignore = "takes minutes: cargo xtask test rig a_cluster_decides_who_goes_live --long"]
fn a_cluster_decides_who_goes_live() -> Result<()> {
    const STEPS: [Amiss; 8] = [
        Amiss::Nothing,
        Amiss::Member(0),
        Amiss::Arbiter(0),
        Amiss::Majority,
        Amiss::Member(1),
        Amiss::Arbiter(1),
        Amiss::Full,
        Amiss::Member(2),
    ];
    let directory = fresh_directory("cluster-data")?;
    let Some(cluster) = Cluster::start(&directory, Some(1))? else { return Ok(()) };
    let (key, folder) = keys(&directory)?;
    let mut fronts = Fronts { cluster, addresses: [free()?, free()?], arbiters: [None, None], folder };
    // The program may have to be built first.
    let mut listed = xtask::command();
    ensure!(listed.args(["arbiter", "terms"]).args(fronts.cluster.arguments()).status()?.success(), "no terms");
    for index in 0..2 {
        fronts.arbiters[index] = fronts.arbiter(index)?;
    }
    let (key, both) = (key.to_str().context("a path that is no text")?, fronts.addresses.join(","));
    let watch = ["--arbiter", &both, "--key", key, "--hypervisor-option", "arbiter-watch=1s"];
    let mut rig = Rig::protected("cluster", "counter", &watch)?;
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    for kill in 0..kills(STEPS.len())? {
        let amiss = STEPS[kill % STEPS.len()];
        wait_answers(&mut rig, &load, 10)?;
        wait_trouble(&mut rig, &["castor", "pollux"], "")?;
        fronts.spoil(amiss)?;
        let heir = rig.file()?.machine("backup")?.name.clone();
        if amiss == Amiss::Full {
            wait_trouble(&mut rig, &["castor", "pollux"], "database space exceeded")?;
        }
        rig.kill("primary")?;
        if matches!(amiss, Amiss::Majority | Amiss::Full) {
            rig.wait("a question in vain", TAKEOVER_LIMIT, |rig| {
                Ok(rig.status()?.of(&heir).filter(|status| status.arbiter.failures > 2).map(drop))
            })?;
            ensure!(rig.file()?.machine(&heir)?.role == "backup", "a term without {amiss:?}");
            fronts.mend(amiss)?;
            rig.wait_role(&heir, "primary", TAKEOVER_LIMIT)?;
        } else {
            rig.wait_role(&heir, "primary", TAKEOVER_LIMIT)?;
            fronts.mend(amiss)?;
        }
        wait_answers(&mut rig, &load, 10)?;
        rig.start_backup()?;
    }
    let summary = judge(load)?;
    println!("{} kills, {summary:?}", kills(STEPS.len())?);
    rig.stop()
}
