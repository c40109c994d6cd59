//! The counters of Intel's architectural performance monitoring as values: what CPUID claims, and what is written where.
//! See: SDM volume 3B, chapter 20 ("Performance monitoring"), and volume 4 for the MSRs. No register is accessed here.

use super::InstructionCounter;

/// `IA32_FIXED_CTR0`: counts retired instructions.
pub const FIXED_CTR0: u32 = 0x309;
/// `IA32_PMC0`, whose writes are sign-extended from 32 bits.
pub const PMC0: u32 = 0xC1;
/// `IA32_A_PMC0`: the same counter, written at full width.
pub const A_PMC0: u32 = 0x4C1;
/// `IA32_PERFEVTSEL0`: what PMC0 counts.
pub const PERFEVTSEL0: u32 = 0x186;
/// `IA32_PERF_CAPABILITIES`, if CPUID.1:ECX bit 15 (PDCM) says so.
pub const PERF_CAPABILITIES: u32 = 0x345;
/// `IA32_FIXED_CTR_CTRL`.
pub const FIXED_CTR_CTRL: u32 = 0x38D;
/// `IA32_PERF_GLOBAL_STATUS`: which counters have overflowed.
pub const GLOBAL_STATUS: u32 = 0x38E;
/// `IA32_PERF_GLOBAL_CTRL`: which counters run.
pub const GLOBAL_CTRL: u32 = 0x38F;
/// `IA32_PERF_GLOBAL_OVF_CTRL` (from version 4 on `..._STATUS_RESET`): clears bits of the status.
pub const GLOBAL_OVF_CTRL: u32 = 0x390;

/// `IA32_DEBUGCTL.FREEZE_WHILE_SMM`: counters stand still in system-management mode, where `PERF_CAPABILITIES` bit 12 says so.
pub const DEBUGCTL_FREEZE_IN_SMM: u64 = 1 << 14;
/// `PERF_CAPABILITIES.FW_WRITE`: [`A_PMC0`] exists.
pub const CAPABILITY_FULL_WRITE: u64 = 1 << 13;
/// `PERF_CAPABILITIES.SMM_FREEZE`.
pub const CAPABILITY_SMM_FREEZE: u64 = 1 << 12;

/// Counter 0 of `FIXED_CTR_CTRL` counts in the kernel and in user mode (bits 0 and 1) and interrupts at its overflow
/// (bit 3). Its "any thread" bit (2) stays clear.
pub const FIXED_CTR0_ON: u64 = 0b1011;
/// Event 0xC0 with unit mask 0 (instructions retired) in user mode (bit 16) and in the kernel (17), with an interrupt at the
/// overflow (20), enabled (22).
pub const EVENT_INSTRUCTIONS: u64 = 0xC0 | 1 << 16 | 1 << 17 | 1 << 20 | 1 << 22;

/// Which counter counts the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// [`FIXED_CTR0`].
    Fixed,
    /// General counter 0. `full_write`: it can be written at [`A_PMC0`].
    General {
        /// Whether [`A_PMC0`] exists.
        full_write: bool,
    },
}

/// The counter that is used, and its width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Which counter.
    pub source: Source,
    /// Its bits, as CPUID claims, 2 to 63.
    pub width: u8,
}

