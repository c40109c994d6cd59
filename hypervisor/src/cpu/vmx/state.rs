//! The guest's state: what the VMCS has of it, and what stays in the CPU's registers.
#![allow(unsafe_code)]

use x86_64::registers::model_specific::Msr;

use super::capabilities::IA32E_GUEST;
use super::fields::{self, Field, GUEST_PDPTES};
use super::instructions::{self, read, write};
use super::setup::GUEST_VPID;
use super::{VmxVcpu, segments};
use crate::cpu::registers::{CR0_PG, CR4_PAE, CpuMsrs, CpuState, EFER_LMA, Segments, Table, gpr};
use crate::cpu::{Mode, ShadowSteps, Vcpu, lazy};
use crate::extended::ExtendedRegisters;

const STAR: u32 = 0xC000_0081;
const LSTAR: u32 = 0xC000_0082;
const CSTAR: u32 = 0xC000_0083;
const SFMASK: u32 = 0xC000_0084;
const KERNEL_GS_BASE: u32 = 0xC000_0102;

fn read_msr(msr: u32) -> u64 {
    // SAFETY: registers that every CPU with long mode has.
    unsafe { Msr::new(msr).read() }
}

/// Writes a register that must hold a canonical address, which the CPU would insist on.
fn write_address(msr: u32, address: u64) {
    let canonical = ((address << 16) as i64 >> 16) as u64;
    // SAFETY: registers that only matter to SYSCALL and SWAPGS, which the hypervisor does not use.
    unsafe { Msr::new(msr).write(canonical) };
}

/// A control register as the guest sees it: bits that it does not own come from the shadow.
fn seen(register: Field<u64>, shadow: Field<u64>, mask: u64) -> u64 {
    read(register) & !mask | read(shadow) & mask
}

impl VmxVcpu {
    pub(super) fn read_mode(&self) -> Mode {
        let (cr0_mask, cr4_mask) = match self.tracking {
            Some(_) => (u64::MAX, u64::MAX),
            None => (self.capabilities.cr0_mask, self.capabilities.cr4_mask),
        };
        let walked = self.tracking.and_then(|tracking| tracking.walked);
        Mode {
            segments: Segments {
                es: segments::get(fields::ES),
                cs: segments::get(fields::CS),
                ss: segments::get(fields::SS),
                ds: segments::get(fields::DS),
                fs: segments::get(fields::FS),
                gs: segments::get(fields::GS),
                ldtr: segments::get(fields::LDTR),
                tr: segments::get(fields::TR),
            },
            cr0: seen(fields::GUEST_CR0, fields::CR0_SHADOW, cr0_mask),
            cr3: walked.map_or_else(|| read(fields::GUEST_CR3), |walked| walked.cr3),
            cr4: seen(fields::GUEST_CR4, fields::CR4_SHADOW, cr4_mask),
            efer: read(fields::GUEST_EFER),
        }
    }

    pub(super) fn read_msrs(&self) -> CpuMsrs {
        CpuMsrs {
            efer: read(fields::GUEST_EFER),
            star: read_msr(STAR),
            lstar: read_msr(LSTAR),
            cstar: read_msr(CSTAR),
            sfmask: read_msr(SFMASK),
            kernel_gs_base: read_msr(KERNEL_GS_BASE),
            sysenter_cs: u64::from(read(fields::GUEST_SYSENTER_CS)),
            sysenter_esp: read(fields::GUEST_SYSENTER_ESP),
            sysenter_eip: read(fields::GUEST_SYSENTER_EIP),
        }
    }

    pub(super) fn write_msrs(&mut self, msrs: &CpuMsrs) {
        write(fields::GUEST_EFER, msrs.efer);
        let entry = self.capabilities.controls.entry;
        write(fields::ENTRY_CONTROLS, if msrs.efer & EFER_LMA != 0 { entry | IA32E_GUEST } else { entry });
        for (msr, address) in [(LSTAR, msrs.lstar), (CSTAR, msrs.cstar), (KERNEL_GS_BASE, msrs.kernel_gs_base)] {
            write_address(msr, address);
        }
        // SAFETY: as for `write_address`. The upper half of SFMASK is reserved.
        unsafe {
            Msr::new(STAR).write(msrs.star);
            Msr::new(SFMASK).write(msrs.sfmask & 0xFFFF_FFFF);
        }
        write(fields::GUEST_SYSENTER_CS, msrs.sysenter_cs as u32);
        write(fields::GUEST_SYSENTER_ESP, msrs.sysenter_esp);
        write(fields::GUEST_SYSENTER_EIP, msrs.sysenter_eip);
    }

