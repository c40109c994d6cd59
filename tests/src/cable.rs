//! The way past the switch, right into the cards of a rig's machines.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::rig::{Platform, Rig};

/// A cable that leads to a machine. What is sent there comes from nobody whom the switch knows.
#[derive(Debug)]
pub enum Cable {
    /// QEMU's.
    Unix(UnixDatagram, PathBuf),
    /// Bochs'.
    Udp(UdpSocket, u16),
}

impl Cable {
    /// All of a rig: two of each machine, also of machines that come later.
    ///
    /// # Errors
    /// When the rig does not say where they are.
    pub fn all(rig: &Rig) -> Result<Vec<Self>> {
        match Platform::get() {
            Platform::Qemu => Self::sockets(rig),
            Platform::Bochs => Self::ports(rig),
        }
    }

    fn sockets(rig: &Rig) -> Result<Vec<Self>> {
        let control = rig.file()?.control.context("no control socket")?;
        let mut cables = Vec::new();
        for entry in fs::read_dir(control.parent().context("control socket")?)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let cable = Self::Unix(UnixDatagram::unbound()?, path);
            if name.ends_with(".qemu") && cable.send(&[0; 60]) {
                cables.push(cable);
            }
        }
        Ok(cables)
    }

    fn ports(rig: &Rig) -> Result<Vec<Self>> {
        let settings = rig.read("castor.bochsrc") + &rig.read("pollux.bochsrc");
        let ports = settings.lines().filter(|line| line.starts_with("e1000:"));
        let ports = ports.filter_map(|line| line.split("ethdev=").nth(1)?.trim().parse().ok());
        ports.map(|port| Ok(Self::Udp(UdpSocket::bind("127.0.0.1:0")?, port))).collect()
    }

    /// Whether the frame was taken.
    pub fn send(&self, frame: &[u8]) -> bool {
        match self {
            Self::Unix(socket, path) => socket.set_nonblocking(true).and_then(|()| socket.send_to(frame, path)).is_ok(),
            Self::Udp(socket, port) => socket.send_to(frame, ("127.0.0.1", *port)).is_ok(),
        }
    }
}
