//! Debian boots again and again, and becomes protected somewhere in the middle of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pollux_tests::amount::amount;
use pollux_tests::debian::{self, BOOT_LIMIT, PATIENT, ensure_undisturbed, wait_digests};
use pollux_tests::load::{Load, judge};
use pollux_tests::resp::Client;
use pollux_tests::rig::{LONG_LIFE, Platform, Rig, TAKEOVER_LIMIT};
use pollux_tests::shell::{LOGIN, give, said};
use pollux_tests::{seed, skip};

/// Words on the kernel's command line: all as it is, nothing patched against faults of processors, no clock reads, and nothing
/// of KVM's leaf.
const WORDS: [&str; 4] = ["", "mitigations=off", "notsc", "nopv"];
/// Digests that are compared when guest and service are up.
const DIGESTS: u64 = 10;
/// How long a first boot takes at least, in QEMU and in Bochs.
const FIRST_BOOTS: [Duration; 2] = [Duration::from_secs(8), Duration::from_secs(160)];
/// The longest time that a backup starts before a boot.
const EARLY: Duration = Duration::from_secs(4);

/// `POLLUX_BOOTS` boots, shared out among the command lines.
fn boots_stay_equal(name: &str, suite: &str) -> Result<()> {
    if Platform::get() == Platform::Bochs && std::env::var_os("POLLUX_BOOTS").is_none() {
        return skip("Linux takes minutes to boot in Bochs: POLLUX_BOOTS=1 asks for one");
    }
    let boots: usize = amount("POLLUX_BOOTS", 8)?;
    let Some(place) = debian::build(&["--packages", "redis-server", "--suite", suite])? else { return Ok(()) };
    let (mut random, mut while_booting) = (seed::random(), 0);
    for (index, words) in WORDS.iter().enumerate() {
        let share = boots / WORDS.len() + usize::from(index < boots % WORDS.len());
        if share > 0 {
            while_booting += boots_with(&format!("{name}-{index}"), &place, words, share, &mut random)?;
        }
    }
    println!("{while_booting} of {boots} became protected while they booted");
    ensure!(while_booting > 0 || boots < WORDS.len(), "none became protected while it booted");
    Ok(())
}

/// One rig, whose guest is reset from inside while it is not protected. How many boots became protected before they were over.
fn boots_with(name: &str, place: &str, words: &str, boots: usize, random: &mut fastrand::Rng) -> Result<usize> {
    let kernel = format!("console=ttyS0 quiet {words}");
    let arguments = ["--backup", "answering", "--hypervisor-option", PATIENT, "--guest-args", &kernel];
    let mut rig = Rig::start(name, place, &[&arguments[..], &LONG_LIFE].concat())?;
    rig.wait_file("the guest runs", BOOT_LIMIT, |file| file.machine("primary").is_ok())?;
    let (mut began, mut span) = (Instant::now(), FIRST_BOOTS[usize::from(Platform::get() == Platform::Bochs)]);
    let (mut before, mut while_booting) = (0, 0);
    for boot in 1..=boots {
        // One in four is under way when the boot begins: a state is sent for some seconds, and the backup must not always come late.
        let early = boot > 1 && random.u32(..4) == 0;
        let moment = span.mul_f64(random.f64());
        if early {
            rig.ask(&["start", "backup"])?;
            pause(&mut rig, EARLY.min(moment))?;
        }
        if boot > 1 {
            reset(&mut rig, boot - 1)?;
            began = Instant::now();
        }
        if !early {
            pause(&mut rig, moment)?;
            rig.ask(&["start", "backup"])?;
        }
        rig.wait("protected", BOOT_LIMIT, |rig| {
            ensure_undisturbed(rig)?;
            Ok(rig.file()?.protected.then_some(()))
        })?;
        let (protected_at, booting) = (position(&rig)?, said(&rig, LOGIN) < boot);
        while_booting += usize::from(booting);
        rig.wait("the guest has booted", BOOT_LIMIT, |rig| {
            ensure_undisturbed(rig)?;
            Ok((said(rig, LOGIN) >= boot).then_some(()))
        })?;
        span = began.elapsed();
        let booted_at = position(&rig)?;
        let equal = serve(&mut rig)?;
        println!(
            "`{kernel}`, boot {boot} of {boots}: protected {} after some {} M of {} M instructions, up after {:.0} s; {equal}",
            if booting { "while it booted," } else { "when it had booted," },
            (protected_at.saturating_sub(before)) / 1_000_000,
            (booted_at.saturating_sub(before)) / 1_000_000,
            span.as_secs_f64()
        );
        if boot < boots {
            before = take_backup_away(&mut rig)?;
        }
    }
    rig.stop()?;
    Ok(while_booting)
}

fn pause(rig: &mut Rig, time: Duration) -> Result<()> {
    let began = Instant::now();
    rig.wait("time goes by", BOOT_LIMIT, |_| Ok((began.elapsed() >= time).then_some(())))
}

/// Where the guest was when the primary last said so, which it does each second.
fn position(rig: &Rig) -> Result<u64> {
    Ok(rig.status()?.of("primary").context("there is no primary")?.position)
}

/// Redis serves while digests are compared; what was compared so far.
fn serve(rig: &mut Rig) -> Result<String> {
    let service = rig.service()?;
    rig.wait("Redis answers", BOOT_LIMIT, |_| {
        Ok(Client::connect(&service, TAKEOVER_LIMIT).and_then(|mut client| client.increment("up")).ok())
    })?;
    let load = Load::start(&service, "x", Instant::now())?;
    let backup = wait_digests(rig, DIGESTS)?;
    judge(load)?;
    ensure!(rig.file()?.protected, "{}", rig.report());
    Ok(format!("{} digests equal up to position {}", backup.digests, backup.position))
}

/// Where the guest was then.
fn take_backup_away(rig: &mut Rig) -> Result<u64> {
    let backup = rig.file()?.machine("backup")?.name.clone();
    rig.command(&backup, &["stop"])?;
    rig.wait_role(&backup, "dead", TAKEOVER_LIMIT)?;
    Ok(rig.fresh("primary")?.position)
}

/// Has the guest, which has booted so often, boot anew.
fn reset(rig: &mut Rig, boots: usize) -> Result<()> {
    const RESET: &str = "the guest asked for a reset";
    let log = format!("{}.log", rig.file()?.machine("primary")?.name);
    let resets = rig.read(&log).matches(RESET).count();
    give(rig, boots, "reboot -f")?;
    rig.wait("the guest is reset", BOOT_LIMIT, |rig| Ok((rig.read(&log).matches(RESET).count() > resets).then_some(())))
}

#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn boots_of_debian_12_that_become_protected_at_any_moment_stay_equal() -> Result<()> {
    boots_stay_equal("boots", "bookworm")
}

#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn boots_of_debian_13_that_become_protected_at_any_moment_stay_equal() -> Result<()> {
    boots_stay_equal("boots-trixie", "trixie")
}
