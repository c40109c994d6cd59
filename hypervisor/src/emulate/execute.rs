//! The instructions that access memory, other than the string instructions. See: APM volume 3, chapter 3.
//!
//! Every operand is resolved before the first access is made, so that a fault leaves no trace.

use iced_x86::{ConditionCode, Mnemonic, OpKind};

use super::alu::{self, Binary, BitOp, CF, OF, PF, SF, Unary, ZF};
use super::linear::{SegmentName, Span};
use super::operand::{Execution, Part, Place};
use super::walk::AccessKind::{Read, Write};
use super::{Emulated, Fault};
use crate::cpu::registers::gpr;

impl Execution<'_> {
    /// Carries out the instruction but for RIP.
    pub(super) fn execute(&mut self) -> Result<Emulated, Fault> {
        if let Some(form) = super::strings::form(self.instruction.code()) {
            return self.string(form);
        }
        match self.vector_move() {
            Some(done) => done?,
            None => self.execute_simple()?,
        }
        Ok(Emulated::Retired)
    }

    fn execute_simple(&mut self) -> Result<(), Fault> {
        match self.instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movnti | Mnemonic::Movzx => self.copy(|value, _| value),
            Mnemonic::Movsx | Mnemonic::Movsxd => self.copy(alu::sign_extend),
            Mnemonic::Movbe => self.copy(|value, size| value.swap_bytes() >> (64 - 8 * u32::from(size))),
            Mnemonic::Add => self.binary(Binary::Add),
            Mnemonic::Or => self.binary(Binary::Or),
            Mnemonic::Adc => self.binary(Binary::Adc),
            Mnemonic::Sbb => self.binary(Binary::Sbb),
            Mnemonic::And => self.binary(Binary::And),
            Mnemonic::Sub => self.binary(Binary::Sub),
            Mnemonic::Xor => self.binary(Binary::Xor),
            Mnemonic::Cmp => self.compare(Binary::Sub),
            Mnemonic::Test => self.compare(Binary::And),
            Mnemonic::Inc => self.unary(Unary::Inc),
            Mnemonic::Dec => self.unary(Unary::Dec),
            Mnemonic::Not => self.unary(Unary::Not),
            Mnemonic::Neg => self.unary(Unary::Neg),
            Mnemonic::Bt => self.bit(BitOp::Test),
            Mnemonic::Bts => self.bit(BitOp::Set),
            Mnemonic::Btr => self.bit(BitOp::Reset),
            Mnemonic::Btc => self.bit(BitOp::Complement),
            Mnemonic::Xchg => self.exchange(),
            Mnemonic::Xadd => self.exchange_add(),
            Mnemonic::Cmpxchg => self.compare_exchange(),
            Mnemonic::Cmpxchg8b => self.compare_exchange_8_bytes(),
            Mnemonic::Push => self.push(),
            Mnemonic::Pop => self.pop(),
            _ => self.conditional(),
        }
    }

    /// First operand := f(second operand, its size).
    fn copy(&mut self, f: impl FnOnce(u64, u8) -> u64) -> Result<(), Fault> {
        let source = self.place(1, Read)?;
        let destination = self.place(0, Write)?;
        // An immediate is already extended to the size of the destination.
        let size = self.size_of(source).or_else(|_| self.size_of(destination))?;
        let value = self.load(source);
        self.store(destination, f(value, size));
        Ok(())
    }

    fn binary(&mut self, op: Binary) -> Result<(), Fault> {
        let source = self.place(1, Read)?;
        let destination = self.place(0, Write)?;
        let result = self.apply(op, destination, source)?;
        self.store(destination, result);
        Ok(())
    }

    /// CMP and TEST: only the flags.
    fn compare(&mut self, op: Binary) -> Result<(), Fault> {
        let source = self.place(1, Read)?;
        let destination = self.place(0, Read)?;
        self.apply(op, destination, source)?;
        Ok(())
    }

    /// Reads both places and sets the flags.
    fn apply(&mut self, op: Binary, a: Place, b: Place) -> Result<u64, Fault> {
        let size = self.size_of(a)?;
        let (a, b) = (self.load(a), self.load(b) & alu::mask(size));
        let (result, rflags) = op.apply(size, a, b, self.registers.rflags);
        self.registers.rflags = rflags;
        Ok(result)
    }

    fn unary(&mut self, op: Unary) -> Result<(), Fault> {
        let place = self.place(0, Write)?;
        let size = self.size_of(place)?;
        let value = self.load(place);
        let (result, rflags) = op.apply(size, value, self.registers.rflags);
        self.registers.rflags = rflags;
        self.store(place, result);
        Ok(())
    }

    /// With the bit's number in a register, a memory operand is a string of bits in both directions; as an immediate
    /// the number is taken modulo the operand's width.
    fn bit(&mut self, op: BitOp) -> Result<(), Fault> {
        let index = self.place(1, Read)?;
        let in_memory = self.instruction.op0_kind() == OpKind::Memory;
        let size = if in_memory { self.memory_size()? } else { self.instruction.op0_register().size() as u8 };
        let width = 8 * u32::from(size);
        let number = alu::sign_extend(self.load(index) & alu::mask(size), size);
        let displacement = match index {
            Place::Register(_) if in_memory => (number as i64).div_euclid(i64::from(width)) * i64::from(size),
            _ => 0,
        };
        let kind = if op == BitOp::Test { Read } else { Write };
        let place = self.place_beyond(0, kind, displacement as u64)?;
        let value = self.load(place);
        let (result, rflags) = op.apply(value, number as u32 & (width - 1), self.registers.rflags);
        self.registers.rflags = rflags;
        if op != BitOp::Test {
            self.store(place, result);
        }
        Ok(())
    }

    fn exchange(&mut self) -> Result<(), Fault> {
        let (first, second) = (self.place(0, Write)?, self.place(1, Write)?);
        let (a, b) = (self.load(first), self.load(second));
        self.store(first, b);
        self.store(second, a);
        Ok(())
    }

    fn exchange_add(&mut self) -> Result<(), Fault> {
        let (destination, source) = (self.place(0, Write)?, self.place(1, Write)?);
        let size = self.size_of(destination)?;
        let (a, b) = (self.load(destination), self.load(source));
        let (sum, rflags) = Binary::Add.apply(size, a, b, self.registers.rflags);
        self.registers.rflags = rflags;
        self.store(source, a);
        self.store(destination, sum);
        Ok(())
    }

    /// The destination is written in either case, as on the bus of a CPU.
    fn compare_exchange(&mut self) -> Result<(), Fault> {
        let (destination, source) = (self.place(0, Write)?, self.place(1, Read)?);
        let size = self.size_of(destination)?;
        let accumulator = Part::low(gpr::RAX, size);
        let (current, new, expected) = (self.load(destination), self.load(source), self.get(accumulator));
        let (_, rflags) = Binary::Sub.apply(size, expected, current, self.registers.rflags);
        self.registers.rflags = rflags;
        if current == expected {
            self.store(destination, new);
        } else {
            self.store(destination, current);
            self.set(accumulator, current);
        }
        Ok(())
    }

    fn compare_exchange_8_bytes(&mut self) -> Result<(), Fault> {
        const LOW: [Part; 2] = [Part::low(gpr::RAX, 4), Part::low(gpr::RDX, 4)];
        let destination = self.place(0, Write)?;
        let expected = self.get(LOW[1]) << 32 | self.get(LOW[0]);
        let new = self.get(Part::low(gpr::RCX, 4)) << 32 | self.get(Part::low(gpr::RBX, 4));
        let current = self.load(destination);
        if current == expected {
            self.registers.rflags |= ZF;
            self.store(destination, new);
        } else {
            self.registers.rflags &= !ZF;
            self.store(destination, current);
            self.set(LOW[0], current);
            self.set(LOW[1], current >> 32);
        }
        Ok(())
    }

    fn push(&mut self) -> Result<(), Fault> {
        let size = self.stack_step()?;
        let pointer = self.stack_pointer();
        let source = self.place(0, Read)?;
        let top = self.get(pointer).wrapping_sub(u64::from(size)) & pointer.mask();
        let span = self.stack(top, size, true)?;
        let value = self.load(source);
        span.write(self.bus, value);
        self.set(pointer, top);
        Ok(())
    }

    /// The address of the destination is made with the stack pointer as it is after the POP.
    fn pop(&mut self) -> Result<(), Fault> {
        let size = self.stack_step()?;
        let pointer = self.stack_pointer();
        let top = self.get(pointer);
        let span = self.stack(top, size, false)?;
        self.set(pointer, top.wrapping_add(u64::from(size)));
        let destination = self.place(0, Write)?;
        let value = span.read(self.bus);
        self.store(destination, value);
        Ok(())
    }

    /// By how many bytes PUSH or POP moves the stack pointer.
    pub(super) fn stack_step(&self) -> Result<u8, Fault> {
        match self.instruction.stack_pointer_increment().unsigned_abs() {
            step @ (2 | 4 | 8) => Ok(step as u8),
            _ => Err(self.unsupported()),
        }
    }

    pub(super) fn stack(&mut self, offset: u64, size: u8, write: bool) -> Result<Span, Fault> {
        let kind = if write { Write } else { Read };
        self.space.span(self.bus, SegmentName::Ss, offset, size, kind)
    }

    /// SETcc and CMOVcc, or nothing that is known here.
    fn conditional(&mut self) -> Result<(), Fault> {
        let condition = self.instruction.condition_code();
        let operands = [self.instruction.op0_kind(), self.instruction.op1_kind()];
        match (self.instruction.op_count(), operands) {
            _ if condition == ConditionCode::None => Err(self.unsupported()),
            (1, [OpKind::Register | OpKind::Memory, _]) => {
                let place = self.place(0, Write)?;
                let holds = self.holds(condition);
                self.store(place, u64::from(holds));
                Ok(())
            }
            (2, [OpKind::Register, OpKind::Register | OpKind::Memory]) => {
                let (destination, source) = (self.place(0, Write)?, self.place(1, Read)?);
                // The source is read, and a 32-bit destination extended, whether the condition holds or not.
                let (old, new) = (self.load(destination), self.load(source));
                let holds = self.holds(condition);
                self.store(destination, if holds { new } else { old });
                Ok(())
            }
            _ => Err(self.unsupported()),
        }
    }

    fn holds(&self, condition: ConditionCode) -> bool {
        let rflags = self.registers.rflags;
        let flag = |flag| rflags & flag != 0;
        let less = flag(SF) != flag(OF);
        match condition {
            ConditionCode::None => false,
            ConditionCode::o => flag(OF),
            ConditionCode::no => !flag(OF),
            ConditionCode::b => flag(CF),
            ConditionCode::ae => !flag(CF),
            ConditionCode::e => flag(ZF),
            ConditionCode::ne => !flag(ZF),
            ConditionCode::be => flag(CF) || flag(ZF),
            ConditionCode::a => !flag(CF) && !flag(ZF),
            ConditionCode::s => flag(SF),
            ConditionCode::ns => !flag(SF),
            ConditionCode::p => flag(PF),
            ConditionCode::np => !flag(PF),
            ConditionCode::l => less,
            ConditionCode::ge => !less,
            ConditionCode::le => flag(ZF) || less,
            ConditionCode::g => !flag(ZF) && !less,
        }
    }
}
