//! The rig as outside scripts see it: `rig.json`, the verbs of `cargo xtask rig`, signals. A fake takes the emulators'
//! place.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Things that take milliseconds; longer only on a busy desk.
const PATIENCE: Duration = Duration::from_secs(20);

struct Desk {
    directory: TempDir,
}

impl Desk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for emulator in ["qemu-system-x86_64", "bochs"] {
            symlink(env!("CARGO_BIN_EXE_fake-emulator"), directory.path().join(emulator)).unwrap();
        }
        fs::write(directory.path().join("image"), b"\x7fELF").unwrap();
        Self { directory }
    }

    fn rig_directory(&self) -> PathBuf {
        self.directory.path().join("rig")
    }

    fn xtask(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.directory.path().display()));
        // Sockets and private directories of this test only.
        command.env("TMPDIR", self.directory.path()).stdin(Stdio::null());
        command
    }

    fn qemu(&self, port: u16, arguments: &[&str]) -> Command {
        self.run("qemu", port, arguments)
    }

    fn run(&self, verb: &str, port: u16, arguments: &[&str]) -> Command {
        let mut command = self.xtask();
        let image = self.directory.path().join("image");
        command.args([verb, "--headless", "--port", &port.to_string(), "--dir"]).arg(self.rig_directory());
        command.arg("--hypervisor").arg(&image).arg("--guest").arg(&image).args(arguments);
        command
    }

    fn start(&self, arguments: &[&str]) -> Rig {
        self.start_in("qemu", arguments)
    }

    fn start_in(&self, verb: &str, arguments: &[&str]) -> Rig {
        let output = fs::File::create(self.directory.path().join("output")).unwrap();
        let mut command = self.run(verb, 0, arguments);
        command.stdout(output.try_clone().unwrap()).stderr(output);
        Rig { process: command.spawn().unwrap(), directory: self.rig_directory() }
    }

    fn rig(&self, arguments: &[&str]) -> Output {
        self.xtask().args(["rig", "--dir"]).arg(self.rig_directory()).args(arguments).output().unwrap()
    }

    fn output(&self) -> String {
        fs::read_to_string(self.directory.path().join("output")).unwrap()
    }

    fn leftovers(&self) -> Vec<String> {
        let names = fs::read_dir(self.directory.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("pollux-rig-")).collect()
    }
}

struct Rig {
    process: Child,
    directory: PathBuf,
}

impl Rig {
    fn json(&self) -> Value {
        let text = fs::read_to_string(self.directory.join("rig.json")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    fn roles(&self) -> Vec<String> {
        let machines = self.json()["machines"].as_array().cloned().unwrap_or_default();
        machines.iter().map(|machine| machine["role"].as_str().unwrap().to_owned()).collect()
    }

    fn pids(&self) -> Vec<i32> {
        let machines = self.json()["machines"].as_array().cloned().unwrap_or_default();
        machines.iter().filter_map(|machine| machine["pid"].as_i64()).map(|pid| pid.try_into().unwrap()).collect()
    }

    fn wait_for(&self, roles: [&str; 2], protected: bool) {
        wait_until(|| self.roles() == roles && self.json()["protected"] == protected, || format!("{}", self.json()));
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().try_into().unwrap()), signal).unwrap();
    }

