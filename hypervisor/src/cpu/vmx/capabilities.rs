//! What this CPU's VMX can do, and the controls that follow from it: all by the capability MSRs.
//! See: SDM volume 3, appendix A.

use core::fmt;

use alloc::vec::Vec;

use crate::cpu::registers::CR4_OSXSAVE;

/// Index of IA32_FEATURE_CONTROL.
pub(super) const FEATURE_CONTROL: u32 = 0x3A;
const FEATURE_LOCKED: u64 = 1 << 0;
const FEATURE_VMXON: u64 = 1 << 2;

const BASIC: u32 = 0x480;
const BASIC_TRUE_CONTROLS: u64 = 1 << 55;
const CR0_FIXED: [u32; 2] = [0x486, 0x487];
const CR4_FIXED: [u32; 2] = [0x488, 0x489];
const SECONDARY: u32 = 0x48B;
const EPT_VPID: u32 = 0x48C;
const TRUE_PIN: u32 = 0x48D;
const TRUE_PRIMARY: u32 = 0x48E;
const TRUE_EXIT: u32 = 0x48F;
const TRUE_ENTRY: u32 = 0x490;

/// A control: its bits and its name.
type Control = (u32, &'static str);

const PIN: [Control; 3] =
    [(1 << 0, "external-interrupt exiting"), (1 << 3, "NMI exiting"), (1 << 6, "VMX preemption timer")];

/// Primary control: an exit as soon as the guest could take an interrupt. Switched on when it is needed.
pub(super) const INTERRUPT_WINDOW: u32 = 1 << 2;
const PRIMARY: [Control; 11] = [
    (1 << 7, "HLT exiting"),
    (1 << 10, "MWAIT exiting"),
    (1 << 11, "RDPMC exiting"),
    (RDTSC_EXITING, "RDTSC exiting"),
    (1 << 19, "CR8-load exiting"),
    (1 << 20, "CR8-store exiting"),
    (1 << 24, "unconditional I/O exiting"),
    (1 << 28, "MSR bitmaps"),
    (1 << 29, "MONITOR exiting"),
    (1 << 31, "secondary controls"),
    (INTERRUPT_WINDOW, "interrupt-window exiting"),
];
/// Primary controls: RDTSC and RDTSCP exit; what they give else has an offset. Switched where the guest's TSC is lent.
pub(super) const RDTSC_EXITING: u32 = 1 << 12;
pub(super) const TSC_OFFSETTING: u32 = 1 << 3;
/// Primary control: an exit behind the next instruction or event. Switched on for single steps.
pub(super) const MONITOR_TRAP: u32 = 1 << 27;
/// Primary controls: exits of INVLPG and of accesses to CR3. Switched on while other tables than the guest's are walked.
pub(super) const PAGING_EXITS: u32 = 1 << 9 | 1 << 15 | 1 << 16;
/// CR3-load and CR3-store exiting, which nested paging makes superfluous.
const PRIMARY_UNWANTED: Control = (1 << 15 | 1 << 16, "CR3 accesses without exits");

const SECONDARY_NEEDED: [Control; 3] =
    [(1 << 1, "extended page tables"), (1 << 6, "WBINVD exiting"), (1 << 7, "unrestricted guest")];
const RDTSCP: u32 = 1 << 3;
const VPID: u32 = 1 << 5;
const RDRAND_EXITING: Control = (1 << 11, "RDRAND exiting");
/// Secondary control: the guest has INVPCID.
pub(super) const INVPCID: u32 = 1 << 12;
const RDSEED_EXITING: Control = (1 << 16, "RDSEED exiting");

const EXIT: [Control; 5] = [
    (1 << 2, "saving of debug controls"),
    (1 << 9, "64-bit host"),
    (1 << 19, "loading of IA32_PAT at exit"),
    (1 << 20, "saving of IA32_EFER"),
    (1 << 21, "loading of IA32_EFER at exit"),
];

/// Entry control: the guest is in IA-32e mode, as its EFER.LMA says. Switched with it.
pub(super) const IA32E_GUEST: u32 = 1 << 9;
const ENTRY: [Control; 4] = [
    (1 << 2, "loading of debug controls"),
    (1 << 14, "loading of IA32_PAT at entry"),
    (1 << 15, "loading of IA32_EFER at entry"),
    (IA32E_GUEST, "64-bit guests"),
];

/// Loading of IA32_PERF_GLOBAL_CTRL at exit and at entry.
const EXIT_PERFORMANCE: u32 = 1 << 12;
const ENTRY_PERFORMANCE: u32 = 1 << 13;

/// Of [`EPT_VPID`].
const EPT_NEEDED: [(u64, &str); 4] = [
    (1 << 6, "page walks of four levels"),
    (1 << 14, "write-back page tables"),
    (1 << 16, "nested pages of 2 MiB"),
    (1 << 20 | 1 << 25, "INVEPT"),
];
const EPT_GIB_PAGES: u64 = 1 << 17;
const EPT_DIRTY_FLAGS: u64 = 1 << 21;
const INVVPID: u64 = 1 << 32 | 1 << 41;

/// Bits of CR4 that a guest may own: everything but VMXE, SMXE and what needs features that CPUID hides, as OSXSAVE may.
/// VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT, FSGSBASE, PCIDE, SMEP, SMAP.
const CR4_GUEST: u64 = 0x7FF | 1 << 16 | 1 << 17 | 1 << 20 | 1 << 21;
/// Bits of CR0 that a guest does not own: NE is always set; CD and NW would act on the host, too.
const CR0_HOST: u64 = 1 << 5 | 1 << 29 | 1 << 30;
/// PE and PG, which an unrestricted guest may clear.
const CR0_UNRESTRICTED: u64 = 1 << 0 | 1 << 31;

/// Why VMX cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmxError {
    /// The firmware locked it away.
    Disabled,
    /// The CPU does not have what is needed.
    Lacks(Vec<&'static str>),
    /// VMXON failed.
    Vmxon(super::instructions::VmFail),
}

impl fmt::Display for VmxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str("the firmware has disabled VMX (IA32_FEATURE_CONTROL is locked without it)"),
            Self::Lacks(names) => write!(f, "this CPU's VMX lacks {}", names.join(", ")),
            Self::Vmxon(failure) => write!(f, "VMXON: {failure}"),
        }
    }
}

