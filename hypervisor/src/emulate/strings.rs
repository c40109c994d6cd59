//! String instructions, one element at a time.

use iced_x86::{Code, OpKind};

use super::alu::{Binary, ZF};
use super::linear::{SegmentName, Span};
use super::operand::{Execution, Part, segment_name};
use super::walk::AccessKind;
use super::{Emulated, Fault};
use crate::cpu::registers::gpr;

/// RFLAGS.DF: strings run downwards.
const DF: u64 = 1 << 10;

/// A string instruction on memory and registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StringOp {
    Movs,
    Stos,
    Lods,
    Cmps,
    Scas,
}

/// A string instruction and the size of its elements in bytes.
pub(super) type Form = (StringOp, u8);

/// The string instruction that `code` is, if it is one.
pub(super) fn form(code: Code) -> Option<Form> {
    Some(match code {
        Code::Movsb_m8_m8 => (StringOp::Movs, 1),
        Code::Movsw_m16_m16 => (StringOp::Movs, 2),
        Code::Movsd_m32_m32 => (StringOp::Movs, 4),
        Code::Movsq_m64_m64 => (StringOp::Movs, 8),
        Code::Stosb_m8_AL => (StringOp::Stos, 1),
        Code::Stosw_m16_AX => (StringOp::Stos, 2),
        Code::Stosd_m32_EAX => (StringOp::Stos, 4),
        Code::Stosq_m64_RAX => (StringOp::Stos, 8),
        Code::Lodsb_AL_m8 => (StringOp::Lods, 1),
        Code::Lodsw_AX_m16 => (StringOp::Lods, 2),
        Code::Lodsd_EAX_m32 => (StringOp::Lods, 4),
        Code::Lodsq_RAX_m64 => (StringOp::Lods, 8),
        Code::Cmpsb_m8_m8 => (StringOp::Cmps, 1),
        Code::Cmpsw_m16_m16 => (StringOp::Cmps, 2),
        Code::Cmpsd_m32_m32 => (StringOp::Cmps, 4),
        Code::Cmpsq_m64_m64 => (StringOp::Cmps, 8),
        Code::Scasb_AL_m8 => (StringOp::Scas, 1),
        Code::Scasw_AX_m16 => (StringOp::Scas, 2),
        Code::Scasd_EAX_m32 => (StringOp::Scas, 4),
        Code::Scasq_RAX_m64 => (StringOp::Scas, 8),
        _ => return None,
    })
}

impl Execution<'_> {
    /// One element, or none when the count is 0 already.
    pub(super) fn string(&mut self, (op, size): Form) -> Result<Emulated, Fault> {
        if self.is_exhausted() {
            return Ok(Emulated::Retired);
        }
        let accumulator = Part::low(gpr::RAX, size);
        match op {
            StringOp::Movs => {
                let source = self.source(size)?;
                let destination = self.destination(size, AccessKind::Write)?;
                let value = source.read(self.bus);
                destination.write(self.bus, value);
                self.move_on(gpr::RSI, size);
                self.move_on(gpr::RDI, size);
            }
            StringOp::Stos => {
                let destination = self.destination(size, AccessKind::Write)?;
                let value = self.get(accumulator);
                destination.write(self.bus, value);
                self.move_on(gpr::RDI, size);
            }
            StringOp::Lods => {
                let value = self.source(size)?.read(self.bus);
                self.set(accumulator, value);
                self.move_on(gpr::RSI, size);
            }
            StringOp::Cmps => {
                let source = self.source(size)?;
                let destination = self.destination(size, AccessKind::Read)?;
                let (a, b) = (source.read(self.bus), destination.read(self.bus));
                self.registers.rflags = Binary::Sub.apply(size, a, b, self.registers.rflags).1;
                self.move_on(gpr::RSI, size);
                self.move_on(gpr::RDI, size);
            }
            StringOp::Scas => {
                let destination = self.destination(size, AccessKind::Read)?;
                let value = destination.read(self.bus);
                self.registers.rflags = Binary::Sub.apply(size, self.get(accumulator), value, self.registers.rflags).1;
                self.move_on(gpr::RDI, size);
            }
        }
        let compares = matches!(op, StringOp::Cmps | StringOp::Scas);
        Ok(self.count_down(compares))
    }

    /// Whether a repeated instruction has nothing to do: its count is 0.
    pub(super) fn is_exhausted(&self) -> bool {
        self.is_repeated() && self.get(self.string_register(gpr::RCX)) == 0
    }

    /// The element at the source index, for reading.
    pub(super) fn source(&mut self, size: u8) -> Result<Span, Fault> {
        let segment = segment_name(self.instruction.memory_segment()).ok_or(self.unsupported())?;
        let offset = self.get(self.string_register(gpr::RSI));
        self.space.span(self.bus, segment, offset, size, AccessKind::Read)
    }

    /// The element at the destination index, which is always in ES.
    pub(super) fn destination(&mut self, size: u8, kind: AccessKind) -> Result<Span, Fault> {
        let offset = self.get(self.string_register(gpr::RDI));
        self.space.span(self.bus, SegmentName::Es, offset, size, kind)
    }

    /// Moves an index register to the next element.
    pub(super) fn move_on(&mut self, index: usize, size: u8) {
        let register = self.string_register(index);
        let value = self.get(register);
        let down = self.registers.rflags & DF != 0;
        let size = u64::from(size);
        self.set(register, if down { value.wrapping_sub(size) } else { value.wrapping_add(size) });
    }

    /// Counts an element that is done. With `compares`, REPE and REPNE also look at ZF.
    pub(super) fn count_down(&mut self, compares: bool) -> Emulated {
        if !self.is_repeated() {
            return Emulated::Retired;
        }
        let counter = self.string_register(gpr::RCX);
        let left = self.get(counter).wrapping_sub(1);
        self.set(counter, left);
        let equal = self.registers.rflags & ZF != 0;
        let goes_on = !compares || equal == self.instruction.has_repe_prefix();
        if left != 0 && goes_on { Emulated::Iteration } else { Emulated::Retired }
    }

    fn is_repeated(&self) -> bool {
        self.instruction.has_repe_prefix() || self.instruction.has_repne_prefix()
    }

    /// Index or count register, of the size that addresses have.
    fn string_register(&self, index: usize) -> Part {
        let size = match (self.instruction.op0_kind(), self.instruction.op1_kind()) {
            (OpKind::MemoryESDI | OpKind::MemorySegSI, _) | (_, OpKind::MemoryESDI | OpKind::MemorySegSI) => 2,
            (OpKind::MemoryESEDI | OpKind::MemorySegESI, _) | (_, OpKind::MemoryESEDI | OpKind::MemorySegESI) => 4,
            _ => 8,
        };
        Part::low(index, size)
    }
}
