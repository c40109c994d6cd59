//! The instructions that begin an interrupt shadow: STI, MOV SS and POP SS, for CPUs that cannot be stopped right behind
//! them. See: SDM volume 2, "STI", "MOV", "POP"; volume 3, 5.5 and 6.8.3.

use iced_x86::{Code, Register};

use super::linear::SegmentName;
use super::operand::{Execution, Place};
use super::walk::{Access, AccessKind, Paging, WalkError};
use super::{Bus, CpuView, Emulated, Fault, RFLAGS_VM, Vectors, is_64_bit};
use crate::cpu::registers::{CR0_PE, RFLAGS_IF, Registers, Segment, Table};
use crate::cpu::{Mode, StackLoad};
use crate::memory::{Gpa, GuestMemory};

/// What the CPU has that decides what such an instruction does.
#[derive(Debug, Clone, Copy)]
pub struct ShadowView<'a> {
    /// General registers, RIP and RFLAGS.
    pub registers: &'a Registers,
    /// Segments and control registers.
    pub mode: &'a Mode,
    /// Where descriptors are.
    pub gdtr: Table,
    /// The shadow of a MOV SS or POP SS is still on: another one does not begin a new one.
    pub after_mov_ss: bool,
}

/// Linear address of the instruction at CS:RIP.
#[must_use]
pub fn linear_rip(mode: &Mode, rip: u64) -> u64 {
    if is_64_bit(mode) { rip } else { mode.segments.cs.base.wrapping_add(rip) & 0xFFFF_FFFF }
}

/// The CPU behind the instruction, in its shadow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// General registers, RIP and RFLAGS.
    pub registers: Registers,
    /// The new stack segment, unless the instruction is STI.
    pub stack: Option<StackLoad>,
}

/// Carries out the instruction at CS:RIP if it begins an interrupt shadow. `None` for every other one, and when it
/// faults: then the CPU can execute it itself.
pub fn begin(view: &ShadowView<'_>, bus: &mut dyn Bus) -> Option<Begun> {
    let mut bus = RamOnly { bus, device: false };
    let mut before = *view.registers;
    let mut cpu = CpuView { registers: &mut before, mode: view.mode, vectors: &mut NoVectors };
    let mut execution = Execution::fetch(&mut cpu, &mut bus).ok()?;
    let stack = match execution.instruction.code() {
        Code::Sti if sti_begins(view) => {
            execution.registers.rflags |= RFLAGS_IF;
            None
        }
        Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16
            if execution.instruction.op0_register() == Register::SS =>
        {
            let source = execution.place(1, AccessKind::Read).ok()?;
            let operand = match source {
                Place::Memory(span) => Some((execution.linear_operand(1).ok()?, span.size)),
                _ => None,
            };
            Some((execution.load(source) as u16, operand))
        }
        Code::Popw_SS | Code::Popd_SS => Some(execution.pop_selector().ok()?),
        _ => return None,
    };
    let registers = execution.after(Emulated::Retired);
    if bus.device || stack.is_some() && view.after_mov_ss {
        return None;
    }
    let stack = match stack {
        Some((selector, operand)) => Some(StackLoad { segment: stack_segment(view, selector, &mut bus)?, operand }),
        None => None,
    };
    Some(Begun { registers, stack })
}

/// No instruction that begins a shadow has to do with vectors.
struct NoVectors;

impl Vectors for NoVectors {
    fn get(&self, _: usize) -> u128 {
        0
    }

    fn set(&mut self, _: usize, _: u128) {}

    fn is_wide(&self) -> bool {
        false
    }

    fn get_wide(&self, _: usize) -> [u128; 2] {
        [0; 2]
    }

    fn set_wide(&mut self, _: usize, _: [u128; 2]) {}
}

/// Memory without devices: whoever meets one is left to the CPU.
struct RamOnly<'a> {
    bus: &'a mut dyn Bus,
    device: bool,
}

impl Bus for RamOnly<'_> {
    fn mmio_read(&mut self, _: Gpa, _: u8) -> u64 {
        self.device = true;
        0
    }

    fn mmio_write(&mut self, _: Gpa, _: u8, _: u64) {
        self.device = true;
    }

    fn memory(&mut self) -> &mut GuestMemory {
        self.bus.memory()
    }

    fn translate(&mut self, paging: &Paging, linear: u64, access: Access) -> Result<Gpa, WalkError> {
        self.bus.translate(paging, linear, access)
    }
}

impl Execution<'_> {
    /// The selector on the stack, and where it was.
    fn pop_selector(&mut self) -> Result<(u16, Option<(u64, u8)>), Fault> {
        let size = self.stack_step()?;
        let pointer = self.stack_pointer();
        let top = self.get(pointer);
        let span = self.stack(top, size, false)?;
        self.set(pointer, top.wrapping_add(u64::from(size)));
        let linear = self.space.advance(self.space.base(SegmentName::Ss).wrapping_add(top), 0);
        Ok((span.read(self.bus) as u16, Some((linear, size))))
    }
}

