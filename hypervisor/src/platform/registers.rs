//! What the guest's instructions see of the machine besides its devices: CPUID, MSRs, the TSC.

use super::msr::index;
use super::{CpuidContext, Gp, GuestTime, Platform, kvm};
use crate::memory::GuestMemory;

impl Platform {
    /// The guest's TSC at `now`.
    #[must_use]
    pub const fn tsc(&self, now: GuestTime) -> u64 {
        now.0.wrapping_add(self.msrs.tsc_offset())
    }

    /// TSC_AUX, for RDTSCP.
    #[must_use]
    pub const fn tsc_aux(&self) -> u32 {
        self.msrs.tsc_aux()
    }

    /// IA32_PAT.
    #[must_use]
    pub const fn pat(&self) -> u64 {
        self.msrs.pat()
    }

    /// Width of the guest's physical addresses.
    #[must_use]
    pub fn physical_bits(&self) -> u32 {
        self.cpuid.physical_bits()
    }

    /// CPUID as the guest sees it: EAX, EBX, ECX, EDX.
    #[must_use]
    pub fn cpuid(&self, leaf: u32, subleaf: u32, context: CpuidContext) -> [u32; 4] {
        self.cpuid.get(leaf, subleaf, context)
    }

    /// A hash of the whole CPUID table: equal on two machines exactly when the guest cannot tell them apart by CPUID.
    #[must_use]
    pub const fn cpuid_digest(&self) -> u64 {
        self.cpuid.digest()
    }

    /// RDMSR of an MSR that the CPU's execution does not own.
    ///
    /// # Errors
    /// #GP: there is no such MSR.
    pub fn rdmsr(&mut self, now: GuestTime, msr: u32) -> Result<u64, Gp> {
        match msr {
            index::TSC => Ok(self.tsc(now)),
            index::TSC_DEADLINE => Ok(self.lapic.tsc_deadline()),
            index::APIC_BASE => Ok(self.lapic.base_msr()),
            index::X2APIC_FIRST..=index::X2APIC_LAST => self.lapic.msr_read(now, msr),
            _ => self.kvm.read(msr).map_or_else(|| self.msrs.read(msr), Ok),
        }
    }

    /// WRMSR of an MSR that the CPU's execution does not own.
    ///
    /// # Errors
    /// #GP: there is no such MSR, it is read-only, or the value is impossible.
    pub fn wrmsr(&mut self, now: GuestTime, msr: u32, value: u64, memory: &mut GuestMemory) -> Result<(), Gp> {
        match msr {
            index::TSC => self.move_tsc(now, value.wrapping_sub(now.0), memory),
            index::TSC_ADJUST => self.move_tsc(now, value, memory),
            kvm::WALL_CLOCK => self.kvm.write_wall_clock(value, self.rtc.epoch(), memory)?,
            kvm::SYSTEM_TIME => {
                let tsc = self.tsc(now);
                self.kvm.write_system_time(value, now, tsc, memory)?;
            }
            kvm::EOI => self.kvm.write_eoi(value, memory)?,
            index::TSC_DEADLINE => {
                let tsc = self.tsc(now);
                self.lapic.set_tsc_deadline(now, tsc, value);
            }
            index::APIC_BASE => self.lapic.set_base_msr(value)?,
            index::X2APIC_FIRST..=index::X2APIC_LAST => {
                let ended = self.lapic.msr_write(now, msr, value)?;
                self.end_of_interrupt(ended);
                self.lapic.advance(now);
            }
            _ => self.msrs.write(msr, value)?,
        }
        Ok(())
    }

    fn move_tsc(&mut self, now: GuestTime, offset: u64, memory: &mut GuestMemory) {
        self.msrs.set_tsc_offset(offset);
        let tsc = self.tsc(now);
        self.lapic.tsc_moved(now, tsc);
        self.kvm.tsc_moved(now, tsc, memory);
    }
}
