//! The local APIC: x2APIC where there is one (an MSR write is cheap to emulate, MMIO is not), else xAPIC.
//!
//! See: SDM volume 3, chapter 12.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicBool, Ordering};

use crate::{clock, cpu};

/// Vector of spurious interrupts.
pub const SPURIOUS_VECTOR: u8 = 0xff;
/// Vector of the timer.
pub const TIMER_VECTOR: u8 = 0x40;

const APIC_BASE_MSR: u32 = 0x1b;
const TSC_DEADLINE_MSR: u32 = 0x6e0;
const MMIO: u64 = 0xfee0_0000;

/// Registers used here, as offsets in the MMIO page; the MSR is 0x800 + offset / 16.
pub const TPR: u32 = 0x80;
const EOI: u32 = 0xb0;
const SVR: u32 = 0xf0;
const LVT_TIMER: u32 = 0x320;
const TIMER_INITIAL: u32 = 0x380;
/// The timer's current count.
pub const TIMER_CURRENT: u32 = 0x390;
const TIMER_DIVIDE: u32 = 0x3e0;

static X2APIC: AtomicBool = AtomicBool::new(false);
static TSC_DEADLINE: AtomicBool = AtomicBool::new(false);

/// Enables the local APIC; its timer is set up but not running. `x2apic` false keeps to MMIO.
pub fn init(x2apic: bool) {
    let features = cpu::cpuid(1, 0).ecx;
    // The PICs are masked: their vectors would collide with exceptions.
    // SAFETY: neither the PICs nor the local APIC do DMA; the vectors used have handlers or are dropped.
    unsafe {
        cpu::outb(0x21, 0xff);
        cpu::outb(0xa1, 0xff);
        if x2apic && features & 1 << 21 != 0 {
            cpu::wrmsr(APIC_BASE_MSR, cpu::rdmsr(APIC_BASE_MSR) | 3 << 10);
            X2APIC.store(true, Ordering::Relaxed);
        } else {
            cpu::wrmsr(APIC_BASE_MSR, cpu::rdmsr(APIC_BASE_MSR) | 1 << 11);
        }
    }
    write(SVR, 0x100 | u32::from(SPURIOUS_VECTOR));
    write(TPR, 0);
    if features & 1 << 24 != 0 {
        write(LVT_TIMER, 2 << 17 | u32::from(TIMER_VECTOR));
        TSC_DEADLINE.store(true, Ordering::Relaxed);
    } else {
        write(LVT_TIMER, u32::from(TIMER_VECTOR));
        write(TIMER_DIVIDE, 0xb);
    }
}

/// Reads a register by its MMIO offset.
#[must_use]
pub fn read(offset: u32) -> u32 {
    if X2APIC.load(Ordering::Relaxed) {
        return cpu::rdmsr(0x800 + offset / 16) as u32;
    }
    // SAFETY: the local APIC's page, mapped by the boot page tables.
    unsafe { ((MMIO + u64::from(offset)) as *const u32).read_volatile() }
}

/// Writes a register by its MMIO offset.
pub fn write(offset: u32, value: u32) {
    // SAFETY: as for `read`; interrupts thereby enabled have handlers or are dropped.
    unsafe {
        if X2APIC.load(Ordering::Relaxed) {
            cpu::wrmsr(0x800 + offset / 16, u64::from(value));
        } else {
            ((MMIO + u64::from(offset)) as *mut u32).write_volatile(value);
        }
    }
}

/// Acknowledges the interrupt being handled.
pub fn end_of_interrupt() {
    write(EOI, 0);
}

/// Starts the timer: one interrupt with [`TIMER_VECTOR`] when the TSC has reached `deadline`. A wait too long for the
/// timer's counter ends early.
pub fn arm_timer(deadline: u64) {
    if TSC_DEADLINE.load(Ordering::Relaxed) {
        // SAFETY: the timer's vector has a handler or is dropped. 0 would disarm.
        unsafe { cpu::wrmsr(TSC_DEADLINE_MSR, deadline.max(1)) };
    } else {
        let ticks = clock::ticks_to_nanoseconds(deadline.saturating_sub(cpu::rdtsc()));
        write(TIMER_INITIAL, u32::try_from(ticks).unwrap_or(u32::MAX).max(1));
    }
}

/// The destination address for message-signalled interrupts to this CPU (SDM volume 3, 12.11.1).
#[must_use]
pub fn msi_address() -> u32 {
    let id = if X2APIC.load(Ordering::Relaxed) { read(0x20) } else { read(0x20) >> 24 };
    MMIO as u32 | (id & 0xff) << 12
}
