//! From an unknown state to a running card.
//!
//! See: 8254x SDM (317453), 14.3 to 14.5; 82574L datasheet (317694), 4.6.

use super::registers::*;
use super::{E1000, Model, NicError, REGISTER_BYTES, RX_DESCRIPTORS, TX_DESCRIPTORS};
use crate::DmaMemory;
use crate::frame::MacAddress;
use crate::mmio::Registers;
use crate::ring::{RxRing, TxRing, ring_bytes};

/// Reads of a register before a wait is given up. A read over the bus takes about a microsecond, so this is some
/// 100 ms; a reset needs a few microseconds, the EEPROM a few milliseconds.
const MAX_READS: u32 = 100_000;
/// Spins after a reset before the first access; the card needs 1 µs. See: 8254x SDM, 14.3.
const RESET_SPINS: u32 = 10_000;

impl<R: Registers> E1000<R> {
    /// Resets the card and brings it up: rings in `memory`, interrupts masked, full duplex, reception of broadcast,
    /// multicast and unicast to `mac`, or to the card's own address if `None`.
    ///
    /// `registers` is BAR 0. Memory decoding and bus mastering must be enabled before (PCI command register).
    pub fn new(model: Model, registers: R, memory: DmaMemory, mac: Option<MacAddress>) -> Result<Self, NicError> {
        Self::with_ring_lengths(model, registers, memory, mac, RX_DESCRIPTORS, TX_DESCRIPTORS)
    }

    pub(super) fn with_ring_lengths(
        model: Model,
        mut registers: R,
        memory: DmaMemory,
        mac: Option<MacAddress>,
        rx_descriptors: u16,
        tx_descriptors: u16,
    ) -> Result<Self, NicError> {
        if registers.len() < REGISTER_BYTES {
            return Err(NicError::RegistersTooSmall(registers.len()));
        }
        // Everything that can be refused is, before the card is touched.
        let len = memory.len();
        let (rx, tx) =
            memory.split(ring_bytes(rx_descriptors)).ok_or(NicError::Memory(crate::ring::RingError::TooSmall(len)))?;
        let rx = RxRing::new(rx, rx_descriptors)?;
        let tx = TxRing::new(tx, tx_descriptors)?;
        if let Some(mac) = mac
            && !is_usable(mac)
        {
            return Err(NicError::BadMac(mac));
        }
        if registers.read32(STATUS) == u32::MAX {
            return Err(NicError::Absent);
        }

        reset(&mut registers, model)?;
        if let Some((gcr, gcr2)) = model.quirks().completions {
            registers.write32(GCR, registers.read32(GCR) | gcr);
            registers.write32(GCR2, registers.read32(GCR2) | gcr2);
        }
        let card_mac = own_mac(&mut registers, model);
        let mac = mac.or(card_mac).ok_or(NicError::NoMac)?;
        set_link_up(&mut registers);
        let mut nic = Self {
            registers,
            model,
            mac,
            card_mac,
            rctl: 0,
            rx,
            tx,
            rx_overruns: 0,
            rx_missed: 0,
            rx_oversize: 0,
            link_changes: 0,
        };
        nic.start_transmit();
        nic.start_receive();
        // Causes from before and from the start itself are of no interest.
        nic.registers.read32(ICR);
        nic.registers.read32(ROC);
        Ok(nic)
    }

    /// See: 8254x SDM, 14.5 (Transmit Initialization); 82574L datasheet, 4.6.
    fn start_transmit(&mut self) {
        let quirks = self.model.quirks();
        let base = self.tx.physical();
        let registers = &mut self.registers;
        registers.write32(TDBAL, base as u32);
        registers.write32(TDBAH, (base >> 32) as u32);
        registers.write32(TDLEN, ring_length(self.tx.descriptors()));
        registers.write32(TDH, 0);
        registers.write32(TDT, 0);
        registers.write32(TIDV, 0);
        registers.write32(TXDCTL, quirks.txdctl);
        registers.write32(TIPG, quirks.tipg);
        registers.write32(TCTL, quirks.tctl);
    }

    /// See: 8254x SDM, 14.4 (Receive Initialization); 82574L datasheet, 4.6.
    fn start_receive(&mut self) {
        write_receive_address(&mut self.registers, 0, self.mac);
        let registers = &mut self.registers;
        // No other address is ours.
        for index in 1..RECEIVE_ADDRESSES {
            registers.write32(RAL0 + 8 * index, 0);
            registers.write32(RAH0 + 8 * index, 0);
        }
        for word in 0..MTA_WORDS {
            registers.write32(MTA + 4 * word, 0);
        }
        registers.write32(RXCSUM, 0);
        if self.model.quirks().pci_express {
            // Legacy descriptors, one queue.
            registers.write32(RFCTL, 0);
            registers.write32(MRQC, 0);
        }
        let base = self.rx.physical();
        registers.write32(RDBAL, base as u32);
        registers.write32(RDBAH, (base >> 32) as u32);
        registers.write32(RDLEN, ring_length(self.rx.descriptors()));
        registers.write32(RDH, 0);
        registers.write32(RDT, 0);
        // An interrupt for each frame, at once.
        registers.write32(RDTR, 0);
        registers.write32(RADV, 0);
        registers.write32(ITR, 0);
        // Buffers of 2048 bytes (BSIZE and BSEX zero); long and bad frames are dropped (LPE and SBP zero). Multicast
        // is left to the guest to sort out.
        self.rctl = RCTL_EN | RCTL_BAM | RCTL_MPE | RCTL_SECRC;
        registers.write32(RCTL, self.rctl);
        // With head and tail equal the card owns no buffer until now.
        self.return_buffers();
    }
}

