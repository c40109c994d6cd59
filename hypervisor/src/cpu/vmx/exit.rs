//! What the fields of an exit say: the pure part. See: SDM volume 3, appendix C and 28.2.

use crate::cpu::registers::{CR0_CD, CR0_NW, gpr};
use crate::cpu::{Exit, IoExit};

/// Exit reason: the entry itself failed.
pub(super) const ENTRY_FAILED: u32 = 1 << 31;

/// Basic exit reasons that need more than their number.
#[allow(missing_docs)]
pub(super) mod reason {
    pub const EXCEPTION: u16 = 0;
    pub const TRIPLE_FAULT: u16 = 2;
    pub const INTERRUPT_WINDOW: u16 = 7;
    pub const INVLPG: u16 = 14;
    pub const CONTROL_REGISTER: u16 = 28;
    pub const IO: u16 = 30;
    pub const EPT_VIOLATION: u16 = 48;
}

/// Interruption information: valid, with an error code, and the type. See: SDM volume 3, table 25-17.
pub(super) const EVENT_VALID: u32 = 1 << 31;
pub(super) const EVENT_ERROR_CODE: u32 = 1 << 11;
pub(super) const EVENT_EXTERNAL: u32 = 0;
pub(super) const EVENT_EXCEPTION: u32 = 3 << 8;
const EVENT_TYPE: u32 = 7 << 8;
const EVENT_NMI: u32 = 2 << 8;

/// Exits that need nothing but their reason.
pub(super) fn simple(reason: u16) -> Exit {
    match reason {
        // An external interrupt, the timer.
        1 | 52 => Exit::Interrupted,
        reason::TRIPLE_FAULT => Exit::Shutdown,
        9 => Exit::Unsupported("a task switch"),
        10 => Exit::Cpuid,
        12 => Exit::Hlt,
        13 | 54 => Exit::CacheFlush,
        15 => Exit::Rdpmc,
        16 => Exit::Rdtsc,
        18 => Exit::Hypercall,
        31 => Exit::Rdmsr,
        32 => Exit::Wrmsr,
        37 => Exit::Stepped,
        51 => Exit::Rdtscp,
        55 => Exit::Xsetbv,
        // GETSEC, RSM; VMCLEAR to VMXON; MWAIT, MONITOR; INVEPT, INVVPID; RDRAND, INVPCID, VMFUNC, ENCLS, RDSEED; XSAVES,
        // XRSTORS, PCONFIG; UMWAIT, TPAUSE, LOADIWKEY, ENCLV; ENQCMD, ENQCMDS; SEAMCALL, TDCALL, RDMSRLIST, WRMSRLIST.
        11 | 17 | 19..=27 | 36 | 39 | 50 | 53 | 57..=61 | 63..=65 | 67..=70 | 72 | 73 | 76..=79 => Exit::Undefined,
        // INIT, start-up, SMIs; an NMI window; failed entries; the virtual APIC; EPT misconfiguration; full logs and
        // permission vectors of sub-pages, which are not used.
        3..=6 | 8 | 33 | 34 | 41 | 43..=45 | 49 | 56 | 62 | 66 => Exit::Unexpected(u64::from(reason)),
        other => Exit::Unknown(u64::from(other)),
    }
}

/// See: SDM volume 3, table 28-5.
pub(super) fn io(qualification: u64, next_rip: u64) -> IoExit {
    IoExit {
        port: (qualification >> 16) as u16,
        size: (qualification & 7) as u8 + 1,
        input: qualification & 1 << 3 != 0,
        string: qualification & 1 << 4 != 0,
        next_rip,
    }
}

/// An access to a control register that exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ControlAccess {
    /// MOV to CR0 of the general register with this index, which would change a bit that the guest does not own.
    WriteCr0(usize),
    /// The same for CR4.
    WriteCr4,
    /// MOV to or from CR8.
    Cr8,
    /// What cannot exit with the controls that are set.
    Other,
}

/// See: SDM volume 3, table 28-3.
pub(super) fn control_access(qualification: u64) -> ControlAccess {
    match (qualification & 0xF, qualification >> 4 & 3) {
        (0, 0) => ControlAccess::WriteCr0((qualification >> 8 & 0xF) as usize),
        (4, 0) => ControlAccess::WriteCr4,
        (8, _) => ControlAccess::Cr8,
        _ => ControlAccess::Other,
    }
}

