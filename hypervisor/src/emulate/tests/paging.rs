//! Page tables: formats, rights, accessed and dirty bits; operands on two pages.

use super::*;
use crate::cpu::registers::{CR4_LA57, gpr};
use crate::emulate::walk::{
    Access, AccessKind, CR0_WP, CR4_PAE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_NXE, Paging, WalkError, translate,
};

const READ: Access = Access { kind: AccessKind::Read, user: false, smap_off: false };
const WRITE: Access = Access { kind: AccessKind::Write, ..READ };
const FETCH: Access = Access { kind: AccessKind::Fetch, ..READ };

const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NO_EXECUTE: u64 = 1 << 63;
const fn as_user(access: Access) -> Access {
    Access { user: true, ..access }
}

/// The error code of the page fault at `gva`.
fn refused(paging: &Paging, memory: &mut GuestMemory, gva: u64, access: Access) -> Option<u32> {
    match translate(paging, memory, gva, access) {
        Ok(_) => None,
        Err(WalkError::PageFault(fault)) => {
            assert_eq!(fault.address, gva);
            Some(fault.error_code)
        }
        Err(WalkError::FiveLevel) => panic!("four levels"),
    }
}

#[test]
fn without_paging_addresses_are_physical() {
    let mut memory = GuestMemory::for_test(4096);
    let found = translate(&Paging::default(), &mut memory, 0x1_FEE0_0010, WRITE);
    assert_eq!(found, Ok(Gpa(0xFEE0_0010)));
}

#[test]
fn two_levels() {
    let mut memory = GuestMemory::for_test(0x4000);
    let mut put = |at: u64, entry: u32| memory.write(Gpa(at), &entry.to_le_bytes()).unwrap();
    put(0x1000 + 4, 0x2000 | 7);
    put(0x1000 + 8, 0x0040_0000 | 0x87);
    // PSE-36: address bit 32; and the reserved bit 21.
    put(0x1000 + 12, 0x0040_0000 | 1 << 13 | 0x87);
    put(0x1000 + 16, 0x0060_0000 | 0x87);
    put(0x2000 + 4 * 3, 0xFEE0_0000 | 7);
    let mut paging = Paging { cr0: CR0_PE | CR0_PG, cr3: 0x1000, cr4: CR4_PSE, efer: 0, beyond: 0 };
    assert_eq!(translate(&paging, &mut memory, 0x0040_3123, READ), Ok(Gpa(0xFEE0_0123)));
    assert_eq!(translate(&paging, &mut memory, 0x0081_2345, READ), Ok(Gpa(0x0041_2345)));
    assert_eq!(translate(&paging, &mut memory, 0x00C1_2345, READ), Ok(Gpa(0x1_0041_2345)));
    assert_eq!(refused(&paging, &mut memory, 0x0100_0000, READ), Some(9));
    assert_eq!(refused(&paging, &mut memory, 0x0140_0000, WRITE), Some(2));
    // Without PSE the bit means nothing, and the entry points to a table: here outside of memory, all ones.
    paging.cr4 = 0;
    assert_eq!(translate(&paging, &mut memory, 0x0080_0123, READ), Ok(Gpa(0xFFFF_F123)));
    assert_eq!(u32::from_le_bytes(memory.read(Gpa(0x200C)).unwrap()), 0xFEE0_0000 | 0x27);
}

#[test]
fn three_levels() {
    let mut memory = GuestMemory::for_test(0x8000);
    let mut put = |at: u64, entry: u64| memory.write(Gpa(at), &entry.to_le_bytes()).unwrap();
    put(0x1020 + 8 * 3, 0x2000 | 1);
    put(0x1020, 0x2000 | 3);
    put(0x2000 + 8 * 0x1F7, 0x3000 | 7);
    put(0x2000 + 8, 0x0060_0000 | 0x87);
    put(0x2000 + 16, 0x0060_0000 | 1 << 55 | 0x87);
    put(0x3000, 0xF_FEE0_0000 | 7 | NO_EXECUTE);
    let mut paging = Paging { cr0: CR0_PE | CR0_PG, cr3: 0x1020, cr4: CR4_PAE, efer: EFER_NXE, beyond: 0 };
    assert_eq!(translate(&paging, &mut memory, 0xFEE0_0010, as_user(WRITE)), Ok(Gpa(0xF_FEE0_0010)));
    assert_eq!(refused(&paging, &mut memory, 0xFEE0_0010, FETCH), Some(0x11));
    assert_eq!(translate(&paging, &mut memory, 0xC020_0010, READ), Ok(Gpa(0x0060_0010)));
    // Reserved: bit 55 of a directory entry, bit 1 of a pointer, NX when it is not enabled.
    assert_eq!(refused(&paging, &mut memory, 0xC040_0000, READ), Some(9));
    assert_eq!(refused(&paging, &mut memory, 0x0020_0000, READ), Some(9));
    assert_eq!(refused(&paging, &mut memory, 0x4000_0000, READ), Some(0));
    paging.efer = 0;
    assert_eq!(refused(&paging, &mut memory, 0xFEE0_0010, WRITE), Some(0xB));
    // The pointer has no accessed bit.
    assert_eq!(u64::from_le_bytes(memory.read(Gpa(0x1038)).unwrap()), 0x2001);
}

