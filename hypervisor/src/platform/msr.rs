//! Model-specific registers that belong to the machine rather than to the CPU's execution state.
//!
//! What is not listed raises #GP, as on hardware without the feature: nothing is ever passed through.
//! See: SDM volume 4; APM volume 2, appendix A.

use super::access::Gp;
use crate::state::{State, StateError, Visitor};

/// Indices of MSRs. See: SDM volume 4, table 2-2.
#[allow(missing_docs)]
pub mod index {
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1B;
    pub const FEATURE_CONTROL: u32 = 0x3A;
    pub const TSC_ADJUST: u32 = 0x3B;
    pub const UCODE_REV: u32 = 0x8B;
    pub const PLATFORM_INFO: u32 = 0xCE;
    pub const MTRR_CAP: u32 = 0xFE;
    pub const MISC_FEATURE_ENABLES: u32 = 0x140;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17A;
    pub const PERF_STATUS: u32 = 0x198;
    pub const MISC_ENABLE: u32 = 0x1A0;
    pub const DEBUG_CTL: u32 = 0x1D9;
    pub const MTRR_PHYS_FIRST: u32 = 0x200;
    pub const MTRR_PHYS_LAST: u32 = 0x20F;
    pub const MTRR_FIX_64K: u32 = 0x250;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2FF;
    pub const TSC_DEADLINE: u32 = 0x6E0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8FF;
    pub const TSC_AUX: u32 = 0xC000_0103;
    pub const SYSCFG: u32 = 0xC001_0010;
    pub const HWCR: u32 = 0xC001_0015;
    pub const NB_CFG: u32 = 0xC001_001F;
    pub const VM_CR: u32 = 0xC001_0114;
    pub const LS_CFG: u32 = 0xC001_1020;
    pub const DE_CFG: u32 = 0xC001_1029;
}

/// Number of variable MTRRs.
const VARIABLE: u64 = 8;
/// IA32_MTRR_PHYSMASKn: the pair is in use. See: SDM volume 3, 12.11.2.3.
const MTRR_VALID: u64 = 1 << 11;
/// Length of the hole below 4 GiB, where devices are.
const MTRR_HOLE: u64 = (1 << 32) - super::pci::WINDOW_START;
const _: () = assert!(MTRR_HOLE.is_power_of_two());
/// The fixed MTRRs, in the order in which they are kept.
const FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26A, 0x26B, 0x26C, 0x26D, 0x26E, 0x26F];
/// Write-back, the only memory type that the guest's RAM really has.
const WRITE_BACK: u64 = 6;
/// Memory types after reset: WB, WT, UC−, UC, twice. See: SDM volume 3, 12.12.4.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// IA32_MISC_ENABLE: fast strings on, branch trace and PEBS unavailable.
const MISC_ENABLE_RESET: u64 = 1 | 1 << 11 | 1 << 12;
/// LFENCE is serialising (AMD); the guest may set it again.
const DE_CFG_LFENCE: u64 = 1 << 1;
/// HWCR: the TSC runs at a constant rate. Linux complains on AMD when it is clear.
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;

/// Stored MSRs.
#[derive(Debug, Clone)]
pub struct Msrs {
    /// The guest's TSC minus guest time, wrapping.
    tsc_offset: u64,
    tsc_aux: u64,
    pat: u64,
    misc_enable: u64,
    hwcr: u64,
    mtrr_def_type: u64,
    mtrr_variable: [u64; 2 * VARIABLE as usize],
    mtrr_fixed: [u64; FIXED.len()],
    /// All bits that a physical address may have. Not state: it follows from CPUID, in which twins agree.
    addresses: u64,
}

