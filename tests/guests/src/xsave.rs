//! XSAVE and its like, and vector registers by assembly: Rust code here uses none. See: SDM volume 1, chapter 13.
#![allow(unsafe_code)]

use core::arch::asm;

use crate::cpu;

/// XCR0: x87, SSE, upper halves of YMM registers, and all of AVX-512.
pub const X87: u64 = 1 << 0;
/// See [`X87`].
pub const SSE: u64 = 1 << 1;
/// See [`X87`].
pub const AVX: u64 = 1 << 2;
/// See [`X87`].
pub const AVX512: u64 = 1 << 5 | 1 << 6 | 1 << 7;

/// Where XSTATE_BV is in an area.
pub const HEADER: usize = 512;

/// An area for XSAVE, larger than any CPU of today needs.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Area(pub [u8; 4096]);

impl Area {
    /// An area of zeros, which XRSTOR takes for the state after a reset.
    pub const EMPTY: Self = Self([0; 4096]);

    /// Saves the components of `mask`. They must be enabled.
    pub fn save(&mut self, mask: u64) {
        // SAFETY: XSAVE writes within the area and changes no register.
        unsafe {
            asm!("xsave64 [{}]", in(reg) self.0.as_mut_ptr(), in("eax") mask as u32, in("edx") (mask >> 32) as u32,
                options(nostack, preserves_flags));
        }
    }

    /// Loads the components of `mask`. Four bytes long, if it faults.
    pub fn load(&self, mask: u64) {
        // SAFETY: Rust code uses neither x87 nor vector registers on this target. RDI as base makes it four bytes.
        unsafe {
            asm!("xrstor64 [rdi]", in("rdi") self.0.as_ptr(), in("eax") mask as u32, in("edx") (mask >> 32) as u32,
                options(nostack, preserves_flags));
        }
    }
}

/// Enables all components that leaf 0DH shows; returns them, or none where there is no XSAVE.
pub fn enable() -> Option<u64> {
    cpu::enable_sse();
    if cpu::cpuid(1, 0).ecx & 1 << 26 == 0 {
        return None;
    }
    set_osxsave(true);
    let leaf = cpu::cpuid(0xd, 0);
    let all = u64::from(leaf.edx) << 32 | u64::from(leaf.eax);
    xsetbv(0, all);
    Some(all)
}

/// CR4.OSXSAVE.
pub fn set_osxsave(on: bool) {
    // SAFETY: only enables instructions, which Rust code does not use on this target.
    unsafe {
        asm!("mov {0}, cr4", "and {0}, ~0x40000", "or {0}, {1}", "mov cr4, {0}", out(reg) _, in(reg) u64::from(on) << 18,
            options(nomem, nostack));
    }
}

/// Writes an extended control register. Three bytes long, if it faults.
pub fn xsetbv(register: u32, value: u64) {
    // SAFETY: decides about registers that Rust code does not use on this target.
    unsafe {
        asm!("xsetbv", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nomem, nostack));
    }
}

/// XCR0.
#[must_use]
pub fn xgetbv() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register that is there where XSAVE is enabled.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// YMM0 to 15, or as much of them as there is.
pub type Ymm = [[u64; 4]; 16];

/// Loads YMM0 to 15, or XMM0 to 15 where `enabled` has no AVX.
pub fn fill(values: &Ymm, enabled: u64) {
    // SAFETY: no Rust code uses these registers.
    unsafe {
        if enabled & AVX != 0 {
            asm!(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", "vmovdqu ymm\\n, [{0} + \\n * 32]", ".endr",
                in(reg) values.as_ptr(), options(nostack, readonly));
        } else {
            asm!(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", "movdqu xmm\\n, [{0} + \\n * 32]", ".endr",
                in(reg) values.as_ptr(), options(nostack, readonly));
        }
    }
}

/// What [`fill`] has loaded; the upper halves are zero where `enabled` has no AVX.
#[must_use]
pub fn read(enabled: u64) -> Ymm {
    let mut values = [[0; 4]; 16];
    // SAFETY: writes what is ours.
    unsafe {
        if enabled & AVX != 0 {
            asm!(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", "vmovdqu [{0} + \\n * 32], ymm\\n", ".endr",
                in(reg) values.as_mut_ptr(), options(nostack));
        } else {
            asm!(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", "movdqu [{0} + \\n * 32], xmm\\n", ".endr",
                in(reg) values.as_mut_ptr(), options(nostack));
        }
    }
    values
}

/// Loads ZMM16 to 31 and the opmask registers with copies of `value`. There must be AVX-512.
pub fn fill_zmm(value: u64) {
    // SAFETY: no Rust code uses these registers. K0 to K7 take 16 bits each.
    unsafe {
        asm!(".irp n,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31", "vpbroadcastq zmm\\n, {0}", ".endr",
            ".irp n,0,1,2,3,4,5,6,7", "kmovw k\\n, {0:e}", ".endr", in(reg) value, options(nomem, nostack));
    }
}

/// Whether they still hold them.
#[must_use]
pub fn zmm_hold(value: u64) -> bool {
    let mut out = [[0u64; 8]; 16];
    let mut mask = 0u64;
    let mut all = u64::from(value as u16);
    // SAFETY: writes what is ours.
    unsafe {
        asm!(".set at, 0", ".irp n,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31", "vmovdqu64 [{0} + at], zmm\\n",
            ".set at, at + 64", ".endr", in(reg) out.as_mut_ptr(), options(nostack));
        asm!(".irp n,0,1,2,3,4,5,6,7", "kmovw {1:e}, k\\n", "and {0}, {1}", ".endr", inout(reg) all, out(reg) mask,
            options(nomem, nostack));
    }
    let _ = mask;
    out.iter().flatten().all(|word| *word == value) && all == u64::from(value as u16)
}

/// x87: pi times `factor`, the result left in ST0, with the instruction's and the operand's address in FIP and FDP.
pub fn compute(factor: &i32) {
    // SAFETY: Rust code does not use x87 on this target.
    unsafe {
        asm!("fninit", "fldpi", "fimul dword ptr [{}]", in(reg) factor, options(nostack, readonly));
    }
}

/// The x87 environment: control, status and tag words, FIP, FCS and FOP, FDP, FDS. All exceptions are masked afterwards.
#[must_use]
pub fn environment() -> [u32; 7] {
    let mut environment = [0; 7];
    // SAFETY: writes 28 bytes.
    unsafe { asm!("fnstenv [{}]", in(reg) environment.as_mut_ptr(), options(nostack)) };
    environment
}
