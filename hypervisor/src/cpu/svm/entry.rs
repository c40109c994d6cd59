//! The world switch: from host to guest and back, with the cycle counter read at both ends.
//!
//! The code between the two reads has no branch, so it costs the same number of instructions every time; the self-test
//! measures that number. The timer is armed inside it for the same reason.
//! See: APM volume 2, 15.5 (VMRUN), 15.17 (global interrupt flag).
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::mem::offset_of;

use super::vmcb::{Control, Vmcb};
use crate::cpu::registers::Registers;

global_asm!(
    ".global pollux_svm_enter",
    "pollux_svm_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push r8",     // [rsp + 40] timer register
    "push rdx",    // [rsp + 32] host VMCB
    "push rdi",    // [rsp + 24] general registers
    "push rsi",    // [rsp + 16] guest VMCB
    "sub rsp, 16", // [rsp + 8] first TSC, [rsp] the guest's RDI
    "clgi",
    // With GIF clear nothing is delivered yet; the flag decides about interrupts while the guest runs.
    "sti",
    "mov rax, rsi",
    "vmload rax",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "mov [rsp + 8], rax",
    // Behind this read the guest is always equally far away.
    "sub r9, rax",
    "mov [rsi + {tsc_offset}], r9",
    "mov [r8], ecx",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rbp, [rdi + 40]",
    "mov rsi, [rdi + 48]",
    "mov r8, [rdi + 64]",
    "mov r9, [rdi + 72]",
    "mov r10, [rdi + 80]",
    "mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]",
    "mov r13, [rdi + 104]",
    "mov r14, [rdi + 112]",
    "mov r15, [rdi + 120]",
    "mov rdi, [rdi + 56]",
    "mov rax, [rsp + 16]",
    "vmrun rax",
    "mov [rsp], rdi",
    "mov rdi, [rsp + 24]",
    "mov [rdi + 8], rcx",
    "mov [rdi + 16], rdx",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "sub rax, [rsp + 8]",
    "mov [rdi + 24], rbx",
    "mov [rdi + 40], rbp",
    "mov [rdi + 48], rsi",
    "mov [rdi + 64], r8",
    "mov [rdi + 72], r9",
    "mov [rdi + 80], r10",
    "mov [rdi + 88], r11",
    "mov [rdi + 96], r12",
    "mov [rdi + 104], r13",
    "mov [rdi + 112], r14",
    "mov [rdi + 120], r15",
    "mov rcx, [rsp]",
    "mov [rdi + 56], rcx",
    // A limit that was not reached must not fire later.
    "mov r8, [rsp + 40]",
    "mov dword ptr [r8], 0",
    "mov rcx, rax",
    "mov rax, [rsp + 16]",
    "vmsave rax",
    "mov rax, [rsp + 32]",
    "vmload rax",
    "mov rax, rcx",
    "cli",
    "stgi",
    "add rsp, 48",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    tsc_offset = const offset_of!(Vmcb, control) + offset_of!(Control, tsc_offset),
);

unsafe extern "C" {
    /// Enters the guest and returns the TSC ticks between the two reads.
    ///
    /// # Safety
    /// SVM is enabled with a host save area set; both blocks are valid and identity-mapped; `timer` is the local
    /// APIC's initial-count register; interrupts are off.
    fn pollux_svm_enter(
        registers: *mut Registers,
        vmcb: *mut Vmcb,
        host: *mut Vmcb,
        timer_count: u32,
        timer: *mut u32,
        tsc: u64,
    ) -> u64;
}

/// Runs the guest once. General registers but RAX and RSP pass through `registers`, those two through the VMCB.
/// `timer_count` is written to `timer` just before entry, 0 for no limit. `tsc` is what the guest's TSC would be at the
/// first of the two reads. Returns TSC ticks, overhead included.
///
/// # Safety
/// As for a VMRUN: SVM enabled, host save area set, `vmcb` describes a guest whose nested page tables map only memory
/// that is the guest's, `timer` is the local APIC's initial-count register, interrupts are off.
pub(super) unsafe fn enter(
    registers: &mut Registers,
    vmcb: &mut Vmcb,
    host: &mut Vmcb,
    timer_count: u32,
    timer: *mut u32,
    tsc: u64,
) -> u64 {
    // SAFETY: the caller vouches for the CPU's state; the references are valid for the call.
    unsafe { pollux_svm_enter(registers, vmcb, host, timer_count, timer, tsc) }
}
