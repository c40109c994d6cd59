//! Bochs' network module `socket`: it takes frames at a UDP port of the loopback interface and sends them from there to
//! the port after it, where the switch is.
//!
//! UDP neither tells a sender that the receiver's socket is full nor makes it wait, and Bochs takes one frame in an
//! emulated millisecond only. So the kernel is asked how full that socket is.
//! See: Bochs, `iodev/network/eth_socket.cc`; proc(5), `/proc/net/udp`.

use std::io::{ErrorKind, Result as IoResult};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};

use super::{Carrier, RETRY};

/// Where pairs of ports are looked for: below the ports that Linux gives to those who ask for any.
const FIRST: u16 = 20_000;
/// Pairs in that range.
const PAIRS: u16 = 6_000;
/// Frames sent between two looks at the emulator's socket.
const UNSEEN: usize = 16;
/// Bytes of memory in the emulator's socket beyond which nothing more is sent. The kernel's default limit is 208 KiB, and
/// a full frame takes 2304 bytes, [`UNSEEN`] of them 36 KiB.
const FULL: u64 = 96 << 10;
/// How often a full socket is looked at: as often as Bochs takes a frame.
const PAUSE: Duration = Duration::from_millis(1);

/// The switch's end of a pair of ports.
#[derive(Debug)]
pub struct UdpCarrier {
    socket: UdpSocket,
    emulator: u16,
    /// Frames sent since the emulator's socket was last looked at.
    unseen: usize,
    /// Not before then it is looked at again, or a machine that is absent is tried again.
    retry_at: Duration,
    absent: bool,
}

impl UdpCarrier {
    /// Takes a free pair of ports. Having the second one is the claim to the first, which the emulator binds.
    pub fn bind(registry: &Registry, token: Token) -> Result<Self> {
        // Every port begins where the last one ended, and every process somewhere else.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let offset = (std::process::id() % u32::from(PAIRS)) as u16 * 7;
        for _ in 0..PAIRS {
            let pair = offset.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PAIRS;
            if let Some(socket) = take(FIRST + 2 * pair) {
                return Self::new(socket, FIRST + 2 * pair, registry, token);
            }
        }
        bail!("no two free UDP ports from {FIRST} to {}", FIRST + 2 * PAIRS - 1)
    }

    fn new(socket: std::net::UdpSocket, emulator: u16, registry: &Registry, token: Token) -> Result<Self> {
        ensure!(Path::new(TABLE).exists(), "{TABLE} is needed for Bochs' networks");
        // Frames of the emulator only. Connected, we also hear when nobody is bound there.
        socket.connect(address(emulator)).context("cannot connect a socket")?;
        socket.set_nonblocking(true)?;
        let mut socket = UdpSocket::from_std(socket);
        registry.register(&mut socket, token, Interest::READABLE).context("cannot poll a socket")?;
        Ok(Self { socket, emulator, unseen: UNSEEN, retry_at: Duration::ZERO, absent: false })
    }

    /// The emulator's port; the switch's is the next one.
    pub fn emulator(&self) -> u16 {
        self.emulator
    }

    fn lose(&mut self, now: Duration) -> std::io::Error {
        (self.absent, self.retry_at) = (true, now + RETRY);
        ErrorKind::NotConnected.into()
    }
}

impl Carrier for UdpCarrier {
    fn receive(&mut self, buffer: &mut [u8]) -> IoResult<usize> {
        loop {
            match self.socket.recv(buffer) {
                // What we sent earlier reached nobody. Frames may be behind that in the socket.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => self.unseen = UNSEEN,
                other => return other,
            }
        }
    }

    fn send(&mut self, frame: &[u8], now: Duration) -> IoResult<()> {
        if now < self.retry_at {
            return Err(if self.absent { ErrorKind::NotConnected } else { ErrorKind::WouldBlock }.into());
        }
        if self.unseen >= UNSEEN {
            match queued(&std::fs::read_to_string(TABLE)?, self.emulator) {
                None => return Err(self.lose(now)),
                Some(bytes) if bytes > FULL => {
                    (self.absent, self.retry_at) = (false, now + PAUSE);
                    return Err(ErrorKind::WouldBlock.into());
                }
                Some(_) => (self.absent, self.unseen) = (false, 0),
            }
        }
        match self.socket.send(frame) {
            Ok(_) => {
                self.unseen += 1;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.retry_at = now + PAUSE;
                Err(error)
            }
            Err(_) => {
                self.unseen = UNSEEN;
                Err(self.lose(now))
            }
        }
    }

    /// There is no event: [`ready_at`](Carrier::ready_at) says when.
    fn watch(&mut self, _: Duration, _: &Registry) {}

    fn unwatch(&mut self, _: &Registry) {}

    fn ready_at(&self) -> Option<Duration> {
        Some(self.retry_at)
    }
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// The port after `emulator`, if both are free.
fn take(emulator: u16) -> Option<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(address(emulator + 1)).ok()?;
    std::net::UdpSocket::bind(address(emulator)).ok().map(|_| socket)
}

/// The kernel's list of UDP sockets.
const TABLE: &str = "/proc/net/udp";

