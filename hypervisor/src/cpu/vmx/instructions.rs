//! The VMX instructions, each with its failure. See: SDM volume 3, chapters 31 and 32.
#![allow(unsafe_code)]

use core::arch::asm;
use core::fmt;

use super::fields::{self, Field, Width};

/// How a VMX instruction fails. See: SDM volume 3, 31.2 and 31.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmFail {
    /// There is no current VMCS (VMfailInvalid).
    Invalid,
    /// The VM-instruction error number (VMfailValid).
    Valid(u32),
}

impl fmt::Display for VmFail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid => f.write_str("VMfailInvalid: no current VMCS, or its pointer is bad"),
            Self::Valid(number) => write!(f, "VM-instruction error {number}: {}", meaning(*number)),
        }
    }
}

/// See: SDM volume 3, table 31-1.
const fn meaning(error: u32) -> &'static str {
    match error {
        1 => "VMCALL in VMX root operation",
        2 => "VMCLEAR with invalid physical address",
        3 => "VMCLEAR with VMXON pointer",
        4 => "VMLAUNCH with non-clear VMCS",
        5 => "VMRESUME with non-launched VMCS",
        6 => "VMRESUME after VMXOFF",
        7 => "VM entry with invalid control fields",
        8 => "VM entry with invalid host-state fields",
        9 => "VMPTRLD with invalid physical address",
        10 => "VMPTRLD with VMXON pointer",
        11 => "VMPTRLD with incorrect VMCS revision identifier",
        12 => "VMREAD or VMWRITE of an unsupported field",
        13 => "VMWRITE to a read-only field",
        15 => "VMXON in VMX root operation",
        26 => "VM entry with events blocked by MOV SS",
        28 => "INVEPT or INVVPID with an invalid operand",
        _ => "not described",
    }
}

/// From the flags that an instruction left: CF for VMfailInvalid, ZF for VMfailValid.
fn outcome(carry: bool, zero: bool) -> Result<(), VmFail> {
    match (carry, zero) {
        (false, false) => Ok(()),
        (true, _) => Err(VmFail::Invalid),
        (false, true) => Err(VmFail::Valid(read(fields::INSTRUCTION_ERROR))),
    }
}

/// An instruction with a physical address in memory as its operand.
macro_rules! with_address {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The CPU is in the mode that the instruction needs, and the region is one of ours that stays where it is.
        ///
        /// # Errors
        /// When the CPU refuses.
        pub(super) unsafe fn $name(region: u64) -> Result<(), VmFail> {
            let (carry, zero): (u8, u8);
            // SAFETY: the caller vouches for mode and region.
            unsafe {
                asm!(concat!($instruction, " [{}]"), "setc {}", "setz {}",
                    in(reg) &raw const region, out(reg_byte) carry, out(reg_byte) zero, options(nostack));
            }
            outcome(carry != 0, zero != 0)
        }
    };
}

with_address!(
    /// Enters VMX operation.
    vmxon, "vmxon");
with_address!(
    /// Initialises a VMCS.
    vmclear, "vmclear");
with_address!(
    /// Makes a VMCS the current one.
    vmptrld, "vmptrld");

/// Reads a field of the current VMCS.
///
/// # Panics
/// When the CPU does not have the field, or there is no current VMCS: a bug of ours.
pub(super) fn read<W: Width>(field: Field<W>) -> W {
    let value: u64;
    let (carry, zero): (u8, u8);
    // SAFETY: reading a field has no effect; the virtual CPU exists only in VMX operation.
    unsafe {
        asm!("vmread {}, {}", "setc {}", "setz {}", out(reg) value, in(reg) field.encoding(),
            out(reg_byte) carry, out(reg_byte) zero, options(nomem, nostack));
    }
    assert!(carry == 0 && zero == 0, "VMREAD of field {:#x} failed", field.encoding());
    W::from_register(value)
}

/// Writes a field of the current VMCS.
///
/// # Panics
/// When the CPU does not have the field, or there is no current VMCS: a bug of ours.
pub(super) fn write<W: Width>(field: Field<W>, value: W) {
    let (carry, zero): (u8, u8);
    // SAFETY: what a field means for the host is checked by the CPU at VM entry; whoever writes host state and
    // addresses vouches for them in `VmxVcpu::new`.
    unsafe {
        asm!("vmwrite {}, {}", "setc {}", "setz {}", in(reg) field.encoding(), in(reg) value.to_register(),
            out(reg_byte) carry, out(reg_byte) zero, options(nostack));
    }
    if let Err(failure) = outcome(carry != 0, zero != 0) {
        panic!("VMWRITE of field {:#x}: {failure}", field.encoding());
    }
}

/// What an invalidation covers: one context.
const SINGLE_CONTEXT: u64 = 1;

/// Drops translations that were derived from the extended page tables of `ept_pointer`.
///
/// # Panics
/// When the CPU refuses: a bug of ours.
pub(super) fn invalidate_ept(ept_pointer: u64) {
    let descriptor = [ept_pointer, 0];
    let (carry, zero): (u8, u8);
    // SAFETY: dropping cached translations is always allowed.
    unsafe {
        asm!("invept {}, [{}]", "setc {}", "setz {}", in(reg) SINGLE_CONTEXT, in(reg) descriptor.as_ptr(),
            out(reg_byte) carry, out(reg_byte) zero, options(nostack));
    }
    outcome(carry != 0, zero != 0).unwrap_or_else(|failure| panic!("INVEPT: {failure}"));
}

/// Drops the translations of `vpid`.
///
/// # Panics
/// When the CPU refuses: a bug of ours.
pub(super) fn invalidate_vpid(vpid: u16) {
    let descriptor = [u64::from(vpid), 0];
    let (carry, zero): (u8, u8);
    // SAFETY: dropping cached translations is always allowed.
    unsafe {
        asm!("invvpid {}, [{}]", "setc {}", "setz {}", in(reg) SINGLE_CONTEXT, in(reg) descriptor.as_ptr(),
            out(reg_byte) carry, out(reg_byte) zero, options(nostack));
    }
    outcome(carry != 0, zero != 0).unwrap_or_else(|failure| panic!("INVVPID: {failure}"));
}
