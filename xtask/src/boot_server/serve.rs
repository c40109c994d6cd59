//! The server for a desk: DHCP and TFTP on real sockets, until Ctrl-C. One thread, bounded.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};

use super::dhcp::{PROXY_PORT, SERVER_PORT, Server};
use super::tftp::{self, Request, Transfer};
use super::{Asker, Root, Served};
use crate::interrupt;
use crate::output::say;

const DHCP: Token = Token(0);
const PROXY: Token = Token(1);
const TFTP: Token = Token(2);
const FIRST_TRANSFER: usize = 3;
/// Files that are under way at a time; for one more, that one goes whose client was heard the longest ago.
const MAX_TRANSFERS: usize = 32;
/// Longer than any packet that is looked at.
const BUFFER: usize = 2048;
/// Packets taken from one socket before the others have their turn.
const BATCH: usize = 64;
/// How often Ctrl-C is looked for.
const STEP: Duration = Duration::from_millis(100);

/// Where it listens: at the usual ports, but for tests.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// DHCP's.
    pub dhcp: u16,
    /// That of servers which give no addresses.
    pub proxy: u16,
    /// TFTP's.
    pub tftp: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { dhcp: SERVER_PORT, proxy: PROXY_PORT, tftp: 69 }
    }
}

/// Which interface, by its name or by its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its name.
    pub interface: String,
    /// Its address.
    pub address: Ipv4Addr,
}

impl Place {
    /// Finds it.
    ///
    /// # Errors
    /// When there is none, or it has no IPv4 address.
    pub fn find(interface: Option<&str>, address: Option<Ipv4Addr>) -> Result<Self> {
        for entry in getifaddrs().context("cannot list the network interfaces")? {
            let Some(own) = entry.address.as_ref().and_then(|own| own.as_sockaddr_in()).map(SockaddrIn::ip) else {
                continue;
            };
            let named = interface.is_none_or(|name| name == entry.interface_name);
            if named && address.is_none_or(|address| address == own) {
                return Ok(Self { interface: entry.interface_name, address: own });
            }
        }
        match (interface, address) {
            (Some(name), _) => bail!("there is no interface {name} with such an IPv4 address"),
            (None, Some(address)) => bail!("no interface has the address {address}"),
            (None, None) => bail!("say where to serve: --interface NAME or --address A.B.C.D"),
        }
    }
}

/// A file on its way.
struct Delivery {
    socket: UdpSocket,
    transfer: Transfer<Served>,
    said: String,
}

/// The sockets, and what is under way.
struct Desk {
    root: Root,
    server: Server,
    poll: Poll,
    dhcp: UdpSocket,
    proxy: UdpSocket,
    tftp: UdpSocket,
    address: Ipv4Addr,
    deliveries: Vec<Delivery>,
    next_token: usize,
    start: Instant,
}

/// Serves `root` at `place` until Ctrl-C, and answers by DHCP as `server` says.
///
/// # Errors
/// Ports that cannot be taken: those below 1024 are root's.
pub fn serve(root: Root, server: Server, place: &Place, ports: Ports) -> Result<()> {
    let mut desk = Desk::open(root, server, place, ports)?;
    let mut events = Events::with_capacity(64);
    while !interrupt::pending() {
        match desk.poll.poll(&mut events, Some(desk.patience())) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => other.context("cannot wait for packets")?,
        }
        // Each socket is asked, whatever the events say: what was left by a batch has no event any more.
        desk.turn();
    }
    Ok(())
}

impl Desk {
    fn open(root: Root, server: Server, place: &Place, ports: Ports) -> Result<Self> {
        let poll = Poll::new().context("cannot create an event queue")?;
        let any = Ipv4Addr::UNSPECIFIED;
        let mut dhcp = open(place, SocketAddrV4::new(any, ports.dhcp))?;
        let mut proxy = open(place, SocketAddrV4::new(place.address, ports.proxy))?;
        let mut tftp = open(place, SocketAddrV4::new(place.address, ports.tftp))?;
        for (socket, token) in [(&mut dhcp, DHCP), (&mut proxy, PROXY), (&mut tftp, TFTP)] {
            poll.registry().register(socket, token, Interest::READABLE).context("cannot poll a port")?;
        }
        let (address, deliveries, next_token, start) = (place.address, Vec::new(), FIRST_TRANSFER, Instant::now());
        Ok(Self { root, server, poll, dhcp, proxy, tftp, address, deliveries, next_token, start })
    }