/// Bytes of memory that wait in the socket bound to `port` of the loopback interface, or of all interfaces as Bochs does;
/// none if there is no such socket.
fn queued(table: &str, port: u16) -> Option<u64> {
    // As numbers in the byte order of the network, read in ours.
    let local = [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED]
        .map(|address| format!("{:08X}:{port:04X}", u32::from_ne_bytes(address.octets())));
    table.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let address = fields.next()?;
        let own = local.iter().any(|local| local == address);
        let queues = fields.nth(2)?;
        own.then(|| u64::from_str_radix(queues.split_once(':')?.1, 16).ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carrier() -> (mio::Poll, UdpCarrier) {
        let poll = mio::Poll::new().unwrap();
        let carrier = UdpCarrier::bind(poll.registry(), Token(0)).unwrap();
        (poll, carrier)
    }

    /// Bochs binds the port of all interfaces.
    fn machine(carrier: &UdpCarrier) -> std::net::UdpSocket {
        std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, carrier.emulator())).unwrap()
    }

    #[test]
    fn the_kernels_list_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
                     11845: 0100007F:5BA1 0100007F:5BA0 01 00000000:00000000 00:00000000 00000000     0\n\
                     11678: 0100007F:5BA0 00000000:0000 07 00000000:0000B400 00:00000000 00000000     0\n\
                     11680: 00000000:5BA4 00000000:0000 07 00000000:00000010 00:00000000 00000000     0\n\
                     11681: 0200007F:5BA6 00000000:0000 07 00000000:00000010 00:00000000 00000000     0\n";
        assert_eq!(queued(table, 0x5ba0), Some(0xb400));
        assert_eq!(queued(table, 0x5ba4), Some(0x10));
        assert_eq!(queued(table, 0x5ba6), None);
        assert_eq!(queued(table, 0x5ba1), Some(0));
        assert_eq!(queued(table, 0x5ba2), None);
        assert_eq!(queued("nonsense", 1), None);
    }

    #[test]
    fn pairs_do_not_overlap() {
        let (_poll, first) = carrier();
        let (_poll, second) = carrier();
        assert_ne!(first.emulator(), second.emulator());
        assert_eq!((first.emulator() % 2, second.emulator() % 2), (0, 0));
        // A pair in use is not taken, even while no machine runs, nor one whose first port a stranger has.
        assert!(take(first.emulator()).is_none());
        let _machine = machine(&second);
        let port = second.emulator();
        drop(second);
        assert!(take(port).is_none());
    }

    #[test]
    fn frames_go_both_ways_and_strangers_are_not_heard() {
        let (_poll, mut carrier) = carrier();
        let machine = machine(&carrier);
        carrier.send(b"there", Duration::ZERO).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(machine.recv(&mut buffer).unwrap(), 5);
        let switch = address(carrier.emulator() + 1);
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"stranger", switch).unwrap();
        machine.send_to(b"back", switch).unwrap();
        assert_eq!(carrier.receive(&mut buffer).unwrap(), 4);
        assert_eq!(carrier.receive(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn a_full_socket_is_waited_for_and_nothing_is_lost() {
        let (_poll, mut carrier) = carrier();
        let machine = machine(&carrier);
        machine.set_nonblocking(true).unwrap();
        let mut sent = 0u32;
        let mut frame = [0; 1518];
        let mut fill = |carrier: &mut UdpCarrier, sent: &mut u32, now| {
            frame[..4].copy_from_slice(&sent.to_be_bytes());
            let result = carrier.send(&frame, now).map_err(|error| error.kind());
            *sent += u32::from(result.is_ok());
            result
        };
        while fill(&mut carrier, &mut sent, Duration::ZERO).is_ok() {}
        assert!((32..90).contains(&sent), "{sent}");
        assert_eq!(fill(&mut carrier, &mut sent, Duration::ZERO), Err(ErrorKind::WouldBlock));
        for (expected, millis) in (0..1000u32).zip(1..) {
            let mut buffer = [0; 2048];
            assert_eq!(machine.recv(&mut buffer).unwrap(), 1518);
            assert_eq!(buffer[..4], expected.to_be_bytes());
            let _ = fill(&mut carrier, &mut sent, Duration::from_millis(millis));
        }
        assert!(sent > 1000, "{sent}");
    }

    #[test]
    fn an_absent_machine_is_noticed_and_found_again() {
        let (_poll, mut carrier) = carrier();
        let absent = |result: IoResult<()>| assert_eq!(result.unwrap_err().kind(), ErrorKind::NotConnected);
        absent(carrier.send(b"x", Duration::ZERO));
        let first = machine(&carrier);
        carrier.send(b"1", RETRY).unwrap();
        drop(first);
        // The kernel says so after the next frame.
        let _ = carrier.send(b"2", RETRY);
        absent(carrier.send(b"3", RETRY));
        absent(carrier.send(b"4", 3 * RETRY));
        let second = machine(&carrier);
        carrier.send(b"5", 5 * RETRY).unwrap();
        let mut buffer = [0; 16];
        assert_eq!((second.recv(&mut buffer).unwrap(), buffer[0]), (1, b'5'));
    }
}
