//! The PCI bus by configuration mechanism 1. See: PCI Local Bus Specification 3.0, 3.2.2.3.2.
#![allow(unsafe_code)]

use core::fmt;
use core::str::FromStr;

use pci_types::capability::PciCapability;
use pci_types::{Bar, CommandRegister, ConfigRegionAccess, EndpointHeader, HeaderType, PciAddress, PciHeader};
use x86_64::instructions::port::Port;

use super::{apic, aspm, pic};

/// Bus, device and function of a PCI device, written `bus:device.function` with numbers in hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bdf {
    /// Bus.
    pub bus: u8,
    /// Device, 0–31.
    pub device: u8,
    /// Function, 0–7.
    pub function: u8,
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{:x}.{:x}", self.bus, self.device, self.function)
    }
}

impl FromStr for Bdf {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str = "a PCI address is bus:device.function in hex, such as 0:4.0";
        let (bus, rest) = text.split_once(':').ok_or(SHAPE)?;
        let (device, function) = rest.split_once('.').ok_or(SHAPE)?;
        let hex = |text| u8::from_str_radix(text, 16).map_err(|_| SHAPE);
        let bdf = Self { bus: hex(bus)?, device: hex(device)?, function: hex(function)? };
        if bdf.device < 32 && bdf.function < 8 { Ok(bdf) } else { Err(SHAPE) }
    }
}

/// Access by the two ports.
#[derive(Debug, Clone, Copy)]
struct Mechanism1;

impl Mechanism1 {
    fn select(address: PciAddress, offset: u16) {
        let value = 1 << 31
            | u32::from(address.bus()) << 16
            | u32::from(address.device()) << 11
            | u32::from(address.function()) << 8
            | u32::from(offset & 0xFC);
        // SAFETY: the configuration address port only selects what the data port accesses.
        unsafe { Port::new(0xCF8).write(value) }
    }
}

impl ConfigRegionAccess for Mechanism1 {
    unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
        Self::select(address, offset);
        // SAFETY: configuration reads have no effects on the devices that we use.
        unsafe { Port::new(0xCFC).read() }
    }

    unsafe fn write(&self, address: PciAddress, offset: u16, value: u32) {
        Self::select(address, offset);
        // SAFETY: the caller vouches for the write.
        unsafe { Port::new(0xCFC).write(value) }
    }
}

/// A device found on the bus.
#[derive(Debug, Clone, Copy)]
pub struct Device {
    /// Where.
    pub bdf: Bdf,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub id: u16,
}

/// Calls `found` for every endpoint on every bus.
pub fn scan(mut found: impl FnMut(Device)) {
    for bus in 0..=255 {
        for device in 0..32 {
            let functions = if header(bus, device, 0).has_multiple_functions(Mechanism1) { 8 } else { 1 };
            for function in 0..functions {
                let (vendor, id) = header(bus, device, function).id(Mechanism1);
                if vendor != 0xFFFF {
                    found(Device { bdf: Bdf { bus, device, function }, vendor, id });
                }
            }
        }
    }
}

/// The first endpoint with these ids: vendor and device.
#[must_use]
pub fn find(ids: (u16, u16)) -> Option<Bdf> {
    let mut first = None;
    scan(|device| {
        if (device.vendor, device.id) == ids {
            first.get_or_insert(device.bdf);
        }
    });
    first
}

/// Enables memory access of the device at `bdf`; where its registers are, if BAR 0 has so many bytes at least, below 4 GiB.
///
/// # Errors
/// When it has no such BAR.
pub fn enable_memory(bdf: Bdf, bytes: u64) -> Result<u64, PciError> {
    let header = header(bdf.bus, bdf.device, bdf.function);
    let mut endpoint = EndpointHeader::from_header(header, Mechanism1).ok_or(PciError::NoEndpoint(bdf))?;
    match endpoint.bar(0, Mechanism1) {
        Some(Bar::Memory32 { address, size, .. }) if address != 0 && u64::from(size) >= bytes => {
            endpoint.update_command(Mechanism1, |command| command | CommandRegister::MEMORY_ENABLE);
            Ok(u64::from(address))
        }
        _ => Err(PciError::NoMemoryBar(bdf)),
    }
}

/// Selects a register of configuration space; the port of its bytes.
fn data_port(bdf: Bdf, offset: u16) -> u16 {
    Mechanism1::select(PciAddress::new(0, bdf.bus, bdf.device, bdf.function), offset);
    0xCFC + (offset & 3)
}

/// Reads a byte of configuration space. Such reads have no effects on the devices that we use.
#[must_use]
pub fn read8(bdf: Bdf, offset: u16) -> u8 {
    // SAFETY: says the function's description.
    unsafe { Port::new(data_port(bdf, offset)).read() }
}

/// Class, subclass and interface of the device. See: PCI Code and ID Assignment 1.11.
#[must_use]
pub fn class(bdf: Bdf) -> [u8; 3] {
    [0x0B, 0x0A, 0x09].map(|offset| read8(bdf, offset))
}

