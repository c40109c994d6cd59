//! The guest's vector registers, which stay in the CPU while the hypervisor runs: it uses none itself.

use super::lazy;
use crate::emulate::Vectors;

/// Where XMM0 is in the FXSAVE image. See: SDM volume 1, 10.5.1.
const XMM0: usize = 160;

/// The registers of the CPU that we run on.
#[derive(Debug, Clone, Copy, Default)]
pub struct LiveVectors;

impl Vectors for LiveVectors {
    fn get(&self, index: usize) -> u128 {
        let at = XMM0 + 16 * index;
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&lazy::floating_point().0[at..at + 16]);
        u128::from_le_bytes(bytes)
    }

    fn set(&mut self, index: usize, value: u128) {
        let (mut image, at) = (lazy::floating_point(), XMM0 + 16 * index);
        image.0[at..at + 16].copy_from_slice(&value.to_le_bytes());
        lazy::set_floating_point(&image);
    }
}
