//! Operands of one instruction: general registers, immediates and memory.

use iced_x86::{Instruction, OpKind, Register};

use super::linear::{AddressSpace, SegmentName, Span};
use super::walk::AccessKind;
use super::{Bus, Bytes, Fault, Vectors, alu};
use crate::cpu::Mode;
use crate::cpu::registers::{Registers, Segment, gpr};

/// One instruction in execution. `registers` is a copy that is committed only when all went well.
pub(super) struct Execution<'a> {
    pub(super) registers: Registers,
    pub(super) mode: &'a Mode,
    pub(super) space: AddressSpace<'a>,
    pub(super) instruction: Instruction,
    pub(super) bytes: Bytes,
    pub(super) vectors: &'a mut dyn Vectors,
    pub(super) bus: &'a mut dyn Bus,
}

/// A general register or a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    index: usize,
    /// Lowest bit: 8 for AH, CH, DH and BH.
    shift: u32,
    size: u8,
}

impl Part {
    /// The low `size` bytes of a general register.
    pub(super) const fn low(index: usize, size: u8) -> Self {
        Self { index, shift: 0, size }
    }

    /// All bits of the part.
    pub(super) const fn mask(self) -> u64 {
        alu::mask(self.size)
    }

    fn of(register: Register) -> Option<Self> {
        if !register.is_gpr() {
            return None;
        }
        let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
        let shift = if high { 8 } else { 0 };
        Some(Self { index: register.full_register().number(), shift, size: register.size() as u8 })
    }
}

/// An operand that was resolved and found accessible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Register(Part),
    Memory(Span),
    /// Sign-extended to 64 bits.
    Immediate(u64),
}

impl Execution<'_> {
    pub(super) fn unsupported(&self) -> Fault {
        Fault::Unsupported(self.bytes)
    }

    pub(super) fn get(&self, part: Part) -> u64 {
        self.registers.gpr[part.index] >> part.shift & alu::mask(part.size)
    }

    /// A result of 32 bits clears the upper half, a narrower one leaves the rest. See: APM volume 3, 1.2.3.
    pub(super) fn set(&mut self, part: Part, value: u64) {
        let value = value & alu::mask(part.size);
        let register = &mut self.registers.gpr[part.index];
        *register = match part.size {
            4 | 8 => value,
            size => *register & !(alu::mask(size) << part.shift) | value << part.shift,
        };
    }

    /// Resolves an operand; memory is checked for the kind of access.
    pub(super) fn place(&mut self, operand: u32, kind: AccessKind) -> Result<Place, Fault> {
        self.place_beyond(operand, kind, 0)
    }

    /// Like [`place`](Self::place), `displacement` bytes further on when it is memory.
    pub(super) fn place_beyond(&mut self, operand: u32, kind: AccessKind, displacement: u64) -> Result<Place, Fault> {
        match self.instruction.op_kind(operand) {
            OpKind::Register => {
                let part = Part::of(self.instruction.op_register(operand)).ok_or(self.unsupported())?;
                Ok(Place::Register(part))
            }
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => Ok(Place::Immediate(self.instruction.immediate(operand))),
            OpKind::Memory => {
                let size = self.memory_size()?;
                let offset = self.memory_offset(operand, displacement)?;
                let segment = segment_name(self.instruction.memory_segment()).ok_or(self.unsupported())?;
                Ok(Place::Memory(self.space.span(self.bus, segment, offset, size, kind)?))
            }
            _ => Err(self.unsupported()),
        }
    }

    /// Size in bytes of the memory operand.
    pub(super) fn memory_size(&self) -> Result<u8, Fault> {
        match self.instruction.memory_size().size() {
            size @ (1 | 2 | 4 | 8) => Ok(size as u8),
            _ => Err(self.unsupported()),
        }
    }

    /// Offset in its segment of what lies `displacement` bytes after the start of a memory operand.
    pub(super) fn memory_offset(&self, operand: u32, displacement: u64) -> Result<u64, Fault> {
        Ok(self.offset(operand)?.wrapping_add(displacement) & alu::mask(self.address_size()))
    }

    /// Linear address of a memory operand, limits unchecked.
    pub(super) fn linear_operand(&self, operand: u32) -> Result<u64, Fault> {
        let segment = segment_name(self.instruction.memory_segment()).ok_or(self.unsupported())?;
        let linear = self.space.base(segment).wrapping_add(self.memory_offset(operand, 0)?);
        Ok(self.space.advance(linear, 0))
    }

    /// Offset of a memory operand in its segment.
    pub(super) fn offset(&self, operand: u32) -> Result<u64, Fault> {
        let value = |register: Register, _, _| match Part::of(register) {
            Some(part) => Some(self.get(part)),
            // Segment registers: only the offset is wanted.
            None => Some(0),
        };
        self.instruction.virtual_address(operand, 0, value).ok_or(self.unsupported())
    }

    /// Size in bytes of addresses in an operand of kind [`OpKind::Memory`].
    fn address_size(&self) -> u8 {
        let (base, index) = (self.instruction.memory_base(), self.instruction.memory_index());
        let size = match (base, index) {
            (Register::None, Register::None) => self.instruction.memory_displ_size() as usize,
            (Register::None, index) => index.size(),
            (base, _) => base.size(),
        };
        match size {
            2 => 2,
            4 => 4,
            _ => 8,
        }
    }

    pub(super) fn size_of(&self, place: Place) -> Result<u8, Fault> {
        match place {
            Place::Register(part) => Ok(part.size),
            Place::Memory(span) => Ok(span.size),
            Place::Immediate(_) => Err(self.unsupported()),
        }
    }

    pub(super) fn load(&mut self, place: Place) -> u64 {
        match place {
            Place::Register(part) => self.get(part),
            Place::Memory(span) => span.read(self.bus),
            Place::Immediate(value) => value,
        }
    }

    /// Stores into a register or memory.
    pub(super) fn store(&mut self, place: Place, value: u64) {
        match place {
            Place::Register(part) => self.set(part, value),
            Place::Memory(span) => span.write(self.bus, value),
            Place::Immediate(_) => unreachable!("no instruction has an immediate as its destination"),
        }
    }

    /// The stack pointer, of the size that the stack has.
    pub(super) fn stack_pointer(&self) -> Part {
        let size = match (self.space.long, self.mode.segments.ss.attributes & Segment::DEFAULT_BIG != 0) {
            (true, _) => 8,
            (false, true) => 4,
            (false, false) => 2,
        };
        Part::low(gpr::RSP, size)
    }
}

pub(super) fn segment_name(register: Register) -> Option<SegmentName> {
    Some(match register {
        Register::ES => SegmentName::Es,
        Register::CS => SegmentName::Cs,
        Register::SS => SegmentName::Ss,
        Register::DS => SegmentName::Ds,
        Register::FS => SegmentName::Fs,
        Register::GS => SegmentName::Gs,
        _ => return None,
    })
}