impl Msrs {
    /// As firmware leaves them: all memory write-back, except for the hole below 4 GiB. `physical_bits` is the width of
    /// addresses that CPUID shows, from 36 to 52.
    #[must_use]
    pub fn new(physical_bits: u32) -> Self {
        let addresses = (1 << physical_bits) - 1;
        let mut mtrr_variable = [0; 2 * VARIABLE as usize];
        // 3–4 GiB uncacheable: the base has type 0. A mask that left out high bits would name more ranges than this one.
        mtrr_variable[0] = super::pci::WINDOW_START;
        mtrr_variable[1] = addresses & !(MTRR_HOLE - 1) | MTRR_VALID;
        Self {
            tsc_offset: 0,
            tsc_aux: 0,
            pat: PAT_RESET,
            misc_enable: MISC_ENABLE_RESET,
            hwcr: HWCR_TSC_FREQ_SEL,
            // Enabled, with the fixed ranges.
            mtrr_def_type: WRITE_BACK | 1 << 10 | 1 << 11,
            mtrr_variable,
            mtrr_fixed: [WRITE_BACK * 0x0101_0101_0101_0101; FIXED.len()],
            addresses,
        }
    }

    /// The guest's TSC minus guest time.
    #[must_use]
    pub const fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }

    /// Changes the TSC offset. TSC_ADJUST follows: nothing else moves the TSC against guest time.
    pub fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }

    /// TSC_AUX.
    #[must_use]
    pub const fn tsc_aux(&self) -> u32 {
        self.tsc_aux as u32
    }

    /// IA32_PAT.
    #[must_use]
    pub const fn pat(&self) -> u64 {
        self.pat
    }

    /// Reads an MSR that needs nothing but these values.
    ///
    /// # Errors
    /// There is no such MSR.
    pub fn read(&self, msr: u32) -> Result<u64, Gp> {
        Ok(match msr {
            index::TSC_ADJUST => self.tsc_offset,
            index::TSC_AUX => self.tsc_aux,
            index::PAT => self.pat,
            index::MISC_ENABLE => self.misc_enable,
            index::HWCR => self.hwcr,
            // Locked, with nothing enabled: no VMX.
            index::FEATURE_CONTROL => 1,
            // Revision in the upper half (Intel) or lower half (AMD): the same old age for both.
            index::UCODE_REV => 1 << 32 | 1,
            // Ratio of the base clock: 10 × 100 MHz.
            index::PLATFORM_INFO => 10 << 8,
            // Variable MTRRs, fixed MTRRs, write-combining.
            index::MTRR_CAP => VARIABLE | 1 << 8 | 1 << 10,
            index::MTRR_DEF_TYPE => self.mtrr_def_type,
            index::MTRR_PHYS_FIRST..=index::MTRR_PHYS_LAST => {
                self.mtrr_variable[(msr - index::MTRR_PHYS_FIRST) as usize]
            }
            index::DE_CFG => DE_CFG_LFENCE,
            // No machine check banks, and harmless registers that operating systems look at.
            index::PLATFORM_ID
            | index::MISC_FEATURE_ENABLES
            | index::MCG_CAP
            | index::MCG_STATUS
            | index::PERF_STATUS
            | index::DEBUG_CTL
            | index::SYSCFG
            | index::NB_CFG
            | index::VM_CR
            | index::LS_CFG => 0,
            _ => self.mtrr_fixed[fixed_index(msr)?],
        })
    }

    /// Writes an MSR that has no effect beyond these values.
    ///
    /// # Errors
    /// There is no such MSR, it is read-only, or reserved bits are set.
    pub fn write(&mut self, msr: u32, value: u64) -> Result<(), Gp> {
        match msr {
            index::TSC_AUX => self.tsc_aux = check(value, u64::from(u32::MAX))?,
            index::PAT => self.pat = memory_types(value, true)?,
            // Only fast strings and "limit CPUID" can be switched, without effect.
            index::MISC_ENABLE => self.misc_enable = MISC_ENABLE_RESET & !1 | value & (1 | 1 << 22),
            // FFDIS, TLB cache disable and so on: kept, without effect. The P0 TSC bit stays set.
            index::HWCR => self.hwcr = check(value, 0x7FFF_FFFF)? | HWCR_TSC_FREQ_SEL,
            index::MTRR_DEF_TYPE => {
                memory_types(value & 0xFF, false)?;
                self.mtrr_def_type = check(value, 0xCFF)?;
            }
            index::MTRR_PHYS_FIRST..=index::MTRR_PHYS_LAST => {
                let slot = (msr - index::MTRR_PHYS_FIRST) as usize;
                let pages = self.addresses & !0xFFF;
                if slot.is_multiple_of(2) {
                    memory_types(value & 0xFF, false)?;
                    check(value, pages | 0xFF)?;
                } else {
                    check(value, pages | MTRR_VALID)?;
                }
                self.mtrr_variable[slot] = value;
            }
            // Microcode update triggers, signature resets and quirk bits do nothing.
            index::UCODE_REV
            | index::MISC_FEATURE_ENABLES
            | index::DEBUG_CTL
            | index::MCG_STATUS
            | index::SYSCFG
            | index::NB_CFG
            | index::LS_CFG
            | index::DE_CFG => {}
            index::PERF_STATUS | index::PLATFORM_ID | index::PLATFORM_INFO => {}
            _ => self.mtrr_fixed[fixed_index(msr)?] = memory_types(value, false)?,
        }
        Ok(())
    }
}

