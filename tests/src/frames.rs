//! Frames that no machine made.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpAddress,
    IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket,
};

const ETHERNET: usize = 14;
const MIN_FRAME: usize = 60;

/// One end of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// Address of the card.
    pub mac: [u8; 6],
    /// Address of the host.
    pub ip: [u8; 4],
    /// Port.
    pub port: u16,
}

/// A frame with so many bytes behind its Ethernet header, which `fill` writes.
fn frame(
    from: [u8; 6],
    to: [u8; 6],
    ethertype: EthernetProtocol,
    length: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut frame = vec![0; (ETHERNET + length).max(MIN_FRAME)];
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame);
    let header = EthernetRepr { src_addr: EthernetAddress(from), dst_addr: EthernetAddress(to), ethertype };
    header.emit(&mut ethernet);
    fill(&mut ethernet.payload_mut()[..length]);
    frame
}

/// A TCP segment, with its number and the one that it acknowledges.
#[must_use]
pub fn segment(
    from: Socket,
    to: Socket,
    control: TcpControl,
    (sequence, ack): (u32, Option<u32>),
    payload: &[u8],
) -> Vec<u8> {
    let number = |number: u32| TcpSeqNumber(number.cast_signed());
    let tcp = TcpRepr {
        src_port: from.port,
        dst_port: to.port,
        control,
        seq_number: number(sequence),
        ack_number: ack.map(number),
        window_len: 16_384,
        window_scale: None,
        max_seg_size: (control == TcpControl::Syn).then_some(1460),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let [source, target] = [from.ip, to.ip].map(|[a, b, c, d]| Ipv4Address::new(a, b, c, d));
    let ip = Ipv4Repr {
        src_addr: source,
        dst_addr: target,
        next_header: IpProtocol::Tcp,
        payload_len: tcp.buffer_len(),
        hop_limit: 64,
    };
    frame(from.mac, to.mac, EthernetProtocol::Ipv4, ip.buffer_len() + tcp.buffer_len(), |bytes| {
        let mut packet = Ipv4Packet::new_unchecked(bytes);
        ip.emit(&mut packet, &ChecksumCapabilities::default());
        let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
        let (source, target) = (IpAddress::Ipv4(source), IpAddress::Ipv4(target));
        tcp.emit(&mut segment, &source, &target, &ChecksumCapabilities::default());
    })
}

/// "`ip` is at `mac`", to the card `to`, asked or not; as a question, if `asks`.
#[must_use]
pub fn arp(mac: [u8; 6], ip: [u8; 4], to: [u8; 6], target: [u8; 4], asks: bool) -> Vec<u8> {
    let [source, target] = [ip, target].map(|[a, b, c, d]| Ipv4Address::new(a, b, c, d));
    let claim = ArpRepr::EthernetIpv4 {
        operation: if asks { ArpOperation::Request } else { ArpOperation::Reply },
        source_hardware_addr: EthernetAddress(mac),
        source_protocol_addr: source,
        target_hardware_addr: EthernetAddress(to),
        target_protocol_addr: target,
    };
    frame(mac, to, EthernetProtocol::Arp, claim.buffer_len(), |bytes| claim.emit(&mut ArpPacket::new_unchecked(bytes)))
}

/// What a frame carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carried {
    /// "Who has `wanted`?"
    Who {
        /// Who asks.
        asker: Socket,
        /// For whom.
        wanted: [u8; 4],
    },
    /// A datagram.
    Udp {
        /// Sender.
        from: Socket,
        /// Receiver.
        to: Socket,
        /// Its content.
        payload: Vec<u8>,
    },
    /// A segment.
    Tcp {
        /// Sender.
        from: Socket,
        /// Receiver.
        to: Socket,
        /// Its flags of connecting.
        syn: bool,
        /// Whether it acknowledges, and what.
        ack: Option<u32>,
        /// Its number.
        sequence: u32,
        /// Its content.
        payload: Vec<u8>,
    },
}

