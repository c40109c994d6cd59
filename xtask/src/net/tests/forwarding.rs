//! Clients of the forwarder and a guest behind it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::guest::{BYE, ECHO, Guest, RESET};
use super::*;
use crate::net::{LinkTarget, Network, desk_address};

const CLIENT: LinkTarget = LinkTarget::Network(Network::Client);

fn start(port: u16) -> (TempDir, Fabric, Guest) {
    let dir = tempfile::tempdir().unwrap();
    let fabric = fabric(&dir, Host::Forwarder(forward_to(port)));
    let guest = Guest::boot(&fabric, 0, port);
    (dir, fabric, guest)
}

pub(super) fn connect(fabric: &Fabric) -> TcpStream {
    let stream = TcpStream::connect(local(fabric, Protocol::Tcp)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

pub(super) fn exchange(stream: &mut TcpStream, message: &[u8]) {
    stream.write_all(message).unwrap();
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, message);
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn open(fabric: &Fabric) -> u64 {
    fabric.stats().unwrap().forward.unwrap().open
}

/// Who asks a machine for itself has a host of its own: one that is dead is in nobody's way.
#[test]
fn a_dead_machine_does_not_hide_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let desk = |slot: usize, guest| {
        let forwards = vec![Forward::new(Protocol::Tcp, 0, ECHO)];
        Some(ForwardConfig { forwards, guest, host: desk_address(slot) })
    };
    let desks = [desk(0, Ipv4Addr::new(10, 0, 2, 99)), desk(1, Ipv4Addr::new(10, 0, 2, 15))];
    let fabric = Fabric::start(FabricConfig { desks, ..config(&dir, Host::Forwarder(forward_to(ECHO))) }).unwrap();
    let _guest = Guest::boot(&fabric, 0, ECHO);
    let mut dead = TcpStream::connect(fabric.desk(0).unwrap()).unwrap();
    dead.write_all(b"nobody").unwrap();
    let mut living = TcpStream::connect(fabric.desk(1).unwrap()).unwrap();
    living.set_read_timeout(Some(PATIENCE)).unwrap();
    exchange(&mut living, b"somebody");
    exchange(&mut connect(&fabric), b"a client");
}

#[test]
fn a_connection_survives_silence_and_takeover() {
    let (_dir, fabric, guest) = start(ECHO);
    let mut stream = connect(&fabric);
    exchange(&mut stream, b"before");
    guest.silent(true);
    stream.write_all(b"during").unwrap();
    // A newcomer meanwhile has to wait, not to fail.
    let mut late = connect(&fabric);
    late.write_all(b"late").unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let back = Instant::now();
    guest.move_to(1);
    guest.silent(false);
    for (stream, expected) in [(&mut stream, b"during".as_slice()), (&mut late, b"late")] {
        let mut answer = vec![0; expected.len()];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, expected);
    }
    // Without the jump at the announcement, the next attempt of the stack is seconds away.
    assert!(back.elapsed() < Duration::from_millis(700), "{:?}", back.elapsed());
    exchange(&mut stream, b"after");
    let stats = fabric.stats().unwrap();
    assert!(stats.networks[0].slots[1].received_frames > 0);
    assert_eq!(stats.forward.unwrap().reset_by_guest, 0);
}

#[test]
fn nobody_announces_but_the_guest_is_back() {
    let (_dir, fabric, guest) = start(ECHO);
    let mut stream = connect(&fabric);
    exchange(&mut stream, b"before");
    guest.silent(true);
    stream.write_all(b"during").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    guest.silent(false);
    let back = Instant::now();
    stream.read_exact(&mut [0; 6]).unwrap();
    assert!(back.elapsed() < Duration::from_millis(1500), "{:?}", back.elapsed());
}

#[test]
fn a_new_guest_elsewhere_is_found_without_an_announcement() {
    let dir = tempfile::tempdir().unwrap();
    let fabric = fabric(&dir, Host::Forwarder(forward_to(ECHO)));
    for slot in [0, 1, 0] {
        let guest = Guest::boot_quietly(&fabric, slot, ECHO);
        exchange(&mut connect(&fabric), b"x");
        drop(guest);
    }
}

