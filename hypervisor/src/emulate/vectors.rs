//! SSE and AVX moves between a vector register and memory. See: APM volume 4, chapter 2, and volume 5 for MOVD and MOVQ.
//!
//! The CPU has checked that SSE, or AVX, is enabled before the access that brought us here.

use iced_x86::{EncodingKind, Mnemonic, OpKind, Register};

use super::linear::Span;
use super::operand::{Execution, segment_name};
use super::walk::AccessKind::{self, Read, Write};
use super::{Fault, GENERAL_PROTECTION};

/// Pieces of eight bytes that a register moves at most.
const PIECES: usize = 4;

/// Which part of a register is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All 16 or 32 bytes; at an aligned address only, or at any.
    Whole { aligned: bool },
    /// The low 4 or 8 bytes. A load clears the others.
    Low(u8),
    /// The low or the high 8 bytes. A load leaves the others.
    Half { high: bool },
}

fn part(mnemonic: Mnemonic) -> Option<Part> {
    use Mnemonic::*;
    Some(match mnemonic {
        Movups | Movupd | Movdqu | Lddqu | Vmovups | Vmovupd | Vmovdqu | Vlddqu => Part::Whole { aligned: false },
        Movaps | Movapd | Movdqa | Vmovaps | Vmovapd | Vmovdqa => Part::Whole { aligned: true },
        Movntps | Movntpd | Movntdq | Movntdqa => Part::Whole { aligned: true },
        Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa => Part::Whole { aligned: true },
        Movd | Movss | Vmovd | Vmovss => Part::Low(4),
        Movq | Movsd | Vmovq | Vmovsd => Part::Low(8),
        // By AVX with memory and one register: a store. The loads merge with another register.
        Movlps | Movlpd | Vmovlps | Vmovlpd => Part::Half { high: false },
        Movhps | Movhpd | Vmovhps | Vmovhpd => Part::Half { high: true },
        _ => return None,
    })
}

/// A move: the register, what of it, and how it is encoded.
#[derive(Debug, Clone, Copy)]
struct Move {
    index: usize,
    part: Part,
    /// By AVX: a load clears all that it does not fill.
    vex: bool,
    /// Pieces of eight bytes, or one that is smaller.
    pieces: usize,
}

impl Execution<'_> {
    /// Carries out an SSE or AVX move. `None`: it is none.
    pub(super) fn vector_move(&mut self) -> Option<Result<(), Fault>> {
        let operands = [self.instruction.op0_kind(), self.instruction.op1_kind()];
        let registers = [self.instruction.op0_register(), self.instruction.op1_register()];
        let part = part(self.instruction.mnemonic())?;
        let vex = match self.instruction.encoding() {
            EncodingKind::Legacy => false,
            // The bytes that were found may be others than the CPU has executed.
            EncodingKind::VEX if self.vectors.is_wide() => true,
            _ => return None,
        };
        let of = |register: Register| {
            let pieces = match part {
                Part::Whole { .. } if register.is_ymm() => PIECES,
                Part::Whole { .. } => 2,
                Part::Low(_) | Part::Half { .. } => 1,
            };
            let fits = register.is_xmm() || register.is_ymm();
            fits.then(|| Move { index: register.number(), part, vex, pieces })
        };
        match operands {
            [OpKind::Register, OpKind::Memory] => of(registers[0]).map(|load| self.load_vector(load)),
            [OpKind::Memory, OpKind::Register] => of(registers[1]).map(|store| self.store_vector(store)),
            _ => None,
        }
    }

    fn load_vector(&mut self, load: Move) -> Result<(), Fault> {
        let spans = self.vector_spans(1, load, Read)?;
        let mut memory = [0; 2];
        for (index, span) in spans.into_iter().flatten().enumerate() {
            memory[index / 2] |= u128::from(span.read(self.bus)) << (64 * (index % 2));
        }
        if load.vex {
            self.vectors.set_wide(load.index, memory);
            return Ok(());
        }
        let ([memory, _], old) = (memory, self.vectors.get(load.index));
        let new = match load.part {
            Part::Whole { .. } | Part::Low(_) => memory,
            Part::Half { high: false } => old >> 64 << 64 | memory,
            Part::Half { high: true } => old & u128::from(u64::MAX) | memory << 64,
        };
        self.vectors.set(load.index, new);
        Ok(())
    }

    fn store_vector(&mut self, store: Move) -> Result<(), Fault> {
        let spans = self.vector_spans(0, store, Write)?;
        let [mut low, high] = if store.pieces == PIECES {
            self.vectors.get_wide(store.index)
        } else {
            [self.vectors.get(store.index), 0]
        };
        if store.part == (Part::Half { high: true }) {
            low >>= 64;
        }
        for (index, span) in spans.into_iter().flatten().enumerate() {
            let half = if index < 2 { low } else { high };
            span.write(self.bus, (half >> (64 * (index % 2))) as u64);
        }
        Ok(())
    }

    /// Resolves the operand in memory, all of it before any of it is touched.
    fn vector_spans(&mut self, operand: u32, moved: Move, kind: AccessKind) -> Result<[Option<Span>; PIECES], Fault> {
        let size = match moved.part {
            Part::Low(size) => size,
            Part::Whole { .. } | Part::Half { .. } => 8,
        };
        let segment = segment_name(self.instruction.memory_segment()).ok_or(self.unsupported())?;
        let mut spans = [const { None }; PIECES];
        for (index, span) in spans.iter_mut().enumerate().take(moved.pieces) {
            let offset = self.memory_offset(operand, 8 * index as u64)?;
            if index == 0 && moved.part == (Part::Whole { aligned: true }) {
                let alignment = 8 * moved.pieces as u64;
                if !self.space.base(segment).wrapping_add(offset).is_multiple_of(alignment) {
                    return Err(GENERAL_PROTECTION);
                }
            }
            *span = Some(self.space.span(self.bus, segment, offset, size, kind)?);
        }
        Ok(spans)
    }
}