fn four_levels() -> (Rig, Paging) {
    let rig = Rig::long();
    let paging = Paging::from(&rig.mode);
    (rig, paging)
}

#[test]
fn four_levels_and_large_pages() {
    let (mut rig, mut paging) = four_levels();
    rig.map_small(2, 0xA000 | 7);
    rig.entry(0x2008, 0x8000_0000 | 0x1000 | 0x87);
    rig.entry(0x2010, 0x8000_0000 | 0x2000 | 0x87);
    rig.entry(0x1008, 0x2000 | 0x87);
    let memory = &mut rig.bus.memory;
    assert_eq!(translate(&paging, memory, SMALL + 0x2345, READ), Ok(Gpa(0xA345)));
    assert_eq!(translate(&paging, memory, 0x12_3456, READ), Ok(Gpa(0x12_3456)));
    // A page of 1 GiB; bit 12 is its PAT bit, bit 13 is reserved; so is bit 7 of the top level.
    assert_eq!(translate(&paging, memory, 0x4123_4567, READ), Ok(Gpa(0x8123_4567)));
    assert_eq!(refused(&paging, memory, 0x8000_0000, READ), Some(9));
    assert_eq!(refused(&paging, memory, 1 << 39, READ), Some(9));
    assert_eq!(refused(&paging, memory, 0xFFFF_8000_0000_0000, as_user(WRITE)), Some(6));
    paging.cr4 |= CR4_LA57;
    assert_eq!(translate(&paging, memory, 0, READ), Err(WalkError::FiveLevel));
}

#[test]
fn accessed_and_dirty() {
    let (mut rig, paging) = four_levels();
    rig.map_small(0, 0xA000 | 5);
    rig.map_small(1, 0xA000 | 7);
    let with_wp = Paging { cr0: paging.cr0 | CR0_WP, ..paging };
    // A refused access marks the way there, but not the leaf.
    assert_eq!(refused(&with_wp, &mut rig.bus.memory, SMALL, WRITE), Some(3));
    assert_eq!(rig.entry_at(SMALL_TABLE), 0xA000 | 5);
    assert_eq!(rig.entry_at(0x3008), SMALL_TABLE | 7 | ACCESSED);
    assert_eq!(rig.entry_at(0x2000), 0x3000 | 7 | ACCESSED);
    assert_eq!(rig.entry_at(0x1000), 0x2000 | 7 | ACCESSED);
    translate(&paging, &mut rig.bus.memory, SMALL + 0x1000, READ).unwrap();
    assert_eq!(rig.entry_at(SMALL_TABLE + 8), 0xA000 | 7 | ACCESSED);
    translate(&paging, &mut rig.bus.memory, SMALL + 0x1000, WRITE).unwrap();
    assert_eq!(rig.entry_at(SMALL_TABLE + 8), 0xA000 | 7 | ACCESSED | DIRTY);
    translate(&paging, &mut rig.bus.memory, 0x5000, WRITE).unwrap();
    assert_eq!(rig.entry_at(0x3000), 0x87 | ACCESSED | DIRTY);
}

/// Rights of a page, all of whose upper levels allow everything, against each kind of access.
#[test]
fn rights() {
    const KERNEL_RO: u64 = 1;
    const KERNEL: u64 = 3;
    const USER_RO: u64 = 5;
    const USER: u64 = 7;
    let u = as_user;
    let unguarded = Access { smap_off: true, ..READ };
    // (entry, CR0.WP, further CR4, access, error code)
    let table = [
        (KERNEL_RO, false, 0, WRITE, None),
        (KERNEL_RO, true, 0, WRITE, Some(3)),
        (KERNEL_RO, true, 0, READ, None),
        (KERNEL, true, 0, WRITE, None),
        (KERNEL, true, 0, u(READ), Some(5)),
        (KERNEL, true, 0, u(FETCH), Some(0x15)),
        (USER_RO, false, 0, u(WRITE), Some(7)),
        (USER_RO, false, 0, WRITE, None),
        (USER_RO, true, 0, u(READ), None),
        (USER, true, 0, u(WRITE), None),
        (USER, true, 0, FETCH, None),
        (USER, true, CR4_SMEP, FETCH, Some(0x11)),
        (USER, true, CR4_SMEP, u(FETCH), None),
        (KERNEL, true, CR4_SMEP, FETCH, None),
        (USER, true, CR4_SMAP, READ, Some(1)),
        (USER, true, CR4_SMAP, WRITE, Some(3)),
        (USER, true, CR4_SMAP, unguarded, None),
        (USER, true, CR4_SMAP, FETCH, None),
        (USER, true, CR4_SMAP, u(READ), None),
        (USER | NO_EXECUTE, true, 0, u(FETCH), Some(0x15)),
        (USER | NO_EXECUTE, true, 0, u(READ), None),
    ];
    for (entry, write_protect, cr4, access, want) in table {
        let (mut rig, mut paging) = four_levels();
        rig.map_small(0, 0xA000 | entry);
        paging.cr0 |= if write_protect { CR0_WP } else { 0 };
        paging.cr4 |= cr4;
        let got = refused(&paging, &mut rig.bus.memory, SMALL, access);
        assert_eq!(got, want, "entry {entry:#x} wp {write_protect} cr4 {cr4:#x} {access:?}");
        // The same rights on an upper level restrict just as well.
        rig.map_small(0, 0xA000 | 7);
        rig.entry(0x3008, SMALL_TABLE | entry);
        assert_eq!(refused(&paging, &mut rig.bus.memory, SMALL, access), want);
    }
    // Without NX and SMEP a fetch is not told from a read.
    let (mut rig, mut paging) = four_levels();
    paging.efer &= !EFER_NXE;
    assert_eq!(refused(&paging, &mut rig.bus.memory, SMALL, u(FETCH)), Some(4));
}