/// Writes a byte of configuration space, in that width.
///
/// # Safety
/// What the device does then is the caller's affair.
pub unsafe fn write8(bdf: Bdf, offset: u16, value: u8) {
    // SAFETY: the caller vouches for the write.
    unsafe { Port::new(data_port(bdf, offset)).write(value) }
}

/// Writes two bytes of configuration space at an even offset, in that width.
///
/// # Safety
/// As [`write8`].
pub unsafe fn write16(bdf: Bdf, offset: u16, value: u16) {
    // SAFETY: the caller vouches for the write.
    unsafe { Port::new(data_port(bdf, offset)).write(value) }
}

fn header(bus: u8, device: u8, function: u8) -> PciHeader {
    PciHeader::new(PciAddress::new(0, bus, device, function))
}

/// Switches the power management of a device's link off. Which devices need it, drivers know.
pub fn disable_aspm(bdf: Bdf) -> aspm::Link {
    aspm::disable(&Mechanism1, PciAddress::new(0, bdf.bus, bdf.device, bdf.function))
}

/// How a device interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// By messages.
    Msi,
    /// By this line of the 8259 pair, as the firmware routed it.
    Line(u8),
    /// Not at all: it is polled.
    None,
}

/// What a driver needs of its device.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// Which device.
    pub device: Device,
    /// Physical address of BAR 0.
    pub bar0: u64,
    /// Size of BAR 0 in bytes.
    pub bar0_size: u64,
    /// How it interrupts.
    pub interrupt: Interrupt,
}

/// Why a device cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PciError {
    /// Nothing answers at this address.
    Absent(Bdf),
    /// It is a bridge or something else.
    NoEndpoint(Bdf),
    /// BAR 0 is no memory, or the firmware left it unassigned.
    NoMemoryBar(Bdf),
}

impl fmt::Display for PciError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(bdf) => write!(f, "there is no PCI device at {bdf}"),
            Self::NoEndpoint(bdf) => write!(f, "the PCI device at {bdf} is no endpoint"),
            Self::NoMemoryBar(bdf) => write!(f, "the PCI device at {bdf} has no memory assigned to BAR 0"),
        }
    }
}

/// Enables memory access, bus mastering and interrupts of the device at `bdf`.
///
/// # Errors
/// When there is no such device or it has no memory BAR.
pub fn enable(bdf: Bdf, apic: &apic::Apic) -> Result<Endpoint, PciError> {
    let header = header(bdf.bus, bdf.device, bdf.function);
    let (vendor, id) = header.id(Mechanism1);
    if vendor == 0xFFFF {
        return Err(PciError::Absent(bdf));
    }
    if header.header_type(Mechanism1) != HeaderType::Endpoint {
        return Err(PciError::NoEndpoint(bdf));
    }
    let mut endpoint = EndpointHeader::from_header(header, Mechanism1).ok_or(PciError::NoEndpoint(bdf))?;
    let (bar0, bar0_size) = match endpoint.bar(0, Mechanism1) {
        Some(Bar::Memory32 { address, size, .. }) if address != 0 => (u64::from(address), u64::from(size)),
        Some(Bar::Memory64 { address, size, .. }) if address != 0 => (address, size),
        _ => return Err(PciError::NoMemoryBar(bdf)),
    };
    endpoint.update_command(Mechanism1, |command| {
        command | CommandRegister::MEMORY_ENABLE | CommandRegister::BUS_MASTER_ENABLE
    });
    let interrupt = route(&mut endpoint, apic);
    Ok(Endpoint { device: Device { bdf, vendor, id }, bar0, bar0_size, interrupt })
}

fn route(endpoint: &mut EndpointHeader, apic: &apic::Apic) -> Interrupt {
    let msi = endpoint.capabilities(Mechanism1).find_map(|capability| match capability {
        PciCapability::Msi(msi) => Some(msi),
        _ => None,
    });
    if let Some(msi) = msi {
        // See: SDM volume 3, 11.11: fixed delivery to one APIC id, edge.
        let address = 0xFEE0_0000 | u64::from(apic.id()) << 12;
        msi.set_message_info(address, u32::from(apic::MSI_VECTOR), Mechanism1);
        msi.set_enabled(true, Mechanism1);
        return Interrupt::Msi;
    }
    let (pin, line) = endpoint.interrupt(Mechanism1);
    if pin == 0 || line >= pic::LINES {
        return Interrupt::None;
    }
    pic::unmask(line);
    Interrupt::Line(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_refused() {
        assert_eq!("0:1f.7".parse(), Ok(Bdf { bus: 0, device: 31, function: 7 }));
        for bad in ["", "0:4", "4.0", "0:20.0", "0:4.8", "100:0.0", "x:0.0"] {
            assert!(bad.parse::<Bdf>().is_err(), "{bad}");
        }
    }
}