/// What to write to IA32_FEATURE_CONTROL, which holds `value`, before VMXON: nothing if it is fine as it is.
///
/// # Errors
/// When the firmware locked VMX away.
pub(super) fn feature_control(value: u64) -> Result<Option<u64>, VmxError> {
    match (value & FEATURE_LOCKED != 0, value & FEATURE_VMXON != 0) {
        (true, true) => Ok(None),
        (true, false) => Err(VmxError::Disabled),
        (false, _) => Ok(Some(value | FEATURE_LOCKED | FEATURE_VMXON)),
    }
}

/// The controls of a VMCS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Controls {
    pub(super) pin: u32,
    pub(super) primary: u32,
    pub(super) secondary: u32,
    pub(super) exit: u32,
    pub(super) entry: u32,
}

/// What is used of the CPU's VMX.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// What a VMCS begins with.
    pub(super) revision: u32,
    pub(super) controls: Controls,
    /// Translations are tagged, so that they outlive exits.
    pub(super) vpid: bool,
    /// Nested pages may have 1 GiB.
    pub(super) gib_pages: bool,
    /// The CPU notes in the nested page tables what was written.
    pub(super) dirty_flags: bool,
    /// There is [`MONITOR_TRAP`].
    pub(super) monitor_trap: bool,
    /// There is [`TSC_OFFSETTING`], and a guest without [`RDTSC_EXITING`].
    pub(super) tsc_offsetting: bool,
    /// There are [`PAGING_EXITS`].
    pub(super) paging_exits: bool,
    /// Exits and entries load IA32_PERF_GLOBAL_CTRL.
    pub(super) performance_control: bool,
    /// Bits of CR0 and CR4 that the guest does not own.
    pub(super) cr0_mask: u64,
    pub(super) cr4_mask: u64,
    /// What those bits really are.
    pub(super) cr0_fixed: u64,
    pub(super) cr4_fixed: u64,
}