/// A unicast address other than zero.
pub(super) fn is_usable(mac: MacAddress) -> bool {
    mac.0[0] & 1 == 0 && mac.0 != [0; 6]
}

fn ring_length(descriptors: u16) -> u32 {
    u32::from(descriptors) * crate::ring::DESCRIPTOR_BYTES as u32
}

/// Reads the register until `done`, a bounded number of times. Whether it came true.
fn wait<R: Registers>(registers: &R, offset: usize, done: impl Fn(u32) -> bool) -> bool {
    (0..MAX_READS).any(|_| done(registers.read32(offset)))
}

/// See: 8254x SDM, 14.3 and 13.4.1 (CTRL.RST); 82574L datasheet, 4.6.
fn reset<R: Registers>(registers: &mut R, model: Model) -> Result<(), NicError> {
    let pci_express = model.quirks().pci_express;
    registers.write32(IMC, u32::MAX);
    registers.write32(RCTL, 0);
    registers.write32(TCTL, TCTL_PSP);
    let control = registers.read32(CTRL);
    if pci_express {
        // Let outstanding requests end, so that the reset does not cut one off. If they do not, reset all the same.
        registers.write32(CTRL, control | CTRL_GIO_MASTER_DISABLE);
        if !wait(registers, STATUS, |status| status & STATUS_GIO_MASTER_ENABLE == 0) {
            log::warn!("{}: bus requests do not end before the reset", model.name());
        }
    }
    registers.write32(CTRL, control | CTRL_RST);
    for _ in 0..RESET_SPINS {
        core::hint::spin_loop();
    }
    if !wait(registers, CTRL, |control| control & CTRL_RST == 0) {
        return Err(NicError::ResetTimeout);
    }
    if pci_express && !wait(registers, EEC, |eec| eec & EEC_AUTO_RD != 0) {
        log::warn!("{}: the EEPROM was not loaded", model.name());
    }
    // The reset may have restored masks and causes.
    registers.write32(IMC, u32::MAX);
    registers.read32(ICR);
    Ok(())
}

/// Link by auto-negotiation, speed and duplex from the PHY. See: 8254x SDM, 14.3 (General Configuration).
fn set_link_up<R: Registers>(registers: &mut R) {
    let cleared = CTRL_LRST
        | CTRL_GIO_MASTER_DISABLE
        | CTRL_ILOS
        | CTRL_FRCSPD
        | CTRL_FRCDPLX
        | CTRL_VME
        | CTRL_RST
        | CTRL_PHY_RST;
    let control = registers.read32(CTRL) & !cleared;
    registers.write32(CTRL, control | CTRL_FD | CTRL_ASDE | CTRL_SLU);
}

/// The address in the EEPROM, else the one that the card loaded into its first address register at reset.
fn own_mac<R: Registers>(registers: &mut R, model: Model) -> Option<MacAddress> {
    eeprom_mac(registers, model).filter(|&mac| is_usable(mac)).or_else(|| {
        let high = registers.read32(RAH0);
        let low = registers.read32(RAL0).to_le_bytes();
        let mac = MacAddress([low[0], low[1], low[2], low[3], high as u8, (high >> 8) as u8]);
        (high & RAH_AV != 0 && is_usable(mac)).then_some(mac)
    })
}

/// Words 0 to 2 of the EEPROM. See: 8254x SDM, 5.6.1 and 13.4.4 (EERD).
fn eeprom_mac<R: Registers>(registers: &mut R, model: Model) -> Option<MacAddress> {
    let quirks = model.quirks();
    let mut mac = [0; 6];
    for (address, bytes) in mac.chunks_exact_mut(2).enumerate() {
        registers.write32(EERD, EERD_START | (address as u32) << quirks.eerd_address_shift);
        if !wait(registers, EERD, |eerd| eerd & quirks.eerd_done != 0) {
            return None;
        }
        bytes.copy_from_slice(&((registers.read32(EERD) >> 16) as u16).to_le_bytes());
    }
    Some(MacAddress(mac))
}

/// Makes `mac` the receive address `index`. See: 8254x SDM, 13.5.2 (RAL) and 13.5.3 (RAH).
pub(super) fn write_receive_address<R: Registers>(registers: &mut R, index: usize, mac: MacAddress) {
    let [a, b, c, d, e, f] = mac.0;
    registers.write32(RAL0 + 8 * index, u32::from_le_bytes([a, b, c, d]));
    registers.write32(RAH0 + 8 * index, u32::from_le_bytes([e, f, 0, 0]) | RAH_AV);
}
