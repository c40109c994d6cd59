//! The guest's CPU: one small trait, and the vendors' mirror images behind it.
//!
//! A backend only answers questions (enter the guest, say why it came back, show or take its state); what an exit
//! means is decided in `guest/`, the same for every vendor.

mod calibrate;
mod lazy;
mod mode;
pub mod nested;
pub mod pmu;
pub mod registers;
pub mod svm;
pub mod vectors;
pub mod vmx;

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;

use crate::extended::ExtendedRegisters;
use crate::host::apic::Apic;
use crate::memory::{Gpa, GuestMemory};
use lazy::LiveRegisters;
pub use mode::{Mode, Paging};
pub use nested::Right;
use registers::{CpuMsrs, CpuState, Registers, Segment, Table};
use svm::{SvmError, SvmVcpu};
use vmx::{VmxError, VmxVcpu};

/// What counts the guest's progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meter {
    /// The TSC, one tick per instruction, with a timer; see [`Vcpu::calibrate`].
    Tsc,
    /// The counter of retired instructions, with its overflow interrupt; see [`Vcpu::instruction_counter`].
    Instructions,
}

/// How far one entry may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Until the meter has counted this many (with 0, an event is delivered that was injected): the entry ends by [`Exit::Interrupted`] (timer) or
    /// [`Exit::Overflow`] (overflow interrupt) then, or some instructions later, by the meter's skid.
    After(Meter, u64),
    /// To the next boundary between two instructions (for string instructions: between two iterations), where the entry
    /// ends by [`Exit::Stepped`]. The delivery of an event is such a step, too.
    Step(Meter),
}

/// Why the guest came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// A host interrupt came, or the timer of a limit. Nothing of the guest's doing.
    Interrupted,
    /// The overflow interrupt of the counter came, or another non-maskable one. Nothing of the guest's doing.
    Overflow,
    /// A single step is over. Nothing of the guest's doing.
    Stepped,
    /// The next instruction needs a page that is [kept from the guest](Vcpu::keep_pages). Nothing of the guest's doing.
    Kept,
    /// An access to guest-physical memory that is not mapped.
    Memory {
        /// Where.
        gpa: Gpa,
    },
    /// IN, OUT, INS or OUTS.
    Io(IoExit),
    /// CPUID.
    Cpuid,
    /// RDTSC.
    Rdtsc,
    /// RDTSCP.
    Rdtscp,
    /// RDPMC.
    Rdpmc,
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// HLT.
    Hlt,
    /// A hypercall instruction of the vendor.
    Hypercall,
    /// XSETBV.
    Xsetbv,
    /// INVD or WBINVD.
    CacheFlush,
    /// MOV to or from CR8.
    Cr8,
    /// A page fault, while the CPU walks other tables than the guest's, see [`Vcpu::track_paging`].
    PageFault {
        /// The linear address.
        linear: u64,
        /// The error code that the CPU came to.
        error_code: u32,
    },
    /// An instruction that reads or writes a control register, or INVLPG, at the same time.
    Control,
    /// An instruction that the guest does not have (virtualization, MONITOR, MWAIT …).
    Undefined,
    /// Triple fault.
    Shutdown,
    /// The CPU refuses to go on with the guest's state, such as reserved bits that it let the guest set in CR4.
    Invalid,
    /// The guest does what hardware can do and Pollux cannot.
    Unsupported(&'static str),
    /// An exit that this hypervisor does not know, of a processor that is newer: the guest did something. The vendor's code
    /// for it.
    Unknown(u64),
    /// An exit that nothing the guest does can cause: a bug of ours, or the machine is being reset. The vendor's code for it.
    Unexpected(u64),
}

/// Names of the kinds of exit: what costs the same, and what is counted together.
pub const EXIT_KINDS: [&str; 16] = [
    "interrupt",
    "overflow",
    "step",
    "memory",
    "io",
    "cpuid",
    "tsc",
    "msr",
    "hlt",
    "hypercall",
    "cr8",
    "flush",
    "undefined",
    "fatal",
    "paging",
    "control",
];

