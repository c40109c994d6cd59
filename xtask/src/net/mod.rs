//! The rig's networks in user space: two learning switches, links that can be made bad, captures, and the way from
//! the clients on this desk to the guest.
//!
//! Everything runs in one thread. Machines are attached by datagram sockets, one Ethernet frame per datagram, and may
//! come and go at any time: by Unix sockets as QEMU has them, or by UDP ports of the loopback interface as Bochs does.
//! Clients come either through the forwarder (local TCP and UDP ports, no privileges) or through a kernel tap interface
//! (root).
//!
//! `link`, `switch`, `delay`, `capture`, `frame`, `boot` (but for the files) and `forward::recovery` are pure; sockets are touched only by
//! `port`, `tap`, `forward`, `relay` and `engine`.

mod boot;
mod capture;
mod delay;
mod engine;
mod forward;
mod frame;
mod lan;
mod link;
mod port;
mod relay;
mod stack;
mod stats;
mod switch;
mod tap;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

pub use boot::BootConfig;
pub use link::{LinkChange, LinkSettings};
pub use stats::{FabricStats, NetworkStats, PortStats};

use engine::{Command, Engine};

/// Number of machine slots; every slot has one port in each network.
pub const SLOTS: usize = 2;

/// One of the rig's two networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The client NICs of the machines, and the clients.
    Client,
    /// The log NICs of the machines.
    Log,
}

impl Network {
    /// Both networks, in the order of [`Network::index`].
    pub const ALL: [Self; 2] = [Self::Client, Self::Log];

    /// `client` or `log`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Log => "log",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Log => 1,
        }
    }
}

/// Which cable a [`LinkChange`] is about. A frame from one slot to another crosses the sender's cable, the network and
/// the receiver's cable; delays add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkTarget {
    /// All traffic of a network; crossed once by every frame.
    Network(Network),
    /// The cable between one slot's NIC and the switch.
    Slot(Network, usize),
    /// The arbiter's cables, in both networks.
    Arbiter,
}

/// The two socket paths of a port, as QEMU's `-netdev dgram` takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPaths {
    /// `local.path`: bound by QEMU, which unlinks a stale one first.
    pub local: PathBuf,
    /// `remote.path`: bound by the switch.
    pub remote: PathBuf,
}

/// How emulators are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Unix sockets: QEMU.
    Unix,
    /// Ports of the loopback interface: Bochs.
    Loopback,
}

/// A port of the switch as an emulator is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plug {
    /// See [`Transport::Unix`].
    Unix(PortPaths),
    /// See [`Transport::Loopback`]: for each of the machine's NICs in the network a UDP port that the emulator binds; it
    /// sends to the one after it.
    Udp(Vec<u16>),
}

/// How clients reach the client network.
#[derive(Debug, Clone)]
pub enum Host {
    /// Nobody but the machines is on the client network.
    #[cfg(test)]
    None,
    /// Local ports are forwarded to the guest by a host in user space.
    Forwarder(ForwardConfig),
    /// A kernel interface of this name, created if it is absent and given [`HOST_ADDRESS`]; needs root.
    Tap(String),
}

/// The address of the clients' host on the client network, a /24.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The port that machines reach the arbiter at.
pub const ARBITER_PORT: u16 = 7003;

/// Where machines reach the arbiter on a network, if there is one. It is a host of its own, so that it can be cut off
/// without the clients.
pub fn arbiter_address(network: Network) -> SocketAddrV4 {
    SocketAddrV4::new(relay::address(network), ARBITER_PORT)
}

/// The address from which the machine in a slot is asked on the client network.
pub const fn desk_address(slot: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, 5 + slot as u8)
}

/// A protocol whose ports are forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl Protocol {
    /// As it is written in `--forward`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A local port that leads to one of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Of which protocol.
    pub protocol: Protocol,
    /// Where clients come; port 0 takes any free one, see [`Fabric::forwards`].
    pub local: SocketAddrV4,
    /// The guest's port.
    pub guest_port: u16,
}

impl Forward {
    /// From a port of the loopback interface.
    pub fn new(protocol: Protocol, port: u16, guest_port: u16) -> Self {
        Self { protocol, local: SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), guest_port }
    }

    /// Whether it leads to this TCP port of the guest.
    pub fn leads_to(&self, port: u16) -> bool {
        self.protocol == Protocol::Tcp && self.guest_port == port
    }
}

/// What the forwarder listens to and where it leads.
#[derive(Debug, Clone)]
pub struct ForwardConfig {
    /// At most [`MAX_FORWARDS`].
    pub forwards: Vec<Forward>,
    /// Where they lead.
    pub guest: Ipv4Addr,
    /// From which address on the client network.
    pub host: Ipv4Addr,
}

/// Most ports that are forwarded.
pub const MAX_FORWARDS: usize = 32;

/// Where captures go and how large they may become.
#[derive(Debug, Clone)]
pub struct CaptureConfig {
    /// Directory of `client.pcap` and `log.pcap`; both are overwritten.
    pub dir: PathBuf,
    /// Bound of each file; what comes later is not recorded but counted.
    pub max_bytes: u64,
}

impl CaptureConfig {
    /// Captures into `dir`, at most 256 MiB per network.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), max_bytes: 256 << 20 }
    }
}

