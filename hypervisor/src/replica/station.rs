//! This machine's own place on the client network, with an address that is not the guest's.
//!
//! It shares the client card with the guest, or has a card of its own. There may be two stations at one address, each with
//! queues and an IP stack of its own, so that what is sent to one is in the other one's way nowhere:
//!
//! * The one that asks the arbiter is deaf and mute but for the time in which the arbiter is asked or looked at, and then hears
//!   the arbiter and its neighbours on the way there alone.
//! * The one that answers people ([`Service`]) hears what is sent to its port. Without it, clients can reach nothing here; what
//!   they send costs no more than a look at each frame.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use pollux_ft::Time;
use pollux_nic::MacAddress;
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, Ipv4Packet};

use super::service::Service;
use super::stack::Stack;
use crate::config::Cidr;
use crate::random::Random;

/// Frames that wait in each direction at most; more are lost, as on any network.
const MAX_FRAMES: usize = 32;

/// For whom a frame from the client network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// The guest.
    Guest,
    /// The machine.
    Machine,
    /// Both: a broadcast that asks for the machine's address.
    Both,
}

/// The place.
pub struct Station {
    mac: MacAddress,
    address: Ipv4Addr,
    gateway: Option<Ipv4Addr>,
    /// Whom it talks to; without any it hears everybody.
    servers: Vec<Ipv4Addr>,
    frames: Frames,
    /// Its sockets are there while it is asleep, too.
    pub stack: Stack,
    awake: bool,
    urgent: bool,
}

impl Station {
    /// A place at `own`, asleep. What lies outside of its network is reached by `gateway`.
    pub fn new(mac: MacAddress, own: Cidr, gateway: Option<Ipv4Addr>, random: Random) -> Self {
        let mut frames = Frames::default();
        let stack = Stack::new(mac, own, gateway, random, &mut frames);
        Self { mac, address: own.address, gateway, servers: Vec::new(), frames, stack, awake: false, urgent: false }
    }

    /// From now on it talks to this server, too, and hears nobody whom it was not told of.
    pub fn talk_to(&mut self, server: Ipv4Addr) {
        self.servers.push(server);
    }

    /// Its MAC address.
    pub fn mac(&self) -> MacAddress {
        self.mac
    }

    /// Whether it listens.
    pub fn is_awake(&self) -> bool {
        self.awake
    }

    /// Whether its frames must not wait behind those for a guest that stands still.
    pub fn is_urgent(&self) -> bool {
        self.awake && self.urgent
    }

    /// Says whether a question is open, or only a look.
    pub fn set_urgent(&mut self, urgent: bool) {
        self.urgent = urgent;
    }

    /// Begins to listen, or ends it; what waits then is forgotten.
    pub fn wake(&mut self, awake: bool) {
        self.awake = awake;
        if !awake {
            self.frames.input.clear();
        }
    }

    /// Takes a received frame if it is for the machine; whether it is for the guest, too or alone.
    pub fn offer(&mut self, frame: &[u8]) -> bool {
        let whose = self.whose(frame);
        let hears = whose != For::Guest && self.awake && self.is_expected(frame);
        if hears && self.frames.input.len() < MAX_FRAMES {
            self.frames.input.push_back(frame.to_vec());
        }
        whose != For::Machine
    }

    /// Whether a frame comes from a server, or is ARP of a neighbour that may be on the way there.
    fn is_expected(&self, frame: &[u8]) -> bool {
        if self.servers.is_empty() {
            return true;
        }
        let Ok(frame) = EthernetFrame::new_checked(frame) else { return false };
        match frame.ethertype() {
            EthernetProtocol::Ipv4 => {
                Ipv4Packet::new_checked(frame.payload()).is_ok_and(|packet| self.servers.contains(&packet.src_addr()))
            }
            EthernetProtocol::Arp => {
                let packet = ArpPacket::new_checked(frame.payload()).and_then(|packet| ArpRepr::parse(&packet));
                matches!(packet, Ok(ArpRepr::EthernetIpv4 { source_protocol_addr, .. })
                    if self.servers.contains(&source_protocol_addr) || self.gateway == Some(source_protocol_addr))
            }
            _ => false,
        }
    }

