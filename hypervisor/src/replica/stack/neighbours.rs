//! Whom a stack looks for on its network, and when it asks.

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use pollux_ft::{Span, Time};
use pollux_nic::MacAddress;
use pollux_nic::frame::{MIN_WIRE_FRAME, request_for};
use smoltcp::phy::{Device, DeviceCapabilities, RxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol};

/// Pause between two requests for a neighbour that does not answer.
const PAUSE: Span = Span::from_millis(200);
/// A neighbour that has answered is asked again after so long: half of the time for which smoltcp
/// believes an answer.
const FRESH: Span = Span::from_millis(30_000);

#[derive(Debug)]
struct Neighbour {
    address: Ipv4Addr,
    wanted: bool,
    ask_at: Time,
}

/// The neighbours that are looked for.
#[derive(Debug)]
pub struct Neighbours {
    mac: MacAddress,
    own: Ipv4Addr,
    all: Vec<Neighbour>,
}

impl Neighbours {
    /// Nobody, looked for by a host with these addresses.
    pub fn new(mac: MacAddress, own: Ipv4Addr) -> Self {
        Self { mac, own, all: Vec::new() }
    }

    /// Looks for these and no others. One that is new among them is asked for at once.
    pub fn look_for(&mut self, addresses: impl Iterator<Item = Ipv4Addr>, now: Time) {
        for neighbour in &mut self.all {
            neighbour.wanted = false;
        }
        for address in addresses {
            match self.all.iter_mut().find(|neighbour| neighbour.address == address) {
                Some(neighbour) => neighbour.wanted = true,
                None => self.all.push(Neighbour { address, wanted: true, ask_at: now }),
            }
        }
        self.all.retain(|neighbour| neighbour.wanted);
    }

    /// Asks for this one as soon as it is looked for, and not only when its turn comes.
    pub fn ask_soon(&mut self, address: Ipv4Addr) {
        self.all.retain(|neighbour| neighbour.address != address);
    }

    /// When the next request is due.
    pub fn ask_at(&self) -> Option<Time> {
        self.all.iter().map(|neighbour| neighbour.ask_at).min()
    }

    /// The request that is due for the longest time.
    pub fn next_request(&mut self, now: Time) -> Option<[u8; MIN_WIRE_FRAME]> {
        let due = self.all.iter_mut().min_by_key(|neighbour| neighbour.ask_at)?;
        if due.ask_at > now {
            return None;
        }
        due.ask_at = now.after(PAUSE);
        Some(request_for(due.address, self.mac, self.own))
    }

    /// Looks at a received frame: is it an answer? A request of the neighbour is as good: smoltcp learns from both.
    fn hear(&mut self, frame: &[u8], now: Time) {
        let Ok(frame) = EthernetFrame::new_checked(frame) else { return };
        if frame.ethertype() != EthernetProtocol::Arp {
            return;
        }
        let packet = ArpPacket::new_checked(frame.payload()).and_then(|packet| ArpRepr::parse(&packet));
        if let Ok(ArpRepr::EthernetIpv4 { source_protocol_addr, target_protocol_addr, .. }) = packet
            && target_protocol_addr == self.own
            && let Some(found) = self.all.iter_mut().find(|neighbour| neighbour.address == source_protocol_addr)
        {
            found.ask_at = now.after(FRESH);
        }
    }
}

/// A device that is listened to.
pub struct Ear<'a, D: ?Sized> {
    /// The device.
    pub device: &'a mut D,
    /// Who listens.
    pub neighbours: &'a mut Neighbours,
    /// The time.
    pub now: Time,
}

impl<D: Device + ?Sized> Device for Ear<'_, D> {
    type RxToken<'a>
        = Heard<'a, D::RxToken<'a>>
    where
        Self: 'a;
    type TxToken<'a>
        = D::TxToken<'a>
    where
        Self: 'a;

    fn receive(&mut self, timestamp: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let (frame, answer) = self.device.receive(timestamp)?;
        Some((Heard { frame, neighbours: self.neighbours, now: self.now }, answer))
    }

    fn transmit(&mut self, timestamp: Instant) -> Option<Self::TxToken<'_>> {
        self.device.transmit(timestamp)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.device.capabilities()
    }
}

/// A received frame that is listened to.
pub struct Heard<'a, T> {
    frame: T,
    neighbours: &'a mut Neighbours,
    now: Time,
}

impl<T: RxToken> RxToken for Heard<'_, T> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        let Self { frame, neighbours, now } = self;
        frame.consume(|bytes| {
            neighbours.hear(bytes, now);
            read(bytes)
        })
    }
}
