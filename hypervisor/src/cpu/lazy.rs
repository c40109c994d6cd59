//! The part of the guest's state that stays in the CPU's registers, since the hypervisor does not use it: x87 and vector
//! registers with XCR0, breakpoint addresses. The same for every vendor.
#![allow(unsafe_code)]

use core::arch::asm;

use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};

use crate::extended::{ALLOWED, AVX, Area, ExtendedRegisters, ExtendedState, Layout, SSE, X87};

/// Power-on value of the page attribute table. See: SDM volume 3, 12.12.4; APM volume 2, 7.8.2.
pub(super) const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Where FXSAVE tells which bits of MXCSR there are.
const MXCSR_MASK: core::ops::Range<usize> = 28..32;

/// The registers of the CPU that we run on. XCR0 is the guest's all the time, but while its state is saved or loaded: an
/// exit costs nothing for it.
#[derive(Debug)]
pub(super) struct LiveRegisters {
    layout: Layout,
}

impl LiveRegisters {
    /// Enables them, and finds out which there are. What CPUID claims is tried: what does not come back as it was loaded is
    /// left out, as is what `allowed`, bits of XCR0, does not have. Afterwards all are as after a reset.
    pub(super) fn enable(allowed: u64) -> Self {
        enable_sse();
        let mut live = Self { layout: Layout::LEGACY };
        let mut mask = [0; 4];
        mask.copy_from_slice(&live.write().0[MXCSR_MASK]);
        let mask = u32::from_le_bytes(mask);
        live.layout = live.layout.with_mxcsr_mask(mask);
        let claimed = Layout::find(&|leaf, subleaf| {
            let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
            [result.eax, result.ebx, result.ecx, result.edx]
        })
        .with_mxcsr_mask(mask)
        .within(allowed);
        if claimed.has_xsave() {
            // SAFETY: the CPU has XSAVE, says CPUID; the bit only enables instructions.
            unsafe { Cr4::update(|cr4| cr4.insert(Cr4Flags::OSXSAVE)) };
            let less = [ALLOWED, X87 | SSE | AVX, X87 | SSE].map(|allowed| Self { layout: claimed.within(allowed) });
            if let Some(kept) = less.into_iter().find_map(Self::if_kept) {
                live = kept;
            }
            if live.layout != claimed {
                log::warn!("XSAVE does not keep what CPUID claims: {claimed:?}");
            }
        }
        live.load(&ExtendedState::default());
        live
    }

    /// Itself, if registers are saved as they were loaded.
    fn if_kept(mut self) -> Option<Self> {
        let pattern = ExtendedState::pattern(&self.layout);
        self.load(&pattern);
        (self.save() == pattern).then_some(self)
    }

    /// All registers, as the CPU writes them.
    fn write(&self) -> Area {
        let mut area = Area::EMPTY;
        let at = area.0.as_mut_ptr();
        if !self.layout.has_xsave() {
            // SAFETY: the area is aligned to 64; FXSAVE64 writes 512 bytes of it.
            unsafe { asm!("fxsave64 [{}]", in(reg) at, options(nostack, preserves_flags)) };
            return area;
        }
        let all = self.layout.components();
        self.with_all(|| {
            // SAFETY: XSAVE64 is enabled, writes within the area, which `Layout::find` has seen to, and changes no register.
            unsafe {
                asm!("xsave64 [{}]", in(reg) at, in("eax") all as u32, in("edx") (all >> 32) as u32,
                    options(nostack, preserves_flags));
            }
        });
        area
    }

    /// Does something while XCR0 enables all that there is.
    fn with_all(&self, what: impl FnOnce()) {
        let (guests, all) = (self.xcr0(), self.layout.components());
        if guests != all {
            set_xcr0(all);
        }
        what();
        if guests != all {
            set_xcr0(guests);
        }
    }
}

impl ExtendedRegisters for LiveRegisters {
    fn layout(&self) -> Layout {
        self.layout
    }

    fn save(&self) -> ExtendedState {
        ExtendedState::from_area(&self.write(), &self.layout, self.xcr0())
    }

    fn load(&mut self, state: &ExtendedState) {
        if let Err(error) = state.check_loading(&self.layout) {
            panic!("loading x87 and vector registers: {error}");
        }
        let area = state.to_area(&self.layout);
        let at = area.0.as_ptr();
        // SAFETY: the hypervisor uses no floating point. FNINIT clears what FXRSTOR and XRSTOR leave alone.
        unsafe { asm!("fninit", options(nomem, nostack, preserves_flags)) };
        if !self.layout.has_xsave() {
            // SAFETY: the area is aligned to 64, and `check_loading` found no reserved bit of MXCSR.
            unsafe { asm!("fxrstor64 [{}]", in(reg) at, options(nostack, preserves_flags)) };
            return;
        }
        let all = self.layout.components();
        self.with_all(|| {
            // SAFETY: XRSTOR64 is enabled; the area is aligned to 64, its header names only components that XCR0 enables
            // and is zero otherwise, and `check_loading` found no reserved bit of MXCSR.
            unsafe {
                asm!("xrstor64 [{}]", in(reg) at, in("eax") all as u32, in("edx") (all >> 32) as u32,
                    options(nostack, preserves_flags));
            }
        });
        set_xcr0(state.xcr0);
    }

    fn xcr0(&self) -> u64 {
        xcr0().filter(|_| self.layout.has_xsave()).unwrap_or(X87)
    }

    fn set_xcr0(&mut self, value: u64) {
        assert!(self.layout.has_xsave() && self.layout.allows(value), "XCR0 = {value:#x}");
        set_xcr0(value);
    }
}

/// XCR0, if it is there.
pub(super) fn xcr0() -> Option<u64> {
    if !Cr4::read().contains(Cr4Flags::OSXSAVE) {
        return None;
    }
    let (low, high): (u32, u32);
    // SAFETY: CR4.OSXSAVE is set, and XCR0 exists where it can be.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    Some(u64::from(high) << 32 | u64::from(low))
}

/// Replaces XCR0. The CPU has it, CR4.OSXSAVE is set, and the value is one that it allows.
fn set_xcr0(value: u64) {
    // SAFETY: decides which registers instructions may use; the hypervisor uses none of them.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nomem, nostack, preserves_flags));
    }
}

/// Lets instructions use x87 and SSE registers, and FXSAVE and FXRSTOR carry the latter.
fn enable_sse() {
    // SAFETY: changes how floating point behaves in the hypervisor, which uses none.
    unsafe {
        Cr0::update(|cr0| {
            cr0.remove(Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED);
            cr0.insert(Cr0Flags::MONITOR_COPROCESSOR | Cr0Flags::NUMERIC_ERROR);
        });
        Cr4::update(|cr4| cr4.insert(Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE));
    }
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
