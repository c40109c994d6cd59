//! Instructions that begin an interrupt shadow.

use super::{CODE, DATA, Rig};
use crate::cpu::StackLoad;
use crate::cpu::registers::{RFLAGS_FIXED, RFLAGS_IF, Segment, Table, gpr};
use crate::emulate::shadow::{Begun, ShadowView, begin};

const GDT: u64 = 0x7000;
const STI: [u8; 1] = [0xFB];
/// mov ss, eax
const MOV_SS: [u8; 2] = [0x8E, 0xD0];

impl Rig {
    /// A descriptor table with, from selector 0x10 on: data, data that is not accessed yet, read-only data, data of
    /// privilege 3.
    fn with_descriptors(mut self) -> Self {
        for (index, descriptor) in
            [0x00CF_9300_0000_FFFF_u64, 0x00CF_9200_0000_FFFF, 0x00CF_9100_0000_FFFF, 0x00CF_F312_3456_FFFF]
                .into_iter()
                .enumerate()
        {
            self.put(GDT + 16 + 8 * index as u64, &descriptor.to_le_bytes());
        }
        self
    }

    fn begin(&mut self, code: &[u8]) -> Option<Begun> {
        self.begin_after(code, false)
    }

    fn begin_after(&mut self, code: &[u8], after_mov_ss: bool) -> Option<Begun> {
        self.put(self.registers.rip, code);
        let gdtr = Table { base: GDT, limit: 0x2F };
        let view = ShadowView { registers: &self.registers, mode: &self.mode, gdtr, after_mov_ss };
        begin(&view, &mut self.bus)
    }
}

#[test]
fn sti_begins_a_shadow_once() {
    for mut rig in [Rig::real(), Rig::flat(), Rig::long()] {
        let begun = rig.begin(&STI).unwrap();
        assert_eq!((begun.registers.rip, begun.registers.rflags), (CODE + 1, RFLAGS_FIXED | RFLAGS_IF));
        assert_eq!(begun.stack, None);
        rig.registers.rflags |= RFLAGS_IF;
        assert_eq!(rig.begin(&STI), None);
    }
}

#[test]
fn sti_needs_privilege() {
    let mut rig = Rig::long();
    rig.drop_to_user();
    assert_eq!(rig.begin(&STI), None);
    rig.registers.rflags |= 3 << 12;
    assert!(rig.begin(&STI).is_some());
}

#[test]
fn mov_ss_loads_what_the_descriptor_says() {
    for mut rig in [Rig::flat().with_descriptors(), Rig::long().with_descriptors()] {
        rig.registers.gpr[gpr::RAX] = 0x10;
        let begun = rig.begin(&MOV_SS).unwrap();
        let segment = Segment { selector: 0x10, ..Segment::flat(0x10, 0xC93) };
        assert_eq!(begun.stack, Some(StackLoad { segment, operand: None }));
        assert_eq!(begun.registers.rip, CODE + 2);
        assert_eq!(rig.begin_after(&MOV_SS, true), None);
    }
}

#[test]
fn mov_ss_from_memory_and_the_accessed_bit() {
    let mut rig = Rig::long().with_descriptors();
    rig.registers.gpr[gpr::RBX] = DATA;
    rig.put(DATA, &[0x18, 0]);
    // mov ss, [rbx]
    let begun = rig.begin(&[0x8E, 0x13]).unwrap();
    let stack = begun.stack.unwrap();
    assert_eq!((stack.segment.attributes, stack.operand), (0xC93, Some((DATA, 2))));
    assert_eq!(rig.at(GDT + 0x18 + 5, 1), 0x93);
}

#[test]
fn what_faults_is_left_to_the_cpu() {
    let mut rig = Rig::long().with_descriptors();
    // Read-only; too much privilege; beyond the table; a wrong requested privilege; a table that is not there.
    for selector in [0x20, 0x28, 0x30, 0x11, 0x14] {
        rig.registers.gpr[gpr::RAX] = selector;
        assert_eq!(rig.begin(&MOV_SS), None, "selector {selector:#x}");
    }
    rig.registers.gpr[gpr::RBX] = super::DEVICE;
    assert_eq!(rig.begin(&[0x8E, 0x13]), None);
    assert_eq!(rig.bus.reads, []);
}

#[test]
fn a_null_stack_is_for_the_system_in_64_bit_mode() {
    let mut rig = Rig::long();
    rig.registers.gpr[gpr::RAX] = 0;
    assert_eq!(rig.begin(&MOV_SS).unwrap().stack, Some(StackLoad { segment: Segment::default(), operand: None }));
    assert_eq!(Rig::flat().begin(&MOV_SS), None);
    rig.drop_to_user();
    rig.registers.gpr[gpr::RAX] = 3;
    assert_eq!(rig.begin(&MOV_SS), None);
}

#[test]
fn real_mode_and_pop() {
    let mut rig = Rig::real();
    rig.registers.gpr[gpr::RSP] = DATA - 2;
    rig.put(DATA - 2, &[0x34, 0x12]);
    let begun = rig.begin(&[0x17]).unwrap();
    let segment = Segment { selector: 0x1234, base: 0x12340, ..Segment::real(0, 0x93) };
    assert_eq!(begun.stack, Some(StackLoad { segment, operand: Some((DATA - 2, 2)) }));
    assert_eq!(begun.registers.gpr[gpr::RSP], DATA);
}

#[test]
fn other_instructions_are_not_touched() {
    let mut rig = Rig::long();
    for code in [&[0x90][..], &[0xFA], &[0x8E, 0xD8], &[0xF4], &[0x0F, 0x0B]] {
        assert_eq!(rig.begin(code), None);
    }
}
