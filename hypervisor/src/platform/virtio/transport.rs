//! The PCI transport: one function per device, everything in one 32-bit memory BAR.
//! See: VIRTIO 1.2, section 4.1.

use super::msix::{CONTROL_ENABLE, MAX_VECTORS, Msix};
use super::queue::{Queue, QueueError};
use super::{Device, F_VERSION_1, Signals};
use crate::memory::GuestMemory;
use crate::platform::access::{Outputs, Size};
use crate::platform::lapic::Lapic;
use crate::platform::pci::{COMMAND_MASTER, COMMAND_NO_INTX, ConfigSpace, STATUS_INTX, offset};
use crate::state::{State, StateError, Visitor};
use alloc::vec::Vec;

/// Length of the BAR in bytes.
pub const BAR_LEN: u32 = 0x8000;

/// The parts of the BAR, a page each.
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const CONFIG: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x5000;
/// Bytes between the notification addresses of two queues.
const NOTIFY_STRIDE: u32 = 4;
/// Length of the common configuration. See: 4.1.4.3.
const COMMON_LEN: usize = 0x38;

/// Offsets of capabilities in configuration space.
const CAP_COMMON: u8 = 0x40;
const CAP_ISR: u8 = 0x50;
const CAP_CONFIG: u8 = 0x60;
const CAP_NOTIFY: u8 = 0x70;
const CAP_WINDOW: u8 = 0x84;
const CAP_MSIX: u8 = 0x98;
/// The window capability's data register.
const WINDOW_DATA: u8 = CAP_WINDOW + 16;

/// "No vector". See: 4.1.5.1.2.
const NO_VECTOR: u16 = 0xFFFF;

const STATUS_DRIVER_OK: u8 = 0x04;
const STATUS_FEATURES_OK: u8 = 0x08;
const STATUS_NEEDS_RESET: u8 = 0x40;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// What a device works on while it handles an access.
pub struct Io<'a> {
    /// The guest's memory.
    pub memory: &'a mut GuestMemory,
    /// Where outputs go.
    pub out: &'a mut dyn Outputs,
    /// Where interrupts go.
    pub lapic: &'a mut Lapic,
}

/// A virtio device as a PCI function.
#[derive(Clone)]
pub struct Transport<D> {
    /// The device behind the transport.
    pub device: D,
    space: ConfigSpace,
    msix: Msix,
    queues: Vec<Queue>,
    queue_vectors: [u16; MAX_VECTORS],
    config_vector: u16,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    status: u8,
    isr: u8,
    /// How often the device had to ask for a reset. Not part of the state.
    malformed: u64,
}

impl<D: Device> Transport<D> {
    /// A function whose BAR firmware would have placed at `address`, with `interrupt_line` for drivers without MSI-X.
    #[must_use]
    pub fn new(device: D, address: u32, interrupt_line: u8) -> Self {
        const { assert!((D::QUEUES as usize) < MAX_VECTORS) };
        let mut space = ConfigSpace::new(0x1AF4, 0x1040 + D::ID, 1, D::CLASS);
        space.put(0x2C, &[0xF4, 0x1A, 0x40, 0x00]);
        space.put(offset::INTERRUPT_LINE, &[interrupt_line]);
        space.put(offset::INTERRUPT_PIN, &[1]);
        space.memory_bar(0, address, BAR_LEN);
        capabilities::<D>(&mut space);
        Self {
            device,
            space,
            msix: Msix::new(),
            queues: (0..D::QUEUES).map(|_| Queue::new()).collect(),
            queue_vectors: [NO_VECTOR; MAX_VECTORS],
            config_vector: NO_VECTOR,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            status: 0,
            isr: 0,
            malformed: 0,
        }
    }

    /// How often the driver broke its queues so that the device asked for a reset.
    #[must_use]
    pub const fn malformed(&self) -> u64 {
        self.malformed
    }

    /// The byte offset of `gpa` in the BAR, if it lies there and the BAR is decoded.
    #[must_use]
    pub fn decode(&self, gpa: u64) -> Option<u64> {
        let at = gpa.checked_sub(self.space.bar(0)?)?;
        (at < u64::from(BAR_LEN)).then_some(at)
    }

