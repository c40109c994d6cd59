//! Ethernet frames, as far as a switch looks at them; and the frame by which a stack learns a neighbour's address.

use std::net::Ipv4Addr;

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol};

/// Header without VLAN tag: destination, source, type. Nothing shorter is a frame.
pub const MIN_FRAME: usize = 14;
/// Header and 1500 bytes of payload, without the check sequence: what stacks send that know of no VLAN.
pub const MAX_UNTAGGED: usize = 1514;
/// The same with one VLAN tag. Nothing longer is a frame.
pub const MAX_FRAME: usize = MAX_UNTAGGED + 4;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of RARP, which some hypervisors announce a moved MAC address with.
pub const RARP: u16 = 0x8035;

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Broadcast or multicast: the group bit is the lowest of the first byte.
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

/// What the header of a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Destination.
    pub destination: Mac,
    /// Source.
    pub source: Mac,
    /// Type of the payload.
    pub ethertype: u16,
}

impl Header {
    /// Reads the header; none if the frame is shorter than [`MIN_FRAME`] or longer than [`MAX_FRAME`].
    pub fn parse(frame: &[u8]) -> Option<Self> {
        if !(MIN_FRAME..=MAX_FRAME).contains(&frame.len()) {
            return None;
        }
        let (destination, rest) = frame.split_first_chunk()?;
        let (source, rest) = rest.split_first_chunk()?;
        let (ethertype, _) = rest.split_first_chunk()?;
        let ethertype = u16::from_be_bytes(*ethertype);
        Some(Self { destination: Mac(*destination), source: Mac(*source), ethertype })
    }
}

/// The ARP reply by which `to` learns the MAC address of `from`.
pub fn arp_reply(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr)) -> Vec<u8> {
    let (source, target) = (EthernetAddress(from.0.0), EthernetAddress(to.0.0));
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: source,
        source_protocol_addr: from.1,
        target_hardware_addr: target,
        target_protocol_addr: to.1,
    };
    let mut bytes = vec![0; MIN_FRAME + arp.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_dst_addr(target);
    frame.set_src_addr(source);
    frame.set_ethertype(EthernetProtocol::Arp);
    arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_frames_of_legal_length_have_a_header() {
        let frame: Vec<u8> = (0..=255).cycle().take(MAX_FRAME + 1).collect();
        for length in 0..=frame.len() {
            let header = Header::parse(&frame[..length]);
            assert_eq!(header.is_some(), (MIN_FRAME..=MAX_FRAME).contains(&length), "{length}");
        }
        let header = Header::parse(&frame[..MIN_FRAME]).unwrap();
        assert_eq!(header.destination, Mac([0, 1, 2, 3, 4, 5]));
        assert_eq!(header.source, Mac([6, 7, 8, 9, 10, 11]));
        assert_eq!(header.ethertype, 0x0c0d);
    }
}
