//! The driver as a `smoltcp` device.
//!
//! Tokens only queue: call [`E1000::flush`] after each poll of the interface. A device whose ring is full flushes by
//! itself, so a forgotten flush delays frames but never blocks for good.

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::{E1000, TX_DESCRIPTORS};
use crate::frame::MAX_UNTAGGED;
use crate::mmio::Registers;
use crate::ring::{RxRing, TxRing};

/// A received frame. Dropped unused, it stays in the ring.
#[derive(Debug)]
pub struct E1000RxToken<'a>(&'a mut RxRing);

/// Room for one frame.
#[derive(Debug)]
pub struct E1000TxToken<'a>(&'a mut TxRing);

impl RxToken for E1000RxToken<'_> {
    fn consume<T, F: FnOnce(&[u8]) -> T>(self, f: F) -> T {
        // The token was made because a good frame waits, and it borrows the ring.
        self.0.receive(f).expect("a frame waits")
    }
}

impl TxToken for E1000TxToken<'_> {
    fn consume<T, F: FnOnce(&mut [u8]) -> T>(self, len: usize, f: F) -> T {
        // There was room when the token was made, and smoltcp keeps to the maximum transmission unit.
        self.0.transmit(len, f).expect("room and a valid length")
    }
}

impl<R: Registers> Device for E1000<R> {
    type RxToken<'a>
        = E1000RxToken<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = E1000TxToken<'a>
    where
        Self: 'a;

    fn receive(&mut self, _timestamp: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        self.return_many();
        if !self.rx.is_ready() {
            return None;
        }
        if self.tx.free() == 0 {
            self.flush_tx();
            return None;
        }
        Some((E1000RxToken(&mut self.rx), E1000TxToken(&mut self.tx)))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<Self::TxToken<'_>> {
        if self.tx.free() == 0 {
            self.flush_tx();
            return None;
        }
        Some(E1000TxToken(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_UNTAGGED;
        capabilities.max_burst_size = Some(usize::from(TX_DESCRIPTORS) - 1);
        capabilities
    }
}
