//! Which ACPI tables the firmware made: their names alone. See: ACPI 6.5, 5.2.5–5.2.8.

use alloc::vec::Vec;

use pollux_boot::PhysicalMemory;

/// Where firmware without UEFI leaves the root pointer, at a multiple of 16.
const BIOS_AREA: core::ops::Range<u64> = 0xE_0000..0x10_0000;
const ROOT_POINTER: &[u8; 8] = b"RSD PTR ";
/// Bytes of the root pointer that its first checksum covers.
const ROOT_POINTER_BYTES: usize = 20;
/// Bytes of a root pointer that names an XSDT, too.
const LONG_POINTER_BYTES: usize = 36;
/// Bytes of the header that each table has.
const HEADER_BYTES: usize = 36;
/// A list of tables that is longer is none.
const MAX_LIST_BYTES: usize = 64 << 10;

/// The signature of a table.
pub type Signature = [u8; 4];

/// The signatures of all tables that the root table lists. The root pointer is at `named`, if the boot loader said so, or where
/// a BIOS leaves it.
///
/// # Errors
/// When there is no root pointer, or what it leads to is damaged.
pub fn tables(memory: &dyn PhysicalMemory, named: Option<u64>) -> Result<Vec<Signature>, &'static str> {
    let pointer = match named {
        Some(at) => root_pointer(memory, at),
        None => BIOS_AREA.step_by(16).find_map(|at| root_pointer(memory, at)),
    };
    let List { at, wide } = pointer.ok_or("no ACPI root pointer was found")?;
    const DAMAGED: &str = "the list of ACPI tables cannot be read";
    let header = memory.bytes(at, HEADER_BYTES).ok_or(DAMAGED)?;
    let len = u32_at(header, 4).ok_or(DAMAGED)? as usize;
    if !(HEADER_BYTES..=MAX_LIST_BYTES).contains(&len) {
        return Err(DAMAGED);
    }
    let list = memory.bytes(at, len).filter(|bytes| sum(bytes) == 0).ok_or(DAMAGED)?;
    let entries = list[HEADER_BYTES..].chunks_exact(if wide { 8 } else { 4 });
    let addresses = entries.map(|entry| entry.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)));
    Ok(addresses.filter_map(|address| memory.bytes(address, 4)?.try_into().ok()).collect())
}

/// Where the list of tables is.
struct List {
    at: u64,
    /// Its addresses have 64 bits.
    wide: bool,
}

fn root_pointer(memory: &dyn PhysicalMemory, at: u64) -> Option<List> {
    let short = memory.bytes(at, ROOT_POINTER_BYTES)?;
    if !short.starts_with(ROOT_POINTER) || sum(short) != 0 {
        return None;
    }
    let long = || memory.bytes(at, LONG_POINTER_BYTES).filter(|bytes| short[15] >= 2 && sum(bytes) == 0);
    let wide = long().and_then(|bytes| Some(u64::from_le_bytes(bytes[24..32].try_into().ok()?)));
    match wide {
        Some(at) if at != 0 => Some(List { at, wide: true }),
        _ => Some(List { at: u64::from(u32_at(short, 16)?), wide: false }),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;

    /// Memory that begins at 0xE0000.
    struct Fake(&'static [u8]);

    const START: u64 = 0xE_0000;

    impl PhysicalMemory for Fake {
        fn bytes(&self, address: u64, len: usize) -> Option<&'static [u8]> {
            let start = usize::try_from(address.checked_sub(START)?).ok()?;
            self.0.get(start..start.checked_add(len)?)
        }
    }

    /// Makes the sum of `range` 0 by its byte at `at`.
    fn balance(bytes: &mut [u8], range: core::ops::Range<usize>, at: usize) {
        bytes[at] = 0;
        bytes[at] = sum(&bytes[range]).wrapping_neg();
    }

    /// A machine with the tables FACP and DMAR, whose root pointer is of this revision.
    fn machine(revision: u8) -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        let (pointer, list, width) = (0x20, 0x100, if revision >= 2 { 8 } else { 4 });
        bytes[pointer..pointer + 8].copy_from_slice(ROOT_POINTER);
        bytes[pointer + 15] = revision;
        let place = if revision >= 2 { pointer + 24 } else { pointer + 16 };
        bytes[place..place + 4].copy_from_slice(&(START as u32 + list as u32).to_le_bytes());
        balance(&mut bytes, pointer..pointer + 20, pointer + 8);
        balance(&mut bytes, pointer..pointer + 36, pointer + 32);
        let len = HEADER_BYTES + 2 * width;
        bytes[list + 4..list + 8].copy_from_slice(&(len as u32).to_le_bytes());
        for (index, (signature, at)) in [(b"FACP", 0x200), (b"DMAR", 0x300)].into_iter().enumerate() {
            bytes[at..at + 4].copy_from_slice(signature);
            let entry = list + HEADER_BYTES + index * width;
            bytes[entry..entry + 4].copy_from_slice(&(START as u32 + at as u32).to_le_bytes());
        }
        balance(&mut bytes, list..list + len, list + 9);
        bytes
    }

    fn found(bytes: Vec<u8>, named: Option<u64>) -> Result<Vec<Signature>, &'static str> {
        tables(&Fake(bytes.leak()), named)
    }

    #[test]
    fn tables_of_both_generations_are_found() {
        for revision in [0, 2] {
            for named in [None, Some(START + 0x20)] {
                assert_eq!(found(machine(revision), named), Ok(vec![*b"FACP", *b"DMAR"]), "{revision} {named:?}");
            }
        }
    }

    #[test]
    fn what_is_damaged_is_an_error() {
        assert!(found(vec![0; 0x400], None).is_err());
        assert!(found(machine(2), Some(START + 0x40)).is_err());
        for at in [0x20, 0x21, 0x2F, 0x104, 0x107, 0x124] {
            let mut bytes = machine(0);
            bytes[at] ^= 0x55;
            assert!(found(bytes, None).is_err(), "{at:#x}");
        }
        // A table out of reach is none that we know.
        let mut bytes = machine(0);
        bytes[0x127] = 0xFF;
        balance(&mut bytes, 0x100..0x100 + HEADER_BYTES + 8, 0x109);
        assert_eq!(found(bytes, None), Ok(vec![*b"DMAR"]));
    }
}
