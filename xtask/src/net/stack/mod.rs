//! A host in user space: an IP stack between two queues of frames. Forwarder and relay are such hosts.

mod queues;

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

use super::frame::Mac;
pub use queues::Queues;

/// The host. Whoever owns it decides by which clock the stack goes.
pub struct Stack {
    pub interface: Interface,
    pub sockets: SocketSet<'static>,
    queues: Queues,
    /// When it wants its turn without any event; none if never.
    deadline: Option<Duration>,
    /// Something may be there to be moved.
    dirty: bool,
}

impl Stack {
    /// A host of a network with 24 bits; `now` is the stack's time.
    pub fn new(mac: Mac, address: Ipv4Addr, seed: u64, now: Instant) -> Result<Self> {
        let mut queues = Queues::default();
        let mut config = Config::new(EthernetAddress(mac.0).into());
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut queues, now);
        let mut result = Ok(());
        interface.update_ip_addrs(|addresses| result = addresses.push(IpCidr::new(IpAddress::Ipv4(address), 24)));
        result.ok().context("the stack has no room for an address")?;
        Ok(Self { interface, sockets: SocketSet::new(Vec::new()), queues, deadline: None, dirty: true })
    }

    /// Takes a frame from the network; false if too many wait.
    pub fn receive(&mut self, frame: &[u8]) -> bool {
        self.wake();
        self.queues.push(frame)
    }

    /// A frame for the network. Give it back to [`Self::recycle`].
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        self.queues.pop()
    }

    /// Takes back a buffer.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.queues.recycle(buffer);
    }

    /// Whether frames wait for the stack.
    pub fn has_input(&self) -> bool {
        self.queues.has_input()
    }

    /// Something happened: it wants a turn.
    pub fn wake(&mut self) {
        self.dirty = true;
    }

    /// When it wants its next turn.
    pub fn deadline(&self) -> Option<Duration> {
        if self.dirty { Some(Duration::ZERO) } else { self.deadline }
    }

    /// Whether a turn is due, which [`Self::rest`] ends.
    pub fn is_due(&mut self, now: Duration) -> bool {
        self.dirty |= self.deadline.is_some_and(|deadline| deadline <= now);
        self.dirty
    }

    /// Nothing is left to be moved.
    pub fn rest(&mut self) {
        self.dirty = false;
    }

    /// Without an event it wants nothing before this.
    pub fn sleep_until(&mut self, deadline: Option<Duration>) {
        self.deadline = deadline;
    }

    /// Lets the stack work.
    pub fn poll(&mut self, now: Instant) {
        self.interface.poll(now, &mut self.queues, &mut self.sockets);
    }

    /// When the stack wants to work again, by its clock.
    pub fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, &self.sockets)
    }
}
