//! String instructions, repeated and not, and string port instructions.

use super::*;
use crate::cpu::registers::{RFLAGS_RF, gpr};

const ZF: u64 = 1 << 6;
const DF: u64 = 1 << 10;

/// Steps until the instruction retires; returns the number of steps.
fn finish(rig: &mut Rig) -> u32 {
    let start = rig.registers.rip;
    for steps in 1..100 {
        if rig.step().unwrap() == Emulated::Retired {
            assert_ne!(rig.registers.rip, start);
            return steps;
        }
        assert_eq!(rig.registers.rip, start);
    }
    panic!("it does not end");
}

#[test]
fn movs_one_element_at_a_time_in_both_directions() {
    for (rflags, step) in [(0, 4_i64), (DF, -4)] {
        let mut rig = Rig::long();
        rig.put(CODE, &[0xF3, 0xA5]);
        rig.registers.rflags |= rflags | RFLAGS_RF;
        rig.registers.gpr[gpr::RSI] = DEVICE + 0x100;
        rig.registers.gpr[gpr::RDI] = DATA + 0x100;
        rig.registers.gpr[gpr::RCX] = 3;
        assert_eq!(rig.step(), Ok(Emulated::Iteration));
        assert_eq!(rig.registers.gpr[gpr::RCX], 2);
        assert_eq!(rig.registers.gpr[gpr::RSI], (DEVICE + 0x100).wrapping_add_signed(step));
        assert_eq!(rig.registers.rip, CODE);
        assert_eq!(finish(&mut rig), 2);
        assert_eq!(rig.registers.gpr[gpr::RCX], 0);
        assert_eq!(rig.registers.gpr[gpr::RDI], (DATA + 0x100).wrapping_add_signed(3 * step));
        assert_eq!(rig.registers.rip, CODE + 2);
        assert_eq!(rig.registers.rflags & RFLAGS_RF, 0);
        for element in 0..3 {
            let source = (DEVICE + 0x100).wrapping_add_signed(element * step);
            let copy = rig.at((DATA + 0x100).wrapping_add_signed(element * step), 4);
            assert_eq!(copy, device_value(source, 4));
        }
    }
}

#[test]
fn a_count_of_zero_does_nothing() {
    let mut rig = Rig::long();
    rig.registers.gpr[gpr::RDI] = 0x8000_0000_0000_0000;
    assert_eq!(rig.run(&[0xF3, 0xAB]), Ok(Emulated::Retired));
    assert_eq!(rig.registers.rip, CODE + 2);
    assert!(rig.bus.writes.is_empty());
    // Addresses of 32 bits: the count is ECX.
    rig.registers.gpr[gpr::RCX] = 1 << 32;
    assert_eq!(rig.run(&[0x67, 0xF3, 0xAB]), Ok(Emulated::Retired));
    assert!(rig.bus.writes.is_empty());
}

#[test]
fn stos_and_lods() {
    let mut rig = Rig::flat();
    rig.registers.gpr[gpr::RAX] = 0x1122_3344;
    rig.registers.gpr[gpr::RDI] = DEVICE;
    rig.registers.gpr[gpr::RCX] = 2;
    rig.put(CODE, &[0xF3, 0x66, 0xAB]);
    assert_eq!(finish(&mut rig), 2);
    assert_eq!(rig.bus.writes, [(DEVICE, 2, 0x3344), (DEVICE + 2, 2, 0x3344)]);
    rig.registers.gpr[gpr::RSI] = DEVICE + 4;
    assert_eq!(rig.run(&[0xAC]), Ok(Emulated::Retired));
    assert_eq!(rig.registers.gpr[gpr::RAX], 0x1122_3300 | u64::from(device_byte(DEVICE + 4)));
    assert_eq!(rig.registers.gpr[gpr::RSI], DEVICE + 5);
}

#[test]
fn indices_have_the_size_of_addresses() {
    // Real mode: SI and DI wrap at 16 bits, upper halves stay.
    let mut rig = Rig::real();
    rig.registers.gpr[gpr::RSI] = 0xAAAA_FFFF;
    rig.registers.gpr[gpr::RDI] = 0xBBBB_9000;
    rig.registers.gpr[gpr::RCX] = 0xCCCC_0001;
    rig.put(0xFFFF, &[0x42]);
    assert_eq!(rig.run(&[0xF3, 0xA4]), Ok(Emulated::Retired));
    assert_eq!(rig.at(DATA, 1), 0x42);
    assert_eq!(rig.registers.gpr[gpr::RSI], 0xAAAA_0000);
    assert_eq!(rig.registers.gpr[gpr::RDI], 0xBBBB_9001);
    assert_eq!(rig.registers.gpr[gpr::RCX], 0xCCCC_0000);
    // The source's segment can be overridden, the destination's cannot.
    rig.mode.segments.es.base = 0x1_0000;
    rig.mode.segments.fs.base = 0x2_0000;
    rig.put(0x2_0000, &[0x43]);
    rig.run(&[0x64, 0xA4]).unwrap();
    assert_eq!(rig.at(0x1_9001, 1), 0x43);
}

