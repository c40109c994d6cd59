//! What differs between the members of the family.

use super::registers::{TCTL_COLD, TCTL_CT, TCTL_EN, TCTL_PSP, TXDCTL_GRAN, TXDCTL_MUST_BE_ONE};

/// A supported card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// 82540EM, PCI 8086:100E: `e1000` of QEMU and Bochs.
    I82540EM,
    /// 82574L, PCI 8086:10D3: `e1000e` of QEMU, and real cards.
    I82574L,
}

/// One line of the table of differences.
#[derive(Debug)]
pub(super) struct Quirks {
    /// EERD: bit that tells that the word was read.
    pub(super) eerd_done: u32,
    /// EERD: position of the word's address.
    pub(super) eerd_address_shift: u32,
    /// PCI Express: stop bus requests before a reset, EEC tells when the EEPROM was loaded, and RFCTL and MRQC exist.
    pub(super) pci_express: bool,
    /// TIPG: inter-packet gap for copper.
    pub(super) tipg: u32,
    /// TCTL: all of it.
    pub(super) tctl: u32,
    /// TXDCTL: all of it. Thresholds of zero: descriptors are fetched and written back at once.
    pub(super) txdctl: u32,
}

const TCTL_COMMON: u32 = TCTL_EN | TCTL_PSP | TCTL_CT | TCTL_COLD;

/// See: 8254x SDM, 13.4.4 (EERD), 13.4.34 (TIPG: 10, 10, 10).
const I82540EM: Quirks = Quirks {
    eerd_done: 1 << 4,
    eerd_address_shift: 8,
    pci_express: false,
    tipg: 10 | 10 << 10 | 10 << 20,
    tctl: TCTL_COMMON,
    txdctl: TXDCTL_GRAN,
};

/// See: 82574L datasheet, 10.2 (EERD, TIPG: 8, 8, 6; TCTL with its default of MULR, several outstanding requests).
const I82574L: Quirks = Quirks {
    eerd_done: 1 << 1,
    eerd_address_shift: 2,
    pci_express: true,
    tipg: 8 | 8 << 10 | 6 << 20,
    tctl: TCTL_COMMON | 1 << 28,
    txdctl: TXDCTL_GRAN | TXDCTL_MUST_BE_ONE,
};

impl Model {
    /// PCI vendor of all models.
    pub const VENDOR: u16 = 0x8086;

    /// The model with these PCI ids, if it is supported.
    pub const fn from_pci_ids(vendor: u16, device: u16) -> Option<Self> {
        match (vendor, device) {
            (Self::VENDOR, 0x100E) => Some(Self::I82540EM),
            (Self::VENDOR, 0x10D3) => Some(Self::I82574L),
            _ => None,
        }
    }

    /// Name for messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::I82540EM => "82540EM (e1000)",
            Self::I82574L => "82574L (e1000e)",
        }
    }

    pub(super) const fn quirks(self) -> &'static Quirks {
        match self {
            Self::I82540EM => &I82540EM,
            Self::I82574L => &I82574L,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_cards_are_taken() {
        assert_eq!(Model::from_pci_ids(0x8086, 0x100E), Some(Model::I82540EM));
        assert_eq!(Model::from_pci_ids(0x8086, 0x10D3), Some(Model::I82574L));
        assert_eq!(Model::from_pci_ids(0x8086, 0x100F), None);
        assert_eq!(Model::from_pci_ids(0x1AF4, 0x100E), None);
    }
}
