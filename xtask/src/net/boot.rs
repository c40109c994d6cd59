//! The host of a rig's client network that machines boot from: DHCP and TFTP at an address of its own. It is no whole IP
//! stack: it answers whoever has sent it something, where that came from, so that no machine that died keeps it waiting.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol,
    Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

use super::frame::{ARP, Header, IPV4, MIN_FRAME, Mac, arp_reply};
use crate::boot_server::dhcp::{self, Client, Server};
use crate::boot_server::tftp::{self, Request, Transfer};
use crate::boot_server::{Root, Served};

/// Its address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
const MAC: Mac = Mac([0x52, 0x54, 0x00, 0, 2, 4]);
/// Where requests for files come in.
const TFTP_PORT: u16 = 69;
/// Files that are under way at a time; for one more, that one goes whose client was heard the longest ago.
const MAX_TRANSFERS: usize = 8;
/// Ports that files are sent from, one after the other.
const PORTS: std::ops::Range<u16> = 49_152..65_535;
const HOPS: u8 = 64;
/// EtherType of IPv6.
const IPV6: u16 = 0x86dd;

/// What machines boot from.
#[derive(Debug, Clone)]
pub struct BootConfig {
    /// The files.
    pub directory: PathBuf,
    /// The machines.
    pub clients: Vec<Client>,
}

/// A file on its way.
struct Delivery {
    client: (Mac, SocketAddrV4),
    port: u16,
    transfer: Transfer<Served>,
}

/// The host.
pub struct BootHost {
    root: Root,
    server: Server,
    deliveries: Vec<Delivery>,
    next_port: u16,
    out: Vec<Vec<u8>>,
}

/// A datagram: whose, at which of our ports, and what.
struct Datagram<'a> {
    from: (Mac, SocketAddrV4),
    port: u16,
    payload: &'a [u8],
}

impl BootHost {
    /// A host that serves what `config` says.
    pub fn new(config: &BootConfig) -> Result<Self> {
        let server = Server { address: ADDRESS, clients: config.clients.clone() };
        let root = Root::new(&config.directory)?;
        Ok(Self { root, server, deliveries: Vec::new(), next_port: PORTS.start, out: Vec::new() })
    }

    /// Takes a frame from the network.
    pub fn receive(&mut self, frame: &[u8], now: Duration) {
        let Some(header) = Header::parse(frame) else { return };
        match header.ethertype {
            ARP => self.out.extend(arp(&frame[MIN_FRAME..])),
            IPV4 => {
                if let Some(datagram) = datagram(header.source, &frame[MIN_FRAME..]) {
                    self.take(&datagram, now);
                }
            }
            IPV6 if self.server.clients.iter().any(|client| client.mac == header.source.0) => {
                self.out.extend(advertisement(header.source, &frame[MIN_FRAME..]));
            }
            _ => {}
        }
    }

    fn take(&mut self, datagram: &Datagram<'_>, now: Duration) {
        match datagram.port {
            port @ (dhcp::SERVER_PORT | dhcp::PROXY_PORT) => {
                if let Some(answer) = self.server.answer(datagram.payload, datagram.from.1, port) {
                    let to = if answer.to.ip().is_broadcast() { Mac([0xff; 6]) } else { datagram.from.0 };
                    self.out.push(udp_frame(port, (to, answer.to), &answer.packet));
                }
            }
            TFTP_PORT => self.begin(datagram, now),
            port => {
                let mine = |delivery: &&mut Delivery| delivery.port == port && delivery.client == datagram.from;
                let Some(delivery) = self.deliveries.iter_mut().find(mine) else { return };
                let packets = delivery.transfer.receive(datagram.payload, now);
                self.out.extend(packets.iter().map(|packet| udp_frame(port, datagram.from, packet)));
                self.deliveries.retain(|delivery| !delivery.transfer.is_over());
            }
        }
    }

