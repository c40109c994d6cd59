//! The part of the guest's state that stays in the CPU's registers, since the hypervisor does not use it: x87 and SSE,
//! breakpoint addresses. The same for every vendor.
#![allow(unsafe_code)]

use core::arch::asm;

use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};

use super::registers::Fxsave;

/// Power-on value of the page attribute table. See: SDM volume 3, 12.12.4; APM volume 2, 7.8.2.
pub(super) const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Lets FXSAVE and FXRSTOR carry SSE state.
pub(super) fn enable_sse() {
    // SAFETY: changes how floating point behaves in the hypervisor, which uses none.
    unsafe {
        Cr0::update(|cr0| {
            cr0.remove(Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED);
            cr0.insert(Cr0Flags::MONITOR_COPROCESSOR | Cr0Flags::NUMERIC_ERROR);
        });
        Cr4::update(|cr4| cr4.insert(Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE));
    }
}

/// x87 and SSE registers.
pub(super) fn floating_point() -> Fxsave {
    let mut image = Fxsave([0; 512]);
    // SAFETY: the image is 512 bytes aligned to 64; FXSAVE64 only writes there.
    unsafe { asm!("fxsave64 [{}]", in(reg) image.0.as_mut_ptr(), options(nostack, preserves_flags)) };
    image
}

/// Replaces x87 and SSE registers. Reserved bits of MXCSR are cleared: a state from the wire may have them, and they fault.
pub(super) fn set_floating_point(image: &Fxsave) {
    let mut image = *image;
    image.0[26..28].fill(0);
    // SAFETY: the image is 512 bytes aligned to 64, and no reserved bit of MXCSR, which is at 24..28, is set; the
    // hypervisor uses no floating point.
    unsafe { asm!("fxrstor64 [{}]", in(reg) image.0.as_ptr(), options(nostack, preserves_flags)) };
}

/// DR0 to DR3.
pub(super) fn debug_registers() -> [u64; 4] {
    let (dr0, dr1, dr2, dr3);
    // SAFETY: reading debug registers has no effect.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) dr0, out(reg) dr1, out(reg) dr2, out(reg) dr3, options(nomem, nostack, preserves_flags));
    }
    [dr0, dr1, dr2, dr3]
}

/// Replaces DR0 to DR3.
pub(super) fn set_debug_registers(dr: &[u64; 4]) {
    // SAFETY: DR7 of the host enables no breakpoint, so the addresses have no effect on the hypervisor.
    unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
            in(reg) dr[0], in(reg) dr[1], in(reg) dr[2], in(reg) dr[3], options(nomem, nostack, preserves_flags));
    }
}

/// DR6.
pub(super) fn dr6() -> u64 {
    let dr6;
    // SAFETY: reading a debug register has no effect.
    unsafe { asm!("mov {}, dr6", out(reg) dr6, options(nomem, nostack, preserves_flags)) };
    dr6
}

/// Replaces DR6; bits that are fixed stay.
pub(super) fn set_dr6(value: u64) {
    // SAFETY: DR6 only reports. The upper half must be zero.
    unsafe { asm!("mov dr6, {}", in(reg) value & 0xFFFF_FFFF, options(nomem, nostack, preserves_flags)) };
}

/// CR2.
pub(super) fn cr2() -> u64 {
    x86_64::registers::control::Cr2::read_raw()
}

/// Replaces CR2.
pub(super) fn set_cr2(value: u64) {
    // SAFETY: CR2 only reports; a page fault of the hypervisor's is fatal anyway.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}
