//! What somebody who lives in the guest does all day: packages, a compiler, Python, encryption, vector registers, signals and
//! timers, a bit of everything at once. The twins stay equal.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pollux_tests::amount::amount;
use pollux_tests::debian::{self, wait_digests};
use pollux_tests::rig::LONG_LIFE;
use pollux_tests::shell::Shell;

const GUEST: [&str; 2] = ["--packages", "redis-server,dpkg,libc6-dev,openssl,python3,stress-ng,tcc"];
/// The longest part takes a minute of guest time; a busy desk some times as long.
const LIMIT: Duration = Duration::from_secs(900);
/// Digests that are compared behind each part.
const DIGESTS: u64 = 2;

/// A part of the day, and what it prints if all is well.
const PARTS: [(&str, &str, &str); 7] = [
    (
        "packages are made and unpacked",
        "mkdir -p /p/DEBIAN && cp -r /usr/lib/python3 /p/ && \
         printf 'Package: p\\nVersion: 1\\nArchitecture: all\\nMaintainer: p\\nDescription: p\\n' > /p/DEBIAN/control && \
         /usr/bin/dpkg-deb -Zgzip -b /p /p.deb && /usr/bin/dpkg-deb -x /p.deb /q && diff -r /p/python3 /q/python3 && echo unpacked: $((6*7))",
        "unpacked: 42",
    ),
    (
        "C is compiled",
        "printf '#include <stdio.h>\\nint main(void) { double s = 0; for (int i = 1; i < 2000000; i++) s += 1.0 / i / i; \
         printf(\"sum: %%.6f\\\\n\", s); return 0; }\\n' > /a.c && for i in 1 2 3; do tcc -o /a /a.c; done && /a",
        "sum: 1.644934",
    ),
    (
        "Python computes",
        "python3 -c \"import hashlib, json; d = {str(i): i * i for i in range(50000)}; \
         s = json.dumps(d); assert json.loads(s) == d; print('python:', hashlib.sha256(s.encode()).hexdigest()[:8])\"",
        "python: 952c7fab",
    ),
    (
        "OpenSSL is measured",
        "openssl speed -seconds 1 -bytes 1024 -evp aes-256-gcm sha256 > /dev/null 2>&1 && \
         head -c 1000000 /dev/zero | openssl enc -aes-256-ctr -K 00 -iv 00 2>/dev/null | openssl dgst -sha256",
        "5df7118f742dbf5b2eeb87789e3b463a",
    ),
    (
        "vector registers are used",
        "stress-ng --vecmath 1 --vecfp 1 --vecwide 1 --matrix 1 --timeout 8 --verify 2>&1 | tail -1",
        "successful run completed",
    ),
    (
        "signals and timers fly",
        "stress-ng --sigq 1 --sigrt 1 --timer 1 --timerfd 1 --itimer 1 --switch 1 --timeout 8 2>&1 | tail -1",
        "successful run completed",
    ),
    (
        "a minute of all",
        "stress-ng --cpu 1 --fork 1 --mmap 1 --mmap-bytes 32m --vm 1 --vm-bytes 32m --pipe 1 --sock 1 --timeout 60 2>&1 | tail -1",
        "successful run completed",
    ),
];

#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn a_residents_day_leaves_the_twins_equal() -> Result<()> {
    let days: usize = amount("POLLUX_DAYS", 1)?;
    let Some(mut rig) = debian::protected("resident", &GUEST, &LONG_LIFE)? else { return Ok(()) };
    let mut shell = Shell::open(&mut rig)?;
    let start = rig.fresh("backup")?.position;
    for day in 1..=days {
        for (what, command, expected) in PARTS {
            let began = Instant::now();
            let said = shell.run(&mut rig, command, LIMIT).with_context(|| what.to_owned())?;
            ensure!(said.contains(expected), "{what}: no {expected:?} in\n{said}");
            let backup = wait_digests(&mut rig, DIGESTS)?;
            println!(
                "day {day}: {what}: {:.0} s; {} digests equal, {:.1} G instructions",
                began.elapsed().as_secs_f64(),
                backup.digests,
                backup.position.saturating_sub(start) as f64 / 1e9
            );
        }
    }
    ensure!(rig.file()?.protected, "{}", rig.report());
    debian::ensure_equal(&mut rig, 0)?;
    rig.stop()
}