/// Looks into a frame; none if it carries something else.
#[must_use]
pub fn carried(frame: &[u8]) -> Option<Carried> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let (from_mac, to_mac) = (ethernet.src_addr().0, ethernet.dst_addr().0);
    if ethernet.ethertype() == EthernetProtocol::Arp {
        let arp = ArpPacket::new_checked(ethernet.payload()).ok()?;
        let ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request, source_protocol_addr, target_protocol_addr, ..
        } = ArpRepr::parse(&arp).ok()?
        else {
            return None;
        };
        let asker = Socket { mac: from_mac, ip: source_protocol_addr.octets(), port: 0 };
        return Some(Carried::Who { asker, wanted: target_protocol_addr.octets() });
    }
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
    let from = |port| Socket { mac: from_mac, ip: ip.src_addr().octets(), port };
    let to = |port| Socket { mac: to_mac, ip: ip.dst_addr().octets(), port };
    match ip.next_header() {
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(ip.payload()).ok()?;
            let (from, to) = (from(udp.src_port()), to(udp.dst_port()));
            Some(Carried::Udp { from, to, payload: udp.payload().to_vec() })
        }
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
            let (from, to) = (from(tcp.src_port()), to(tcp.dst_port()));
            let ack = tcp.ack().then(|| tcp.ack_number().0.cast_unsigned());
            let (syn, sequence) = (tcp.syn(), tcp.seq_number().0.cast_unsigned());
            Some(Carried::Tcp { from, to, syn, ack, sequence, payload: tcp.payload().to_vec() })
        }
        _ => None,
    }
}

/// A UDP datagram. Its own checksum is left out, as is allowed: what is wrong in it must be found by whoever reads it.
#[must_use]
pub fn datagram(from: Socket, to: Socket, payload: &[u8]) -> Vec<u8> {
    const UDP: usize = 8;
    let [source, target] = [from.ip, to.ip].map(|[a, b, c, d]| Ipv4Address::new(a, b, c, d));
    let ip = Ipv4Repr {
        src_addr: source,
        dst_addr: target,
        next_header: IpProtocol::Udp,
        payload_len: UDP + payload.len(),
        hop_limit: 64,
    };
    frame(from.mac, to.mac, EthernetProtocol::Ipv4, ip.buffer_len() + ip.payload_len, |bytes| {
        let mut packet = Ipv4Packet::new_unchecked(bytes);
        ip.emit(&mut packet, &ChecksumCapabilities::default());
        let udp = packet.payload_mut();
        for (place, number) in [(0, from.port), (2, to.port), (4, ip.payload_len as u16), (6, 0)] {
            udp[place..place + 2].copy_from_slice(&number.to_be_bytes());
        }
        udp[UDP..].copy_from_slice(payload);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_read_again() {
        let from = Socket { mac: [2, 0, 0, 0, 0, 1], ip: [10, 1, 0, 77], port: 4000 };
        let to = Socket { mac: [2, 0, 0, 0, 0, 2], ip: [10, 1, 0, 1], port: 7001 };
        let payload = b"some more bytes than a short frame has".to_vec();
        let udp = carried(&datagram(from, to, &payload)).unwrap();
        assert_eq!(udp, Carried::Udp { from, to, payload: payload.clone() });
        let tcp = carried(&segment(from, to, TcpControl::Psh, (u32::MAX, Some(7)), &payload)).unwrap();
        assert_eq!(tcp, Carried::Tcp { from, to, syn: false, ack: Some(7), sequence: u32::MAX, payload });
        let asks = carried(&arp(from.mac, from.ip, [0xff; 6], to.ip, true)).unwrap();
        assert_eq!(asks, Carried::Who { asker: Socket { port: 0, ..from }, wanted: to.ip });
        assert_eq!(carried(&arp(from.mac, from.ip, to.mac, to.ip, false)), None);
    }
}
