//! PCI configuration space: access mechanism #1, and functions made of bytes and write masks.
//! See: PCI Local Bus Specification 3.0, sections 3.2.2.3.2 and 6.

use super::access::Size;
use super::lapic::{Destination, Lapic, Trigger};
use crate::state::{State, StateError, Visitor};

/// First byte of the window for memory BARs: where RAM ends.
pub const WINDOW_START: u64 = 0xC000_0000;
/// First byte after the window.
pub const WINDOW_END: u64 = 0xFEC0_0000;

/// Configuration address port.
pub const ADDRESS: u16 = 0xCF8;
/// First configuration data port.
pub const DATA: u16 = 0xCFC;

/// Command register: memory BARs are decoded.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command register: the function may access memory.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Command register: no INTx.
pub const COMMAND_NO_INTX: u16 = 1 << 10;
/// Status register: INTx is asserted.
pub const STATUS_INTX: u8 = 1 << 3;

/// Offsets in configuration space. See: 6.1.
pub mod offset {
    /// Command register.
    pub const COMMAND: u8 = 0x04;
    /// Status register.
    pub const STATUS: u8 = 0x06;
    /// First base address register.
    pub const BAR0: u8 = 0x10;
    /// First capability.
    pub const CAPABILITIES: u8 = 0x34;
    /// Interrupt line, for software only.
    pub const INTERRUPT_LINE: u8 = 0x3C;
    /// Interrupt pin: 1 is INTA.
    pub const INTERRUPT_PIN: u8 = 0x3D;
}

/// The configuration space of one function: its bytes, and which of their bits software can change.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; 256],
    writable: [u8; 256],
}

impl ConfigSpace {
    /// A type 0 function. `class` is class, subclass, programming interface.
    #[must_use]
    pub fn new(vendor: u16, device: u16, revision: u8, class: [u8; 3]) -> Self {
        let mut space = Self { bytes: [0; 256], writable: [0; 256] };
        space.put(0x00, &vendor.to_le_bytes());
        space.put(0x02, &device.to_le_bytes());
        space.put(0x08, &[revision, class[2], class[1], class[0]]);
        space.allow(offset::INTERRUPT_LINE, &[0xFF]);
        space.allow(0x0C, &[0xFF]);
        space
    }

