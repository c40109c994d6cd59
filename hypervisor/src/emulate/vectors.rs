//! SSE moves between a vector register and memory. See: APM volume 4, chapter 2, and volume 5 for MOVD and MOVQ.
//!
//! The CPU has checked that SSE is enabled before the access that brought us here.

use iced_x86::{Mnemonic, OpKind, Register};

use super::linear::Span;
use super::operand::{Execution, segment_name};
use super::walk::AccessKind::{self, Read, Write};
use super::{Fault, GENERAL_PROTECTION};

/// The guest's vector registers.
pub trait Vectors {
    /// The content of XMM `index`, 0 to 15.
    fn get(&self, index: usize) -> u128;

    /// Replaces it.
    fn set(&mut self, index: usize, value: u128);
}

/// Which part of a register is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All 16 bytes; at an aligned address only, or at any.
    Whole { aligned: bool },
    /// The low 4 or 8 bytes. A load clears the others.
    Low(u8),
    /// The low or the high 8 bytes. A load leaves the others.
    Half { high: bool },
}

fn part(mnemonic: Mnemonic) -> Option<Part> {
    Some(match mnemonic {
        Mnemonic::Movups | Mnemonic::Movupd | Mnemonic::Movdqu | Mnemonic::Lddqu => Part::Whole { aligned: false },
        Mnemonic::Movaps | Mnemonic::Movapd | Mnemonic::Movdqa => Part::Whole { aligned: true },
        Mnemonic::Movntps | Mnemonic::Movntpd | Mnemonic::Movntdq | Mnemonic::Movntdqa => Part::Whole { aligned: true },
        Mnemonic::Movd | Mnemonic::Movss => Part::Low(4),
        Mnemonic::Movq | Mnemonic::Movsd => Part::Low(8),
        Mnemonic::Movlps | Mnemonic::Movlpd => Part::Half { high: false },
        Mnemonic::Movhps | Mnemonic::Movhpd => Part::Half { high: true },
        _ => return None,
    })
}

impl Execution<'_> {
    /// Carries out an SSE move. `None`: it is none.
    pub(super) fn vector_move(&mut self) -> Option<Result<(), Fault>> {
        let (operands, registers) = (
            [self.instruction.op0_kind(), self.instruction.op1_kind()],
            [self.instruction.op0_register(), self.instruction.op1_register()],
        );
        let part = part(self.instruction.mnemonic())?;
        match operands {
            [OpKind::Register, OpKind::Memory] if registers[0].is_xmm() => Some(self.load_vector(registers[0], part)),
            [OpKind::Memory, OpKind::Register] if registers[1].is_xmm() => Some(self.store_vector(registers[1], part)),
            _ => None,
        }
    }

    fn load_vector(&mut self, register: Register, part: Part) -> Result<(), Fault> {
        let spans = self.vector_spans(1, part, Read)?;
        let mut memory = 0;
        for (index, span) in spans.into_iter().flatten().enumerate() {
            memory |= u128::from(span.read(self.bus)) << (64 * index);
        }
        let old = self.vectors.get(register.number());
        let new = match part {
            Part::Whole { .. } | Part::Low(_) => memory,
            Part::Half { high: false } => old >> 64 << 64 | memory,
            Part::Half { high: true } => old & u128::from(u64::MAX) | memory << 64,
        };
        self.vectors.set(register.number(), new);
        Ok(())
    }

    fn store_vector(&mut self, register: Register, part: Part) -> Result<(), Fault> {
        let spans = self.vector_spans(0, part, Write)?;
        let value = self.vectors.get(register.number());
        let value = if part == (Part::Half { high: true }) { value >> 64 } else { value };
        for (index, span) in spans.into_iter().flatten().enumerate() {
            span.write(self.bus, (value >> (64 * index)) as u64);
        }
        Ok(())
    }

    /// Resolves the operand in memory: one piece, or two for 16 bytes.
    fn vector_spans(&mut self, operand: u32, part: Part, kind: AccessKind) -> Result<[Option<Span>; 2], Fault> {
        let size = match part {
            Part::Low(size) => size,
            Part::Whole { .. } | Part::Half { .. } => 8,
        };
        let segment = segment_name(self.instruction.memory_segment()).ok_or(self.unsupported())?;
        let offset = self.memory_offset(operand, 0)?;
        if part == (Part::Whole { aligned: true }) && !self.space.base(segment).wrapping_add(offset).is_multiple_of(16)
        {
            return Err(GENERAL_PROTECTION);
        }
        let first = self.space.span(self.bus.memory(), segment, offset, size, kind)?;
        let second = if let Part::Whole { .. } = part {
            let offset = self.memory_offset(operand, 8)?;
            Some(self.space.span(self.bus.memory(), segment, offset, size, kind)?)
        } else {
            None
        };
        Ok([Some(first), second])
    }
}
