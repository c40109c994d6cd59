//! The I/O APIC: 24 pins, edge or level.
//! See: Intel 82093AA datasheet (290566-001), section 3.

use super::access::Size;
use super::lapic::{Destination, Lapic, Trigger};
use crate::state::{State, StateError, Visitor};

/// Where its two registers are mapped.
pub const BASE: u64 = 0xFEC0_0000;
/// Bytes it claims there.
pub const LEN: u64 = 0x1000;
/// Number of pins.
pub const PINS: u8 = 24;

/// Redirection entry bits. See: 3.2.4.
const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Bits that software can write: all but delivery status, remote IRR and the reserved ones.
const WRITABLE: u64 = 0xFF00_0000_0001_AFFF;

/// The I/O APIC, wired straight to the one local APIC.
#[derive(Debug, Clone)]
pub struct Ioapic {
    select: u8,
    id: u8,
    lines: u32,
    redirection: [u64; PINS as usize],
}

impl Default for Ioapic {
    fn default() -> Self {
        Self::new()
    }
}

impl Ioapic {
    /// The state after reset: all pins masked.
    #[must_use]
    pub const fn new() -> Self {
        Self { select: 0, id: 0, lines: 0, redirection: [MASKED; PINS as usize] }
    }

    /// Reads at `offset` into its page.
    #[must_use]
    pub fn mmio_read(&self, offset: u64, size: Size) -> u64 {
        let register = match offset & !3 {
            0x00 => u32::from(self.select),
            0x10 => self.read(self.select),
            _ => 0,
        };
        size.extract(u64::from(register), offset & 3)
    }

    /// Writes at `offset` into its page; the window only takes doublewords.
    pub fn mmio_write(&mut self, offset: u64, size: Size, value: u64, lapic: &mut Lapic) {
        match (offset, size) {
            (0x00, _) => self.select = value as u8,
            (0x10, Size::Dword | Size::Qword) => self.write(value as u32, lapic),
            _ => {}
        }
    }

    fn read(&self, register: u8) -> u32 {
        match register {
            0x00 | 0x02 => u32::from(self.id) << 24,
            // Version 0x11, number of the last pin.
            0x01 => 0x11 | (u32::from(PINS) - 1) << 16,
            0x10..=0x3F => {
                let entry = self.redirection[usize::from(register - 0x10) / 2];
                (entry >> (32 * u32::from(register & 1))) as u32
            }
            _ => 0,
        }
    }

    fn write(&mut self, value: u32, lapic: &mut Lapic) {
        match self.select {
            0x00 => self.id = (value >> 24) as u8 & 0xF,
            0x10..=0x3F => {
                let pin = (self.select - 0x10) / 2;
                let entry = &mut self.redirection[usize::from(pin)];
                let (shift, keep) = if self.select & 1 == 0 { (0, !0 << 32) } else { (32, 0xFFFF_FFFF) };
                let new = *entry & keep | u64::from(value) << shift;
                *entry = new & WRITABLE | *entry & REMOTE_IRR;
                // Software clears a stuck remote IRR by switching to edge and back.
                if *entry & LEVEL == 0 {
                    *entry &= !REMOTE_IRR;
                }
                self.deliver_level(pin, lapic);
            }
            _ => {}
        }
    }

    /// A device drives `pin` high or low. A rising edge, or a high level, sends the pin's interrupt.
    pub fn set_line(&mut self, pin: u8, high: bool, lapic: &mut Lapic) {
        let bit = 1 << (pin % 32);
        let rising = high && self.lines & bit == 0;
        self.lines = if high { self.lines | bit } else { self.lines & !bit };
        let Some(&entry) = self.redirection.get(usize::from(pin)) else { return };
        if entry & LEVEL != 0 {
            self.deliver_level(pin, lapic);
        } else if rising && entry & MASKED == 0 {
            send(entry, lapic);
        }
    }

    /// The CPU ended the service of a level-triggered `vector`: pins still high interrupt again. See: 3.4.2.
    pub fn end_of_interrupt(&mut self, vector: u8, lapic: &mut Lapic) {
        for pin in 0..PINS {
            let entry = &mut self.redirection[usize::from(pin)];
            if *entry as u8 == vector && *entry & REMOTE_IRR != 0 {
                *entry &= !REMOTE_IRR;
                self.deliver_level(pin, lapic);
            }
        }
    }

    fn deliver_level(&mut self, pin: u8, lapic: &mut Lapic) {
        let entry = &mut self.redirection[usize::from(pin)];
        if *entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL && self.lines >> pin & 1 != 0 {
            *entry |= REMOTE_IRR;
            send(*entry, lapic);
        }
    }
}

fn send(entry: u64, lapic: &mut Lapic) {
    let mode = (entry >> 8 & 7) as u8;
    let destination = Destination::new((entry >> 56) as u32, entry & LOGICAL != 0);
    lapic.message(destination, mode, entry as u8, Trigger::new(entry & LEVEL != 0));
}

impl State for Ioapic {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.u8(&mut self.select)?;
        v.u8(&mut self.id)?;
        v.u32(&mut self.lines)?;
        self.redirection.iter_mut().try_for_each(|entry| v.u64(entry))
    }
}
