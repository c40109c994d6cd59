//! Prints a line, then waits without interrupts.
#![no_std]
#![no_main]

use pollux_boot::BootInfo;
use pollux_guests::{println, runtime};

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    runtime::init(info);
    println!("hello from the guest: {} module(s), command line \"{}\"", info.modules.len(), info.command_line);
    runtime::halt()
}