    /// The INTx line.
    #[must_use]
    pub fn line(&self) -> bool {
        self.isr != 0 && !self.msix_enabled() && self.space.u16(offset::COMMAND) & COMMAND_NO_INTX == 0
    }

    fn control(&self) -> u16 {
        self.space.u16(CAP_MSIX + 2)
    }

    fn msix_enabled(&self) -> bool {
        self.control() & CONTROL_ENABLE != 0
    }

    /// Reads configuration space.
    pub fn config_read(&mut self, at: u8, size: Size) -> u32 {
        if at == WINDOW_DATA
            && let Some((offset, size)) = self.window()
        {
            return self.mmio_read(offset, size) as u32;
        }
        let value = self.space.read(at, size);
        let covers_status = at <= offset::STATUS && u64::from(at) + size.bytes() > u64::from(offset::STATUS);
        if covers_status && self.isr != 0 && !self.msix_enabled() {
            value | u32::from(STATUS_INTX) << (8 * (offset::STATUS - at))
        } else {
            value
        }
    }

    /// Writes configuration space.
    pub fn config_write(&mut self, at: u8, size: Size, value: u32, io: &mut Io<'_>) {
        if at == WINDOW_DATA {
            if let Some((offset, size)) = self.window() {
                self.mmio_write(offset, size, u64::from(value), io);
            }
            return;
        }
        self.space.write(at, size, value);
        self.msix.send_pending(self.control(), io.lapic);
    }

    /// Where the window capability points: an access to the BAR through configuration space. See: 4.1.4.9.
    fn window(&self) -> Option<(u64, Size)> {
        let bar = self.space.read(CAP_WINDOW + 4, Size::Byte);
        let offset = self.space.read(CAP_WINDOW + 8, Size::Dword);
        let size = match self.space.read(CAP_WINDOW + 12, Size::Dword) {
            1 => Size::Byte,
            2 => Size::Word,
            4 => Size::Dword,
            _ => return None,
        };
        (bar == 0 && offset < BAR_LEN && u64::from(offset).is_multiple_of(size.bytes()))
            .then_some((u64::from(offset), size))
    }

    /// Reads at `at` in the BAR.
    pub fn mmio_read(&mut self, at: u64, size: Size) -> u64 {
        let within = at & 0xFFF;
        match at & !0xFFF {
            COMMON => {
                let image = self.common_image();
                read_bytes(&image, within, size)
            }
            ISR if within == 0 => u64::from(core::mem::take(&mut self.isr)),
            CONFIG => {
                let mut image = [0; 64];
                self.device.config(&mut image[..D::CONFIG_LEN]);
                read_bytes(&image, within, size)
            }
            MSIX_TABLE => self.msix.read(within, size),
            MSIX_PENDING => self.msix.read_pending(within, size),
            _ => 0,
        }
    }

    /// Writes at `at` in the BAR.
    pub fn mmio_write(&mut self, at: u64, size: Size, value: u64, io: &mut Io<'_>) {
        let within = at & 0xFFF;
        match at & !0xFFF {
            NOTIFY => self.notify((within / u64::from(NOTIFY_STRIDE)) as u16, io),
            COMMON => self.common_write(within, size, value, io),
            MSIX_TABLE => {
                let control = self.control();
                self.msix.write(within, size, value, control, io.lapic);
            }
            _ => {}
        }
    }

    /// Whether the device may touch queues and memory.
    fn live(&self) -> bool {
        self.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK
            && self.space.u16(offset::COMMAND) & COMMAND_MASTER != 0
    }

    fn notify(&mut self, index: u16, io: &mut Io<'_>) {
        if self.live() {
            let result = self.device.notify(index, &mut self.queues, io.memory, io.out);
            self.finish(result, io.lapic);
        }
    }

    /// Runs `work` on device and queues for an event from outside; without effect unless the driver is ready.
    /// Returns whether it ran.
    pub fn work(
        &mut self,
        memory: &mut GuestMemory,
        lapic: &mut Lapic,
        work: impl FnOnce(&mut D, &mut [Queue], &mut GuestMemory) -> Result<Signals, QueueError>,
    ) -> bool {
        let live = self.live();
        if live {
            let result = work(&mut self.device, &mut self.queues, memory);
            self.finish(result, lapic);
        }
        live
    }

