//! What the fabric costs. Run it alone: `cargo test -p xtask --release -- --ignored the_cost --nocapture`.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::forwarding::{connect, exchange};
use super::guest::{ECHO, Guest};
use super::*;

/// User and system time of the fabric's threads so far. See: proc_pid_stat(5).
fn fabric_time() -> Duration {
    let mut ticks = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        let Some((name, fields)) = stat.rsplit_once(')') else { continue };
        if name.ends_with("(fabric") {
            ticks += fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum::<u64>();
        }
    }
    // The kernel's user-visible clock tick is 100 Hz on every platform that we run on.
    Duration::from_millis(ticks * 10)
}

fn client(mut stream: TcpStream, until: Instant) -> u32 {
    let mut count = 0;
    while Instant::now() < until {
        exchange(&mut stream, b"INCR x\r\n");
        count += 1;
    }
    count
}

#[test]
#[ignore = "measures; wants the desk for itself"]
fn the_cost_of_small_frames() {
    let dir = tempfile::tempdir().unwrap();
    let fabric = fabric(&dir, Host::Forwarder(forward_to(ECHO)));
    let _guest = Guest::boot(&fabric, 0, ECHO);
    let (start, before) = (Instant::now(), fabric_time());
    let until = start + Duration::from_secs(5);
    let requests: u32 = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..16).map(|_| scope.spawn(|| client(connect(&fabric), until))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    let (spent, elapsed) = (fabric_time() - before, start.elapsed());
    let total = fabric.stats().unwrap().networks[0].total();
    let frames = total.sent_frames as f64;
    let (rate, share) = (frames / elapsed.as_secs_f64(), spent.as_secs_f64() / elapsed.as_secs_f64());
    let cost = spent.as_secs_f64() * 1e6 / frames;
    println!("{requests} requests, {rate:.0} frames/s, {:.0} % of a core, {cost:.2} us per frame", share * 100.0);
    println!("{total:?}");
    // Nearly all of the cost is the kernel's: sockets and wake-ups. It is shown, not judged.
    assert!(rate > 20_000.0, "{rate:.0} frames/s");
}
