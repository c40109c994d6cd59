//! Prints a line and switches the machine off.
#![no_std]
#![no_main]

use pollux_boot::BootInfo;
use pollux_guests::{println, runtime};

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    runtime::init(info);
    println!("powerdown: command line \"{}\"", info.command_line);
    runtime::power_off()
}