impl Layout {
    /// What a CPU with this CPUID leaf 0xA (EAX, EBX, ECX, EDX) and `PERF_CAPABILITIES` (0 if there is none) offers: the
    /// fixed counter if there is one, else a general one.
    ///
    /// # Errors
    /// Why it has none that could be used.
    pub fn from_cpuid([eax, ebx, _, edx]: [u32; 4], capabilities: u64) -> Result<Self, &'static str> {
        let field = |register: u32, low: u32, bits: u32| register >> low & ((1 << bits) - 1);
        // Version 1 has no global control, which the VM entry and exit switch.
        if field(eax, 0, 8) < 2 {
            return Err("CPUID leaf 0xA shows no performance monitoring of version 2 or later");
        }
        let (source, width) = if field(edx, 0, 5) > 0 && field(edx, 5, 8) > 0 {
            (Source::Fixed, field(edx, 5, 8))
        } else if field(eax, 8, 8) > 0 && field(eax, 24, 8) > 1 && ebx & 1 << 1 == 0 {
            // Bit 1 of EBX: the event "instructions retired" is not available.
            (Source::General { full_write: capabilities & CAPABILITY_FULL_WRITE != 0 }, field(eax, 16, 8))
        } else {
            return Err("CPUID leaf 0xA shows no counter of retired instructions");
        };
        if !(2..64).contains(&width) {
            return Err("CPUID leaf 0xA shows a counter of retired instructions of impossible width");
        }
        Ok(Self { source, width: width as u8 })
    }

    /// The MSR by which the counter is written.
    #[must_use]
    pub const fn write_msr(self) -> u32 {
        match self.source {
            Source::Fixed => FIXED_CTR0,
            Source::General { full_write: true } => A_PMC0,
            Source::General { full_write: false } => PMC0,
        }
    }

    /// The MSR that selects what it counts, and the value that makes it count instructions.
    #[must_use]
    pub const fn control(self) -> (u32, u64) {
        match self.source {
            Source::Fixed => (FIXED_CTR_CTRL, FIXED_CTR0_ON),
            Source::General { .. } => (PERFEVTSEL0, EVENT_INSTRUCTIONS),
        }
    }

    /// Its bit in [`GLOBAL_CTRL`], [`GLOBAL_STATUS`] and [`GLOBAL_OVF_CTRL`].
    #[must_use]
    pub const fn global_bit(self) -> u64 {
        match self.source {
            Source::Fixed => 1 << 32,
            Source::General { .. } => 1 << 0,
        }
    }

    /// Most counts that can be armed at once: half the range, so that a run that went on past the overflow is still seen
    /// as such; within the 31 bits that a sign-extended write leaves.
    #[must_use]
    pub const fn longest(self) -> u64 {
        let half = 1 << (self.width - 1);
        match self.source {
            Source::General { full_write: false } if self.width > 32 => 1 << 31,
            _ => half,
        }
    }

    /// Writes what counting will write, and leaves the counter off. `read` and `write` say whether the register is there.
    ///
    /// # Errors
    /// Which register the CPU does not have, whatever CPUID says.
    pub fn probe(
        self,
        read: &mut dyn FnMut(u32) -> Option<u64>,
        write: &mut dyn FnMut(u32, u64) -> bool,
    ) -> Result<(), &'static str> {
        let ((control, on), counter) = (self.control(), self.write_msr());
        let values = [
            (GLOBAL_CTRL, 0),
            (control, on),
            (counter, self.preload(self.longest())),
            (GLOBAL_OVF_CTRL, self.global_bit()),
            (control, 0),
        ];
        match values.into_iter().find(|&(register, value)| !write(register, value)) {
            Some((register, _)) => Err(absent(register)),
            None => read(counter).map(|_| ()).ok_or_else(|| absent(counter)),
        }
    }

    /// The value from which the counter overflows after `counts` more, 1 to [`longest`](Self::longest).
    #[must_use]
    pub const fn preload(self, counts: u64) -> u64 {
        counts.wrapping_neg() & self.mask()
    }

    /// How much it counted from the value `before` to the value `after`, less than its whole range.
    #[must_use]
    pub const fn counted(self, before: u64, after: u64) -> u64 {
        after.wrapping_sub(before) & self.mask()
    }

    /// The same for the trait of virtual CPUs.
    #[must_use]
    pub const fn describe(self) -> InstructionCounter {
        let name = match self.source {
            Source::Fixed => "fixed counter 0",
            Source::General { .. } => "general counter 0",
        };
        InstructionCounter { name, width: self.width, longest: self.longest() }
    }

    const fn mask(self) -> u64 {
        (1 << self.width) - 1
    }
}

