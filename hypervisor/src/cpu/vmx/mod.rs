//! Intel VMX. See: Intel SDM volume 3 (325384-081), chapters 24 to 34.
#![allow(unsafe_code)]

mod capabilities;
mod entry;
mod exit;
mod fields;
mod host;
mod instructions;
mod permissions;
mod segments;
mod setup;
mod state;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use core::cell::Cell;

pub use self::capabilities::VmxError;
pub use self::instructions::VmFail;

use self::capabilities::{Capabilities, INTERRUPT_WINDOW};
use self::exit::{ControlAccess, ENTRY_FAILED, Event, reason};
use self::host::HostTables;
use self::instructions::{read, write};
use self::permissions::MsrPermissions;
use super::calibrate::{self, Calibration, Timed};
use super::lazy;
use super::nested::NestedPaging;
use super::registers::{CR0_PE, CpuMsrs, CpuState, RFLAGS_IF, Registers, gpr};
use super::{Entered, Exception, Exit, InstructionCounter, Limit, Mode, ShadowSteps, Vcpu};
use crate::memory::{Gpa, GuestMemory};

/// Ticks after which an entry ends in any case, so that the host's interrupts are looked at: Bochs holds them back from
/// an entry with the guest's IF clear until the guest changes it.
const SLICE: u64 = 50_000;

/// Interruptibility: blocking by STI or MOV SS.
const SHADOW: u32 = 0b11;

#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// A virtual CPU under VMX.
pub struct VmxVcpu {
    registers: Registers,
    /// RIP, RSP and RFLAGS as the VMCS has them.
    in_vmcs: [u64; 3],
    launched: bool,
    window: bool,
    /// The event that is to be injected at the next entry.
    event: Option<Event>,
    offered: Option<u8>,
    /// What [`Vcpu::mode`] found since the last exit.
    mode: Cell<Option<Mode>>,
    capabilities: Capabilities,
    calibration: Calibration,
    memory: (u64, u64),
    _vmxon: Box<Page>,
    _vmcs: Box<Page>,
    _msr: Box<MsrPermissions>,
    nested_paging: NestedPaging,
    ept_pointer: u64,
    _host: HostTables,
}

/// What one entry came to, before it is known what it means for the guest.
struct Once {
    exit: ExitOrGoOn,
    ticks: u64,
    interrupt_taken: bool,
    exception_taken: bool,
}

/// What an exit means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExitOrGoOn {
    Exit(Exit),
    /// It is dealt with: the guest goes on.
    GoOn,
}

