//! Clients, each a station of its own, at a service.

use alloc::string::String;
use alloc::vec::Vec;
use std::collections::VecDeque;

use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::udp;
use smoltcp::wire::{
    EthernetAddress, EthernetRepr, IpAddress, IpEndpoint, Ipv4Repr, TcpControl, TcpRepr, TcpSeqNumber,
};

use super::*;
use crate::replica::station::Ears;

const MACHINE: MacAddress = MacAddress([0x52, 0x54, 0, 0x10, 0, 1]);
const OWN: &str = "10.0.2.21/24";
const PORT: u16 = 80;

fn service() -> Service {
    Service::new(MACHINE, OWN.parse().unwrap(), None, Some(PORT), Random::new([1; 32]))
}

struct Client {
    station: Station,
    socket: SocketHandle,
    received: Vec<u8>,
}

impl Client {
    fn new(n: u8) -> Self {
        let own = Cidr { address: Ipv4Addr::new(10, 0, 2, n), prefix: 24 };
        let mut station = Station::new(MacAddress([2, 0, 0, 0, 0, n]), own, None, Random::new([n; 32]));
        station.wake(true);
        let buffer = || SocketBuffer::new(vec![0; 32 << 10]);
        let socket = station.stack.add(Socket::new(buffer(), buffer()));
        let mut client = Self { station, socket, received: Vec::new() };
        client.dial();
        client
    }

    fn dial(&mut self) {
        let server = IpEndpoint::new(IpAddress::v4(10, 0, 2, 21), PORT);
        self.station.stack.connect(self.socket, server).unwrap();
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.station.stack.socket(self.socket)
    }

    fn text(&self) -> String {
        String::from_utf8(self.received.clone()).unwrap()
    }
}

struct Desk {
    service: Service,
    clients: Vec<Client>,
    now: Time,
    answers: usize,
}

impl Desk {
    fn new(clients: u8) -> Self {
        let clients = (0..clients).map(|n| Client::new(100 + n)).collect();
        Self { service: service(), clients, now: Time(1_000_000), answers: 0 }
    }

    /// Lets so many milliseconds pass; each client says what is given for it, as soon as it can.
    fn run(&mut self, ms: u64, says: &[&[u8]]) {
        let mut says: VecDeque<_> = says.iter().map(|text| text.to_vec()).collect();
        says.resize(self.clients.len(), Vec::new());
        for _ in 0..ms {
            self.now = self.now.after(Span::from_millis(1));
            for (client, text) in self.clients.iter_mut().zip(&mut says) {
                client.station.poll(self.now);
                let socket = client.socket();
                if socket.can_send() && !text.is_empty() {
                    let sent = socket.send_slice(text).unwrap();
                    text.drain(..sent);
                }
                let mut received = Vec::new();
                while socket.can_recv() {
                    socket.recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).unwrap();
                }
                if socket.state() == State::CloseWait {
                    socket.close();
                }
                client.received.extend(received);
                client.station.poll(self.now);
                while let Some(frame) = client.station.next_frame() {
                    Ears { arbiter: None, service: Some(&mut self.service) }.offer(&frame);
                }
            }
            let answers = &mut self.answers;
            self.service.poll(self.now, &|| 0, &mut |request| {
                *answers += 1;
                Response::text(200, alloc::format!("{:?} {}", request.page, "x".repeat(20_000)))
            });
            while let Some(frame) = self.service.next_frame() {
                self.clients.iter_mut().for_each(|client| {
                    client.station.offer(&frame);
                });
            }
        }
    }
}

