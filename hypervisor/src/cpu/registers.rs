//! Architectural state of the guest's CPU, the same for every vendor.

use crate::extended::ExtendedState;
use crate::state::{State, StateError, Visitor};

/// Indices of the general registers in [`Registers::gpr`], in the order of instruction encodings.
/// See: APM volume 3, table 2-2.
#[allow(missing_docs)]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// RFLAGS.TF: a trap behind each instruction.
pub const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS.IF: external interrupts are recognised.
pub const RFLAGS_IF: u64 = 1 << 9;
/// RFLAGS.RF: no instruction breakpoint on the next instruction.
pub const RFLAGS_RF: u64 = 1 << 16;
/// RFLAGS bit 1, which always reads 1.
pub const RFLAGS_FIXED: u64 = 1 << 1;

/// CR0.PE: protected mode.
pub const CR0_PE: u64 = 1 << 0;
/// CR0.ET: always set.
pub const CR0_ET: u64 = 1 << 4;
/// CR0.WP: the system, too, respects read-only pages.
pub const CR0_WP: u64 = 1 << 16;
/// CR0.NW: not write-through.
pub const CR0_NW: u64 = 1 << 29;
/// CR0.CD: caches are off.
pub const CR0_CD: u64 = 1 << 30;
/// CR0.PG: paging.
pub const CR0_PG: u64 = 1 << 31;
/// CR4.PSE: large pages behind short page-table entries.
pub const CR4_PSE: u64 = 1 << 4;
/// CR4.PAE: long page-table entries, without which there is no 64-bit mode.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4.PGE: translations of global pages outlive a load of CR3.
pub const CR4_PGE: u64 = 1 << 7;
/// CR4.LA57: five levels of page tables.
pub const CR4_LA57: u64 = 1 << 12;
/// CR4.PCIDE: address spaces have identifiers.
pub const CR4_PCIDE: u64 = 1 << 17;
/// CR4.OSXSAVE: XSAVE, XGETBV and their like are enabled.
pub const CR4_OSXSAVE: u64 = 1 << 18;
/// CR4.SMEP: the system does not execute the user's pages.
pub const CR4_SMEP: u64 = 1 << 20;
/// CR4.SMAP: nor does it access them, unless it says so.
pub const CR4_SMAP: u64 = 1 << 21;
/// EFER.LME: long mode enabled.
pub const EFER_LME: u64 = 1 << 8;
/// EFER.LMA: long mode active.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER.NXE: page-table entries say what is not executed.
pub const EFER_NXE: u64 = 1 << 11;

/// Registers that belong to the guest while it runs, so that it may use them directly: SYSENTER_CS, _ESP, _EIP, STAR,
/// LSTAR, CSTAR, SFMASK, FS.base, GS.base, KernelGSbase. In ascending order.
pub const DIRECT_MSRS: [u32; 10] =
    [0x174, 0x175, 0x176, 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0100, 0xC000_0101, 0xC000_0102];

/// General registers, instruction pointer and flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the order of instruction encodings.
    pub gpr: [u64; 16],
    /// Instruction pointer, relative to the code segment's base.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
}

impl State for Registers {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        for value in &mut self.gpr {
            v.u64(value)?;
        }
        v.u64(&mut self.rip)?;
        v.u64(&mut self.rflags)
    }
}

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Attributes: descriptor bits 40–47 (type, S, DPL, P) in bits 0–7, bits 52–55 (AVL, L, D/B, G) in bits 8–11.
    /// See: APM volume 2, 15.5.1.
    pub attributes: u16,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

impl Segment {
    /// Attribute bit: the descriptor is present.
    pub const PRESENT: u16 = 1 << 7;
    /// Attribute bit: 64-bit code segment.
    pub const LONG: u16 = 1 << 9;
    /// Attribute bit: default operand size 32 bits (stack: 32-bit stack pointer).
    pub const DEFAULT_BIG: u16 = 1 << 10;

    /// A flat 4 GiB segment with the given selector and attributes.
    #[must_use]
    pub const fn flat(selector: u16, attributes: u16) -> Self {
        Self { selector, attributes, limit: u32::MAX, base: 0 }
    }