impl VmxVcpu {
    /// One entry with an event to inject; returns the exit's reason and raw TSC ticks.
    fn switch(&mut self, event: Option<Event>, timer_count: u32) -> (u32, u64) {
        self.forget_mode();
        self.put_registers();
        write(fields::PREEMPTION_TIMER, timer_count);
        if let Some(event) = event {
            write(fields::ENTRY_ERROR_CODE, event.error_code);
            write(fields::ENTRY_INSTRUCTION_LENGTH, event.length);
            write(fields::ENTRY_EVENT, event.info);
        }
        // SAFETY: `new` has set up the VMCS: guest memory is all that the nested page tables map, the host's state is
        // this CPU's. Hypervisor code runs with interrupts off.
        let raw = unsafe { entry::enter(&mut self.registers, self.launched) }
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

    /// One entry of at most `ticks` ticks.
    fn enter_once(&mut self, ticks: u64) -> Once {
        let mut event = self.event.take();
        let injects_exception = event.is_some();
        let interrupt = match self.offered {
            Some(vector) if !injects_exception && self.can_interrupt() => Some(Event::interrupt(vector)),
            _ => None,
        };
        event = event.or(interrupt);
        self.set_window(self.offered.is_some() && interrupt.is_none());
        let (reason, raw) = self.switch(event, (ticks + self.calibration.lead) as u32);
        if reason & ENTRY_FAILED != 0 {
            log::warn!("VM entry: {}", exit::entry_failure(reason as u16, read(fields::EXIT_QUALIFICATION)));
            let exit = ExitOrGoOn::Exit(Exit::Invalid);
            return Once { exit, ticks: 0, interrupt_taken: false, exception_taken: false };
        }
        let (exit, ticks) = (self.decode(reason as u16), raw - self.calibration.overhead);
        let interrupted = self.interrupted_delivery();
        let exception_taken = injects_exception && interrupted.is_none();
        let mut once = Once { exit, ticks, interrupt_taken: false, exception_taken };
        if let Some(delivery) = interrupted {
            // Delivery that the CPU began by itself has cost a tick that it did not count.
            once.ticks += u64::from(event.is_none() && delivery.counts());
            once.exit = self.after_interrupted_delivery(once.exit, delivery);
        }
        once.interrupt_taken = interrupt.is_some() && !interrupted.is_some_and(Event::is_interrupt);
        if once.interrupt_taken {
            self.offered = None;
        }
        once
    }

    /// The event whose delivery the exit interrupted, if it did.
    fn interrupted_delivery(&self) -> Option<Event> {
        let info = read(fields::VECTORING_EVENT);
        if info & exit::EVENT_VALID == 0 {
            return None;
        }
        let error_code = if info & exit::EVENT_ERROR_CODE == 0 { 0 } else { read(fields::VECTORING_ERROR_CODE) };
        // Bit 12 is undefined here and reserved there.
        Some(Event { info: info & !(1 << 12), error_code, length: read(fields::EXIT_INSTRUCTION_LENGTH) })
    }

    fn after_interrupted_delivery(&mut self, exit: ExitOrGoOn, delivery: Event) -> ExitOrGoOn {
        match exit {
            // All of guest memory is mapped, so the guest keeps its stack or its tables on a device: no event can be
            // delivered there, and what hardware would do next is a triple fault.
            ExitOrGoOn::Exit(Exit::Memory { .. }) => ExitOrGoOn::Exit(Exit::Shutdown),
            exit => {
                // An interrupt is still offered; everything else must come again.
                if !delivery.is_interrupt() {
                    self.event = Some(delivery);
                }
                exit
            }
        }
    }

    /// Whether there is something to deliver before the next instruction.
    fn has_event(&self) -> bool {
        self.event.is_some() || (self.offered.is_some() && self.can_interrupt())
    }

    /// Whether the guest would take an interrupt before its next instruction.
    fn can_interrupt(&self) -> bool {
        self.registers.rflags & RFLAGS_IF != 0 && read(fields::INTERRUPTIBILITY) & SHADOW == 0
    }

    /// Whether the guest exits as soon as it can take an interrupt.
    fn set_window(&mut self, window: bool) {
        if window != self.window {
            self.window = window;
            let controls = self.capabilities.controls.primary;
            write(fields::PRIMARY_CONTROLS, if window { controls | INTERRUPT_WINDOW } else { controls });
        }
    }

    fn decode(&mut self, basic: u16) -> ExitOrGoOn {
        ExitOrGoOn::Exit(match basic {
            reason::INTERRUPT_WINDOW => return ExitOrGoOn::GoOn,
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
            ControlAccess::WriteCr0(register) if exit::is_allowed_cr0(self.registers.gpr[register]) => {
                // From here on the guest reads what it wanted to write; the CPU now executes the instruction itself,
                // with all its checks and effects, since it changes no such bit any more.
                write(fields::CR0_SHADOW, self.registers.gpr[register]);
            }
            ControlAccess::WriteCr0(_) | ControlAccess::WriteCr4 => self.inject(Exception::GENERAL_PROTECTION),
            ControlAccess::Other => return ExitOrGoOn::Exit(Exit::Unknown(u64::from(reason::CONTROL_REGISTER))),
        }
        ExitOrGoOn::GoOn
    }
}

impl VmxVcpu {
    /// Entries until something happens that is the guest's or the host's business, of `end` ticks at most. With none,
    /// only what waits is delivered.
    fn enter_within(&mut self, end: u64) -> Entered {
        let mut entered = Entered { exit: Exit::Interrupted, ticks: 0, interrupt_taken: false, exception_taken: false };
        loop {
            let once = self.enter_once(end - entered.ticks);
            entered.ticks += once.ticks;
            entered.interrupt_taken |= once.interrupt_taken;
            entered.exception_taken |= once.exception_taken;
            match once.exit {
                ExitOrGoOn::Exit(exit) => return Entered { exit, ..entered },
                ExitOrGoOn::GoOn if entered.ticks >= end => return entered,
                ExitOrGoOn::GoOn => {}
            }
        }
    }

    fn forget_mode(&mut self) {
        self.mode.set(None);
    }
}

impl Timed for VmxVcpu {
    fn enter_raw(&mut self, timer_count: u32) -> (Exit, u64) {
        let count = if timer_count == 0 { u32::MAX } else { timer_count };
        let (reason, raw) = self.switch(None, count);
        match self.decode(reason as u16) {
            ExitOrGoOn::Exit(exit) if reason & ENTRY_FAILED == 0 => (exit, raw),
            _ => (Exit::Invalid, raw),
        }
    }
}

impl Vcpu for VmxVcpu {
    fn calibrate(&mut self, memory: &mut GuestMemory, settle: &mut dyn FnMut()) -> Result<String, String> {
        self.calibration = calibrate::calibrate(self, memory, settle).map_err(|error| error.to_string())?;
        Ok(format!("{:?}", self.calibration))
    }

    fn instruction_counter(&self) -> Result<InstructionCounter, &'static str> {
        Err("the counter of retired instructions is not used with VMX")
    }

    fn enter(&mut self, limit: Limit) -> Entered {
        self.enter_within(match limit {
            Limit::None => SLICE,
            Limit::Exact(ticks) => ticks.min(SLICE),
            Limit::Overflow(_) | Limit::Step => panic!("see instruction_counter"),
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

    fn clear_interrupt_shadow(&mut self) {
        let interruptibility = read(fields::INTERRUPTIBILITY);
        if interruptibility & SHADOW != 0 {
            write(fields::INTERRUPTIBILITY, interruptibility & !SHADOW);
        }
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
