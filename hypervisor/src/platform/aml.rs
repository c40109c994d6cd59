//! Just enough AML to describe this machine.
//! See: ACPI 6.4, chapter 20 "ACPI Machine Language", and 6.4 "Resource Data Types".

use alloc::vec::Vec;

/// Prefixes `body` with `op` and its package length, which counts its own bytes.
fn package_length(op: &[u8], body: &[u8]) -> Vec<u8> {
    let mut out = op.to_vec();
    let len = body.len();
    if len + 1 < 0x40 {
        out.push(len as u8 + 1);
    } else {
        // Two bytes: up to 4095, far more than any table here.
        let total = len + 2;
        debug_assert!(total < 0x1000);
        out.extend_from_slice(&[0x40 | (total & 0xF) as u8, (total >> 4) as u8]);
    }
    out.extend_from_slice(body);
    out
}

/// An integer constant.
pub(super) fn integer(value: u32) -> Vec<u8> {
    match value {
        0 | 1 => [value as u8].to_vec(),
        2..=0xFF => [0x0A, value as u8].to_vec(),
        0x100..=0xFFFF => [&[0x0B][..], &(value as u16).to_le_bytes()].concat(),
        _ => [&[0x0C][..], &value.to_le_bytes()].concat(),
    }
}

/// A compressed EISA ID such as `PNP0A03`, given as the product number.
pub(super) fn pnp(product: u16) -> Vec<u8> {
    let [high, low] = product.to_be_bytes();
    [0x0C, 0x41, 0xD0, high, low].to_vec()
}

/// `Name (path, value)`. The path is already encoded: four characters, perhaps after a backslash.
pub(super) fn name(path: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0x08], path, value].concat()
}

/// `Scope (path) { body }`.
pub(super) fn scope(path: &[u8], body: &[Vec<u8>]) -> Vec<u8> {
    package_length(&[0x10], &[path, &body.concat()].concat())
}

/// `Device (path) { body }`.
pub(super) fn device(path: &[u8], body: &[Vec<u8>]) -> Vec<u8> {
    package_length(&[0x5B, 0x82], &[path, &body.concat()].concat())
}

/// `Package () { elements }`.
pub(super) fn package(elements: &[Vec<u8>]) -> Vec<u8> {
    package_length(&[0x12], &[&[elements.len() as u8][..], &elements.concat()].concat())
}

/// `ResourceTemplate () { resources }`: a buffer with an end tag.
pub(super) fn resources(resources: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = resources.concat();
    // A checksum of zero means: not checked.
    bytes.extend_from_slice(&[0x79, 0]);
    package_length(&[0x11], &[integer(bytes.len() as u32), bytes].concat())
}

/// `IO (Decode16, port, port, 1, len)`.
pub(super) fn io(port: u16, len: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    [0x47, 1, low, high, low, high, 1, len].to_vec()
}

/// `IRQNoFlags () { irq }`: edge, active high, exclusive.
pub(super) fn irq(irq: u8) -> Vec<u8> {
    let [low, high] = (1u16 << irq).to_le_bytes();
    [0x22, low, high].to_vec()
}

/// What an address space descriptor hands out.
#[derive(Clone, Copy)]
pub(super) enum Space {
    Memory,
    Io,
    Bus,
}

impl Space {
    /// Resource type, general flags (fixed at both ends, producer), type-specific flags.
    const fn header(self) -> [u8; 3] {
        match self {
            Self::Memory => [0, 0x0C, 0x01],
            Self::Io => [1, 0x0C, 0x03],
            Self::Bus => [2, 0x0C, 0x00],
        }
    }
}

/// A 16-bit address space descriptor for `min` to `max`.
pub(super) fn word_space(space: Space, min: u16, max: u16) -> Vec<u8> {
    let fields = [0, min, max, 0, max - min + 1].map(u16::to_le_bytes);
    [&[0x88, 13, 0][..], &space.header(), fields.as_flattened()].concat()
}

/// A 32-bit address space descriptor for `min` to `max`.
pub(super) fn dword_space(space: Space, min: u32, max: u32) -> Vec<u8> {
    let fields = [0, min, max, 0, max - min + 1].map(u32::to_le_bytes);
    [&[0x87, 23, 0][..], &space.header(), fields.as_flattened()].concat()
}
