//! Listening for the guest: which MAC address it has, and when it says where it is.

use std::net::Ipv4Addr;

use smoltcp::wire::{ArpPacket, ArpRepr, Ipv4Packet};

use crate::net::frame::{ARP, Header, IPV4, Mac, RARP, arp_reply};

/// What a frame on the client network tells about the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// The guest sent it.
    Heard,
    /// The guest, or its hypervisor on its behalf, announces where it is: a gratuitous ARP, or a RARP.
    Announced,
}

/// Knows the guest by its IP address, then by its MAC address.
#[derive(Debug)]
pub struct Listener {
    guest: Ipv4Addr,
    mac: Option<Mac>,
}

impl Listener {
    /// Listens for this guest.
    pub fn new(guest: Ipv4Addr) -> Self {
        Self { guest, mac: None }
    }

    /// Looks at a frame.
    pub fn look(&mut self, header: &Header, frame: &[u8]) -> Option<News> {
        match header.ethertype {
            IPV4 => {
                let packet = Ipv4Packet::new_checked(frame.get(14..)?).ok()?;
                if packet.src_addr() != self.guest {
                    return None;
                }
                self.mac = Some(header.source);
                Some(News::Heard)
            }
            ARP => {
                let packet = ArpPacket::new_checked(frame.get(14..)?).ok()?;
                let ArpRepr::EthernetIpv4 { source_protocol_addr, target_protocol_addr, .. } =
                    ArpRepr::parse(&packet).ok()?
                else {
                    return None;
                };
                if source_protocol_addr != self.guest {
                    return None;
                }
                self.mac = Some(header.source);
                Some(if target_protocol_addr == self.guest { News::Announced } else { News::Heard })
            }
            RARP if self.mac == Some(header.source) => Some(News::Announced),
            _ => None,
        }
    }

    /// A frame that reminds the stack of the guest's MAC address, so that it need not ask for it after its clock has
    /// jumped beyond the lifetime of what it knew.
    pub fn reminder(&self, host: Mac, host_address: Ipv4Addr) -> Option<Vec<u8>> {
        Some(arp_reply((self.mac?, self.guest), (host, host_address)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
    const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn arp(source: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        let mut frame = Listener { guest: source, mac: Some(MAC) }.reminder(Mac([0xff; 6]), target).unwrap();
        frame.resize(60, 0);
        frame
    }

    fn look(listener: &mut Listener, frame: &[u8]) -> Option<News> {
        listener.look(&Header::parse(frame).unwrap(), frame)
    }

    #[test]
    fn a_gratuitous_arp_is_an_announcement() {
        let mut listener = Listener::new(GUEST);
        assert_eq!(look(&mut listener, &arp(HOST, HOST)), None);
        assert_eq!(listener.reminder(MAC, HOST), None);
        assert_eq!(look(&mut listener, &arp(GUEST, HOST)), Some(News::Heard));
        assert_eq!(look(&mut listener, &arp(GUEST, GUEST)), Some(News::Announced));
        assert_eq!(listener.mac, Some(MAC));
    }

    #[test]
    fn a_rarp_counts_once_the_guest_is_known() {
        let mut rarp = arp(GUEST, GUEST);
        rarp[12..14].copy_from_slice(&RARP.to_be_bytes());
        let mut listener = Listener::new(GUEST);
        assert_eq!(look(&mut listener, &rarp), None);
        look(&mut listener, &arp(GUEST, HOST));
        assert_eq!(look(&mut listener, &rarp), Some(News::Announced));
    }

    proptest! {
        #[test]
        fn any_frame_can_be_looked_at(
            kind in prop::sample::select(vec![ARP, IPV4, RARP]), mut frame in prop::collection::vec(any::<u8>(), 14..80)
        ) {
            frame[12..14].copy_from_slice(&kind.to_be_bytes());
            look(&mut Listener::new(GUEST), &frame);
        }
    }
}
