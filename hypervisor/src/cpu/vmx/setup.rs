//! Entering VMX operation, and everything of the VMCS that does not change.
#![allow(unsafe_code)]

use alloc::boxed::Box;
use core::cell::Cell;

use x86_64::registers::control::{Cr0, Cr4, Cr4Flags};
use x86_64::registers::model_specific::Msr;

use super::capabilities::{self, Capabilities, Controls, FEATURE_CONTROL, Features, VmxError};
use super::debug::EXCEPTIONS;
use super::host::HostTables;
use super::instructions::{self, write};
use super::performance::Performance;
use super::permissions::MsrPermissions;
use super::{Page, VmxVcpu, fields};
use crate::cpu::Vcpu;
use crate::cpu::calibrate::Calibration;
use crate::cpu::lazy::{LiveRegisters, PAT_RESET};
use crate::cpu::nested::{Format, NestedPaging};
use crate::cpu::registers::{CpuState, Registers};
use crate::extended::{ExtendedRegisters, Layout};
use crate::host::apic::Apic;

/// The guest's tag in translations; 0 is the host's.
pub(super) const GUEST_VPID: u16 = 1;
/// Entries that allow reading, writing and executing; pages are write-back. See: SDM volume 3, 29.3.2.
const EPT_TABLE: u64 = 0b111;
const EPT_PAGE: u64 = 0b111 | 6 << 3;
/// Right to write, and the flag of a page that was written.
const EPT_EXECUTE: u64 = 1 << 2;
const EPT_WRITE: u64 = 1 << 1;
const EPT_DIRTY: u64 = 1 << 9;
/// The pointer to the tables: write-back, four levels; the CPU keeps dirty flags. See: SDM volume 3, table 25-9.
const EPT_POINTER_FLAGS: u64 = 6 | 3 << 3;
const EPT_POINTER_DIRTY: u64 = 1 << 6;

impl VmxVcpu {
    /// Enters VMX operation on this CPU and makes a virtual CPU whose guest-physical memory is `memory_len` bytes at
    /// host-physical `memory_base`. Its state is that of real mode at 0 until [`Vcpu::load`]. `extended` are the x87 and vector registers.
    ///
    /// # Safety
    /// Called once on the only CPU, which has VMX by CPUID, with the interrupt table loaded; memory is identity-mapped;
    /// the range belongs to the guest alone.
    ///
    /// # Errors
    /// When the CPU or the firmware does not offer what is needed.
    pub(in crate::cpu) unsafe fn new(
        memory_base: u64,
        memory_len: u64,
        apic: &Apic,
        extended: LiveRegisters,
    ) -> Result<Self, VmxError> {
        // SAFETY: a CPU with VMX has the capability MSRs; reading has no effect.
        let read_msr = |msr| unsafe { Msr::new(msr).read() };
        let capabilities = Capabilities::find(&read_msr, features(&extended.layout()))?;
        let vmxon = region(capabilities.revision);
        // SAFETY: the CPU has VMX, says the caller; the region stays.
        unsafe { enter_vmx_operation(&vmxon)? };
        let vmcs = region(capabilities.revision);
        // SAFETY: VMX operation has begun; the region is a page of our own that stays.
        let current =
            unsafe { instructions::vmclear(address(&vmcs)).and_then(|()| instructions::vmptrld(address(&vmcs))) };
        current.unwrap_or_else(|failure| panic!("making the VMCS current: {failure}"));
        let msr = Box::new(MsrPermissions::for_guest());
        let (written, pointer_flags) = match capabilities.dirty_flags {
            true => (EPT_DIRTY, EPT_POINTER_FLAGS | EPT_POINTER_DIRTY),
            false => (EPT_WRITE, EPT_POINTER_FLAGS),
        };
        let format = Format {
            table: EPT_TABLE,
            page: EPT_PAGE,
            written,
            gib_pages: capabilities.gib_pages,
            data: EPT_PAGE & !EPT_EXECUTE,
            code: EPT_PAGE & !EPT_WRITE,
        };
        let nested_paging = NestedPaging::new(memory_base, memory_len, format);
        let host = HostTables::load();
        host.write_to_vmcs();
        write_controls(&capabilities.controls);
        if capabilities.performance_control {
            // No counter runs until one is armed.
            write(fields::GUEST_PERF_GLOBAL_CTRL, 0);
            write(fields::HOST_PERF_GLOBAL_CTRL, 0);
        }
        write(fields::MSR_BITMAP, core::ptr::from_ref(&*msr) as u64);
        let ept_pointer = nested_paging.root() | pointer_flags;
        write(fields::EPT_POINTER, ept_pointer);
        instructions::invalidate_ept(ept_pointer);
        if capabilities.vpid {
            write(fields::VPID, GUEST_VPID);
        }
        write(fields::CR0_MASK, capabilities.cr0_mask);
        write(fields::CR4_MASK, capabilities.cr4_mask);
        write(fields::VMCS_LINK, u64::MAX);
        write(fields::GUEST_DEBUGCTL, 0);
        write(fields::GUEST_PAT, PAT_RESET);
        let mut vcpu = Self {
            registers: Registers::default(),
            extended,
            in_vmcs: [0; 3],
            launched: false,
            primary: capabilities.controls.primary,
            event: None,
            owed: 0,
            traps: 0,
            offered: None,
            tsc: None,
            tsc_aux: None,
            mode: Cell::new(None),
            performance: Performance::find(&capabilities, apic),
            capabilities,
            calibration: Calibration::default(),
            memory: (memory_base, memory_len),
            _vmxon: vmxon,
            _vmcs: vmcs,
            _msr: msr,
            nested_paging,
            ept_pointer,
            tracking: None,
            _host: host,
        };
        vcpu.load(&CpuState::real_mode(0));
        Ok(vcpu)
    }
}