/// Whether STI sets IF and thereby begins a shadow. With too little privilege it faults or sets VIF instead.
fn sti_begins(view: &ShadowView<'_>) -> bool {
    let rflags = view.registers.rflags;
    let io_privilege = (rflags >> 12 & 3) as u8;
    rflags & RFLAGS_IF == 0 && (view.mode.cr0 & CR0_PE == 0 || privilege(view) <= io_privilege)
}

/// Current privilege level.
fn privilege(view: &ShadowView<'_>) -> u8 {
    if view.registers.rflags & RFLAGS_VM != 0 { 3 } else { view.mode.segments.ss.dpl() }
}

/// Descriptor bits of the type: a segment of code or data, code, writable, accessed.
const CODE_OR_DATA: u16 = 1 << 4;
const CODE: u16 = 1 << 3;
const WRITABLE: u16 = 1 << 1;
const ACCESSED: u16 = 1 << 0;
const GRANULARITY: u16 = 1 << 11;

/// What SS holds after `selector` was loaded; `None` if it cannot be.
fn stack_segment(view: &ShadowView<'_>, selector: u16, bus: &mut dyn Bus) -> Option<Segment> {
    let old = view.mode.segments.ss;
    if view.mode.cr0 & CR0_PE == 0 || view.registers.rflags & RFLAGS_VM != 0 {
        // Limit and attributes stay.
        return Some(Segment { selector, base: u64::from(selector) << 4, ..old });
    }
    let privilege = privilege(view);
    if (selector & 3) as u8 != privilege {
        return None;
    }
    if selector & !3 == 0 {
        let allowed = is_64_bit(view.mode) && privilege < 3;
        // No segment, but the privilege level stays.
        return allowed.then_some(Segment { selector, attributes: u16::from(privilege) << 5, limit: 0, base: 0 });
    }
    let at = descriptor_address(view, selector)?;
    let bytes = read_system::<8>(view.mode, bus, at)?;
    let descriptor = u64::from_le_bytes(bytes);
    let attributes = (descriptor >> 40 & 0xFF | descriptor >> 44 & 0xF00) as u16;
    let is_stack =
        attributes & (Segment::PRESENT | CODE_OR_DATA | CODE | WRITABLE) == Segment::PRESENT | CODE_OR_DATA | WRITABLE;
    let segment =
        Segment { selector, attributes: attributes | ACCESSED, limit: limit(descriptor), base: base(descriptor) };
    if !is_stack || segment.dpl() != privilege {
        return None;
    }
    if attributes & ACCESSED == 0 {
        let byte = translate_system(view.mode, bus, at + 5, AccessKind::Write)?;
        bus.memory().write(byte, &[bytes[5] | ACCESSED as u8]).ok()?;
    }
    Some(segment)
}

/// Linear address of a descriptor that lies within its table.
fn descriptor_address(view: &ShadowView<'_>, selector: u16) -> Option<u64> {
    let ldtr = &view.mode.segments.ldtr;
    let (base, limit) = match selector & 4 != 0 {
        false => (view.gdtr.base, u32::from(view.gdtr.limit)),
        true if ldtr.attributes & Segment::PRESENT != 0 => (ldtr.base, ldtr.limit),
        true => return None,
    };
    let offset = u32::from(selector & !7);
    (offset + 7 <= limit).then(|| base.wrapping_add(u64::from(offset)))
}

fn limit(descriptor: u64) -> u32 {
    let raw = (descriptor & 0xFFFF | descriptor >> 32 & 0xF_0000) as u32;
    if descriptor >> 44 & u64::from(GRANULARITY) != 0 { raw << 12 | 0xFFF } else { raw }
}

fn base(descriptor: u64) -> u64 {
    descriptor >> 16 & 0xFF_FFFF | descriptor >> 32 & 0xFF00_0000
}

/// Descriptors are read with the system's rights.
fn translate_system(mode: &Mode, bus: &mut dyn Bus, linear: u64, kind: AccessKind) -> Option<Gpa> {
    let access = Access { kind, user: false, smap_off: false };
    bus.translate(&Paging::from(mode), linear, access).ok()
}

fn read_system<const N: usize>(mode: &Mode, bus: &mut dyn Bus, linear: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    for (byte, at) in bytes.iter_mut().zip(linear..) {
        let gpa = translate_system(mode, bus, at, AccessKind::Read)?;
        [*byte] = bus.memory().read(gpa).ok()?;
    }
    Some(bytes)
}
