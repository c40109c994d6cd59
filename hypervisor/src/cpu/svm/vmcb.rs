//! The virtual machine control block. See: AMD64 APM volume 2 (24593, rev. 3.41), appendix B.

use core::mem::{offset_of, size_of};

use crate::cpu::registers::Segment;

/// Intercepts of the first vector (offset 0xC).
#[allow(missing_docs)]
pub mod intercept1 {
    pub const INTR: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 1;
    pub const SMI: u32 = 1 << 2;
    pub const INIT: u32 = 1 << 3;
    pub const RDTSC: u32 = 1 << 14;
    pub const RDPMC: u32 = 1 << 15;
    pub const CPUID: u32 = 1 << 18;
    pub const INVD: u32 = 1 << 22;
    pub const HLT: u32 = 1 << 24;
    pub const INVLPG: u32 = 1 << 25;
    pub const INVLPGA: u32 = 1 << 26;
    pub const IO: u32 = 1 << 27;
    pub const MSR: u32 = 1 << 28;
    pub const TASK_SWITCH: u32 = 1 << 29;
    pub const SHUTDOWN: u32 = 1 << 31;
}

/// Intercepts of the second vector (offset 0x10).
#[allow(missing_docs)]
pub mod intercept2 {
    pub const VMRUN: u32 = 1 << 0;
    pub const VMMCALL: u32 = 1 << 1;
    pub const VMLOAD: u32 = 1 << 2;
    pub const VMSAVE: u32 = 1 << 3;
    pub const STGI: u32 = 1 << 4;
    pub const CLGI: u32 = 1 << 5;
    pub const SKINIT: u32 = 1 << 6;
    pub const RDTSCP: u32 = 1 << 7;
    pub const WBINVD: u32 = 1 << 9;
    pub const MONITOR: u32 = 1 << 10;
    pub const MWAIT: u32 = 1 << 11;
    pub const XSETBV: u32 = 1 << 13;
    pub const RDPRU: u32 = 1 << 14;
}

/// Intercept of INVPCID in the third vector (offset 0x14).
pub const INTERCEPT_INVPCID: u32 = 1 << 2;

/// Intercepts of CR8: reads are bit n, writes bit 16 + n of the vector at offset 0.
pub const INTERCEPT_CR8: u32 = 1 << 8 | 1 << 24;
/// Intercept of page faults in `intercept_exceptions`.
pub const INTERCEPT_PAGE_FAULT: u32 = 1 << 14;

/// Intercept of reads of a control register.
#[must_use]
pub const fn intercept_read(register: u32) -> u32 {
    1 << register
}

/// Intercept of writes to a control register.
#[must_use]
pub const fn intercept_write(register: u32) -> u32 {
    1 << (16 + register)
}

/// Exit codes. See: APM volume 2, appendix C.
#[allow(missing_docs)]
pub mod exit {
    pub const READ_CR0: u64 = 0x00;
    pub const READ_CR3: u64 = 0x03;
    pub const READ_CR4: u64 = 0x04;
    pub const READ_CR8: u64 = 0x08;
    pub const WRITE_CR0: u64 = 0x10;
    pub const WRITE_CR3: u64 = 0x13;
    pub const WRITE_CR4: u64 = 0x14;
    pub const WRITE_CR8: u64 = 0x18;
    pub const PAGE_FAULT: u64 = 0x4E;
    pub const INTR: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const SMI: u64 = 0x62;
    pub const INIT: u64 = 0x63;
    pub const RDTSC: u64 = 0x6E;
    pub const RDPMC: u64 = 0x6F;
    pub const CPUID: u64 = 0x72;
    pub const INVD: u64 = 0x76;
    pub const HLT: u64 = 0x78;
    pub const INVLPG: u64 = 0x79;
    pub const INVLPGA: u64 = 0x7A;
    pub const IO: u64 = 0x7B;
    pub const MSR: u64 = 0x7C;
    pub const TASK_SWITCH: u64 = 0x7D;
    pub const SHUTDOWN: u64 = 0x7F;
    pub const VMRUN: u64 = 0x80;
    pub const VMMCALL: u64 = 0x81;
    pub const VMLOAD: u64 = 0x82;
    pub const SKINIT: u64 = 0x86;
    pub const RDTSCP: u64 = 0x87;
    pub const WBINVD: u64 = 0x89;
    pub const MONITOR: u64 = 0x8A;
    pub const MWAIT: u64 = 0x8B;
    pub const XSETBV: u64 = 0x8D;
    pub const RDPRU: u64 = 0x8E;
    pub const INVPCID: u64 = 0xA2;
    pub const NESTED_PAGE_FAULT: u64 = 0x400;
    pub const INVALID: u64 = u64::MAX;
    /// QEMU 7.2 stores [`INVALID`] as a number of 32 bits.
    pub const INVALID_SHORT: u64 = u32::MAX as u64;
}

