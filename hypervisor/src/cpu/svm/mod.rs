//! AMD SVM. See: AMD64 APM volume 2 (24593, rev. 3.41), chapter 15.
#![allow(unsafe_code)]

mod entry;
mod exits;
mod paging;
mod permissions;
mod run;
mod vmcb;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::arch::asm;

use x86_64::registers::model_specific::Msr;

use self::permissions::{IoPermissions, MsrPermissions};
use self::vmcb::{Vmcb, intercept1};
use super::calibrate::{self, Calibration, Timed};
use super::lazy::{self, LiveRegisters, PAT_RESET};
use super::nested::{Format, NestedPaging};
use super::registers::{CpuMsrs, CpuState, EFER_NXE, PENDING_STEP, Registers, Segment, Segments, Shadow, Table, gpr};
use super::{Entered, Exception, Exit, InstructionCounter, LentTsc, Limit, Meter, Mode, Paging, Right, Vcpu};
use crate::extended::ExtendedRegisters;
use crate::host::apic::Apic;
use crate::memory::{Gpa, GuestMemory};

const EFER: u32 = 0xC000_0080;
const EFER_SVME: u64 = 1 << 12;
const VM_CR: u32 = 0xC001_0114;
const VM_CR_SVMDIS: u64 = 1 << 4;
const VM_HSAVE_PA: u32 = 0xC001_0117;
/// The guest's address-space identifier; 0 is the host's.
const ASID: u32 = 1;
/// Nested page tables have the format of ordinary ones; nested walks are user accesses. See: APM volume 2, 15.25.
const NPT: Format =
    Format { table: 0b111, page: 0b111, written: 1 << 6, gib_pages: false, data: 0b111 | NO_EXECUTE, code: 0b101 };
const NO_EXECUTE: u64 = 1 << 63;

/// Why this CPU cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SvmError {
    /// The firmware disabled it.
    Disabled,
    /// No nested paging.
    NoNestedPaging,
}

impl core::fmt::Display for SvmError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Disabled => "the firmware has disabled SVM (VM_CR.SVMDIS)",
            Self::NoNestedPaging => "this CPU's SVM has no nested paging",
        })
    }
}

#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// A virtual CPU under SVM.
pub struct SvmVcpu {
    registers: Registers,
    extended: LiveRegisters,
    guest: Box<Vmcb>,
    host: Box<Vmcb>,
    _host_save: Box<Page>,
    nested_paging: NestedPaging,
    _io: Box<IoPermissions>,
    _msr: Box<MsrPermissions>,
    timer: *mut u32,
    calibration: Calibration,
    /// What the guest's TSC reads by its next instruction, where RDTSC does not exit.
    tsc: u64,
    offered: Option<u8>,
    /// Single steps that are to be delivered at the next entry; the CPU delivers its own.
    traps: u64,
    guard: Option<run::Guard>,
    /// Rights to pages that are kept from the guest.
    kept: Vec<(Gpa, Right)>,
    others: paging::Others,
}

