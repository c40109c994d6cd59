//! Serial lines: COM1 carries the log, COM2 the monitor.
#![allow(unsafe_code)]

use spin::Mutex;
use uart_16550::{Config, Uart16550, backend::PioBackend};

/// I/O base of COM1.
pub const COM1: u16 = 0x3F8;
/// I/O base of COM2.
pub const COM2: u16 = 0x2F8;

/// How often a full transmitter is asked again before a byte is given up: a serial line must never hang the machine.
const SEND_TRIES: usize = 2_000_000;

/// A serial line that may be absent: then writing does nothing and reading finds nothing.
pub struct Serial(Mutex<Option<Uart16550<PioBackend>>>);

/// The log.
pub static LOG: Serial = Serial(Mutex::new(None));
/// The monitor: status out, commands in.
pub static MONITOR: Serial = Serial(Mutex::new(None));

impl Serial {
    /// Starts the UART at I/O port `base`; leaves the line absent when no UART answers.
    ///
    /// # Safety
    /// The ports `base .. base + 8` belong to a UART or to nothing, and nothing else uses them.
    pub unsafe fn start(&self, base: u16) {
        // SAFETY: the caller vouches for the ports.
        let Ok(mut uart) = (unsafe { Uart16550::new_port(base) }) else { return };
        if uart.init(Config::default()).is_ok() {
            *self.0.lock() = Some(uart);
        }
    }

    /// Writes all of `bytes`; a byte that the line does not take in time is lost.
    pub fn write(&self, bytes: &[u8]) {
        let mut line = self.0.lock();
        let Some(uart) = line.as_mut() else { return };
        let mut rest = bytes;
        let mut tries = 0;
        while !rest.is_empty() && tries < SEND_TRIES {
            let sent = uart.send_bytes(rest);
            rest = &rest[sent..];
            tries = if sent == 0 { tries + 1 } else { 0 };
        }
    }

    /// Reads what has arrived, without waiting. Returns the number of bytes.
    pub fn read(&self, buffer: &mut [u8]) -> usize {
        self.0.lock().as_mut().map_or(0, |uart| uart.receive_bytes(buffer))
    }

    /// Takes the lock away from whoever holds it, for the panic message.
    ///
    /// # Safety
    /// The holder never runs again.
    pub unsafe fn force_unlock(&self) {
        // SAFETY: the caller vouches that the holder is gone.
        unsafe { self.0.force_unlock() }
    }
}
