//! The disk: several requests in flight at once, of which the device is told together.
#![allow(unsafe_code)]

use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use virtio_drivers::Error;
use virtio_drivers::device::blk::{BlkReq, BlkResp, VirtIOBlk};
use virtio_drivers::transport::DeviceType;

use crate::virtio::{Doorbells, IdentityHal, PciTransport};
use crate::{cpu, interrupts, lapic};

pub use virtio_drivers::device::blk::SECTOR_SIZE;

/// Vector of the disk.
pub const DISK_VECTOR: u8 = 0x51;
/// Most requests in flight: the ring has 16 entries, and each takes three of them.
pub const MOST: usize = 5;

/// A request to read or write.
#[derive(Debug)]
pub struct Request {
    /// First sector.
    pub sector: usize,
    /// Write, or read?
    pub write: bool,
    /// What is written, or where to what is read goes: a whole number of sectors, not none.
    pub data: Vec<u8>,
    /// How it ended.
    pub result: Result<(), Error>,
    header: BlkReq,
    response: BlkResp,
}

impl Request {
    /// A request to read `sectors` sectors from `sector` on.
    #[must_use]
    pub fn read(sector: usize, sectors: usize) -> Self {
        Self::new(sector, false, alloc::vec![0; sectors * SECTOR_SIZE])
    }

    /// A request to write `data` from `sector` on.
    #[must_use]
    pub fn write(sector: usize, data: Vec<u8>) -> Self {
        Self::new(sector, true, data)
    }

    fn new(sector: usize, write: bool, data: Vec<u8>) -> Self {
        let (header, response) = (BlkReq::default(), BlkResp::default());
        Self { sector, write, data, result: Err(Error::NotReady), header, response }
    }
}

/// The disk.
pub struct Disk {
    driver: VirtIOBlk<IdentityHal, PciTransport>,
    doorbells: Doorbells,
}

impl Disk {
    /// Sets up the device.
    ///
    /// # Errors
    /// What is missing or did not work.
    pub fn new() -> Result<Self, &'static str> {
        interrupts::set_handler(DISK_VECTOR, |_| lapic::end_of_interrupt());
        let transport = PciTransport::find(DeviceType::Block, Some(DISK_VECTOR))?;
        let doorbells = transport.doorbells();
        let driver = VirtIOBlk::new(transport).map_err(|_| "the disk cannot be initialised")?;
        Ok(Self { driver, doorbells })
    }

    /// Size in sectors.
    #[must_use]
    pub fn sectors(&self) -> usize {
        usize::try_from(self.driver.capacity()).unwrap_or(usize::MAX)
    }

    /// Makes durable what was written.
    ///
    /// # Errors
    /// What the device said.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.at_once(VirtIOBlk::flush)
    }

    /// The disk's name.
    ///
    /// # Errors
    /// What the device said.
    pub fn name(&mut self) -> Result<[u8; 20], Error> {
        let mut name = [0; 20];
        self.at_once(|driver| driver.device_id(&mut name))?;
        Ok(name)
    }

    fn at_once<T>(&mut self, ask: impl FnOnce(&mut VirtIOBlk<IdentityHal, PciTransport>) -> T) -> T {
        self.doorbells.ring_at_once(true);
        let answer = ask(&mut self.driver);
        self.doorbells.ring_at_once(false);
        answer
    }

    /// Has the device carry out `requests`, at most [`MOST`], all in flight at once, and waits for their end. Interrupts are
    /// off.
    ///
    /// # Panics
    /// When there are more, or the ring is broken.
    pub fn run(&mut self, requests: &mut [Request]) {
        assert!(requests.len() <= MOST, "the ring has room for {MOST} requests");
        let mut tokens = [None; MOST];
        for (request, token) in requests.iter_mut().zip(&mut tokens) {
            let Request { sector, write, data, header, response, .. } = request;
            // SAFETY: header, data and response stay where they are, and are not touched, until the loop below has completed
            // the request; it does not end before.
            let added = unsafe {
                if *write {
                    self.driver.write_blocks_nb(*sector, header, data, response)
                } else {
                    self.driver.read_blocks_nb(*sector, header, data, response)
                }
            };
            *token = Some(added.unwrap_or_else(|error| panic!("the disk's ring: {error}")));
        }
        self.doorbells.flush();
        for _ in 0..requests.len() {
            let token = self.wait();
            let at = tokens.iter().position(|known| *known == Some(token));
            let at = at.unwrap_or_else(|| panic!("the disk answers {token}, which it was not asked"));
            tokens[at] = None;
            let Request { write, data, header, response, result, .. } = &mut requests[at];
            // SAFETY: these are the buffers that the token stands for.
            *result = unsafe {
                if *write {
                    self.driver.complete_write_blocks(token, header, data, response)
                } else {
                    self.driver.complete_read_blocks(token, header, data, response)
                }
            };
        }
    }

    /// Waits until a request has ended.
    fn wait(&mut self) -> u16 {
        loop {
            // The device must see how far the used ring was read before the last look at it, as in `Host::wait`.
            fence(Ordering::SeqCst);
            match self.driver.peek_used() {
                Some(token) => return token,
                None => cpu::wait_for_interrupt(),
            }
        }
    }
}
