//! Virtio over PCI, modern interface, made for few device accesses: each costs an exit.
//!
//! Unlike the transport that comes with `virtio-drivers` this one sets up MSI-X, remembers each queue's doorbell, and rings it
//! only in [`Doorbells::flush`], once for all buffers added since. It decides by the rings themselves whether the device
//! wants to be told, with indices compared as the specification says: modulo 2^16.
//!
//! See: Virtual I/O Device (VIRTIO) Version 1.2, 4.1.
#![allow(unsafe_code)]

use alloc::alloc::{alloc_zeroed, dealloc};
use alloc::rc::Rc;
use core::alloc::Layout;
use core::cell::Cell;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Error, Hal, PAGE_SIZE, PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{lapic, pci};

const VENDOR: u16 = 0x1af4;
/// Device IDs of modern devices begin here (4.1.2).
const MODERN: u16 = 0x1040;
const CAP_VENDOR: u8 = 9;
const CAP_MSIX: u8 = 0x11;
/// "No interrupt" in MSI-X vector registers.
const NO_VECTOR: u16 = 0xffff;
const EVENT_IDX: u64 = 1 << 29;
/// Queues that a transport keeps track of.
const QUEUES: usize = 2;

/// `struct virtio_pci_common_cfg`: offsets of its fields.
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0;
    pub(super) const DEVICE_FEATURE: u64 = 4;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 8;
    pub(super) const DRIVER_FEATURE: u64 = 12;
    pub(super) const MSIX_CONFIG: u64 = 16;
    pub(super) const STATUS: u64 = 20;
    pub(super) const CONFIG_GENERATION: u64 = 21;
    pub(super) const QUEUE_SELECT: u64 = 22;
    pub(super) const QUEUE_SIZE: u64 = 24;
    pub(super) const QUEUE_MSIX_VECTOR: u64 = 26;
    pub(super) const QUEUE_ENABLE: u64 = 28;
    pub(super) const QUEUE_NOTIFY_OFF: u64 = 30;
    pub(super) const QUEUE_DESC: u64 = 32;
    pub(super) const QUEUE_DRIVER: u64 = 40;
    pub(super) const QUEUE_DEVICE: u64 = 48;
}

/// Memory for rings and buffers: physical memory is mapped one to one.
#[derive(Debug)]
pub struct IdentityHal;

fn dma_layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).expect("ring sizes are small")
}

