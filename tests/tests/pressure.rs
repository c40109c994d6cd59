//! A Debian whose memory is too small, and one that makes and drops address spaces all the time, as protected guests: the kernel
//! clears accessed bits without a flush, swaps, and edits page tables.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pollux_tests::amount::amount;
use pollux_tests::debian::{self, BOOT_LIMIT, wait_digests};
use pollux_tests::rig::{LONG_LIFE, Rig};
use pollux_tests::shell::Shell;

const GUEST: [&str; 4] = ["--packages", "redis-server,stress-ng", "--modules", "loop,dummy,zram,lzo-rle"];
/// What kernel and ramdisk need to boot, and little more: the ramdisk is there twice for a while, and must not count as half of it.
const MEMORY: [&str; 4] = ["--guest-memory", "240M", "--guest-args", "console=ttyS0 quiet rootfstype=ramfs"];
/// Swap in compressed memory, twice as large as memory.
const SWAP: &str = "kib=$(awk '/MemTotal/ {print $2}' /proc/meminfo); modprobe -a lzo-rle zram && \
                    echo $((2*kib))K > /sys/block/zram0/disksize && mkswap /dev/zram0 > /dev/null && swapon /dev/zram0";
/// Seconds of one load, as the guest counts them.
const PART: &str = "10s";
const LIMIT: Duration = Duration::from_secs(300);

/// Loads, each of which ends by itself: more memory than there is, and many address spaces.
fn loads() -> [String; 2] {
    let stress = format!("stress-ng --quiet --timeout {PART}");
    [
        format!("{stress} --vm 1 --vm-bytes $((2*kib))k --vm-method zero-one --vm-keep"),
        format!("{stress} --fork 2 --mmap 2 --mmap-bytes 8m --exec 1"),
    ]
}

/// A counter of `/proc/vmstat`.
fn counted(rig: &mut Rig, shell: &mut Shell, name: &str) -> Result<u64> {
    let said = shell.run(rig, &format!("grep '^{name} ' /proc/vmstat"), BOOT_LIMIT)?;
    let line = said.lines().find_map(|line| line.trim().strip_prefix(name)).with_context(|| said.clone())?;
    Ok(line.trim().parse()?)
}

#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn debian_with_too_little_memory_stays_equal() -> Result<()> {
    let minutes: f64 = amount("POLLUX_MINUTES", 1.0)?;
    let Some(mut rig) = debian::protected("pressure", &GUEST, &[&MEMORY[..], &LONG_LIFE].concat())? else {
        return Ok(());
    };
    let mut shell = Shell::open(&mut rig)?;
    shell.run(&mut rig, SWAP, BOOT_LIMIT)?;
    let (began, mut rounds) = (Instant::now(), 0);
    while rounds == 0 || began.elapsed().as_secs_f64() < minutes * 60.0 {
        // How the kernel finds pages that nobody has used for a while: by generations, or by lists.
        for generations in ["y", "n"] {
            shell.run(&mut rig, &format!("echo {generations} > /sys/kernel/mm/lru_gen/enabled"), BOOT_LIMIT)?;
            for load in loads() {
                let load_began = Instant::now();
                shell.run(&mut rig, &load, LIMIT)?;
                println!("generations {generations}: {:.0} s of `{load}`", load_began.elapsed().as_secs_f64());
            }
        }
        rounds += 1;
    }
    let names = ["pswpout", "pswpin", "pgfault", "pgactivate"];
    let counts = names.map(|name| counted(&mut rig, &mut shell, name));
    let mut told = String::new();
    for (name, count) in names.into_iter().zip(counts) {
        let count = count?;
        ensure!(count > 0, "{name} is 0: there was no pressure");
        told += &format!("{name} {count}, ");
    }
    let backup = wait_digests(&mut rig, 2)?;
    let ticks = rig.fresh("primary")?.counter("guest_ticks");
    ensure!(rig.file()?.protected, "{}", rig.report());
    println!(
        "{rounds} rounds in {:.0} s: {told}{ticks} instructions; {} digests equal up to position {}",
        began.elapsed().as_secs_f64(),
        backup.digests,
        backup.position
    );
    rig.stop()
}
