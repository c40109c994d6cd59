//! Ethernet frames: bounds, the traits by which they move, and the frame that announces a MAC address.

use core::fmt;
use core::net::Ipv4Addr;

pub use smoltcp::wire::EthernetAddress as MacAddress;

/// Length of an Ethernet header, and so of the shortest frame that is accepted, in bytes.
pub const MIN_FRAME: usize = 14;
/// Longest frame without a tag, header included, frame check sequence not: an MTU of 1500 bytes. What stacks of our own send.
pub const MAX_UNTAGGED: usize = 1514;
/// Length of a VLAN tag. See: IEEE 802.1Q, 9.3.
pub const VLAN_TAG: usize = 4;
/// Longest frame that is accepted: an MTU of 1500 bytes and one tag. A second tag (802.1ad, QinQ) must fit in it, so that
/// such a guest has an MTU of 1496; jumbo frames do not pass. Cards without "long packet enable" take nothing longer either
/// (1522 bytes with the check sequence), and do not look for a tag: neither do we. See: 8254x SDM, 13.4.22 (RCTL.LPE).
pub const MAX_FRAME: usize = MAX_UNTAGGED + VLAN_TAG;
/// Shortest frame on the wire without its check sequence; shorter ones are padded with zeros by the driver.
/// See: IEEE 802.3, 3.2.8.
pub const MIN_WIRE_FRAME: usize = 60;

/// Why a sequence of bytes is no Ethernet frame for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// Shorter than an Ethernet header ([`MIN_FRAME`]); the length in bytes.
    TooShort(usize),
    /// Longer than [`MAX_FRAME`]; the length in bytes.
    TooLong(usize),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort(len) => write!(f, "frame of {len} bytes is shorter than {MIN_FRAME}"),
            Self::TooLong(len) => write!(f, "frame of {len} bytes is longer than {MAX_FRAME}"),
        }
    }
}

impl core::error::Error for FrameError {}

/// Checks the length of a frame (without its check sequence) against [`MIN_FRAME`] and [`MAX_FRAME`].
pub const fn check_length(len: usize) -> Result<(), FrameError> {
    if len < MIN_FRAME {
        Err(FrameError::TooShort(len))
    } else if len > MAX_FRAME {
        Err(FrameError::TooLong(len))
    } else {
        Ok(())
    }
}

/// Why a frame could not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendError {
    /// No room now; the same frame may be offered again later.
    Full,
    /// The frame is invalid and will never be taken.
    Invalid(FrameError),
}

impl From<FrameError> for SendError {
    fn from(error: FrameError) -> Self {
        Self::Invalid(error)
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the transmit ring is full"),
            Self::Invalid(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for SendError {}

/// Something that takes frames in order: a NIC's transmit side.
pub trait FrameSink {
    /// Queues one frame. It may stay queued until [`flush`](Self::flush).
    fn send(&mut self, frame: &[u8]) -> Result<(), SendError>;

    /// Starts the transmission of everything queued.
    fn flush(&mut self);
}

/// Something that gives frames in order: a NIC's receive side.
pub trait FrameSource {
    /// Hands the next received frame to `f`, if there is one.
    fn receive<R>(&mut self, f: impl FnOnce(&[u8]) -> R) -> Option<R>;
}

/// Builds a broadcast frame that makes every switch learn that `mac` is reached through this port.
///
/// Without an address it is a reverse ARP request (RFC 903), as used after the migration of virtual machines: hosts
/// ignore it, switches learn from it. With the guest's IPv4 address it is a gratuitous ARP request, which also
/// refreshes the neighbour caches of hosts. See: RFC 5227, section 3.
pub fn announcement(mac: MacAddress, ip: Option<Ipv4Addr>) -> [u8; MIN_WIRE_FRAME] {
    match ip {
        Some(ip) => request_for(ip, mac, ip),
        None => {
            let none = Ipv4Addr::UNSPECIFIED;
            address_resolution((ETHERTYPE_RARP, REQUEST_REVERSE), (mac, none), (mac, none))
        }
    }
}

/// Builds a broadcast frame that asks for the MAC address of `target`, in the name of a host with the addresses `mac`
/// and `own`. See: RFC 826.
pub fn request_for(target: Ipv4Addr, mac: MacAddress, own: Ipv4Addr) -> [u8; MIN_WIRE_FRAME] {
    address_resolution((ETHERTYPE_ARP, REQUEST), (mac, own), (MacAddress([0; 6]), target))
}

/// Whether a frame of the guest with the address `guest` speaks for somebody else: by its source, or by ARP that says where
/// one of `others` is, in a question as well as in an answer. Hosts learn from both, and from frames with the tag of VLAN 0
/// as from those without. See: RFC 826.
pub fn is_foreign(frame: &[u8], guest: MacAddress, others: &[Ipv4Addr]) -> bool {
    let own = frame.get(6..12).is_some_and(|source| source == guest.as_bytes());
    let claims = untagged(frame).is_some_and(|(ethertype, payload)| {
        let sender = payload.get(14..18);
        ethertype == ETHERTYPE_ARP && sender.is_some_and(|sender| others.iter().any(|other| sender == other.octets()))
    });
    !own || claims
}

/// The type of a frame and what follows, behind all tags.
fn untagged(frame: &[u8]) -> Option<(u16, &[u8])> {
    let mut rest = frame.get(12..)?;
    loop {
        let (ethertype, payload) = rest.split_first_chunk()?;
        match u16::from_be_bytes(*ethertype) {
            ETHERTYPE_VLAN | ETHERTYPE_QINQ => rest = payload.get(2..)?,
            ethertype => return Some((ethertype, payload)),
        }
    }
}

/// Types of tags, which a second type follows. See: IEEE 802.1Q, 9.5.
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88A8;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_RARP: u16 = 0x8035;
const REQUEST: u16 = 1;
const REQUEST_REVERSE: u16 = 3;

fn address_resolution(
    (ethertype, operation): (u16, u16),
    source: (MacAddress, Ipv4Addr),
    target: (MacAddress, Ipv4Addr),
) -> [u8; MIN_WIRE_FRAME] {
    let mut frame = [0; MIN_WIRE_FRAME];
    frame[0..6].copy_from_slice(&[0xFF; 6]);
    frame[6..12].copy_from_slice(&source.0.0);
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    // Hardware type Ethernet, protocol IPv4, address lengths 6 and 4. See: RFC 826.
    frame[14..20].copy_from_slice(&[0, 1, 0x08, 0, 6, 4]);
    frame[20..22].copy_from_slice(&operation.to_be_bytes());
    for (at, (mac, ip)) in [(22, source), (32, target)] {
        frame[at..at + 6].copy_from_slice(&mac.0);
        frame[at + 6..at + 10].copy_from_slice(&ip.octets());
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol};

    const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

    #[test]
    fn lengths_have_bounds() {
        assert_eq!(check_length(13), Err(FrameError::TooShort(13)));
        assert_eq!(check_length(14), Ok(()));
        assert_eq!(check_length(1514), Ok(()));
        assert_eq!(check_length(1518), Ok(()), "a tagged frame of full size");
        assert_eq!(check_length(1519), Err(FrameError::TooLong(1519)));
    }

    #[test]
    fn gratuitous_arp_is_what_another_parser_reads() {
        let ip = Ipv4Addr::new(10, 0, 2, 15);
        let bytes = announcement(MAC, Some(ip));
        let frame = EthernetFrame::new_checked(&bytes[..]).unwrap();
        assert_eq!(frame.dst_addr(), MacAddress::BROADCAST);
        assert_eq!(frame.src_addr(), MAC);
        assert_eq!(frame.ethertype(), EthernetProtocol::Arp);
        let arp = ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).unwrap()).unwrap();
        assert_eq!(
            arp,
            ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Request,
                source_hardware_addr: MAC,
                source_protocol_addr: ip,
                target_hardware_addr: MacAddress([0; 6]),
                target_protocol_addr: ip,
            }
        );
    }