/// `interrupt_control`: a virtual interrupt is pending.
pub const V_IRQ: u32 = 1 << 8;
/// `interrupt_control`: priority 15, so that no virtual TPR holds it back.
pub const V_INTR_PRIORITY_15: u32 = 15 << 16;
/// `interrupt_control`: ignore the virtual TPR.
pub const V_IGN_TPR: u32 = 1 << 20;
/// `interrupt_control`: the host's IF alone decides about physical interrupts.
pub const V_INTR_MASKING: u32 = 1 << 24;
/// `interrupt_state`: the guest is in an interrupt shadow.
pub const INTERRUPT_SHADOW: u64 = 1 << 0;
/// `nested_control`: nested paging.
pub const NESTED_PAGING: u64 = 1 << 0;
/// `event_injection` and `exit_interrupt_info`: valid.
pub const EVENT_VALID: u64 = 1 << 31;
/// `event_injection`: the error code is to be pushed.
pub const EVENT_ERROR_CODE: u64 = 1 << 11;
/// `event_injection`: type 3, exception.
pub const EVENT_EXCEPTION: u64 = 3 << 8;
/// Type of an event in `event_injection` and `exit_interrupt_info`.
pub const EVENT_TYPE: u64 = 7 << 8;
/// The event is a software interrupt.
pub const EVENT_SOFTWARE: u64 = 4 << 8;
/// `tlb_control`: flush all of this guest's entries at entry.
pub const TLB_FLUSH_ALL: u8 = 1;

/// The control area and the save area, one page.
#[repr(C, align(4096))]
pub struct Vmcb {
    /// Control area.
    pub control: Control,
    /// State-save area.
    pub save: Save,
    rest: [u8; 4096 - 0x400 - size_of::<Save>()],
}

/// The control area. See: APM volume 2, table B-1.
#[repr(C)]
#[allow(missing_docs)]
pub struct Control {
    pub intercept_cr: u32,
    pub intercept_dr: u32,
    pub intercept_exceptions: u32,
    pub intercept1: u32,
    pub intercept2: u32,
    pub intercept3: u32,
    reserved1: [u8; 0x40 - 0x18],
    pub iopm_base: u64,
    pub msrpm_base: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u8,
    reserved2: [u8; 3],
    pub interrupt_control: u32,
    pub interrupt_vector: u32,
    pub interrupt_state: u64,
    pub exit_code: u64,
    pub exit_info1: u64,
    pub exit_info2: u64,
    pub exit_interrupt_info: u64,
    pub nested_control: u64,
    reserved3: [u8; 0xA8 - 0x98],
    pub event_injection: u64,
    pub nested_cr3: u64,
    reserved4: [u8; 0x400 - 0xB8],
}

/// The state-save area. See: APM volume 2, table B-2.
#[repr(C)]
#[allow(missing_docs)]
pub struct Save {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    reserved1: [u8; 0xCB - 0xA0],
    pub cpl: u8,
    reserved2: [u8; 4],
    pub efer: u64,
    reserved3: [u8; 0x148 - 0xD8],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved4: [u8; 0x1D8 - 0x180],
    pub rsp: u64,
    reserved5: [u8; 0x1F8 - 0x1E0],
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved6: [u8; 0x268 - 0x248],
    pub g_pat: u64,
}

const _: () = {
    assert!(size_of::<Vmcb>() == 4096);
    assert!(offset_of!(Vmcb, save) == 0x400);
    assert!(offset_of!(Control, iopm_base) == 0x40);
    assert!(offset_of!(Control, interrupt_control) == 0x60);
    assert!(offset_of!(Control, exit_code) == 0x70);
    assert!(offset_of!(Control, event_injection) == 0xA8);
    assert!(offset_of!(Control, nested_cr3) == 0xB0);
    assert!(offset_of!(Save, cpl) == 0xCB);
    assert!(offset_of!(Save, efer) == 0xD0);
    assert!(offset_of!(Save, cr4) == 0x148);
    assert!(offset_of!(Save, rip) == 0x178);
    assert!(offset_of!(Save, rsp) == 0x1D8);
    assert!(offset_of!(Save, rax) == 0x1F8);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, g_pat) == 0x268);
};

impl Vmcb {
    /// All zeroes.
    #[must_use]
    pub const fn zeroed() -> Self {
        const SEGMENT: Segment = Segment { selector: 0, attributes: 0, limit: 0, base: 0 };
        Self {
            control: Control {
                intercept_cr: 0,
                intercept_dr: 0,
                intercept_exceptions: 0,
                intercept1: 0,
                intercept2: 0,
                intercept3: 0,
                reserved1: [0; 0x28],
                iopm_base: 0,
                msrpm_base: 0,
                tsc_offset: 0,
                asid: 0,
                tlb_control: 0,
                reserved2: [0; 3],
                interrupt_control: 0,
                interrupt_vector: 0,
                interrupt_state: 0,
                exit_code: 0,
                exit_info1: 0,
                exit_info2: 0,
                exit_interrupt_info: 0,
                nested_control: 0,
                reserved3: [0; 0x10],
                event_injection: 0,
                nested_cr3: 0,
                reserved4: [0; 0x348],
            },
            save: Save {
                es: SEGMENT,
                cs: SEGMENT,
                ss: SEGMENT,
                ds: SEGMENT,
                fs: SEGMENT,
                gs: SEGMENT,
                gdtr: SEGMENT,
                ldtr: SEGMENT,
                idtr: SEGMENT,
                tr: SEGMENT,
                reserved1: [0; 0x2B],
                cpl: 0,
                reserved2: [0; 4],
                efer: 0,
                reserved3: [0; 0x70],
                cr4: 0,
                cr3: 0,
                cr0: 0,
                dr7: 0,
                dr6: 0,
                rflags: 0,
                rip: 0,
                reserved4: [0; 0x58],
                rsp: 0,
                reserved5: [0; 0x18],
                rax: 0,
                star: 0,
                lstar: 0,
                cstar: 0,
                sfmask: 0,
                kernel_gs_base: 0,
                sysenter_cs: 0,
                sysenter_esp: 0,
                sysenter_eip: 0,
                cr2: 0,
                reserved6: [0; 0x20],
                g_pat: 0,
            },
            rest: [0; 4096 - 0x400 - size_of::<Save>()],
        }
    }
}