    /// Sets bytes at `at`, writable or not. The caller keeps inside the 256 bytes.
    pub fn put(&mut self, at: u8, bytes: &[u8]) {
        let at = usize::from(at);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Makes the bits in `mask` at `at` writable.
    pub fn allow(&mut self, at: u8, mask: &[u8]) {
        let at = usize::from(at);
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// A 32-bit memory BAR of `len` bytes (a power of two), placed at `address` and decoded from the start.
    pub fn memory_bar(&mut self, index: u8, address: u32, len: u32) {
        debug_assert!(len.is_power_of_two() && len >= 16 && address.is_multiple_of(len));
        let at = offset::BAR0 + 4 * index;
        self.put(at, &address.to_le_bytes());
        self.allow(at, &(!(len - 1)).to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_NO_INTX;
        self.allow(offset::COMMAND, &command.to_le_bytes());
        self.put(offset::COMMAND, &COMMAND_MEMORY.to_le_bytes());
    }

    /// Adds a capability at `at`, at the head of the list. `body` starts after the next pointer.
    pub fn capability(&mut self, at: u8, id: u8, body: &[u8]) {
        let next = self.bytes[usize::from(offset::CAPABILITIES)];
        self.put(at, &[id, next]);
        self.put(at + 2, body);
        self.put(offset::CAPABILITIES, &[at]);
        // Status: there is a capability list.
        self.bytes[usize::from(offset::STATUS)] |= 1 << 4;
    }

    /// Reads; bytes beyond the space do not exist.
    #[must_use]
    pub fn read(&self, at: u8, size: Size) -> u32 {
        let mut raw = [0; 4];
        let len = (size.bytes() as usize).min(4).min(256 - usize::from(at));
        raw[..len].copy_from_slice(&self.bytes[usize::from(at)..][..len]);
        u32::from_le_bytes(raw)
    }

    /// Writes the writable bits.
    pub fn write(&mut self, at: u8, size: Size, value: u32) {
        let places = self.bytes[usize::from(at)..].iter_mut().zip(&self.writable[usize::from(at)..]);
        for ((byte, mask), new) in places.zip(value.to_le_bytes()).take(size.bytes() as usize) {
            *byte = *byte & !mask | new & mask;
        }
    }

    /// A 16-bit register.
    #[must_use]
    pub fn u16(&self, at: u8) -> u16 {
        self.read(at, Size::Word) as u16
    }

    /// The address of a memory BAR while it is decoded and lies in the window.
    #[must_use]
    pub fn bar(&self, index: u8) -> Option<u64> {
        let address = u64::from(self.read(offset::BAR0 + 4 * index, Size::Dword) & !0xF);
        let decoded = self.u16(offset::COMMAND) & COMMAND_MEMORY != 0;
        (decoded && (WINDOW_START..WINDOW_END).contains(&address)).then_some(address)
    }
}

impl State for ConfigSpace {
    /// What software cannot write is fixed by the code, and compared rather than loaded.
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        let old = self.bytes;
        v.bytes(&mut self.bytes)?;
        let fixed = |at: usize| old[at] & !self.writable[at] == self.bytes[at] & !self.writable[at];
        if (0..256).all(fixed) { Ok(()) } else { Err(StateError::BadValue("PCI configuration space")) }
    }
}

/// The host bridge 00:00.0.
#[must_use]
pub fn host_bridge() -> ConfigSpace {
    // An Intel host bridge without any quirk in operating systems.
    ConfigSpace::new(0x8086, 0x0D57, 0, [0x06, 0x00, 0x00])
}

/// A function's memory write that is a message-signalled interrupt. Other addresses are ignored.
/// See: SDM volume 3, 11.11.
pub fn send_msi(address: u64, data: u32, lapic: &mut Lapic) {
    if address >> 20 == 0xFEE {
        let destination = Destination::new((address >> 12) as u32 & 0xFF, address & 1 << 2 != 0);
        lapic.message(destination, (data >> 8 & 7) as u8, data as u8, Trigger::new(data & 1 << 15 != 0));
    }
}

/// The address register of mechanism #1.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConfigAddress(u32);

impl ConfigAddress {
    /// The register's value.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Writes the register; reserved bits read as zero.
    pub fn set(&mut self, value: u32) {
        self.0 = value & 0x80FF_FFFC;
    }

    /// What an access to data port `port` (0xCFC–0xCFF) means: device on bus 0 and offset. `None`: nothing there.
    #[must_use]
    pub const fn target(self, port: u16) -> Option<(u8, u8)> {
        let enabled = self.0 >> 31 != 0;
        let bus_and_function = self.0 >> 16 & 0xFF | self.0 >> 8 & 7;
        if !enabled || bus_and_function != 0 {
            return None;
        }
        Some(((self.0 >> 11 & 0x1F) as u8, (self.0 as u8 & 0xFC) + (port & 3) as u8))
    }
}

impl State for ConfigAddress {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.u32(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_sized_and_moved() {
        let mut space = ConfigSpace::new(1, 2, 3, [4, 5, 6]);
        space.memory_bar(0, 0xE000_0000, 0x8000);
        assert_eq!(space.bar(0), Some(0xE000_0000));
        space.write(offset::BAR0, Size::Dword, u32::MAX);
        assert_eq!(space.read(offset::BAR0, Size::Dword), 0xFFFF_8000);
        space.write(offset::BAR0, Size::Dword, 0xC123_4567);
        assert_eq!(space.bar(0), Some(0xC123_0000));
        space.write(offset::COMMAND, Size::Byte, 0);
        assert_eq!(space.bar(0), None);
        space.write(0, Size::Dword, 0);
        assert_eq!(space.read(0, Size::Dword), 0x0002_0001);
        assert_eq!(space.read(0xFF, Size::Dword), 0);
        space.write(0xFF, Size::Dword, 7);
    }

    #[test]
    fn mechanism_1_addresses() {
        let mut address = ConfigAddress::default();
        assert_eq!(address.target(DATA), None);
        address.set(0x8000_0813);
        assert_eq!(address.target(DATA + 2), Some((1, 0x12)));
        address.set(0x8001_0810);
        assert_eq!(address.target(DATA), None);
        address.set(0x8000_0910);
        assert_eq!(address.target(DATA), None);
    }
}
