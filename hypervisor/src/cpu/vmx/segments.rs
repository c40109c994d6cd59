//! Segment registers between our form and the VMCS's.

use super::fields::SegmentFields;
use super::instructions::{read, write};
use crate::cpu::registers::Segment;

/// Access rights: the register holds no segment.
const UNUSABLE: u32 = 1 << 16;
const GRANULARITY: u16 = 1 << 11;
/// Attribute bits of the descriptor privilege level.
const DPL: u16 = 3 << 5;

/// Access rights as the VMCS has them. See: SDM volume 3, table 25-2.
fn access_rights(segment: &Segment) -> u32 {
    let attributes = match granularity(segment.limit) {
        Some(true) => segment.attributes | GRANULARITY,
        Some(false) => segment.attributes & !GRANULARITY,
        None => segment.attributes,
    };
    let rights = u32::from(attributes & 0xFF) | u32::from(attributes & 0xF00) << 4;
    if segment.attributes & Segment::PRESENT == 0 { rights | UNUSABLE } else { rights }
}

/// What VM entry demands of the granularity bit for `limit`, if anything. See: SDM volume 3, 27.3.1.2.
fn granularity(limit: u32) -> Option<bool> {
    if limit & 0xFFF0_0000 != 0 {
        Some(true)
    } else if limit & 0xFFF != 0xFFF {
        Some(false)
    } else {
        None
    }
}

/// Our attributes. Of an unusable segment only the privilege level means anything.
fn attributes(access_rights: u32) -> u16 {
    if access_rights & UNUSABLE != 0 {
        access_rights as u16 & DPL
    } else {
        (access_rights & 0xFF) as u16 | (access_rights >> 4 & 0xF00) as u16
    }
}

/// Reads a segment register of the guest.
pub(super) fn get(fields: SegmentFields) -> Segment {
    let rights = read(fields.access_rights);
    Segment {
        selector: read(fields.selector),
        attributes: attributes(rights),
        // Undefined where there is no segment; bases of FS and GS hold in 64-bit mode all the same.
        limit: if rights & UNUSABLE == 0 { read(fields.limit) } else { 0 },
        base: read(fields.base),
    }
}

/// Writes a segment register of the guest.
pub(super) fn set(fields: SegmentFields, segment: &Segment) {
    write(fields.selector, segment.selector);
    write(fields.access_rights, access_rights(segment));
    write(fields.limit, segment.limit);
    write(fields.base, segment.base);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_the_way_there_and_back() {
        let flat = Segment::flat(0x8, 0xC9B);
        assert_eq!(access_rights(&flat), 0xC09B);
        assert_eq!(attributes(access_rights(&flat)), 0xC9B);
        let real = Segment::real(0, 0x93);
        assert_eq!(attributes(access_rights(&real)), 0x93);
        let null = Segment { attributes: 0x60, ..Segment::default() };
        assert_eq!(access_rights(&null), UNUSABLE | 0x60);
        assert_eq!(attributes(0x1_C0F3), 0x60);
    }

    #[test]
    fn granularity_follows_the_limit() {
        // A real-mode segment that reaches 4 GiB, as after a visit to protected mode.
        let unreal = Segment { limit: u32::MAX, ..Segment::real(0, 0x93) };
        assert_eq!(access_rights(&unreal), 0x8093);
        let small = Segment { limit: 0x67, attributes: 0x88B, ..Segment::default() };
        assert_eq!(access_rights(&small), 0x8B);
    }
}
