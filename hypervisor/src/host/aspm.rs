//! Active state power management of a PCI Express link, switched off at both ends.
//!
//! Registers are those of the PCI Express capability, which lies in the part of configuration space that every access
//! mechanism reaches. See: PCI Express Base Specification 3.0, 5.4.1 and 7.8.
#![allow(unsafe_code)]

use core::fmt;

use pci_types::{ConfigRegionAccess, HeaderType, PciAddress, PciHeader, PciPciBridgeHeader};

/// Status register, in the upper half of this word: there are capabilities.
const COMMAND_STATUS: u16 = 0x04;
const STATUS_CAPABILITIES: u32 = 1 << 20;
/// Where the list of capabilities begins, for endpoints and bridges alike.
const CAPABILITIES: u16 = 0x34;
/// First offset at which a capability may lie, and how many there are at most.
const FIRST_CAPABILITY: u16 = 0x40;
const MAX_CAPABILITIES: usize = 48;
const PCI_EXPRESS: u32 = 0x10;
/// Link Control in the lower half of this word of the capability, Link Status in the upper.
const LINK_CONTROL: u16 = 0x10;
/// ASPM Control: L0s, L1.
const ASPM: u32 = 0b11;

/// What was found at one end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// No PCI Express.
    NoLink,
    /// It was off.
    WasOff,
    /// It was on, and is off now.
    SwitchedOff,
    /// It stayed on.
    Stuck,
}

/// What was found at both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The device's.
    pub device: End,
    /// The port's above it; none for a device on the root bus, or when its bridge was not found.
    pub upstream: Option<End>,
}

impl Link {
    /// Whether power management may still be on at one end.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.device == End::Stuck || self.upstream == Some(End::Stuck)
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |end| match end {
            End::NoLink => "no PCI Express",
            End::WasOff => "off already",
            End::SwitchedOff => "switched off",
            End::Stuck => "cannot be switched off",
        };
        write!(f, "ASPM: {} at the card, ", word(self.device))?;
        f.write_str(self.upstream.map_or("no port above it", word))?;
        if self.upstream.is_some() { f.write_str(" at the port above it") } else { Ok(()) }
    }
}

/// Switches L0s and L1 off: at the device first, then at the port above it, as the specification demands (5.4.1.3).
pub fn disable(access: &impl ConfigRegionAccess, device: PciAddress) -> Link {
    let below = switch_off(access, device);
    Link { device: below, upstream: upstream(access, device.bus()).map(|port| switch_off(access, port)) }
}

/// The bridge to a bus. Its own bus has a lower number.
fn upstream(access: &impl ConfigRegionAccess, bus: u8) -> Option<PciAddress> {
    for above in 0..bus {
        for device in 0..32 {
            let functions =
                if PciHeader::new(PciAddress::new(0, above, device, 0)).has_multiple_functions(access) { 8 } else { 1 };
            for function in 0..functions {
                let header = PciHeader::new(PciAddress::new(0, above, device, function));
                if header.id(access).0 == 0xFFFF || header.header_type(access) != HeaderType::PciPciBridge {
                    continue;
                }
                let address = header.address();
                let leads_here = |bridge: PciPciBridgeHeader| bridge.secondary_bus_number(access) == bus;
                if PciPciBridgeHeader::from_header(header, access).is_some_and(leads_here) {
                    return Some(address);
                }
            }
        }
    }
    None
}

fn switch_off(access: &impl ConfigRegionAccess, address: PciAddress) -> End {
    let Some(capability) = pci_express(access, address) else { return End::NoLink };
    let register = capability + LINK_CONTROL;
    let before = read(access, address, register);
    if before & ASPM == 0 {
        return End::WasOff;
    }
    // Zeros to Link Status, where ones would clear bits.
    // SAFETY: only the power management of this link is changed.
    unsafe { access.write(address, register, before & 0xFFFF & !ASPM) };
    if read(access, address, register) & ASPM == 0 { End::SwitchedOff } else { End::Stuck }
}

/// Where the PCI Express capability is. A list that leads astray or in circles ends.
fn pci_express(access: &impl ConfigRegionAccess, address: PciAddress) -> Option<u16> {
    if read(access, address, COMMAND_STATUS) & STATUS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = read(access, address, CAPABILITIES) as u16 & 0xFC;
    for _ in 0..MAX_CAPABILITIES {
        if at < FIRST_CAPABILITY {
            return None;
        }
        let head = read(access, address, at);
        if head & 0xFF == PCI_EXPRESS {
            return (at <= 0xFC - LINK_CONTROL).then_some(at);
        }
        at = (head >> 8) as u16 & 0xFC;
    }
    None
}

