//! QEMU's `-netdev dgram`: Unix datagram sockets, one at each end.

use std::io::{ErrorKind, Result as IoResult};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mio::net::UnixDatagram;
use mio::{Interest, Registry, Token};
use tempfile::TempDir;

use super::{Carrier, RETRY};
use crate::net::{Network, PortPaths, SLOTS};

/// `sun_path` holds 108 bytes with the final zero. See: unix(7).
const MAX_SOCKET_PATH: usize = 107;

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

/// Both directions of a port.
///
/// There are two sockets because a connected datagram socket would refuse frames from a machine that was started
/// again, and an unconnected one cannot be polled for room in the machine's queue.
#[derive(Debug)]
pub struct UnixCarrier {
    paths: PortPaths,
    inbound: UnixDatagram,
    outbound: UnixDatagram,
    outbound_token: Token,
    watched: bool,
    connected: bool,
    retry_at: Duration,
}

impl UnixCarrier {
    /// Binds the switch's side and registers it with `inbound_token`.
    pub fn bind(paths: PortPaths, registry: &Registry, inbound_token: Token, outbound_token: Token) -> Result<Self> {
        let path = &paths.remote;
        remove_stale(path)?;
        let mut inbound =
            UnixDatagram::bind(path).with_context(|| format!("cannot bind the socket {}", path.display()))?;
        registry.register(&mut inbound, inbound_token, Interest::READABLE).context("cannot poll a socket")?;
        let outbound = UnixDatagram::unbound().context("cannot create a socket")?;
        let (watched, connected, retry_at) = (false, false, Duration::ZERO);
        Ok(Self { paths, inbound, outbound, outbound_token, watched, connected, retry_at })
    }
}

impl Carrier for UnixCarrier {
    fn receive(&mut self, buffer: &mut [u8]) -> IoResult<usize> {
        self.inbound.recv(buffer)
    }

    fn send(&mut self, frame: &[u8], now: Duration) -> IoResult<()> {
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

    fn watch(&mut self, _: Duration, registry: &Registry) {
        // Edge-triggered, and after a new connection another queue is to be watched. If polling fails the queue is not
        // drained by events but by the next frame's attempt.
        let _ = match self.watched {
            true => registry.reregister(&mut self.outbound, self.outbound_token, Interest::WRITABLE),
            false => registry.register(&mut self.outbound, self.outbound_token, Interest::WRITABLE),
        };
        self.watched = true;
    }

    fn unwatch(&mut self, registry: &Registry) {
        if std::mem::take(&mut self.watched) {
            let _ = registry.deregister(&mut self.outbound);
        }
    }
}

impl Drop for UnixCarrier {
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
        let bind = || UnixCarrier::bind(paths(dir.path(), Network::Log, 0), poll.registry(), Token(0), Token(1));
        drop(UnixDatagram::bind(paths(dir.path(), Network::Log, 0).remote).unwrap());
        let port = bind().unwrap();
        let error = bind().unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        drop(port);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
