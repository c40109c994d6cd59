//! One network: ports, links and the switch that joins them.

use std::fs::File;
use std::time::Duration;

use fastrand::Rng;
use mio::Registry;

use super::boot::BootHost;
use super::capture::Capture;
use super::delay::DelayQueue;
use super::forward::Forwarder;
use super::frame::Header;
use super::link::{Direction, LinkChange, LinkSettings, Transit};
use super::port::{Port, SendFailure};
use super::relay::Relay;
use super::stats::{NetworkStats, PortStats};
use super::switch::{PortSet, Switch};
use super::tap::Tap;
use super::{LinkPart, LinkStatus, Network, SLOTS};

/// The number of the clients' port, after those of the slots.
pub const HOST: usize = SLOTS;
/// The number of the arbiter's port.
pub const ARBITER: usize = SLOTS + 1;
/// The number of the port of a host that a recording goes to, or comes from.
pub const STATION: usize = SLOTS + 2;
/// The number of the port of the host that machines boot from.
pub const BOOT: usize = STATION + 1;
/// The number of the first port of those who ask machines for themselves.
pub const DESK: usize = BOOT + 1;
const PORTS: usize = DESK + SLOTS;

/// What is attached to the clients' port.
pub enum HostEnd {
    /// Nothing; the switch does not have this port.
    None,
    /// A host in user space.
    Forwarder(Box<Forwarder>),
    /// The kernel.
    Tap(Tap),
}

/// A delayed frame's destination: index of the network, port.
pub type Destination = (usize, usize);

/// What frames need on their way, besides the network itself.
pub struct Way<'a> {
    /// Time since the fabric's start. Everything due by then must have left the queue.
    pub now: Duration,
    /// Decides about loss and the like.
    pub rng: &'a mut Rng,
    /// Takes the frames that arrive later.
    pub queue: &'a mut DelayQueue<Destination>,
    /// For sockets that have to be watched.
    pub registry: &'a Registry,
}

/// A network.
pub struct Lan {
    network: Network,
    switch: Switch,
    link: LinkSettings,
    cables: [LinkSettings; PORTS],
    /// The machines' ports.
    pub slots: [Port; SLOTS],
    /// The clients' port.
    pub host: HostEnd,
    /// The hosts at the ports [`ARBITER`] and [`STATION`]; without one the switch does not have its port.
    pub relays: [Option<Box<Relay>>; 2],
    /// Who asks machines for themselves, at the ports from [`DESK`] on.
    pub desks: [Option<Box<Forwarder>>; SLOTS],
    /// The host at the port [`BOOT`]; without one the switch does not have its port.
    pub boot: Option<Box<BootHost>>,
    stats: [PortStats; PORTS],
    /// Records every legal frame as it enters the switch, before loss and delay.
    pub capture: Option<Capture<File>>,
    /// When the latest frame from one port arrives at another: the next one comes no earlier.
    latest: [[Duration; PORTS]; PORTS],
}

impl Lan {
    /// A network with perfect links.
    pub fn new(
        network: Network,
        slots: [Port; SLOTS],
        host: HostEnd,
        relays: [Option<Box<Relay>>; 2],
        desks: [Option<Box<Forwarder>>; SLOTS],
        boot: Option<Box<BootHost>>,
        capture: Option<Capture<File>>,
    ) -> Self {
        let mut ports = PortSet::first(SLOTS);
        if !matches!(host, HostEnd::None) {
            ports = ports.with(HOST);
        }
        for (port, _) in (ARBITER..).zip(&relays).filter(|(_, relay)| relay.is_some()) {
            ports = ports.with(port);
        }
        if boot.is_some() {
            ports = ports.with(BOOT);
        }
        for (port, _) in (DESK..).zip(&desks).filter(|(_, desk)| desk.is_some()) {
            ports = ports.with(port);
        }
        Self {
            network,
            switch: Switch::new(ports),
            link: LinkSettings::default(),
            cables: [LinkSettings::default(); PORTS],
            slots,
            host,
            relays,
            desks,
            boot,
            stats: [PortStats::default(); PORTS],
            capture,
            latest: [[Duration::ZERO; PORTS]; PORTS],
        }
    }

    /// Changes the network's link, or a cable.
    pub fn set_link(&mut self, part: LinkPart, change: &LinkChange) {
        match part {
            LinkPart::Whole => self.link.apply(change),
            LinkPart::Slot(slot) => self.cables[slot].apply(change),
            LinkPart::Arbiter => self.cables[ARBITER].apply(change),
        }
    }

    /// The network's link, then the slots' cables and the arbiter's, if there is one.
    pub fn links(&self) -> impl Iterator<Item = LinkStatus> {
        let network = self.network;
        let slots = (0..SLOTS).map(|slot| (LinkPart::Slot(slot), self.cables[slot]));
        let arbiter = self.arbiter().is_some().then_some((LinkPart::Arbiter, self.cables[ARBITER]));
        let parts = [(LinkPart::Whole, self.link)].into_iter().chain(slots).chain(arbiter);
        parts.map(move |(part, settings)| LinkStatus { network, part, settings })
    }

