//! What makes a guest exit, and what an exit means.

use super::SvmVcpu;
use super::vmcb::{self, Control, exit, intercept1, intercept2};
use crate::cpu::{Exit, IoExit};
use crate::memory::Gpa;

/// What makes the guest exit, beside what its paging adds.
pub(super) const INTERCEPTS1: u32 = intercept1::INTR
    | intercept1::NMI
    | intercept1::SMI
    | intercept1::INIT
    | intercept1::RDTSC
    | intercept1::RDPMC
    | intercept1::CPUID
    | intercept1::INVD
    | intercept1::HLT
    | intercept1::INVLPGA
    | intercept1::IO
    | intercept1::MSR
    | intercept1::SHUTDOWN;

/// The same, of the second word.
pub(super) const INTERCEPTS2: u32 = intercept2::VMRUN
    | intercept2::VMMCALL
    | intercept2::VMLOAD
    | intercept2::VMSAVE
    | intercept2::STGI
    | intercept2::CLGI
    | intercept2::SKINIT
    | intercept2::RDTSCP
    | intercept2::WBINVD
    | intercept2::MONITOR
    | intercept2::MWAIT
    | intercept2::RDPRU
    | intercept2::XSETBV;

impl SvmVcpu {
    /// Why the guest has left.
    pub(super) fn decode_exit(&self) -> Exit {
        decode(&self.guest.control)
    }
}

/// See: APM volume 2, appendix C.
fn decode(control: &Control) -> Exit {
    match control.exit_code {
        // An SMI is taken as soon as the host lets it in.
        exit::INTR | exit::NMI | exit::SMI => Exit::Interrupted,
        // All of guest memory is mapped, so the guest keeps its stack or its tables on a device: no event can be
        // delivered there, and what hardware would do next is a triple fault.
        exit::NESTED_PAGE_FAULT if control.exit_interrupt_info & vmcb::EVENT_VALID != 0 => Exit::Shutdown,
        exit::NESTED_PAGE_FAULT => Exit::Memory { gpa: Gpa(control.exit_info2) },
        exit::IO => Exit::Io(decode_io(control.exit_info1, control.exit_info2)),
        exit::CPUID => Exit::Cpuid,
        exit::RDTSC => Exit::Rdtsc,
        exit::RDTSCP => Exit::Rdtscp,
        exit::RDPMC => Exit::Rdpmc,
        exit::MSR if control.exit_info1 & 1 == 0 => Exit::Rdmsr,
        exit::MSR => Exit::Wrmsr,
        exit::HLT => Exit::Hlt,
        exit::VMMCALL => Exit::Hypercall,
        exit::XSETBV => Exit::Xsetbv,
        exit::INVD | exit::WBINVD => Exit::CacheFlush,
        exit::READ_CR8 | exit::WRITE_CR8 => Exit::Cr8,
        exit::PAGE_FAULT => Exit::PageFault { linear: control.exit_info2, error_code: control.exit_info1 as u32 },
        exit::READ_CR0 | exit::READ_CR3 | exit::READ_CR4 => Exit::Control,
        exit::WRITE_CR0 | exit::WRITE_CR3 | exit::WRITE_CR4 | exit::INVLPG => Exit::Control,
        exit::TASK_SWITCH => Exit::Unsupported("a task switch"),
        exit::VMRUN | exit::VMLOAD..=exit::SKINIT | exit::MONITOR | exit::MWAIT | exit::INVLPGA => Exit::Undefined,
        exit::RDPRU | exit::INVPCID => Exit::Undefined,
        exit::SHUTDOWN => Exit::Shutdown,
        exit::INVALID | exit::INVALID_SHORT => Exit::Invalid,
        exit::INIT => Exit::Unexpected(exit::INIT),
        code => Exit::Unknown(code),
    }
}

/// See: APM volume 2, 15.10.2.
fn decode_io(info: u64, next_rip: u64) -> IoExit {
    IoExit {
        port: (info >> 16) as u16,
        size: (info >> 4 & 7) as u8,
        input: info & 1 != 0,
        string: info & 1 << 2 != 0,
        next_rip,
    }
}

#[cfg(test)]
mod tests {
    use super::super::vmcb::Vmcb;
    use super::*;

    #[test]
    fn what_the_guest_does_is_no_bug_of_ours() {
        let of = |code| {
            let mut vmcb = Vmcb::zeroed();
            vmcb.control.exit_code = code;
            decode(&vmcb.control)
        };
        // INVPCID, RDPRU; MCOMMIT, of which nothing is known; SMI, INIT.
        assert_eq!([0xA2, 0x8E].map(of), [Exit::Undefined; 2]);
        assert_eq!([0xA3, 0x62, 0x63].map(of), [Exit::Unknown(0xA3), Exit::Interrupted, Exit::Unexpected(0x63)]);
    }
}
