//! Ends in a triple fault: an exception without an interrupt descriptor table.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use pollux_boot::BootInfo;
use pollux_guests::{println, runtime};
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    runtime::init(info);
    println!("triple: faulting");
    // SAFETY: no exception is meant to be handled from here on.
    unsafe { lidt(&DescriptorTablePointer { limit: 0, base: VirtAddr::zero() }) };
    x86_64::instructions::interrupts::int3();
    println!("triple: still here");
    runtime::halt()
}