    fn patience(&self) -> Duration {
        let now = self.start.elapsed();
        let next = self.deliveries.iter().map(|delivery| delivery.transfer.deadline().saturating_sub(now)).min();
        next.unwrap_or(STEP).min(STEP)
    }

    fn turn(&mut self) {
        let now = self.start.elapsed();
        let mut buffer = [0; BUFFER];
        for (socket, port) in [(&self.dhcp, SERVER_PORT), (&self.proxy, PROXY_PORT)] {
            for _ in 0..BATCH {
                let Ok((len, from)) = socket.recv_from(&mut buffer) else { break };
                let SocketAddr::V4(from) = from else { continue };
                let Some(answer) = self.server.answer(&buffer[..len], from, port) else { continue };
                // A network that is down is the client's to notice.
                if socket.send_to(&answer.packet, answer.to.into()).is_ok() {
                    say!("{}", answer.said);
                }
            }
        }
        for _ in 0..BATCH {
            let Ok((len, client)) = self.tftp.recv_from(&mut buffer) else { break };
            self.begin(&buffer[..len], client, now);
        }
        for delivery in &mut self.deliveries {
            for _ in 0..BATCH {
                let Ok(len) = delivery.socket.recv(&mut buffer) else { break };
                let packets = delivery.transfer.receive(&buffer[..len], now);
                send(&delivery.socket, &packets);
            }
            let packets = delivery.transfer.poll(now);
            send(&delivery.socket, &packets);
            if delivery.transfer.is_over() {
                say!("{}: {} bytes", delivery.said, delivery.transfer.arrived());
                // It goes with its socket.
                let _ = self.poll.registry().deregister(&mut delivery.socket);
            }
        }
        self.deliveries.retain(|delivery| !delivery.transfer.is_over());
    }

    /// Begins to send a file, from a port of its own, as TFTP wants it.
    fn begin(&mut self, packet: &[u8], client: SocketAddr, now: Duration) {
        let refuse = |packet: &[u8]| drop(self.tftp.send_to(packet, client));
        let request = match Request::parse(packet) {
            Ok(request) => request,
            Err(refusal) => return refusal.iter().for_each(|refusal| refuse(refusal)),
        };
        let said = format!("{}: {}", client.ip(), printable(&request.file));
        let asker = match client.ip() {
            IpAddr::V4(address) => self.server.asker_at(address),
            IpAddr::V6(_) => Asker::Stranger,
        };
        let file = match self.root.open(&request.file, asker) {
            Ok(file) => file,
            Err(error) => {
                let (refusal, why) = tftp::refusal(&error);
                say!("{said}: {why}");
                return refuse(&refusal);
            }
        };
        let token = Token(self.next_token);
        let opened = UdpSocket::bind((IpAddr::V4(self.address), 0).into()).and_then(|mut socket| {
            socket.connect(client)?;
            self.poll.registry().register(&mut socket, token, Interest::READABLE)?;
            Ok(socket)
        });
        let Ok(socket) = opened else { return };
        self.next_token += 1;
        let oldest = (0..self.deliveries.len()).min_by_key(|index| self.deliveries[*index].transfer.heard());
        if let Some(oldest) = oldest.filter(|_| self.deliveries.len() == MAX_TRANSFERS) {
            let mut gone = self.deliveries.swap_remove(oldest);
            let _ = self.poll.registry().deregister(&mut gone.socket);
        }
        let (transfer, packets) = Transfer::start(&request, file, now);
        send(&socket, &packets);
        self.deliveries.push(Delivery { socket, transfer, said });
    }
}

/// What is lost is asked for again.
fn send(socket: &UdpSocket, packets: &[Vec<u8>]) {
    for packet in packets {
        let _ = socket.send(packet);
    }
}

/// Names come from outside, and go to a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(120).collect()
}

/// A socket of this interface alone, for broadcasts, too.
fn open(place: &Place, at: SocketAddrV4) -> Result<UdpSocket> {
    let taken = || {
        format!(
            "cannot listen on UDP {at} at {}: ports below 1024 are root's, and one server has each",
            place.interface
        )
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None).context("cannot open a socket")?;
    setsockopt(&socket, sockopt::Broadcast, &true).context("cannot open a socket")?;
    setsockopt(&socket, sockopt::BindToDevice, &place.interface.clone().into()).with_context(taken)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrIn::from(at)).with_context(taken)?;
    Ok(UdpSocket::from_std(socket.into()))
}
