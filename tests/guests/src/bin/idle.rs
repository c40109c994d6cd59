//! Halts for ever with interrupts on and nothing that would interrupt.
#![no_std]
#![no_main]

use pollux_boot::BootInfo;
use pollux_guests::{cpu, lapic, println, runtime};

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    runtime::init(info);
    lapic::init(true);
    println!("idle: halting");
    loop {
        cpu::wait_for_interrupt();
    }
}