    /// What `look` finds in the queues, that of a driver which is ready.
    pub fn queues(&self, look: impl FnOnce(&[Queue]) -> bool) -> bool {
        self.live() && look(&self.queues)
    }

    fn finish(&mut self, result: Result<Signals, QueueError>, lapic: &mut Lapic) {
        match result {
            Ok(0) => {}
            Ok(mut signals) => {
                let control = self.control();
                if control & CONTROL_ENABLE == 0 {
                    self.isr |= ISR_QUEUE;
                    return;
                }
                while signals != 0 {
                    let queue = signals.trailing_zeros() as usize;
                    signals &= signals - 1;
                    self.msix.raise(self.queue_vectors[queue % MAX_VECTORS], control, lapic);
                }
            }
            Err(error) => self.needs_reset(error, lapic),
        }
    }

    /// The driver broke the rules; it is told to start over. See: 2.1.2.
    fn needs_reset(&mut self, error: QueueError, lapic: &mut Lapic) {
        self.malformed += 1;
        log::warn!("virtio device {} needs a reset: {error}", D::ID);
        self.status |= STATUS_NEEDS_RESET;
        let control = self.control();
        if control & CONTROL_ENABLE == 0 {
            self.isr |= ISR_CONFIG;
        } else {
            self.msix.raise(self.config_vector, control, lapic);
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        self.queues.iter_mut().for_each(|queue| *queue = Queue::new());
        self.queue_vectors = [NO_VECTOR; MAX_VECTORS];
        self.config_vector = NO_VECTOR;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.status = 0;
        self.isr = 0;
        self.msix.clear_pending();
    }

    fn common_image(&self) -> [u8; COMMON_LEN] {
        let mut image = [0; COMMON_LEN];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &self.device_feature_select.to_le_bytes());
        put(0x04, &half(self.device.features(), self.device_feature_select).to_le_bytes());
        put(0x08, &self.driver_feature_select.to_le_bytes());
        put(0x0C, &half(self.driver_features, self.driver_feature_select).to_le_bytes());
        put(0x10, &self.config_vector.to_le_bytes());
        put(0x12, &D::QUEUES.to_le_bytes());
        put(0x14, &[self.status, 0]);
        put(0x16, &self.queue_select.to_le_bytes());
        // A queue that does not exist shows size 0.
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(0x18, &queue.size().to_le_bytes());
            put(0x1A, &self.queue_vectors[usize::from(self.queue_select)].to_le_bytes());
            put(0x1C, &u16::from(queue.enabled()).to_le_bytes());
            put(0x1E, &self.queue_select.to_le_bytes());
            for (index, address) in queue.addresses().iter().enumerate() {
                put(0x20 + 8 * index, &address.to_le_bytes());
            }
        }
        image
    }

    fn common_write(&mut self, at: u64, size: Size, value: u64, io: &mut Io<'_>) {
        let frozen = self.status & STATUS_FEATURES_OK != 0;
        match (at, size) {
            (0x00, Size::Dword) => self.device_feature_select = value as u32,
            (0x08, Size::Dword) => self.driver_feature_select = value as u32,
            (0x0C, Size::Dword) if !frozen => match self.driver_feature_select {
                0 => self.driver_features = self.driver_features & !0xFFFF_FFFF | value,
                1 => self.driver_features = self.driver_features & 0xFFFF_FFFF | value << 32,
                // Bits that no feature has: remembered as a refusal.
                _ if value != 0 => self.driver_features |= 1 << 63,
                _ => {}
            },
            (0x10, Size::Word) => self.config_vector = vector::<D>(value),
            (0x14, Size::Byte) => self.write_status(value as u8, io),
            (0x16, Size::Word) => self.queue_select = value as u16,
            _ => self.queue_write(at, size, value),
        }
    }

    fn queue_write(&mut self, at: u64, size: Size, value: u64) {
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        match (at, size) {
            (0x1A, Size::Word) => self.queue_vectors[usize::from(self.queue_select)] = vector::<D>(value),
            // An enabled queue stays as it is until the device is reset (4.1.4.3.2).
            _ if queue.enabled() => {}
            (0x18, Size::Word) => queue.set_size(value as u16),
            (0x1C, Size::Word) if value == 1 && self.status & STATUS_FEATURES_OK != 0 => {
                queue.enable(self.driver_features);
            }
            (0x20..0x38, Size::Dword | Size::Qword) if at.is_multiple_of(size.bytes()) => {
                let address = queue.address_mut((at as usize - 0x20) / 8);
                let shift = 8 * (at & 7);
                *address = *address & !(size.mask() << shift) | (value & size.mask()) << shift;
            }
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8, io: &mut Io<'_>) {
        if value == 0 {
            return self.reset();
        }
        let old = self.status;
        // The driver can set bits but not clear them, short of a reset, and "needs reset" is ours.
        let mut new = old | value & !STATUS_NEEDS_RESET;
        let offered = self.device.features();
        let acceptable = self.driver_features & !offered == 0 && self.driver_features & F_VERSION_1 != 0;
        if old & STATUS_FEATURES_OK == 0 && !acceptable {
            new &= !STATUS_FEATURES_OK;
        }
        if new & STATUS_FEATURES_OK == 0 {
            new &= !STATUS_DRIVER_OK;
        }
        self.status = new;
        if new & !old & STATUS_DRIVER_OK != 0 {
            let started = self.device.start(self.driver_features, &mut self.queues, io.memory);
            self.finish(started.map(|()| 0), io.lapic);
        }
    }
}

