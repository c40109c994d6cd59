//! An IP stack of this machine: smoltcp's, with a way of its own to find neighbours.
//!
//! smoltcp asks for the MAC address of one neighbour a second, of whichever socket comes first: one that is dead keeps
//! all others from being asked for. Here each is asked for by itself, as often as it takes. smoltcp learns from the
//! answers as it does from those to its own requests, and sends what waits. See: smoltcp 0.13, `iface/neighbor.rs`.

mod neighbours;
#[cfg(test)]
pub(super) mod tests;

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use pollux_ft::Time;
use pollux_nic::MacAddress;
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, TxToken};
use smoltcp::socket::{AnySocket, Socket, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};

use self::neighbours::{Ear, Neighbours};
use crate::config::Cidr;
use crate::random::Random;

/// So many received frames are looked at in one turn, a card's ring: more wait for the next turn, so that a flood takes
/// neither the guest's time nor that of other networks.
pub const FRAMES_A_TURN: usize = 256;

/// First of the ports that connections are made from, and how many there are: those that are meant for it.
const FIRST_PORT: u16 = 49_152;
const PORTS: u16 = 16_384;
/// By how many the next port is higher at most.
const PORT_STEP: u64 = 500;

/// The stack.
pub struct Stack {
    own: Cidr,
    gateway: Option<Ipv4Addr>,
    interface: Interface,
    sockets: SocketSet<'static>,
    neighbours: Neighbours,
    /// Those that are always to be reached, whatever sockets there are.
    peers: Vec<Ipv4Addr>,
    /// The last port that a connection was made from, counted from the first one.
    port: u16,
    random: Random,
}

impl Stack {
    /// A stack at `own` on the network of `device`. What lies outside of that network is reached by `gateway`.
    ///
    /// # Panics
    /// When smoltcp has no room for a single address or route (a bug of ours).
    pub fn new(
        mac: MacAddress,
        own: Cidr,
        gateway: Option<Ipv4Addr>,
        mut random: Random,
        device: &mut (impl Device + ?Sized),
    ) -> Self {
        let mut config = Config::new(HardwareAddress::Ethernet(mac));
        config.random_seed = random.number();
        let mut interface = Interface::new(config, device, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::new(IpAddress::Ipv4(own.address), own.prefix))
                .expect("a new interface has room for an address");
        });
        if let Some(gateway) = gateway {
            interface.routes_mut().add_default_ipv4_route(gateway).expect("a new interface has room for a route");
        }
        Self {
            own,
            gateway,
            interface,
            sockets: SocketSet::new(Vec::new()),
            neighbours: Neighbours::new(mac, own.address),
            peers: Vec::new(),
            port: (random.number() % u64::from(PORTS)) as u16,
            random,
        }
    }

    /// From now on `peer` is looked for, and looked for again, so that whatever is sent to it finds it.
    pub fn keep_in_reach(&mut self, peer: Ipv4Addr) {
        self.peers.push(peer);
    }

    /// Adds a socket.
    pub fn add(&mut self, socket: impl AnySocket<'static>) -> SocketHandle {
        self.sockets.add(socket)
    }

    /// A socket of this stack.
    ///
    /// # Panics
    /// When it is of another kind, or another stack's (a bug of ours).
    pub fn socket<T: AnySocket<'static>>(&mut self, handle: SocketHandle) -> &mut T {
        self.sockets.get_mut(handle)
    }

    /// Begins a connection. Its neighbour is asked for at once, whatever was asked before and may have been lost. Nobody can
    /// guess its port, and it is not used again soon. See: RFC 6056, 3.3.5.
    ///
    /// # Errors
    /// When the socket is open, or an address or a port is 0.
    pub fn connect(&mut self, handle: SocketHandle, server: IpEndpoint) -> Result<(), tcp::ConnectError> {
        let step = 1 + (self.random.number() % PORT_STEP) as u16;
        self.port = (self.port + step) % PORTS;
        let port = FIRST_PORT + self.port;
        self.sockets.get_mut::<tcp::Socket<'_>>(handle).connect(self.interface.context(), server, port)?;
        let IpAddress::Ipv4(server) = server.addr;
        if let Some(hop) = next_hop(self.own, self.gateway, server) {
            self.neighbours.ask_soon(hop);
        }
        Ok(())
    }

    /// Moves frames and bytes between `device` and the sockets.
    pub fn poll(&mut self, now: Time, device: &mut (impl Device + ?Sized)) {
        self.ask(now, device);
        let mut ear = Ear { device, neighbours: &mut self.neighbours, now };
        let now = instant(now);
        self.interface.poll_maintenance(now);
        for _ in 0..FRAMES_A_TURN {
            if self.interface.poll_ingress_single(now, &mut ear, &mut self.sockets) == PollIngressSingleResult::None {
                break;
            }
        }
        while self.interface.poll_egress(now, &mut ear, &mut self.sockets) == PollResult::SocketStateChanged {}
    }

    /// Sends what the sockets have.
    pub fn poll_egress(&mut self, now: Time, device: &mut (impl Device + ?Sized)) {
        self.ask(now, device);
        self.interface.poll_egress(instant(now), device, &mut self.sockets);
    }

    /// When [`poll`](Self::poll) has something to do even if no frame comes.
    pub fn poll_at(&mut self, now: Time) -> Option<Time> {
        self.look_for_neighbours(now);
        let sockets =
            self.interface.poll_at(instant(now), &self.sockets).map(|at| Time(at.total_micros().max(0) as u64));
        [sockets, self.neighbours.ask_at()].into_iter().flatten().min()
    }

    /// Asks for the neighbours whose turn it is.
    fn ask(&mut self, now: Time, device: &mut (impl Device + ?Sized)) {
        self.look_for_neighbours(now);
        while self.neighbours.ask_at().is_some_and(|at| at <= now)
            && let Some(token) = device.transmit(instant(now))
            && let Some(request) = self.neighbours.next_request(now)
        {
            token.consume(request.len(), |frame| frame.copy_from_slice(&request));
        }
    }

    /// Peers, and those from which a connection waits for its first answer.
    fn look_for_neighbours(&mut self, now: Time) {
        let servers = self.sockets.iter().filter_map(|(_, socket)| match socket {
            Socket::Tcp(socket) if socket.state() == tcp::State::SynSent => match socket.remote_endpoint()?.addr {
                IpAddress::Ipv4(server) => Some(server),
            },
            _ => None,
        });
        let all = self.peers.iter().copied().chain(servers);
        let (own, gateway) = (self.own, self.gateway);
        self.neighbours.look_for(all.filter_map(|to| next_hop(own, gateway, to)), now);
    }
}

/// The neighbour to which frames for `to` go; none without a way there.
fn next_hop(own: Cidr, gateway: Option<Ipv4Addr>, to: Ipv4Addr) -> Option<Ipv4Addr> {
    if own.contains(to) { Some(to) } else { gateway }
}

fn instant(now: Time) -> Instant {
    Instant::from_micros(now.0 as i64)
}
