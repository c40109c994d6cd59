//! Local APIC, I/O APIC and the devices behind its pins.

use super::*;
use crate::platform::lapic::DEFAULT_BASE as LAPIC;

const IOAPIC: u64 = crate::platform::ioapic::BASE;

fn enabled() -> Rig {
    let mut rig = Rig::new();
    rig.write(LAPIC + 0xF0, Size::Dword, 0x1FF);
    rig
}

/// A self-IPI by shorthand.
fn ipi(rig: &mut Rig, vector: u64) {
    rig.write(LAPIC + 0x300, Size::Dword, 1 << 18 | vector);
}

fn redirect(rig: &mut Rig, pin: u64, low: u64) {
    rig.write(IOAPIC, Size::Dword, 0x10 + 2 * pin);
    rig.write(IOAPIC + 0x10, Size::Dword, low);
}

#[test]
fn higher_classes_interrupt_lower_ones() {
    let mut rig = enabled();
    ipi(&mut rig, 0x31);
    ipi(&mut rig, 0x3F);
    ipi(&mut rig, 0x52);
    assert_eq!(rig.platform.pending_interrupt(), Some(0x52));
    rig.platform.interrupt_taken(0x52);
    assert_eq!(rig.read(LAPIC + 0xA0, Size::Dword), 0x50);
    assert_eq!(rig.platform.pending_interrupt(), None);
    ipi(&mut rig, 0x61);
    assert_eq!(rig.platform.pending_interrupt(), Some(0x61));
    rig.platform.interrupt_taken(0x61);
    rig.write(LAPIC + 0xB0, Size::Dword, 0);
    assert_eq!(rig.platform.pending_interrupt(), None);
    rig.write(LAPIC + 0xB0, Size::Dword, 0);
    assert_eq!(rig.platform.pending_interrupt(), Some(0x3F));
    rig.platform.set_cr8(3);
    assert_eq!((rig.platform.pending_interrupt(), rig.read(LAPIC + 0x80, Size::Dword)), (None, 0x30));
    rig.platform.set_cr8(2);
    assert_eq!((rig.interrupt(), rig.interrupt(), rig.interrupt()), (Some(0x3F), Some(0x31), None));
}

#[test]
fn a_disabled_apic_accepts_nothing_and_bad_vectors_are_errors() {
    let mut rig = Rig::new();
    ipi(&mut rig, 0x40);
    assert_eq!(rig.platform.pending_interrupt(), None);
    rig.write(LAPIC + 0xF0, Size::Dword, 0x1FF);
    ipi(&mut rig, 5);
    rig.write(LAPIC + 0x400, Size::Dword, 0);
    rig.write(LAPIC + 0x280, Size::Dword, 0);
    assert_eq!(rig.read(LAPIC + 0x280, Size::Dword), 0xA0);
    rig.write(LAPIC + 0x280, Size::Dword, 0);
    assert_eq!(rig.read(LAPIC + 0x280, Size::Dword), 0);
}

#[test]
fn one_shot_timer_counts_and_fires_once() {
    let mut rig = enabled();
    rig.write(LAPIC + 0x320, Size::Dword, 0x40);
    // Divide by 16.
    rig.write(LAPIC + 0x3E0, Size::Dword, 3);
    rig.write(LAPIC + 0x380, Size::Dword, 1000);
    assert_eq!(rig.platform.next_deadline(), Some(GuestTime(16_000)));
    rig.now = GuestTime(8_000);
    assert_eq!(rig.read(LAPIC + 0x390, Size::Dword), 500);
    rig.platform.advance(GuestTime(15_999), &mut rig.memory);
    assert_eq!(rig.platform.pending_interrupt(), None);
    rig.platform.advance(GuestTime(16_000), &mut rig.memory);
    assert_eq!(rig.interrupt(), Some(0x40));
    assert_eq!((rig.platform.next_deadline(), rig.read(LAPIC + 0x390, Size::Dword)), (None, 0));
}

#[test]
fn periodic_timer_keeps_its_phase() {
    let mut rig = enabled();
    rig.write(LAPIC + 0x320, Size::Dword, 0x2_0040);
    rig.write(LAPIC + 0x3E0, Size::Dword, 0xB);
    rig.write(LAPIC + 0x380, Size::Dword, 1_000_000);
    for period in 1..5 {
        assert_eq!(rig.platform.next_deadline(), Some(GuestTime(period * 1_000_000)));
        rig.platform.advance(GuestTime(period * 1_000_000), &mut rig.memory);
        assert_eq!(rig.interrupt(), Some(0x40));
    }
    // Missed periods merge into one interrupt.
    rig.platform.advance(GuestTime(9_500_000), &mut rig.memory);
    assert_eq!((rig.interrupt(), rig.interrupt()), (Some(0x40), None));
    assert_eq!(rig.platform.next_deadline(), Some(GuestTime(10_000_000)));
    // A period that would leave no time to run is stretched.
    rig.write(LAPIC + 0x380, Size::Dword, 1);
    assert_eq!(rig.platform.next_deadline(), Some(GuestTime(10_000)));
}

