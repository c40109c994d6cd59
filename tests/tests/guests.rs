//! Properties of replay and of the gate, each shown by a guest made for it.

use std::fs;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pollux_tests::rig::{Platform, Rig, fresh_directory};

const LIMIT: Duration = Duration::from_secs(60);
/// For tests that cut the twins off from each other for a while and do not want a takeover.
const PATIENT: &str = "suspect=20000ms";

/// A client of a guest's UDP port 7.
struct Udp {
    socket: UdpSocket,
}

impl Udp {
    /// A port that is free, to be given to a rig.
    fn free_port() -> Result<String> {
        Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port().to_string())
    }

    fn connect(rig: &Rig) -> Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(rig.file()?.udp.context("no UDP port in rig.json")?)?;
        Ok(Self { socket })
    }

    fn send(&self, text: &str) -> Result<()> {
        Ok(self.socket.send(text.as_bytes()).map(drop)?)
    }

    /// The next answer, if there is one within `limit`.
    fn receive(&self, limit: Duration) -> Result<Option<String>> {
        self.socket.set_read_timeout(Some(limit))?;
        let mut buffer = [0; 2048];
        match self.socket.recv(&mut buffer) {
            Ok(length) => Ok(Some(String::from_utf8_lossy(&buffer[..length]).into_owned())),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Asks until there is an answer: datagrams may be lost, as when the guest's only buffer is in use.
    fn ask(&self, text: &str) -> Result<String> {
        for _ in 0..100 {
            self.send(text)?;
            if let Some(answer) = self.receive(Duration::from_millis(300))? {
                return Ok(answer);
            }
        }
        bail!("no answer to `{text}`")
    }
}

/// The hash of all that the guest observed, and how much that is. Asked from a fresh port, where no answer to an earlier
/// question can arrive.
fn hash(rig: &Rig) -> Result<(String, u64)> {
    let answer = Udp::connect(rig)?.ask("hash?")?;
    ensure!(!answer.contains("TORN"), "{answer}");
    let (hash, count) = answer.trim().split_once(' ').with_context(|| format!("`{answer}` is no hash"))?;
    Ok((hash.to_owned(), count.parse()?))
}

fn not_diverged(rig: &Rig) -> Result<()> {
    let status = rig.status()?;
    ensure!(status.notice("diverged").is_none(), "{:?}", status.notice("diverged"));
    Ok(())
}

/// Waits until the backup has compared `more` further digests. They are made every 2^25 ticks, which takes half a minute
/// when the guest does nothing but leave itself.
fn wait_digests(rig: &mut Rig, more: u64) -> Result<()> {
    let goal = rig.fresh("backup")?.digests + more;
    rig.wait("digests are compared", 3 * LIMIT, |rig| {
        not_diverged(rig)?;
        Ok(rig.status()?.of("backup").filter(|backup| backup.digests >= goal).map(drop))
    })
}

fn kill_primary(rig: &mut Rig) -> Result<()> {
    let dead = rig.kill("primary")?;
    rig.wait_role(if dead == "castor" { "pollux" } else { "castor" }, "primary", LIMIT).map(drop)
}

#[test]
fn a_guest_that_polls_its_buffer_sees_whole_frames_and_the_same_on_both() -> Result<()> {
    let port = Udp::free_port()?;
    let mut rig = Rig::protected("poll-rx", "poll-rx", &["--udp", &port])?;
    let client = Udp::connect(&rig)?;
    for number in 0..300 {
        client.send(&format!("{number} {}", "x".repeat(number * 4)))?;
        let _ = client.receive(Duration::from_millis(20))?;
    }
    let (_, count) = hash(&rig)?;
    ensure!(count >= 50, "the guest saw {count} frames only");
    wait_digests(&mut rig, 3)?;
    kill_primary(&mut rig)?;
    let (_, later) = hash(&rig)?;
    ensure!(later > count, "the guest forgot {count} frames: {later}");
    ensure!(!rig.read("console.log").contains("TORN"));
    not_diverged(&rig)?;
    rig.stop()
}

#[test]
fn what_differs_between_machines_is_the_same_on_both() -> Result<()> {
    let port = Udp::free_port()?;
    let mut rig = Rig::protected("nondet", "nondet", &["--udp", &port])?;
    let (first, count) = hash(&rig)?;
    wait_digests(&mut rig, 1)?;
    let (second, more) = hash(&rig)?;
    ensure!(first != second && more > count);
    kill_primary(&mut rig)?;
    let (_, later) = hash(&rig)?;
    ensure!(later > more, "the guest's observations went back from {more} to {later}");
    protect_again(&mut rig)?;
    rig.stop()
}

/// Starts a machine as backup, and waits for a digest of the new pair, which comes at once.
fn protect_again(rig: &mut Rig) -> Result<()> {
    rig.start_backup()?;
    rig.wait("a digest is compared", 3 * LIMIT, |rig| {
        not_diverged(rig)?;
        Ok(rig.status()?.of("backup").filter(|backup| backup.digests > 0).map(drop))
    })
}

/// Kills primaries: what the guest says of its observations goes on each time, and digests stay equal.
fn observe_through_kills(rig: &mut Rig, kills: usize) -> Result<()> {
    let (_, mut count) = hash(rig)?;
    for _ in 0..kills {
        wait_digests(rig, 1)?;
        kill_primary(rig)?;
        let (_, later) = hash(rig)?;
        ensure!(later > count, "the guest's observations went back from {count} to {later}");
        count = later;
        protect_again(rig)?;
    }
    wait_digests(rig, 2)
}

/// The guest looks after itself: it fills x87 and vector registers, is left, interrupted, transferred and taken over, and
/// compares. What XSAVE and FNSTENV show it, digests and the hash of its observations compare.
#[test]
fn vector_registers_keep_what_they_hold() -> Result<()> {
    let port = Udp::free_port()?;
    let mut rig = Rig::protected("vectors", "vectors", &["--udp", &port])?;
    let kills = match Platform::get() {
        Platform::Qemu => 2,
        Platform::Bochs => 1,
    };
    observe_through_kills(&mut rig, kills)?;
    let console = rig.read("console.log");
    ensure!(!console.contains("WRONG"), "{console}");
    let last = console.lines().rfind(|line| line.contains(" signals")).context("the guest says nothing")?;
    ensure!(!last.ends_with(" 0 signals"), "no interrupt used the registers: {last}");
    // Both emulators have AVX at least.
    let shown = console.lines().find(|line| line.contains("XCR0")).unwrap_or_default();
    ensure!(shown.contains(" 0x7,") || shown.contains(" 0xe7,"), "no AVX: {shown}");
    rig.stop()
}

/// The guest compares what it reads from its disk with what it has written, while machines die and new ones get the disk.
#[test]
fn a_disk_holds_what_was_written_through_kills() -> Result<()> {
    let port = Udp::free_port()?;
    // All of it is read several times at once. In Bochs the network takes a megabyte a second, and each new backup waits
    // for what was read.
    let (size, sectors, kills) = match Platform::get() {
        Platform::Qemu => ("1M", "disk: 2048 sectors", 2),
        Platform::Bochs => ("128K", "disk: 256 sectors", 1),
    };
    let mut rig = Rig::protected("disk", "disk", &["--udp", &port, "--disk", size])?;
    observe_through_kills(&mut rig, kills)?;
    let console = rig.read("console.log");
    ensure!(console.contains(sectors) && !console.contains("WRONG"), "{console}");
    let status = rig.fresh("primary")?;
    let figure = |name: &str| status.more["disk"][name].as_u64().unwrap_or(0);
    ensure!(["reads", "writes", "flushes"].iter().all(|name| figure(name) > 0), "{:?}", status.more["disk"]);
    ensure!(status.errors["guest_disk_failed"] > 0, "the guest asks for sectors that are not there");
    rig.stop()
}

/// A disk that takes its time: the guest hears of the end of each request by an entry in the log, through a kill as well. Of
/// an error of one machine's disk it never hears: a primary hands it over, a backup is replaced.
#[test]
fn a_disk_that_takes_its_time_ends_requests_by_the_log() -> Result<()> {
    let port = Udp::free_port()?;
    let options = ["--disk", "128K", "--hypervisor-option", "disk-latency=500us", "test-commands=on"];
    let mut rig = Rig::protected("disk-latency", "disk", &[&["--udp", &port][..], &options].concat())?;
    observe_through_kills(&mut rig, 1)?;
    let better = rig.file()?.machine("backup")?.name.clone();
    rig.command("primary", &["disk", "error"])?;
    rig.wait_role(&better, "primary", LIMIT)?;
    rig.wait_protected()?;
    wait_digests(&mut rig, 1)?;
    rig.command("backup", &["disk", "error"])?;
    rig.wait("the backup ends", LIMIT, |rig| Ok((!rig.file()?.protected).then_some(())))?;
    protect_again(&mut rig)?;
    let console = rig.read("console.log");
    ensure!(console.contains("disk: 256 sectors") && !console.contains("WRONG"), "{console}");
    let entries = &rig.fresh("primary")?.more["log"]["disk"]["n"];
    ensure!(entries.as_u64() > Some(0), "{entries} entries");
    rig.stop()
}

/// A disk on a drive of each machine's own: each new backup gets it while the guest runs, and at the end both drives have the
/// same on them, byte for byte. A machine that has followed only is not the one to begin a new guest with.
#[test]
#[ignore = "takes minutes: cargo xtask test rig drives_hold_the_same_after_kills --long"]
fn drives_hold_the_same_after_kills() -> Result<()> {
    if Platform::get() == Platform::Bochs {
        println!("SKIPPED: Bochs has no NVMe drive");
        return Ok(());
    }
    let port = Udp::free_port()?;
    let mut rig = Rig::protected("drives", "disk", &["--udp", &port, "--disk", "nvme:3M"])?;
    observe_through_kills(&mut rig, pollux_tests::rig::kills(4)?)?;
    let console = rig.read("console.log");
    ensure!(console.contains("disk: 6144 sectors") && !console.contains("WRONG"), "{console}");
    let client = Udp::connect(&rig)?;
    rig.wait("both machines halt", LIMIT, |rig| {
        // One that was lost is sent again; one that comes too late finds nobody.
        let _ = client.send("off");
        let logs = [rig.read("castor.log"), rig.read("pollux.log")];
        let halted = |log: &String| log.lines().last().is_some_and(|line| line.ends_with(": halted"));
        Ok(logs.iter().all(halted).then_some(()))
    })?;
    let drive = |name: &str| -> Result<Vec<u8>> { Ok(fs::read(rig.directory().join(name))?[..3 << 20].to_vec()) };
    let (castor, pollux) = (drive("castor.drive")?, drive("pollux.drive")?);
    ensure!(castor.iter().any(|&byte| byte != 0), "nothing is on them");
    let differ = castor.iter().zip(&pollux).position(|(a, b)| a != b);
    ensure!(differ.is_none(), "the drives differ at byte {differ:?}");
    rig.stop()
}

#[test]
fn a_disk_image_is_what_the_guest_finds() -> Result<()> {
    let image = fresh_directory("disk-images")?.join("image");
    fs::write(&image, (0..100 * 512).map(|at| (at % 251) as u8).collect::<Vec<_>>())?;
    let sum: u64 = fs::read(&image)?.iter().map(|&byte| u64::from(byte)).sum();
    let path = image.to_str().context("path")?;
    let mut rig = Rig::protected("disk-image", "disk", &["--disk-image", path])?;
    let expected = format!("disk: 100 sectors, the bytes of the first 100 add up to {sum}");
    rig.wait(&expected, LIMIT, |rig| Ok(rig.read("console.log").contains(&expected).then_some(())))?;
    wait_digests(&mut rig, 1)?;
    rig.stop()
}

#[test]
fn twins_with_other_vector_registers_do_not_pair() -> Result<()> {
    let mut rig = Rig::start("vectors-differ", "vectors", &["--hypervisor-option", "pollux:vectors=sse"])?;
    rig.wait("the pairing is refused and explained", LIMIT, |rig| {
        let logs = rig.read("castor.log") + &rig.read("pollux.log");
        Ok(logs.contains("CPUs differ").then_some(()))
    })?;
    ensure!(!rig.file()?.protected);
    rig.stop()
}

/// Cuts the log for a moment in which `look` is called.
fn while_cut<T>(rig: &mut Rig, look: impl FnOnce(&mut Rig) -> Result<T>) -> Result<T> {
    rig.link("log", &["down"])?;
    let found = look(rig);
    rig.link("log", &["up"])?;
    found
}

/// Does something again and again in a thread of its own, until dropped.
struct Again {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Again {
    fn new(mut act: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                act();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Sends a rig's guest numbered datagrams all the time, until dropped.
struct Questions {
    client: Udp,
    asked: Arc<AtomicU32>,
    _asking: Again,
}

impl Questions {
    fn new(rig: &Rig) -> Result<Self> {
        let client = Udp::connect(rig)?;
        let (socket, asked) = (client.socket.try_clone()?, Arc::new(AtomicU32::new(0)));
        let number = Arc::clone(&asked);
        let asking = Again::new(move || {
            // What is lost is not missed.
            let _ = socket.send(number.fetch_add(1, Ordering::Relaxed).to_string().as_bytes());
            std::thread::sleep(Duration::from_millis(10));
        });
        Ok(Self { client, asked, _asking: asking })
    }

    /// Waits for an answer to what is asked from now on.
    fn wait_fresh(&self) -> Result<()> {
        let (asked, deadline) = (self.asked.load(Ordering::Relaxed), Instant::now() + LIMIT);
        while self.answer(LIMIT)?.is_none_or(|number| number < asked) {
            ensure!(Instant::now() < deadline, "no answer to question {asked}");
        }
        Ok(())
    }

    /// The number of the next answer, if there is one within `limit`.
    fn answer(&self, limit: Duration) -> Result<Option<u32>> {
        Ok(self.client.receive(limit)?.map(|text| text.parse()).transpose()?)
    }
}

/// Cuts the log until the guest has made two replies that are held, and says which number was answered last before them.
/// `None`: the backup lagged already, and so the guest stood still.
fn answers_while_cut(rig: &mut Rig, questions: &Questions) -> Result<Option<u32>> {
    while_cut(rig, |rig| {
        let deadline = Instant::now() + Duration::from_secs(5);
        while rig.fresh("primary")?.gate.held < 2 {
            if Instant::now() > deadline {
                return Ok(None);
            }
        }
        let mut last = 0;
        while let Some(number) = questions.answer(Duration::from_millis(50))? {
            last = last.max(number);
        }
        ensure!(rig.fresh("primary")?.gate.held >= 2, "frames left without an ack");
        Ok(Some(last))
    })
}

/// The guest has one buffer: a second reply is made after the first, and when that one is held, it ran on. How far it may
/// get ahead of its backup is bounded, and on a busy desk it may be there already when the log is cut.
#[test]
fn the_guest_runs_on_while_its_output_is_held() -> Result<()> {
    let port = Udp::free_port()?;
    let mut rig = Rig::protected("held", "poll-rx", &["--udp", &port, "--hypervisor-option", PATIENT])?;
    let questions = Questions::new(&rig)?;
    for _ in 0..10 {
        questions.wait_fresh()?;
        let Some(last) = answers_while_cut(&mut rig, &questions)? else { continue };
        let next = questions.answer(LIMIT)?.context("the replies did not leave after the ack")?;
        ensure!(next > last, "after the cut {next} was answered, before it {last}");
        ensure!(rig.file()?.protected);
        not_diverged(&rig)?;
        drop(questions);
        return rig.stop();
    }
    bail!("the guest never ran on while its output was held")
}

/// Where the backup is when it has executed what it holds, which is up to a second's work.
fn settled(rig: &mut Rig) -> Result<u64> {
    let deadline = Instant::now() + LIMIT;
    let mut last = rig.fresh("backup")?.position;
    loop {
        let now = rig.fresh("backup")?.position;
        if now == last {
            return Ok(now);
        }
        ensure!(Instant::now() < deadline, "without log the backup still executes, at {now}");
        last = now;
    }
}

#[test]
fn a_backup_without_log_executes_nothing() -> Result<()> {
    let mut rig = Rig::protected("no-log", "compute", &["--hypervisor-option", PATIENT])?;
    for _ in 0..3 {
        // Made in this order, so that a backup ahead of the primary would show.
        let backup = rig.fresh("backup")?.position;
        let primary = rig.fresh("primary")?.position;
        ensure!(backup <= primary, "the backup is at {backup}, the primary at {primary}");
    }
    let before = rig.fresh("primary")?.position;
    let (first, second) = while_cut(&mut rig, |rig| {
        let first = settled(rig)?;
        std::thread::sleep(Duration::from_millis(500));
        Ok((first, rig.fresh("backup")?.position))
    })?;
    ensure!(first == second, "without log the backup went from {first} to {second}");
    rig.wait("the backup goes on", LIMIT, |rig| {
        Ok(rig.status()?.of("backup").filter(|backup| backup.position > second).map(drop))
    })?;
    ensure!(rig.fresh("primary")?.position > before);
    wait_digests(&mut rig, 2)?;
    ensure!(rig.file()?.protected);
    rig.stop()
}

/// Lets a machine have the processor a tenth of the time only, until dropped.
fn brake(machine: Pid) -> Again {
    Again::new(move || {
        // It is left running. It may have ended: the test will notice.
        for (signal, ms) in [(Signal::SIGSTOP, 45), (Signal::SIGCONT, 5)] {
            let _ = kill(machine, signal);
            std::thread::sleep(Duration::from_millis(ms));
        }
    })
}

#[test]
fn an_ack_says_received_not_executed() -> Result<()> {
    let port = Udp::free_port()?;
    let mut rig = Rig::protected("acks", "poll-rx", &["--udp", &port, "--hypervisor-option", PATIENT])?;
    let client = Udp::connect(&rig)?;
    client.ask("hello")?;
    let _brake = brake(Pid::from_raw(rig.file()?.machine("backup")?.pid.context("no process")?));
    // The lag takes a while to build up.
    for round in 1..=20 {
        let before = rig.fresh("primary")?.position;
        let text = format!("round {round}");
        while client.ask(&text)? != text {}
        // The reply was made after `before`, and it is here: its entry was acked. Was it executed?
        let executed = rig.fresh("backup")?.position;
        println!("{text}: the reply was made after {before}, later the backup was at {executed}");
        if executed < before {
            return Ok(());
        }
    }
    bail!("the backup had always executed what it had acked")
}
