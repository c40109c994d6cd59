//! Prints a line and resets the machine.
#![no_std]
#![no_main]

use pollux_boot::BootInfo;
use pollux_guests::{println, runtime};

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    runtime::init(info);
    println!("reset: now");
    runtime::reset()
}