#[test]
fn tsc_deadline_follows_the_tsc_and_fires_at_once_when_past() {
    let mut rig = enabled();
    rig.now = GuestTime(500);
    rig.wrmsr(0x6E0, 9_000).unwrap();
    assert_eq!(rig.platform.next_deadline(), None, "other timer modes ignore the MSR");
    rig.write(LAPIC + 0x320, Size::Dword, 0x4_0041);
    rig.wrmsr(0x6E0, 9_000).unwrap();
    assert_eq!(rig.platform.next_deadline(), Some(GuestTime(9_000)));
    rig.wrmsr(0x3B, 1_000).unwrap();
    assert_eq!(rig.platform.next_deadline(), Some(GuestTime(8_000)));
    assert_eq!(rig.platform.rdmsr(rig.now, 0x6E0), Ok(9_000));
    rig.wrmsr(0x6E0, 1_500).unwrap();
    assert_eq!(rig.interrupt(), Some(0x41));
    assert_eq!(rig.platform.rdmsr(rig.now, 0x6E0), Ok(0));
    rig.wrmsr(0x6E0, 9_000).unwrap();
    rig.wrmsr(0x6E0, 0).unwrap();
    assert_eq!(rig.platform.next_deadline(), None);
}

#[test]
fn x2apic_mode_moves_the_registers_to_msrs() {
    let mut rig = enabled();
    let base = rig.platform.rdmsr(rig.now, 0x1B).unwrap();
    assert_eq!(base, LAPIC | 0x900);
    assert_eq!(rig.platform.rdmsr(rig.now, 0x802), Err(Gp));
    for illegal in [base & !0x800 | 0x400, base | 1, base | 1 << 60] {
        assert_eq!(rig.wrmsr(0x1B, illegal), Err(Gp));
    }
    rig.wrmsr(0x1B, base | 0x400).unwrap();
    assert_eq!(rig.wrmsr(0x1B, base), Err(Gp), "only by way of disabled");
    assert_eq!(rig.read(LAPIC + 0x20, Size::Dword), 0xFFFF_FFFF);
    assert_eq!(rig.platform.rdmsr(rig.now, 0x80D), Ok(1));
    rig.wrmsr(0x80F, 0x1FF).unwrap();
    rig.wrmsr(0x83F, 0x77).unwrap();
    rig.wrmsr(0x830, 0x78).unwrap();
    assert_eq!(rig.platform.pending_interrupt(), Some(0x78));
    rig.platform.interrupt_taken(0x78);
    rig.wrmsr(0x80B, 0).unwrap();
    assert_eq!(rig.platform.pending_interrupt(), Some(0x77));
    for (msr, value) in [(0x802, 0), (0x80B, 1), (0x808, 0x100), (0x831, 0), (0x840, 0), (0x839, 0), (0x80E, 0)] {
        assert_eq!(rig.wrmsr(msr, value), Err(Gp), "{msr:#x}");
    }
    rig.wrmsr(0x1B, LAPIC | 0x100).unwrap();
    assert_eq!(rig.platform.pending_interrupt(), None);
}

#[test]
fn the_console_interrupts_by_edge() {
    let mut rig = enabled();
    redirect(&mut rig, 4, 0x44);
    rig.outp(0x3FC, Size::Byte, 8);
    rig.outp(0x3F9, Size::Byte, 1);
    rig.platform.console_in(b"ab");
    assert_eq!((rig.interrupt(), rig.interrupt()), (Some(0x44), None));
    assert_eq!(rig.inp(0x3F8, Size::Byte), u32::from(b'a'));
    assert_eq!(rig.interrupt(), None, "the line stayed high");
    assert_eq!(rig.inp(0x3F8, Size::Byte), u32::from(b'b'));
    rig.platform.console_in(b"c");
    assert_eq!(rig.interrupt(), Some(0x44));
}

#[test]
fn a_level_interrupt_comes_back_until_the_line_falls() {
    let mut rig = enabled();
    redirect(&mut rig, 4, 0x8044);
    rig.outp(0x3FC, Size::Byte, 8);
    rig.outp(0x3F9, Size::Byte, 1);
    rig.platform.console_in(b"a");
    let vector = rig.platform.pending_interrupt().unwrap();
    rig.platform.interrupt_taken(vector);
    assert_eq!(rig.platform.pending_interrupt(), None, "remote IRR holds it back");
    // Trigger mode and service in progress are part of the state.
    let bytes = state::save(&mut rig.platform);
    rig.platform = Platform::new(&config()).unwrap();
    state::load(&mut rig.platform, &bytes).unwrap();
    rig.write(LAPIC + 0xB0, Size::Dword, 0);
    assert_eq!(rig.platform.pending_interrupt(), Some(0x44));
    rig.inp(0x3F8, Size::Byte);
    assert_eq!((rig.interrupt(), rig.interrupt()), (Some(0x44), None));
}

#[test]
fn pit_and_rtc_interrupt_through_their_pins() {
    let mut rig = enabled();
    redirect(&mut rig, 2, 0x50);
    redirect(&mut rig, 8, 0x60);
    rig.outp(0x43, Size::Byte, 0x34);
    rig.outp(0x40, Size::Byte, 0);
    rig.outp(0x40, Size::Byte, 0x10);
    rig.outp(0x70, Size::Byte, 0x0B);
    rig.outp(0x71, Size::Byte, 0x12);
    let due = rig.platform.next_deadline().unwrap();
    assert!(due < GuestTime(4_000_000));
    rig.platform.advance(due, &mut rig.memory);
    assert_eq!((rig.interrupt(), rig.interrupt()), (Some(0x50), None));
    rig.platform.advance(GuestTime(1_000_000_000), &mut rig.memory);
    assert_eq!((rig.interrupt(), rig.interrupt(), rig.interrupt()), (Some(0x60), Some(0x50), None));
}
