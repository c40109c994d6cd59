//! Intel VMX. See: Intel SDM volume 3 (325384-081), chapters 24 to 34.
#![allow(unsafe_code)]

mod capabilities;
mod debug;
mod entry;
mod exit;
mod fields;
mod host;
mod instructions;
mod paging;
mod performance;
mod permissions;
mod run;
mod segments;
mod setup;
mod state;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use core::cell::Cell;

pub use self::capabilities::VmxError;
pub use self::instructions::VmFail;

use self::capabilities::{Capabilities, INTERRUPT_WINDOW, MONITOR_TRAP, PAGING_EXITS, RDTSC_EXITING, TSC_OFFSETTING};
use self::exit::{ControlAccess, ENTRY_FAILED, Event, reason};
use self::host::HostTables;
use self::instructions::{read, write};
use self::performance::Performance;
use self::permissions::MsrPermissions;
use self::run::{Bound, ExitOrGoOn};
use super::calibrate::{self, Calibration, Timed};
use super::lazy::{self, LiveRegisters};
use super::nested::NestedPaging;
use super::registers::{CR0_PE, CpuMsrs, CpuState, Registers, gpr};
use super::{Entered, Exception, Exit, InstructionCounter, LentTsc, Limit, Meter, Mode, Paging, ShadowSteps, Vcpu};
use crate::extended::ExtendedRegisters;
use crate::host::msr;
use crate::memory::{Gpa, GuestMemory};

/// Ticks after which an entry ends in any case, so that the host's interrupts are looked at: Bochs holds them back from
/// an entry with the guest's IF clear until the guest changes it.
const SLICE: u64 = 50_000;

/// The same for entries for as many retired instructions as can be counted at once, where ticks may be cycles: only the
/// tests of that counter make such, and are to be left alone.
const LONG_SLICE: u64 = 1 << 22;

/// What RDTSCP gives in ECX.
const TSC_AUX: u32 = 0xC000_0103;

#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// A virtual CPU under VMX.
pub struct VmxVcpu {
    registers: Registers,
    extended: LiveRegisters,
    /// RIP, RSP and RFLAGS as the VMCS has them.
    in_vmcs: [u64; 3],
    launched: bool,
    /// The primary controls as the VMCS has them.
    primary: u32,
    /// The event that is to be injected at the next entry.
    event: Option<Event>,
    /// Ticks that the end of its delivery counts.
    owed: u64,
    /// Debug traps that are to be delivered at the next entry, as in [`CpuState::pending_debug`].
    traps: u64,
    offered: Option<u8>,
    /// What the guest's TSC reads by its next instruction, where RDTSC does not exit.
    tsc: Option<LentTsc>,
    /// IA32_TSC_AUX as the CPU has it, once the guest's TSC was lent: the host does not use it.
    tsc_aux: Option<u32>,
    /// What [`Vcpu::mode`] found since the last exit.
    mode: Cell<Option<Mode>>,
    capabilities: Capabilities,
    calibration: Calibration,
    performance: Result<Performance, &'static str>,
    memory: (u64, u64),
    _vmxon: Box<Page>,
    _vmcs: Box<Page>,
    _msr: Box<MsrPermissions>,
    nested_paging: NestedPaging,
    ept_pointer: u64,
    tracking: Option<paging::Tracking>,
    _host: HostTables,
}

impl VmxVcpu {
    /// One entry with an event to inject, whose delivery counts the ticks that are `owed`; returns the exit's reason and raw
    /// TSC ticks.
    fn switch(&mut self, event: Option<Event>, owed: u64, timer_count: u32) -> (u32, u64) {
        self.forget_mode();
        self.put_registers();
        self.put_pointers();
        write(fields::PREEMPTION_TIMER, timer_count);
        if let Some(event) = event {
            write(fields::ENTRY_ERROR_CODE, event.error_code);
            write(fields::ENTRY_INSTRUCTION_LENGTH, event.length);
            write(fields::ENTRY_EVENT, event.info);
        }
        let lead = self.calibration.tsc_lead.unwrap_or(0);
        let tsc = self.tsc.map_or(0, |tsc| tsc.now.wrapping_add(owed).wrapping_sub(lead));
        // SAFETY: `new` has set up the VMCS: guest memory is all that the nested page tables map, the host's state is
        // this CPU's. Hypervisor code runs with interrupts off.
        let raw = unsafe { entry::enter(&mut self.registers, self.launched, tsc) }
            .unwrap_or_else(|failure| panic!("VM entry: {failure}"));
        let reason = read(fields::EXIT_REASON);
        if reason & ENTRY_FAILED == 0 {
            self.launched = true;
        } else {
            // The CPU leaves it as it was only when the entry fails.
            write(fields::ENTRY_EVENT, 0);
        }
        self.get_registers();
        (reason, raw)
    }