    fn wait(mut self) -> Option<i32> {
        self.process.wait().unwrap().code()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn wait_until(mut condition: impl FnMut() -> bool, state: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {}", state());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn gone(pids: &[i32]) -> bool {
    // A zombie that waits for its new parent is gone as well.
    let state = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    pids.iter().all(|pid| state(pid).rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z')))
}

#[test]
fn a_pair_lives_through_kills() {
    let desk = Desk::new();
    let rig = desk.start(&[]);
    rig.wait_for(["primary", "backup"], true);
    assert!(Path::new(rig.json()["machines"][0]["serial"].as_str().unwrap()).is_file());

    let killed = desk.rig(&["kill", "primary"]);
    assert!(killed.status.success() && text(&killed).contains("killed castor"), "{}", text(&killed));
    rig.wait_for(["dead", "primary"], false);
    assert!(desk.rig(&["start", "backup", "--wait"]).status.success());
    rig.wait_for(["backup", "primary"], true);
    let again = desk.rig(&["start", "backup"]);
    assert!(again.status.success() && text(&again).contains("nothing to start"), "{}", text(&again));

    // From outside, by the number in rig.json.
    kill(Pid::from_raw(rig.pids()[1]), Signal::SIGKILL).unwrap();
    rig.wait_for(["primary", "dead"], false);
    assert!(!desk.rig(&["kill", "backup"]).status.success());

    assert!(desk.rig(&["link", "log", "delay=5ms", "loss=1%"]).status.success());
    assert!(desk.rig(&["capture", "on"]).status.success());
    assert!(rig.directory.join("log.pcap").is_file());

    let status: Value = serde_json::from_slice(&desk.rig(&["status", "--json"]).stdout).unwrap();
    assert_eq!(status["takeovers"].as_array().unwrap().len(), 2);
    assert_eq!(status["machines"][0]["malformed"], 1);
    assert_eq!(status["links"][1]["state"], "up delay=5ms loss=1%");
    let pids = rig.pids();
    assert!(desk.rig(&["stop"]).status.success());
    assert_eq!(rig.roles(), ["dead", "dead"]);
    assert_eq!(rig.wait(), Some(0));
    assert!(gone(&pids));
    assert_eq!(desk.leftovers(), [""; 0]);
    assert!(!desk.rig(&["status"]).status.success());

    // What happened is drawn, since there were takeovers.
    let page = desk.rig_directory().join("timeline.html");
    assert!(desk.output().contains(&format!("timeline: {}", page.display())), "{}", desk.output());
    let page = fs::read_to_string(page).unwrap();
    for told in
        ["Takeover 2 of 2: castor takes over in", "link log", "delay=5ms loss=1%", "castor: its process has ended"]
    {
        assert!(page.contains(told), "no `{told}` in the page");
    }
}

#[test]
fn the_dead_come_back_by_themselves_if_they_are_to() {
    let desk = Desk::new();
    let rig = desk.start(&["--revive", "300ms"]);
    rig.wait_for(["primary", "backup"], true);
    for roles in [["backup", "primary"], ["primary", "backup"]] {
        assert!(desk.rig(&["kill", "primary"]).status.success());
        rig.wait_for(roles, true);
    }
    // Not before the last one, too, is dead.
    rig.pids().into_iter().for_each(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap());
    assert_eq!(rig.wait(), Some(1));
    let output = desk.output();
    assert_eq!(output.matches("protected again, after ").count(), 2, "{output}");
    assert!(output.contains("no machine is left"), "{output}");
}

#[test]
fn a_machine_is_as_large_as_its_guests_image_wants() {
    let desk = Desk::new();
    // A hole of a file, in what the boot loader would read.
    fs::File::options().write(true).open(desk.directory.path().join("image")).unwrap().set_len(53 << 20).unwrap();
    let rig = desk.start(&["--guest-memory", "256M", "--hypervisor-option", "pollux:guest-memory=512M"]);
    rig.wait_for(["primary", "backup"], true);
    for (pid, memory) in rig.pids().into_iter().zip([256 + 53 + 96, 512 + 53 + 96]) {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        let words: Vec<_> = line.split('\0').collect();
        let after = words.windows(2).find(|pair| pair[0] == "-m").map(|pair| pair[1]);
        assert_eq!(after, Some(memory.to_string().as_str()));
    }
}

/// What a Bochs rig needs besides Bochs itself.
fn has_grub_and_firmware() -> bool {
    let files = [
        "/usr/share/bochs/BIOS-bochs-latest",
        "/usr/share/seabios/bios.bin",
        "/usr/share/vgabios/vgabios.bin",
        "/usr/lib/grub/i386-pc",
    ];
    let present = files.iter().all(|path| Path::new(path).exists())
        && ["grub-mkrescue", "xorriso"].iter().all(|tool| Command::new(tool).arg("--version").output().is_ok());
    if !present {
        println!("SKIPPED: GRUB or Bochs' firmware is missing (cargo xtask doctor --yes)");
    }
    present
}

#[test]
fn two_pairs_in_bochs_live_side_by_side() {
    if !has_grub_and_firmware() {
        return;
    }
    let desks = [Desk::new(), Desk::new()];
    let rigs = desks.each_ref().map(|desk| desk.start_in("bochs", &[]));
    for (desk, rig) in desks.iter().zip(&rigs) {
        rig.wait_for(["primary", "backup"], true);
        assert!(desk.rig(&["kill", "primary"]).status.success());
        rig.wait_for(["dead", "primary"], false);
        assert!(desk.rig(&["start", "backup", "--wait"]).status.success());
        rig.wait_for(["backup", "primary"], true);
        // What castor's first process wrote is still there.
        let log = fs::read_to_string(rig.directory.join("castor.log")).unwrap();
        assert_eq!(log, "Bochs was started\nBochs was started\n");
        assert!(desk.rig(&["command", "pollux", "console hello"]).status.success());
        let console = rig.directory.join("console.log");
        wait_until(|| fs::read_to_string(&console).unwrap() == "hello\n", || "console".to_owned());
    }
    let pids: Vec<_> = rigs.iter().flat_map(Rig::pids).collect();
    for (desk, rig) in desks.iter().zip(rigs) {
        assert!(desk.rig(&["stop"]).status.success());
        assert_eq!(rig.wait(), Some(0), "{}", desk.output());
        assert_eq!(desk.leftovers(), [""; 0]);
    }
    assert!(gone(&pids));
}

#[test]
fn what_grub_cannot_pass_is_refused() {
    if !has_grub_and_firmware() {
        return;
    }
    let desk = Desk::new();
    let refused = desk.run("bochs", 0, &["--guest-args", "it's"]).output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("it's"), "{}", text(&refused));
}

#[test]
fn a_halted_machine_is_dead_and_can_come_back() {
    let desk = Desk::new();
    let rig = desk.start(&[]);
    rig.wait_for(["primary", "backup"], true);
    assert!(desk.rig(&["command", "backup", "halt"]).status.success());
    rig.wait_for(["primary", "dead"], false);
    assert!(desk.rig(&["start", "backup", "--wait"]).status.success());
    rig.wait_for(["primary", "backup"], true);
    assert!(desk.rig(&["command", "pollux", "panic"]).status.success());
    rig.wait_for(["primary", "dead"], false);
    assert!(desk.rig(&["console", "hello"]).status.success());
    let console = rig.directory.join("console.log");
    wait_until(|| fs::read_to_string(&console).unwrap() == "hello\n", || "console".to_owned());
}

#[test]
fn the_rig_ends_with_its_last_machine() {
    let desk = Desk::new();
    let rig = desk.start(&["--solo"]);
    wait_until(|| rig.roles() == ["primary"], || rig.json().to_string());
    assert!(text(&desk.rig(&["start", "backup"])).contains("--solo"));
    kill(Pid::from_raw(rig.pids()[0]), Signal::SIGKILL).unwrap();
    assert_eq!(rig.wait(), Some(1));
    assert!(desk.output().contains("no machine is left"), "{}", desk.output());

    let rig = desk.start(&["--solo"]);
    wait_until(|| rig.roles() == ["primary"], || rig.json().to_string());
    desk.rig(&["command", "castor", "power-off"]);
    assert_eq!(rig.wait(), Some(0), "{}", desk.output());
}

#[test]
fn nothing_outlives_the_rig() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL] {
        let desk = Desk::new();
        let rig = desk.start(&[]);
        rig.wait_for(["primary", "backup"], true);
        let pids = rig.pids();
        assert_eq!(pids.len(), 2);
        rig.signal(signal);
        let code = rig.wait();
        wait_until(|| gone(&pids), || format!("{pids:?} after {signal}"));
        if signal != Signal::SIGKILL {
            assert_eq!((code, desk.leftovers()), (Some(0), vec![]), "{signal}");
        }
    }
}

