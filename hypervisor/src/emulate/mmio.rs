//! One guest instruction that touched an address outside of RAM, carried out instead of the CPU.

use super::linear::AddressSpace;
use super::operand::Execution;
use super::{Bus, CpuView, Emulated, Fault, decode, next_rip};
use crate::cpu::registers::{RFLAGS_RF, Registers};

/// Carries out the instruction at CS:RIP, or one iteration of it when it is repeated. Operands in RAM go there,
/// everything else to the bus.
///
/// # Errors
/// When the instruction faults or is not implemented; the registers are unchanged then.
pub fn step(cpu: &mut CpuView<'_>, bus: &mut dyn Bus) -> Result<Emulated, Fault> {
    let mut execution = Execution::fetch(cpu, bus)?;
    let emulated = execution.execute()?;
    let after = execution.after(emulated);
    *cpu.registers = after;
    Ok(emulated)
}

impl<'a> Execution<'a> {
    /// Fetches and decodes the instruction at CS:RIP.
    pub(super) fn fetch(cpu: &'a mut CpuView<'_>, bus: &'a mut dyn Bus) -> Result<Self, Fault> {
        let (mode, registers) = (cpu.mode, *cpu.registers);
        let (instruction, bytes) = decode::decode(mode, &registers, bus)?;
        let space = AddressSpace::new(mode, registers.rflags);
        Ok(Self { registers, mode, space, instruction, bytes, vectors: &mut *cpu.vectors, bus })
    }

    /// The registers after the instruction or the iteration.
    pub(super) fn after(&self, emulated: Emulated) -> Registers {
        let mut registers = self.registers;
        if emulated == Emulated::Retired {
            registers.rip = next_rip(self.mode, registers.rip, self.instruction.len());
            registers.rflags &= !RFLAGS_RF;
        }
        registers
    }
}
