//! A machine's port: Unix datagram sockets to an emulator that comes and goes.

use std::collections::VecDeque;
use std::io::{ErrorKind, Result as IoResult};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mio::net::UnixDatagram;
use mio::{Interest, Registry, Token};
use tempfile::TempDir;

use super::{Network, PortPaths, SLOTS};

/// `sun_path` holds 108 bytes with the final zero. See: unix(7).
const MAX_SOCKET_PATH: usize = 107;
/// Frames that wait for a machine that is slow to take them. Linux queues only ten datagrams by default, which is too
/// little for a TCP window.
const MAX_QUEUE: usize = 4096;
/// How often to look whether an absent machine has come.
const RETRY: Duration = Duration::from_millis(1);

/// Where a port's sockets are.
pub fn paths(dir: &Path, network: Network, slot: usize) -> PortPaths {
    let path = |side| dir.join(format!("{}{slot}.{side}", network.name()));
    PortPaths { local: path("qemu"), remote: path("net") }
}

/// `wanted`, made absolute, or a temporary directory if socket paths below it would be too long.
pub fn socket_directory(wanted: &Path) -> Result<(PathBuf, Option<TempDir>)> {
    let dir = wanted.canonicalize().with_context(|| format!("no directory for sockets: {}", wanted.display()))?;
    let fits = |dir: &Path| {
        let longest = paths(dir, Network::Client, SLOTS - 1).local;
        longest.as_os_str().as_bytes().len() <= MAX_SOCKET_PATH
    };
    if fits(&dir) {
        return Ok((dir, None));
    }
    let short = tempfile::Builder::new()
        .prefix("pollux-")
        .tempdir()
        .context("cannot create a temporary directory for sockets")?;
    if !fits(short.path()) {
        bail!("{} and {} are too long for the paths of sockets", dir.display(), short.path().display());
    }
    Ok((short.path().to_owned(), Some(short)))
}

/// Why a frame was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendFailure {
    /// Nobody is bound to the machine's path.
    Absent,
    /// Somebody is, but takes nothing.
    QueueFull,
}

/// Both directions of a port.
///
/// There are two sockets because a connected datagram socket would refuse frames from a machine that was started
/// again, and an unconnected one cannot be polled for room in the machine's queue.
#[derive(Debug)]
pub struct Port {
    paths: PortPaths,
    inbound: UnixDatagram,
    outbound: UnixDatagram,
    outbound_token: Token,
    connected: bool,
    retry_at: Duration,
    waiting: VecDeque<Vec<u8>>,
    /// Frames may be waiting in the inbound socket.
    pub readable: bool,
}

impl Port {
    /// Binds the switch's side and registers it with `inbound_token`.
    pub fn bind(paths: PortPaths, registry: &Registry, inbound_token: Token, outbound_token: Token) -> Result<Self> {
        let path = &paths.remote;
        remove_stale(path)?;
        let mut inbound =
            UnixDatagram::bind(path).with_context(|| format!("cannot bind the socket {}", path.display()))?;
        registry.register(&mut inbound, inbound_token, Interest::READABLE).context("cannot poll a socket")?;
        let outbound = UnixDatagram::unbound().context("cannot create a socket")?;
        Ok(Self {
            paths,
            inbound,
            outbound,
            outbound_token,
            connected: false,
            retry_at: Duration::ZERO,
            waiting: VecDeque::new(),
            readable: true,
        })
    }

    /// Takes the next frame from the machine; none when there is no more. A frame longer than the buffer is cut.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            match self.inbound.recv(buffer) {
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
            match self.try_send(frame, now) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // If polling fails the queue is not drained by events but by the next frame's attempt.
                    let _ = registry.register(&mut self.outbound, self.outbound_token, Interest::WRITABLE);
                }
                Err(_) => return Err(SendFailure::Absent),
            }
        }
        if self.waiting.len() >= MAX_QUEUE {
            return Err(SendFailure::QueueFull);
        }
        self.waiting.push_back(frame.to_owned());
        Ok(())
    }

    /// Sends what waits, after an event at the outbound socket. Tells how many frames were given up because the
    /// machine has gone.
    pub fn flush(&mut self, now: Duration, registry: &Registry) -> u64 {
        while let Some(frame) = self.waiting.pop_front() {
            match self.try_send(&frame, now) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.waiting.push_front(frame);
                    // Edge-triggered, and after a new connection another queue is to be watched.
                    let _ = registry.reregister(&mut self.outbound, self.outbound_token, Interest::WRITABLE);
                    return 0;
                }
                Err(_) => {
                    let lost = 1 + self.waiting.len() as u64;
                    self.waiting.clear();
                    let _ = registry.deregister(&mut self.outbound);
                    return lost;
                }
            }
        }
        // Not polled while idle: each datagram that the machine takes would wake us.
        let _ = registry.deregister(&mut self.outbound);
        0
    }

    fn try_send(&mut self, frame: &[u8], now: Duration) -> IoResult<()> {
        if self.connected {
            match self.outbound.send(frame) {
                Ok(_) => return Ok(()),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    return Err(ErrorKind::WouldBlock.into());
                }
                // The machine has gone; another one may be bound to the same path already.
                Err(_) => self.connected = false,
            }
        } else if now < self.retry_at {
            return Err(ErrorKind::NotConnected.into());
        }
        self.retry_at = now + RETRY;
        self.outbound.connect(&self.paths.local)?;
        self.connected = true;
        self.outbound.send(frame).map(|_| ())
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.paths.remote);
        let _ = std::fs::remove_file(&self.paths.local);
    }
}

/// Removes a socket that a killed rig left; refuses to take one that is in use.
fn remove_stale(path: &Path) -> Result<()> {
    let probe = UnixDatagram::unbound().context("cannot create a socket")?;
    if probe.connect(path).is_ok() {
        bail!("the socket {} is in use: is another rig running in this directory?", path.display());
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove the stale socket {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_directories_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (same, none) = socket_directory(dir.path()).unwrap();
        assert_eq!((same, none.is_none()), (dir.path().canonicalize().unwrap(), true));
        let long = dir.path().join("x".repeat(120));
        std::fs::create_dir(&long).unwrap();
        let (short, temporary) = socket_directory(&long).unwrap();
        assert_eq!(short, temporary.unwrap().path());
        assert!(socket_directory(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_respected() {
        let dir = tempfile::tempdir().unwrap();
        let poll = mio::Poll::new().unwrap();
        let bind = || Port::bind(paths(dir.path(), Network::Log, 0), poll.registry(), Token(0), Token(1));
        drop(UnixDatagram::bind(paths(dir.path(), Network::Log, 0).remote).unwrap());
        let port = bind().unwrap();
        let error = bind().unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        drop(port);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn frames_wait_for_a_slow_machine_and_are_dropped_without_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut poll = mio::Poll::new().unwrap();
        let paths = paths(dir.path(), Network::Log, 0);
        let mut port = Port::bind(paths.clone(), poll.registry(), Token(0), Token(1)).unwrap();
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