#[test]
fn a_rig_ends_in_time() {
    let desk = Desk::new();
    let started = Instant::now();
    assert_eq!(desk.start(&["--for", "300ms"]).wait(), Some(0));
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert!(desk.output().contains("service: 127.0.0.1:"), "{}", desk.output());
}

#[test]
fn what_cannot_be_is_refused() {
    let desk = Desk::new();
    let rig = desk.start(&[]);
    rig.wait_for(["primary", "backup"], true);
    let second = desk.qemu(0, &[]).output().unwrap();
    assert!(!second.status.success() && text(&second).contains("another rig runs in"), "{}", text(&second));
    for (arguments, reason) in [
        (&["link", "log", "delay=5"][..], "lacks a unit"),
        (&["link", "log", "sideways"], "none of delay"),
        (&["kill", "helen"], "no machine `helen`"),
        (&["command", "castor", "a\nb"], "one line"),
    ] {
        let refused = desk.rig(arguments);
        assert!(!refused.status.success() && text(&refused).contains(reason), "{arguments:?}: {}", text(&refused));
    }
    rig.wait_for(["primary", "backup"], true);

    let other = Desk::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = other.qemu(listener.local_addr().unwrap().port(), &[]).output().unwrap();
    assert!(!busy.status.success() && text(&busy).contains("cannot use port"), "{}", text(&busy));
    let old = other.qemu(0, &[]).env("FAKE_VERSION", "6.2.0").output().unwrap();
    assert!(!old.status.success() && text(&old).contains("version 6.2.0 is too old"), "{}", text(&old));
    assert!(text(&other.rig(&["status"])).contains("no rig in"));
}