fn read(access: &impl ConfigRegionAccess, address: PciAddress, offset: u16) -> u32 {
    // SAFETY: reading these registers has no effects.
    unsafe { access.read(address, offset) }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const LINK_STATUS: u32 = 0xC011 << 16;

    /// Configuration space of a bus with some devices; what is not there reads as ones.
    #[derive(Default)]
    struct Bus {
        words: RefCell<BTreeMap<(PciAddress, u16), u32>>,
        writes: RefCell<Vec<(PciAddress, u16, u32)>>,
        /// Registers that ignore writes.
        fixed: Vec<PciAddress>,
    }

    impl ConfigRegionAccess for Bus {
        unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
            assert!(offset <= 0xFC && offset.is_multiple_of(4), "{offset:#x}");
            let words = self.words.borrow();
            let absent = if words.contains_key(&(address, 0)) { 0 } else { u32::MAX };
            words.get(&(address, offset)).copied().unwrap_or(absent)
        }

        unsafe fn write(&self, address: PciAddress, offset: u16, value: u32) {
            self.writes.borrow_mut().push((address, offset, value));
            if !self.fixed.contains(&address) {
                let mut words = self.words.borrow_mut();
                let word = words.entry((address, offset)).or_default();
                *word = *word & 0xFFFF_0000 | value & 0xFFFF;
            }
        }
    }

    fn at(bus: u8, device: u8) -> PciAddress {
        PciAddress::new(0, bus, device, 0)
    }

    impl Bus {
        /// A device with power management, MSI and PCI Express capabilities. A bridge leads to bus `secondary`.
        fn add(&mut self, address: PciAddress, secondary: Option<u8>, control: u32) {
            let kind = if secondary.is_some() { 1 << 16 } else { 0 };
            let buses = secondary.map_or(0, |bus| u32::from(bus) << 16 | u32::from(bus) << 8);
            let words = [
                (0x00, 0x10D3_8086),
                (0x04, STATUS_CAPABILITIES),
                (0x0C, kind),
                (0x18, buses),
                (0x34, 0xC8),
                (0xC8, 0xD001),
                (0xD0, 0xE005),
                (0xE0, PCI_EXPRESS),
                (0xF0, LINK_STATUS | control),
            ];
            self.words.borrow_mut().extend(words.map(|(offset, word)| ((address, offset), word)));
        }

        fn control(&self, address: PciAddress) -> u32 {
            self.words.borrow()[&(address, 0xF0)]
        }
    }

    #[test]
    fn both_ends_are_switched_off_the_card_first() {
        let mut bus = Bus::default();
        bus.add(at(0, 1), Some(1), 0x43);
        bus.add(at(0, 2), Some(3), 0x42);
        bus.add(at(3, 0), None, 0x41);
        let link = disable(&bus, at(3, 0));
        assert_eq!(link, Link { device: End::SwitchedOff, upstream: Some(End::SwitchedOff) });
        assert_eq!((bus.control(at(3, 0)), bus.control(at(0, 2))), (LINK_STATUS | 0x40, LINK_STATUS | 0x40));
        assert_eq!(*bus.writes.borrow(), [(at(3, 0), 0xF0, 0x40), (at(0, 2), 0xF0, 0x40)], "link status gets zeros");
        assert_eq!(bus.control(at(0, 1)), LINK_STATUS | 0x43, "not ours");
        assert_eq!(disable(&bus, at(3, 0)), Link { device: End::WasOff, upstream: Some(End::WasOff) });
        assert_eq!(bus.writes.borrow().len(), 2);
    }

    #[test]
    fn what_cannot_be_done_is_told() {
        let mut bus = Bus::default();
        bus.add(at(0, 2), Some(3), 3);
        bus.add(at(3, 0), None, 3);
        bus.fixed = vec![at(0, 2)];
        let link = disable(&bus, at(3, 0));
        assert_eq!(link, Link { device: End::SwitchedOff, upstream: Some(End::Stuck) });
        assert!(link.is_stuck());
        assert_eq!(link.to_string(), "ASPM: switched off at the card, cannot be switched off at the port above it");
    }

    #[test]
    fn on_the_root_bus_or_without_pci_express_there_is_nothing_above() {
        let mut bus = Bus::default();
        bus.add(at(0, 4), None, 3);
        assert_eq!(disable(&bus, at(0, 4)), Link { device: End::SwitchedOff, upstream: None });
        bus.words.borrow_mut().insert((at(0, 4), 0xE0), 0x11);
        let link = disable(&bus, at(0, 4));
        assert_eq!(link.to_string(), "ASPM: no PCI Express at the card, no port above it");
        assert_eq!(disable(&Bus::default(), at(9, 0)).upstream, None);
    }

    proptest! {
        /// Lists in circles, beyond the end, into the header; nothing but link control is ever written.
        #[test]
        fn arbitrary_lists_end(words in prop::collection::vec(any::<u32>(), 64)) {
            let mut bus = Bus::default();
            bus.add(at(0, 2), Some(3), 3);
            let entries = words.iter().enumerate().skip(1).map(|(index, word)| ((at(3, 0), 4 * index as u16), *word));
            bus.words.borrow_mut().extend(entries);
            bus.words.borrow_mut().insert((at(3, 0), 0), 0x10D3_8086);
            disable(&bus, at(3, 0));
            prop_assert!(bus.writes.borrow().len() <= 2);
            prop_assert!(bus.writes.borrow().iter().all(|(_, _, value)| value & 0xFFFF_0003 == 0));
        }
    }
}
