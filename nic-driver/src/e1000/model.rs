//! What differs between the members of the family, and their errata.
//!
//! Errata that matter to what this driver does. Source are the datasheets and the work-arounds of Linux' drivers; the cards'
//! specification updates were not at hand, nor was a real card.
//!
//! | card | what goes wrong | what is done |
//! |---|---|---|
//! | 82574L | with ASPM L0s or L1 on, the card hangs or vanishes from the bus | off at both ends of the link before the card is touched ([`Model::needs_aspm_off`]) |
//! | 82574L | completions are unreliable, worst with ASPM, and transmission hangs | GCR2 bit 0 and GCR bit 22 are set at the start |
//! | 82574L | TXDCTL bit 22 must be written as one | it is |
//! | 82574L | reception that is switched off under load may not come back | it is switched off only before a reset and at the end |
//! | 82574L | the PHY may hang, with its error counters full | nothing: no traffic passes, as with a broken cable |
//! | 82574L | a reset may cut bus requests off | they are stopped first, and awaited (CTRL bit 2) |
//! | both | the card pads frames of at least 17 bytes only | frames are padded to 60 bytes by us |
//! | both | faults of offloads, of several queues, of MSI-X, of management pass-through | none of these is used: legacy descriptors, one queue, MSI or the line |
//! | 82540EM | faults of PCI-X, of fibre, of half duplex | copper, PCI; half duplex is not tested |

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
    /// GCR and GCR2 have work-arounds that must be switched on; bits of each. See the top of this file.
    pub(super) completions: Option<(u32, u32)>,
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
    completions: None,
    tipg: 10 | 10 << 10 | 10 << 20,
    tctl: TCTL_COMMON,
    txdctl: TXDCTL_GRAN,
};

/// See: 82574L datasheet, 10.2 (EERD, TIPG: 8, 8, 6; TCTL with its default of MULR, several outstanding requests).
const I82574L: Quirks = Quirks {
    eerd_done: 1 << 1,
    eerd_address_shift: 2,
    pci_express: true,
    completions: Some((1 << 22, 1 << 0)),
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

    /// Whether the card hangs when its link saves power: L0s and L1 must be off at both ends of it.
    pub const fn needs_aspm_off(self) -> bool {
        matches!(self, Self::I82574L)
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