/// How a fabric is set up.
#[derive(Debug, Clone)]
pub struct FabricConfig {
    /// How emulators are attached.
    pub transport: Transport,
    /// Where the sockets live; it must exist. When the paths get too long for Unix sockets, a temporary directory is
    /// used instead: always ask [`Fabric::port`].
    pub sockets: PathBuf,
    /// How clients get in.
    pub host: Host,
    /// Where each network's arbiter listens on this desk or elsewhere; see [`arbiter_address`] for where machines find it.
    pub arbiter: Option<[SocketAddr; 2]>,
    /// A host on the log network that recordings go to or come from: its address there, and where it leads.
    pub station: Option<(SocketAddrV4, SocketAddr)>,
    /// What machines boot from at a host on the client network, if they do.
    pub boot: Option<BootConfig>,
    /// For each machine, who leads to the machine's own address; hosts of their own, so that a dead one hides nobody.
    pub desks: [Option<ForwardConfig>; SLOTS],
    /// Captures from the first frame on.
    pub capture: Option<CaptureConfig>,
    /// Seed of loss, jitter, duplication and reordering.
    pub seed: u64,
}

/// A part of a network that can be made bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkPart {
    /// All of it.
    Whole,
    /// The cable of a slot.
    Slot(usize),
    /// The cable of the arbiter.
    Arbiter,
}

/// One cable or network and its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The network.
    pub network: Network,
    /// Which part of it.
    pub part: LinkPart,
    /// How it behaves.
    pub settings: LinkSettings,
}

/// The running networks. Dropping it ends the thread and removes the sockets.
#[derive(Debug)]
pub struct Fabric {
    commands: Sender<Command>,
    waker: Arc<mio::Waker>,
    thread: Option<JoinHandle<Result<()>>>,
    plugs: [[Plug; SLOTS]; 2],
    forwards: Vec<Forward>,
    desks: [Option<SocketAddrV4>; SLOTS],
    has_arbiter: bool,
    _fallback: Option<tempfile::TempDir>,
}

impl Fabric {
    /// Binds all sockets and starts the thread.
    ///
    /// # Errors
    /// A port or socket in use, a tap that cannot be made, a capture file that cannot be written.
    pub fn start(config: FabricConfig) -> Result<Self> {
        let (dir, fallback) = port::unix::socket_directory(&config.sockets)?;
        let (commands, inbox) = mpsc::channel();
        let (engine, plugs) = Engine::new(&config, &dir, inbox)?;
        let (waker, (forwards, desks)) = (engine.waker(), engine.forwards()?);
        let thread = std::thread::Builder::new()
            .name("fabric".into())
            .spawn(move || engine.run())
            .context("cannot start the thread of the networks")?;
        let has_arbiter = config.arbiter.is_some();
        Ok(Self { commands, waker, thread: Some(thread), plugs, forwards, desks, has_arbiter, _fallback: fallback })
    }

    /// The forwarded ports as they were asked for, with the local ports that were taken; none without a forwarder.
    pub fn forwards(&self) -> &[Forward] {
        &self.forwards
    }

    /// The local port that leads to a machine's own address, if one does.
    ///
    /// # Panics
    /// If `slot` is not below [`SLOTS`].
    pub fn desk(&self, slot: usize) -> Option<SocketAddrV4> {
        self.desks[slot]
    }

    /// How an emulator is connected to a slot's port in a network.
    ///
    /// # Panics
    /// If `slot` is not below [`SLOTS`].
    pub fn port(&self, network: Network, slot: usize) -> &Plug {
        &self.plugs[network.index()][slot]
    }

    /// Changes a link. Frames that are already under way keep their delay, but do not cross a link that is down.
    ///
    /// # Errors
    /// Values out of range (see [`LinkChange`]), an unknown slot, or a thread that has ended.
    pub fn set_link(&self, target: LinkTarget, change: &LinkChange) -> Result<()> {
        match target {
            LinkTarget::Slot(_, slot) => ensure!(slot < SLOTS, "there is no slot {slot}"),
            LinkTarget::Arbiter => ensure!(self.has_arbiter, "there is no arbiter"),
            LinkTarget::Network(_) => {
                ensure!(
                    change.mute != Some(true) && change.deaf != Some(true),
                    "`mute` and `deaf` are about a machine's cable"
                );
            }
        }
        change.check()?;
        self.ask(|reply| Command::SetLink(target, change.clone(), reply))
    }

    /// All links: for each network itself, then its slots, then the arbiter if there is one.
    pub fn links(&self) -> Result<Vec<LinkStatus>> {
        self.ask(Command::Links)
    }

    /// Everything counted since the start.
    pub fn stats(&self) -> Result<FabricStats> {
        self.ask(Command::Stats)
    }

    /// Starts capturing anew, or ends it.
    ///
    /// # Errors
    /// Files that cannot be written; a running capture then goes on.
    pub fn set_capture(&self, capture: Option<CaptureConfig>) -> Result<()> {
        self.ask(|reply| Command::SetCapture(capture, reply))?
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T> {
        let ended = || anyhow!("the thread of the networks has ended");
        let (reply, answer) = mpsc::channel();
        self.commands.send(command(reply)).map_err(|_| ended())?;
        self.waker.wake().context("cannot wake the thread of the networks")?;
        answer.recv().map_err(|_| ended())
    }

    /// Ends the thread and tells how it went. Dropping does the same in silence.
    ///
    /// # Errors
    /// Whatever ended the thread before it was asked to end.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        // Either may fail if the thread has ended by itself; joining tells why.
        let _ = self.commands.send(Command::Stop);
        let _ = self.waker.wake();
        match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("the thread of the networks panicked"),
        }
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