    /// Begins to send a file.
    fn begin(&mut self, datagram: &Datagram<'_>, now: Duration) {
        let port = self.next_port;
        self.next_port = if port + 1 == PORTS.end { PORTS.start } else { port + 1 };
        let asker = self.server.asker_with(datagram.from.0.0);
        let request = Request::parse(datagram.payload);
        let packets = match request.map(|request| (self.root.open(&request.file, asker), request)) {
            Ok((Ok(file), request)) => {
                let (transfer, packets) = Transfer::start(&request, file, now);
                // A client that asks again has missed the first answer.
                self.deliveries.retain(|delivery| delivery.client != datagram.from);
                let oldest = (0..self.deliveries.len()).min_by_key(|index| self.deliveries[*index].transfer.heard());
                if let Some(oldest) = oldest.filter(|_| self.deliveries.len() == MAX_TRANSFERS) {
                    self.deliveries.swap_remove(oldest);
                }
                self.deliveries.push(Delivery { client: datagram.from, port, transfer });
                packets
            }
            Ok((Err(error), _)) => vec![tftp::refusal(&error).0],
            Err(refusal) => refusal.into_iter().collect(),
        };
        self.out.extend(packets.iter().map(|packet| udp_frame(port, datagram.from, packet)));
    }

    /// Sends again what is missed.
    pub fn poll(&mut self, now: Duration) {
        for delivery in &mut self.deliveries {
            let packets = delivery.transfer.poll(now);
            self.out.extend(packets.iter().map(|packet| udp_frame(delivery.port, delivery.client, packet)));
        }
        self.deliveries.retain(|delivery| !delivery.transfer.is_over());
    }

    /// When it wants its next turn.
    pub fn deadline(&self) -> Option<Duration> {
        let transfers = self.deliveries.iter().map(|delivery| delivery.transfer.deadline()).min();
        if self.out.is_empty() { transfers } else { Some(Duration::ZERO) }
    }

    /// The frames for the network.
    pub fn take_frames(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.out)
    }
}

/// The answer to a question for our hardware address.
fn arp(payload: &[u8]) -> Option<Vec<u8>> {
    let ArpRepr::EthernetIpv4 { operation, source_hardware_addr, source_protocol_addr, target_protocol_addr, .. } =
        ArpRepr::parse(&ArpPacket::new_checked(payload).ok()?).ok()?
    else {
        return None;
    };
    let asks = operation == ArpOperation::Request && target_protocol_addr == ADDRESS;
    asks.then(|| arp_reply((MAC, ADDRESS), (Mac(source_hardware_addr.0), source_protocol_addr)))
}

/// The answer to a machine that looks for routers by IPv6: that there is none. iPXE waits for it, for half a minute.
/// See: RFC 4861, 4.1 and 4.2; RFC 8200, 8.1 (checksum).
fn advertisement(to: Mac, packet: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 40;
    const ICMP: u8 = 58;
    const SOLICITATION: u8 = 133;
    const ADVERTISEMENT: u8 = 134;
    const BYTES: u8 = 16;
    let asks = packet.len() > HEADER && packet[0] >> 4 == 6 && packet[6] == ICMP && packet[HEADER] == SOLICITATION;
    let asker = packet.get(8..24).filter(|asker| asks && asker.starts_with(&[0xfe, 0x80]))?;
    let [_, _, _, d, e, f] = MAC.0;
    let own = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, MAC.0[0] ^ 2, MAC.0[1], MAC.0[2], 0xff, 0xfe, d, e, f];
    // Version; length; what follows; hops. Then the message: a router for no time at all.
    let head = [&[0x60, 0, 0, 0, 0, BYTES, ICMP, 255][..], &own, asker].concat();
    let mut message = [0; BYTES as usize];
    message[0] = ADVERTISEMENT;
    let pseudo = [&own[..], asker, &[0, 0, 0, BYTES, 0, 0, 0, ICMP], &message].concat();
    let sum: u32 = pseudo.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    Some([&to.0[..], &MAC.0, &IPV6.to_be_bytes(), &head, &message].concat())
}

/// A whole datagram for us or for everybody.
fn datagram(source: Mac, payload: &[u8]) -> Option<Datagram<'_>> {
    let packet = Ipv4Packet::new_checked(payload).ok()?;
    let whole = !packet.more_frags() && packet.frag_offset() == 0 && packet.verify_checksum();
    let ours = packet.dst_addr() == ADDRESS || packet.dst_addr().is_broadcast();
    let from = packet.src_addr();
    if !whole || !ours || packet.next_header() != IpProtocol::Udp || from.is_broadcast() || from.is_multicast() {
        return None;
    }
    let len = usize::from(packet.header_len())..usize::from(packet.total_len());
    let (source_address, target) = (IpAddress::Ipv4(from), IpAddress::Ipv4(packet.dst_addr()));
    let udp = UdpPacket::new_checked(payload.get(len)?).ok()?;
    if udp.src_port() == 0 || !udp.verify_checksum(&source_address, &target) {
        return None;
    }
    let port = udp.dst_port();
    let from = (source, SocketAddrV4::new(from, udp.src_port()));
    let payload = udp.payload();
    Some(Datagram { from, port, payload })
}

