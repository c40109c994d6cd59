//! Loading a guest image.

use super::*;
use crate::platform::loader::{EntryPoint, GuestImage, LoadError, load};

const SEED: [u8; 32] = [0x5E; 32];

/// A PVH image: one note, one segment of 16 bytes at `paddr` that grows to `memsz`.
fn kernel(paddr: u64, memsz: u64) -> Vec<u8> {
    let mut file = vec![0; 64 + 2 * 56];
    file[..8].copy_from_slice(&[0x7F, b'E', b'L', b'F', 2, 1, 1, 0]);
    for (at, value) in [(16, 2u16), (18, 62), (52, 64), (54, 56), (56, 2)] {
        file[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    file[20] = 1;
    file[32] = 64;
    let mut program = |at: usize, kind: u32, fields: [u64; 6]| {
        file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        for (index, field) in fields.into_iter().enumerate() {
            file[at + 8 + 8 * index..][..8].copy_from_slice(&field.to_le_bytes());
        }
    };
    program(64, 1, [176, paddr, paddr, 16, memsz, 16]);
    program(120, 4, [192, 0, 0, 20, 20, 4]);
    file.extend_from_slice(&[0xAB; 16]);
    for word in [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), paddr as u32] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file
}

fn image<'a>(kernel: &'a [u8], initrd: Option<&'a [u8]>) -> GuestImage<'a> {
    GuestImage { kernel, command_line: "console=ttyS0", initrd }
}

fn u64_at(memory: &GuestMemory, gpa: u64) -> u64 {
    u64::from_le_bytes(memory.read(Gpa(gpa)).unwrap())
}

#[test]
fn kernel_tables_and_ramdisk_are_placed() {
    let mut memory = GuestMemory::for_test(MEMORY as usize);
    memory.write(Gpa(0x20_0010), &[0xFF; 16]).unwrap();
    let (kernel, initrd) = (kernel(0x20_0000, 64), vec![0xCD; 5000]);
    let entry = load(&image(&kernel, Some(&initrd)), &SEED, &mut memory).unwrap();
    let EntryPoint::Pvh { entry: 0x20_0000, start_info } = entry else { panic!("{entry:?}") };
    assert_eq!(memory.slice(Gpa(0x20_0000), 16).unwrap(), [0xAB; 16]);
    assert_eq!(memory.slice(Gpa(0x20_0010), 48).unwrap(), [0; 48]);
    let info = u64::from(start_info);
    assert_eq!(memory.read::<4>(Gpa(info)).unwrap(), 0x336E_C578u32.to_le_bytes());
    let (modules, line, rsdp, map) = (
        u64_at(&memory, info + 16),
        u64_at(&memory, info + 24),
        u64_at(&memory, info + 32),
        u64_at(&memory, info + 40),
    );
    assert_eq!(memory.slice(Gpa(line), 14).unwrap(), b"console=ttyS0\0");
    assert_eq!(memory.slice(Gpa(rsdp), 8).unwrap(), b"RSD PTR ");
    let start = u64_at(&memory, modules);
    assert_eq!((start, u64_at(&memory, modules + 8)), (MEMORY - 8192, 5000));
    assert_eq!(memory.slice(Gpa(start), 5000).unwrap(), initrd);
    // The last piece of the map ends where memory ends.
    assert_eq!((u64_at(&memory, map + 48), u64_at(&memory, map + 56)), (0x10_0000, MEMORY - 0x10_0000));
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut memory = GuestMemory::for_test(MEMORY as usize);
    let mut refused = |image: GuestImage<'_>| load(&image, &SEED, &mut memory).unwrap_err();
    assert!(matches!(refused(image(b"#!/bin/sh", None)), LoadError::UnknownKind));
    assert!(matches!(refused(image(&kernel(0x20_0000, MEMORY), None)), LoadError::Image(_)));
    assert!(matches!(refused(image(&kernel(0x9_FFF8, 16), None)), LoadError::Overlap(0x9_FFF8)));
    let initrd = vec![0; MEMORY as usize - 0x20_0000];
    assert!(matches!(
        refused(image(&kernel(0x20_0000, 16), Some(&initrd))),
        LoadError::InitrdTooLarge { room: 0x1F_F000, .. }
    ));
    let line = "x".repeat(70_000);
    let kernel = kernel(0x20_0000, 16);
    assert!(matches!(
        refused(GuestImage { kernel: &kernel, command_line: &line, initrd: None }),
        LoadError::StartInfo(_)
    ));
}

/// A `vmlinuz` of two sectors of real-mode code and 1 KiB of program that wants to be at `address` with `memory` bytes.
fn vmlinuz(address: u64, memory: u32) -> Vec<u8> {
    let mut file = vec![0; 3 * 512];
    file.resize(file.len() + 1024, 0xEE);
    file[0x1F1] = 2;
    file[0x201] = 0x6A;
    for (at, bytes) in [
        (0x1FE, &0xAA55u16.to_le_bytes()[..]),
        (0x202, b"HdrS"),
        (0x206, &0x20Fu16.to_le_bytes()),
        (0x236, &1u16.to_le_bytes()),
        (0x258, &address.to_le_bytes()),
        (0x260, &memory.to_le_bytes()),
    ] {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
    file
}

/// Where the seed lies in the memory of a guest whose zero page is at `page`.
fn seed_of(memory: &GuestMemory, page: u64) -> &[u8] {
    memory.slice(Gpa(u64_at(memory, page + 0x250) + 16), 32).unwrap()
}

#[test]
fn linux_is_loaded_by_its_own_protocol() {
    let mut memory = GuestMemory::for_test(MEMORY as usize);
    let (file, initrd) = (vmlinuz(0x20_0000, 0x1000), vec![0xCD; 5000]);
    let entry = load(&image(&file, Some(&initrd)), &SEED, &mut memory).unwrap();
    let EntryPoint::Linux { entry: 0x20_0200, parameters } = entry else { panic!("{entry:?}") };
    assert_eq!(memory.slice(Gpa(0x20_0000), 1024).unwrap(), [0xEE; 1024]);
    let page = parameters.zero_page;
    assert_eq!(u64_at(&memory, page + 0x218), (MEMORY - 8192) | 5000 << 32);
    assert_eq!(memory.slice(Gpa(u64_at(&memory, page + 0x228) & 0xFFFF_FFFF), 14).unwrap(), b"console=ttyS0\0");
    assert_eq!(memory.slice(Gpa(u64_at(&memory, page + 0x70)), 8).unwrap(), b"RSD PTR ");
    assert_eq!(seed_of(&memory, page), SEED);

    // The same unpacked: an ELF file that says in a note that it is Linux.
    let mut elf = kernel(0x20_0000, 64);
    elf[24..32].copy_from_slice(&0x20_0004u64.to_le_bytes());
    for word in [6u32, 4, 0x100, u32::from_le_bytes(*b"Linu"), u32::from(b'x'), 0] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf[120 + 32] = 20 + 24;
    elf[120 + 40] = 20 + 24;
    let entry = load(&image(&elf, None), &SEED, &mut memory).unwrap();
    let EntryPoint::Linux { entry: 0x20_0004, parameters } = entry else { panic!("{entry:?}") };
    assert_eq!(seed_of(&memory, parameters.zero_page), SEED);
}

#[test]
fn a_linux_that_does_not_fit_is_refused() {
    let mut memory = GuestMemory::for_test(MEMORY as usize);
    let mut refused = |file: &[u8], command_line| {
        load(&GuestImage { command_line, ..image(file, None) }, &SEED, &mut memory).unwrap_err()
    };
    assert!(matches!(refused(&vmlinuz(0x20_0000, MEMORY as u32), ""), LoadError::Image(_)));
    assert!(matches!(refused(&vmlinuz(0x9_F000, 0x2000), ""), LoadError::Overlap(0x9_F000)));
    assert!(matches!(refused(&vmlinuz(0x20_0000, 64)[..1600], ""), LoadError::BzImage(_)));
    let line = "x".repeat(2048);
    assert!(matches!(refused(&vmlinuz(0x20_0000, 64), &line), LoadError::Parameters(_)));
}
