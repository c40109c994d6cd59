//! A network device that is polled by looking at the receive buffer itself, byte by byte, not at the ring.
//!
//! Real drivers do not do this; it shows whether the guest can see a frame that is only partly there.
#![allow(unsafe_code)]

use alloc::boxed::Box;
use alloc::vec::Vec;

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use virtio_drivers::device::net::VirtIONetRaw;

use crate::nic::HEADER_BYTES;
use crate::virtio::{Doorbells, IdentityHal, PciTransport};

const BUFFER_BYTES: usize = 2048;
/// What the buffer is filled with before it is given to the device.
const PATTERN: u64 = 0xa5a5_a5a5_a5a5_a5a5;
/// Words of the buffer that are watched: header, addresses, payload.
const WATCHED: [usize; 6] = [0, 1, 2, 4, 6, 8];

type Driver = VirtIONetRaw<IdentityHal, PciTransport, 4>;

/// The buffer with the alignment of the words it is looked at by.
#[repr(C, align(8))]
struct Buffer([u8; BUFFER_BYTES]);

/// What was seen when a frame came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Times that the buffer was looked at before it had changed.
    pub iterations: u64,
    /// Whether the buffer changed after it had been seen to change: a part of the frame was missing.
    pub torn: bool,
}

/// The device, with a single receive buffer.
pub struct RxPoll {
    driver: Driver,
    doorbells: Doorbells,
    buffer: Box<Buffer>,
    /// What the buffer held at the first look that found it changed.
    snapshot: Box<Buffer>,
    token: u16,
    send_buffer: Vec<u8>,
    received: Option<usize>,
}

impl RxPoll {
    /// Sets up the device without interrupts.
    ///
    /// # Errors
    /// What is missing or did not work.
    pub fn new() -> Result<Self, &'static str> {
        let transport = PciTransport::find_net(None)?;
        let doorbells = transport.doorbells();
        let mut driver = Driver::new(transport).map_err(|_| "the network device cannot be initialised")?;
        driver.disable_interrupts();
        let buffer = || Box::new(Buffer([0; BUFFER_BYTES]));
        let mut device = Self {
            driver,
            doorbells,
            buffer: buffer(),
            snapshot: buffer(),
            token: 0,
            send_buffer: Vec::new(),
            received: None,
        };
        device.give_buffer();
        Ok(device)
    }

    /// The device's MAC address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.driver.mac_address()
    }

    /// Fills the buffer with the pattern and gives it to the device.
    fn give_buffer(&mut self) {
        self.buffer.0.fill(PATTERN as u8);
        // SAFETY: until `wait` has seen the buffer come back it is only read, by volatile accesses.
        match unsafe { self.driver.receive_begin(&mut self.buffer.0) } {
            Ok(token) => self.token = token,
            Err(error) => panic!("receive ring: {error}"),
        }
        self.doorbells.flush();
    }

    /// Word `index` of the buffer, read from memory now.
    fn word(&self, index: usize) -> u64 {
        assert!(index < BUFFER_BYTES / 8);
        // SAFETY: in bounds and aligned; the device may write it meanwhile, therefore volatile.
        unsafe { self.buffer.0.as_ptr().cast::<u64>().add(index).read_volatile() }
    }

    /// Spins until the buffer's bytes change, then takes the frame.
    pub fn wait(&mut self) -> Arrival {
        let mut iterations = 0;
        while WATCHED.iter().all(|index| self.word(*index) == PATTERN) {
            iterations += 1;
        }
        for index in 0..BUFFER_BYTES / 8 {
            let word = self.word(index);
            self.snapshot.0[index * 8..index * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
        while self.driver.poll_receive().is_none() {
            core::hint::spin_loop();
        }
        // SAFETY: the buffer that the token stands for.
        let received = unsafe { self.driver.receive_complete(self.token, &mut self.buffer.0) };
        self.received = received.ok().map(|(_, len)| len).filter(|len| *len <= BUFFER_BYTES - HEADER_BYTES);
        Arrival { iterations, torn: self.buffer.0 != self.snapshot.0 }
    }

    /// The frame that [`wait`](Self::wait) took, unless it was received since.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.buffer.0[HEADER_BYTES..HEADER_BYTES + self.received.unwrap_or(0)]
    }

    /// Makes the buffer ready for the next frame.
    pub fn release(&mut self) {
        self.received = None;
        self.give_buffer();
    }

    /// Sends a frame, header included, and waits until the device has taken it.
    fn send(&mut self) {
        // SAFETY: the buffer stays untouched until the device has handed it back, below.
        let Ok(token) = (unsafe { self.driver.transmit_begin(&self.send_buffer) }) else { return };
        self.doorbells.flush();
        while self.driver.poll_transmit().is_none() {
            core::hint::spin_loop();
        }
        // SAFETY: the buffer that the token stands for. An error would mean that the ring is damaged: the frame is lost.
        let _ = unsafe { self.driver.transmit_complete(token, &self.send_buffer) };
    }
}

/// See [`Device::receive`].
pub struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

/// See [`Device::transmit`].
pub struct Slot<'a>(&'a mut RxPoll);

impl TxToken for Slot<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.send_buffer.clear();
        self.0.send_buffer.resize(HEADER_BYTES + len, 0);
        let result = f(&mut self.0.send_buffer[HEADER_BYTES..]);
        self.0.send();
        result
    }
}

impl Device for RxPoll {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Slot<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Frame, Slot<'_>)> {
        let len = self.received.take()?;
        let frame = Frame(self.buffer.0[HEADER_BYTES..HEADER_BYTES + len].into());
        Some((frame, Slot(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Slot<'_>> {
        Some(Slot(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}