/// Features of the CPU that VMX must be set up for: random number instructions, which are to exit, and XSAVE, which the
/// guest may enable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Features {
    pub(super) rdrand: bool,
    pub(super) rdseed: bool,
    pub(super) xsave: bool,
}

/// What is allowed and what is not, as one of the control MSRs says, and what is missing so far.
struct Adjuster<'a> {
    read: &'a dyn Fn(u32) -> u64,
    missing: Vec<&'static str>,
}

impl Adjuster<'_> {
    fn lacks(&mut self, name: &'static str) {
        self.missing.push(name);
    }

    /// The controls that are needed, and those that the CPU insists on.
    fn adjust(&mut self, msr: u32, needed: &[Control], wanted: u32) -> u32 {
        let [must, may] = halves((self.read)(msr));
        let mut controls = must | wanted & may;
        for &(bits, name) in needed {
            if may & bits == bits { controls |= bits } else { self.lacks(name) }
        }
        controls
    }

    fn check(&mut self, value: u64, needed: &[(u64, &'static str)]) {
        for &(bits, name) in needed {
            if value & bits != bits {
                self.lacks(name);
            }
        }
    }
}

/// Bits that must be 1, and bits that may be 1.
fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

impl Capabilities {
    /// Finds the controls on a CPU whose MSRs `read` reads.
    ///
    /// # Errors
    /// When something is missing, with the names of it.
    pub(super) fn find(read: &dyn Fn(u32) -> u64, features: Features) -> Result<Self, VmxError> {
        let basic = read(BASIC);
        let mut adjuster = Adjuster { read, missing: Vec::new() };
        if basic & BASIC_TRUE_CONTROLS == 0 {
            adjuster.lacks("the TRUE control MSRs");
            return Err(VmxError::Lacks(adjuster.missing));
        }
        let [must, may] = [0, 1].map(|half| move |msr| halves(read(msr))[half]);
        let performance_control = may(TRUE_EXIT) & EXIT_PERFORMANCE != 0 && may(TRUE_ENTRY) & ENTRY_PERFORMANCE != 0;
        let (exit_performance, entry_performance) =
            if performance_control { (EXIT_PERFORMANCE, ENTRY_PERFORMANCE) } else { (0, 0) };
        let mut controls = Controls {
            pin: adjuster.adjust(TRUE_PIN, &PIN, 0),
            primary: adjuster.adjust(TRUE_PRIMARY, &PRIMARY, 0) & !INTERRUPT_WINDOW,
            exit: adjuster.adjust(TRUE_EXIT, &EXIT, exit_performance),
            entry: adjuster.adjust(TRUE_ENTRY, &ENTRY, entry_performance) & !IA32E_GUEST,
            secondary: 0,
        };
        if controls.primary & PRIMARY_UNWANTED.0 != 0 {
            adjuster.lacks(PRIMARY_UNWANTED.1);
        }
        let (mut vpid, mut gib_pages, mut dirty_flags) = (false, false, false);
        if may(TRUE_PRIMARY) & 1 << 31 != 0 {
            controls.secondary = adjuster.adjust(SECONDARY, &secondary_needed(features), RDTSCP | INVPCID | VPID);
            let ept_vpid = if controls.secondary & (1 << 1 | VPID) != 0 { read(EPT_VPID) } else { 0 };
            adjuster.check(ept_vpid, &EPT_NEEDED);
            gib_pages = ept_vpid & EPT_GIB_PAGES != 0;
            dirty_flags = ept_vpid & EPT_DIRTY_FLAGS != 0;
            vpid = controls.secondary & VPID != 0 && ept_vpid & INVVPID == INVVPID;
            if !vpid {
                controls.secondary &= !VPID;
            }
        }
        if !adjuster.missing.is_empty() {
            return Err(VmxError::Lacks(adjuster.missing));
        }
        let cr0_fixed = read(CR0_FIXED[0]) & !CR0_UNRESTRICTED;
        let cr4_fixed = read(CR4_FIXED[0]);
        let cr4_guest = if features.xsave { CR4_GUEST | CR4_OSXSAVE } else { CR4_GUEST };
        Ok(Self {
            revision: basic as u32 & 0x7FFF_FFFF,
            controls,
            vpid,
            gib_pages,
            dirty_flags,
            monitor_trap: may(TRUE_PRIMARY) & MONITOR_TRAP != 0,
            tsc_offsetting: may(TRUE_PRIMARY) & TSC_OFFSETTING != 0 && must(TRUE_PRIMARY) & RDTSC_EXITING == 0,
            paging_exits: may(TRUE_PRIMARY) & PAGING_EXITS == PAGING_EXITS,
            performance_control,
            cr0_mask: cr0_fixed | CR0_HOST | 0xFFFF_FFFF & !read(CR0_FIXED[1]),
            cr4_mask: !cr4_guest | cr4_fixed | !read(CR4_FIXED[1]),
            cr0_fixed,
            cr4_fixed,
        })
    }
}

fn secondary_needed(features: Features) -> Vec<Control> {
    let mut needed = SECONDARY_NEEDED.to_vec();
    needed.extend(features.rdrand.then_some(RDRAND_EXITING));
    needed.extend(features.rdseed.then_some(RDSEED_EXITING));
    needed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CPU that allows everything and insists on what real ones insist on.
    fn rich(msr: u32) -> u64 {
        match msr {
            BASIC => 0x12 | BASIC_TRUE_CONTROLS | 1 << 31,
            TRUE_PIN => 0xFFFF_FFFF_0000_0016,
            TRUE_PRIMARY => 0xFFFF_FFFF_0400_6172,
            TRUE_EXIT => 0xFFFF_FFFF_0003_6DFB,
            TRUE_ENTRY => 0xFFFF_FFFF_0000_11FB,
            SECONDARY => 0xFFFF_FFFF_0000_0000,
            EPT_VPID => u64::MAX,
            0x486 => 0x8000_0021,
            0x487 => 0xFFFF_FFFF,
            0x488 => 0x2000,
            0x489 => 0x0037_27FF,
            other => panic!("MSR {other:#x} is not looked at"),
        }
    }

    const PLAIN: Features = Features { rdrand: false, rdseed: false, xsave: false };

    #[test]
    fn a_rich_cpu_gets_what_is_needed_and_no_more() {
        let found = Capabilities::find(&rich, Features { rdrand: true, ..PLAIN }).unwrap();
        assert_eq!(found.revision, 0x12);
        assert_eq!(found.controls.pin, 0x16 | 1 | 1 << 3 | 1 << 6);
        assert_eq!(found.controls.primary & (INTERRUPT_WINDOW | PRIMARY_UNWANTED.0), 0);
        assert_eq!(found.controls.secondary, 1 << 1 | RDTSCP | VPID | 1 << 6 | 1 << 7 | 1 << 11 | INVPCID);
        assert_eq!(found.controls.entry & IA32E_GUEST, 0);
        assert!(found.vpid && found.gib_pages && found.dirty_flags && found.monitor_trap && found.performance_control);
        assert_eq!(found.controls.primary & MONITOR_TRAP, 0);
        assert!(found.tsc_offsetting && found.controls.primary & (RDTSC_EXITING | TSC_OFFSETTING) == RDTSC_EXITING);
        assert_ne!(found.controls.exit & EXIT_PERFORMANCE, 0);
        assert_ne!(found.controls.entry & ENTRY_PERFORMANCE, 0);
        // The guest owns PE and PG but not NE; VMXE is not its own, OSXSAVE only where there is XSAVE.
        assert_eq!((found.cr0_fixed, found.cr4_fixed), (1 << 5, 1 << 13));
        assert_eq!(found.cr0_mask, CR0_HOST);
        assert_eq!(found.cr4_mask & (1 << 13 | 1 << 18 | 1 << 5), 1 << 13 | 1 << 18);
        let found = |cr4| {
            let read = move |msr| if msr == CR4_FIXED[1] { cr4 } else { rich(msr) };
            Capabilities::find(&read, Features { xsave: true, ..PLAIN }).unwrap()
        };
        assert_eq!(found(0x0037_27FF).cr4_mask & (1 << 13 | CR4_OSXSAVE), 1 << 13);
        assert_ne!(found(0x0033_27FF).cr4_mask & CR4_OSXSAVE, 0);
    }

    #[test]
    fn what_is_missing_is_named() {
        let without =
            |msr: u32, bits: u64| move |asked: u32| if asked == msr { rich(asked) & !bits } else { rich(asked) };
        let error = |read: &dyn Fn(u32) -> u64| Capabilities::find(read, PLAIN).unwrap_err().to_string();
        assert_eq!(error(&without(TRUE_PIN, 1 << (32 + 6))), "this CPU's VMX lacks VMX preemption timer");
        assert_eq!(
            error(&without(SECONDARY, (1 << 1 | 1 << 7) << 32)),
            "this CPU's VMX lacks extended page tables, unrestricted guest"
        );
        assert!(error(&without(TRUE_PRIMARY, 1 << 63)).contains("secondary controls"));
        assert!(error(&without(EPT_VPID, 1 << 14)).contains("write-back page tables"));
        assert!(error(&without(BASIC, BASIC_TRUE_CONTROLS)).contains("TRUE"));
        let insists = |msr: u32| if msr == TRUE_PRIMARY { rich(msr) | 1 << 15 } else { rich(msr) };
        assert!(error(&insists).contains("CR3"));
        let no_exiting = without(SECONDARY, 1 << (32 + 16));
        let random = Features { rdseed: true, ..PLAIN };
        assert!(Capabilities::find(&no_exiting, random).unwrap_err().to_string().contains("RDSEED"));
        assert!(Capabilities::find(&no_exiting, PLAIN).is_ok());
    }

    #[test]
    fn what_is_optional_may_be_missing() {
        let poor = |msr: u32| match msr {
            SECONDARY => (1 << 1 | 1 << 6 | 1 << 7) << 32,
            EPT_VPID => EPT_NEEDED.iter().map(|(bits, _)| bits).sum(),
            TRUE_PRIMARY => rich(msr) & !(u64::from(MONITOR_TRAP | TSC_OFFSETTING) << 32),
            // One of them alone is of no use.
            TRUE_EXIT => rich(msr) & !(u64::from(EXIT_PERFORMANCE) << 32),
            other => rich(other),
        };
        let found = Capabilities::find(&poor, PLAIN).unwrap();
        assert!(!found.vpid && !found.gib_pages && !found.dirty_flags && !found.monitor_trap);
        assert!(!found.performance_control && !found.tsc_offsetting);
        assert_eq!(found.controls.entry & ENTRY_PERFORMANCE, 0);
        assert_eq!(found.controls.secondary, 1 << 1 | 1 << 6 | 1 << 7);
        let insists = |msr: u32| if msr == TRUE_PRIMARY { rich(msr) | u64::from(RDTSC_EXITING) } else { rich(msr) };
        assert!(!Capabilities::find(&insists, PLAIN).unwrap().tsc_offsetting);
    }

    #[test]
    fn the_lock_of_the_firmware_is_honoured() {
        assert_eq!(feature_control(5), Ok(None));
        assert_eq!(feature_control(0), Ok(Some(5)));
        assert_eq!(feature_control(4), Ok(Some(5)));
        assert_eq!(feature_control(1), Err(VmxError::Disabled));
    }
}
