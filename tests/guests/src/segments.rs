//! Segments beyond those that a guest starts with: for code with user rights, for 32-bit code, and a local table.
#![allow(unsafe_code)]

use core::arch::asm;

use x86_64::VirtAddr;
use x86_64::instructions::tables::lgdt;
use x86_64::structures::DescriptorTablePointer;

use crate::tables::Page;

/// Selectors. The first two are those that a guest starts with.
pub const KERNEL_CODE: u16 = 0x08;
/// Data.
pub const KERNEL_DATA: u16 = 0x10;
/// Data with user rights.
pub const USER_DATA: u16 = 0x1B;
/// 64-bit code with user rights.
pub const USER_CODE: u16 = 0x23;
/// 32-bit code.
pub const COMPATIBLE_CODE: u16 = 0x28;
const TASK: u16 = 0x30;
const LOCAL: u16 = 0x40;
/// Bytes of the table.
const SIZE: u16 = 0x50;
/// The first descriptor of the local table, as data with user rights.
pub const LOCAL_DATA: u16 = 0x07;

const DATA: u64 = 0x00CF_9300_0000_FFFF;
const CODE: u64 = 0x00AF_9B00_0000_FFFF;
const CODE_32: u64 = 0x00CF_9B00_0000_FFFF;
const USER: u64 = 3 << 45;
const TSS_TYPE: u64 = 0x89;
const LDT_TYPE: u64 = 0x82;

static GLOBAL: Page = Page::new();
static TSS: Page = Page::new();

/// A descriptor of 16 bytes. See: SDM volume 3, 8.2.3.
fn system(kind: u64, base: u64, limit: u64) -> [u64; 2] {
    let low = limit & 0xFFFF | (base & 0xFF_FFFF) << 16 | kind << 40 | (base >> 24 & 0xFF) << 56;
    [low, base >> 32]
}

/// Loads a table with all of them. `stack` is where interrupts of code with user rights begin theirs, `local` where the
/// local table is. Returns the page of the table.
pub fn load(stack: u64, local: u64) -> u64 {
    // RSP0 is at byte 4.
    TSS.entry(0).set(stack << 32);
    TSS.entry(1).set(stack >> 32);
    let [task, local] = [system(TSS_TYPE, TSS.address(), 103), system(LDT_TYPE, local, 7)];
    let table = [0, CODE, DATA, DATA | USER, CODE | USER, CODE_32, task[0], task[1], local[0], local[1]];
    for (index, descriptor) in (0..).zip(table) {
        GLOBAL.entry(index).set(descriptor);
    }
    load_at(GLOBAL.address());
    // SAFETY: the descriptors are there; nothing uses the local table yet.
    unsafe { asm!("ltr {0:x}", "lldt {1:x}", in(reg) TASK, in(reg) LOCAL, options(nostack)) };
    GLOBAL.address()
}

/// The table is seen at `base`.
pub fn load_at(base: u64) {
    // SAFETY: the caller has mapped the table's page there; the selectors in use mean what they meant.
    unsafe { lgdt(&DescriptorTablePointer { limit: SIZE - 1, base: VirtAddr::new(base) }) };
}

/// What the local table holds: data with user rights.
pub const LOCAL_TABLE: u64 = DATA | USER;