/// A register of [`Layout::probe`] that faults.
const fn absent(register: u32) -> &'static str {
    match register {
        GLOBAL_CTRL => "CPUID announces IA32_PERF_GLOBAL_CTRL (0x38F), and the register faults",
        GLOBAL_OVF_CTRL => "CPUID announces IA32_PERF_GLOBAL_OVF_CTRL (0x390), and the register faults",
        FIXED_CTR_CTRL => "CPUID announces IA32_FIXED_CTR_CTRL (0x38D), and the register faults",
        PERFEVTSEL0 => "CPUID announces IA32_PERFEVTSEL0 (0x186), and the register faults",
        FIXED_CTR0 => "CPUID announces IA32_FIXED_CTR0 (0x309), and the register faults",
        A_PMC0 => "CPUID announces IA32_A_PMC0 (0x4C1), and the register faults",
        _ => "CPUID announces IA32_PMC0 (0xC1), and the register faults",
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    /// Leaf 0xA of a client CPU: version 5, 8 general counters of 48 bits, 3 fixed ones of 48 bits.
    const CLIENT: [u32; 4] = [0x0830_0805, 0, 0, 0x0000_8603];

    #[test]
    fn the_fixed_counter_is_preferred() {
        let layout = Layout::from_cpuid(CLIENT, 0).unwrap();
        assert_eq!(layout, Layout { source: Source::Fixed, width: 48 });
        assert_eq!((layout.write_msr(), layout.control(), layout.global_bit()), (0x309, (0x38D, 0xB), 1 << 32));
        assert_eq!(layout.longest(), 1 << 47);
    }

    #[test]
    fn a_general_counter_is_the_alternative() {
        let [eax, ebx, ecx, _] = CLIENT;
        let layout = |capabilities| Layout::from_cpuid([eax, ebx, ecx, 0], capabilities).unwrap();
        let full = layout(CAPABILITY_FULL_WRITE);
        assert_eq!((full.write_msr(), full.control(), full.global_bit()), (0x4C1, (0x186, 0x53_00C0), 1));
        assert_eq!(full.longest(), 1 << 47);
        let old = layout(0);
        assert_eq!((old.write_msr(), old.longest()), (0xC1, 1 << 31));
        // A negative number of 32 bits, which the CPU extends to all bits.
        assert_eq!(old.preload(1 << 31) as u32 as i32, i32::MIN);
    }

    #[test]
    fn what_is_missing_is_named() {
        let refused = |eax: u32, ebx: u32, edx: u32| Layout::from_cpuid([eax, ebx, 0, edx], 0).unwrap_err();
        assert!(refused(0, 0, 0).contains("no performance monitoring"));
        assert!(refused(0x0830_0801, 0, 0).contains("version 2"));
        assert!(refused(0x0830_0002, 0, 0).contains("no counter of retired"));
        assert!(refused(0x0830_0802, 1 << 1, 0).contains("no counter of retired"));
        assert!(refused(0x0800_0802, 0, 0).contains("impossible width"));
        assert!(refused(2, 0, 200 << 5 | 1).contains("impossible width"));
    }

    #[test]
    fn a_register_that_faults_is_named_and_none_but_those_announced_is_touched() {
        let layout = |source| Layout { source, width: 48 };
        let general = |full_write| layout(Source::General { full_write });
        let cases = [
            (layout(Source::Fixed), [0x38F, 0x38D, 0x309, 0x390]),
            (general(true), [0x38F, 0x186, 0x4C1, 0x390]),
            (general(false), [0x38F, 0x186, 0xC1, 0x390]),
        ];
        for (layout, announced) in cases {
            let mut written = Vec::new();
            let found =
                layout.probe(&mut |register| announced.contains(&register).then_some(0), &mut |register, value| {
                    written.push((register, value));
                    announced.contains(&register)
                });
            assert_eq!(found, Ok(()));
            assert_eq!(written.last(), Some(&(layout.control().0, 0)), "the counter is left off");
            for absent in announced {
                let refused = layout.probe(&mut |_| Some(0), &mut |register, _| register != absent).unwrap_err();
                assert!(refused.contains(&alloc::format!("(0x{absent:X})")), "{refused} for {absent:#x}");
            }
            let refused = layout.probe(&mut |_| None, &mut |_, _| true).unwrap_err();
            assert!(refused.contains(&alloc::format!("(0x{:X})", layout.write_msr())), "{refused}");
        }
    }

    proptest::proptest! {
        #[test]
        fn counts_survive_the_overflow(width in 8_u8..64, armed in 1_u64.., skid in 0_u64..64) {
            let layout = Layout { source: Source::Fixed, width };
            let armed = 1 + armed % layout.longest();
            let before = layout.preload(armed);
            let at = |counts: u64| before.wrapping_add(counts) & (u64::MAX >> (64 - width));
            proptest::prop_assert_eq!(at(armed), 0, "it overflows exactly then");
            proptest::prop_assert_eq!(layout.counted(before, at(armed + skid)), armed + skid);
            proptest::prop_assert_eq!(layout.counted(before, at(armed - 1)), armed - 1);
        }

        #[test]
        fn no_leaf_panics(leaf: [u32; 4], capabilities: u64) {
            if let Ok(layout) = Layout::from_cpuid(leaf, capabilities) {
                proptest::prop_assert_ne!(layout.preload(layout.longest()), 0);
            }
        }
    }
}
