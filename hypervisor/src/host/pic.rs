//! The two 8259 interrupt controllers: legacy lines (RTC, PCI INTx as the firmware routed them).
//! See: Intel 8259A datasheet.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU16, Ordering};

use x86_64::instructions::port::Port;

/// Vector of IRQ 0; IRQ n arrives at `VECTOR_BASE + n`.
pub const VECTOR_BASE: u8 = 0x20;
/// Number of lines.
pub const LINES: u8 = 16;

const COMMAND: [u16; 2] = [0x20, 0xA0];
const DATA: [u16; 2] = [0x21, 0xA1];

const ICW1_INIT_ICW4: u8 = 0x11;
const ICW4_8086: u8 = 0x01;
const OCW2_EOI: u8 = 0x20;
const OCW3_POLL: u8 = 0x0C;
/// What a poll reads: an interrupt was pending, which is in service now.
const POLL_PENDING: u8 = 1 << 7;
/// Line of the first controller at which the second is attached.
const CASCADE: u8 = 2;

fn write(port: u16, value: u8) {
    // SAFETY: only the 8259 pair answers at the ports of this module.
    unsafe { Port::new(port).write(value) }
}

/// The masks as last written, so that changing one line costs one port write. Lines 0–7 in the low byte.
static MASKS: AtomicU16 = AtomicU16::new(0xFFFF);

/// Initialises both controllers with all lines masked but the cascade.
pub fn start() {
    for (index, wiring) in [(0, 1 << CASCADE), (1, CASCADE)] {
        write(COMMAND[index], ICW1_INIT_ICW4);
        write(DATA[index], VECTOR_BASE + 8 * index as u8);
        write(DATA[index], wiring);
        write(DATA[index], ICW4_8086);
    }
    write(DATA[1], 0xFF);
    set_masks(!(1 << CASCADE), CASCADE);
}

/// Lets interrupts of `line` (0–15) through.
pub fn unmask(line: u8) {
    let masks = MASKS.load(Ordering::Relaxed);
    if masks & (1 << line) != 0 {
        set_masks(masks & !(1 << line), line);
    }
}

/// Holds interrupts of `line` (0–15) back.
pub fn mask(line: u8) {
    set_masks(MASKS.load(Ordering::Relaxed) | 1 << line, line);
}

fn set_masks(masks: u16, changed: u8) {
    MASKS.store(masks, Ordering::Relaxed);
    let [low, high] = masks.to_le_bytes();
    if changed < 8 { write(DATA[0], low) } else { write(DATA[1], high) }
}

/// Ends the interrupt of `line`.
pub fn end_of_interrupt(line: u8) {
    if line >= 8 {
        write(COMMAND[1], OCW2_EOI);
    }
    write(COMMAND[0], OCW2_EOI);
}

/// Takes the interrupt that waits, if one does, in place of the CPU: its line, which is in service now.
pub fn poll() -> Option<u8> {
    let line = poll_one(0)?;
    // The second has its line 7 where nothing waits any more: a spurious interrupt.
    if line == CASCADE { Some(8 + poll_one(1).unwrap_or(7)) } else { Some(line) }
}

fn poll_one(index: usize) -> Option<u8> {
    write(COMMAND[index], OCW3_POLL);
    // SAFETY: only the 8259 pair answers at the ports of this module; reading ends the poll.
    let answer: u8 = unsafe { Port::new(COMMAND[index]).read() };
    (answer & POLL_PENDING != 0).then_some(answer & 7)
}
