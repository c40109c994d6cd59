//! Several NICs of one machine at one port: as if they shared its cable.

use std::io::{ErrorKind, Result as IoResult};
use std::time::Duration;

use mio::Registry;

use super::Carrier;

/// Carriers that get the same frames: their NICs know which are for them. They do not hear each other.
#[derive(Debug)]
pub struct Shared<C> {
    nics: Vec<C>,
}

impl<C: Carrier> Shared<C> {
    /// The first of `nics`, of which there is one at least, sets the pace.
    pub fn new(nics: Vec<C>) -> Self {
        Self { nics }
    }
}

impl<C: Carrier> Carrier for Shared<C> {
    fn receive(&mut self, buffer: &mut [u8]) -> IoResult<usize> {
        for nic in &mut self.nics {
            match nic.receive(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
        Err(ErrorKind::WouldBlock.into())
    }

    /// What another NIC than the first does not take is lost: it has heard as much as the first.
    fn send(&mut self, frame: &[u8], now: Duration) -> IoResult<()> {
        let Some((first, others)) = self.nics.split_first_mut() else { return Err(ErrorKind::NotConnected.into()) };
        first.send(frame, now)?;
        for nic in others {
            let _ = nic.send(frame, now);
        }
        Ok(())
    }

    fn watch(&mut self, now: Duration, registry: &Registry) {
        if let Some(first) = self.nics.first_mut() {
            first.watch(now, registry);
        }
    }

    fn unwatch(&mut self, registry: &Registry) {
        if let Some(first) = self.nics.first_mut() {
            first.unwatch(registry);
        }
    }

    fn ready_at(&self) -> Option<Duration> {
        self.nics.first()?.ready_at()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use mio::Token;

    use super::super::udp::UdpCarrier;
    use super::*;

    #[test]
    fn all_nics_hear_and_are_heard() {
        let poll = mio::Poll::new().unwrap();
        let carriers: Vec<_> = (0..2).map(|_| UdpCarrier::bind(poll.registry(), Token(0)).unwrap()).collect();
        let ports: Vec<_> = carriers.iter().map(UdpCarrier::emulator).collect();
        let mut shared = Shared::new(carriers);
        let absent = shared.send(b"early", Duration::ZERO).unwrap_err();
        assert_eq!(absent.kind(), ErrorKind::NotConnected);
        let nics = ports.iter().map(|&port| (UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap(), port));
        let nics: Vec<_> = nics.collect();
        shared.send(b"frame", Duration::from_secs(1)).unwrap();
        let mut buffer = [0; 16];
        for (nic, port) in &nics {
            assert_eq!(nic.recv(&mut buffer).unwrap(), 5);
            nic.send_to(&port.to_be_bytes(), (Ipv4Addr::LOCALHOST, port + 1)).unwrap();
        }
        for (_, port) in &nics {
            assert_eq!(shared.receive(&mut buffer).unwrap(), 2);
            assert_eq!(buffer[..2], port.to_be_bytes());
        }
        assert_eq!(shared.receive(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