fn fixed_index(msr: u32) -> Result<usize, Gp> {
    FIXED.iter().position(|&fixed| fixed == msr).ok_or(Gp)
}

const fn check(value: u64, allowed: u64) -> Result<u64, Gp> {
    if value & !allowed == 0 { Ok(value) } else { Err(Gp) }
}

/// Eight memory types, one per byte: UC, WC, WT, WP, WB, and UC− in the PAT only.
fn memory_types(value: u64, pat: bool) -> Result<u64, Gp> {
    let valid = |kind: u8| matches!(kind, 0 | 1 | 4 | 5 | 6) || pat && kind == 7;
    if value.to_le_bytes().into_iter().all(valid) { Ok(value) } else { Err(Gp) }
}

impl State for Msrs {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.u64(&mut self.tsc_offset)?;
        v.u64(&mut self.tsc_aux)?;
        v.u64(&mut self.pat)?;
        v.u64(&mut self.misc_enable)?;
        v.u64(&mut self.hwcr)?;
        v.u64(&mut self.mtrr_def_type)?;
        self.mtrr_variable.iter_mut().chain(&mut self.mtrr_fixed).try_for_each(|value| v.u64(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_types_are_checked() {
        let mut msrs = Msrs::new(36);
        assert_eq!(msrs.read(index::PAT), Ok(PAT_RESET));
        assert_eq!(msrs.write(index::PAT, 2), Err(Gp));
        assert_eq!(msrs.write(index::PAT, 0x0606_0606_0606_0606), Ok(()));
        assert_eq!(msrs.write(0x250, 7), Err(Gp));
        assert_eq!(msrs.write(0x26F, 0x0404), Ok(()));
        assert_eq!(msrs.read(0x26F), Ok(0x0404));
        assert_eq!(msrs.write(index::MTRR_DEF_TYPE, 0x1000), Err(Gp));
        assert_eq!(msrs.write(index::MTRR_CAP, 0), Err(Gp));
    }

    /// The range's end as an operating system reckons it, from the width that CPUID shows: Linux' `generic_get_mtrr`.
    #[test]
    fn variable_ranges_have_the_width_of_addresses() {
        for bits in [36, 39, 40, 46, 48, 52] {
            let mut msrs = Msrs::new(bits);
            let mask = msrs.read(index::MTRR_PHYS_FIRST + 1).unwrap();
            assert_eq!(mask & 0xFFF, MTRR_VALID);
            assert_eq!((1 << bits) - (mask & !0xFFF), 1 << 30, "{bits} bits: the hole is 1 GiB");
            assert_eq!(msrs.read(index::MTRR_PHYS_FIRST), Ok(0xC000_0000));
            for slot in [index::MTRR_PHYS_FIRST + 2, index::MTRR_PHYS_FIRST + 3] {
                let highest = 1 << (bits - 1);
                assert_eq!(msrs.write(slot, highest), Ok(()));
                assert_eq!(msrs.write(slot, highest << 1), Err(Gp), "{bits} bits");
                assert_eq!(msrs.read(slot), Ok(highest));
            }
        }
    }

    #[test]
    fn unknown_ones_fault() {
        let mut msrs = Msrs::new(36);
        for msr in [0, 0x48, 0x49, 0x186, 0x251, 0x40000000, 0xC001_0117, u32::MAX] {
            assert_eq!(msrs.read(msr), Err(Gp), "{msr:#x}");
            assert_eq!(msrs.write(msr, 0), Err(Gp), "{msr:#x}");
        }
    }
}
