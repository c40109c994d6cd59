//! The guest's vector registers, which stay in the CPU while the hypervisor runs: it uses none itself.
#![allow(unsafe_code)]

use core::arch::asm;

use super::registers::Fxsave;
use crate::emulate::Vectors;

/// Where XMM0 is in the FXSAVE image. See: SDM volume 1, 10.5.1.
const XMM0: usize = 160;

/// The registers of the CPU that we run on.
#[derive(Debug, Clone, Copy, Default)]
pub struct LiveVectors;

fn image() -> Fxsave {
    let mut image = Fxsave([0; 512]);
    // SAFETY: the image is 512 bytes aligned to 64; FXSAVE64 only writes there.
    unsafe { asm!("fxsave64 [{}]", in(reg) image.0.as_mut_ptr(), options(nostack, preserves_flags)) };
    image
}

impl Vectors for LiveVectors {
    fn get(&self, index: usize) -> u128 {
        let at = XMM0 + 16 * index;
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&image().0[at..at + 16]);
        u128::from_le_bytes(bytes)
    }

    fn set(&mut self, index: usize, value: u128) {
        let (mut image, at) = (image(), XMM0 + 16 * index);
        image.0[at..at + 16].copy_from_slice(&value.to_le_bytes());
        // SAFETY: the image is 512 bytes aligned to 64 and came from FXSAVE64 but for a register of any content.
        unsafe { asm!("fxrstor64 [{}]", in(reg) image.0.as_ptr(), options(nostack, preserves_flags)) };
    }
}
