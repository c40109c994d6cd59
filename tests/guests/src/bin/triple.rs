//! Ends in a triple fault: an exception without an interrupt descriptor table. With `case=injected` it is one that the hypervisor
//! injects.
#![no_std]
#![no_main]

use pollux_boot::BootInfo;
use pollux_guests::options::Options;
use pollux_guests::{println, runtime};

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    runtime::init(info);
    println!("triple: faulting");
    match Options::of(info).case {
        "injected" => runtime::triple_fault(runtime::unknown_register),
        _ => runtime::triple_fault(x86_64::instructions::interrupts::int3),
    }
}