/// A vector as the driver asks for it, or none when the table does not have it.
fn vector<D: Device>(value: u64) -> u16 {
    if value <= u64::from(D::QUEUES) { value as u16 } else { NO_VECTOR }
}

const fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn read_bytes(image: &[u8], at: u64, size: Size) -> u64 {
    let mut raw = [0; 8];
    let source = image.get(at as usize..).unwrap_or(&[]);
    let len = source.len().min(size.bytes() as usize);
    raw[..len].copy_from_slice(&source[..len]);
    u64::from_le_bytes(raw)
}

fn capabilities<D: Device>(space: &mut ConfigSpace) {
    let vectors = D::QUEUES + 1;
    let mut msix = [0; 10];
    msix[..2].copy_from_slice(&(vectors - 1).to_le_bytes());
    msix[2..6].copy_from_slice(&(MSIX_TABLE as u32).to_le_bytes());
    msix[6..].copy_from_slice(&(MSIX_PENDING as u32).to_le_bytes());
    space.capability(CAP_MSIX, 0x11, &msix);
    space.allow(CAP_MSIX + 3, &[0xC0]);

    let mut add = |at: u8, kind: u8, start: u64, len: u32, extra: Option<u32>| {
        let mut body = [0; 18];
        let body_len = if extra.is_some() { 18 } else { 14 };
        body[0] = body_len as u8 + 2;
        body[1] = kind;
        body[6..10].copy_from_slice(&(start as u32).to_le_bytes());
        body[10..14].copy_from_slice(&len.to_le_bytes());
        body[14..].copy_from_slice(&extra.unwrap_or(0).to_le_bytes());
        space.capability(at, 0x09, &body[..body_len]);
    };
    add(CAP_WINDOW, 5, 0, 0, Some(0));
    add(CAP_NOTIFY, 2, NOTIFY, u32::from(D::QUEUES) * NOTIFY_STRIDE, Some(NOTIFY_STRIDE));
    add(CAP_CONFIG, 4, CONFIG, D::CONFIG_LEN as u32, None);
    add(CAP_ISR, 3, ISR, 1, None);
    add(CAP_COMMON, 1, COMMON, COMMON_LEN as u32, None);
    space.allow(CAP_WINDOW + 4, &[0xFF]);
    space.allow(CAP_WINDOW + 8, &[0xFF; 8]);
}

impl<D: Device> State for Transport<D> {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        self.device.visit(v)?;
        self.space.visit(v)?;
        self.msix.visit(v)?;
        self.queues.iter_mut().try_for_each(|queue| queue.visit(v))?;
        self.queue_vectors.iter_mut().try_for_each(|vector| v.u16(vector))?;
        v.u16(&mut self.config_vector)?;
        v.u32(&mut self.device_feature_select)?;
        v.u32(&mut self.driver_feature_select)?;
        v.u64(&mut self.driver_features)?;
        v.u16(&mut self.queue_select)?;
        v.u8(&mut self.status)?;
        v.u8(&mut self.isr)
    }
}