#[test]
fn compares_end_early() {
    // repe cmpsb stops after the first difference, repne scasb after the first hit.
    let mut rig = Rig::long();
    rig.put(DATA, b"abcdef");
    rig.put(DATA + 0x100, b"abcXef");
    rig.registers.gpr[gpr::RSI] = DATA;
    rig.registers.gpr[gpr::RDI] = DATA + 0x100;
    rig.registers.gpr[gpr::RCX] = 6;
    rig.put(CODE, &[0xF3, 0xA6]);
    assert_eq!(finish(&mut rig), 4);
    assert_eq!(rig.registers.gpr[gpr::RCX], 2);
    assert_eq!(rig.registers.rflags & ZF, 0);
    rig.registers.rip = CODE;
    rig.registers.gpr[gpr::RDI] = DATA;
    rig.registers.gpr[gpr::RAX] = u64::from(b'e');
    rig.registers.gpr[gpr::RCX] = 6;
    rig.put(CODE, &[0xF2, 0xAE]);
    assert_eq!(finish(&mut rig), 5);
    assert_eq!(rig.registers.gpr[gpr::RCX], 1);
    assert_eq!(rig.registers.rflags & ZF, ZF);
}

#[test]
fn a_fault_in_an_iteration_keeps_the_earlier_ones() {
    // rep stosd onto an absent page.
    let mut rig = Rig::long();
    rig.map_small(0, 0xA000 | 7);
    rig.registers.gpr[gpr::RDI] = SMALL + 0xFFC;
    rig.registers.gpr[gpr::RCX] = 2;
    rig.registers.gpr[gpr::RAX] = 7;
    rig.put(CODE, &[0xF3, 0xAB]);
    assert_eq!(rig.step(), Ok(Emulated::Iteration));
    let before = rig.registers;
    assert_eq!(page_fault(rig.step()), (2, SMALL + 0x1000));
    assert_eq!(rig.registers, before);
    assert_eq!(before.gpr[gpr::RCX], 1);
    assert_eq!(rig.at(0xAFFC, 4), 7);
}

#[test]
fn a_fault_at_the_destination_reads_nothing() {
    let mut rig = Rig::long();
    rig.registers.gpr[gpr::RSI] = DEVICE;
    rig.registers.gpr[gpr::RDI] = SMALL;
    assert_eq!(page_fault(rig.run(&[0xA5])), (2, SMALL));
    assert!(rig.bus.reads.is_empty());
}

#[test]
fn ins_and_outs() {
    let mut rig = Rig::long();
    // rep insw.
    rig.put(CODE, &[0xF3, 0x66, 0x6D]);
    rig.registers.gpr[gpr::RDX] = 0x1F0;
    rig.registers.gpr[gpr::RDI] = DATA;
    rig.registers.gpr[gpr::RCX] = 2;
    assert_eq!(rig.string_io(0x1F0, 2, true), Ok(Emulated::Iteration));
    assert_eq!(rig.registers.rip, CODE);
    assert_eq!(rig.string_io(0x1F0, 2, true), Ok(Emulated::Retired));
    assert_eq!((rig.registers.rip, rig.registers.gpr[gpr::RDI]), (CODE + 3, DATA + 4));
    assert_eq!(rig.at(DATA, 8), 0x4321_4321);
    assert_eq!(rig.bus.port_reads, [(0x1F0, 2), (0x1F0, 2)]);
    // rep outsb, downwards, with FS.
    rig.registers.rip = CODE;
    rig.registers.rflags |= DF;
    rig.mode.segments.fs.base = 0x100;
    rig.registers.gpr[gpr::RSI] = DATA;
    rig.registers.gpr[gpr::RCX] = 2;
    rig.put(DATA + 0xFF, &[0x61, 0x62]);
    rig.put(CODE, &[0x64, 0xF3, 0x6E]);
    assert_eq!(rig.string_io(0x3F8, 1, false), Ok(Emulated::Iteration));
    assert_eq!(rig.string_io(0x3F8, 1, false), Ok(Emulated::Retired));
    assert_eq!(rig.bus.port_writes, [(0x3F8, 1, 0x62), (0x3F8, 1, 0x61)]);
    assert_eq!(rig.registers.gpr[gpr::RSI], DATA - 2);
}

#[test]
fn ins_faults_before_the_port_is_read() {
    let mut rig = Rig::long();
    rig.put(CODE, &[0x6C]);
    rig.registers.gpr[gpr::RDI] = SMALL;
    let before = rig.registers;
    assert_eq!(page_fault(rig.string_io(0x3F8, 1, true)), (2, SMALL));
    assert!(rig.bus.port_reads.is_empty());
    assert_eq!(rig.registers, before);
    // Not what the exit tells of: another size, another direction, another instruction.
    for (size, input) in [(2, true), (1, false)] {
        assert!(matches!(rig.string_io(0x3F8, size, input), Err(Fault::Unsupported(_))));
    }
    // A count of 0 accesses nothing.
    rig.put(CODE, &[0xF3, 0x6C]);
    assert_eq!(rig.string_io(0x3F8, 1, true), Ok(Emulated::Retired));
    assert!(rig.bus.port_reads.is_empty());
}
