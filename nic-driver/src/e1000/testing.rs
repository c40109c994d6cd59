//! The hardware's side of registers and rings, played by the host.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::registers::*;
use super::{DMA_ALIGNMENT, E1000, Model, NicError, REGISTER_BYTES};
use crate::DmaMemory;
use crate::frame::MacAddress;
use crate::mmio::Registers;
use crate::ring::{BUFFER_BYTES, DESCRIPTOR_BYTES, ring_bytes};

/// Where devices see the memory: above 4 GiB and apart from the CPU's addresses, so that a mix-up is noticed.
const PHYSICAL: u64 = 0x12_3456_0000;
pub(crate) const OWN_MAC: MacAddress = MacAddress([0x52, 0x54, 0x00, 0xAA, 0xBB, 0xCC]);

/// Aligned memory for DMA.
pub(crate) fn dma_memory(len: usize) -> DmaMemory {
    let layout = Layout::from_size_align(len, DMA_ALIGNMENT).unwrap();
    // SAFETY: the layout is not empty.
    let base = unsafe { alloc_zeroed(layout) };
    assert!(!base.is_null());
    // SAFETY: freshly allocated, zeroed and never freed.
    let bytes = unsafe { std::slice::from_raw_parts_mut(base, len) };
    // SAFETY: the only "device" is the model, which translates the address back.
    unsafe { DmaMemory::new(PHYSICAL, bytes) }
}

/// How the hardware ends a received descriptor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ending {
    pub(crate) len: u16,
    pub(crate) errors: u8,
    pub(crate) end_of_packet: bool,
}

#[derive(Debug)]
pub(crate) struct Hardware {
    model: Model,
    pub(crate) registers: BTreeMap<usize, u32>,
    memory: DmaMemory,
    pub(crate) sent: Vec<Vec<u8>>,
    /// Reads of CTRL during which the reset goes on.
    pub(crate) reset_reads: u32,
    resetting: u32,
    pub(crate) eeprom: [u16; 3],
    pub(crate) accesses: RefCell<usize>,
    /// Status bits that the next sent descriptors get beside DD.
    pub(crate) tx_errors: u8,
}

/// Registers that the driver holds, shared with the test.
#[derive(Debug, Clone)]
pub(crate) struct Port(pub(crate) Rc<RefCell<Hardware>>);

impl Registers for Port {
    fn read32(&self, offset: usize) -> u32 {
        self.0.borrow_mut().read(offset)
    }

    fn write32(&mut self, offset: usize, value: u32) {
        self.0.borrow_mut().write(offset, value);
    }

    fn len(&self) -> usize {
        REGISTER_BYTES
    }
}

impl Hardware {
    pub(crate) fn new(model: Model, memory: DmaMemory) -> Self {
        Self {
            model,
            registers: BTreeMap::new(),
            memory,
            sent: Vec::new(),
            reset_reads: 3,
            resetting: 0,
            eeprom: [0x5452, 0xAA00, 0xCCBB],
            accesses: RefCell::new(0),
            tx_errors: 0,
        }
    }

    pub(crate) fn get(&self, offset: usize) -> u32 {
        self.registers.get(&offset).copied().unwrap_or(0)
    }

    fn read(&mut self, offset: usize) -> u32 {
        *self.accesses.get_mut() += 1;
        match offset {
            CTRL if self.resetting > 0 => {
                self.resetting -= 1;
                self.get(CTRL) | CTRL_RST
            }
            STATUS => {
                let master = self.get(CTRL) & CTRL_GIO_MASTER_DISABLE == 0 && self.model == Model::I82574L;
                self.get(STATUS) | STATUS_LU | if master { STATUS_GIO_MASTER_ENABLE } else { 0 }
            }
            EEC => EEC_AUTO_RD,
            ICR | MPC | ROC => self.registers.remove(&offset).unwrap_or(0),
            _ => self.get(offset),
        }
    }

    fn write(&mut self, offset: usize, value: u32) {
        *self.accesses.get_mut() += 1;
        assert_eq!(self.resetting, 0, "register {offset:#x} written during reset");
        match offset {
            CTRL if value & CTRL_RST != 0 => {
                self.registers.clear();
                self.resetting = self.reset_reads;
                return;
            }
            EERD => {
                let (done, shift) = match self.model {
                    Model::I82540EM => (1 << 4, 8),
                    Model::I82574L => (1 << 1, 2),
                };
                let word = self.eeprom[(value >> shift & 0x3F) as usize];
                self.registers.insert(EERD, u32::from(word) << 16 | done);
                return;
            }
            IMS => {
                *self.registers.entry(IMS).or_default() |= value;
                return;
            }
            IMC => {
                *self.registers.entry(IMS).or_default() &= !value;
                return;
            }
            RDT => self.check_handed_over(value),
            _ => {}
        }
        self.registers.insert(offset, value);
    }