impl Exit {
    /// Whether the guest itself made it, so that something must be done for the guest.
    #[must_use]
    pub const fn is_own(self) -> bool {
        !matches!(self, Self::Interrupted | Self::Overflow | Self::Stepped | Self::Kept)
    }

    /// Its place in [`EXIT_KINDS`].
    #[must_use]
    pub const fn kind(self) -> usize {
        match self {
            Self::Interrupted | Self::Kept => 0,
            Self::Overflow => 1,
            Self::Stepped => 2,
            Self::Memory { .. } => 3,
            Self::Io(_) => 4,
            Self::Cpuid => 5,
            Self::Rdtsc | Self::Rdtscp | Self::Rdpmc => 6,
            Self::Rdmsr | Self::Wrmsr | Self::Xsetbv => 7,
            Self::Hlt => 8,
            Self::Hypercall => 9,
            Self::Cr8 => 10,
            Self::CacheFlush => 11,
            Self::Undefined => 12,
            Self::Shutdown | Self::Invalid | Self::Unsupported(_) | Self::Unknown(_) | Self::Unexpected(_) => 13,
            Self::PageFault { .. } => 14,
            Self::Control => 15,
        }
    }
}

/// A port access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoExit {
    /// The port.
    pub port: u16,
    /// Size of the access in bytes: 1, 2 or 4.
    pub size: u8,
    /// IN or INS.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
    /// Address of the next instruction.
    pub next_rip: u64,
}

/// What came of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entered {
    /// Why it ended.
    pub exit: Exit,
    /// What the limit's meter counted meanwhile: instructions for [`Meter::Tsc`]; the raw difference of the counter for
    /// [`Meter::Instructions`], costs of exits and events included.
    pub ticks: u64,
    /// The offered interrupt was delivered.
    pub interrupt_taken: bool,
    /// The injected exception was delivered.
    pub exception_taken: bool,
}

/// An exception to be delivered to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// Vector, 0–31.
    pub vector: u8,
    /// Error code, for those that have one.
    pub error_code: Option<u32>,
    /// Faulting address, for page faults.
    pub cr2: Option<u64>,
}

impl Exception {
    /// #DF.
    pub const DOUBLE_FAULT: Self = Self { vector: 8, error_code: Some(0), cr2: None };
    /// #DB.
    pub const DEBUG: Self = Self { vector: 1, error_code: None, cr2: None };
    /// #UD.
    pub const UNDEFINED: Self = Self { vector: 6, error_code: None, cr2: None };
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self { vector: 13, error_code: Some(0), cr2: None };
}

/// A counter of retired instructions as a virtual CPU describes it: claims, not facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstructionCounter {
    /// Which one; counts of different ones are not comparable.
    pub name: &'static str,
    /// Bits that it has.
    pub width: u8,
    /// Most instructions that [`Limit::After`] can be armed for.
    pub longest: u64,
}

/// What the guest reads of its TSC without an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LentTsc {
    /// What RDTSC gives as the next instruction; with each tick one more.
    pub now: u64,
    /// TSC_AUX.
    pub aux: u32,
}

/// A virtual CPU of one vendor.
pub trait Vcpu {
    /// Measures what an entry costs in ticks, so that [`Meter::Tsc`] counts the guest's alone. Uses the first pages of
    /// `memory`, which are left zeroed; `settle` lets host interrupts in. Returns the findings for people to read.
    ///
    /// # Errors
    /// Why this machine has no clock that counts instructions.
    fn calibrate(&mut self, memory: &mut GuestMemory, settle: &mut dyn FnMut()) -> Result<String, String>;

    /// The counter behind [`Meter::Instructions`].
    ///
    /// # Errors
    /// Why there is none.
    fn instruction_counter(&self) -> Result<InstructionCounter, &'static str>;