    /// The arbiter's host.
    pub fn arbiter(&self) -> Option<&Relay> {
        self.relays[0].as_deref()
    }

    /// Who joins local connections to a machine or its guest from this port.
    pub fn forwarder(&mut self, port: usize) -> Option<&mut Forwarder> {
        match (port, &mut self.host) {
            (HOST, HostEnd::Forwarder(forwarder)) => Some(forwarder),
            (DESK.., _) => self.desks.get_mut(port - DESK)?.as_deref_mut(),
            _ => None,
        }
    }

    /// What was counted. Recordings, what machines boot from, and questions to machines for themselves are none of the pair's
    /// traffic.
    pub fn stats(&self) -> NetworkStats {
        let [one, two, host, arbiter, ..] = self.stats;
        let slots: [PortStats; SLOTS] = [one, two];
        let not_captured = self.capture.as_ref().map_or(0, |capture| capture.skipped);
        NetworkStats { network: self.network, slots, host, arbiter, not_captured, moves: self.switch.moves() }
    }

    /// A frame comes in at a port.
    pub fn enter(&mut self, ingress: usize, frame: &[u8], way: &mut Way<'_>) {
        let stats = &mut self.stats[ingress];
        let Some(header) = Header::parse(frame) else {
            stats.dropped.malformed += 1;
            return;
        };
        let transit = match self.cables[ingress].cross(Transit::default(), Direction::FromMachine, way.rng) {
            Ok(transit) => transit,
            Err(refusal) => return stats.dropped.refuse(refusal),
        };
        stats.sent_frames += 1;
        stats.sent_bytes += frame.len() as u64;
        if let Some(capture) = &mut self.capture {
            capture.record(frame);
        }
        let ports = self.switch.forward(ingress, &header);
        for egress in (0..PORTS).filter(|&port| ports.contains(port)) {
            let to = Direction::ToMachine;
            let crossed = self.link.cross(transit, to, way.rng);
            match crossed.and_then(|transit| self.cables[egress].cross(transit, to, way.rng)) {
                Ok(transit) => self.dispatch((ingress, egress), transit, frame, way),
                Err(refusal) => self.stats[egress].dropped.refuse(refusal),
            }
        }
    }

    fn dispatch(&mut self, (ingress, egress): (usize, usize), transit: Transit, frame: &[u8], way: &mut Way<'_>) {
        let mut due = way.now + transit.delay;
        if !transit.overtaken {
            let latest = &mut self.latest[ingress][egress];
            due = due.max(*latest);
            *latest = due;
        }
        for _ in 0..=u8::from(transit.twice) {
            if due <= way.now {
                self.deliver(egress, frame, way.now, way.registry);
            } else if !way.queue.push(due, (self.network.index(), egress), frame.to_owned()) {
                self.stats[egress].dropped.queue_full += 1;
            }
        }
    }

    /// A delayed frame arrives, unless the link was cut meanwhile.
    pub fn arrive(&mut self, egress: usize, frame: &[u8], now: Duration, registry: &Registry) {
        if [&self.link, &self.cables[egress]].iter().all(|link| link.is_open(Direction::ToMachine)) {
            self.deliver(egress, frame, now, registry);
        } else {
            self.stats[egress].dropped.down += 1;
        }
    }

    fn deliver(&mut self, egress: usize, frame: &[u8], now: Duration, registry: &Registry) {
        let sent = if let Some(port) = self.slots.get_mut(egress) {
            port.send(frame, now, registry)
        } else {
            let taken = match (&mut self.host, Header::parse(frame)) {
                _ if egress == BOOT => self.boot.as_mut().is_some_and(|boot| {
                    boot.receive(frame, now);
                    true
                }),
                (_, Some(header)) if egress >= DESK => {
                    self.desks[egress - DESK].as_mut().is_some_and(|desk| desk.receive(&header, frame, now))
                }
                _ if egress >= DESK => false,
                _ if egress >= ARBITER => {
                    self.relays[egress - ARBITER].as_mut().is_some_and(|relay| relay.receive(frame))
                }
                (HostEnd::Forwarder(forwarder), Some(header)) => forwarder.receive(&header, frame, now),
                (HostEnd::Tap(tap), _) => tap.send(frame),
                _ => false,
            };
            if taken { Ok(()) } else { Err(SendFailure::QueueFull) }
        };
        let stats = &mut self.stats[egress];
        match sent {
            Ok(()) => {
                stats.received_frames += 1;
                stats.received_bytes += frame.len() as u64;
            }
            Err(SendFailure::Absent) => {
                stats.dropped.absent += 1;
                self.switch.forget(egress);
            }
            Err(SendFailure::QueueFull) => stats.dropped.queue_full += 1,
        }
    }

    /// A slow machine has room again.
    pub fn flush(&mut self, slot: usize, now: Duration, registry: &Registry) {
        let lost = self.slots[slot].flush(now, registry);
        let stats = &mut self.stats[slot];
        stats.dropped.absent += lost;
        // They were counted as delivered when they were queued.
        stats.received_frames = stats.received_frames.saturating_sub(lost);
    }
}