#[test]
fn ten_megabytes_survive_loss() {
    const SIZE: usize = 10_000_000;
    let (_dir, fabric, _guest) = start(ECHO);
    let mut stream = connect(&fabric);
    exchange(&mut stream, b"x");
    fabric.set_link(CLIENT, &loss(0.01)).unwrap();
    let mut rng = fastrand::Rng::with_seed(9);
    let data: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(SIZE).collect();
    let mut sender = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            sender.write_all(&data).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        let mut answer = Vec::with_capacity(SIZE);
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer == data, "{} bytes of {SIZE}", answer.len());
    });
    assert!(fabric.stats().unwrap().networks[0].total().dropped.lost > 50);
    wait_until("the connection ends", || open(&fabric) == 0);
}

/// A client ends its direction behind what it sends, and that end may be lost as any other segment.
#[test]
fn ends_survive_loss() {
    const CLIENTS: usize = 48;
    const ROUNDS: usize = 4;
    let (_dir, fabric, _guest) = start(ECHO);
    let data: Vec<u8> = (0..40_000u32).map(|index| index as u8).collect();
    for _ in 0..ROUNDS {
        // The guest's stack may take a repeated SYN for another connection, so that none is lost.
        fabric.set_link(CLIENT, &loss(0.0)).unwrap();
        let mut streams: Vec<_> = (0..CLIENTS).map(|_| connect(&fabric)).collect();
        streams.iter_mut().for_each(|stream| exchange(stream, b"x"));
        fabric.set_link(CLIENT, &loss(0.05)).unwrap();
        std::thread::scope(|scope| {
            for mut stream in streams {
                let (mut sender, data) = (stream.try_clone().unwrap(), &data);
                scope.spawn(move || {
                    sender.write_all(data).unwrap();
                    sender.shutdown(Shutdown::Write).unwrap();
                });
                scope.spawn(move || {
                    let mut answer = Vec::new();
                    stream.read_to_end(&mut answer).unwrap();
                    assert!(&answer == data, "{} bytes", answer.len());
                });
            }
        });
    }
    wait_until("the connections end", || open(&fabric) == 0);
}

#[test]
fn a_client_that_does_not_read_is_waited_for() {
    let (_dir, fabric, _guest) = start(ECHO);
    let (mut stream, mut other) = (connect(&fabric), connect(&fabric));
    // More than all the buffers on both ways hold: writing stops, and nothing piles up in between.
    stream.set_nonblocking(true).unwrap();
    let (mut written, mut last) = (0usize, Instant::now());
    while last.elapsed() < Duration::from_millis(300) {
        match stream.write(&[7; 65_536]) {
            Ok(count) => (written, last) = (written + count, Instant::now()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        assert!(written < 100_000_000, "no back-pressure");
    }
    exchange(&mut other, b"not disturbed");
    stream.set_nonblocking(false).unwrap();
    let mut answer = vec![0; written];
    stream.read_exact(&mut answer).unwrap();
    assert!(answer.iter().all(|&byte| byte == 7));
}

#[test]
fn the_client_ends_first() {
    let (_dir, fabric, _guest) = start(ECHO);
    let mut stream = connect(&fabric);
    stream.write_all(b"last words").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"last words");
    wait_until("the connection ends", || open(&fabric) == 0);
}

#[test]
fn the_guest_ends_first() {
    let (_dir, fabric, guest) = start(BYE);
    let mut stream = connect(&fabric);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"bye");
    for _ in 0..10 {
        stream.write_all(&[1; 1000]).unwrap();
    }
    wait_until("the guest reads on", || guest.bytes_read() == 10_000);
    assert_eq!(open(&fabric), 1);
    drop(stream);
    wait_until("the connection ends", || open(&fabric) == 0);
}

