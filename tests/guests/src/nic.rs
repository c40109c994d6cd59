//! The network device as a `smoltcp` device: buffers are set up once, the device is told of new ones in batches.
#![allow(unsafe_code)]

use alloc::boxed::Box;
use alloc::vec::Vec;

use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use virtio_drivers::device::net::VirtIONetRaw;

use crate::virtio::{Doorbells, IdentityHal, PciTransport};

/// Entries of each ring.
const RING: usize = 128;
/// Bytes of a buffer: virtio header and frame.
const BUFFER_BYTES: usize = 2048;
/// Bytes of `struct virtio_net_hdr_v1` (5.1.6).
pub const HEADER_BYTES: usize = 12;
/// Longest frame, without the check sum.
const MAX_FRAME: usize = 1514;

type Buffer = [u8; BUFFER_BYTES];
type Driver = VirtIONetRaw<IdentityHal, PciTransport, RING>;

/// A frame in a receive buffer that the device has handed back.
#[derive(Debug, Clone, Copy)]
struct Received {
    buffer: usize,
    len: usize,
}

/// The sending half.
struct Transmit {
    buffers: Box<[Buffer]>,
    free: Vec<usize>,
    /// Buffer and length sent for each token of the driver's.
    in_use: [(usize, usize); RING],
}

/// The network device.
pub struct Nic {
    driver: Driver,
    doorbells: Doorbells,
    rx_buffers: Box<[Buffer]>,
    /// Buffer that stands behind each token of the driver's.
    rx_in_use: [usize; RING],
    /// Buffers to be given to the device at the next flush. Their content is valid until then.
    rx_used: Vec<usize>,
    tx: Transmit,
    next: Option<Received>,
}

fn buffers() -> Box<[Buffer]> {
    alloc::vec![[0; BUFFER_BYTES]; RING].into_boxed_slice()
}

impl Nic {
    /// Sets up the device with full receive buffers; frames received raise `vector`, if given.
    ///
    /// # Errors
    /// What is missing or did not work.
    pub fn new(vector: Option<u8>) -> Result<Self, &'static str> {
        let transport = PciTransport::find_net(vector)?;
        let doorbells = transport.doorbells();
        let driver = Driver::new(transport).map_err(|_| "the network device cannot be initialised")?;
        let tx = Transmit { buffers: buffers(), free: (0..RING).collect(), in_use: [(0, 0); RING] };
        let rx_used = (0..RING).collect();
        let mut nic = Self { driver, doorbells, rx_buffers: buffers(), rx_in_use: [0; RING], rx_used, tx, next: None };
        nic.flush();
        Ok(nic)
    }

    /// The device's MAC address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.driver.mac_address()
    }

    /// The next frame to be received, left where it is.
    pub fn peek(&mut self) -> Option<&[u8]> {
        if self.next.is_none() {
            self.next = self.take_received();
        }
        let Received { buffer, len } = self.next?;
        Some(&self.rx_buffers[buffer][HEADER_BYTES..HEADER_BYTES + len])
    }

    /// Gives used receive buffers back to the device and tells it what there is to send.
    pub fn flush(&mut self) {
        for buffer in self.rx_used.drain(..) {
            // SAFETY: the buffer lives as long as the driver and is not touched until the driver returns it.
            match unsafe { self.driver.receive_begin(&mut self.rx_buffers[buffer]) } {
                Ok(token) => self.rx_in_use[usize::from(token) % RING] = buffer,
                // There are as many buffers as ring entries: a bug in the ring.
                Err(error) => panic!("receive ring: {error}"),
            }
        }
        self.doorbells.flush();
    }

    /// Whether the device has handed back a receive buffer. Looks at memory only.
    #[must_use]
    pub fn has_received(&self) -> bool {
        self.next.is_some() || self.driver.poll_receive().is_some()
    }

    fn take_received(&mut self) -> Option<Received> {
        loop {
            let token = self.driver.poll_receive()?;
            let buffer = *self.rx_in_use.get(usize::from(token))?;
            self.rx_used.push(buffer);
            // SAFETY: this is the buffer that the token stands for.
            match unsafe { self.driver.receive_complete(token, &mut self.rx_buffers[buffer]) } {
                Ok((_, len)) if len <= BUFFER_BYTES - HEADER_BYTES => return Some(Received { buffer, len }),
                // The device reported an absurd length: as if the frame was lost.
                _ => {}
            }
        }
    }

    /// Makes buffers of frames that were sent free again.
    fn reclaim(&mut self) {
        while let Some(token) = self.driver.poll_transmit() {
            let Some(&(buffer, len)) = self.tx.in_use.get(usize::from(token)) else { return };
            // SAFETY: this is the buffer that the token stands for.
            if unsafe { self.driver.transmit_complete(token, &self.tx.buffers[buffer][..len]) }.is_err() {
                return;
            }
            self.tx.free.push(buffer);
        }
    }

    fn can_transmit(&mut self) -> bool {
        if self.tx.free.is_empty() {
            self.reclaim();
        }
        if self.tx.free.is_empty() {
            // The device sees the frames only when told; Pollux and QEMU take them at once.
            self.doorbells.flush();
            self.reclaim();
        }
        !self.tx.free.is_empty()
    }
}

/// See [`Device::receive`].
pub struct Frame<'a>(&'a [u8]);

impl RxToken for Frame<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// See [`Device::transmit`].
pub struct Slot<'a> {
    driver: &'a mut Driver,
    tx: &'a mut Transmit,
}

impl TxToken for Slot<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let number = self.tx.free.pop().expect("tokens are only given out while a buffer is free");
        let end = HEADER_BYTES + len;
        let buffer = &mut self.tx.buffers[number][..end];
        buffer[..HEADER_BYTES].fill(0);
        let result = f(&mut buffer[HEADER_BYTES..]);
        // SAFETY: the buffer lives as long as the driver and is not touched until the driver returns it.
        match unsafe { self.driver.transmit_begin(buffer) } {
            Ok(token) => self.tx.in_use[usize::from(token) % RING] = (number, end),
            Err(_) => self.tx.free.push(number),
        }
        result
    }
}

impl Device for Nic {
    type RxToken<'a> = Frame<'a>;
    type TxToken<'a> = Slot<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Frame<'_>, Slot<'_>)> {
        if !self.has_received() || !self.can_transmit() {
            return None;
        }
        let Received { buffer, len } = match self.next.take() {
            Some(received) => received,
            None => self.take_received()?,
        };
        let frame = Frame(&self.rx_buffers[buffer][HEADER_BYTES..HEADER_BYTES + len]);
        Some((frame, Slot { driver: &mut self.driver, tx: &mut self.tx }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Slot<'_>> {
        self.can_transmit().then_some(Slot { driver: &mut self.driver, tx: &mut self.tx })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME;
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities
    }
}
