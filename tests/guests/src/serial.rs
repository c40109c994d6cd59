//! The console: a 16550 at port 0x3F8.
#![allow(unsafe_code)]

use core::fmt::{self, Write};

use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550Tty};

static CONSOLE: Mutex<Option<Uart16550Tty<PioBackend>>> = Mutex::new(None);

/// Prints; the first use initialises the UART. Without a UART nothing is printed.
pub fn print(text: fmt::Arguments<'_>) {
    // Taken only with one CPU and never by an interrupt handler but the fatal one, which uses `print_fatal`.
    let mut console = CONSOLE.lock();
    if console.is_none() {
        *console = open();
    }
    if let Some(console) = console.as_mut() {
        // Writing to the UART does not fail.
        let _ = console.write_fmt(text);
    }
}

/// Prints even when the text interrupts other printing. Used before the guest ends.
pub fn print_fatal(text: fmt::Arguments<'_>) {
    if let Some(mut console) = open() {
        let _ = console.write_fmt(text);
    }
}

fn open() -> Option<Uart16550Tty<PioBackend>> {
    // SAFETY: 0x3F8 is the console of every machine that these guests run on; two users at worst mix their output.
    unsafe { Uart16550Tty::new_port(0x3f8, Config::default()) }.ok()
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::serial::print(format_args!("{}\n", format_args!($($arg)*))) };
}