#[test]
fn a_reset_by_the_guest_reaches_the_client() {
    let (_dir, fabric, _guest) = start(RESET);
    let mut stream = connect(&fabric);
    stream.write_all(b"x").unwrap();
    assert_eq!(stream.read(&mut [0; 10]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    wait_until("the reset is counted", || fabric.stats().unwrap().forward.unwrap().reset_by_guest == 1);
}

#[test]
fn a_refused_connection_is_reset() {
    let dir = tempfile::tempdir().unwrap();
    let fabric = fabric(&dir, Host::Forwarder(forward_to(1)));
    let _guest = Guest::boot(&fabric, 0, ECHO);
    let mut stream = connect(&fabric);
    assert_eq!(stream.read(&mut [0; 10]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_reset_by_the_client_reaches_the_guest() {
    let (_dir, fabric, _guest) = start(ECHO);
    // More often than the guest has sockets: each one has to come free.
    for _ in 0..200 {
        let mut stream = connect(&fabric);
        exchange(&mut stream, b"x");
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&stream, sockopt::Linger, &linger).unwrap();
    }
    wait_until("all are reset", || fabric.stats().unwrap().forward.unwrap().reset_by_client == 200);
    exchange(&mut connect(&fabric), b"x");
}

#[test]
fn many_connections_at_a_time() {
    let (_dir, fabric, _guest) = start(ECHO);
    std::thread::scope(|scope| {
        for client in 0..64u8 {
            let fabric = &fabric;
            scope.spawn(move || {
                let mut stream = connect(fabric);
                for round in 0..20u8 {
                    exchange(&mut stream, &[client ^ round; 3000]);
                }
            });
        }
    });
    wait_until("all end", || open(&fabric) == 0);
    assert_eq!(fabric.stats().unwrap().forward.unwrap().accepted, 64);
}

#[test]
fn more_than_fit_take_turns() {
    let (_dir, fabric, _guest) = start(ECHO);
    let mut streams: Vec<_> = (0..140).map(|_| connect(&fabric)).collect();
    exchange(&mut streams[0], b"x");
    wait_until("128 are open", || open(&fabric) == 128);
    streams.drain(..20);
    for stream in &mut streams {
        exchange(stream, b"x");
    }
    assert_eq!(open(&fabric), 120);
}

#[test]
fn many_short_connections() {
    let (_dir, fabric, _guest) = start(ECHO);
    for number in 0..1000u32 {
        exchange(&mut connect(&fabric), &number.to_be_bytes());
    }
    wait_until("all end", || open(&fabric) == 0);
}

#[test]
fn datagrams_find_their_way_back() {
    let (_dir, fabric, _guest) = start(ECHO);
    let to = local(&fabric, Protocol::Udp);
    let clients: Vec<_> = (0..100).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for (number, client) in clients.iter().enumerate() {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.send_to(&[number as u8; 1472], to).unwrap();
        let mut answer = [0; 2000];
        let (length, from) = client.recv_from(&mut answer).unwrap();
        assert_eq!((length, from), (1472, to));
        assert!(answer[..length].iter().all(|&byte| byte == number as u8));
    }
    clients[0].send_to(&[0; 1473], to).unwrap();
    wait_until("it is dropped", || fabric.stats().unwrap().forward.unwrap().udp_dropped == 1);
}

#[test]
fn a_port_in_use_is_reported() {
    let (_dir, fabric, _guest) = start(ECHO);
    let dir = tempfile::tempdir().unwrap();
    let forwards = vec![Forward::new(Protocol::Tcp, local(&fabric, Protocol::Tcp).port(), ECHO)];
    let taken = ForwardConfig { forwards, guest: Ipv4Addr::new(10, 0, 2, 15), host: HOST_ADDRESS };
    let error = Fabric::start(config(&dir, Host::Forwarder(taken))).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("another rig") && text.contains("in use"), "{text}");
}

#[test]
fn several_ports_lead_to_as_many_services() {
    let dir = tempfile::tempdir().unwrap();
    let forwards = [(Protocol::Tcp, 9), (Protocol::Udp, 9), (Protocol::Tcp, ECHO), (Protocol::Udp, UDP_ECHO)];
    let forwards = forwards.map(|(protocol, port)| Forward::new(protocol, 0, port)).to_vec();
    let fabric = fabric(
        &dir,
        Host::Forwarder(ForwardConfig { forwards, guest: Ipv4Addr::new(10, 0, 2, 15), host: HOST_ADDRESS }),
    );
    let _guest = Guest::boot(&fabric, 0, ECHO);
    let local = |index: usize| fabric.forwards()[index].local;
    let mut stream = TcpStream::connect(local(2)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    exchange(&mut stream, b"hello");
    // Nobody listens at the guest's other port.
    let mut refused = TcpStream::connect(local(0)).unwrap();
    refused.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(refused.read(&mut [0; 1]), Ok(0) | Err(_)));
    let clients = [1, 3].map(|index| {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.send_to(b"hello", local(index)).unwrap();
        client
    });
    let mut answer = [0; 9];
    assert_eq!(clients[1].recv_from(&mut answer).unwrap(), (5, local(3).into()));
    clients[0].set_nonblocking(true).unwrap();
    assert!(clients[0].recv_from(&mut answer).is_err());
}
