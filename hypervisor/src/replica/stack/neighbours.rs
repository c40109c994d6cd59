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

/// A neighbour that has answered, and does not any more when it is asked, may have another MAC address after so long. Before
/// that whoever claims its address is not believed: smoltcp learns from any ARP that is aimed at it.
const MOVED: Span = Span::from_millis(600);

#[derive(Debug)]
struct Neighbour {
    address: Ipv4Addr,
    wanted: bool,
    ask_at: Time,
    asked_at: Option<Time>,
    /// Where it is.
    mac: Option<MacAddress>,
    /// When it was asked first since it has answered from there.
    unanswered: Option<Time>,
}

impl Neighbour {
    fn new(address: Ipv4Addr, now: Time) -> Self {
        Self { address, wanted: true, ask_at: now, asked_at: None, mac: None, unanswered: None }
    }

    /// Hears that it is at `mac`; whether that is to be believed.
    fn hear(&mut self, mac: MacAddress, now: Time) -> bool {
        let moved = self.unanswered.is_some_and(|since| now.since(since) >= MOVED);
        let believed = moved || self.mac.is_none_or(|known| known == mac);
        if believed {
            self.mac = Some(mac);
            self.unanswered = None;
            self.ask_at = now.after(FRESH);
        } else {
            // It shall say itself where it is.
            self.ask_at = self.ask_at.min(self.asked_at.map_or(now, |asked| asked.after(PAUSE)));
        }
        believed
    }
}

/// The neighbours that are looked for, and those that were: there are few.
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
        let mut before =
            self.all.iter_mut().map(|neighbour| core::mem::take(&mut neighbour.wanted)).collect::<Vec<_>>();
        for address in addresses {
            match self.all.iter().position(|neighbour| neighbour.address == address) {
                Some(at) => self.all[at].wanted = true,
                None => {
                    self.all.push(Neighbour::new(address, now));
                    before.push(true);
                }
            }
        }
        for (neighbour, wanted_before) in self.all.iter_mut().zip(before) {
            if neighbour.wanted && !wanted_before {
                neighbour.ask_at = now;
            }
        }
    }

    /// Asks for this one as soon as it is looked for, and not only when its turn comes.
    pub fn ask_soon(&mut self, address: Ipv4Addr) {
        if let Some(neighbour) = self.all.iter_mut().find(|neighbour| neighbour.address == address) {
            neighbour.ask_at = Time(0);
        }
    }

    /// When the next request is due.
    pub fn ask_at(&self) -> Option<Time> {
        self.all.iter().filter(|neighbour| neighbour.wanted).map(|neighbour| neighbour.ask_at).min()
    }

    /// The request that is due for the longest time.
    pub fn next_request(&mut self, now: Time) -> Option<[u8; MIN_WIRE_FRAME]> {
        let wanted = self.all.iter_mut().filter(|neighbour| neighbour.wanted);
        let due = wanted.min_by_key(|neighbour| neighbour.ask_at).filter(|due| due.ask_at <= now)?;
        due.ask_at = now.after(PAUSE);
        due.asked_at = Some(now);
        due.unanswered.get_or_insert(now);
        Some(request_for(due.address, self.mac, self.own))
    }

    /// Looks at a received frame: is it an answer? A request of the neighbour is as good: smoltcp learns from both. Returns
    /// whether smoltcp may see it.
    fn hear(&mut self, frame: &[u8], now: Time) -> bool {
        let Ok(frame) = EthernetFrame::new_checked(frame) else { return true };
        if frame.ethertype() != EthernetProtocol::Arp {
            return true;
        }
        let packet = ArpPacket::new_checked(frame.payload()).and_then(|packet| ArpRepr::parse(&packet));
        let Ok(ArpRepr::EthernetIpv4 { source_hardware_addr, source_protocol_addr, target_protocol_addr, .. }) = packet
        else {
            return true;
        };
        let claimed = self.all.iter_mut().find(|neighbour| neighbour.address == source_protocol_addr);
        let Some(claimed) = claimed.filter(|_| target_protocol_addr == self.own) else { return true };
        claimed.hear(source_hardware_addr, now)
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
            // To smoltcp a frame of no bytes is none.
            if neighbours.hear(bytes, now) { read(bytes) } else { read(&[]) }
        })
    }
}