impl SvmVcpu {
    /// Enables SVM on this CPU and makes a virtual CPU whose guest-physical memory is `memory_len` bytes at host-physical
    /// `memory_base`. Its state is that of real mode at 0 until [`Vcpu::load`]. `extended` are the x87 and vector registers.
    ///
    /// # Safety
    /// Called once on the only CPU, which has SVM by CPUID; memory is identity-mapped; the range belongs to the guest alone.
    ///
    /// # Errors
    /// When the CPU or the firmware does not offer what is needed.
    pub(super) unsafe fn new(
        memory_base: u64,
        memory_len: u64,
        apic: &Apic,
        extended: LiveRegisters,
    ) -> Result<Self, SvmError> {
        check()?;
        let host_save = Box::new(Page([0; 4096]));
        // SAFETY: `check` found SVM; the save area is a page of our own that lives as long as the virtual CPU.
        unsafe {
            let mut efer = Msr::new(EFER);
            let value = efer.read();
            efer.write(value | EFER_SVME | if has_no_execute() { EFER_NXE } else { 0 });
            Msr::new(VM_HSAVE_PA).write(core::ptr::from_ref(&*host_save) as u64);
        }
        let mut nested_paging = NestedPaging::new(memory_base, memory_len, NPT);
        let others = paging::Others::new(&mut nested_paging);
        let io = Box::new(IoPermissions::intercept_all());
        let msr = Box::new(MsrPermissions::for_guest());
        let mut guest = Box::new(Vmcb::zeroed());
        let control = &mut guest.control;
        control.intercept_cr = vmcb::INTERCEPT_CR8;
        control.intercept1 = exits::INTERCEPTS1;
        control.intercept2 = exits::INTERCEPTS2;
        control.iopm_base = core::ptr::from_ref(&*io) as u64;
        control.msrpm_base = core::ptr::from_ref(&*msr) as u64;
        control.asid = ASID;
        control.interrupt_control = vmcb::V_INTR_MASKING;
        control.nested_control = vmcb::NESTED_PAGING;
        control.nested_cr3 = nested_paging.root();
        guest.save.g_pat = PAT_RESET;
        let mut host = Box::new(Vmcb::zeroed());
        // SAFETY: SVM is enabled; the block is a page of our own.
        unsafe { asm!("vmsave rax", in("rax") core::ptr::from_mut(&mut *host), options(nostack, preserves_flags)) };
        let mut vcpu = Self {
            registers: Registers::default(),
            extended,
            guest,
            host,
            _host_save: host_save,
            nested_paging,
            _io: io,
            _msr: msr,
            timer: apic.timer_register(),
            calibration: Calibration::default(),
            tsc: 0,
            offered: None,
            traps: 0,
            guard: None,
            kept: Vec::new(),
            others,
        };
        vcpu.load(&CpuState::real_mode(0));
        Ok(vcpu)
    }

    fn in_shadow(&self) -> bool {
        self.guest.control.interrupt_state & vmcb::INTERRUPT_SHADOW != 0
    }

    fn set_shadow(&mut self, shadow: bool) {
        self.guest.control.interrupt_state = if shadow { vmcb::INTERRUPT_SHADOW } else { 0 };
    }
}

fn has_no_execute() -> bool {
    raw_cpuid::CpuId::new()
        .get_extended_processor_and_feature_identifiers()
        .is_some_and(|features| features.has_execute_disable())
}

fn check() -> Result<(), SvmError> {
    // SAFETY: a CPU with SVM has this register.
    if unsafe { Msr::new(VM_CR).read() } & VM_CR_SVMDIS != 0 {
        return Err(SvmError::Disabled);
    }
    if !raw_cpuid::CpuId::new().get_svm_info().is_some_and(|svm| svm.has_nested_paging()) {
        return Err(SvmError::NoNestedPaging);
    }
    Ok(())
}

impl Timed for SvmVcpu {
    fn enter_raw(&mut self, timer_count: u32) -> (Exit, u64) {
        self.guest.save.rax = self.registers.gpr[gpr::RAX];
        self.guest.save.rsp = self.registers.gpr[gpr::RSP];
        self.guest.save.rip = self.registers.rip;
        self.guest.save.rflags = self.registers.rflags;
        // SAFETY: SVM is enabled (see `new`), the nested page tables map only guest memory, the timer register is the
        // APIC's, and hypervisor code runs with interrupts off.
        let ticks = unsafe {
            let tsc = self.tsc.wrapping_sub(self.calibration.tsc_lead.unwrap_or(0));
            entry::enter(&mut self.registers, &mut self.guest, &mut self.host, timer_count, self.timer, tsc)
        };
        self.registers.gpr[gpr::RAX] = self.guest.save.rax;
        self.registers.gpr[gpr::RSP] = self.guest.save.rsp;
        self.registers.rip = self.guest.save.rip;
        self.registers.rflags = self.guest.save.rflags;
        self.guest.control.event_injection = 0;
        self.guest.control.tlb_control = 0;
        (self.decode_exit(), ticks)
    }
}