    /// Has RDTSC and RDTSCP give this from the next entry on, as far as they do not exit all the same; with `None` they
    /// exit. Holds for one entry that is limited by [`Meter::Tsc`]. Returns whether this CPU can: whether what the guest
    /// reads is exact is for the self-test to judge.
    fn lend_tsc(&mut self, tsc: Option<LentTsc>) -> bool {
        tsc.is_none()
    }

    /// Runs the guest until it exits, at most as far as `limit`, with host interrupts ending the run.
    fn enter(&mut self, limit: Limit) -> Entered;

    /// General registers, RIP and RFLAGS.
    fn registers(&self) -> &Registers;

    /// The same, to be changed.
    fn registers_mut(&mut self) -> &mut Registers;

    /// What decides how instructions and addresses are understood.
    fn mode(&self) -> Mode;

    /// The external interrupt that waits for the guest to become able to take it; it stays offered until
    /// [`Entered::interrupt_taken`] or until another call.
    ///
    /// An entry takes it before its first instruction or between two, but not behind its last: what the guest becomes able
    /// to take at a stop belongs to the entry that begins there.
    fn offer_interrupt(&mut self, vector: Option<u8>);

    /// Delivers an exception at the next entry.
    fn inject(&mut self, exception: Exception);

    /// CR2: the guest's last page fault.
    fn cr2(&self) -> u64;

    /// Replaces CR2.
    fn set_cr2(&mut self, cr2: u64);

    /// Ends an interrupt shadow, after an instruction was emulated.
    fn clear_interrupt_shadow(&mut self);

    /// An instruction was emulated with RFLAGS.TF set: the trap behind it comes at the next entry, and is state until then.
    fn trap_step(&mut self);

    /// What is there for CPUs whose limits do not end an entry in an interrupt shadow, but one tick later.
    fn shadow_steps(&mut self) -> Option<&mut dyn ShadowSteps> {
        None
    }

    /// Model-specific registers of the CPU itself, as the guest sees them.
    fn msrs(&self) -> CpuMsrs;

    /// Replaces them. EFER.LMA is the CPU's own and stays.
    fn set_msrs(&mut self, msrs: &CpuMsrs);

    /// x87 and vector registers, and XCR0.
    fn extended(&mut self) -> &mut dyn ExtendedRegisters;

    /// Begins to let the guest write only to pages that it does not execute, and execute only pages that it does not
    /// write to, or ends it: a page goes from one to the other at an access, and an instruction that writes to its own
    /// page runs alone. The guest sees nothing of it; a CPU that runs instructions in blocks then runs none whose bytes
    /// were changed meanwhile. Returns whether the CPU can.
    fn guard_code(&mut self, on: bool) -> bool {
        !on
    }

    /// Ends an entry by [`Exit::Kept`] before an instruction that needs one of these rights to one of these pages, each named
    /// by its first address; replaces those of before. The guest sees nothing of it, and it counts nothing. Returns whether
    /// the CPU can. Not beside [`track_writes`](Self::track_writes).
    fn keep_pages(&mut self, pages: &[(Gpa, Right)]) -> bool {
        pages.is_empty()
    }

    /// Prepares to walk other tables than the guest's while paging is on: the host's memory at this address and of this
    /// many bytes, which stays, appears to the CPU at [`WINDOW`](crate::mmu::WINDOW). From here on the guest's page faults and its
    /// accesses to control registers exit, as far as they matter, and [`set_paging`](Self::set_paging) says what is walked.
    /// Returns whether the CPU can.
    fn track_paging(&mut self, _: (u64, u64)) -> bool {
        false
    }

    /// The guest's CR0, CR3, CR4 and EFER are these, and the CPU walks the tables that begin at `root`, CR3 notwithstanding,
    /// having forgotten what it has cached; `None` without paging, and where the guest's tables are walked.
    fn set_paging(&mut self, _: &Paging, _: Option<u64>) {}

    /// Whether an event will be delivered at the next entry that is neither offered nor state.
    fn has_undelivered(&self) -> bool {
        false
    }

