//! Machines on the log network: the switch, its links, its ports.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::net::stats::Drops;
use crate::net::{CaptureConfig, LinkSettings, LinkTarget};

const LOG: LinkTarget = LinkTarget::Network(Network::Log);

struct Machine {
    socket: UnixDatagram,
    paths: PortPaths,
    mac: [u8; 6],
}

impl Machine {
    fn start(fabric: &Fabric, slot: usize) -> Self {
        let paths = paths(fabric, Network::Log, slot);
        // As QEMU does, which removes a socket that was left behind.
        let _ = std::fs::remove_file(&paths.local);
        let socket = UnixDatagram::bind(&paths.local).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, paths, mac: [2, 0, 0, 0, 0, slot as u8] }
    }

    fn frame(&self, to: [u8; 6], payload: &[u8]) -> Vec<u8> {
        [&to[..], &self.mac, &[0x88, 0xb5], payload].concat()
    }

    fn send_raw(&self, bytes: &[u8]) {
        self.socket.send_to(bytes, &self.paths.remote).unwrap();
    }

    fn send(&self, to: [u8; 6], payload: &[u8]) {
        self.send_raw(&self.frame(to, payload));
    }

    fn payload(&self) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let length = self.socket.recv(&mut buffer).unwrap();
        buffer[14..length].to_owned()
    }

    fn assert_silence(&self) {
        self.socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let error = self.socket.recv(&mut [0; 2048]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
}

fn dropped(fabric: &Fabric, slot: usize) -> Drops {
    fabric.stats().unwrap().networks[1].slots[slot].dropped
}

fn pair(fabric: &Fabric) -> (Machine, Machine) {
    (Machine::start(fabric, 0), Machine::start(fabric, 1))
}

#[test]
fn frames_cross_in_order_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let fabric = fabric(&dir, Host::None);
    let (a, b) = pair(&fabric);
    for number in 0..1000u32 {
        a.send(b.mac, &number.to_be_bytes());
        assert_eq!(b.payload(), number.to_be_bytes());
    }
    // As long as a tagged frame of full size.
    b.send([0xff; 6], &[7; 1504]);
    assert_eq!(a.payload(), [7; 1504]);
    let stats = fabric.stats().unwrap();
    let [first, second] = stats.networks[1].slots;
    assert_eq!((first.sent_frames, first.sent_bytes), (1000, 18_000));
    assert_eq!((second.received_frames, second.received_bytes), (1000, 18_000));
    assert_eq!((second.sent_frames, first.received_bytes), (1, 1518));
    assert_eq!(stats.networks[1].total().dropped, Drops::default());
    assert_eq!(stats.networks[0].total().sent_frames, 0);
}

#[test]
fn malformed_frames_are_refused_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let fabric = fabric(&dir, Host::None);
    let (a, b) = pair(&fabric);
    for length in [0, 1, 13, 1519, 4096, 60_000] {
        a.send_raw(&vec![0xff; length]);
    }
    a.send(b.mac, b"good");
    assert_eq!(b.payload(), b"good");
    assert_eq!(dropped(&fabric, 0), Drops { malformed: 6, ..Drops::default() });
}

#[test]
fn an_absent_machine_costs_only_its_frames_and_may_return() {
    let dir = tempfile::tempdir().unwrap();
    let fabric = fabric(&dir, Host::None);
    let (a, b) = pair(&fabric);
    a.send(b.mac, b"1");
    assert_eq!(b.payload(), b"1");
    let (mac, stale) = (b.mac, b.paths.local.clone());
    // Killed: its socket file stays.
    drop(b);
    assert!(stale.exists());
    a.send(mac, b"2");
    let deadline = Instant::now() + PATIENCE;
    while dropped(&fabric, 1).absent == 0 {
        assert!(Instant::now() < deadline);
    }
    let b = Machine::start(&fabric, 1);
    b.send(a.mac, b"3");
    assert_eq!(a.payload(), b"3");
    std::thread::sleep(Duration::from_millis(5));
    a.send(mac, b"4");
    assert_eq!(b.payload(), b"4");
}

#[test]
fn a_delay_is_exact_and_one_way() {
    let dir = tempfile::tempdir().unwrap();
    let fabric = fabric(&dir, Host::None);
    let (a, b) = pair(&fabric);
    fabric.set_link(LOG, &delay(5)).unwrap();
    let mut shortest = Duration::MAX;
    for number in 0..40u32 {
        let (from, to) = if number % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let sent = Instant::now();
        from.send(to.mac, &number.to_be_bytes());
        assert_eq!(to.payload(), number.to_be_bytes());
        let took = sent.elapsed();
        assert!(took >= Duration::from_millis(5), "{took:?}");
        shortest = shortest.min(took);
    }
    // Longer than it should be only as far as the desk is busy.
    assert!(shortest < Duration::from_millis(50), "{shortest:?}");
}