#[test]
fn user_rights_come_from_the_privilege_level() {
    let mut rig = Rig::long();
    rig.map_small(0, 0xA000 | 3);
    rig.registers.gpr[gpr::RBX] = SMALL;
    assert_eq!(rig.run(&[0x89, 0x03]), Ok(Emulated::Retired));
    rig.drop_to_user();
    assert_eq!(page_fault(rig.run(&[0x89, 0x03])), (7, SMALL));
    // Virtual-8086 mode has user rights whatever the stack segment says: mov [bx], ax at the first address.
    let mut rig = Rig::real();
    rig.entry(0x1000, 0x2000 | 7);
    rig.put(0x2000 + 4 * 8, &[0x07, 0x80, 0, 0]);
    rig.put(0x2000 + 4 * 9, &[0x03, 0x90, 0, 0]);
    (rig.mode.cr0, rig.mode.cr3) = (CR0_PE | CR0_PG, 0x1000);
    rig.registers.rflags |= 1 << 17;
    rig.registers.gpr[gpr::RBX] = DATA;
    assert_eq!(page_fault(rig.run(&[0x89, 0x07])), (7, DATA));
    // SMAP does not apply while RFLAGS.AC is set.
    let mut rig = Rig::long();
    rig.mode.cr4 |= CR4_SMAP;
    rig.registers.gpr[gpr::RBX] = DATA;
    assert_eq!(page_fault(rig.run(&[0x89, 0x03])), (3, DATA));
    rig.registers.rflags |= 1 << 18;
    assert_eq!(rig.run(&[0x89, 0x03]), Ok(Emulated::Retired));
}

#[test]
fn operands_on_two_pages() {
    // The second page is absent: nothing is written to the first.
    let mut rig = Rig::long();
    rig.map_small(0, 0xA000 | 7);
    rig.registers.gpr[gpr::RBX] = SMALL + 0xFFD;
    rig.registers.gpr[gpr::RAX] = 0x1122_3344_5566_7788;
    assert_eq!(page_fault(rig.run(&[0x48, 0x89, 0x03])), (2, SMALL + 0x1000));
    assert_eq!(rig.at(0xAFFD, 3), 0);
    // Both pages are RAM.
    rig.map_small(1, 0xC000 | 7);
    rig.run(&[0x48, 0x89, 0x03]).unwrap();
    assert_eq!(rig.at(0xAFFD, 3), 0x66_7788);
    assert_eq!(rig.at(0xC000, 5), 0x11_2233_4455);
    rig.run(&[0x48, 0x8B, 0x0B]).unwrap();
    assert_eq!(rig.registers.gpr[gpr::RCX], 0x1122_3344_5566_7788);
    // The second is a device: it sees its five bytes in aligned pieces.
    rig.map_small(1, DEVICE | 7);
    rig.run(&[0x48, 0x89, 0x03]).unwrap();
    assert_eq!(rig.bus.writes, [(DEVICE, 4, 0x2233_4455), (DEVICE + 4, 1, 0x11)]);
    rig.run(&[0x48, 0x8B, 0x0B]).unwrap();
    assert_eq!(rig.registers.gpr[gpr::RCX], device_value(DEVICE, 5) << 24 | 0x66_7788);
    // A read-modify-write needs the right to write before anything is read.
    rig.map_small(1, DEVICE | 5);
    rig.mode.cr0 |= CR0_WP;
    rig.bus.reads.clear();
    rig.registers.gpr[gpr::RBX] = SMALL + 0x1000;
    assert_eq!(page_fault(rig.run(&[0xFF, 0x03])), (3, SMALL + 0x1000));
    assert!(rig.bus.reads.is_empty());
}
