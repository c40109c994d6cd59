//! Instructions that read or write CR0, CR3 and CR4, and INVLPG, for a guest whose paging is tracked.
//!
//! That the guest may execute them was checked by the CPU before it exited. Where it exits for one control register, some
//! exit for all of them (QEMU 10 does for reads), so that CR2 and CR8 are dealt with, too.

use iced_x86::{Code, Register};

use super::operand::Execution;
use super::walk::AccessKind;
use super::{Bus, CpuView, Emulated, Fault};
use crate::cpu::registers::{CR0_PE, Registers};

/// CR0.TS.
const CR0_TS: u64 = 1 << 3;
/// What LMSW writes.
const MACHINE_STATUS: u64 = 0xF;

/// What the instruction is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// A control register was read: that is all.
    Read,
    /// This control register shall have this value.
    Write {
        /// 0, 2, 3 or 4.
        register: usize,
        /// Unchecked.
        value: u64,
    },
    /// It is a MOV of CR8, and nothing was carried out.
    Priority,
    /// The translation of this linear address shall be forgotten.
    Invalidate {
        /// Unchecked.
        linear: u64,
    },
}

/// Carries out the instruction at CS:RIP up to its effect on control registers; `cr2` is what it finds in that. Returns the
/// effect, and the registers behind the instruction.
///
/// # Errors
/// When it faults, or is another one.
pub fn step(cpu: &mut CpuView<'_>, cr2: u64, bus: &mut dyn Bus) -> Result<(Control, Registers), Fault> {
    let mut execution = Execution::fetch(cpu, bus)?;
    let cr0 = execution.mode.cr0;
    let control = match execution.instruction.code() {
        Code::Mov_cr_r32 | Code::Mov_cr_r64 | Code::Mov_r32_cr | Code::Mov_r64_cr
            if [0, 1].map(|operand| execution.instruction.op_register(operand)).contains(&Register::CR8) =>
        {
            Control::Priority
        }
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => {
            let register = execution.control_register(0)?;
            let source = execution.place(1, AccessKind::Read)?;
            Control::Write { register, value: execution.load(source) }
        }
        Code::Mov_r32_cr | Code::Mov_r64_cr => {
            let register = execution.control_register(1)?;
            let destination = execution.place(0, AccessKind::Write)?;
            let value = match register {
                0 => cr0,
                2 => cr2,
                3 => execution.mode.cr3,
                _ => execution.mode.cr4,
            };
            execution.store(destination, value);
            Control::Read
        }
        Code::Smsw_rm16 | Code::Smsw_r32m16 | Code::Smsw_r64m16 => {
            let destination = execution.place(0, AccessKind::Write)?;
            execution.store(destination, cr0);
            Control::Read
        }
        Code::Lmsw_rm16 | Code::Lmsw_r32m16 | Code::Lmsw_r64m16 => {
            let source = execution.place(0, AccessKind::Read)?;
            let status = execution.load(source) & MACHINE_STATUS;
            // PE can be set, not cleared.
            Control::Write { register: 0, value: cr0 & !(MACHINE_STATUS & !CR0_PE) | status }
        }
        Code::Clts => Control::Write { register: 0, value: cr0 & !CR0_TS },
        Code::Invlpg_m => Control::Invalidate { linear: execution.linear_operand(0)? },
        _ => return Err(execution.unsupported()),
    };
    Ok((control, execution.after(Emulated::Retired)))
}

impl Execution<'_> {
    fn control_register(&self, operand: u32) -> Result<usize, Fault> {
        match self.instruction.op_register(operand) {
            register @ (Register::CR0 | Register::CR2 | Register::CR3 | Register::CR4) => Ok(register.number()),
            _ => Err(self.unsupported()),
        }
    }
}