/// Whether CR0 may have this value, as far as the bits are concerned that the guest does not own.
pub(super) fn is_allowed_cr0(value: u64) -> bool {
    value & CR0_NW == 0 || value & CR0_CD != 0
}

/// Whether an exit's event is a page fault.
pub(super) fn is_page_fault(info: u32) -> bool {
    info & (EVENT_VALID | EVENT_TYPE | 0xFF) == EVENT_VALID | EVENT_EXCEPTION | 14
}

/// Whether an exit came in the middle of the delivery of the event that the entry injected: it is the one that the exit says it
/// interrupted, or its delivery ended in a triple fault, which is said to interrupt nothing.
pub(super) fn ends_injection(reason: u16, interrupted: u32, injected: u32) -> bool {
    // The CPU has taken the valid bit of what was injected back.
    let is_ours = interrupted & EVENT_VALID != 0 && (interrupted ^ injected) & 0x7FF == 0;
    is_ours || reason == reason::TRIPLE_FAULT
}

/// Whether it is a non-maskable interrupt.
pub(super) fn is_nmi(info: u32) -> bool {
    info & (EVENT_VALID | EVENT_TYPE) == EVENT_VALID | EVENT_NMI
}

/// Whether it is a debug exception, and not of the instruction INT1, which DR6 says nothing of.
pub(super) fn is_debug(info: u32) -> bool {
    info & (EVENT_VALID | EVENT_TYPE | 0xFF) == EVENT_VALID | EVENT_EXCEPTION | 1
}

/// An event that is being delivered, as the VMCS describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Event {
    /// Vector, type and flags.
    pub(super) info: u32,
    /// Error code, if `info` says that there is one.
    pub(super) error_code: u32,
    /// Length of the instruction that raised it, for software interrupts and exceptions.
    pub(super) length: u32,
}

impl Event {
    /// An external interrupt.
    pub(super) const fn interrupt(vector: u8) -> Self {
        Self { info: EVENT_VALID | EVENT_EXTERNAL | vector as u32, error_code: 0, length: 0 }
    }

    /// A debug exception.
    pub(super) const DEBUG: Self = Self { info: EVENT_VALID | EVENT_EXCEPTION | 1, error_code: 0, length: 0 };

    /// What an exit tells of an event, to be injected. Bit 12 is undefined there and reserved here.
    pub(super) const fn again(info: u32, error_code: u32, length: u32) -> Self {
        let error_code = if info & EVENT_ERROR_CODE == 0 { 0 } else { error_code };
        Self { info: info & !(1 << 12), error_code, length }
    }

    pub(super) const fn is_interrupt(self) -> bool {
        self.info & EVENT_TYPE == EVENT_EXTERNAL
    }

    /// The vector, of an exception.
    pub(super) fn exception(self) -> Option<u8> {
        (self.info & EVENT_TYPE == EVENT_EXCEPTION).then_some(self.info as u8)
    }

    /// Whether its delivery is a tick of the counter when the CPU raises it itself: interrupts are none.
    pub(super) const fn counts(self) -> bool {
        !self.is_interrupt() && self.info & EVENT_TYPE != EVENT_NMI
    }
}

/// Why an entry failed because of the guest's state. See: SDM volume 3, 27.8.
pub(super) const fn entry_failure(reason: u16, qualification: u64) -> &'static str {
    match (reason, qualification) {
        (33, 2) => "page-directory pointers are malformed",
        (33, 3) => "an NMI was to be injected into an interrupt shadow",
        (33, 4) => "the VMCS link pointer is bad",
        (33, _) => "the guest's state is invalid",
        (34, _) => "an entry of the MSR-load list is invalid",
        (41, _) => "machine check",
        _ => "unknown reason",
    }
}

