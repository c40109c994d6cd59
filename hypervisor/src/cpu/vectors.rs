//! The guest's vector registers, which stay in the CPU while the hypervisor runs: it uses none itself.
#![allow(unsafe_code)]

use core::arch::asm;

use super::lazy;
use crate::extended::AVX;

/// The guest's vector registers.
pub trait Vectors {
    /// The content of XMM `index`, 0 to 15.
    fn get(&self, index: usize) -> u128;

    /// Replaces it; what is above stays.
    fn set(&mut self, index: usize, value: u128);

    /// Whether AVX is enabled.
    fn is_wide(&self) -> bool;

    /// The content of YMM `index`, 0 to 15, the low half first. AVX is enabled.
    fn get_wide(&self, index: usize) -> [u128; 2];

    /// Replaces it; what is above becomes zero. AVX is enabled.
    fn set_wide(&mut self, index: usize, value: [u128; 2]);
}

/// The registers of the CPU that we run on.
#[derive(Debug, Clone, Copy, Default)]
pub struct LiveVectors;

/// Executes `$before`, the number of a register, `$after` with a pointer to `$memory`.
macro_rules! with_register {
    ($index:expr, $before:literal, $after:literal, $memory:expr, $($number:literal)*) => {
        match $index {
            $(
                // SAFETY: a move between the register and memory of our own of its size; the hypervisor uses no vector
                // registers, and AVX is enabled, says the caller, if the instruction is of AVX.
                $number => unsafe {
                    asm!(concat!($before, $number, $after), in(reg) $memory, options(nostack, preserves_flags));
                },
            )*
            index => panic!("there is no vector register {index}"),
        }
    };
}

impl Vectors for LiveVectors {
    fn get(&self, index: usize) -> u128 {
        let mut value = 0;
        let memory: *mut u128 = &raw mut value;
        with_register!(index, "movdqu [{}], xmm", "", memory, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        value
    }

    fn set(&mut self, index: usize, value: u128) {
        let memory = &raw const value;
        with_register!(index, "movdqu xmm", ", [{}]", memory, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }

    fn is_wide(&self) -> bool {
        lazy::xcr0().is_some_and(|enabled| enabled & AVX != 0)
    }

    fn get_wide(&self, index: usize) -> [u128; 2] {
        let mut value = [0; 2];
        let memory: *mut [u128; 2] = &raw mut value;
        with_register!(index, "vmovdqu [{}], ymm", "", memory, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        value
    }

    fn set_wide(&mut self, index: usize, value: [u128; 2]) {
        let memory = &raw const value;
        with_register!(index, "vmovdqu ymm", ", [{}]", memory, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }
}
