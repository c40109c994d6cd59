//! Serial lines: COM1 carries the log, COM2 the monitor.
#![allow(unsafe_code)]

use alloc::collections::VecDeque;

use spin::Mutex;
use uart_16550::{BaudRate, Config, Uart16550, backend::PioBackend};

/// I/O base of COM1.
pub const COM1: u16 = 0x3F8;
/// I/O base of COM2.
pub const COM2: u16 = 0x2F8;

/// How often a full transmitter is asked again before a byte is given up: a serial line must never hang the machine.
const SEND_TRIES: usize = 2_000_000;

/// Bytes that may wait for a line before the machine waits for it.
const MAX_WAITING: usize = 64 << 10;

/// A serial line that may be absent: then writing does nothing and reading finds nothing.
pub struct Serial(Mutex<Line>);

struct Line {
    uart: Option<Uart16550<PioBackend>>,
    /// Not sent yet: a byte takes 87 µs at 115,200 baud, which the machine has other uses for.
    waiting: VecDeque<u8>,
}

/// The log.
pub static LOG: Serial = Serial::absent();
/// The monitor: status out, commands in.
pub static MONITOR: Serial = Serial::absent();

impl Line {
    /// Sends of what waits as much as the UART takes now.
    fn send_waiting(&mut self) {
        let Some(uart) = &mut self.uart else { return };
        loop {
            let sent = uart.send_bytes(self.waiting.as_slices().0);
            if sent == 0 {
                return;
            }
            self.waiting.drain(..sent);
        }
    }

    /// Sends all that waits; what the line does not take in time is lost.
    fn send_all_waiting(&mut self) {
        let mut tries = 0;
        while !self.waiting.is_empty() && tries < SEND_TRIES {
            let before = self.waiting.len();
            self.send_waiting();
            tries = if self.waiting.len() == before { tries + 1 } else { 0 };
        }
        self.waiting.clear();
    }
}

impl Serial {
    const fn absent() -> Self {
        Self(Mutex::new(Line { uart: None, waiting: VecDeque::new() }))
    }

    /// Starts the UART at I/O port `base`; leaves the line absent when no UART answers.
    ///
    /// # Safety
    /// The ports `base .. base + 8` belong to a UART or to nothing, and nothing else uses them.
    pub unsafe fn start(&self, base: u16) {
        // SAFETY: the caller vouches for the ports.
        let Ok(mut uart) = (unsafe { Uart16550::new_port(base) }) else { return };
        if uart.init(Config { baud_rate: BaudRate::Baud115200, ..Config::DEFAULT }).is_ok() {
            self.0.lock().uart = Some(uart);
        }
    }

    /// Writes all of `bytes`, without the heap; a byte that the line does not take in time is lost.
    pub fn write(&self, bytes: &[u8]) {
        let mut line = self.0.lock();
        let Some(uart) = &mut line.uart else { return };
        let mut rest = bytes;
        let mut tries = 0;
        while !rest.is_empty() && tries < SEND_TRIES {
            let sent = uart.send_bytes(rest);
            rest = &rest[sent..];
            tries = if sent == 0 { tries + 1 } else { 0 };
        }
    }

    /// Takes `bytes` to be sent as the line permits, by calls of [`pump`](Self::pump). Never waits, as a real line needs
    /// seconds for what may wait, and the twin would give this machine up: false when too many wait already, and these
    /// are lost.
    pub fn queue(&self, bytes: &[u8]) -> bool {
        let mut line = self.0.lock();
        if line.uart.is_none() {
            return true;
        }
        line.send_waiting();
        let fits = line.waiting.len() + bytes.len() <= MAX_WAITING;
        if fits {
            line.waiting.extend(bytes);
            line.send_waiting();
        }
        fits
    }

    /// Sends of what was queued as much as the line takes now; whether something still waits.
    pub fn pump(&self) -> bool {
        let mut line = self.0.lock();
        if !line.waiting.is_empty() {
            line.send_waiting();
        }
        !line.waiting.is_empty()
    }

    /// Waits until everything that was queued is sent, or lost.
    pub fn flush(&self) {
        self.0.lock().send_all_waiting();
    }

    /// Reads what has arrived, without waiting. Returns the number of bytes.
    pub fn read(&self, buffer: &mut [u8]) -> usize {
        self.0.lock().uart.as_mut().map_or(0, |uart| uart.receive_bytes(buffer))
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
