//! MSI-X: the table, the pending bits, and the capability.
//! See: PCI Local Bus Specification 3.0, section 6.8.2.

use crate::platform::access::Size;
use crate::platform::lapic::Lapic;
use crate::platform::pci::send_msi;
use crate::state::{State, StateError, Visitor};

/// Largest number of vectors of a function.
pub const MAX_VECTORS: usize = 4;
/// Bytes of a table entry.
const ENTRY: u64 = 16;
/// Vector control: masked.
const MASKED: u32 = 1;

/// Message control: MSI-X is enabled.
pub(super) const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
pub(super) const CONTROL_MASK: u16 = 1 << 14;

/// The table: address low, address high, data, control per vector.
#[derive(Debug, Clone)]
pub(super) struct Msix {
    table: [[u32; 4]; MAX_VECTORS],
    pending: u32,
}

impl Msix {
    pub(super) const fn new() -> Self {
        Self { table: [[0, 0, 0, MASKED]; MAX_VECTORS], pending: 0 }
    }

    pub(super) fn read(&self, offset: u64, size: Size) -> u64 {
        let Some(entry) = self.table.get((offset / ENTRY) as usize) else { return 0 };
        let dword = (offset % ENTRY / 4) as usize;
        let high = entry.get(dword + 1).copied().unwrap_or(0);
        size.extract(u64::from(entry[dword]) | u64::from(high) << 32, offset & 3)
    }

    pub(super) fn read_pending(&self, offset: u64, size: Size) -> u64 {
        size.extract(u64::from(self.pending), offset)
    }

    /// Writes aligned doublewords or quadwords; the specification allows nothing else.
    pub(super) fn write(&mut self, offset: u64, size: Size, value: u64, control: u16, lapic: &mut Lapic) {
        let vector = (offset / ENTRY) as usize;
        let dword = (offset % ENTRY / 4) as usize;
        let Some(entry) = self.table.get_mut(vector) else { return };
        match size {
            Size::Dword if offset.is_multiple_of(4) => entry[dword] = value as u32,
            Size::Qword if offset.is_multiple_of(8) => {
                entry[dword] = value as u32;
                entry[dword + 1] = (value >> 32) as u32;
            }
            _ => return,
        }
        entry[0] &= !3;
        entry[3] &= MASKED;
        self.send_pending(control, lapic);
    }

    /// Raises `vector`: sends its message, or keeps it pending while masked. Other vectors than the table's: nothing.
    pub(super) fn raise(&mut self, vector: u16, control: u16, lapic: &mut Lapic) {
        if usize::from(vector) < MAX_VECTORS {
            self.pending |= 1 << vector;
            self.send_pending(control, lapic);
        }
    }

    /// Sends what is pending and no longer masked.
    pub(super) fn send_pending(&mut self, control: u16, lapic: &mut Lapic) {
        if self.pending == 0 || control & (CONTROL_ENABLE | CONTROL_MASK) != CONTROL_ENABLE {
            return;
        }
        for (vector, &[low, high, data, mask]) in self.table.iter().enumerate() {
            if self.pending >> vector & 1 != 0 && mask & MASKED == 0 {
                self.pending &= !(1 << vector);
                send_msi(u64::from(low) | u64::from(high) << 32, data, lapic);
            }
        }
    }

    pub(super) fn clear_pending(&mut self) {
        self.pending = 0;
    }
}

impl State for Msix {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        self.table.iter_mut().flatten().try_for_each(|value| v.u32(value))?;
        v.u32(&mut self.pending)
    }
}