/// A datagram from our `port`.
fn udp_frame(port: u16, to: (Mac, SocketAddrV4), payload: &[u8]) -> Vec<u8> {
    let udp = UdpRepr { src_port: port, dst_port: to.1.port() };
    let ip = Ipv4Repr {
        src_addr: ADDRESS,
        dst_addr: *to.1.ip(),
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + payload.len(),
        hop_limit: HOPS,
    };
    let mut bytes = vec![0; MIN_FRAME + ip.buffer_len() + ip.payload_len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_dst_addr(EthernetAddress(to.0.0));
    frame.set_src_addr(EthernetAddress(MAC.0));
    frame.set_ethertype(EthernetProtocol::Ipv4);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet, &ChecksumCapabilities::default());
    udp.emit(
        &mut UdpPacket::new_unchecked(packet.payload_mut()),
        &IpAddress::Ipv4(ip.src_addr),
        &IpAddress::Ipv4(ip.dst_addr),
        payload.len(),
        |buffer| buffer.copy_from_slice(payload),
        &ChecksumCapabilities::default(),
    );
    bytes
}

#[cfg(test)]
mod tests {
    use pollux_hypervisor::config::Cidr;
    use proptest::prelude::*;

    use super::*;

    const MACHINE: (Mac, Ipv4Addr) = (Mac([0x52, 0x54, 0, 0x10, 0, 1]), Ipv4Addr::new(10, 0, 2, 21));