    /// For whom a frame is.
    pub(super) fn whose(&self, frame: &[u8]) -> For {
        let Ok(frame) = EthernetFrame::new_checked(frame) else { return For::Guest };
        if frame.dst_addr() == self.mac {
            return For::Machine;
        }
        if !frame.dst_addr().is_broadcast() || frame.ethertype() != EthernetProtocol::Arp {
            return For::Guest;
        }
        match ArpPacket::new_checked(frame.payload()).and_then(|packet| ArpRepr::parse(&packet)) {
            Ok(ArpRepr::EthernetIpv4 { operation: ArpOperation::Request, target_protocol_addr, .. })
                if target_protocol_addr == self.address =>
            {
                For::Both
            }
            _ => For::Guest,
        }
    }

    /// Moves frames and bytes between queues and sockets.
    pub fn poll(&mut self, now: Time) {
        self.stack.poll(now, &mut self.frames);
    }

    /// The next frame to be sent.
    pub fn next_frame(&mut self) -> Option<Vec<u8>> {
        self.frames.output.pop_front()
    }

    /// How many received frames wait for [`poll`](Self::poll).
    pub fn waiting(&self) -> usize {
        self.frames.input.len()
    }

    /// How many frames wait to be sent.
    pub fn unsent(&self) -> usize {
        self.frames.output.len()
    }

    /// When [`poll`](Self::poll) has something to do even if no frame comes.
    pub fn poll_at(&mut self, now: Time) -> Option<Time> {
        self.stack.poll_at(now)
    }
}

/// All that hears frames for this machine on the client network.
pub struct Ears<'a> {
    /// The station that asks the arbiter.
    pub arbiter: Option<&'a mut Station>,
    /// The one that answers people.
    pub service: Option<&'a mut Service>,
}

impl Ears<'_> {
    /// Whether frames must not wait behind those for a guest that stands still.
    pub fn are_urgent(&self) -> bool {
        self.arbiter.as_ref().is_some_and(|station| station.is_urgent())
    }

    /// Takes a received frame if it is for the machine; whether it is for the guest, too or alone.
    pub fn offer(&mut self, frame: &[u8]) -> bool {
        if let Some(service) = &mut self.service {
            if service.is_for(frame) {
                return service.offer(frame);
            }
            let for_guest = service.offer_neighbour(frame);
            return self.arbiter.as_mut().is_none_or(|station| station.offer(frame)) && for_guest;
        }
        self.arbiter.as_mut().is_none_or(|station| station.offer(frame))
    }
}

/// The stack's card: two queues.
#[derive(Debug, Default)]
struct Frames {
    input: VecDeque<Vec<u8>>,
    output: VecDeque<Vec<u8>>,
}

impl Device for Frames {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _timestamp: Instant) -> Option<(RxToken, TxToken<'_>)> {
        if self.output.len() >= MAX_FRAMES {
            return None;
        }
        let frame = self.input.pop_front()?;
        Some((RxToken(frame), TxToken(&mut self.output)))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<TxToken<'_>> {
        (self.output.len() < MAX_FRAMES).then_some(TxToken(&mut self.output))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = pollux_nic::frame::MAX_UNTAGGED;
        capabilities
    }
}

/// A received frame.
struct RxToken(Vec<u8>);

impl phy::RxToken for RxToken {
    fn consume<T, F: FnOnce(&[u8]) -> T>(self, read: F) -> T {
        read(&self.0)
    }
}

/// Room for a frame.
struct TxToken<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::TxToken for TxToken<'_> {
    fn consume<T, F: FnOnce(&mut [u8]) -> T>(self, len: usize, write: F) -> T {
        let mut frame = alloc::vec![0; len];
        let result = write(&mut frame);
        self.0.push_back(frame);
        result
    }
}
