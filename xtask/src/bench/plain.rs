//! A guest of Debian's on plain QEMU, to compare with: the CPU and the clock of a rig's machine, and QEMU's own user network.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::linux::BOOT_LIMIT;
use crate::driven::pause;
use crate::guest::Probe;
use crate::guest::debian::Built;
use crate::process::Process;
use crate::rig::emulator::plain_machine;
use crate::rig::options::GUEST_ADDRESS;
use crate::rig::probe;

/// A machine that runs; ended when dropped.
#[derive(Debug)]
pub struct PlainQemu {
    _process: Process,
    directory: TempDir,
    /// What is typed goes here. It stays open: what QEMU has not read when it is closed is lost.
    keyboard: UnixStream,
    address: SocketAddr,
}

impl PlainQemu {
    /// Starts `guest`, with a local port that leads to the one of `service`, and waits until that answers.
    pub fn start(guest: &Built, service: &Probe) -> Result<Self> {
        // Free when QEMU wants it, in all likelihood.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let address = free.context("no free port")?;
        let forward = format!(
            "user,id=net,net=10.0.2.0/24,dhcpstart={GUEST_ADDRESS},hostfwd=tcp:{address}-{GUEST_ADDRESS}:{}",
            service.port
        );
        let directory = tempfile::Builder::new().prefix("pollux-plain-").tempdir().context("temporary directory")?;
        let in_directory = |name: &str| directory.path().join(name).display().to_string();
        let console = format!(
            "socket,id=console,server=on,wait=off,path={},logfile={}",
            in_directory("socket"),
            in_directory("console.log")
        );
        let mut command = plain_machine();
        command.args(["-m", &(guest.memory >> 20).to_string(), "-append", &guest.arguments, "-netdev", &forward]);
        command.args([
            "-device",
            "virtio-net-pci,netdev=net,romfile=",
            "-chardev",
            &console,
            "-serial",
            "chardev:console",
        ]);
        command.arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(&guest.initrd);
        let started = Instant::now();
        let process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))?;
        while !probe::answers(address, service).unwrap_or(false) {
            ensure!(started.elapsed() < BOOT_LIMIT, "the guest does not answer on plain QEMU");
            pause(Duration::from_millis(50))?;
        }
        let keyboard = UnixStream::connect(directory.path().join("socket")).context("the console's socket")?;
        Ok(Self { _process: process, directory, keyboard, address })
    }

    /// Where the service can be reached.
    pub fn service(&self) -> SocketAddr {
        self.address
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
