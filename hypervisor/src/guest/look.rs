//! Looks at the guest without touching it: no bit of its memory or its page tables changes.

use alloc::vec::Vec;

use super::{Guest, REGISTERS};
use crate::cpu::registers::{EFER_LMA, Registers, Segment, Segments};
use crate::cpu::{Mode, Paging};
use crate::emulate::walk::{Format, PRESENT};
use crate::memory::{Gpa, PAGE_SIZE};

impl Guest {
    /// The general registers.
    #[must_use]
    pub fn registers(&self) -> &Registers {
        self.vcpu.registers()
    }

    /// The registers that a debugger shows, by name: the general ones, selectors, bases, and those of the system.
    #[must_use]
    pub fn named_registers(&self) -> Vec<(&'static str, u64)> {
        let (Registers { gpr, rip, rflags }, mode, msrs) = (self.vcpu.registers(), self.vcpu.mode(), self.vcpu.msrs());
        let Segments { es, cs, ss, ds, fs, gs, .. } = mode.segments;
        let general = REGISTERS.into_iter().zip(gpr.iter().chain([rip, rflags]).copied());
        let selectors = [("cs", cs), ("ss", ss), ("ds", ds), ("es", es), ("fs", fs), ("gs", gs)];
        let selectors = selectors.map(|(name, segment)| (name, segment.selector.into()));
        let system = [
            ("fs_base", fs.base),
            ("gs_base", gs.base),
            ("k_gs_base", msrs.kernel_gs_base),
            ("cr0", mode.cr0),
            ("cr2", self.vcpu.cr2()),
            ("cr3", mode.cr3),
            ("cr4", mode.cr4),
            ("efer", mode.efer),
        ];
        general.chain(selectors).chain(system).collect()
    }

    /// Segments and control registers.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.vcpu.mode()
    }

    /// The linear address of the next instruction, and how many bits its code has.
    #[must_use]
    pub fn code_at(&self) -> (u64, u32) {
        let (mode, rip) = (self.vcpu.mode(), self.vcpu.registers().rip);
        let cs = &mode.segments.cs;
        match mode.efer & EFER_LMA != 0 && cs.attributes & Segment::LONG != 0 {
            true => (rip, 64),
            false => (
                cs.base.wrapping_add(rip) & 0xFFFF_FFFF,
                if cs.attributes & Segment::DEFAULT_BIG != 0 { 32 } else { 16 },
            ),
        }
    }

    /// The bytes at a linear address, up to `len`: as far as the guest's page tables lead to its memory, whatever rights
    /// they give.
    #[must_use]
    pub fn peek(&self, mut linear: u64, len: usize) -> Vec<u8> {
        let paging = Paging::from(&self.vcpu.mode());
        let mut bytes = Vec::new();
        while bytes.len() < len
            && let Some(gpa) = self.look_up(&paging, linear)
        {
            let rest = (PAGE_SIZE - linear % PAGE_SIZE).min((len - bytes.len()) as u64);
            let Ok(part) = self.memory.slice(gpa, rest) else { break };
            bytes.extend_from_slice(part);
            linear = linear.wrapping_add(rest);
        }
        bytes
    }

    /// Where a linear address leads now, whatever rights there are; not whether there is memory.
    #[must_use]
    pub fn look_up_now(&self, linear: u64) -> Option<Gpa> {
        self.look_up(&Paging::from(&self.vcpu.mode()), linear)
    }

    /// Where a linear address leads.
    fn look_up(&self, paging: &Paging, linear: u64) -> Option<Gpa> {
        if !paging.is_on() {
            return Some(Gpa(linear & 0xFFFF_FFFF));
        }
        let format = Format::of(paging).ok()?;
        let linear = format.linear(linear);
        let mut table = format.root(paging.cr3);
        for level in (1..=format.levels()).rev() {
            let entry = format.entry(&self.memory, table, format.index(linear, level));
            if entry & PRESENT == 0 {
                return None;
            }
            if !format.is_pointer(level) && format.is_leaf(paging, level, entry) {
                let within = (1 << format.shift(level)) - 1;
                return Some(Gpa(format.frame(entry, level) & !within | linear & within));
            }
            table = format.frame(entry, level) & !(PAGE_SIZE - 1);
        }
        None
    }
}
