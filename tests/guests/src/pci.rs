//! PCI: configuration access by ports 0xCF8 and 0xCFC, bus 0 only.
#![allow(unsafe_code)]

use virtio_drivers::transport::pci::bus::{Command, ConfigurationAccess, DeviceFunction, PciRoot};

use crate::cpu;

/// Where BARs are placed that firmware left at 0: in the hole below the local APIC.
const BAR_WINDOW: u64 = 0xe000_0000;
/// Room for each device's.
const DEVICE_WINDOW: u64 = 1 << 20;

/// Configuration mechanism #1 (PCI 3.0, 3.2.2.3.2).
#[derive(Debug, Clone, Copy)]
pub struct ConfigPorts;

impl ConfigPorts {
    fn select(device: DeviceFunction, offset: u8) {
        let address = 1 << 31
            | u32::from(device.bus) << 16
            | u32::from(device.device) << 11
            | u32::from(device.function) << 8
            | u32::from(offset & 0xfc);
        // SAFETY: only selects.
        unsafe { cpu::outl(0xcf8, address) };
    }
}

impl ConfigurationAccess for ConfigPorts {
    fn read_word(&self, device: DeviceFunction, offset: u8) -> u32 {
        Self::select(device, offset);
        cpu::inl(0xcfc)
    }

    fn write_word(&mut self, device: DeviceFunction, offset: u8, value: u32) {
        Self::select(device, offset);
        // SAFETY: the users of this module place BARs in a hole of memory, and enable DMA only with buffers set aside for it.
        unsafe { cpu::outl(0xcfc, value) };
    }

    unsafe fn unsafe_clone(&self) -> Self {
        *self
    }
}

/// The configuration space of bus 0.
#[must_use]
pub fn root() -> PciRoot<ConfigPorts> {
    PciRoot::new(ConfigPorts)
}

/// The first function on bus 0 with this vendor and device ID.
#[must_use]
pub fn find(vendor: u16, device: u16) -> Option<DeviceFunction> {
    root().enumerate_bus(0).find(|(_, info)| info.vendor_id == vendor && info.device_id == device).map(|(at, _)| at)
}

/// Gives every memory BAR an address, turns memory decoding and DMA on, and returns the addresses of the six BARs.
///
/// # Errors
/// What is wrong with the device's BARs.
pub fn enable(device: DeviceFunction) -> Result<[Option<u64>; 6], &'static str> {
    let mut root = root();
    let bars = root.bars(device).map_err(|_| "malformed BAR")?;
    let mut addresses = [None; 6];
    let mut next = BAR_WINDOW + u64::from(device.device) * DEVICE_WINDOW;
    for (index, bar) in bars.iter().enumerate() {
        let Some(bar) = bar else { continue };
        let Some((mut address, size)) = bar.memory_address_size() else { continue };
        if address == 0 {
            address = next.checked_next_multiple_of(size).ok_or("absurd BAR size")?;
            next = address.checked_add(size).filter(|end| *end <= 0xfec0_0000).ok_or("BARs too large")?;
            if bar.takes_two_entries() {
                root.set_bar_64(device, index as u8, address);
            } else {
                root.set_bar_32(device, index as u8, address as u32);
            }
        }
        addresses[index] = Some(address);
    }
    let (_, command) = root.get_status_command(device);
    root.set_command(device, command | Command::MEMORY_SPACE | Command::BUS_MASTER);
    Ok(addresses)
}
