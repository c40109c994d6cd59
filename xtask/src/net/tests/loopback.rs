//! Machines attached by UDP, as Bochs does it.

use std::net::UdpSocket;

use super::*;

struct Machine {
    socket: UdpSocket,
    switch: u16,
    mac: [u8; 6],
}

impl Machine {
    fn start(fabric: &Fabric, slot: usize) -> Self {
        let Plug::Udp(ports) = fabric.port(Network::Log, slot) else { panic!("no UDP port") };
        let [port] = ports[..] else { panic!("one NIC, {ports:?}") };
        let socket = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, switch: port + 1, mac: [2, 0, 0, 0, 0, slot as u8] }
    }

    fn send(&self, to: [u8; 6], payload: &[u8]) {
        let frame = [&to[..], &self.mac, &[0x88, 0xb5], payload].concat();
        self.socket.send_to(&frame, ("127.0.0.1", self.switch)).unwrap();
    }

    fn payload(&self) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let length = self.socket.recv(&mut buffer).unwrap();
        buffer[14..length].to_owned()
    }
}

fn rig() -> (TempDir, Fabric) {
    let dir = tempfile::tempdir().unwrap();
    let fabric = Fabric::start(FabricConfig { transport: Transport::Loopback, ..config(&dir, Host::None) }).unwrap();
    (dir, fabric)
}

#[test]
fn frames_cross_both_ways_in_two_rigs_at_once() {
    let rigs = [rig(), rig()];
    let pairs = rigs.each_ref().map(|(_, fabric)| (Machine::start(fabric, 0), Machine::start(fabric, 1)));
    for number in 0..100u32 {
        for (a, b) in &pairs {
            a.send(b.mac, &number.to_be_bytes());
            assert_eq!(b.payload(), number.to_be_bytes());
            b.send([0xff; 6], &[number as u8; 1504]);
            assert_eq!(a.payload(), [number as u8; 1504]);
        }
    }
    for (_, fabric) in &rigs {
        let total = fabric.stats().unwrap().networks[1].total();
        assert_eq!((total.sent_frames, total.dropped.total()), (200, 0));
    }
}

#[test]
fn a_burst_waits_for_a_machine_that_takes_a_frame_in_a_millisecond() {
    let (_dir, fabric) = rig();
    let (a, b) = (Machine::start(&fabric, 0), Machine::start(&fabric, 1));
    // A TCP window of 256 KiB, and more.
    for number in 0..400u32 {
        a.send(b.mac, &[&number.to_be_bytes()[..], &[0; 1400]].concat());
        // Not more at a time than the switch's own socket holds.
        if number % 32 == 0 {
            let deadline = std::time::Instant::now() + PATIENCE;
            while fabric.stats().unwrap().networks[1].slots[0].sent_frames <= u64::from(number) {
                assert!(std::time::Instant::now() < deadline);
            }
        }
    }
    for number in 0..400u32 {
        assert_eq!(b.payload()[..4], number.to_be_bytes());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_machine_may_go_and_come_back() {
    let (_dir, fabric) = rig();
    let (a, b) = (Machine::start(&fabric, 0), Machine::start(&fabric, 1));
    a.send(b.mac, b"1");
    assert_eq!(b.payload(), b"1");
    let mac = b.mac;
    drop(b);
    let deadline = std::time::Instant::now() + PATIENCE;
    while fabric.stats().unwrap().networks[1].slots[1].dropped.absent == 0 {
        assert!(std::time::Instant::now() < deadline);
        a.send(mac, b"2");
    }
    let b = Machine::start(&fabric, 1);
    // Whatever of these is still under way comes before.
    b.send(a.mac, b"3");
    assert_eq!(a.payload(), b"3");
    std::thread::sleep(Duration::from_millis(5));
    a.send(mac, b"4");
    while b.payload() != b"4" {}
}
