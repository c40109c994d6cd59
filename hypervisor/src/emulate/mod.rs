//! Instruction decoding and MMIO emulation, the same for every CPU vendor.
//!
//! A CPU without decode assists says only that the guest touched an address. The instruction is then fetched through
//! the guest's own page tables, decoded and carried out here:
//!
//! * [`walk`]: the guest's page tables;
//! * [`decode`]: fetching, lengths, MOV CR8;
//! * [`mmio`]: one instruction with operands in memory;
//! * [`io`]: one element of INS or OUTS;
//! * [`shadow`]: STI, MOV SS and POP SS;
//! * [`control`]: control registers and INVLPG.
//!
//! An instruction takes effect as a whole or faults with nothing changed but accessed and dirty bits. One that is not
//! implemented is reported with its bytes, never guessed at. References are to the AMD64 manual (APM), revision 3.42
//! of volume 2 and 3.36 of volume 3. Not modelled: alignment checks (#AC), protection keys, data breakpoints, shadow stacks.

mod alu;
pub mod control;
pub mod decode;
mod execute;
pub mod io;
mod linear;
pub mod mmio;
mod operand;
pub mod shadow;
mod strings;
mod vectors;
pub mod walk;

#[cfg(test)]
mod tests;

use core::fmt;

pub use crate::cpu::vectors::Vectors;

use self::walk::{Access, Paging, WalkError};
use crate::cpu::registers::{CR0_PE, EFER_LMA, Registers, Segment};
use crate::cpu::{Exception, Mode};
use crate::memory::{Gpa, GuestMemory};

/// RFLAGS.VM: virtual-8086 mode.
const RFLAGS_VM: u64 = 1 << 17;
/// RFLAGS.AC: with CR4.SMAP, supervisor accesses to user pages are allowed.
const RFLAGS_AC: u64 = 1 << 18;

/// What an instruction sees of the CPU.
pub struct CpuView<'a> {
    /// Registers; changed only when the instruction succeeds.
    pub registers: &'a mut Registers,
    /// How instructions and addresses are understood.
    pub mode: &'a Mode,
    /// Vector registers; changed only when the instruction succeeds.
    pub vectors: &'a mut dyn Vectors,
}

/// Where memory operands lead.
pub trait Bus {
    /// Reads `size` bytes (1, 2, 4 or 8, naturally aligned) from an address that is not RAM. Higher bits are ignored.
    fn mmio_read(&mut self, gpa: Gpa, size: u8) -> u64;

    /// Writes the low `size` bytes (1, 2, 4 or 8, naturally aligned) of `value` to an address that is not RAM; the
    /// other bits are 0.
    fn mmio_write(&mut self, gpa: Gpa, size: u8, value: u64);

    /// Guest RAM.
    fn memory(&mut self) -> &mut GuestMemory;

    /// Where an access at a linear address leads, as the CPU would find it: by a walk of the guest's tables.
    ///
    /// # Errors
    /// When it faults.
    fn translate(&mut self, paging: &Paging, linear: u64, access: Access) -> Result<Gpa, WalkError> {
        walk::translate(paging, self.memory(), linear, access)
    }
}

/// How far an emulated instruction got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emulated {
    /// It is complete and RIP is past it.
    Retired,
    /// One iteration of a repeated string instruction was done and more remain; RIP stays, as between two iterations
    /// on hardware.
    Iteration,
}

/// Why an instruction was not carried out. The registers are unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The guest gets this exception.
    Exception(Exception),
    /// The instruction is not implemented here.
    Unsupported(Bytes),
    /// The instruction does not lie in RAM.
    FetchOutsideMemory(Gpa),
    /// The guest uses five-level paging, which is not implemented.
    FiveLevelPaging,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exception(exception) => write!(f, "exception {}", exception.vector),
            Self::Unsupported(bytes) => write!(f, "the instruction {bytes:?} is not implemented"),
            Self::FetchOutsideMemory(gpa) => write!(f, "the instruction at guest-physical {gpa:?} is not in memory"),
            Self::FiveLevelPaging => f.write_str("five-level paging is not implemented"),
        }
    }
}

impl From<walk::WalkError> for Fault {
    fn from(error: walk::WalkError) -> Self {
        match error {
            walk::WalkError::PageFault(fault) => {
                Self::Exception(Exception { vector: 14, error_code: Some(fault.error_code), cr2: Some(fault.address) })
            }
            walk::WalkError::FiveLevel => Self::FiveLevelPaging,
        }
    }
}

/// #GP(0) as a fault.
const GENERAL_PROTECTION: Fault = Fault::Exception(Exception::GENERAL_PROTECTION);
/// #UD as a fault.
const UNDEFINED: Fault = Fault::Exception(Exception::UNDEFINED);
/// #SS(0) as a fault.
const STACK: Fault = Fault::Exception(Exception { vector: 12, error_code: Some(0), cr2: None });

/// Longest instruction, in bytes. See: APM volume 3, 1.1.
pub const MAX_INSTRUCTION: usize = 15;

/// The bytes of an instruction, as far as they were fetched.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Bytes {
    data: [u8; MAX_INSTRUCTION],
    len: u8,
}

impl Bytes {
    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.data[..usize::from(self.len)]
    }

    /// Appends as much of `more` as an instruction can have.
    fn extend(&mut self, more: &[u8]) {
        let start = usize::from(self.len);
        let count = more.len().min(MAX_INSTRUCTION - start);
        self.data[start..start + count].copy_from_slice(&more[..count]);
        self.len += count as u8;
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len as u8);
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.as_slice().iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{byte:02x}")?;
        }
        Ok(())
    }
}

/// Whether code runs in 64-bit mode.
pub fn is_64_bit(mode: &Mode) -> bool {
    mode.efer & EFER_LMA != 0 && mode.segments.cs.attributes & Segment::LONG != 0
}

/// Whether accesses are made with user rights (CPL 3).
fn is_user(mode: &Mode, rflags: u64) -> bool {
    mode.cr0 & CR0_PE != 0 && (rflags & RFLAGS_VM != 0 || mode.segments.ss.dpl() == 3)
}

/// RIP after an instruction; outside of 64-bit mode it has 32 bits.
fn next_rip(mode: &Mode, rip: u64, length: usize) -> u64 {
    let next = rip.wrapping_add(length as u64);
    if is_64_bit(mode) { next } else { next & 0xFFFF_FFFF }
}
