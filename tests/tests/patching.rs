//! A kernel that patches its own code while it is protected: modules come and go, static keys flip, probes and tracers are put
//! into functions and taken out again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pollux_tests::amount::amount;
use pollux_tests::debian::{self, BOOT_LIMIT, wait_digests};
use pollux_tests::load::{Load, judge};
use pollux_tests::rig::LONG_LIFE;
use pollux_tests::shell::Shell;

const GUEST: [&str; 4] = ["--packages", "redis-server,stress-ng", "--modules", "loop,dummy,zram,lzo-rle"];

/// Functions of the shell. Each fails where something of it does.
const FUNCTIONS: [&str; 5] = [
    "mount -t tracefs trace /sys/kernel/tracing && cd /sys/kernel/tracing && cat set_ftrace_filter > /dev/null",
    "modules() { for name in loop dummy zram; do modprobe $name && modprobe -r $name || return 1; done; }",
    "keys() { for value in 1 0; do echo $value > /proc/sys/kernel/sched_schedstats && \
     echo $value > events/sched/enable && echo $value > events/syscalls/enable || return 1; done; }",
    "probes() { echo 'p:pollux/reads vfs_read' > kprobe_events && echo 'r:pollux/read vfs_read' >> kprobe_events && \
     echo 1 > events/pollux/enable && cat /proc/stat > /dev/null && grep -q reads: trace && \
     echo 0 > events/pollux/enable && echo > kprobe_events && echo > trace; }",
    "tracer() { echo 'vfs_*' 'tcp_*' > set_ftrace_filter && echo function > current_tracer && cat /proc/stat > /dev/null && \
     grep -q vfs_read trace && echo nop > current_tracer && echo > set_ftrace_filter; }",
];
/// One of these takes some seconds on an idle desk.
const LIMIT: Duration = Duration::from_secs(240);

fn patched_kernel_stays_equal(name: &str, suite: &str) -> Result<()> {
    let minutes: f64 = amount("POLLUX_MINUTES", 1.0)?;
    let guest = [&GUEST[..], &["--suite", suite]].concat();
    let Some(mut rig) = debian::protected(name, &guest, &LONG_LIFE)? else { return Ok(()) };
    let mut shell = Shell::open(&mut rig)?;
    for function in FUNCTIONS {
        shell.run(&mut rig, function, BOOT_LIMIT)?;
    }
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    let (began, mut rounds) = (Instant::now(), 0);
    while rounds == 0 || began.elapsed().as_secs_f64() < minutes * 60.0 {
        for part in ["modules", "keys", "probes", "tracer"] {
            let part_began = Instant::now();
            shell.run(&mut rig, part, LIMIT)?;
            if rounds == 0 {
                println!("{part}: {:.1} s", part_began.elapsed().as_secs_f64());
            }
        }
        rounds += 1;
    }
    let summary = judge(load)?;
    let backup = wait_digests(&mut rig, 2)?;
    ensure!(rig.file()?.protected, "{}", rig.report());
    println!(
        "{rounds} rounds in {:.0} s, {} requests meanwhile; {} digests equal up to position {}",
        began.elapsed().as_secs_f64(),
        summary.answered,
        backup.digests,
        backup.position
    );
    rig.stop()
}

#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn debian_12_that_patches_its_code_stays_equal() -> Result<()> {
    patched_kernel_stays_equal("patching", "bookworm")
}

#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn debian_13_that_patches_its_code_stays_equal() -> Result<()> {
    patched_kernel_stays_equal("patching-trixie", "trixie")
}
