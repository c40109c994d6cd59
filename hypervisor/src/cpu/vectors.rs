//! The guest's vector registers, which stay in the CPU while the hypervisor runs: it uses none itself.
#![allow(unsafe_code)]

use core::arch::asm;

use crate::emulate::Vectors;

/// The registers of the CPU that we run on.
#[derive(Debug, Clone, Copy, Default)]
pub struct LiveVectors;

/// Moves 16 bytes between XMM register `$index` and memory; the upper half of the YMM register stays.
macro_rules! move_xmm {
    ($index:expr, $before:literal, $after:literal, $memory:expr, $($number:literal)*) => {
        match $index {
            $(
                // SAFETY: the pointer is to 16 bytes of our own; the hypervisor uses no vector registers.
                $number => unsafe {
                    asm!(concat!("movdqu ", $before, $number, $after), in(reg) $memory, options(nostack, preserves_flags));
                },
            )*
            index => panic!("there is no register xmm{index}"),
        }
    };
}

impl Vectors for LiveVectors {
    fn get(&self, index: usize) -> u128 {
        let mut value = 0u128;
        let memory = &raw mut value;
        move_xmm!(index, "[{}], xmm", "", memory, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        value
    }

    fn set(&mut self, index: usize, value: u128) {
        let memory = &raw const value;
        move_xmm!(index, "xmm", ", [{}]", memory, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }
}
