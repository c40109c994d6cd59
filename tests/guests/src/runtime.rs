//! Start, end and heap of every guest.
#![allow(unsafe_code)]

use core::panic::PanicInfo;
use core::slice;
use core::sync::atomic::{AtomicBool, Ordering};

use linked_list_allocator::LockedHeap;
use pollux_boot::{BootInfo, Region};
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::registers::model_specific::Msr;
use x86_64::structures::DescriptorTablePointer;

use crate::{clock, cpu, interrupts, println, serial};

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Most memory given to the heap.
const MAX_HEAP: u64 = 64 << 20;

/// Sets up interrupts, clock and heap. Called once, first thing.
pub fn init(info: &'static BootInfo) {
    interrupts::init();
    clock::init();
    if let Some(region) = largest_region(info) {
        // SAFETY: the memory map says that nobody uses this RAM, it is mapped, and nobody else is given it.
        unsafe { HEAP.lock().init(region.start as *mut u8, region.len.min(MAX_HEAP) as usize) };
    }
}

fn largest_region(info: &BootInfo) -> Option<Region> {
    info.memory.usable().filter(|region| region.end() <= 1 << 32).max_by_key(|region| region.len)
}

/// Bytes of the heap.
pub fn heap_bytes() -> usize {
    HEAP.lock().size()
}

/// The memory behind the heap, `len` bytes of it or what there is. Called once.
pub fn memory_beyond_heap(info: &BootInfo, len: u64) -> &'static mut [u8] {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    assert!(!TAKEN.swap(true, Ordering::Relaxed), "the memory behind the heap is given out once");
    let Some(region) = largest_region(info) else { return &mut [] };
    let len = len.min(region.len.saturating_sub(MAX_HEAP));
    // SAFETY: as in `init`; the heap ends where this begins, and it is given out once.
    unsafe { slice::from_raw_parts_mut((region.start + MAX_HEAP) as *mut u8, len as usize) }
}

/// Switches the machine off, or at least stops it.
pub fn power_off() -> ! {
    // SAFETY: PM1a control, SLP_EN with SLP_TYP 0 (ACPI 4.8.3.2.1); devices are not touched otherwise.
    unsafe { cpu::outw(0x604, 0x2000) };
    halt()
}

/// Resets the machine.
pub fn reset() -> ! {
    // SAFETY: the reset control register, then the keyboard controller's reset line.
    unsafe {
        cpu::outb(0xcf9, 6);
        cpu::outb(0x64, 0xfe);
    }
    halt()
}

/// An exception, raised by `raise`, without an interrupt descriptor table, which resets the machine.
pub fn triple_fault(raise: fn()) -> ! {
    // SAFETY: no exception is meant to be handled from here on.
    unsafe { lidt(&DescriptorTablePointer { limit: 0, base: VirtAddr::zero() }) };
    raise();
    println!("still here after a triple fault");
    halt()
}

/// Reads a register that no machine of ours has, so that the hypervisor injects a general-protection fault.
pub fn unknown_register() {
    // SAFETY: it has no effect but the fault.
    let _ = unsafe { Msr::new(0x4000_1234).read() };
}

/// Stops for ever, with interrupts off.
pub fn halt() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    serial::print_fatal(format_args!("guest: {info}\n"));
    power_off()
}
