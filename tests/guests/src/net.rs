//! An IPv4 host on the network device.

use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, SocketHandle, SocketSet};
use smoltcp::phy::Device;
use smoltcp::socket::udp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpCidr, IpEndpoint};

use crate::nic::Nic;
use crate::options::Options;
use crate::rx_poll::RxPoll;
use crate::sieve::{Peers, Sieve};
use crate::{clock, cpu, interrupts, lapic};

/// Vector of the network device.
pub const NIC_VECTOR: u8 = 0x50;

/// A device that is told in batches what there is to do.
pub trait HostDevice: Device {
    /// The MAC address.
    fn mac(&self) -> [u8; 6];

    /// Tells the device what there is to send and to fill.
    fn flush(&mut self);
}

impl HostDevice for Nic {
    fn mac(&self) -> [u8; 6] {
        Self::mac(self)
    }

    fn flush(&mut self) {
        Self::flush(self);
    }
}

impl HostDevice for RxPoll {
    fn mac(&self) -> [u8; 6] {
        Self::mac(self)
    }

    fn flush(&mut self) {}
}

/// Interface, sockets and device.
pub struct Host<D = Nic> {
    /// The device.
    pub nic: D,
    /// The sockets.
    pub sockets: SocketSet<'static>,
    interface: Interface,
    peers: Peers,
    /// When the timer will fire, if it was ever armed.
    armed: Option<Instant>,
}

/// The time as smoltcp counts it.
#[must_use]
pub fn now() -> Instant {
    Instant::from_micros(i64::try_from(clock::microseconds()).unwrap_or(i64::MAX))
}

impl Host {
    /// A host on the network device. With `interrupts` the device interrupts, so that [`wait`](Self::wait) can be used.
    ///
    /// # Errors
    /// What is missing or did not work.
    pub fn new(options: &Options<'_>, interrupts: bool) -> Result<Self, &'static str> {
        for vector in [NIC_VECTOR, lapic::TIMER_VECTOR] {
            interrupts::set_handler(vector, |_| lapic::end_of_interrupt());
        }
        Self::on(Nic::new(interrupts.then_some(NIC_VECTOR))?, options)
    }

    /// Waits, interrupts off, until a frame comes or a socket has something to do, but not longer than `longest`.
    pub fn wait(&mut self, now: Instant, longest: Option<Duration>) {
        let socket = self.interface.poll_delay(now, &self.sockets);
        if let Some(delay) = socket.into_iter().chain(longest).min() {
            if delay.total_micros() == 0 {
                return;
            }
            self.arm(now, now + delay);
        }
        // The device must see how far the used ring was read before the last look at it, else it may find that no interrupt is
        // wanted while we find nothing new (virtio 2.7.14). A later frame would not interrupt either.
        fence(Ordering::SeqCst);
        if !self.nic.has_received() {
            cpu::wait_for_interrupt();
        }
    }

    /// Arms the timer, unless it will fire earlier anyway: a wake-up too many is cheaper than arming it anew each time.
    fn arm(&mut self, now: Instant, deadline: Instant) {
        if self.armed.is_none_or(|armed| armed <= now || deadline < armed) {
            lapic::arm_timer(clock::microseconds_to_ticks(deadline.total_micros().unsigned_abs()));
            self.armed = Some(deadline);
        }
    }
}

impl<D: HostDevice> Host<D> {
    /// A host on a device.
    ///
    /// # Errors
    /// What did not work.
    pub fn on(mut nic: D, options: &Options<'_>) -> Result<Self, &'static str> {
        let mut config = Config::new(EthernetAddress(nic.mac()).into());
        config.random_seed = cpu::rdtsc();
        let mut interface = Interface::new(config, &mut nic, now());
        let (address, prefix) = options.ip;
        interface.update_ip_addrs(|addresses| {
            // The list has room: it is empty.
            let _ = addresses.push(IpCidr::new(address.into(), prefix));
        });
        interface.routes_mut().add_default_ipv4_route(options.gateway).map_err(|_| "no room for a route")?;
        Ok(Self { nic, sockets: SocketSet::new(Vec::new()), interface, peers: Peers::default(), armed: None })
    }

    /// Takes one received frame; whether there was one.
    pub fn receive_one(&mut self, now: Instant) -> bool {
        self.peers.update(&self.sockets);
        let mut nic = Sieve { device: &mut self.nic, peers: &self.peers };
        let result = self.interface.poll_ingress_single(now, &mut nic, &mut self.sockets);
        !matches!(result, PollIngressSingleResult::None)
    }

    /// Sends what is due, and tells the device of all buffers used since the last call.
    pub fn send(&mut self, now: Instant) {
        self.interface.poll_egress(now, &mut self.nic, &mut self.sockets);
        self.nic.flush();
    }

    /// Receives and sends once, for guests that have no more to do than that.
    pub fn poll(&mut self, now: Instant) {
        while self.receive_one(now) {}
        self.send(now);
    }

    /// Adds a UDP socket on a port.
    pub fn add_udp(&mut self, port: u16) -> SocketHandle {
        let buffer = || {
            let metadata = alloc::vec![udp::PacketMetadata::EMPTY; 16];
            udp::PacketBuffer::new(metadata, alloc::vec![0; 16 * 1024])
        };
        let mut socket = udp::Socket::new(buffer(), buffer());
        // A socket that is new can be bound, and the port is not 0.
        let _ = socket.bind(port);
        self.sockets.add(socket)
    }

    /// Takes the datagrams that a UDP socket has received and answers each with what `answer` makes of it.
    pub fn answer_udp(&mut self, socket: SocketHandle, mut answer: impl FnMut(&[u8]) -> Vec<u8>) {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(socket);
        while let Ok((data, from)) = socket.recv() {
            let reply = answer(data);
            let to: IpEndpoint = from.endpoint;
            // Without room the answer is lost, as UDP may.
            let _ = socket.send_slice(&reply, to);
        }
    }
}
