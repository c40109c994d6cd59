//! A 16550A serial port: the guest's console.
//!
//! Transmission takes no time. Received bytes wait in a queue behind the FIFO, so that pasted input is not lost.
//! See: National Semiconductor PC16550D datasheet, section 8.

use super::access::Outputs;
use crate::state::{State, StateError, Visitor};
use alloc::collections::VecDeque;

/// First port.
pub const BASE: u16 = 0x3F8;
/// Interrupt pin.
pub const PIN: u8 = 4;
/// Received bytes that are kept; more are dropped.
const MAX_INPUT: usize = 4096;

/// Bytes in the receiver's FIFO.
const FIFO: usize = 16;

const LCR_DLAB: u8 = 0x80;
const LSR_DATA: u8 = 0x01;
const LSR_OVERRUN: u8 = 0x02;
const LSR_EMPTY: u8 = 0x60;
const MCR_OUT2: u8 = 0x08;
const MCR_LOOP: u8 = 0x10;
const IER_RECEIVE: u8 = 0x01;
const IER_TRANSMIT: u8 = 0x02;
const IER_LINE: u8 = 0x04;
const FCR_ENABLE: u8 = 0x01;

/// The serial port.
#[derive(Debug, Clone, Default)]
pub struct Uart {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: u16,
    overrun: bool,
    /// The transmitter became empty and the guest was not told yet.
    transmit_pending: bool,
    input: VecDeque<u8>,
}

impl Uart {
    /// Reads register `offset` (0–7).
    pub fn read(&mut self, offset: u16) -> u8 {
        match offset {
            0 if self.lcr & LCR_DLAB != 0 => self.divisor as u8,
            0 => self.input.pop_front().unwrap_or(0),
            1 if self.lcr & LCR_DLAB != 0 => (self.divisor >> 8) as u8,
            1 => self.ier,
            2 => self.identify(),
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let overrun = if core::mem::take(&mut self.overrun) { LSR_OVERRUN } else { 0 };
                LSR_EMPTY | overrun | if self.input.is_empty() { 0 } else { LSR_DATA }
            }
            6 => self.modem_status(),
            7 => self.scratch,
            _ => 0xFF,
        }
    }

    /// Writes register `offset` (0–7).
    pub fn write(&mut self, offset: u16, value: u8, out: &mut dyn Outputs) {
        match offset {
            0 if self.lcr & LCR_DLAB != 0 => self.divisor = self.divisor & 0xFF00 | u16::from(value),
            0 => self.transmit(value, out),
            1 if self.lcr & LCR_DLAB != 0 => self.divisor = self.divisor & 0xFF | u16::from(value) << 8,
            1 => {
                // Enabling the interrupt while the transmitter is empty, which it always is, raises it.
                if value & IER_TRANSMIT != 0 && self.ier & IER_TRANSMIT == 0 {
                    self.transmit_pending = true;
                }
                self.ier = value & 0x0F;
            }
            2 => {
                // A change of the enable bit forgets what is there, too. See: 8.5.
                let switched = (value ^ self.fcr) & FCR_ENABLE != 0;
                self.fcr = value & 0xC9;
                if value & 0x02 != 0 || switched {
                    self.input.clear();
                }
            }
            3 => self.lcr = value,
            4 => self.mcr = value & 0x1F,
            7 => self.scratch = value,
            _ => {}
        }
    }

    /// Bytes arrive; returns how many were dropped for lack of room.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        // In loopback mode the line is disconnected.
        if self.mcr & MCR_LOOP != 0 {
            return bytes.len();
        }
        let room = MAX_INPUT.saturating_sub(self.input.len()).min(bytes.len());
        self.input.extend(&bytes[..room]);
        self.overrun |= room < bytes.len();
        bytes.len() - room
    }

    fn transmit(&mut self, value: u8, out: &mut dyn Outputs) {
        if self.mcr & MCR_LOOP == 0 {
            out.console(&[value]);
        } else {
            self.loop_back(value);
        }
        self.transmit_pending = true;
    }

    /// A byte comes back at once. Drivers find the size of the FIFO by how many they can send until some are lost: those
    /// that find it full, or the one before if there is none. See: 8.6.3 (LSR bit 1).
    fn loop_back(&mut self, value: u8) {
        let has_fifo = self.fcr & FCR_ENABLE != 0;
        if self.input.len() < if has_fifo { FIFO } else { 1 } {
            self.input.push_back(value);
            return;
        }
        self.overrun = true;
        if let (false, Some(last)) = (has_fifo, self.input.back_mut()) {
            *last = value;
        }
    }

    /// Interrupt identification in order of priority; reading it acknowledges the transmitter. See: table 5.
    fn identify(&mut self) -> u8 {
        let fifo = if self.fcr & FCR_ENABLE != 0 { 0xC0 } else { 0 };
        let id = self.cause().unwrap_or(1);
        if id == 2 {
            self.transmit_pending = false;
        }
        fifo | id
    }

    fn cause(&self) -> Option<u8> {
        if self.ier & IER_LINE != 0 && self.overrun {
            Some(6)
        } else if self.ier & IER_RECEIVE != 0 && !self.input.is_empty() {
            Some(4)
        } else if self.ier & IER_TRANSMIT != 0 && self.transmit_pending {
            Some(2)
        } else {
            None
        }
    }

    /// The interrupt line: on a PC it passes through OUT2.
    #[must_use]
    pub fn line(&self) -> bool {
        self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2 && self.cause().is_some()
    }

    /// Carrier, ready and clear to send; in loopback mode the modem control outputs. See: 8.7.
    fn modem_status(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return 0xB0;
        }
        (self.mcr & 0x0C) << 4 | (self.mcr & 0x02) << 3 | (self.mcr & 0x01) << 5
    }
}

