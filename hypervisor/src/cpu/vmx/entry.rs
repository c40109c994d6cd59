//! The world switch: from host to guest and back, with the cycle counter read at both ends.
//!
//! The code between the two reads executes the same number of instructions every time, whether it launches or resumes;
//! calibration measures that number. An emulator may run several decoded instructions at once and bring its clock up to
//! date only where control goes elsewhere: so each read is the first instruction behind a jump. See: SDM volume 3, chapters
//! 27 and 28.
#![allow(unsafe_code)]

use core::arch::global_asm;

use super::fields;
use super::instructions::{VmFail, read, write};
use crate::cpu::registers::Registers;

global_asm!(
    ".global pollux_vmx_enter",
    "pollux_vmx_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdi",    // [rsp + 16] general registers
    "sub rsp, 16", // [rsp + 8] first TSC, [rsp] the guest's RDI
    "mov eax, {host_rsp}",
    "vmwrite rax, rsp",
    "jbe 9f",
    "mov r8, rdx", // the guest's TSC at the first read
    "jmp 4f",
    "4:",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "mov [rsp + 8], rax",
    // A CPU without TSC offsetting refuses this, and has no use for it.
    "sub r8, rax",
    "mov eax, {tsc_offset}",
    "vmwrite rax, r8",
    "test esi, esi",
    "mov rax, [rdi]",
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
    "jnz 2f",
    "vmlaunch",
    "jmp 9f",
    "2:",
    "vmresume",
    // The instruction failed: CF or ZF is set.
    "9:",
    "setz dl",
    "movzx edx, dl",
    "inc edx", // 1: VMfailInvalid, 2: VMfailValid
    "xor eax, eax",
    "jmp 3f",
    ".global pollux_vmx_exit",
    "pollux_vmx_exit:",
    "mov [rsp], rdi",
    "mov rdi, [rsp + 16]",
    "mov [rdi], rax",
    "mov [rdi + 16], rdx",
    "jmp 5f",
    "5:",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "sub rax, [rsp + 8]",
    "mov [rdi + 8], rcx",
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
    "xor edx, edx",
    "3:",
    "add rsp, 24",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    host_rsp = const fields::HOST_RSP.encoding(),
    tsc_offset = const fields::TSC_OFFSET.encoding(),
);

/// What [`pollux_vmx_enter`] returns.
#[repr(C)]
struct Switched {
    /// TSC ticks between the two reads.
    ticks: u64,
    /// 0 when the guest was entered, else how the instruction failed.
    failure: u64,
}

unsafe extern "C" {
    /// Enters the guest, by VMRESUME if `launched`, and comes back when it exits.
    ///
    /// # Safety
    /// The current VMCS describes a guest that can only reach memory of its own, and a host state that leads back to
    /// [`pollux_vmx_exit`]; interrupts are off.
    fn pollux_vmx_enter(registers: *mut Registers, launched: u32, tsc: u64) -> Switched;

    /// Where the CPU goes on after an exit.
    fn pollux_vmx_exit();
}

/// Tells the VMCS where the CPU goes on after an exit.
pub(super) fn set_host_rip() {
    write(fields::HOST_RIP, pollux_vmx_exit as *const () as u64);
}

/// Runs the guest once. General registers but RSP pass through `registers`; RSP, RIP and RFLAGS are in the VMCS.
/// `tsc` is what the guest's TSC would be at the first of the two reads. Returns TSC ticks, overhead included.
///
/// # Safety
/// The current VMCS is complete: its guest can only reach memory of its own, its host state is that of this CPU, with
/// [`set_host_rip`]. Interrupts are off.
///
/// # Errors
/// When the CPU refuses the VMCS before it looks at the guest's state.
pub(super) unsafe fn enter(registers: &mut Registers, launched: bool, tsc: u64) -> Result<u64, VmFail> {
    // SAFETY: the caller vouches for the VMCS; the reference is valid for the call.
    let switched = unsafe { pollux_vmx_enter(registers, u32::from(launched), tsc) };
    match switched.failure {
        0 => Ok(switched.ticks),
        1 => Err(VmFail::Invalid),
        _ => Err(VmFail::Valid(read(fields::INSTRUCTION_ERROR))),
    }
}
