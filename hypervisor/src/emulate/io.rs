//! String port instructions: INS and OUTS, one element at a time.

use iced_x86::Code;

use super::linear::Span;
use super::operand::Execution;
use super::walk::AccessKind;
use super::{Bus, CpuView, Emulated, Fault};
use crate::cpu::IoExit;
use crate::cpu::registers::{Registers, gpr};

/// A bus that has ports, too.
pub trait PortBus: Bus {
    /// Reads `size` bytes (1, 2 or 4) from a port. Higher bits are ignored.
    fn port_read(&mut self, port: u16, size: u8) -> u32;

    /// Writes the low `size` bytes (1, 2 or 4) of `value` to a port; the other bits are 0.
    fn port_write(&mut self, port: u16, size: u8, value: u32);
}

/// Carries out one element of the INS or OUTS at CS:RIP, which exited as `io`. Prefix, address size and segment are
/// taken from the instruction, since not every CPU reports them; whether the guest may access the port was checked by
/// the CPU.
///
/// # Errors
/// When the access to memory faults, or the instruction is not the one that the exit tells of. The registers are
/// unchanged then, and the port was not accessed.
pub fn string_io(cpu: &mut CpuView<'_>, bus: &mut dyn PortBus, io: &IoExit) -> Result<Emulated, Fault> {
    let (registers, emulated, element) = prepare(cpu, bus, io)?;
    if let Some(span) = element {
        if io.input {
            let value = bus.port_read(io.port, io.size);
            span.write(bus, u64::from(value));
        } else {
            let value = span.read(bus);
            bus.port_write(io.port, io.size, value as u32);
        }
    }
    *cpu.registers = registers;
    Ok(emulated)
}

/// Everything but the transfer: the registers after it, how far it got and the element in memory, if there is one.
fn prepare(
    cpu: &mut CpuView<'_>,
    bus: &mut dyn PortBus,
    io: &IoExit,
) -> Result<(Registers, Emulated, Option<Span>), Fault> {
    let mut execution = Execution::fetch(cpu, bus)?;
    if form(execution.instruction.code()) != Some((io.input, io.size)) {
        return Err(execution.unsupported());
    }
    if execution.is_exhausted() {
        return Ok((execution.after(Emulated::Retired), Emulated::Retired, None));
    }
    let span = if io.input { execution.destination(io.size, AccessKind::Write)? } else { execution.source(io.size)? };
    execution.move_on(if io.input { gpr::RDI } else { gpr::RSI }, io.size);
    let emulated = execution.count_down(false);
    Ok((execution.after(emulated), emulated, Some(span)))
}

/// Direction (whether it is an input) and size of a string port instruction.
fn form(code: Code) -> Option<(bool, u8)> {
    Some(match code {
        Code::Insb_m8_DX => (true, 1),
        Code::Insw_m16_DX => (true, 2),
        Code::Insd_m32_DX => (true, 4),
        Code::Outsb_DX_m8 => (false, 1),
        Code::Outsw_DX_m16 => (false, 2),
        Code::Outsd_DX_m32 => (false, 4),
        _ => return None,
    })
}