impl Vcpu for SvmVcpu {
    fn calibrate(&mut self, memory: &mut GuestMemory, settle: &mut dyn FnMut()) -> Result<String, String> {
        self.calibration = Calibration::default();
        self.calibration = calibrate::calibrate(self, memory, settle).map_err(|error| error.to_string())?;
        Ok(format!("{:?}", self.calibration))
    }

    /// RDTSCP exits all the same.
    fn lend_tsc(&mut self, tsc: Option<LentTsc>) -> bool {
        self.tsc = tsc.map_or(0, |tsc| tsc.now);
        let exits = if tsc.is_none() { intercept1::RDTSC } else { 0 };
        let intercepts = &mut self.guest.control.intercept1;
        *intercepts = *intercepts & !intercept1::RDTSC | exits;
        true
    }

    fn instruction_counter(&self) -> Result<InstructionCounter, &'static str> {
        // See: revision guides for families 17h, 18h and 19h, erratum 1054 ("retired instructions"). No way to stop
        // exactly is known on AMD processors.
        Err("no counter of retired instructions is known to be exact on AMD processors")
    }

    fn enter(&mut self, limit: Limit) -> Entered {
        match limit {
            Limit::After(Meter::Tsc, ticks) => self.run(ticks),
            // A timer of one tick: there is no trap behind each instruction that the guest would not see.
            Limit::Step(Meter::Tsc) => {
                let entered = self.run(1);
                let stepped = entered.exit == Exit::Interrupted && entered.ticks > 0;
                Entered { exit: if stepped { Exit::Stepped } else { entered.exit }, ..entered }
            }
            Limit::After(Meter::Instructions, _) | Limit::Step(Meter::Instructions) => {
                panic!("SVM has no counter of instructions, see instruction_counter")
            }
        }
    }

    fn registers(&self) -> &Registers {
        &self.registers
    }

    fn registers_mut(&mut self) -> &mut Registers {
        &mut self.registers
    }

    fn mode(&self) -> Mode {
        let save = &self.guest.save;
        let Paging { cr0, cr3, cr4, efer, .. } = self.paging();
        Mode {
            segments: Segments {
                es: save.es,
                cs: save.cs,
                ss: save.ss,
                ds: save.ds,
                fs: save.fs,
                gs: save.gs,
                ldtr: save.ldtr,
                tr: save.tr,
            },
            cr0,
            cr3,
            cr4,
            efer,
        }
    }

    fn offer_interrupt(&mut self, vector: Option<u8>) {
        self.offered = vector;
    }

    fn inject(&mut self, exception: Exception) {
        let mut event = vmcb::EVENT_VALID | vmcb::EVENT_EXCEPTION | u64::from(exception.vector);
        if let Some(code) = exception.error_code {
            event |= vmcb::EVENT_ERROR_CODE | u64::from(code) << 32;
        }
        if let Some(cr2) = exception.cr2 {
            self.guest.save.cr2 = cr2;
        }
        self.guest.control.event_injection = event;
    }

    fn cr2(&self) -> u64 {
        self.guest.save.cr2
    }

    fn set_cr2(&mut self, cr2: u64) {
        self.guest.save.cr2 = cr2;
    }

    fn clear_interrupt_shadow(&mut self) {
        self.set_shadow(false);
    }

    fn trap_step(&mut self) {
        self.traps |= PENDING_STEP;
    }

    fn msrs(&self) -> CpuMsrs {
        let save = &self.guest.save;
        CpuMsrs {
            efer: self.paging().efer,
            star: save.star,
            lstar: save.lstar,
            cstar: save.cstar,
            sfmask: save.sfmask,
            kernel_gs_base: save.kernel_gs_base,
            sysenter_cs: save.sysenter_cs,
            sysenter_esp: save.sysenter_esp,
            sysenter_eip: save.sysenter_eip,
        }
    }

    fn set_msrs(&mut self, msrs: &CpuMsrs) {
        self.set_efer(msrs.efer);
        let save = &mut self.guest.save;
        save.star = msrs.star;
        save.lstar = msrs.lstar;
        save.cstar = msrs.cstar;
        save.sfmask = msrs.sfmask;
        save.kernel_gs_base = msrs.kernel_gs_base;
        save.sysenter_cs = msrs.sysenter_cs;
        save.sysenter_esp = msrs.sysenter_esp;
        save.sysenter_eip = msrs.sysenter_eip;
    }

    fn extended(&mut self) -> &mut dyn ExtendedRegisters {
        &mut self.extended
    }

    fn guard_code(&mut self, on: bool) -> bool {
        let guard = on && has_no_execute();
        self.guard = guard.then(Default::default);
        self.nested_paging.guard(guard);
        self.guest.control.tlb_control = vmcb::TLB_FLUSH_ALL;
        guard == on
    }

    fn keep_pages(&mut self, pages: &[(Gpa, Right)]) -> bool {
        self.keep(pages)
    }

    fn track_paging(&mut self, tables: (u64, u64)) -> bool {
        self.begin_tracking(tables);
        true
    }

    fn set_paging(&mut self, paging: &Paging, root: Option<u64>) {
        self.walk_from(paging, root);
    }

    fn has_undelivered(&self) -> bool {
        self.guest.control.event_injection & vmcb::EVENT_VALID != 0
    }

    fn interrupted_exception(&self) -> Option<u8> {
        let event = self.guest.control.event_injection;
        let comes = event & (vmcb::EVENT_VALID | vmcb::EVENT_TYPE) == vmcb::EVENT_VALID | vmcb::EVENT_EXCEPTION;
        comes.then_some(event as u8)
    }

    fn track_writes(&mut self, on: bool) {
        self.nested_paging.track(on);
        self.guest.control.tlb_control = vmcb::TLB_FLUSH_ALL;
    }

    fn take_written(&mut self, written: &mut dyn FnMut(Gpa)) {
        self.nested_paging.take_written(written);
        self.guest.control.tlb_control = vmcb::TLB_FLUSH_ALL;
    }

    fn save(&mut self) -> CpuState {
        let mode = self.mode();
        let save = &self.guest.save;
        CpuState {
            registers: self.registers,
            segments: mode.segments,
            gdtr: Table { base: save.gdtr.base, limit: save.gdtr.limit as u16 },
            idtr: Table { base: save.idtr.base, limit: save.idtr.limit as u16 },
            cr0: mode.cr0,
            cr2: save.cr2,
            cr3: mode.cr3,
            cr4: mode.cr4,
            dr: lazy::debug_registers(),
            dr6: save.dr6,
            dr7: save.dr7,
            msrs: self.msrs(),
            extended: self.extended.save(),
            shadow: Shadow::guess(self.in_shadow(), self.registers.rflags),
            pending_debug: self.traps,
            halted: false,
        }
    }

    fn load(&mut self, state: &CpuState) {
        self.close();
        self.registers = state.registers;
        let table = |table: Table| Segment { limit: u32::from(table.limit), base: table.base, ..Segment::default() };
        let save = &mut self.guest.save;
        save.es = state.segments.es;
        save.cs = state.segments.cs;
        save.ss = state.segments.ss;
        save.ds = state.segments.ds;
        save.fs = state.segments.fs;
        save.gs = state.segments.gs;
        save.ldtr = state.segments.ldtr;
        save.tr = state.segments.tr;
        save.gdtr = table(state.gdtr);
        save.idtr = table(state.idtr);
        save.cpl = state.cpl();
        save.cr2 = state.cr2;
        save.dr6 = state.dr6;
        save.dr7 = state.dr7;
        self.set_msrs(&state.msrs);
        let (cr0, cr3, cr4, efer) = (state.cr0, state.cr3, state.cr4, state.msrs.efer);
        self.walk_from(&Paging { cr0, cr3, cr4, efer, ..Paging::default() }, None);
        self.set_shadow(state.shadow != Shadow::None);
        self.traps = state.pending_debug;
        self.offered = None;
        self.guest.control.event_injection = 0;
        self.guest.control.tlb_control = vmcb::TLB_FLUSH_ALL;
        lazy::set_debug_registers(&state.dr);
        self.extended.load(&state.extended);
    }
}