    /// The exception whose delivery a page fault has interrupted, and that comes again at the next entry.
    fn interrupted_exception(&self) -> Option<u8> {
        None
    }

    /// Begins to notice which pages the guest writes to, or ends it.
    fn track_writes(&mut self, on: bool);

    /// Calls `written` with each page that the guest wrote since the last call, or since tracking began.
    fn take_written(&mut self, written: &mut dyn FnMut(Gpa));

    /// The whole state.
    fn save(&mut self) -> CpuState;

    /// Replaces the whole state.
    fn load(&mut self, state: &CpuState);
}

/// How to stop right behind an instruction that begins an interrupt shadow, when no limit does: the instruction is
/// emulated.
pub trait ShadowSteps {
    /// Delivers the events that the guest can take now, without running an instruction. A tick is the end of a delivery that
    /// an exit had interrupted.
    fn deliver(&mut self) -> Entered;

    /// Whether the guest can take an event before its next instruction.
    fn has_event(&self) -> bool;

    /// Where the guest's descriptors are.
    fn gdtr(&self) -> Table;

    /// Whether the guest is in the shadow of a MOV SS.
    fn after_mov_ss(&self) -> bool;

    /// Whether a breakpoint of the guest's holds for the instruction at a linear address.
    fn breaks_at(&self, linear: u64) -> bool;

    /// An instruction was emulated that begins a shadow: STI, or one that loads the stack segment.
    fn begin_shadow(&mut self, stack: Option<StackLoad>);
}

/// What MOV SS or POP SS has loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackLoad {
    /// The stack segment.
    pub segment: Segment,
    /// The operand in memory: its linear address, and its size in bytes.
    pub operand: Option<(u64, u8)>,
}

/// Why no virtual CPU can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenError {
    /// The CPU lists no virtualization that Pollux knows.
    Absent,
    /// AMD's cannot be used.
    Svm(SvmError),
    /// Intel's cannot be used.
    Vmx(VmxError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => {
                f.write_str("this CPU has no hardware virtualization that Pollux knows (Intel VMX, AMD SVM)")
            }
            Self::Svm(error) => error.fmt(f),
            Self::Vmx(error) => error.fmt(f),
        }
    }
}

/// A virtual CPU of the kind that this machine has, and the kind's name. Its guest-physical memory is `memory_len` bytes
/// at host-physical `memory_base`; its state is that of real mode at 0. Of the extended state the guest gets no more than
/// `allowed`, bits of XCR0, has.
///
/// # Safety
/// Called once, on the only CPU, with the interrupt table loaded; memory is identity-mapped; the range belongs to the
/// guest alone.
///
/// # Errors
/// When the machine has no kind that can be used.
#[allow(unsafe_code)]
pub unsafe fn open(
    memory_base: u64,
    memory_len: u64,
    apic: &Apic,
    allowed: u64,
) -> Result<(Box<dyn Vcpu>, &'static str), OpenError> {
    let cpuid = raw_cpuid::CpuId::new();
    if cpuid.get_feature_info().is_some_and(|features| features.has_vmx()) {
        // SAFETY: CPUID lists VMX; the caller vouches for the rest.
        let vcpu = unsafe { VmxVcpu::new(memory_base, memory_len, apic, LiveRegisters::enable(allowed)) }
            .map_err(OpenError::Vmx)?;
        return Ok((Box::new(vcpu), "Intel VMX"));
    }
    if cpuid.get_extended_processor_and_feature_identifiers().is_some_and(|features| features.has_svm()) {
        // SAFETY: CPUID lists SVM; the caller vouches for the rest.
        let vcpu = unsafe { SvmVcpu::new(memory_base, memory_len, apic, LiveRegisters::enable(allowed)) }
            .map_err(OpenError::Svm)?;
        return Ok((Box::new(vcpu), "AMD SVM"));
    }
    Err(OpenError::Absent)
}