#[test]
fn a_cable_adds_to_the_network_and_can_be_cut_alone() {
    let dir = tempfile::tempdir().unwrap();
    let fabric = fabric(&dir, Host::None);
    let (a, b) = pair(&fabric);
    let cable = LinkTarget::Slot(Network::Log, 1);
    fabric.set_link(LOG, &delay(10)).unwrap();
    fabric.set_link(cable, &delay(10)).unwrap();
    let sent = Instant::now();
    a.send(b.mac, b"both");
    assert_eq!(b.payload(), b"both");
    assert!(sent.elapsed() >= Duration::from_millis(20));
    a.send(b.mac, b"under way");
    fabric.set_link(cable, &up(false)).unwrap();
    b.send(a.mac, b"cut");
    b.assert_silence();
    a.assert_silence();
    assert_eq!(dropped(&fabric, 1), Drops { down: 2, ..Drops::default() });
    fabric.set_link(cable, &up(true)).unwrap();
    b.send(a.mac, b"back");
    assert_eq!(a.payload(), b"back");
    let settings: Vec<LinkSettings> = fabric.links().unwrap().iter().map(|link| link.settings).collect();
    let slow = LinkSettings { delay: Duration::from_millis(10), ..LinkSettings::default() };
    let clean = LinkSettings::default();
    assert_eq!(settings, [clean, clean, clean, slow, clean, slow]);
    assert!(fabric.set_link(LinkTarget::Slot(Network::Log, 2), &up(true)).is_err());
    assert!(fabric.set_link(LOG, &loss(2.0)).is_err());
}

/// The numbers that arrive when 300 frames cross a bad link.
fn survivors(seed: u64, change: &LinkChange) -> Vec<u32> {
    let dir = tempfile::tempdir().unwrap();
    let fabric = Fabric::start(FabricConfig { seed, ..config(&dir, Host::None) }).unwrap();
    let (a, b) = pair(&fabric);
    fabric.set_link(LOG, change).unwrap();
    for number in 0..300u32 {
        a.send(b.mac, &number.to_be_bytes());
    }
    let deadline = Instant::now() + PATIENCE;
    while fabric.stats().unwrap().networks[1].slots[0].sent_frames < 300 {
        assert!(Instant::now() < deadline);
    }
    fabric.set_link(LOG, &LinkChange { loss: Some(0.0), duplicate: Some(0.0), ..LinkChange::default() }).unwrap();
    a.send(b.mac, &u32::MAX.to_be_bytes());
    std::iter::from_fn(|| {
        let number = u32::from_be_bytes(b.payload().try_into().unwrap());
        (number != u32::MAX).then_some(number)
    })
    .collect()
}

#[test]
fn a_seed_decides_which_frames_are_lost_and_doubled() {
    let change = LinkChange { loss: Some(0.2), duplicate: Some(0.1), ..LinkChange::default() };
    let first = survivors(5, &change);
    assert_eq!(first, survivors(5, &change));
    assert_ne!(first, survivors(6, &change));
    assert!(first.is_sorted());
    let doubled = first.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert!((5..60).contains(&doubled), "{doubled}");
    assert!((200..290).contains(&(first.len() - doubled)), "{}", first.len() - doubled);
}

fn records(path: &Path) -> usize {
    let bytes = std::fs::read(path).unwrap();
    let (mut at, mut count) = (24, 0);
    while at < bytes.len() {
        at += 16 + u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
        count += 1;
    }
    assert_eq!(at, bytes.len());
    count
}

#[test]
fn captures_start_and_end_at_will() {
    let dir = tempfile::tempdir().unwrap();
    let fabric = fabric(&dir, Host::None);
    let (a, b) = pair(&fabric);
    let exchange = || {
        a.send(b.mac, b"x");
        b.payload();
    };
    exchange();
    fabric.set_capture(Some(CaptureConfig::new(dir.path()))).unwrap();
    exchange();
    exchange();
    fabric.set_capture(None).unwrap();
    exchange();
    assert_eq!(records(&dir.path().join("log.pcap")), 2);
    assert_eq!(records(&dir.path().join("client.pcap")), 0);
    assert!(fabric.set_capture(Some(CaptureConfig::new(dir.path().join("absent")))).is_err());
    exchange();
}

#[test]
fn a_directory_belongs_to_one_fabric_and_is_left_clean() {
    let dir = tempfile::tempdir().unwrap();
    let first = fabric(&dir, Host::None);
    let error = Fabric::start(config(&dir, Host::None)).unwrap_err();
    assert!(format!("{error:#}").contains("another rig"), "{error:#}");
    // The failed attempt has not disturbed the first.
    let (a, b) = pair(&first);
    a.send(b.mac, b"x");
    assert_eq!(b.payload(), b"x");
    first.stop().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
