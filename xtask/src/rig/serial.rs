//! A machine's serial lines: what an emulator is told to connect them to, and our ends.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::net::Transport;

/// How often a line that is not connected yet is looked at.
const POLL: Duration = Duration::from_millis(10);
/// A hypervisor that does not read its commands must not stop the rig.
const WRITE_LIMIT: Duration = Duration::from_millis(200);

/// Waits for an emulator to connect a serial line.
#[derive(Debug)]
pub enum Listener {
    /// At the path of a socket.
    Unix(UnixListener, PathBuf),
    /// At a port of the loopback interface.
    Tcp(TcpListener, u16),
}

impl Listener {
    /// Listens in the way of `transport`; `path` is used if that needs one, and must belong to this line alone.
    pub fn open(transport: Transport, path: &Path) -> Result<Self> {
        match transport {
            Transport::Unix => {
                if path.exists() {
                    std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
                }
                let listener =
                    UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener, path.to_owned()))
            }
            Transport::Loopback => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen at any TCP port")?;
                listener.set_nonblocking(true)?;
                let port = listener.local_addr()?.port();
                Ok(Self::Tcp(listener, port))
            }
        }
    }

    /// What the emulator is to connect to: a path, or `localhost:PORT`.
    pub fn address(&self) -> String {
        match self {
            Self::Unix(_, path) => path.display().to_string(),
            Self::Tcp(_, port) => format!("localhost:{port}"),
        }
    }

    /// Waits for the connection; none when `ended` becomes true before.
    pub fn accept(&self, ended: &AtomicBool) -> Option<File> {
        loop {
            match self.try_accept() {
                Ok(stream) => return Some(stream),
                Err(_) if ended.load(Ordering::Relaxed) => return None,
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    fn try_accept(&self) -> io::Result<File> {
        let stream: OwnedFd = match self {
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(WRITE_LIMIT))?;
                stream.into()
            }
            Self::Tcp(listener, _) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(WRITE_LIMIT))?;
                stream.set_nodelay(true)?;
                stream.into()
            }
        };
        Ok(File::from(stream))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn talks(listener: &Listener, mut machine: impl Read + Write) {
        let mut line = listener.accept(&AtomicBool::new(false)).unwrap();
        machine.write_all(b"status").unwrap();
        line.write_all(b"command").unwrap();
        let mut buffer = [0; 6];
        line.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"status");
        let mut buffer = [0; 7];
        machine.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"command");
    }

    #[test]
    fn lines_of_both_kinds_carry_bytes_both_ways() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("line");
        for _ in 0..2 {
            let listener = Listener::open(Transport::Unix, &path).unwrap();
            talks(&listener, UnixStream::connect(listener.address()).unwrap());
        }
        let listener = Listener::open(Transport::Loopback, &path).unwrap();
        let other = Listener::open(Transport::Loopback, &path).unwrap();
        assert_ne!(listener.address(), other.address());
        talks(&listener, TcpStream::connect(listener.address()).unwrap());
    }

    #[test]
    fn nobody_waits_for_a_machine_that_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        for transport in [Transport::Unix, Transport::Loopback] {
            let listener = Listener::open(transport, &directory.path().join("line")).unwrap();
            assert!(listener.accept(&AtomicBool::new(true)).is_none());
        }
    }
}
