//! Debian's own kernels and Redis, from Debian's packages, as a protected guest.

use std::time::Instant;

use anyhow::{Result, ensure};
use pollux_tests::debian::{self, BOOT_LIMIT};
use pollux_tests::load::{Load, judge, wait_answers};
use pollux_tests::rig::{Rig, TAKEOVER_LIMIT, kills};
use pollux_tests::shell::{give, said};

const REDIS: [&str; 2] = ["--packages", "redis-server"];
/// A kernel that starts anew after a panic.
const WITH_PANIC: [&str; 2] = ["--guest-args", "console=ttyS0 no_timer_check panic=1"];

/// Kills primaries while a client counts on one connection, which is not told of it.
fn endure_kills(rig: &mut Rig, kills: usize) -> Result<()> {
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    for _ in 0..kills {
        wait_answers(rig, &load, 20)?;
        debian::kill_and_replace(rig, |rig| wait_answers(rig, &load, 20))?;
    }
    wait_answers(rig, &load, 20)?;
    let summary = judge(load)?;
    ensure!(summary.last == i64::try_from(summary.answered).ok());
    debian::ensure_equal(rig, kills)
}

/// Panic and power-off come after the kills: a boot is what takes longest.
#[test]
fn debians_redis_survives_kills_under_one_connection_and_a_panic() -> Result<()> {
    let Some(mut rig) = debian::protected("linux", &REDIS, &WITH_PANIC)? else { return Ok(()) };
    let kills = kills(2)?;
    endure_kills(&mut rig, kills)?;
    boots_again(rig, kills, &[])
}

fn redis_survives_kills_under_one_connection(name: &str, suite: &[&str]) -> Result<()> {
    let guest = [&REDIS[..], suite].concat();
    let Some(mut rig) = debian::protected(name, &guest, &[])? else { return Ok(()) };
    endure_kills(&mut rig, kills(2)?)?;
    rig.stop()
}

/// Linux 6.12, and the user land of Debian 13.
#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn redis_of_debian_13_survives_kills() -> Result<()> {
    redis_survives_kills_under_one_connection("linux-trixie", &["--suite", "trixie"])
}

/// The newest Linux that Debian has, with 1000 ticks a second.
#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn redis_of_debian_unstable_survives_kills() -> Result<()> {
    redis_survives_kills_under_one_connection("linux-sid", &["--suite", "sid", "--stale"])
}

/// The same without kills, and a reset that somebody asks for comes before.
#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn debian_boots_again_after_a_reset_and_a_panic_and_powers_off() -> Result<()> {
    let Some(rig) = debian::protected("linux-ends", &REDIS, &WITH_PANIC)? else { return Ok(()) };
    boots_again(rig, 0, &["reboot -f"])
}

/// Gives `orders`, after each of which the guest boots again, has it panic, and switches it off: on both machines, and none of it
/// makes one take over. The kernel uses AVX.
fn boots_again(mut rig: Rig, takeovers: usize, orders: &[&str]) -> Result<()> {
    let resets_wanted = orders.len() + 1;
    for (order, boots) in orders.iter().chain(&["echo c > /proc/sysrq-trigger"]).zip(1..) {
        give(&mut rig, boots, order)?;
    }
    give(&mut rig, resets_wanted + 1, "tr ' ' '\\n' < /proc/cpuinfo | grep -cx -e avx2 -e fma -e f16c")?;
    rig.wait("both have booted again, and the shell has answered", BOOT_LIMIT, |rig| {
        let status = rig.status()?;
        ensure!(status.notice("diverged").is_none(), "{:?}", status.notice("diverged"));
        let resets = |log| rig.read(log).matches("the guest asked for a reset").count();
        Ok((["castor.log", "pollux.log"].iter().all(|log| resets(log) == resets_wanted) && said(rig, "\n3\n") == 1)
            .then_some(()))
    })?;
    ensure!(rig.file()?.protected, "{}", rig.report());
    debian::ensure_equal(&mut rig, takeovers)?;
    let console = rig.read("console.log");
    for expected in ["sysrq: Trigger a crash", "Enabled xstate features 0x"] {
        ensure!(console.contains(expected), "{expected:?} is not in\n{console}");
    }
    rig.ask(&["console", "poweroff -f"])?;
    ensure!(rig.wait_end(TAKEOVER_LIMIT)?.success(), "{}", rig.report());
    for machine in ["castor.log", "pollux.log"] {
        let log = rig.read(machine);
        ensure!(!["PANIC", "DIVERGED"].iter().any(|word| log.contains(word)), "{}", rig.report());
    }
    Ok(())
}

/// ext4 on a disk: what is written while machines die is there afterwards, and the file system is whole.
#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn debians_file_system_survives_kills() -> Result<()> {
    const FILES: usize = 120;
    let Some(mut rig) = debian::protected("linux-disk", &REDIS, &["--disk", "64M"])? else { return Ok(()) };
    give(&mut rig, 1, "mkfs.ext4 -q /dev/vda && mkdir /disk && mount /dev/vda /disk && echo mounted: $((6*7))")?;
    rig.wait("the disk is mounted", BOOT_LIMIT, |rig| Ok((said(rig, "mounted: 42") == 1).then_some(())))?;
    let write = "dd if=/dev/urandom of=/disk/$i bs=8k count=8 2>/dev/null; md5sum /disk/$i >>/disk/sums; sync";
    rig.ask(&["console", &format!("for i in $(seq {FILES}); do {write}; echo file: $i; done")])?;
    for part in 1..=2 {
        let number = format!("file: {}\n", part * FILES / 3);
        rig.wait(&number, BOOT_LIMIT, |rig| Ok((said(rig, &number) == 1).then_some(())))?;
        let backup = rig.file()?.machine("backup")?.name.clone();
        rig.kill("primary")?;
        rig.wait_role(&backup, "primary", TAKEOVER_LIMIT)?;
        rig.start_backup()?;
    }
    let last = format!("file: {FILES}\n");
    rig.wait(&last, BOOT_LIMIT, |rig| Ok((said(rig, &last) == 1).then_some(())))?;
    // What is in memory only must not help.
    let check = "umount /disk && e2fsck -fn /dev/vda; echo checked: $? && mount /dev/vda /disk && \
                 echo whole: $(md5sum -c /disk/sums | grep -c OK)";
    rig.ask(&["console", check])?;
    rig.wait("all files were compared", BOOT_LIMIT, |rig| Ok((said(rig, "\nwhole: ") == 1).then_some(())))?;
    let console = rig.read("console.log");
    for expected in ["checked: 0\n".to_owned(), format!("whole: {FILES}\n")] {
        ensure!(console.contains(&expected), "{expected:?} is not in\n{console}");
    }
    let status = rig.status()?;
    ensure!(status.notice("diverged").is_none(), "{:?}", status.notice("diverged"));
    rig.wait_takeovers(2)?;
    ensure!(rig.file()?.protected);
    rig.stop()
}
