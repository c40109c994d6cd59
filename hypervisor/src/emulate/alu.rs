//! Arithmetic with exact flags, on operands of 1, 2, 4 or 8 bytes. Operands and results have no bits above their size.
//!
//! Flags that the manual leaves undefined are cleared (AF of the logical operations) or kept (all but CF of the bit
//! tests).

/// RFLAGS.CF.
pub(super) const CF: u64 = 1 << 0;
/// RFLAGS.PF.
pub(super) const PF: u64 = 1 << 2;
/// RFLAGS.AF.
pub(super) const AF: u64 = 1 << 4;
/// RFLAGS.ZF.
pub(super) const ZF: u64 = 1 << 6;
/// RFLAGS.SF.
pub(super) const SF: u64 = 1 << 7;
/// RFLAGS.OF.
pub(super) const OF: u64 = 1 << 11;
/// The six of them.
pub(super) const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// An operation on two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
}

/// An operation on one operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unary {
    Inc,
    Dec,
    Not,
    Neg,
}

/// An operation on one bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BitOp {
    Test,
    Set,
    Reset,
    Complement,
}

/// All bits of an operand of `size` bytes.
pub(super) const fn mask(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * size as u32)
}

const fn sign_bit(size: u8) -> u64 {
    1 << (8 * size as u32 - 1)
}

/// `value` of `size` bytes, extended by its sign.
pub(super) const fn sign_extend(value: u64, size: u8) -> u64 {
    let unused = 64 - 8 * size as u32;
    ((value << unused) as i64 >> unused) as u64
}

impl Binary {
    /// The result, and `rflags` with the new flags.
    pub(super) fn apply(self, size: u8, a: u64, b: u64, rflags: u64) -> (u64, u64) {
        let carry = rflags & CF;
        let (result, flags) = match self {
            Self::Add => add(size, a, b, 0),
            Self::Adc => add(size, a, b, carry),
            Self::Sub => subtract(size, a, b, 0),
            Self::Sbb => subtract(size, a, b, carry),
            Self::And => (a & b, 0),
            Self::Or => (a | b, 0),
            Self::Xor => (a ^ b, 0),
        };
        (result, rflags & !STATUS | flags | of_result(size, result))
    }
}

impl Unary {
    /// The result, and `rflags` with the new flags.
    pub(super) fn apply(self, size: u8, a: u64, rflags: u64) -> (u64, u64) {
        match self {
            Self::Inc => {
                let (result, new) = Binary::Add.apply(size, a, 1, rflags);
                (result, new & !CF | rflags & CF)
            }
            Self::Dec => {
                let (result, new) = Binary::Sub.apply(size, a, 1, rflags);
                (result, new & !CF | rflags & CF)
            }
            Self::Not => (!a & mask(size), rflags),
            Self::Neg => Binary::Sub.apply(size, 0, a, rflags),
        }
    }
}

impl BitOp {
    /// The result, and `rflags` with CF showing the bit as it was. `bit` is below the operand's width.
    pub(super) fn apply(self, a: u64, bit: u32, rflags: u64) -> (u64, u64) {
        let bit = 1 << bit;
        let result = match self {
            Self::Test => a,
            Self::Set => a | bit,
            Self::Reset => a & !bit,
            Self::Complement => a ^ bit,
        };
        (result, if a & bit == 0 { rflags & !CF } else { rflags | CF })
    }
}

/// ZF, SF and PF follow from the result.
fn of_result(size: u8, result: u64) -> u64 {
    let zero = if result == 0 { ZF } else { 0 };
    let sign = if result & sign_bit(size) == 0 { 0 } else { SF };
    let parity = if (result as u8).count_ones().is_multiple_of(2) { PF } else { 0 };
    zero | sign | parity
}

fn add(size: u8, a: u64, b: u64, carry: u64) -> (u64, u64) {
    let result = a.wrapping_add(b).wrapping_add(carry) & mask(size);
    let carries = a & b | (a | b) & !result;
    (result, of_carries(size, carries, (a ^ result) & (b ^ result)))
}

fn subtract(size: u8, a: u64, b: u64, borrow: u64) -> (u64, u64) {
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & mask(size);
    let borrows = !a & b | (!a | b) & result;
    (result, of_carries(size, borrows, (a ^ b) & (a ^ result)))
}

