//! The counter of retired instructions: it counts while the guest runs, and an NMI ends the run when it overflows.
//!
//! VM entry switches the counter on and VM exit switches it off, by IA32_PERF_GLOBAL_CTRL: nothing of the hypervisor is
//! counted. While it is off, it is read and written without haste. An overflow interrupt that comes after the guest's
//! exit meets the hypervisor, which takes no notice, or the next entry, which it ends.
//! See: SDM volume 3B, 20.2 and 20.6.3; volume 3C, 27.3.2.1, 27.4 and 28.6.
#![allow(unsafe_code)]

use alloc::boxed::Box;
use core::arch::x86_64::__cpuid;

use x86_64::registers::model_specific::Msr;

use super::capabilities::Capabilities;
use super::fields;
use super::instructions::write;
use crate::cpu::pmu::{
    CAPABILITY_SMM_FREEZE, DEBUGCTL_FREEZE_IN_SMM, GLOBAL_CTRL, GLOBAL_OVF_CTRL, Layout, PERF_CAPABILITIES,
};
use crate::host::apic::Apic;
use crate::host::msr;

/// CPUID leaf of performance monitoring.
const LEAF: u32 = 0xA;

/// An entry of a list of MSRs to load. See: SDM volume 3C, table 25-15.
#[repr(C, align(16))]
struct MsrEntry {
    index: u32,
    _reserved: u32,
    value: u64,
}

impl MsrEntry {
    const fn global_control(value: u64) -> Self {
        Self { index: GLOBAL_CTRL, _reserved: 0, value }
    }
}

/// Lists of one entry each, for CPUs without the controls that switch IA32_PERF_GLOBAL_CTRL.
struct Lists {
    at_entry: MsrEntry,
    at_exit: MsrEntry,
}

/// The counter.
pub(super) struct Performance {
    layout: Layout,
    apic: Apic,
    lists: Option<Box<Lists>>,
    /// What the guest has in IA32_DEBUGCTL while it is counted.
    debug_control: u64,
    counting: bool,
    /// The value and the number of counts that were armed last.
    before: u64,
    armed: u64,
}

impl Performance {
    /// The counter of this CPU, as it claims.
    ///
    /// # Errors
    /// Why it has none.
    pub(super) fn find(capabilities: &Capabilities, apic: &Apic) -> Result<Self, &'static str> {
        if !capabilities.dirty_flags {
            // What a fault of their own counts would differ between a guest that is copied and its twin.
            return Err("this CPU's nested page tables have no dirty flags, and copying the guest would add exits");
        }
        let leaf = if __cpuid(0).eax >= LEAF {
            let leaf = __cpuid(LEAF);
            [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
        } else {
            [0; 4]
        };
        let perf_capabilities = perf_capabilities();
        let layout = Layout::from_cpuid(leaf, perf_capabilities)?;
        // SAFETY: the interrupt table is loaded before there is a virtual CPU; the values are those that the manual has
        // for these registers, and leave the counter off.
        layout.probe(&mut |register| unsafe { msr::try_read(register) }, &mut |register, value| unsafe {
            msr::try_write(register, value)
        })?;
        let lists = (!capabilities.performance_control).then(|| {
            let at_entry = MsrEntry::global_control(layout.global_bit());
            Box::new(Lists { at_entry, at_exit: MsrEntry::global_control(0) })
        });
        let debug_control = if perf_capabilities & CAPABILITY_SMM_FREEZE != 0 { DEBUGCTL_FREEZE_IN_SMM } else { 0 };
        Ok(Self { layout, apic: *apic, lists, debug_control, counting: false, before: 0, armed: 0 })
    }

    /// What it counts with.
    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// Prepares the next entry: it is counted, and interrupted after `counts`, 1 to the layout's longest.
    pub(super) fn arm(&mut self, counts: u64) {
        if !self.counting {
            self.start();
        }
        self.armed = counts;
        self.before = self.layout.preload(counts);
        write_msr(self.layout.write_msr(), self.before);
        // The interrupt before has masked it.
        self.apic.interrupt_at_overflow();
    }

    /// What was counted since [`arm`](Self::arm).
    pub(super) fn counted(&self) -> u64 {
        let counted = self.layout.counted(self.before, read_msr(self.layout.write_msr()));
        if counted >= self.armed {
            write_msr(GLOBAL_OVF_CTRL, self.layout.global_bit());
        }
        counted
    }

    /// The next entries are not counted.
    pub(super) fn stop(&mut self) {
        if self.counting {
            self.switch(false);
        }
    }

    fn start(&mut self) {
        write_msr(GLOBAL_CTRL, 0);
        let (control, value) = self.layout.control();
        write_msr(control, value);
        write_msr(GLOBAL_OVF_CTRL, self.layout.global_bit());
        self.switch(true);
    }

    /// Has entries switch the counter on, or not. Exits switch it off in any case.
    fn switch(&mut self, on: bool) {
        self.counting = on;
        write(fields::GUEST_DEBUGCTL, if on { self.debug_control } else { 0 });
        match &self.lists {
            None => {
                write(fields::HOST_PERF_GLOBAL_CTRL, 0);
                write(fields::GUEST_PERF_GLOBAL_CTRL, if on { self.layout.global_bit() } else { 0 });
            }
            Some(lists) => {
                write(fields::ENTRY_MSR_LOAD_LIST, &raw const lists.at_entry as u64);
                write(fields::EXIT_MSR_LOAD_LIST, &raw const lists.at_exit as u64);
                write(fields::ENTRY_MSR_LOADS, u32::from(on));
                write(fields::EXIT_MSR_LOADS, u32::from(on));
            }
        }
    }
}

fn perf_capabilities() -> u64 {
    let has = raw_cpuid::CpuId::new().get_feature_info().is_some_and(|features| features.has_pdcm());
    // SAFETY: the interrupt table is loaded before there is a virtual CPU. A register that is not there claims nothing.
    if has { unsafe { msr::try_read(PERF_CAPABILITIES) }.unwrap_or(0) } else { 0 }
}

fn read_msr(msr: u32) -> u64 {
    // SAFETY: the register is there, as was probed; reading has no effect.
    unsafe { Msr::new(msr).read() }
}

fn write_msr(msr: u32, value: u64) {
    // SAFETY: the register is there, as was probed, and the values are those that the manual has for it. Counters do not
    // touch memory, and the interrupt of this one is dealt with wherever it comes.
    unsafe { Msr::new(msr).write(value) };
}