    /// A real-mode segment as after reset: 64 KiB at `selector << 4`.
    #[must_use]
    pub const fn real(selector: u16, attributes: u16) -> Self {
        Self { selector, attributes, limit: 0xFFFF, base: (selector as u64) << 4 }
    }

    /// Descriptor privilege level.
    #[must_use]
    pub const fn dpl(&self) -> u8 {
        ((self.attributes >> 5) & 3) as u8
    }
}

impl State for Segment {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.u16(&mut self.selector)?;
        v.u16(&mut self.attributes)?;
        v.u32(&mut self.limit)?;
        v.u64(&mut self.base)
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Table {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, minus one.
    pub limit: u16,
}

impl State for Table {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.u64(&mut self.base)?;
        v.u16(&mut self.limit)
    }
}

/// The eight segment registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Segments {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ldtr: Segment,
    pub tr: Segment,
}

impl State for Segments {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        for segment in [
            &mut self.es,
            &mut self.cs,
            &mut self.ss,
            &mut self.ds,
            &mut self.fs,
            &mut self.gs,
            &mut self.ldtr,
            &mut self.tr,
        ] {
            segment.visit(v)?;
        }
        Ok(())
    }
}

/// Model-specific registers that the CPU itself uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct CpuMsrs {
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
}

impl State for CpuMsrs {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        for value in [
            &mut self.efer,
            &mut self.star,
            &mut self.lstar,
            &mut self.cstar,
            &mut self.sfmask,
            &mut self.kernel_gs_base,
            &mut self.sysenter_cs,
            &mut self.sysenter_esp,
            &mut self.sysenter_eip,
        ] {
            v.u64(value)?;
        }
        Ok(())
    }
}

/// Debug traps that wait: a breakpoint that is enabled.
pub const PENDING_ENABLED: u64 = 1 << 12;
/// Debug traps that wait: a single step.
pub const PENDING_STEP: u64 = 1 << 14;
/// All of what may be in [`CpuState::pending_debug`].
pub const PENDING_DEBUG: u64 = PENDING_STEP | PENDING_ENABLED | 0xF;

/// What keeps events back until the next instruction is over. See: SDM volume 3, 7.8.3 and table 26-3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shadow {
    /// Nothing.
    #[default]
    None,
    /// An STI that has set RFLAGS.IF: interrupts are blocked.
    Sti,
    /// MOV SS or POP SS: interrupts are blocked, and debug traps.
    MovSs,
}

impl Shadow {
    /// What a CPU means that tells no more than that there is one, as AMD's do (APM volume 2, 15.21.5): without RFLAGS.IF it
    /// cannot come from STI. Where it is taken for the other, both twins take it so, as they are of one vendor.
    #[must_use]
    pub const fn guess(on: bool, rflags: u64) -> Self {
        match (on, rflags & RFLAGS_IF != 0) {
            (false, _) => Self::None,
            (true, true) => Self::Sti,
            (true, false) => Self::MovSs,
        }
    }
}

impl State for Shadow {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        let mut kind = *self as u8;
        v.u8(&mut kind)?;
        *self = match kind {
            0 => Self::None,
            1 => Self::Sti,
            2 => Self::MovSs,
            _ => return Err(StateError::BadValue("the interrupt shadow")),
        };
        Ok(())
    }
}

/// Everything the guest's CPU remembers between two instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuState {
    /// General registers, RIP, RFLAGS.
    pub registers: Registers,
    /// Segment registers.
    pub segments: Segments,
    /// Global descriptor table.
    pub gdtr: Table,
    /// Interrupt descriptor table.
    pub idtr: Table,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// Model-specific registers of the CPU.
    pub msrs: CpuMsrs,
    /// x87, SSE and what XSAVE saves beyond.
    pub extended: ExtendedState,
    /// What is blocked for one instruction.
    pub shadow: Shadow,
    /// Debug traps that wait, in the form of VMX: breakpoints in bits 0 to 3, one of them enabled in bit 12, a single step in
    /// bit 14. Nothing shows AMD's: there it is the step over an emulated instruction, or nothing. See: SDM volume 3, table 26-4.
    pub pending_debug: u64,
    /// The guest executed HLT and waits for an interrupt.
    pub halted: bool,
}