const STATUS: &[u8] = b"GET /status HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn who_asks_is_answered_and_the_connection_ends() {
    let mut desk = Desk::new(1);
    desk.run(60, &[STATUS]);
    let text = desk.clients[0].text();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("Status xxx"), "{text:.100}");
    let content = text.split_once("\r\n\r\n").unwrap().1.len();
    assert!(content > 20_000 && text.contains(&alloc::format!("Content-Length: {content}\r\n")), "{content}");
    assert!(matches!(desk.clients[0].socket().state(), State::TimeWait | State::Closed));
    assert!(desk.service.doors.iter().all(|door| door.since.is_none()));
    assert_eq!(desk.service.counts, Counts::default());
    // And again: a door is no worse for having been used.
    for _ in 0..3 * DOORS {
        desk.clients[0] = Client::new(100);
        desk.run(60, &[STATUS]);
        assert!(desk.clients[0].text().starts_with("HTTP/1.1 200 OK"), "{:.100}", desk.clients[0].text());
    }
}

#[test]
fn nonsense_is_refused_and_a_slow_one_is_told_so() {
    let mut desk = Desk::new(3);
    desk.run(100, &[b"nonsense\r\n\r\n", b"GET /sta", b"POST /status HTTP/1.1\r\nHost: a\r\n\r\n"]);
    assert!(desk.clients[0].text().starts_with("HTTP/1.1 400 "));
    assert!(desk.clients[2].text().starts_with("HTTP/1.1 405 "));
    assert_eq!((desk.clients[1].text(), desk.answers), (String::new(), 0));
    desk.run(5000, &[]);
    assert!(desk.clients[1].text().starts_with("HTTP/1.1 408 "), "{}", desk.clients[1].text());
    assert_eq!(desk.service.counts.refused, 3);
}

/// Twice as many as there are doors stand there and say nothing; one who asks comes in all the same.
#[test]
fn a_silent_crowd_keeps_nobody_out() {
    let mut desk = Desk::new(2 * DOORS as u8 + 1);
    let asks = desk.clients.len() - 1;
    let mut waited = 0;
    while desk.clients[asks].received.is_empty() {
        // The crowd comes again and again, but not each time right before the one who asks.
        let from = if waited % 300 == 0 { 0 } else { asks };
        for client in &mut desk.clients[from..] {
            if client.socket().state() == State::Closed {
                client.dial();
            }
        }
        let mut says: Vec<&[u8]> = vec![b""; asks];
        says.push(STATUS);
        desk.run(100, &says);
        waited += 100;
        assert!(waited < 10_000, "never answered");
    }
    assert!(desk.clients[asks].text().starts_with("HTTP/1.1 200 OK"));
    assert_eq!(desk.answers, 1);
}

#[test]
fn answers_are_made_one_at_a_time() {
    let mut desk = Desk::new(6);
    desk.run(50, &[STATUS; 6]);
    assert!((1..=3).contains(&desk.answers), "{} answers within 50 ms", desk.answers);
    desk.run(200, &[]);
    assert_eq!(desk.answers, 6);
}

/// A server that is there gets what happened, and one that is not is asked for.
#[test]
fn what_happens_is_told_to_the_server() {
    let server = Ipv4Addr::new(10, 0, 2, 9);
    let mut service = Service::new(MACHINE, OWN.parse().unwrap(), None, None, Random::new([1; 32]));
    service.log_to(SocketAddrV4::new(server, 5514), "castor");
    let own = Cidr { address: server, prefix: 24 };
    let mut listener = Station::new(MacAddress([2, 0, 0, 0, 0, 9]), own, None, Random::new([9; 32]));
    listener.wake(true);
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 8192]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(5514).unwrap();
    let socket = listener.stack.add(socket);
    syslog::note("{\"t\":\"event\",\"event\":\"takeover\"}\n");
    assert!(service.has_unsent_events());
    for ms in 0..50 {
        let now = Time(1_000_000 + 1000 * ms);
        service.poll(now, &|| 1_000_000_000, &mut |_| unreachable!("nobody asks"));
        while let Some(frame) = service.next_frame() {
            listener.offer(&frame);
        }
        listener.poll(now);
        while let Some(frame) = listener.next_frame() {
            Ears { arbiter: None, service: Some(&mut service) }.offer(&frame);
        }
    }
    assert!(!service.has_unsent_events());
    let heard = listener.stack.socket::<udp::Socket<'_>>(socket).recv().map(|(bytes, _)| bytes.to_vec()).unwrap();
    assert_eq!(
        String::from_utf8(heard).unwrap(),
        "<28>1 2001-09-09T01:46:40Z castor pollux - takeover - {\"t\":\"event\",\"event\":\"takeover\"}"
    );
}

