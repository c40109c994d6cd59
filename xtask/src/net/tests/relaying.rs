//! Machines that ask the arbiter over both networks.

use std::time::Instant;

use pollux_ft::arbiter::{Answer, Ask, Question, Try, Winner};
use pollux_ft::{NodeId, Term};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

use super::guest::Wire;
use super::*;
use crate::net::{LinkTarget, Network, arbiter_address};
use pollux_arbiter::{Service, Words};

/// Long enough for an answer that will come, short for one that will not.
const MOMENT: Duration = Duration::from_millis(400);

struct Desk {
    dir: TempDir,
    fabric: Fabric,
    service: Service,
}

fn desk() -> Desk {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start("127.0.0.1:0".parse().unwrap(), &dir.path().join("arbiter.log"), Words::Etcd).unwrap();
    let config = FabricConfig { arbiter: Some([service.address(); 2]), ..config(&dir, Host::None) };
    Desk { fabric: Fabric::start(config).unwrap(), dir, service }
}

/// A machine that is on one network only and makes one try.
fn ask(fabric: &Fabric, network: Network, slot: usize, question: &Question, patience: Duration) -> Option<Answer> {
    let mut wire = Wire::open(fabric, network, slot);
    let start = Instant::now();
    let now = || smoltcp::time::Instant::from_micros(start.elapsed().as_micros() as i64);
    let server = arbiter_address(network);
    let [a, b, c, _] = server.ip().octets();
    let own = 21 + slot as u8;
    let mut interface = Interface::new(Config::new(EthernetAddress([2, 0, 0, b, c, own]).into()), &mut wire, now());
    interface.update_ip_addrs(|list| list.push(IpCidr::new(IpAddress::v4(a, b, c, own), 24)).unwrap());
    let mut sockets = SocketSet::new(Vec::new());
    let buffer = || SocketBuffer::new(vec![0; 2048]);
    let handle = sockets.add(Socket::new(buffer(), buffer()));
    let port = fastrand::u16(50_000..60_000);
    let socket = sockets.get_mut::<Socket<'_>>(handle);
    socket.connect(interface.context(), (IpAddress::Ipv4(*server.ip()), server.port()), port).unwrap();
    let (mut attempt, mut unsent) = (Try::default(), question.request(&server.to_string()));
    let mut answer = None;
    while answer.is_none() && start.elapsed() < patience {
        interface.poll(now(), &mut wire, &mut sockets);
        let socket = sockets.get_mut::<Socket<'_>>(handle);
        if socket.can_send() {
            unsent.drain(..socket.send_slice(&unsent).unwrap());
        }
        while socket.can_recv() {
            let received = |bytes: &mut [u8]| (bytes.len(), attempt.receive(question, bytes).unwrap());
            answer = answer.or(socket.recv(received).unwrap());
        }
        if !socket.is_open() {
            break;
        }
    }
    sockets.get_mut::<Socket<'_>>(handle).abort();
    interface.poll(now(), &mut wire, &mut sockets);
    answer
}

fn question(term: u64, node: u64) -> Question {
    Question::new("pair", Term(term), NodeId(node), "machine")
}

fn taken_by(node: u64) -> Option<Answer> {
    Some(Answer::Taken { by: Winner { node: Some(NodeId(node)), machine: "machine".into() } })
}

#[test]
fn the_arbiter_is_reached_over_both_networks() {
    let Desk { fabric, service, .. } = &desk();
    assert_eq!(ask(fabric, Network::Log, 0, &question(1, 0xA), PATIENCE), Some(Answer::Granted));
    assert_eq!(ask(fabric, Network::Client, 0, &question(1, 0xA), PATIENCE), Some(Answer::Granted));
    assert_eq!(ask(fabric, Network::Client, 1, &question(1, 0xB), PATIENCE), taken_by(0xA));
    assert_eq!(ask(fabric, Network::Log, 1, &question(2, 0xB), PATIENCE), Some(Answer::Granted));
    assert_eq!(service.requests(), 4);
    assert_eq!(service.newest("pair").unwrap().term, 2);
    let stats = fabric.stats().unwrap();
    assert_eq!(stats.relay.unwrap().accepted, 4);
    assert!(stats.networks.iter().all(|network| network.arbiter.sent_frames > 0));
}

/// Far more connections than there are places for at a time.
#[test]
fn places_are_used_again() {
    let Desk { fabric, .. } = &desk();
    for term in 1..30 {
        assert_eq!(ask(fabric, Network::Log, 0, &question(term, 0xA), PATIENCE), Some(Answer::Granted), "{term}");
    }
}

#[test]
fn the_arbiter_can_be_cut_off_and_mended() {
    let Desk { fabric, .. } = &desk();
    fabric.set_link(LinkTarget::Arbiter, &up(false)).unwrap();
    for network in Network::ALL {
        assert_eq!(ask(fabric, network, 0, &question(1, 0xA), MOMENT), None);
    }
    fabric.set_link(LinkTarget::Arbiter, &up(true)).unwrap();
    // The cable of one machine on one network.
    fabric.set_link(LinkTarget::Slot(Network::Log, 0), &up(false)).unwrap();
    assert_eq!(ask(fabric, Network::Log, 0, &question(1, 0xA), MOMENT), None);
    assert_eq!(ask(fabric, Network::Client, 0, &question(1, 0xA), PATIENCE), Some(Answer::Granted));
    assert_eq!(ask(fabric, Network::Log, 1, &question(1, 0xB), PATIENCE), taken_by(0xA));
    fabric.set_link(LinkTarget::Arbiter, &delay(30)).unwrap();
    let start = Instant::now();
    assert_eq!(ask(fabric, Network::Client, 0, &question(2, 0xA), PATIENCE), Some(Answer::Granted));
    // Two round trips at least: for the address or the connection, and for the question.
    assert!(start.elapsed() >= Duration::from_millis(120), "{:?}", start.elapsed());
}

#[test]
fn a_dead_arbiter_gives_no_answer_and_a_new_one_does() {
    let Desk { dir, fabric, service } = desk();
    let address = service.address();
    drop(service);
    assert_eq!(ask(&fabric, Network::Client, 0, &question(1, 0xA), MOMENT), None);
    assert!(fabric.stats().unwrap().relay.unwrap().failed > 0);
    let _service = Service::start(address, &dir.path().join("arbiter.log"), Words::Etcd).unwrap();
    assert_eq!(ask(&fabric, Network::Client, 0, &question(1, 0xA), PATIENCE), Some(Answer::Granted));
}

#[test]
fn without_an_arbiter_there_is_no_cable_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let fabric = fabric(&dir, Host::None);
    assert!(fabric.set_link(LinkTarget::Arbiter, &up(false)).is_err());
    assert_eq!(fabric.links().unwrap().len(), 6);
    assert_eq!(ask(&fabric, Network::Client, 0, &question(1, 0xA), MOMENT), None);
}
