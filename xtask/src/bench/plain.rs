//! A guest of Debian's on plain QEMU, to compare with: the CPU and the clock of a rig's machine, on a rig's own networks.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::Bench;
use super::linux::BOOT_LIMIT;
use crate::driven::{DrivenRig, pause};
use crate::guest::debian::Built;
use crate::process::Process;
use crate::rig::emulator::plain_machine;
use crate::rig::options::GUEST_MAC;
use crate::rig::probe;
use crate::rig::software::COUNTER;

/// A machine that runs; ended when dropped.
#[derive(Debug)]
pub struct PlainQemu {
    _process: Process,
    directory: TempDir,
    /// What is typed goes here. It stays open: what QEMU has not read when it is closed is lost.
    keyboard: UnixStream,
    /// Whose networks it is on. Its own machine has a guest that sleeps.
    rig: DrivenRig,
    boot: f64,
}

impl PlainQemu {
    /// Starts `guest`, and waits until its Redis answers.
    pub fn start(bench: &Bench, guest: &Built) -> Result<Self> {
        let rig = bench.start(&["--guest", "idle", "--solo"])?;
        let [local, remote] = rig.free_port()?.map(|path| path.display().to_string());
        let network = format!("dgram,id=net,local.type=unix,local.path={local},remote.type=unix,remote.path={remote}");
        let directory = tempfile::Builder::new().prefix("pollux-plain-").tempdir().context("temporary directory")?;
        let in_directory = |name: &str| directory.path().join(name).display().to_string();
        let (socket, written) = (in_directory("socket"), in_directory("console.log"));
        let console = format!("socket,id=console,server=on,wait=off,path={socket},logfile={written}");
        let mut command = plain_machine();
        command.args(["-m", &(guest.memory >> 20).to_string(), "-append", &guest.arguments, "-netdev", &network]);
        command.args(["-device", &format!("virtio-net-pci,netdev=net,mac={GUEST_MAC},romfile=")]);
        command.args(["-chardev", &console, "-serial", "chardev:console"]);
        command.arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(&guest.initrd);
        let started = Instant::now();
        let process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))?;
        let address = rig.service().parse().context("the rig's service")?;
        while !probe::answers(address, &COUNTER).unwrap_or(false) {
            ensure!(started.elapsed() < BOOT_LIMIT, "the guest does not answer on plain QEMU");
            pause(Duration::from_millis(50))?;
        }
        let boot = started.elapsed().as_secs_f64();
        let keyboard = UnixStream::connect(directory.path().join("socket")).context("the console's socket")?;
        // What the guest says comes here, too, a byte at a time: with some 280 of them unread, it could say no more.
        let mut unread = keyboard.try_clone().context("the console's socket")?;
        thread::spawn(move || io::copy(&mut unread, &mut io::sink()));
        Ok(Self { _process: process, directory, keyboard, rig, boot })
    }

    /// Where the service can be reached.
    pub fn service(&self) -> &str {
        self.rig.service()
    }

    /// How long it took to the first answer, in seconds.
    pub fn boot(&self) -> f64 {
        self.boot
    }

    /// What the guest has written to its console.
    pub fn console(&self) -> Result<String> {
        let bytes = fs::read(self.directory.path().join("console.log")).context("console.log")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Types a line there.
    pub fn type_line(&self, line: &str) -> Result<()> {
        (&self.keyboard).write_all(format!("{line}\n").as_bytes()).context("the console")
    }
}