/// What comes to the port never reaches the arbiter's queue, and what else comes never reaches this one's.
#[test]
fn a_flood_is_in_nobodys_way() {
    let mut arbiter = Station::new(MACHINE, OWN.parse().unwrap(), None, Random::new([3; 32]));
    arbiter.talk_to(Ipv4Addr::new(10, 0, 2, 3));
    arbiter.wake(true);
    let mut service = service();
    let frames = |n: u8, port: u16| {
        let mut client = Client::new(n);
        client.socket().abort();
        client.station.poll(Time(1));
        let server = IpEndpoint::new(IpAddress::v4(10, 0, 2, 21), port);
        client.station.stack.connect(client.socket, server).unwrap();
        client.station.offer(&request_for(Ipv4Addr::new(10, 0, 2, n), MACHINE, Ipv4Addr::new(10, 0, 2, 21)));
        client.station.poll(Time(2));
        core::iter::from_fn(move || client.station.next_frame()).collect::<Vec<_>>()
    };
    let syn = |n, port| {
        frames(n, port).into_iter().find(|frame| segment(frame, Ipv4Addr::new(10, 0, 2, 21)).is_some()).unwrap()
    };
    // The arbiter's own host, as a client.
    let asks = syn(3, PORT);
    for _ in 0..1000 {
        assert!(!Ears { arbiter: Some(&mut arbiter), service: Some(&mut service) }.offer(&asks), "not the guest's");
    }
    assert_eq!(arbiter.waiting(), 0);
    let full = service.station.waiting();
    assert!(full > 0);
    let answer = syn(3, 50_000);
    assert!(!Ears { arbiter: Some(&mut arbiter), service: Some(&mut service) }.offer(&answer));
    assert_eq!((arbiter.waiting(), service.station.waiting()), (1, full));
}