    /// What a machine sends: our own frames, with the ends exchanged.
    fn frame(port: u16, from_port: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = udp_frame(from_port, (MAC, SocketAddrV4::new(ADDRESS, port)), payload);
        bytes[6..12].copy_from_slice(&MACHINE.0.0);
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[MIN_FRAME..]);
        packet.set_src_addr(MACHINE.1);
        packet.fill_checksum();
        UdpPacket::new_unchecked(packet.payload_mut()).fill_checksum(&MACHINE.1.into(), &ADDRESS.into());
        bytes
    }

    fn payload(frame: &[u8]) -> (u16, Vec<u8>) {
        assert_eq!(frame[..6], MACHINE.0.0);
        let packet = Ipv4Packet::new_checked(&frame[MIN_FRAME..]).unwrap();
        let udp = UdpPacket::new_checked(packet.payload()).unwrap();
        assert!(packet.verify_checksum() && udp.verify_checksum(&packet.src_addr().into(), &packet.dst_addr().into()));
        (udp.src_port(), udp.payload().to_vec())
    }

    fn host(directory: &std::path::Path) -> BootHost {
        let lease = Some(Cidr { address: MACHINE.1, prefix: 24 });
        let clients = vec![Client { name: "castor".to_owned(), mac: MACHINE.0.0, lease }];
        BootHost::new(&BootConfig { directory: directory.to_owned(), clients }).unwrap()
    }

    #[test]
    fn a_machine_hears_that_there_is_no_router_and_a_guest_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let mut host = host(directory.path());
        let mut ask = vec![0; MIN_FRAME + 40 + 16];
        ask[6..14].copy_from_slice(&[&MACHINE.0.0[..], &IPV6.to_be_bytes()].concat());
        ask[MIN_FRAME..][..10].copy_from_slice(&[0x60, 0, 0, 0, 0, 16, 58, 255, 0xfe, 0x80]);
        ask[MIN_FRAME + 40] = 133;
        host.receive(&ask, Duration::ZERO);
        let frames = host.take_frames();
        assert_eq!((frames.len(), &frames[0][..6], frames[0][MIN_FRAME + 40]), (1, &MACHINE.0.0[..], 134));
        // With its checksum, all adds up.
        let packet = &frames[0][MIN_FRAME..];
        let parts = [&packet[8..40], &[0, 0, 0, 16, 0, 0, 0, 58], &packet[40..]].concat();
        let sum: u32 = parts.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        ask[6] ^= 2;
        host.receive(&ask, Duration::ZERO);
        assert!(host.take_frames().is_empty());
    }

    #[test]
    fn a_machine_finds_it_and_gets_a_file() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("f"), [7; 700]).unwrap();
        let mut host = host(directory.path());
        let mut ask = arp_reply(MACHINE, (MAC, ADDRESS));
        ask[MIN_FRAME + 7] = 1;
        host.receive(&ask, Duration::ZERO);
        assert_eq!(host.take_frames(), [arp_reply((MAC, ADDRESS), MACHINE)]);

        host.receive(&frame(TFTP_PORT, 2000, b"\0\x01f\0octet\0"), Duration::ZERO);
        let (port, first) = payload(&host.take_frames()[0]);
        assert_eq!((first.len(), &first[..4]), (516, &[0, 3, 0, 1][..]));
        assert_eq!(host.deadline(), Some(Duration::from_millis(500)));
        // From another port it is another client.
        host.receive(&frame(port, 2001, &[0, 4, 0, 1]), Duration::ZERO);
        assert!(host.take_frames().is_empty());
        host.receive(&frame(port, 2000, &[0, 4, 0, 1]), Duration::ZERO);
        assert_eq!(payload(&host.take_frames()[0]).1.len(), 4 + 188);
        host.poll(Duration::from_secs(1));
        assert_eq!(payload(&host.take_frames()[0]).1.len(), 4 + 188);
        host.receive(&frame(port, 2000, &[0, 4, 0, 2]), Duration::ZERO);
        assert!(host.take_frames().is_empty() && host.deadline().is_none());

        host.receive(&frame(TFTP_PORT, 2000, b"\0\x01../f\0octet\0"), Duration::ZERO);
        assert_eq!(payload(&host.take_frames()[0]).1[..4], [0, 5, 0, 1]);
    }

    #[test]
    fn only_the_machine_itself_gets_its_key() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["castor", "pollux"] {
            let own = directory.path().join("machines").join(name);
            std::fs::create_dir_all(&own).unwrap();
            std::fs::write(own.join("key"), [7; 32]).unwrap();
        }
        let mut host = host(directory.path());
        let mut code = |file: &str, guest: u8| {
            let mut ask = frame(TFTP_PORT, 2000, format!("\0\x01{file}\0octet\0").as_bytes());
            ask[6] ^= guest;
            host.receive(&ask, Duration::ZERO);
            let bytes = host.take_frames().remove(0);
            bytes[MIN_FRAME + 28..][..4].to_vec()
        };
        assert_eq!(code("/machines/castor/key", 0), [0, 3, 0, 1]);
        assert_eq!(code("/machines/castor/key", 2), [0, 5, 0, 2], "a guest");
        assert_eq!(code("/machines/pollux/key", 0), [0, 5, 0, 2], "its twin");
    }

    #[test]
    fn many_requests_take_no_more_than_their_room() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("f"), vec![7; 512 * 1000]).unwrap();
        let mut host = host(directory.path());
        host.receive(&frame(TFTP_PORT, 2000, b"\0\x01f\0octet\0"), Duration::ZERO);
        let (own, _) = payload(&host.take_frames()[0]);
        for port in 1..500 {
            let now = Duration::from_micros(port.into());
            host.receive(&frame(TFTP_PORT, port, b"\0\x01f\0octet\0timeout\x00255\0"), now);
            assert!(host.deliveries.len() <= MAX_TRANSFERS);
            host.take_frames();
            // One whose client answers goes on.
            host.receive(&frame(own, 2000, &[&[0, 4][..], &port.to_be_bytes()].concat()), now);
            assert_eq!(host.take_frames().len(), 1, "{port}");
        }
        for second in 1..20 {
            host.poll(Duration::from_secs(second));
        }
        assert!(host.deliveries.is_empty());
    }

    proptest! {
        #[test]
        fn any_frame_can_be_looked_at(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0usize..3,
            places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let mut host = host(directory.path());
            match kind {
                0 => {}
                1 => bytes = frame(TFTP_PORT, 9, &bytes),
                _ => bytes = arp_reply(MACHINE, (MAC, ADDRESS)),
            }
            let some = !bytes.is_empty();
            for (place, value) in places.into_iter().filter(|_| some) {
                let at = place.index(bytes.len());
                bytes[at] = value;
            }
            host.receive(&bytes, Duration::ZERO);
            prop_assert!(host.take_frames().len() <= 1);
        }
    }
}
