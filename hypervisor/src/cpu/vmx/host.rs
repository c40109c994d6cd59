//! The host's part of the VMCS: where the CPU goes on after an exit, and with what.
//! See: SDM volume 3, 25.5 and 28.5.
#![allow(unsafe_code)]

use alloc::boxed::Box;

use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, SS, Segment};
use x86_64::instructions::tables::{lgdt, load_tss, sidt};
use x86_64::registers::control::{Cr0, Cr3, Cr4};
use x86_64::registers::model_specific::{Efer, Msr};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

use super::instructions::write;
use super::{entry, fields};

const IA32_PAT: u32 = 0x277;
/// Selector of the task-state segment, behind code (8) and data (16).
const TSS_INDEX: u16 = 3;

/// A descriptor table like the boot code's, with a task-state segment: VM exits load a task register that is not null.
pub(super) struct HostTables {
    gdt: Box<[u64; 5]>,
    tss: Box<TaskStateSegment>,
}

impl HostTables {
    /// Makes and loads the tables. Code and data keep the selectors that they have.
    pub(super) fn load() -> Self {
        let tss = Box::new(TaskStateSegment::new());
        // SAFETY: the segment lives as long as the virtual CPU, which is for ever.
        let Descriptor::SystemSegment(low, high) = (unsafe { Descriptor::tss_segment_unchecked(&raw const *tss) })
        else {
            unreachable!("a task-state segment is a system segment")
        };
        let code = Descriptor::kernel_code_segment();
        let data = Descriptor::kernel_data_segment();
        let (Descriptor::UserSegment(code), Descriptor::UserSegment(data)) = (code, data) else {
            unreachable!("code and data are no system segments")
        };
        let gdt = Box::new([0, code, data, low, high]);
        let pointer = DescriptorTablePointer {
            limit: size_of::<[u64; 5]>() as u16 - 1,
            base: VirtAddr::from_ptr(&raw const *gdt),
        };
        // SAFETY: the table has the same code and data as the one before, at the same places, and stays.
        unsafe {
            lgdt(&pointer);
            load_tss(SegmentSelector(TSS_INDEX << 3));
        }
        Self { gdt, tss }
    }

    /// Writes the host's state as it is now to the current VMCS.
    pub(super) fn write_to_vmcs(&self) {
        write(fields::HOST_CR0, Cr0::read_raw());
        write(fields::HOST_CR3, Cr3::read_raw().0.start_address().as_u64());
        write(fields::HOST_CR4, Cr4::read_raw());
        write(fields::HOST_CS, CS::get_reg().0);
        let data = SS::get_reg().0;
        for field in [fields::HOST_SS, fields::HOST_DS, fields::HOST_ES] {
            write(field, data);
        }
        write(fields::HOST_FS, 0);
        write(fields::HOST_GS, 0);
        write(fields::HOST_FS_BASE, 0);
        write(fields::HOST_GS_BASE, 0);
        write(fields::HOST_TR, TSS_INDEX << 3);
        write(fields::HOST_TR_BASE, &raw const *self.tss as u64);
        write(fields::HOST_GDTR_BASE, &raw const *self.gdt as u64);
        write(fields::HOST_IDTR_BASE, sidt().base.as_u64());
        write(fields::HOST_SYSENTER_CS, 0);
        write(fields::HOST_SYSENTER_ESP, 0);
        write(fields::HOST_SYSENTER_EIP, 0);
        write(fields::HOST_EFER, Efer::read_raw());
        // SAFETY: every CPU with long mode has this register.
        write(fields::HOST_PAT, unsafe { Msr::new(IA32_PAT).read() });
        entry::set_host_rip();
    }
}