    #[test]
    fn a_guest_speaks_for_itself() {
        let (own, other, arbiter) = (Ipv4Addr::new(10, 0, 2, 15), MacAddress([2; 6]), Ipv4Addr::new(10, 0, 2, 3));
        let foreign = |frame: &[u8]| is_foreign(frame, MAC, &[Ipv4Addr::new(10, 0, 2, 21), arbiter]);
        assert!(!foreign(&request_for(arbiter, MAC, own)) && !foreign(&announcement(MAC, None)));
        assert!(foreign(&request_for(own, other, own)), "another source");
        assert!(foreign(&request_for(own, MAC, arbiter)), "a question says where the arbiter is");
        let mut answer = request_for(own, MAC, arbiter);
        answer[21] = 2;
        assert!(foreign(&answer));
        let tagged = |tags: &[[u8; 4]]| [&answer[..12], tags.as_flattened(), &answer[12..]].concat();
        for tags in [&[[0x81, 0, 0, 0]][..], &[[0x88, 0xA8, 0x20, 5], [0x81, 0, 0, 7]]] {
            assert!(foreign(&tagged(tags)), "a tag hides nothing");
            for len in 14..tagged(tags).len() {
                foreign(&tagged(tags)[..len]);
            }
        }
        // The same bytes are no ARP in a frame of another kind.
        answer[12..14].copy_from_slice(&[8, 0]);
        assert!(!foreign(&answer));
        for len in 0..14 {
            assert_eq!(foreign(&announcement(MAC, None)[..len]), len < 12, "{len}");
        }
    }

    #[test]
    fn a_request_asks_for_somebody_else() {
        let (own, other) = (Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(10, 0, 2, 3));
        let bytes = request_for(other, MAC, own);
        let frame = EthernetFrame::new_checked(&bytes[..]).unwrap();
        assert_eq!((frame.dst_addr(), frame.src_addr()), (MacAddress::BROADCAST, MAC));
        assert_eq!(
            ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).unwrap()).unwrap(),
            ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Request,
                source_hardware_addr: MAC,
                source_protocol_addr: own,
                target_hardware_addr: MacAddress([0; 6]),
                target_protocol_addr: other,
            }
        );
    }

    #[test]
    fn reverse_arp_needs_no_address() {
        let bytes = announcement(MAC, None);
        assert_eq!(bytes[..12], [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert_eq!(bytes[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!(bytes[22..28], MAC.0);
        assert_eq!(bytes[28..32], [0; 4]);
        assert_eq!(bytes[32..38], MAC.0);
        assert!(bytes[38..].iter().all(|&b| b == 0));
    }
}