    fn put_registers(&mut self) {
        let registers = [self.registers.rip, self.registers.gpr[gpr::RSP], self.registers.rflags];
        let places = [fields::GUEST_RIP, fields::GUEST_RSP, fields::GUEST_RFLAGS];
        for ((place, value), old) in places.into_iter().zip(registers).zip(&mut self.in_vmcs) {
            if value != *old {
                write(place, value);
                *old = value;
            }
        }
    }

    fn get_registers(&mut self) {
        self.in_vmcs = [fields::GUEST_RIP, fields::GUEST_RSP, fields::GUEST_RFLAGS].map(read);
        [self.registers.rip, self.registers.gpr[gpr::RSP], self.registers.rflags] = self.in_vmcs;
    }

    /// Whether the guest exits as soon as it can take an interrupt, and behind its next instruction.
    fn set_primary(&mut self, window: bool, step: bool) {
        let mut controls = self.capabilities.controls.primary;
        let tracks = self.walks_others();
        for (control, wanted) in [(INTERRUPT_WINDOW, window), (MONITOR_TRAP, step), (PAGING_EXITS, tracks)] {
            if wanted {
                controls |= control;
            }
        }
        if self.tsc.is_some() {
            controls = controls & !RDTSC_EXITING | TSC_OFFSETTING;
        }
        if controls != self.primary {
            self.primary = controls;
            write(fields::PRIMARY_CONTROLS, controls);
        }
    }

    fn decode(&mut self, basic: u16) -> ExitOrGoOn {
        ExitOrGoOn::Exit(match basic {
            reason::INTERRUPT_WINDOW => return ExitOrGoOn::GoOn,
            reason::EXCEPTION if exit::is_page_fault(read(fields::EXIT_EVENT)) => Exit::PageFault {
                linear: read(fields::EXIT_QUALIFICATION),
                error_code: read(fields::EXIT_EVENT_ERROR_CODE),
            },
            reason::EXCEPTION => self.exception(),
            reason::INVLPG => Exit::Control,
            reason::CONTROL_REGISTER => return self.control_register(),
            reason::EPT_VIOLATION => {
                let gpa = Gpa(read(fields::GUEST_PHYSICAL_ADDRESS));
                if self.nested_paging.allow_write(gpa) {
                    return ExitOrGoOn::GoOn;
                }
                Exit::Memory { gpa }
            }
            reason::IO => {
                let next = self.registers.rip.wrapping_add(u64::from(read(fields::EXIT_INSTRUCTION_LENGTH)));
                Exit::Io(exit::io(read(fields::EXIT_QUALIFICATION), next))
            }
            simple => exit::simple(simple),
        })
    }

    /// The guest writes bits of CR0 or CR4 that it does not own.
    fn control_register(&mut self) -> ExitOrGoOn {
        match exit::control_access(read(fields::EXIT_QUALIFICATION)) {
            ControlAccess::Cr8 => return ExitOrGoOn::Exit(Exit::Cr8),
            _ if self.tracking.is_some() => return ExitOrGoOn::Exit(Exit::Control),
            ControlAccess::WriteCr0(register) if exit::is_allowed_cr0(self.registers.gpr[register]) => {
                // From here on the guest reads what it wanted to write; the CPU now executes the instruction itself,
                // with all its checks and effects, since it changes no such bit any more.
                write(fields::CR0_SHADOW, self.registers.gpr[register]);
            }
            ControlAccess::WriteCr0(_) | ControlAccess::WriteCr4 => self.inject(Exception::GENERAL_PROTECTION),
            ControlAccess::Other => return ExitOrGoOn::Exit(Exit::Unexpected(u64::from(reason::CONTROL_REGISTER))),
        }
        ExitOrGoOn::GoOn
    }

    fn forget_mode(&mut self) {
        self.mode.set(None);
    }
}

impl Timed for VmxVcpu {
    fn enter_raw(&mut self, timer_count: u32) -> (Exit, u64) {
        self.set_primary(false, false);
        self.stop_counting();
        let count = if timer_count == 0 { u32::MAX } else { timer_count };
        let (reason, raw) = self.switch(None, 0, count);
        match self.decode(reason as u16) {
            ExitOrGoOn::Exit(exit) if reason & ENTRY_FAILED == 0 => (exit, raw),
            _ => (Exit::Invalid, raw),
        }
    }
}

