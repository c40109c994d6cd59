//! Connections that are asked for twice.
//!
//! A SYN that comes again would open a second connection to the same peer if the socket that listens comes before the
//! one that got the first: smoltcp asks the sockets in their order. Both would then answer, and the peer would give up.

use alloc::vec::Vec;

use smoltcp::iface::SocketSet;
use smoltcp::phy::{Device, DeviceCapabilities, RxToken};
use smoltcp::socket::Socket;
use smoltcp::socket::tcp::State;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpEndpoint, IpProtocol, Ipv4Packet, TcpPacket};

/// The peers of all connections that exist already, and the ports that they reach.
#[derive(Debug, Default)]
pub struct Peers(Vec<(IpEndpoint, u16)>);

impl Peers {
    /// Looks at all sockets anew.
    pub fn update(&mut self, sockets: &SocketSet<'_>) {
        self.0.clear();
        self.0.extend(sockets.iter().filter_map(|(_, socket)| match socket {
            Socket::Tcp(tcp) if !matches!(tcp.state(), State::Closed | State::Listen) => {
                Some((tcp.remote_endpoint()?, tcp.local_endpoint()?.port))
            }
            _ => None,
        }));
    }

    /// Whether a frame asks for a connection that exists already.
    fn has_what_is_asked_for(&self, frame: &[u8]) -> bool {
        asks_for(frame).is_some_and(|wanted| self.0.contains(&wanted))
    }
}

/// Who asks for a connection by this frame, and to which port.
fn asks_for(frame: &[u8]) -> Option<(IpEndpoint, u16)> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
    if ip.next_header() != IpProtocol::Tcp {
        return None;
    }
    let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
    (tcp.syn() && !tcp.ack()).then(|| (IpEndpoint::new(ip.src_addr().into(), tcp.src_port()), tcp.dst_port()))
}

/// A device without the frames that ask for connections that exist already.
pub struct Sieve<'a, D> {
    /// The device.
    pub device: &'a mut D,
    /// What exists.
    pub peers: &'a Peers,
}

/// A frame that was received.
pub struct Sifted<'a, R>(R, &'a Peers);

impl<R: RxToken> RxToken for Sifted<'_, R> {
    fn consume<T, F: FnOnce(&[u8]) -> T>(self, f: F) -> T {
        // Nobody answers an empty frame.
        self.0.consume(|frame| f(if self.1.has_what_is_asked_for(frame) { &[] } else { frame }))
    }
}

impl<D: Device> Device for Sieve<'_, D> {
    type RxToken<'b>
        = Sifted<'b, D::RxToken<'b>>
    where
        Self: 'b;
    type TxToken<'b>
        = D::TxToken<'b>
    where
        Self: 'b;

    fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let (received, slot) = self.device.receive(now)?;
        Some((Sifted(received, self.peers), slot))
    }

    fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
        self.device.transmit(now)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.device.capabilities()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use smoltcp::iface::{Config, Interface};
    use smoltcp::phy::{Medium, TxToken};
    use smoltcp::socket::tcp::{Socket as TcpSocket, SocketBuffer};
    use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address, TcpSeqNumber};

    use super::*;

    const PORT: u16 = 6379;

    #[derive(Default)]
    struct Wire(VecDeque<Vec<u8>>);
    struct In(Vec<u8>);
    struct Out;

    impl RxToken for In {
        fn consume<T, F: FnOnce(&[u8]) -> T>(self, f: F) -> T {
            f(&self.0)
        }
    }

    impl TxToken for Out {
        fn consume<T, F: FnOnce(&mut [u8]) -> T>(self, length: usize, f: F) -> T {
            f(&mut vec![0; length])
        }
    }

    impl Device for Wire {
        type RxToken<'a> = In;
        type TxToken<'a> = Out;

        fn receive(&mut self, _: Instant) -> Option<(In, Out)> {
            self.0.pop_front().map(|frame| (In(frame), Out))
        }

        fn transmit(&mut self, _: Instant) -> Option<Out> {
            Some(Out)
        }

        fn capabilities(&self) -> DeviceCapabilities {
            let mut capabilities = DeviceCapabilities::default();
            capabilities.medium = Medium::Ethernet;
            capabilities.max_transmission_unit = 1514;
            capabilities
        }
    }

    fn syn() -> Vec<u8> {
        let mut frame = vec![0; 54];
        let mut ethernet = EthernetFrame::new_unchecked(&mut frame);
        ethernet.set_dst_addr(EthernetAddress([2, 0, 0, 0, 0, 1]));
        ethernet.set_src_addr(EthernetAddress([2, 0, 0, 0, 0, 2]));
        ethernet.set_ethertype(EthernetProtocol::Ipv4);
        let (source, destination) = (Ipv4Address::new(10, 0, 2, 2), Ipv4Address::new(10, 0, 2, 15));
        let mut ip = Ipv4Packet::new_unchecked(ethernet.payload_mut());
        ip.set_version(4);
        ip.set_header_len(20);
        ip.set_total_len(40);
        ip.set_hop_limit(64);
        ip.set_next_header(IpProtocol::Tcp);
        ip.set_src_addr(source);
        ip.set_dst_addr(destination);
        ip.fill_checksum();
        let mut tcp = TcpPacket::new_unchecked(ip.payload_mut());
        tcp.set_src_port(40_000);
        tcp.set_dst_port(PORT);
        tcp.set_seq_number(TcpSeqNumber(7));
        tcp.set_header_len(20);
        tcp.set_syn(true);
        tcp.set_window_len(1000);
        tcp.fill_checksum(&source.into(), &destination.into());
        frame
    }

    /// The states of two sockets after the same SYN came twice; the second listened only when the first was taken, but
    /// comes before it.
    fn after_two(sifted: bool) -> [State; 2] {
        let mut wire = Wire::default();
        let config = Config::new(EthernetAddress([2, 0, 0, 0, 0, 1]).into());
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        interface.update_ip_addrs(|list| list.push(IpCidr::new(Ipv4Address::new(10, 0, 2, 15).into(), 24)).unwrap());
        let mut sockets = SocketSet::new(Vec::new());
        let mut socket = || {
            let buffer = || SocketBuffer::new(vec![0; 64]);
            sockets.add(TcpSocket::new(buffer(), buffer()))
        };
        let [early, late] = [socket(), socket()];
        let mut peers = Peers::default();
        for listener in [late, early] {
            sockets.get_mut::<TcpSocket<'_>>(listener).listen(PORT).unwrap();
            wire.0.push_back(syn());
            if sifted {
                peers.update(&sockets);
            }
            let mut device = Sieve { device: &mut wire, peers: &peers };
            interface.poll_ingress_single(Instant::ZERO, &mut device, &mut sockets);
        }
        [early, late].map(|handle| sockets.get::<TcpSocket<'_>>(handle).state())
    }

    #[test]
    fn the_same_peer_gets_one_connection() {
        assert_eq!(after_two(false), [State::SynReceived, State::SynReceived]);
        assert_eq!(after_two(true), [State::Listen, State::SynReceived]);
    }

    #[test]
    fn other_frames_pass() {
        let mut answer = syn();
        answer[47] |= 0x10;
        assert_eq!(asks_for(&answer), None);
        assert_eq!(asks_for(&syn()).map(|(peer, port)| (peer.port, port)), Some((40_000, PORT)));
        for end in 0..syn().len() {
            assert_eq!(asks_for(&syn()[..end]), None);
        }
    }
}