/// The first segment of a connection from a port of somebody who may not be there, with this MSS, if it says one.
fn syn_from(from: [u8; 4], port: u16, max_seg_size: Option<u16>) -> Vec<u8> {
    let (source, own) = (Ipv4Addr::from(from), Ipv4Addr::new(10, 0, 2, 21));
    let tcp = TcpRepr {
        src_port: port,
        dst_port: PORT,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(1),
        ack_number: None,
        window_len: 1000,
        window_scale: None,
        max_seg_size,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let ip = Ipv4Repr {
        src_addr: source,
        dst_addr: own,
        next_header: IpProtocol::Tcp,
        payload_len: tcp.buffer_len(),
        hop_limit: 64,
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress([2, 1, from[0], from[1], from[2], from[3]]),
        dst_addr: MACHINE,
        ethertype: EthernetProtocol::Ipv4,
    };
    let mut bytes = vec![0; ethernet.buffer_len() + ip.buffer_len() + tcp.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    ethernet.emit(&mut frame);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet, &ChecksumCapabilities::default());
    let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
    tcp.emit(&mut segment, &source.into(), &own.into(), &ChecksumCapabilities::default());
    bytes
}

/// Neither from networks to which no way leads nor from neighbours that are too many to be remembered: not even a reset can
/// be sent to whoever took the doors.
#[test]
fn who_cannot_be_reached_keeps_nobody_out() {
    for network in [[198, 51, 100], [10, 0, 2]] {
        let mut desk = Desk::new(0);
        desk.run(1, &[]);
        for n in 0..2 * DOORS as u8 {
            let frame = syn_from([network[0], network[1], network[2], 200 + n], 5000, None);
            assert!(!Ears { arbiter: None, service: Some(&mut desk.service) }.offer(&frame));
        }
        desk.run(1, &[]);
        assert!(desk.service.doors.iter().all(|door| door.since.is_some()), "the doors are taken");
        desk.run(6000, &[]);
        let due = desk.service.poll_at(desk.now);
        assert!(due.is_none_or(|at| at > desk.now), "{network:?}: {due:?} is due at {:?}", desk.now);
        desk.clients.push(Client::new(100));
        desk.run(3000, &[STATUS]);
        assert!(desk.clients[0].text().starts_with("HTTP/1.1 200 OK"), "{network:?}: not answered");
        let due = desk.service.poll_at(desk.now);
        assert!(due.is_none_or(|at| at > desk.now), "{network:?}: {due:?} is due at {:?}", desk.now);
    }
}

#[test]
fn what_is_for_the_machine_is_not_the_guests() {
    let mut service = service();
    let mut is_guests = |frame: &[u8]| Ears { arbiter: None, service: Some(&mut service) }.offer(frame);
    let mut datagram = syn_from([10, 0, 2, 100], 5000, None);
    datagram[23] = IpProtocol::Udp.into();
    assert!(!is_guests(&datagram), "UDP to the machine");
    assert!(!is_guests(&syn_from([10, 0, 2, 100], 5000, None)), "HTTP");
    assert!(is_guests(&request_for(Ipv4Addr::new(10, 0, 2, 21), MACHINE, Ipv4Addr::new(10, 0, 2, 100))), "a broadcast");
    datagram[..6].copy_from_slice(&[2, 0, 0, 0, 0, 77]);
    assert!(is_guests(&datagram), "UDP to the guest");
}

/// Smaller segments would take a hundred frames for an answer.
#[test]
fn who_wants_tiny_segments_is_not_heard() {
    let mut service = service();
    for (mss, heard) in [(Some(1), false), (Some(535), false), (Some(536), true), (None, true)] {
        let before = service.station.waiting();
        let frame = syn_from([198, 51, 100, 1], 5000, mss);
        assert!(!Ears { arbiter: None, service: Some(&mut service) }.offer(&frame), "not the guest's");
        assert_eq!(service.station.waiting() > before, heard, "{mss:?}");
    }
    assert_eq!(service.counts.refused, 2);
}

#[test]
fn few_frames_go_out_in_a_turn() {
    let mut service = service();
    for port in 5000..5016 {
        let frame = syn_from([10, 0, 2, 100], port, None);
        Ears { arbiter: None, service: Some(&mut service) }.offer(&frame);
    }
    let mut sent = 0;
    for now in [Time(1), Time(2), Time(3)] {
        service.poll(now, &|| 0, &mut |_| unreachable!("nobody asks"));
        let frames = core::iter::from_fn(|| service.next_frame()).count();
        assert_eq!((frames, service.poll_at(now)), (8, Some(now)));
        sent += frames;
    }
    assert_eq!(sent, 24);
}

#[test]
fn a_refused_question_for_the_head_gets_no_more() {
    let mut desk = Desk::new(3);
    let says: [&[u8]; 3] = [
        b"HEAD /nothing HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\nHEAD /status HTTP/3.0\r\nHost: a\r\n\r\n",
        b"HEAD /status HTTP/1.1\r\n",
    ];
    desk.run(6000, &says);
    for (client, status) in desk.clients.iter().zip(["404", "505", "408"]) {
        let text = client.text();
        assert!(text.split(' ').nth(1) == Some(status) && text.ends_with("\r\n\r\n"), "{text}");
    }
}

proptest! {
    #[test]
    fn any_frame_is_survived(frames in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..120)), 0..40)) {
        let mut service = service();
        for (at, (shaped, mut frame)) in frames.into_iter().enumerate() {
            if shaped && frame.len() >= 34 {
                frame[..6].copy_from_slice(&MACHINE.0);
                frame[12..14].copy_from_slice(&[8, 0]);
                frame[14] = 0x45;
                frame[23] = 6;
                frame[30..34].copy_from_slice(&[10, 0, 2, 21]);
            }
            Ears { arbiter: None, service: Some(&mut service) }.offer(&frame);
            service.poll(Time(at as u64), &|| 0, &mut |_| Response::text(200, ""));
            let _ = service.poll_at(Time(at as u64));
            while service.next_frame().is_some() {}
        }
    }
}