    /// Every buffer that the driver hands over must be marked free.
    fn check_handed_over(&self, tail: u32) {
        let count = self.get(RDLEN) / 16;
        if count == 0 {
            return;
        }
        assert!(tail < count);
        let mut index = self.get(RDT);
        while index != tail {
            assert_eq!(self.memory.read64(self.descriptor(RDBAL, index) + 8), 0, "used descriptor handed over");
            index = (index + 1) % count;
        }
    }

    fn descriptor(&self, base: usize, index: u32) -> usize {
        let address = u64::from(self.get(base)) | u64::from(self.get(base + 4)) << 32;
        (address - PHYSICAL) as usize + index as usize * DESCRIPTOR_BYTES
    }

    fn buffer(&self, descriptor: usize) -> usize {
        (self.memory.read64(descriptor) - PHYSICAL) as usize
    }

    /// Buffers that the hardware may fill.
    pub(crate) fn rx_room(&self) -> u32 {
        let count = self.get(RDLEN) / 16;
        (self.get(RDT) + count - self.get(RDH)) % count
    }

    /// Puts `frame` into the next buffer, if there is one, and ends the descriptor as told.
    pub(crate) fn deliver_raw(&mut self, frame: &[u8], ending: Ending) -> bool {
        assert!(self.get(RCTL) & RCTL_EN != 0 && frame.len() <= BUFFER_BYTES);
        if self.rx_room() == 0 {
            return false;
        }
        let head = self.get(RDH);
        let descriptor = self.descriptor(RDBAL, head);
        let buffer = self.buffer(descriptor);
        // SAFETY: the descriptor is the hardware's, so the driver has no reference to the buffer.
        unsafe { self.memory.bytes_mut(buffer, frame.len()) }.copy_from_slice(frame);
        let status =
            u64::from(ending.len) | 1 << 32 | u64::from(ending.end_of_packet) << 33 | u64::from(ending.errors) << 40;
        self.memory.write64(descriptor + 8, status);
        self.registers.insert(RDH, (head + 1) % (self.get(RDLEN) / 16));
        true
    }

    pub(crate) fn deliver(&mut self, frame: &[u8]) -> bool {
        self.deliver_raw(frame, Ending { len: frame.len() as u16, errors: 0, end_of_packet: true })
    }

    /// Marks a transmit descriptor as done, whoever owns it.
    pub(crate) fn set_done(&mut self, index: u32) {
        let offset = self.descriptor(TDBAL, index) + 8;
        let word = self.memory.read64(offset);
        self.memory.write64(offset, word | 1 << 32);
    }

    /// Sends up to `limit` frames that were handed over.
    pub(crate) fn transmit(&mut self, limit: usize) -> usize {
        let count = self.get(TDLEN) / 16;
        let mut done = 0;
        while done < limit && self.get(TDH) != self.get(TDT) {
            let head = self.get(TDH);
            let descriptor = self.descriptor(TDBAL, head);
            let word = self.memory.read64(descriptor + 8);
            assert_eq!(word >> 24 & 0xFF, 0b1011, "EOP, IFCS, RS");
            assert_eq!(word >> 32, 0, "status not cleared");
            let buffer = self.buffer(descriptor);
            // SAFETY: the descriptor is the hardware's until DD is set below.
            self.sent.push(unsafe { self.memory.bytes(buffer, usize::from(word as u16)) }.to_vec());
            self.memory.write64(descriptor + 8, word | (1 | u64::from(self.tx_errors)) << 32);
            self.registers.insert(TDH, (head + 1) % count);
            done += 1;
        }
        done
    }
}

/// A card and its driver with rings of `descriptors`.
pub(crate) fn card(model: Model, descriptors: u16) -> (E1000<Port>, Rc<RefCell<Hardware>>) {
    let (nic, hardware) = bring_up(model, descriptors, None, |_| {});
    (nic.unwrap(), hardware)
}

/// Like [`card`], with a chance to change the hardware first.
pub(crate) fn bring_up(
    model: Model,
    descriptors: u16,
    mac: Option<MacAddress>,
    prepare: impl FnOnce(&mut Hardware),
) -> (Result<E1000<Port>, NicError>, Rc<RefCell<Hardware>>) {
    let memory = dma_memory(2 * ring_bytes(descriptors));
    let mut hardware = Hardware::new(model, memory.alias());
    prepare(&mut hardware);
    let hardware = Rc::new(RefCell::new(hardware));
    let port = Port(Rc::clone(&hardware));
    (E1000::with_ring_lengths(model, port, memory, mac, descriptors, descriptors), hardware)
}
