//! A machine's port: the way to an emulator that comes and goes.

mod shared;
pub mod udp;
pub mod unix;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io::{ErrorKind, Result as IoResult};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use mio::{Registry, Token};

use super::{Network, Plug, Transport};

/// Frames that wait for a machine that is slow to take them. Linux queues only ten Unix datagrams by default, which is too
/// little for a TCP window.
const MAX_QUEUE: usize = 4096;
/// How often to look whether an absent machine has come.
const RETRY: Duration = Duration::from_millis(1);

/// How frames get to an emulator and back: one datagram each.
pub trait Carrier: Debug + Send {
    /// Takes the next frame from the machine. A frame longer than the buffer is cut.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] when there is no more.
    fn receive(&mut self, buffer: &mut [u8]) -> IoResult<usize>;

    /// Sends a frame.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] when the machine has no room for it; anything else when there is no machine.
    fn send(&mut self, frame: &[u8], now: Duration) -> IoResult<()>;

    /// Asks to be told when there is room: by an event, or by [`ready_at`](Self::ready_at).
    fn watch(&mut self, now: Duration, registry: &Registry);

    /// Nothing waits any more. While idle, each datagram that the machine takes would wake us.
    fn unwatch(&mut self, registry: &Registry);

    /// When to try again, for a carrier that has no event for it.
    fn ready_at(&self) -> Option<Duration> {
        None
    }
}

/// Why a frame was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendFailure {
    /// There is no machine.
    Absent,
    /// There is, but it takes nothing.
    QueueFull,
}

/// How many NICs a machine has in `network` that is attached by the loopback interface. Bochs' cards take no frames to
/// other addresses than their own, so that there is one for the guest's and one for the machine's.
fn loopback_nics(network: Network) -> usize {
    match network {
        Network::Client => 2,
        Network::Log => 1,
    }
}

/// Both directions of a port.
#[derive(Debug)]
pub struct Port {
    carrier: Box<dyn Carrier>,
    waiting: VecDeque<Vec<u8>>,
    /// Frames may be waiting in the carrier.
    pub readable: bool,
}

/// What a port is opened with, besides its place.
pub struct Opening<'a> {
    /// How the emulator is attached.
    pub transport: Transport,
    /// Where sockets live that are files.
    pub dir: &'a Path,
    /// Watches the port's sockets ...
    pub registry: &'a Registry,
    /// ... for frames, by this token ...
    pub inbound: Token,
    /// ... and for room, by this one.
    pub outbound: Token,
}

impl Port {
    /// Opens the port of `slot` in `network`; also how an emulator is connected to it.
    ///
    /// # Errors
    /// Sockets in use, or of which there are no more.
    pub fn open(network: Network, slot: usize, opening: &Opening<'_>) -> Result<(Self, Plug)> {
        let Opening { transport, dir, registry, inbound, outbound } = *opening;
        match transport {
            Transport::Unix => {
                let paths = unix::paths(dir, network, slot);
                let carrier = unix::UnixCarrier::bind(paths.clone(), registry, inbound, outbound)?;
                Ok((Self::new(carrier), Plug::Unix(paths)))
            }
            Transport::Loopback => {
                let bind = |_| udp::UdpCarrier::bind(registry, inbound);
                let nics = (0..loopback_nics(network)).map(bind).collect::<Result<Vec<_>>>()?;
                let plug = Plug::Udp(nics.iter().map(udp::UdpCarrier::emulator).collect());
                Ok((Self::new(shared::Shared::new(nics)), plug))
            }
        }
    }

    fn new(carrier: impl Carrier + 'static) -> Self {
        Self { carrier: Box::new(carrier), waiting: VecDeque::new(), readable: true }
    }

    /// Takes the next frame from the machine; none when there is no more. A frame longer than the buffer is cut.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            match self.carrier.receive(buffer) {
                Ok(length) => return Some(length),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Beyond "would block", nothing is known to fail here; the next event brings us back.
                Err(_) => {
                    self.readable = false;
                    return None;
                }
            }
        }
    }

    /// Sends a frame, or keeps it until the machine has room.
    pub fn send(&mut self, frame: &[u8], now: Duration, registry: &Registry) -> Result<(), SendFailure> {
        if self.waiting.is_empty() {
            match self.carrier.send(frame, now) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.carrier.watch(now, registry),
                Err(_) => return Err(SendFailure::Absent),
            }
        }
        if self.waiting.len() >= MAX_QUEUE {
            return Err(SendFailure::QueueFull);
        }
        self.waiting.push_back(frame.to_owned());
        Ok(())
    }

    /// When [`flush`](Self::flush) has something to do, if no event will tell.
    pub fn flush_at(&self) -> Option<Duration> {
        if self.waiting.is_empty() { None } else { self.carrier.ready_at() }
    }

    /// Sends what waits. Tells how many frames were given up because the machine has gone.
    pub fn flush(&mut self, now: Duration, registry: &Registry) -> u64 {
        while let Some(frame) = self.waiting.pop_front() {
            match self.carrier.send(&frame, now) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.waiting.push_front(frame);
                    self.carrier.watch(now, registry);
                    return 0;
                }
                Err(_) => {
                    let lost = 1 + self.waiting.len() as u64;
                    self.waiting.clear();
                    self.carrier.unwatch(registry);
                    return lost;
                }
            }
        }
        self.carrier.unwatch(registry);
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_wait_for_a_slow_machine_and_are_dropped_without_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut poll = mio::Poll::new().unwrap();
        let paths = unix::paths(dir.path(), Network::Log, 0);
        let carrier = unix::UnixCarrier::bind(paths.clone(), poll.registry(), Token(0), Token(1)).unwrap();
        let mut port = Port::new(carrier);
        assert_eq!(port.send(&[0; 60], Duration::ZERO, poll.registry()), Err(SendFailure::Absent));

        let machine = std::os::unix::net::UnixDatagram::bind(&paths.local).unwrap();
        let (later, mut sent) = (RETRY, 0u32);
        while port.send(&sent.to_be_bytes(), later, poll.registry()).is_ok() {
            sent += 1;
        }
        assert!(sent >= MAX_QUEUE as u32);
        let mut events = mio::Events::with_capacity(4);
        for expected in 0..sent {
            let mut buffer = [0; 64];
            assert_eq!(machine.recv(&mut buffer).unwrap(), 4);
            assert_eq!(buffer[..4], expected.to_be_bytes());
            if !port.waiting.is_empty() {
                poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
                assert!(!events.is_empty(), "no event after {expected}");
                assert_eq!(port.flush(later, poll.registry()), 0);
            }
        }

        drop(machine);
        std::fs::remove_file(&paths.local).unwrap();
        assert_eq!(port.send(&[0; 60], later, poll.registry()), Err(SendFailure::Absent));
        let _again = std::os::unix::net::UnixDatagram::bind(&paths.local).unwrap();
        assert_eq!(port.send(&[0; 60], 2 * RETRY, poll.registry()), Ok(()));
    }
}