fn features(layout: &Layout) -> Features {
    let cpuid = raw_cpuid::CpuId::new();
    Features {
        xsave: layout.has_xsave(),
        rdrand: cpuid.get_feature_info().is_some_and(|info| info.has_rdrand()),
        rdseed: cpuid.get_extended_feature_info().is_some_and(|info| info.has_rdseed()),
    }
}

/// A page that begins with the VMCS revision.
fn region(revision: u32) -> Box<Page> {
    let mut page = Box::new(Page([0; 4096]));
    page.0[..4].copy_from_slice(&revision.to_le_bytes());
    page
}

fn address(page: &Page) -> u64 {
    core::ptr::from_ref(page) as u64
}

/// See: SDM volume 3, 24.7 and 24.8.
///
/// # Safety
/// The CPU has VMX, and the region stays.
unsafe fn enter_vmx_operation(vmxon: &Page) -> Result<(), VmxError> {
    const CR0_FIXED0: u32 = 0x486;
    // SAFETY: the caller vouches for VMX. The bits that VMX wants in CR0 change nothing for code in 64-bit mode without
    // floating point; VMXE only allows VMXON.
    unsafe {
        let mut feature_control = Msr::new(FEATURE_CONTROL);
        if let Some(value) = capabilities::feature_control(feature_control.read())? {
            feature_control.write(value);
        }
        Cr0::write_raw(Cr0::read_raw() | Msr::new(CR0_FIXED0).read());
        Cr4::update(|cr4| cr4.insert(Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS));
        instructions::vmxon(address(vmxon)).map_err(VmxError::Vmxon)
    }
}

fn write_controls(controls: &Controls) {
    write(fields::PIN_CONTROLS, controls.pin);
    write(fields::PRIMARY_CONTROLS, controls.primary);
    write(fields::SECONDARY_CONTROLS, controls.secondary);
    write(fields::EXIT_CONTROLS, controls.exit);
    write(fields::ENTRY_CONTROLS, controls.entry);
    write(fields::EXCEPTION_BITMAP, EXCEPTIONS);
    for field in [
        fields::PAGE_FAULT_MASK,
        fields::PAGE_FAULT_MATCH,
        fields::CR3_TARGETS,
        fields::EXIT_MSR_STORES,
        fields::EXIT_MSR_LOADS,
        fields::ENTRY_MSR_LOADS,
        fields::ENTRY_EVENT,
    ] {
        write(field, 0);
    }
}