impl State for CpuState {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        self.registers.visit(v)?;
        self.segments.visit(v)?;
        self.gdtr.visit(v)?;
        self.idtr.visit(v)?;
        for value in [&mut self.cr0, &mut self.cr2, &mut self.cr3, &mut self.cr4] {
            v.u64(value)?;
        }
        for value in &mut self.dr {
            v.u64(value)?;
        }
        v.u64(&mut self.dr6)?;
        v.u64(&mut self.dr7)?;
        self.msrs.visit(v)?;
        self.extended.visit(v)?;
        self.shadow.visit(v)?;
        v.u64(&mut self.pending_debug)?;
        v.bool(&mut self.halted)?;
        // The CPU would refuse to run with these.
        if self.shadow == Shadow::Sti && self.registers.rflags & RFLAGS_IF == 0 {
            return Err(StateError::BadValue("the interrupt shadow"));
        }
        if self.pending_debug & !PENDING_DEBUG != 0 {
            return Err(StateError::BadValue("debug traps that wait"));
        }
        Ok(())
    }
}

impl CpuState {
    /// The state in which a PVH kernel is entered: 32-bit protected mode without paging, flat segments, EBX pointing
    /// to the start info. See: Xen's `docs/misc/pvh.pandoc`.
    #[must_use]
    pub fn pvh(entry: u32, start_info: u32) -> Self {
        let data = Segment::flat(0x10, 0xC93);
        let mut state = Self {
            segments: Segments {
                es: data,
                cs: Segment::flat(0x8, 0xC9B),
                ss: data,
                ds: data,
                fs: data,
                gs: data,
                ldtr: Segment { attributes: 0x82, ..Segment::default() },
                tr: Segment { selector: 0, attributes: 0x8B, limit: 0x67, base: 0 },
            },
            cr0: CR0_PE | CR0_ET,
            ..Self::reset()
        };
        state.registers.rip = u64::from(entry);
        state.registers.gpr[gpr::RBX] = u64::from(start_info);
        state
    }

    /// The state in which Linux is entered: 64-bit mode, memory mapped one to one by the tables at `cr3`, the segments that
    /// its boot protocol wants (0x10 and 0x18) out of the table `gdtr`, RSI pointing to the zero page.
    /// See: Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol".
    #[must_use]
    pub fn linux(entry: u64, zero_page: u64, cr3: u64, gdtr: Table) -> Self {
        let data = Segment::flat(0x18, 0xC93);
        let mut state = Self::pvh(0, 0);
        let segments = &mut state.segments;
        (segments.es, segments.ss, segments.ds, segments.fs, segments.gs) = (data, data, data, data, data);
        segments.cs = Segment::flat(0x10, 0xA9B);
        (state.gdtr, state.cr3, state.cr4) = (gdtr, cr3, CR4_PAE);
        state.cr0 |= CR0_PG;
        state.msrs.efer = EFER_LME | EFER_LMA;
        state.registers.rip = entry;
        state.registers.gpr[gpr::RSI] = zero_page;
        state
    }

    /// Real mode at `rip` with all segments at 0, for the small guests of the self-test.
    #[must_use]
    pub fn real_mode(rip: u64) -> Self {
        let data = Segment::real(0, 0x93);
        let mut state = Self {
            segments: Segments {
                es: data,
                cs: Segment::real(0, 0x9B),
                ss: data,
                ds: data,
                fs: data,
                gs: data,
                ldtr: Segment { attributes: 0x82, limit: 0xFFFF, ..Segment::default() },
                tr: Segment { attributes: 0x8B, limit: 0xFFFF, ..Segment::default() },
            },
            idtr: Table { base: 0, limit: 0x3FF },
            cr0: CR0_ET,
            ..Self::reset()
        };
        state.registers.rip = rip;
        state
    }

    fn reset() -> Self {
        let mut state = Self { dr6: 0xFFFF_0FF0, dr7: 0x400, ..Self::default() };
        state.registers.rflags = RFLAGS_FIXED;
        state
    }

    /// Current privilege level.
    #[must_use]
    pub fn cpl(&self) -> u8 {
        self.segments.ss.dpl()
    }
}