/// The general register that an index in an exit qualification means: the order of instruction encodings.
const _: () = assert!(gpr::RSP == 4 && gpr::RDI == 7);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_accesses_are_decoded() {
        // OUT DX, AX at port 0x3F8.
        let out = IoExit { port: 0x3F8, size: 2, input: false, string: false, next_rip: 7 };
        assert_eq!(io(0x03F8_0001, 7), out);
        // REP INSB.
        let ins = IoExit { port: 0x60, size: 1, input: true, string: true, next_rip: 9 };
        assert_eq!(io(0x0060_0038, 9), ins);
        assert_eq!(io(0x0CFC_004B, 0).size, 4);
    }

    #[test]
    fn control_accesses_are_decoded() {
        assert_eq!(control_access(0x300), ControlAccess::WriteCr0(gpr::RBX));
        assert_eq!(control_access(0x404), ControlAccess::WriteCr4);
        assert_eq!(control_access(0x008), ControlAccess::Cr8);
        assert_eq!(control_access(0x018), ControlAccess::Cr8);
        // CLTS.
        assert_eq!(control_access(0x020), ControlAccess::Other);
    }

    #[test]
    fn caching_cannot_be_half_off() {
        assert!(is_allowed_cr0(0) && is_allowed_cr0(CR0_CD) && is_allowed_cr0(CR0_CD | CR0_NW));
        assert!(!is_allowed_cr0(CR0_NW));
    }

    #[test]
    fn reasons_mean_the_same_as_with_the_other_vendor() {
        assert_eq!(simple(52), Exit::Interrupted);
        assert_eq!(simple(37), Exit::Stepped);
        assert_eq!(simple(2), Exit::Shutdown);
        assert_eq!(simple(57), Exit::Undefined);
        assert_eq!(simple(27), Exit::Undefined);
        assert_eq!(simple(18), Exit::Hypercall);
        // EPT misconfiguration is a bug of ours; what no manual has yet is the guest's.
        assert_eq!(simple(49), Exit::Unexpected(49));
        assert_eq!(simple(0x3FFF), Exit::Unknown(0x3FFF));
    }

    /// Those that exit whatever the controls are, or with one that is set. See: SDM volume 3, 26.1.2, 26.1.3.
    #[test]
    fn instructions_that_cpuid_hides_are_undefined() {
        // GETSEC, INVPCID, SEAMCALL, TDCALL.
        for reason in [11, 58, 76, 77] {
            assert_eq!(simple(reason), Exit::Undefined, "{reason}");
        }
    }

    #[test]
    fn page_faults_are_told_from_other_events() {
        assert!(is_page_fault(EVENT_VALID | EVENT_EXCEPTION | EVENT_ERROR_CODE | 14));
        assert!(!is_page_fault(EVENT_VALID | EVENT_NMI | 2));
        assert!(!is_page_fault(EVENT_VALID | EVENT_EXCEPTION | EVENT_ERROR_CODE | 13));
        assert!(is_debug(EVENT_VALID | EVENT_EXCEPTION | 1) && !is_debug(EVENT_VALID | 5 << 8 | 1));
        assert!(is_nmi(EVENT_VALID | EVENT_NMI | 2) && !is_nmi(EVENT_VALID | EVENT_EXCEPTION | 2));
        let event = |kind| Event { info: EVENT_VALID | kind | 8, ..Event::default() };
        assert_eq!((event(EVENT_EXCEPTION).exception(), event(EVENT_NMI).exception()), (Some(8), None));
    }

    #[test]
    fn deliveries_that_end_in_an_exit_are_told_from_instructions() {
        let fault = EVENT_EXCEPTION | EVENT_ERROR_CODE | 13;
        for reason in [reason::EXCEPTION, reason::EPT_VIOLATION, 9] {
            assert!(ends_injection(reason, EVENT_VALID | fault, fault));
            assert!(!ends_injection(reason, EVENT_VALID | EVENT_EXCEPTION | 14, fault), "another one's");
            assert!(!ends_injection(reason, 0, fault), "it was delivered");
        }
        assert!(ends_injection(reason::TRIPLE_FAULT, 0, fault));
    }

    #[test]
    fn only_what_the_cpu_raises_counts() {
        assert!(!Event::interrupt(0x40).counts());
        assert!(Event { info: EVENT_VALID | EVENT_EXCEPTION | 14, ..Event::default() }.counts());
        assert!(!Event { info: EVENT_VALID | EVENT_NMI | 2, ..Event::default() }.counts());
    }
}
