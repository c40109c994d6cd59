//! Instructions that Rust has no name for.
#![allow(unsafe_code)]

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdtsc};

use x86_64::instructions::port::Port;
use x86_64::registers::model_specific::Msr;

pub use core::arch::x86_64::CpuidResult;

/// The time-stamp counter.
#[must_use]
pub fn rdtsc() -> u64 {
    // SAFETY: no guest sets CR4.TSD.
    unsafe { _rdtsc() }
}

/// CPUID of a leaf and sub-leaf.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// Reads an MSR that exists.
#[must_use]
pub fn rdmsr(msr: u32) -> u64 {
    // SAFETY: reading an MSR changes nothing; one that does not exist raises #GP, which ends the guest or is expected by it.
    unsafe { Msr::new(msr).read() }
}

/// Writes an MSR.
///
/// # Safety
/// The value must not break what Rust relies on: paging, segments, system-call entry.
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { Msr::new(msr).write(value) }
}

/// Reads a byte from a port.
#[must_use]
pub fn inb(port: u16) -> u8 {
    // SAFETY: no device of the guests' machines does more than change its own state on a read.
    unsafe { Port::new(port).read() }
}

/// Reads four bytes from a port.
#[must_use]
pub fn inl(port: u16) -> u32 {
    // SAFETY: see `inb`.
    unsafe { Port::new(port).read() }
}

/// Writes a byte to a port.
///
/// # Safety
/// A device with DMA must not be made to write to memory that Rust owns.
pub unsafe fn outb(port: u16, value: u8) {
    // SAFETY: the caller's promise.
    unsafe { Port::new(port).write(value) }
}

/// Writes two bytes to a port.
///
/// # Safety
/// As [`outb`].
pub unsafe fn outw(port: u16, value: u16) {
    // SAFETY: the caller's promise.
    unsafe { Port::new(port).write(value) }
}

/// Writes four bytes to a port.
///
/// # Safety
/// As [`outb`].
pub unsafe fn outl(port: u16, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { Port::new(port).write(value) }
}

/// Waits for an interrupt with interrupts on, then turns them off again. Interrupts must be off before: what the caller has
/// looked at cannot change between its look and the wait.
pub fn wait_for_interrupt() {
    // SAFETY: STI takes effect after the next instruction, so that no interrupt can be handled before HLT waits.
    unsafe { asm!("sti", "hlt", "cli", options(nomem, nostack)) }
}

/// Lets SSE instructions run (used by inline assembly only; Rust code here uses no vector registers).
pub fn enable_sse() {
    // SAFETY: sets CR4.OSFXSAVE and OSXMMEXCPT, CR0.MP, and clears CR0.EM and TS (SDM volume 3, 14.1): nobody else's state.
    unsafe {
        asm!(
            "mov {0}, cr0", "and {0}, ~0xc", "or {0}, 2", "mov cr0, {0}",
            "mov {0}, cr4", "or {0}, 0x600", "mov cr4, {0}", "fninit",
            out(reg) _, options(nomem, nostack)
        );
    }
}
