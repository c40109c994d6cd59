//! Fetching and decoding the guest's instruction.
//!
//! Instructions that exit often are recognised by their bytes; everything else goes through iced-x86, whose tables are
//! built (and allocated) when the first instruction is decoded.

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction, Register};

use super::linear::AddressSpace;
use super::walk::AccessKind;
use super::{Bus, Bytes, Fault, GENERAL_PROTECTION, MAX_INSTRUCTION, UNDEFINED, is_64_bit};
use crate::cpu::Mode;
use crate::cpu::registers::{Registers, Segment};
use crate::memory::PAGE_SIZE;

/// A MOV to or from CR8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cr8Access {
    /// CR8 is written.
    pub write: bool,
    /// Index of the general register in [`Registers::gpr`].
    pub register: usize,
    /// Length of the instruction in bytes.
    pub length: u8,
}

/// Length in bytes of the instruction at CS:RIP.
///
/// # Errors
/// When the instruction cannot be fetched or is none.
pub fn instruction_length(mode: &Mode, registers: &Registers, bus: &mut dyn Bus) -> Result<u8, Fault> {
    let fetch = Fetch::new(mode, registers, bus)?;
    if let Some(length) = fixed_length(fetch.bytes.as_slice()) {
        return Ok(length);
    }
    let (instruction, _) = fetch.decode(bus)?;
    Ok(instruction.len() as u8)
}

/// The MOV CR8 at CS:RIP, which made the CPU exit.
///
/// # Errors
/// When the instruction cannot be fetched or is not a MOV CR8.
pub fn mov_cr8(mode: &Mode, registers: &Registers, bus: &mut dyn Bus) -> Result<Cr8Access, Fault> {
    let (instruction, bytes) = decode(mode, registers, bus)?;
    let (write, control, register) = match instruction.code() {
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => (true, instruction.op0_register(), instruction.op1_register()),
        Code::Mov_r32_cr | Code::Mov_r64_cr => (false, instruction.op1_register(), instruction.op0_register()),
        _ => return Err(Fault::Unsupported(bytes)),
    };
    if control != Register::CR8 {
        return Err(Fault::Unsupported(bytes));
    }
    Ok(Cr8Access { write, register: register.number(), length: instruction.len() as u8 })
}

/// Fetches and decodes the instruction at CS:RIP.
pub(super) fn decode(mode: &Mode, registers: &Registers, bus: &mut dyn Bus) -> Result<(Instruction, Bytes), Fault> {
    Fetch::new(mode, registers, bus)?.decode(bus)
}

/// Lengths of frequent instructions without prefixes and operands.
fn fixed_length(bytes: &[u8]) -> Option<u8> {
    match bytes {
        // HLT.
        [0xF4, ..] => Some(1),
        // CPUID, RDTSC, WRMSR, RDMSR, INVD, WBINVD.
        [0x0F, 0xA2 | 0x31 | 0x30 | 0x32 | 0x08 | 0x09, ..] => Some(2),
        // RDTSCP, VMMCALL, VMCALL, XSETBV.
        [0x0F, 0x01, 0xF9 | 0xD9 | 0xC1 | 0xD1, ..] => Some(3),
        _ => None,
    }
}

/// An instruction being fetched: first what its first page holds of it, the second page only when it is needed.
struct Fetch<'a> {
    space: AddressSpace<'a>,
    mode: &'a Mode,
    rip: u64,
    linear: u64,
    bytes: Bytes,
}

impl<'a> Fetch<'a> {
    /// Fetches from the first page. Limit and type of the code segment were checked by the CPU, which began to execute
    /// this instruction.
    fn new(mode: &'a Mode, registers: &Registers, bus: &mut dyn Bus) -> Result<Self, Fault> {
        let space = AddressSpace::new(mode, registers.rflags);
        let rip = registers.rip;
        let linear = if space.long { rip } else { space.advance(mode.segments.cs.base, rip) };
        if space.long && !super::linear::is_canonical(linear) {
            return Err(GENERAL_PROTECTION);
        }
        let mut fetch = Self { space, mode, rip, linear, bytes: Bytes::default() };
        fetch.page(bus, linear)?;
        Ok(fetch)
    }

    /// Appends what the page of `linear` holds from there on.
    fn page(&mut self, bus: &mut dyn Bus, linear: u64) -> Result<(), Fault> {
        let gpa = self.space.translate(bus, linear, AccessKind::Fetch)?;
        let wanted = (MAX_INSTRUCTION - self.bytes.as_slice().len()) as u64;
        let here = wanted.min(PAGE_SIZE - linear % PAGE_SIZE);
        let bytes = bus.memory().slice(gpa, here).map_err(|_| Fault::FetchOutsideMemory(gpa))?;
        self.bytes.extend(bytes);
        Ok(())
    }

    fn decode(mut self, bus: &mut dyn Bus) -> Result<(Instruction, Bytes), Fault> {
        let mut decoded = self.decode_bytes();
        let have = self.bytes.as_slice().len();
        if decoded == Err(DecoderError::NoMoreBytes) && have < MAX_INSTRUCTION {
            self.page(bus, self.space.advance(self.linear, have as u64))?;
            decoded = self.decode_bytes();
        }
        match decoded {
            Ok(instruction) => {
                self.bytes.truncate(instruction.len());
                Ok((instruction, self.bytes))
            }
            // More than 15 bytes would be #GP, but the CPU refuses such an instruction before anything can exit.
            Err(_) => Err(UNDEFINED),
        }
    }

    fn decode_bytes(&self) -> Result<Instruction, DecoderError> {
        let bitness = if is_64_bit(self.mode) {
            64
        } else if self.mode.segments.cs.attributes & Segment::DEFAULT_BIG != 0 {
            32
        } else {
            16
        };
        let mut decoder = Decoder::with_ip(bitness, self.bytes.as_slice(), self.rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        match decoder.last_error() {
            DecoderError::None => Ok(instruction),
            error => Err(error),
        }
    }
}
