//! Accesses to model-specific registers that may not be there: they report the fault instead of taking it.
//! See: SDM volume 2, "RDMSR" and "WRMSR".
#![allow(unsafe_code)]

use core::arch::global_asm;

global_asm!(
    // EDI is the register, RSI where its value goes. Returns whether it was there.
    ".global pollux_msr_read, pollux_msr_read_here",
    "pollux_msr_read:",
    "mov ecx, edi",
    "pollux_msr_read_here:",
    "rdmsr",
    "shl rdx, 32",
    "or rax, rdx",
    "mov [rsi], rax",
    "mov eax, 1",
    "ret",
    // EDI is the register, RSI the value. Returns whether it was taken.
    ".global pollux_msr_write, pollux_msr_write_here",
    "pollux_msr_write:",
    "mov ecx, edi",
    "mov eax, esi",
    "mov rdx, rsi",
    "shr rdx, 32",
    "pollux_msr_write_here:",
    "wrmsr",
    "mov eax, 1",
    "ret",
    ".global pollux_msr_fault",
    "pollux_msr_fault:",
    "xor eax, eax",
    "ret",
);

unsafe extern "C" {
    fn pollux_msr_read(register: u32, value: *mut u64) -> u32;
    fn pollux_msr_write(register: u32, value: u64) -> u32;
    /// The instructions that may fault, and where the CPU goes on then.
    fn pollux_msr_read_here();
    fn pollux_msr_write_here();
    fn pollux_msr_fault();
}

/// Reads a register; `None` if the CPU does not have it.
///
/// # Safety
/// The interrupt table is loaded.
#[must_use]
pub unsafe fn try_read(register: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: the value is valid for the call; reading has no effect, and a fault is recovered from, as the caller says.
    (unsafe { pollux_msr_read(register, &raw mut value) } != 0).then_some(value)
}

/// Writes a register; returns whether the CPU took the value.
///
/// # Safety
/// The interrupt table is loaded, and the register with this value may be written if it is there.
#[must_use]
pub unsafe fn try_write(register: u32, value: u64) -> bool {
    // SAFETY: the caller vouches for the value; a fault is recovered from.
    unsafe { pollux_msr_write(register, value) != 0 }
}

/// Where the CPU goes on after a general-protection fault at `rip`, if that is an access of this module.
pub(super) fn recovery(rip: u64) -> Option<u64> {
    let here = [pollux_msr_read_here as *const () as u64, pollux_msr_write_here as *const () as u64];
    here.contains(&rip).then_some(pollux_msr_fault as *const () as u64)
}