impl Vcpu for VmxVcpu {
    fn calibrate(&mut self, memory: &mut GuestMemory, settle: &mut dyn FnMut()) -> Result<String, String> {
        self.calibration = Calibration::default();
        self.calibration = calibrate::calibrate(self, memory, settle).map_err(|error| error.to_string())?;
        Ok(format!("{:?}", self.calibration))
    }

    fn lend_tsc(&mut self, tsc: Option<LentTsc>) -> bool {
        if !self.capabilities.tsc_offsetting {
            return tsc.is_none();
        }
        self.tsc = tsc;
        if let Some(LentTsc { aux, .. }) = tsc
            && self.tsc_aux != Some(aux)
        {
            self.tsc_aux = Some(aux);
            // SAFETY: the interrupt table is loaded, and nobody on this side reads the register. A CPU without RDTSCP does
            // not have it, and its guest cannot read it either.
            let _ = unsafe { msr::try_write(TSC_AUX, u64::from(aux)) };
        }
        true
    }

    fn instruction_counter(&self) -> Result<InstructionCounter, &'static str> {
        self.performance.as_ref().map(|performance| performance.layout().describe()).map_err(|why| *why)
    }

    fn enter(&mut self, limit: Limit) -> Entered {
        self.enter_within(match limit {
            Limit::After(Meter::Tsc, ticks) => Bound::Ticks(ticks.min(SLICE)),
            Limit::After(Meter::Instructions, counts) => Bound::Overflow(counts),
            Limit::Step(meter) if self.capabilities.monitor_trap => Bound::Step(meter),
            Limit::Step(_) => {
                let exit = Exit::Unsupported("a single step, without the monitor trap flag");
                return Entered { exit, ticks: 0, interrupt_taken: false, exception_taken: false };
            }
        })
    }

    fn registers(&self) -> &Registers {
        &self.registers
    }

    fn registers_mut(&mut self) -> &mut Registers {
        &mut self.registers
    }

    fn mode(&self) -> Mode {
        if let Some(mode) = self.mode.get() {
            return mode;
        }
        let mode = self.read_mode();
        self.mode.set(Some(mode));
        mode
    }

    fn offer_interrupt(&mut self, vector: Option<u8>) {
        self.offered = vector;
    }

    fn inject(&mut self, exception: Exception) {
        let mut event =
            Event { info: exit::EVENT_VALID | exit::EVENT_EXCEPTION | u32::from(exception.vector), ..Event::default() };
        // In real mode there are no error codes.
        if let Some(code) = exception.error_code
            && read(fields::GUEST_CR0) & CR0_PE != 0
        {
            event.info |= exit::EVENT_ERROR_CODE;
            event.error_code = code;
        }
        if let Some(cr2) = exception.cr2 {
            lazy::set_cr2(cr2);
        }
        self.event = Some(event);
        // Delivery ends a shadow, and an entry that delivers is to end at once if it is so limited.
        self.clear_interrupt_shadow();
    }

    fn cr2(&self) -> u64 {
        lazy::cr2()
    }

    fn set_cr2(&mut self, cr2: u64) {
        lazy::set_cr2(cr2);
    }

    fn clear_interrupt_shadow(&mut self) {
        self.end_shadow();
    }

    fn trap_step(&mut self) {
        self.add_step();
    }

    fn shadow_steps(&mut self) -> Option<&mut dyn ShadowSteps> {
        Some(self)
    }

    fn msrs(&self) -> CpuMsrs {
        self.read_msrs()
    }

    fn set_msrs(&mut self, msrs: &CpuMsrs) {
        self.forget_mode();
        self.write_msrs(msrs);
    }

    fn extended(&mut self) -> &mut dyn ExtendedRegisters {
        &mut self.extended
    }

    fn track_paging(&mut self, tables: (u64, u64)) -> bool {
        self.begin_tracking(tables)
    }

    fn set_paging(&mut self, paging: &Paging, root: Option<u64>) {
        self.walk_from(paging, root);
    }

    fn has_undelivered(&self) -> bool {
        self.event.is_some()
    }

    fn interrupted_exception(&self) -> Option<u8> {
        self.event.and_then(Event::exception)
    }

    fn track_writes(&mut self, on: bool) {
        self.nested_paging.track(on);
        instructions::invalidate_ept(self.ept_pointer);
    }

    fn take_written(&mut self, written: &mut dyn FnMut(Gpa)) {
        self.nested_paging.take_written(written);
        instructions::invalidate_ept(self.ept_pointer);
    }

    fn save(&mut self) -> CpuState {
        self.read_state()
    }

    fn load(&mut self, state: &CpuState) {
        self.forget_mode();
        self.write_state(state);
    }
}
