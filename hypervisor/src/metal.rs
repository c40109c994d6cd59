//! Entry, panic and heap: what only the bare machine needs.

use core::panic::PanicInfo;

use linked_list_allocator::LockedHeap;
use pollux_boot::{BootInfo, RegionKind};
use pollux_hypervisor::counter::{Ticks, selftest};
use pollux_hypervisor::cpu::svm::{SvmVcpu, calibrate};
use pollux_hypervisor::host::memory::HostMemory;
use pollux_hypervisor::host::{interrupts, logger, serial};
use pollux_hypervisor::memory::GuestMemory;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

const HEAP_BYTES: u64 = 32 << 20;

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    unsafe {
        serial::LOG.start(serial::COM1);
        serial::MONITOR.start(serial::COM2);
    }
    logger::start(log::LevelFilter::Info);
    log::info!("{:?} {:?}", info.loader, info.command_line);
    let mut memory = HostMemory::new();
    for region in info.memory.regions() {
        log::info!("{region:?}");
        if region.kind == RegionKind::Usable {
            memory.add(region.start.max(1 << 20)..region.start + region.len);
        }
    }
    for module in &info.modules {
        memory.reserve(module.start..module.start + module.len);
    }
    let heap = memory.take(HEAP_BYTES, 4096).unwrap();
    unsafe { HEAP.lock().init(heap as *mut u8, HEAP_BYTES as usize) };
    let apic = unsafe { interrupts::start() }.unwrap();
    let ram = unsafe { memory.take_zeroed(16 << 20, 2 << 20) }.unwrap();
    let (base, len) = (ram.as_ptr() as u64, ram.len() as u64);
    let mut guest_memory = GuestMemory::new(ram);
    let mut vcpu = unsafe { SvmVcpu::new(base, len, &apic) }.unwrap_or_else(|e| panic!("{e}"));
    let mut settle = || interrupts::open_window();
    let cal = calibrate::calibrate(&mut vcpu, &mut guest_memory, &mut settle).unwrap_or_else(|e| panic!("{e}"));
    log::info!("{cal:?}");
    vcpu.calibrate(cal);
    let report = selftest::run(&mut vcpu, &Ticks, &mut guest_memory, &mut settle);
    logger::raw(format_args!("{report}"));
    loop {
        interrupts::wait();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    x86_64::instructions::interrupts::disable();
    logger::raw(format_args!("PANIC: {info}"));
    loop {
        x86_64::instructions::hlt();
    }
}