impl State for Uart {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        for value in [&mut self.ier, &mut self.fcr, &mut self.lcr, &mut self.mcr, &mut self.scratch] {
            v.u8(value)?;
        }
        v.u16(&mut self.divisor)?;
        v.bool(&mut self.overrun)?;
        v.bool(&mut self.transmit_pending)?;
        let mut input = core::mem::take(&mut self.input).into();
        let result = v.blob(&mut input, MAX_INPUT);
        self.input = input.into();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::access::testing::Recorder;

    #[test]
    fn bytes_go_out_and_the_transmitter_interrupts() {
        let (mut uart, mut out) = (Uart::default(), Recorder::default());
        assert_eq!(uart.read(5), 0x60);
        uart.write(4, 0x0B, &mut out);
        assert!(!uart.line());
        uart.write(1, 2, &mut out);
        assert!(uart.line());
        assert_eq!(uart.read(2), 2);
        assert!(!uart.line());
        uart.write(0, b'x', &mut out);
        assert!(uart.line());
        assert_eq!(out.console, b"x");
    }

    #[test]
    fn input_waits_and_interrupts_until_read() {
        let (mut uart, mut out) = (Uart::default(), Recorder::default());
        uart.write(4, 8, &mut out);
        uart.write(1, 1, &mut out);
        assert_eq!(uart.receive(b"ab"), 0);
        assert!(uart.line());
        assert_eq!(uart.read(2) & 0xF, 4);
        assert_eq!((uart.read(0), uart.line()), (b'a', true));
        assert_eq!((uart.read(0), uart.line()), (b'b', false));
        assert_eq!(uart.receive(&[0; MAX_INPUT + 3]), 3);
        assert_eq!(uart.read(5) & 3, 3);
        assert_eq!(uart.read(5) & 3, 1);
    }

    /// As FreeBSD's driver finds out what it drives.
    #[test]
    fn the_fifo_can_be_measured() {
        for (control, depth) in [(0x01, 16), (0x00, 1)] {
            let (mut uart, mut out) = (Uart::default(), Recorder::default());
            uart.write(4, 0x10, &mut out);
            uart.write(2, control, &mut out);
            let sent = (1..=300).find(|&byte| {
                uart.write(0, byte as u8, &mut out);
                uart.read(5) & LSR_OVERRUN != 0
            });
            assert_eq!(sent, Some(depth + 1));
            let kept: u8 = if depth == 1 { 2 } else { 1 };
            assert_eq!(uart.read(0), kept, "a FIFO keeps the first, a register the last");
            uart.write(2, control | 2, &mut out);
            assert_eq!(uart.read(5) & LSR_DATA, 0);
        }
    }

    #[test]
    fn switching_the_fifo_forgets_what_is_in_it() {
        let (mut uart, mut out) = (Uart::default(), Recorder::default());
        uart.receive(b"abc");
        uart.write(2, 1, &mut out);
        assert_eq!(uart.read(5) & LSR_DATA, 0);
        uart.receive(b"d");
        uart.write(2, 1, &mut out);
        assert_eq!(uart.read(0), b'd');
    }

    #[test]
    fn loopback_and_divisor_latch() {
        let (mut uart, mut out) = (Uart::default(), Recorder::default());
        uart.write(4, 0x1A, &mut out);
        // The probe of Linux and others: RTS and OUT2 come back as CTS and DCD.
        assert_eq!(uart.read(6), 0x90);
        uart.write(0, 0x55, &mut out);
        assert_eq!((uart.read(0), out.console.len()), (0x55, 0));
        uart.write(3, 0x80, &mut out);
        uart.write(0, 1, &mut out);
        uart.write(1, 2, &mut out);
        assert_eq!((uart.read(0), uart.read(1), out.console.len()), (1, 2, 0));
    }
}