// SAFETY: allocations are zeroed, page-aligned and nobody else's; virtual addresses are physical ones.
unsafe impl Hal for IdentityHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: the layout's size is not zero.
        let memory = NonNull::new(unsafe { alloc_zeroed(dma_layout(pages)) }).expect("the heap has room for the rings");
        (memory.as_ptr() as PhysAddr, memory)
    }

    unsafe fn dma_dealloc(_: PhysAddr, memory: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller's promise: it came from `dma_alloc` with the same number of pages.
        unsafe { dealloc(memory.as_ptr(), dma_layout(pages)) };
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(paddr as *mut u8).expect("no device lies at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.as_ptr().cast::<u8>() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// One queue: its rings and its doorbell.
#[derive(Debug, Clone, Copy, Default)]
struct Queue {
    size: u16,
    driver_area: u64,
    device_area: u64,
    doorbell: u64,
    event_idx: bool,
    /// Value of the available index at the last flush.
    told: u16,
}

/// The doorbells of a device's queues.
#[derive(Debug, Clone, Default)]
pub struct Doorbells {
    queues: Rc<Cell<[Queue; QUEUES]>>,
    /// The driver's own notifications ring them, too.
    at_once: Rc<Cell<bool>>,
}

/// A virtio device on the PCI bus.
#[derive(Debug)]
pub struct PciTransport {
    kind: DeviceType,
    common: u64,
    notify: u64,
    notify_multiplier: u32,
    isr: u64,
    device_config: Option<(u64, usize)>,
    event_idx: bool,
    doorbells: Doorbells,
    /// Vector of queue 0's interrupt; the other queues have none.
    vector: Option<u8>,
}

impl PciTransport {
    /// Finds the network device and sets up its MSI-X interrupt for queue 0 (reception), when a vector is given.
    ///
    /// # Errors
    /// What is missing.
    pub fn find_net(vector: Option<u8>) -> core::result::Result<Self, &'static str> {
        Self::find(DeviceType::Network, vector)
    }

    /// Finds the first device of this kind, and sets up its MSI-X interrupt for queue 0 when a vector is given.
    ///
    /// # Errors
    /// What is missing.
    pub fn find(kind: DeviceType, vector: Option<u8>) -> core::result::Result<Self, &'static str> {
        let device = pci::find(VENDOR, MODERN + kind as u16).ok_or("there is no such virtio device")?;
        let bars = pci::enable(device)?;
        let mut transport = Self {
            kind,
            common: 0,
            notify: 0,
            notify_multiplier: 0,
            isr: 0,
            device_config: None,
            event_idx: false,
            doorbells: Doorbells::default(),
            vector,
        };
        let mut msix = false;
        for capability in pci::root().capabilities(device) {
            let word = |at: u8| pci::ConfigPorts.read_word(device, capability.offset.wrapping_add(at));
            match capability.id {
                CAP_VENDOR => transport.add_structure((capability.private_header >> 8) as u8, &bars, word)?,
                CAP_MSIX => {
                    if let Some(vector) = vector {
                        set_up_msix(device, capability.offset, &bars, word(4), vector)?;
                        msix = true;
                    }
                }
                _ => {}
            }
        }
        if transport.common == 0 || transport.notify == 0 || transport.isr == 0 {
            return Err("the device lacks a virtio capability");
        }
        if vector.is_some() && !msix {
            return Err("the device has no MSI-X");
        }
        Ok(transport)
    }

    /// Takes over one `struct virtio_pci_cap` (4.1.4).
    fn add_structure(
        &mut self,
        kind: u8,
        bars: &[Option<u64>; 6],
        word: impl Fn(u8) -> u32,
    ) -> core::result::Result<(), &'static str> {
        let Some(Some(bar)) = bars.get((word(4) & 0xff) as usize) else {
            // Kind 5, access by configuration space, names no BAR.
            return if kind <= 4 { Err("a virtio capability names an absent BAR") } else { Ok(()) };
        };
        let address = bar.checked_add(u64::from(word(8))).ok_or("a virtio capability lies outside memory")?;
        match kind {
            1 if self.common == 0 => self.common = address,
            2 if self.notify == 0 => {
                self.notify = address;
                self.notify_multiplier = word(16);
            }
            3 if self.isr == 0 => self.isr = address,
            4 if self.device_config.is_none() => self.device_config = Some((address, word(12) as usize)),
            _ => {}
        }
        Ok(())
    }

    fn common_write<T>(&mut self, offset: u64, value: T) {
        // SAFETY: a register of the device; the rings and buffers it is told about belong to it.
        unsafe { ((self.common + offset) as *mut T).write_volatile(value) }
    }

    fn common_read<T: FromBytes>(&self, offset: u64) -> T {
        // SAFETY: a register of the device.
        unsafe { ((self.common + offset) as *const T).read_volatile() }
    }

    /// Address of the common configuration (4.1.4.3).
    #[must_use]
    pub fn common_config(&self) -> u64 {
        self.common
    }

    /// The doorbells, to be rung while somebody else owns the transport.
    #[must_use]
    pub fn doorbells(&self) -> Doorbells {
        self.doorbells.clone()
    }
}

impl Doorbells {
    /// Whether what the driver adds is told at once, rather than in the next [`flush`](Self::flush).
    pub fn ring_at_once(&self, at_once: bool) {
        self.at_once.set(at_once);
    }

    /// Rings a queue's doorbell whatever its rings say.
    pub fn ring(&self, queue: u16) {
        let doorbell = self.queues.get().get(usize::from(queue)).map_or(0, |queue| queue.doorbell);
        if doorbell != 0 {
            // SAFETY: the queue's doorbell.
            unsafe { (doorbell as *mut u16).write_volatile(queue) };
        }
    }

    /// Tells the device about the buffers added since the last call, per queue once and only when it wants to know.
    pub fn flush(&self) {
        // What the device asks for is read after what was added is visible to it (2.7.13.4.1).
        fence(Ordering::SeqCst);
        let mut queues = self.queues.get();
        for (number, queue) in (0u16..).zip(queues.iter_mut()) {
            if queue.size == 0 {
                continue;
            }
            // SAFETY: both areas are allocated and laid out as 2.7.6 and 2.7.8 say, for `size` entries.
            let (available, wants) = unsafe {
                let available = ((queue.driver_area + 2) as *const u16).read_volatile();
                let wants = if queue.event_idx {
                    let event = (queue.device_area + 4 + 8 * u64::from(queue.size)) as *const u16;
                    available.wrapping_sub(event.read_volatile()).wrapping_sub(1) < available.wrapping_sub(queue.told)
                } else {
                    (queue.device_area as *const u16).read_volatile() & 1 == 0
                };
                (available, wants)
            };
            if available != queue.told && wants {
                // SAFETY: the queue's doorbell.
                unsafe { (queue.doorbell as *mut u16).write_volatile(number) };
            }
            queue.told = available;
        }
        self.queues.set(queues);
    }
}