    pub(super) fn read_state(&mut self) -> CpuState {
        let mode = self.mode();
        let (shadow, pending_debug) = self.blocked();
        CpuState {
            registers: self.registers,
            segments: mode.segments,
            gdtr: self.gdtr(),
            idtr: Table { base: read(fields::GUEST_IDTR_BASE), limit: read(fields::GUEST_IDTR_LIMIT) as u16 },
            cr0: mode.cr0,
            cr2: lazy::cr2(),
            cr3: mode.cr3,
            cr4: mode.cr4,
            dr: lazy::debug_registers(),
            dr6: lazy::dr6(),
            dr7: read(fields::GUEST_DR7),
            msrs: self.read_msrs(),
            extended: self.extended.save(),
            // NMIs are never blocked: none is delivered, and blocking begins with one.
            shadow,
            pending_debug,
            halted: false,
        }
    }

    pub(super) fn write_state(&mut self, state: &CpuState) {
        self.registers = state.registers;
        self.in_vmcs = [state.registers.rip, state.registers.gpr[gpr::RSP], state.registers.rflags];
        write(fields::GUEST_RIP, state.registers.rip);
        write(fields::GUEST_RSP, state.registers.gpr[gpr::RSP]);
        write(fields::GUEST_RFLAGS, state.registers.rflags);
        for (fields, segment) in [
            (fields::ES, &state.segments.es),
            (fields::CS, &state.segments.cs),
            (fields::SS, &state.segments.ss),
            (fields::DS, &state.segments.ds),
            (fields::FS, &state.segments.fs),
            (fields::GS, &state.segments.gs),
            (fields::LDTR, &state.segments.ldtr),
            (fields::TR, &state.segments.tr),
        ] {
            segments::set(fields, segment);
        }
        write(fields::GUEST_GDTR_BASE, state.gdtr.base);
        write(fields::GUEST_GDTR_LIMIT, u32::from(state.gdtr.limit));
        write(fields::GUEST_IDTR_BASE, state.idtr.base);
        write(fields::GUEST_IDTR_LIMIT, u32::from(state.idtr.limit));
        self.write_control_registers(state);
        self.write_msrs(&state.msrs);
        write(fields::GUEST_DR7, state.dr7);
        lazy::set_debug_registers(&state.dr);
        lazy::set_dr6(state.dr6);
        lazy::set_cr2(state.cr2);
        self.extended.load(&state.extended);
        write(fields::ACTIVITY, 0);
        self.block(state.shadow, state.pending_debug);
        (self.event, self.owed) = (None, 0);
        self.offered = None;
        if self.capabilities.vpid {
            instructions::invalidate_vpid(GUEST_VPID);
        }
    }

    fn write_control_registers(&mut self, state: &CpuState) {
        let capabilities = &self.capabilities;
        write(fields::GUEST_CR0, state.cr0 & !capabilities.cr0_mask | capabilities.cr0_fixed);
        write(fields::CR0_SHADOW, state.cr0);
        write(fields::GUEST_CR3, state.cr3);
        write(fields::GUEST_CR4, state.cr4 & !capabilities.cr4_mask | capabilities.cr4_fixed);
        write(fields::CR4_SHADOW, state.cr4);
        if let Some(tracking) = &mut self.tracking {
            tracking.walked = None;
        }
        if state.cr0 & CR0_PG != 0 && state.cr4 & CR4_PAE != 0 && state.msrs.efer & EFER_LMA == 0 {
            for (index, field) in (0..).zip(GUEST_PDPTES) {
                write(field, self.guest_word((state.cr3 & 0xFFFF_FFE0) + 8 * index));
            }
        }
    }

    /// The word at a guest-physical address; 0 where there is no memory.
    fn guest_word(&self, gpa: u64) -> u64 {
        let (base, len) = self.memory;
        if gpa.checked_add(8).is_none_or(|end| end > len) {
            return 0;
        }
        // SAFETY: within the guest's memory, which is identity-mapped and not touched by anyone meanwhile.
        unsafe { core::ptr::read_unaligned((base + gpa) as *const u64) }
    }
}
