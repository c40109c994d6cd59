//! Whole fabrics between fake machines.

mod forwarding;
mod guest;
mod load;
mod loopback;
mod relaying;
mod switching;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tempfile::TempDir;

use super::{
    Fabric, FabricConfig, Forward, ForwardConfig, HOST_ADDRESS, Host, LinkChange, Network, Plug, PortPaths, Protocol,
    Transport,
};

/// Long enough for a busy desk, short enough to notice a hang.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(dir: &TempDir, host: Host) -> FabricConfig {
    let (transport, sockets) = (Transport::Unix, dir.path().to_owned());
    FabricConfig {
        transport,
        sockets,
        host,
        arbiter: None,
        station: None,
        boot: None,
        desks: [None, None],
        capture: None,
        seed: 1,
    }
}

/// The sockets of a port of a fabric with [`config`].
fn paths(fabric: &Fabric, network: Network, slot: usize) -> PortPaths {
    match fabric.port(network, slot) {
        Plug::Unix(paths) => paths.clone(),
        Plug::Udp(ports) => panic!("UDP ports {ports:?}"),
    }
}

/// The port at which guests send datagrams back.
const UDP_ECHO: u16 = 7;

/// Forwards any free TCP port to a service of the guest, and any free UDP port to its echo of datagrams.
fn forward_to(port: u16) -> ForwardConfig {
    let forwards = vec![Forward::new(Protocol::Tcp, 0, port), Forward::new(Protocol::Udp, 0, UDP_ECHO)];
    ForwardConfig { forwards, guest: Ipv4Addr::new(10, 0, 2, 15), host: HOST_ADDRESS }
}

/// Where clients reach the guest's service by `protocol`.
fn local(fabric: &Fabric, protocol: Protocol) -> SocketAddr {
    fabric.forwards().iter().find(|forward| forward.protocol == protocol).unwrap().local.into()
}

fn fabric(dir: &TempDir, host: Host) -> Fabric {
    Fabric::start(config(dir, host)).unwrap()
}

fn loss(share: f64) -> LinkChange {
    LinkChange { loss: Some(share), ..LinkChange::default() }
}

fn up(up: bool) -> LinkChange {
    LinkChange { up: Some(up), ..LinkChange::default() }
}

fn delay(millis: u64) -> LinkChange {
    LinkChange { delay: Some(Duration::from_millis(millis)), ..LinkChange::default() }
}