/// Points entry 0 of the MSI-X table at this CPU and enables MSI-X (PCI 3.0, 6.8.2).
fn set_up_msix(
    device: DeviceFunction,
    capability: u8,
    bars: &[Option<u64>; 6],
    table: u32,
    vector: u8,
) -> core::result::Result<(), &'static str> {
    let bar = bars.get((table & 7) as usize).copied().flatten().ok_or("the MSI-X table names an absent BAR")?;
    let entry = (bar + u64::from(table & !7)) as *mut u32;
    let mut config = pci::ConfigPorts;
    let control = config.read_word(device, capability);
    config.write_word(device, capability, control | 1 << 31);
    for (index, value) in [lapic::msi_address(), 0, u32::from(vector), 0].into_iter().enumerate() {
        // SAFETY: entry 0 of the device's MSI-X table: address, upper address, data, mask.
        unsafe { entry.add(index).write_volatile(value) };
    }
    Ok(())
}

impl Transport for PciTransport {
    fn device_type(&self) -> DeviceType {
        self.kind
    }

    fn read_device_features(&mut self) -> u64 {
        let mut features = 0;
        for half in 0..2u32 {
            self.common_write(common::DEVICE_FEATURE_SELECT, half);
            features |= u64::from(self.common_read::<u32>(common::DEVICE_FEATURE)) << (32 * half);
        }
        features
    }

    fn write_driver_features(&mut self, features: u64) {
        self.event_idx = features & EVENT_IDX != 0;
        for half in 0..2u32 {
            self.common_write(common::DRIVER_FEATURE_SELECT, half);
            self.common_write(common::DRIVER_FEATURE, (features >> (32 * half)) as u32);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.common_write(common::QUEUE_SELECT, queue);
        self.common_read::<u16>(common::QUEUE_SIZE).into()
    }

    /// Nothing, unless it is to be [at once](Doorbells::ring_at_once): see [`Doorbells::flush`].
    fn notify(&mut self, _: u16) {
        if self.doorbells.at_once.get() {
            self.doorbells.flush();
        }
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(self.common_read::<u8>(common::STATUS).into())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.common_write(common::STATUS, status.bits() as u8);
        if status.is_empty() {
            // A reset is complete when the device says so (4.1.4.3.2); it also forgets the vectors.
            while self.common_read::<u8>(common::STATUS) != 0 {}
            self.common_write(common::MSIX_CONFIG, NO_VECTOR);
        }
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, descriptors: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        self.common_write(common::QUEUE_SELECT, queue);
        self.common_write(common::QUEUE_SIZE, size as u16);
        let vector = if queue == 0 && self.vector.is_some() { 0 } else { NO_VECTOR };
        self.common_write(common::QUEUE_MSIX_VECTOR, vector);
        for (offset, address) in
            [(common::QUEUE_DESC, descriptors), (common::QUEUE_DRIVER, driver), (common::QUEUE_DEVICE, device)]
        {
            // In halves: 64-bit accesses are optional (4.1.3.1).
            self.common_write(offset, address as u32);
            self.common_write(offset + 4, (address >> 32) as u32);
        }
        let notify_off = u64::from(self.common_read::<u16>(common::QUEUE_NOTIFY_OFF));
        self.common_write(common::QUEUE_ENABLE, 1u16);
        let doorbell = self.notify + notify_off * u64::from(self.notify_multiplier);
        let mut queues = self.doorbells.queues.get();
        if let Some(known) = queues.get_mut(usize::from(queue)) {
            let event_idx = self.event_idx;
            *known =
                Queue { size: size as u16, driver_area: driver, device_area: device, doorbell, event_idx, told: 0 };
        }
        self.doorbells.queues.set(queues);
    }

    fn queue_unset(&mut self, _: u16) {}

    fn queue_used(&mut self, queue: u16) -> bool {
        self.common_write(common::QUEUE_SELECT, queue);
        self.common_read::<u16>(common::QUEUE_ENABLE) == 1
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        // SAFETY: the ISR register; reading it clears it.
        InterruptStatus::from_bits_truncate(unsafe { (self.isr as *const u8).read_volatile() }.into())
    }

    fn read_config_generation(&self) -> u32 {
        self.common_read::<u8>(common::CONFIG_GENERATION).into()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let (address, len) = self.device_config.ok_or(Error::ConfigSpaceMissing)?;
        if offset.checked_add(size_of::<T>()).is_none_or(|end| end > len) {
            return Err(Error::ConfigSpaceTooSmall);
        }
        let mut value = MaybeUninit::<T>::uninit();
        for index in 0..size_of::<T>() {
            // SAFETY: checked to lie within the device's configuration; any bytes make a value of a `FromBytes` type.
            unsafe {
                let byte = ((address as usize + offset + index) as *const u8).read_volatile();
                value.as_mut_ptr().cast::<u8>().add(index).write(byte);
            }
        }
        // SAFETY: all bytes were written.
        Ok(unsafe { value.assume_init() })
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _: usize, _: T) -> Result<()> {
        // The configuration of the devices that we have is read-only (5.1.4, and 5.2.4 without what we do not negotiate).
        Err(Error::Unsupported)
    }
}
