//! Interrupt descriptor table and dispatch.
//!
//! Every vector has a stub that saves all registers and calls `dispatch`; handlers may change what they return to.
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::cell::UnsafeCell;

use x86_64::VirtAddr;
use x86_64::instructions::interrupts::without_interrupts;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;

use crate::{lapic, runtime};

/// The interrupted state as the stubs lay it out.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the registers' names")]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub vector: u64,
    /// The error code; 0 for vectors that have none.
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// Called for a vector, with interrupts off.
pub type Handler = fn(&mut Frame);

// 16 bytes per stub. Vectors with an error code (SDM volume 3, table 7-1): 8, 10-14, 17, 21, 29, 30.
global_asm!(
    r#"
    .section .text
    .balign 16
interrupt_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    push 0
    .endif
    push vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr

interrupt_common:
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    mov rdi, rsp
    cld
    mov rbp, rsp
    and rsp, -16
    call {dispatch}
    mov rsp, rbp
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq
"#,
    dispatch = sym dispatch,
);

unsafe extern "C" {
    static interrupt_stubs: u8;
}

/// An interrupt gate (SDM volume 3, 7.14.1).
#[repr(C)]
#[derive(Clone, Copy)]
struct Gate {
    offset_low: u16,
    selector: u16,
    flags: u16,
    offset_middle: u16,
    offset_high: u32,
    zero: u32,
}
const _: () = assert!(size_of::<Gate>() == 16);

const EMPTY_GATE: Gate = Gate { offset_low: 0, selector: 0, flags: 0, offset_middle: 0, offset_high: 0, zero: 0 };

struct Tables {
    gates: UnsafeCell<[Gate; 256]>,
    handlers: UnsafeCell<[Option<Handler>; 256]>,
}

// SAFETY: one CPU; written by `init` before interrupts are on and by `set_handler` with interrupts off.
unsafe impl Sync for Tables {}

static TABLES: Tables = Tables { gates: UnsafeCell::new([EMPTY_GATE; 256]), handlers: UnsafeCell::new([None; 256]) };

/// Loads the interrupt descriptor table. Vectors without a handler end the guest (exceptions) or are dropped.
pub fn init() {
    let stubs = &raw const interrupt_stubs as u64;
    // SAFETY: called once at start; the gates point at the stubs above, which preserve all registers.
    unsafe {
        let gates = &mut *TABLES.gates.get();
        for (vector, gate) in (0u64..).zip(gates.iter_mut()) {
            let address = stubs + vector * 16;
            *gate = Gate {
                offset_low: address as u16,
                selector: 0x08,
                flags: 0x8e00, // present, ring 0, 64-bit interrupt gate
                offset_middle: (address >> 16) as u16,
                offset_high: (address >> 32) as u32,
                zero: 0,
            };
        }
        lidt(&DescriptorTablePointer { limit: 16 * 256 - 1, base: VirtAddr::new(gates.as_ptr() as u64) });
    }
}

/// Sets what is called for a vector.
pub fn set_handler(vector: u8, handler: Handler) {
    // SAFETY: one CPU, and no interrupt comes between.
    without_interrupts(|| unsafe { (*TABLES.handlers.get())[usize::from(vector)] = Some(handler) });
}

extern "C" fn dispatch(frame: &mut Frame) {
    // SAFETY: handlers are only written with interrupts off, and not from handlers.
    let handler = unsafe { (*TABLES.handlers.get())[(frame.vector & 0xff) as usize] };
    match handler {
        Some(handler) => handler(frame),
        None if frame.vector < 32 => {
            let cr2 = x86_64::registers::control::Cr2::read_raw();
            crate::serial::print_fatal(format_args!("guest: exception {frame:#x?} cr2 {cr2:#x}\n"));
            runtime::power_off()
        }
        // Spurious interrupts are not acknowledged (SDM volume 3, 12.9).
        None if frame.vector == u64::from(lapic::SPURIOUS_VECTOR) => {}
        None => lapic::end_of_interrupt(),
    }
}
