//! A fake guest: a smoltcp host at 10.0.2.15 that can fall silent, move from one machine to the other with its
//! connections, and come back.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

use crate::net::frame::{MAX_FRAME, MAX_UNTAGGED};
use crate::net::{Fabric, Network, SLOTS};

pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0x0f];
/// Sends back what it gets, and ends when the client ends.
pub const ECHO: u16 = 6379;
/// Resets the connection at the first byte.
pub const RESET: u16 = 6380;
/// Says `bye`, ends its direction, and then reads until the client ends.
pub const BYE: u16 = 6381;
/// Sends back datagrams.
pub const UDP_ECHO: u16 = 7;

const LISTENERS: usize = 160;

/// Controls of a running guest; it ends when this is dropped.
pub struct Guest {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Control {
    slot: AtomicUsize,
    announce: AtomicBool,
    silent: AtomicBool,
    stop: AtomicBool,
    read: AtomicUsize,
}

impl Guest {
    /// Boots on a slot with sockets that serve `port`.
    pub fn boot(fabric: &Fabric, slot: usize, port: u16) -> Self {
        let guest = Self::start((0..SLOTS).map(|slot| Wire::open(fabric, Network::Client, slot)).collect(), port);
        guest.move_to(slot);
        guest
    }

    /// Boots on one machine, which dies with it, without a word to anybody.
    pub fn boot_quietly(fabric: &Fabric, slot: usize, port: u16) -> Self {
        Self::start(vec![Wire::open(fabric, Network::Client, slot)], port)
    }

    fn start(machines: Vec<Wire>, port: u16) -> Self {
        let control = Arc::new(Control::default());
        let thread = std::thread::spawn({
            let control = control.clone();
            move || serve(machines, port, &control)
        });
        Self { control, thread: Some(thread) }
    }

    /// Loses all frames from now on, or wakes up.
    pub fn silent(&self, silent: bool) {
        self.control.silent.store(silent, Ordering::SeqCst);
    }

    /// Continues on another machine and announces itself there.
    pub fn move_to(&self, slot: usize) {
        self.control.slot.store(slot, Ordering::SeqCst);
        self.control.announce.store(true, Ordering::SeqCst);
    }

    /// Bytes that [`BYE`] has read.
    pub fn bytes_read(&self) -> usize {
        self.control.read.load(Ordering::SeqCst)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.control.stop.store(true, Ordering::SeqCst);
        let result = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            result.unwrap();
        }
    }
}

/// A machine's end of a port.
pub(super) struct Wire {
    socket: UnixDatagram,
    remote: std::path::PathBuf,
}

impl Wire {
    pub(super) fn open(fabric: &Fabric, network: Network, slot: usize) -> Self {
        let paths = super::paths(fabric, network, slot);
        let _ = std::fs::remove_file(&paths.local);
        let socket = UnixDatagram::bind(&paths.local).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        Self { socket, remote: paths.remote.clone() }
    }
}

impl Device for Wire {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(RxToken, TxToken<'_>)> {
        let mut buffer = vec![0; MAX_FRAME];
        match self.socket.recv(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                // Only the first frame is waited for.
                self.socket.set_nonblocking(true).unwrap();
                Some((RxToken(buffer), TxToken(self)))
            }
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted), "{error}");
                None
            }
        }
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<TxToken<'_>> {
        Some(TxToken(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_UNTAGGED;
        capabilities
    }
}

pub(super) struct RxToken(Vec<u8>);

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

pub(super) struct TxToken<'a>(&'a Wire);

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut frame = vec![0; length];
        let result = write(&mut frame);
        send(self.0, &frame);
        result
    }
}

/// Sends a frame as an emulator does: it waits for room, and does not mind if the switch is gone.
fn send(wire: &Wire, frame: &[u8]) {
    while let Err(error) = wire.socket.send_to(frame, &wire.remote)
        && error.kind() == ErrorKind::WouldBlock
    {
        std::thread::yield_now();
    }
}

/// Five times as fast as real time, so that the guest's own retransmissions do not make the tests long.
fn clock(start: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros((start.elapsed() * 5).as_micros() as i64)
}

fn serve(mut machines: Vec<Wire>, port: u16, control: &Control) {
    let start = Instant::now();
    let mut interface = Interface::new(Config::new(EthernetAddress(MAC).into()), &mut machines[0], clock(start));
    let address = IpAddress::Ipv4(Ipv4Addr::new(10, 0, 2, 15));
    interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(address, 24)).unwrap());
    let mut sockets = SocketSet::new(Vec::new());
    for _ in 0..LISTENERS {
        let buffer = || tcp::SocketBuffer::new(vec![0; 32 << 10]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.listen(port).unwrap();
        sockets.add(socket);
    }
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 16 << 10]);
    let mut datagrams = udp::Socket::new(buffer(), buffer());
    datagrams.bind(UDP_ECHO).unwrap();
    sockets.add(datagrams);
    while !control.stop.load(Ordering::SeqCst) {
        let wire = &mut machines[control.slot.load(Ordering::SeqCst)];
        if control.silent.load(Ordering::SeqCst) {
            wire.socket.set_nonblocking(false).unwrap();
            let _ = wire.socket.recv(&mut [0; MAX_FRAME]);
            continue;
        }
        if control.announce.swap(false, Ordering::SeqCst) {
            send(wire, &announcement());
        }
        wire.socket.set_nonblocking(false).unwrap();
        interface.poll(clock(start), wire, &mut sockets);
        for (_, socket) in sockets.iter_mut() {
            match socket {
                smoltcp::socket::Socket::Tcp(socket) => converse(socket, port, control),
                smoltcp::socket::Socket::Udp(socket) => {
                    while let Ok((data, from)) = socket.recv().map(|(data, from)| (data.to_owned(), from)) {
                        socket.send_slice(&data, from.endpoint).unwrap();
                    }
                }
            }
        }
        // What that produced leaves now; the next poll would wait for a frame first.
        wire.socket.set_nonblocking(true).unwrap();
        interface.poll_egress(clock(start), wire, &mut sockets);
    }
}

fn converse(socket: &mut tcp::Socket<'_>, port: u16, control: &Control) {
    if !socket.is_open() {
        socket.listen(port).unwrap();
    }
    match port {
        ECHO => {
            while socket.can_recv() && socket.can_send() {
                let room = socket.send_capacity() - socket.send_queue();
                let data = socket
                    .recv(|data| {
                        let length = data.len().min(room);
                        (length, data[..length].to_owned())
                    })
                    .unwrap();
                assert_eq!(socket.send_slice(&data).unwrap(), data.len());
            }
            if socket.state() == tcp::State::CloseWait && !socket.can_recv() {
                socket.close();
            }
        }
        RESET => {
            if socket.can_recv() {
                socket.abort();
            }
        }
        BYE => {
            if socket.state() == tcp::State::Established {
                socket.send_slice(b"bye").unwrap();
                socket.close();
            }
            while socket.can_recv() {
                let count = socket.recv(|data| (data.len(), data.len())).unwrap();
                control.read.fetch_add(count, Ordering::SeqCst);
            }
        }
        _ => unreachable!("no such service"),
    }
}

/// A gratuitous ARP request, padded as on a wire.
fn announcement() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(MAC);
    frame.extend([10, 0, 2, 15]);
    frame.extend([0; 6]);
    frame.extend([10, 0, 2, 15]);
    frame.resize(60, 0);
    frame
}