/// CF, AF and OF from the carry out of each bit and the signs that do not fit.
fn of_carries(size: u8, carries: u64, overflow: u64) -> u64 {
    let sign = sign_bit(size);
    let carry = if carries & sign == 0 { 0 } else { CF };
    let half = if carries & 8 == 0 { 0 } else { AF };
    let over = if overflow & sign == 0 { 0 } else { OF };
    carry | half | over
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    //! The CPU that the tests run on is the reference.

    use core::arch::asm;

    use proptest::prelude::*;

    use super::*;

    /// Runs `op a, b` natively with the given carry; returns the result and RFLAGS.
    macro_rules! native_binary {
        ($op:literal, $kind:ty, $class:ident, $form:literal, $a:expr, $b:expr, $carry:expr) => {{
            let mut value = $a as $kind;
            let flags: u64;
            // SAFETY: moves only named registers and RFLAGS; the push and pop are balanced and the red zone is not
            // used, since neither nostack nor a memory option is given.
            unsafe {
                asm!(
                    "bt {carry:e}, 0",
                    concat!($op, " {a", $form, "}, {b", $form, "}"),
                    "pushfq",
                    "pop {flags}",
                    a = inout($class) value,
                    b = in($class) $b as $kind,
                    carry = in(reg) $carry as u32,
                    flags = lateout(reg) flags,
                );
            }
            (value as u64, flags & STATUS)
        }};
    }

    macro_rules! native_unary {
        ($op:literal, $kind:ty, $class:ident, $form:literal, $a:expr, $carry:expr) => {{
            let mut value = $a as $kind;
            let flags: u64;
            // SAFETY: as for two operands.
            unsafe {
                asm!(
                    "bt {carry:e}, 0",
                    concat!($op, " {a", $form, "}"),
                    "pushfq",
                    "pop {flags}",
                    a = inout($class) value,
                    carry = in(reg) $carry as u32,
                    flags = lateout(reg) flags,
                );
            }
            (value as u64, flags & STATUS)
        }};
    }

    macro_rules! every_size {
        ($macro:ident, $op:literal, $size:expr, $($operand:expr),+) => {
            match $size {
                1 => $macro!($op, u8, reg_byte, "", $($operand),+),
                2 => $macro!($op, u16, reg, ":x", $($operand),+),
                4 => $macro!($op, u32, reg, ":e", $($operand),+),
                _ => $macro!($op, u64, reg, ":r", $($operand),+),
            }
        };
    }

    fn sizes() -> impl Strategy<Value = u8> {
        prop_oneof![Just(1u8), Just(2), Just(4), Just(8)]
    }

    /// Any value, and often one near a limit.
    fn operand() -> impl Strategy<Value = u64> {
        let edge = prop_oneof![Just(0u64), Just(0x80), Just(0x8000), Just(0x8000_0000), Just(1 << 63)];
        prop_oneof![any::<u64>(), (edge, 0u64..3).prop_map(|(edge, more)| edge.wrapping_add(more).wrapping_sub(1))]
    }

    fn binary_reference(op: Binary, size: u8, a: u64, b: u64, carry: bool) -> (u64, u64) {
        match op {
            Binary::Add => every_size!(native_binary, "add", size, a, b, carry),
            Binary::Or => every_size!(native_binary, "or", size, a, b, carry),
            Binary::Adc => every_size!(native_binary, "adc", size, a, b, carry),
            Binary::Sbb => every_size!(native_binary, "sbb", size, a, b, carry),
            Binary::And => every_size!(native_binary, "and", size, a, b, carry),
            Binary::Sub => every_size!(native_binary, "sub", size, a, b, carry),
            Binary::Xor => every_size!(native_binary, "xor", size, a, b, carry),
        }
    }

    fn unary_reference(op: Unary, size: u8, a: u64, carry: bool) -> (u64, u64) {
        match op {
            Unary::Inc => every_size!(native_unary, "inc", size, a, carry),
            Unary::Dec => every_size!(native_unary, "dec", size, a, carry),
            Unary::Not => every_size!(native_unary, "not", size, a, carry),
            Unary::Neg => every_size!(native_unary, "neg", size, a, carry),
        }
    }

    /// Bit operations exist on 2, 4 and 8 bytes.
    fn bit_reference(op: BitOp, size: u8, a: u64, bit: u64) -> (u64, u64) {
        macro_rules! run {
            ($op:literal) => {
                match size {
                    2 => native_binary!($op, u16, reg, ":x", a, bit, false),
                    4 => native_binary!($op, u32, reg, ":e", a, bit, false),
                    _ => native_binary!($op, u64, reg, ":r", a, bit, false),
                }
            };
        }
        match op {
            BitOp::Test => run!("bt"),
            BitOp::Set => run!("bts"),
            BitOp::Reset => run!("btr"),
            BitOp::Complement => run!("btc"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn two_operands_as_the_cpu_does(size in sizes(), a in operand(), b in operand(), carry: bool) {
            use Binary::{Adc, Add, And, Or, Sbb, Sub, Xor};
            let (a, b) = (a & mask(size), b & mask(size));
            for op in [Add, Or, Adc, Sbb, And, Sub, Xor] {
                let defined = if matches!(op, And | Or | Xor) { STATUS & !AF } else { STATUS };
                let (result, flags) = op.apply(size, a, b, u64::from(carry));
                let (want, want_flags) = binary_reference(op, size, a, b, carry);
                prop_assert_eq!((result, flags & defined), (want, want_flags & defined), "{:?} {} {:#x} {:#x}", op, size, a, b);
            }
        }

        #[test]
        fn one_operand_as_the_cpu_does(size in sizes(), a in operand(), carry: bool) {
            let a = a & mask(size);
            for op in [Unary::Inc, Unary::Dec, Unary::Neg] {
                let got = op.apply(size, a, u64::from(carry));
                prop_assert_eq!(got, unary_reference(op, size, a, carry), "{:?} {} {:#x}", op, size, a);
            }
            // NOT changes no flag.
            prop_assert_eq!(Unary::Not.apply(size, a, 0x8D5), (unary_reference(Unary::Not, size, a, carry).0, 0x8D5));
        }

        #[test]
        fn bits_as_the_cpu_does(size in prop_oneof![Just(2u8), Just(4), Just(8)], a in operand(), bit in 0u32..64) {
            let (a, bit) = (a & mask(size), bit % (8 * u32::from(size)));
            for op in [BitOp::Test, BitOp::Set, BitOp::Reset, BitOp::Complement] {
                let (result, flags) = op.apply(a, bit, 0);
                let (want, want_flags) = bit_reference(op, size, a, u64::from(bit));
                prop_assert_eq!((result, flags & CF), (want, want_flags & CF));
            }
        }
    }
}
