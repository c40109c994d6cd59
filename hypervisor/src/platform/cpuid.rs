//! What CPUID shows the guest: an allow-list over the host's leaves, computed once.
//!
//! Two machines give the guest the same answers exactly when their tables are equal: pairing compares the digests.
//! See: SDM volume 2A, "CPUID"; APM volume 3, appendix E.

use super::kvm;
use alloc::vec::Vec;
use xxhash_rust::xxh64::xxh64;

use crate::extended::{AVX, AVX512, Layout};

/// Frequency of the guest's TSC and of its local APIC timer in Hz: both count guest time in nanoseconds.
pub const TSC_HZ: u32 = 1_000_000_000;

/// Reads a CPUID leaf and subleaf of the host: EAX, EBX, ECX, EDX.
pub type HostCpuid<'a> = &'a dyn Fn(u32, u32) -> [u32; 4];

/// What of the CPU's state CPUID shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuidContext {
    /// CR4.OSXSAVE.
    pub cr4_osxsave: bool,
    /// XCR0.
    pub xcr0: u64,
}

/// A mask of the given bit numbers.
const fn bits(numbers: &[u32]) -> u32 {
    let mut mask = 0;
    let mut index = 0;
    while index < numbers.len() {
        mask |= 1 << numbers[index];
        index += 1;
    }
    mask
}

/// Leaf 1 ECX. Hidden: DTES64, MONITOR, VMX, SMX, PDCM and the like; RDRAND, which cannot be made deterministic.
/// SSE3, PCLMULQDQ, SSSE3, CX16, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES.
const LEAF_1_ECX: u32 = bits(&[0, 1, 9, 13, 17, 19, 20, 22, 23, 25]);
/// x2APIC, TSC-deadline timer and "hypervisor present" are ours, whatever the host has.
const LEAF_1_ECX_SET: u32 = bits(&[21, 24, 31]);
/// FPU to CX8, APIC, SEP, MTRR to CLFSH without PSN, MMX, FXSR, SSE, SSE2. Hidden: debug store, thermal, HTT.
const LEAF_1_EDX: u32 = bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26]);

/// FSGSBASE, BMI1, SMEP, BMI2, ERMS, INVPCID, FPU CS/DS deprecation, ADX, SMAP, CLFLUSHOPT, CLWB, SHA.
/// Hidden: TSX, MPX, RDSEED, processor trace; AVX2 and AVX-512 where XSAVE does not save their registers.
const LEAF_7_EBX: u32 = bits(&[0, 3, 7, 8, 9, 10, 13, 19, 20, 23, 24, 29]);
/// IA32_TSC_ADJUST is emulated.
const LEAF_7_EBX_SET: u32 = bits(&[1]);
/// Fast short REP MOV. Hidden: everything that comes with MSRs (speculation control) or CR4 bits.
const LEAF_7_EDX: u32 = bits(&[4]);

/// Leaf 1 ECX, leaf 7 EBX and ECX: what comes with XSAVE, with YMM and with ZMM registers.
/// XSAVE.
const WITH_XSAVE: [u32; 3] = [bits(&[26]), 0, 0];
/// FMA, AVX, F16C; AVX2; VAES, VPCLMULQDQ.
const WITH_AVX: [u32; 3] = [bits(&[12, 28, 29]), bits(&[5]), bits(&[9, 10])];
/// AVX512F, DQ, IFMA, CD, BW, VL; VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ.
const WITH_AVX512: [u32; 3] = [0, bits(&[16, 17, 21, 28, 30, 31]), bits(&[1, 6, 11, 12, 14])];
/// CR4.OSXSAVE as leaf 1 ECX shows it.
const OSXSAVE: u32 = bits(&[27]);

/// LAHF, ABM, SSE4A, misaligned SSE, prefetch.
const EXT_1_ECX: u32 = bits(&[0, 5, 6, 7, 8]);
/// SYSCALL, NX, MMX extensions, 1 GiB pages, long mode.
const EXT_1_EDX: u32 = bits(&[11, 20, 22, 26, 29]);
const EXT_1_EDX_RDTSCP: u32 = bits(&[27]);
/// AMD repeats leaf 1 EDX here.
const EXT_1_EDX_COPY: u32 = LEAF_1_EDX & bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 23, 24]);

/// Widths of addresses. See: SDM volume 2A, "CPUID"; no processor has fewer than 36 physical bits or more than 52.
const PHYSICAL_BITS_LEAF: u32 = 0x8000_0008;

/// Where guests find out that this is Pollux.
const OUR_CPUID: u32 = 0x4000_0100;

/// Subleaves that are looked at, at most, where their number comes from the host.
const MAX_SUBLEAVES: u32 = 8;

/// A leaf of a host without PCID and INVPCID: tracked translations have no tags.
#[must_use]
pub const fn without_tags(leaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> [u32; 4] {
    match leaf {
        1 => [eax, ebx, ecx & !bits(&[17]), edx],
        7 => [eax, ebx & !bits(&[10]), ecx, edx],
        _ => [eax, ebx, ecx, edx],
    }
}

/// The guest's CPUID table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpuid {
    /// Leaf, subleaf, EAX to EDX; sorted. Leaves without subleaves have subleaf 0 only.
    entries: Vec<(u32, u32, [u32; 4])>,
    digest: u64,
    layout: Layout,
}

impl Cpuid {
    /// Applies the policy to the host's leaves. `rdtscp`: the guest may use RDTSCP. `layout`: the registers beyond the
    /// general ones that it may have.
    #[must_use]
    pub fn new(host: HostCpuid<'_>, rdtscp: bool, layout: Layout) -> Self {
        let mut entries = Vec::new();
        basic(host, &layout, &mut entries);
        xsave(&layout, &mut entries);
        hypervisor(&mut entries);
        extended(host, rdtscp, &mut entries);
        entries.sort_unstable();
        let mut bytes = Vec::new();
        for (leaf, subleaf, registers) in &entries {
            for value in [leaf, subleaf].into_iter().chain(registers) {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
        }
        let digest = xxh64(&bytes, 0);
        Self { entries, digest, layout }
    }

    /// EAX, EBX, ECX, EDX of a leaf; zeros where there is none.
    #[must_use]
    pub fn get(&self, leaf: u32, subleaf: u32, context: CpuidContext) -> [u32; 4] {
        let find = |subleaf| self.entries.binary_search_by_key(&(leaf, subleaf), |&(l, s, _)| (l, s));
        let subleaf = if has_subleaves(leaf) { subleaf } else { 0 };
        let mut registers = match find(subleaf) {
            Ok(index) => self.entries[index].2,
            // Beyond the topology levels, the level number still comes back. See: SDM, leaf 0BH.
            Err(_) if leaf == 0xB => [0, 0, subleaf & 0xFF, 0],
            Err(_) => [0; 4],
        };
        if self.layout.has_xsave() {
            match (leaf, subleaf) {
                (1, _) if context.cr4_osxsave => registers[2] |= OSXSAVE,
                (0xD, 0) => registers[1] = self.layout.bytes(context.xcr0),
                _ => {}
            }
        }
        registers
    }

    /// Width of physical addresses, from 36 to 52.
    #[must_use]
    pub fn physical_bits(&self) -> u32 {
        self.get(PHYSICAL_BITS_LEAF, 0, CpuidContext::default())[0] & 0xFF
    }

    /// A hash of the whole table.
    #[must_use]
    pub const fn digest(&self) -> u64 {
        self.digest
    }
}

const fn has_subleaves(leaf: u32) -> bool {
    matches!(leaf, 4 | 7 | 0xB | 0xD)
}

fn basic(host: HostCpuid<'_>, layout: &Layout, entries: &mut Vec<(u32, u32, [u32; 4])>) {
    let [host_max, vendor @ ..] = host(0, 0);
    let [ebx, ecx, edx] = vendor;
    entries.push((0, 0, [0x16, ebx, ecx, edx]));

    let [more_1_ecx, more_7_ebx, leaf_7_ecx] = with_registers(layout);
    let [eax, ebx, ecx, edx] = host(1, 0);
    let ecx = ecx & (LEAF_1_ECX | more_1_ecx) | LEAF_1_ECX_SET;
    // APIC ID 0, one logical processor; of EBX only the CLFLUSH line size is the host's.
    entries.push((1, 0, [eax, ebx & 0xFF00 | 1 << 16, ecx, edx & LEAF_1_EDX]));

    if host_max >= 2 {
        entries.push((2, 0, host(2, 0)));
    }
    if host_max >= 4 {
        // Deterministic cache parameters, shared with nobody.
        for subleaf in 0..MAX_SUBLEAVES {
            let [eax, ebx, ecx, edx] = host(4, subleaf);
            if eax & 0x1F == 0 {
                break;
            }
            entries.push((4, subleaf, [eax & 0x3FFF, ebx, ecx, edx]));
        }
    }
    // The local APIC timer never stops.
    entries.push((6, 0, [1 << 2, 0, 0, 0]));
    let [_, ebx, ecx, edx] = if host_max >= 7 { host(7, 0) } else { [0; 4] };
    let ebx = ebx & (LEAF_7_EBX | more_7_ebx) | LEAF_7_EBX_SET;
    // Not of ECX: RDPID would read the host's TSC_AUX, as it does not exit.
    entries.push((7, 0, [0, ebx, ecx & leaf_7_ecx, edx & LEAF_7_EDX]));
    // Topology: one thread, one core.
    entries.push((0xB, 0, [0, 1, 1 << 8, 0]));
    entries.push((0xB, 1, [0, 1, 2 << 8 | 1, 0]));
    // TSC = crystal × 1 / 1, and frequencies in MHz.
    entries.push((0x15, 0, [1, 1, TSC_HZ, 0]));
    entries.push((0x16, 0, [TSC_HZ / 1_000_000, TSC_HZ / 1_000_000, 100, 0]));
}

/// What of leaf 1 ECX and of leaf 7 EBX and ECX comes with the registers that the guest may have.
fn with_registers(layout: &Layout) -> [u32; 3] {
    let has = |bits| layout.components() & bits == bits;
    let sets = [(layout.has_xsave(), WITH_XSAVE), (has(AVX), WITH_AVX), (has(AVX512), WITH_AVX512)];
    let there = sets.into_iter().filter(|(there, _)| *there);
    there.fold([0; 3], |all, (_, more)| core::array::from_fn(|index| all[index] | more[index]))
}

/// XSAVE and XRSTOR with what they save. The rest of leaf 0DH is hidden: what XSAVEOPT, XSAVEC and XSAVES leave out, and
/// what XGETBV tells of it, depends on what the CPU has noticed. See: SDM volume 1, 13.2 and 13.6.
fn xsave(layout: &Layout, entries: &mut Vec<(u32, u32, [u32; 4])>) {
    if layout.has_xsave() {
        let components = layout.components();
        // EBX, what XCR0 asks for, is `get`'s.
        entries.push((0xD, 0, [components as u32, 0, layout.bytes(components), 0]));
        entries.extend(layout.places().map(|(number, place)| {
            let registers = [place.len() as u32, place.start as u32, 0, 0];
            (0xD, number, registers)
        }));
    }
}

/// First what guests understand, then who it is.
fn hypervisor(entries: &mut Vec<(u32, u32, [u32; 4])>) {
    let names = |highest, name: &[u8; 12]| {
        let part = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
        [highest, part(0), part(4), part(8)]
    };
    entries.push((kvm::CPUID, 0, names(kvm::CPUID + 0x10, &kvm::SIGNATURE)));
    entries.push((kvm::CPUID + 1, 0, [kvm::FEATURES, 0, 0, 0]));
    entries.push((OUR_CPUID, 0, names(OUR_CPUID, b"PolluxPollux")));
    // TSC and APIC timer in kHz, where several hypervisors have them.
    entries.push((kvm::CPUID + 0x10, 0, [TSC_HZ / 1000, TSC_HZ / 1000, 0, 0]));
}

fn extended(host: HostCpuid<'_>, rdtscp: bool, entries: &mut Vec<(u32, u32, [u32; 4])>) {
    let [host_max, vendor @ ..] = host(0x8000_0000, 0);
    let [ebx, ecx, edx] = vendor;
    entries.push((0x8000_0000, 0, [0x8000_0008, ebx, ecx, edx]));
    let read = |leaf| if leaf <= host_max { host(leaf, 0) } else { [0; 4] };

    let [eax, _, ecx, edx] = read(0x8000_0001);
    // Vendors that have an extended vendor string repeat the basic features.
    let copy = if vendor == [0; 3] { 0 } else { EXT_1_EDX_COPY };
    let tscp = if rdtscp { EXT_1_EDX_RDTSCP } else { 0 };
    entries.push((0x8000_0001, 0, [eax, 0, ecx & EXT_1_ECX, edx & (EXT_1_EDX | copy | tscp)]));
    for leaf in 0x8000_0002..=0x8000_0006 {
        entries.push((leaf, 0, read(leaf)));
    }
    // Invariant TSC.
    entries.push((0x8000_0007, 0, [0, 0, 0, 1 << 8]));
    // The host's physical address width, 48 bits of linear addresses; no further features, one core.
    let physical = (read(PHYSICAL_BITS_LEAF)[0] & 0xFF).clamp(36, 52);
    entries.push((PHYSICAL_BITS_LEAF, 0, [physical | 48 << 8, 0, 0, 0]));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything(leaf: u32, subleaf: u32) -> [u32; 4] {
        match leaf {
            0 => [0x20, 1, 2, 3],
            4 if subleaf > 2 => [0; 4],
            0x8000_0000 => [0x8000_0021, 1, 2, 3],
            _ => [u32::MAX; 4],
        }
    }

    #[test]
    fn what_cannot_be_deterministic_is_hidden() {
        let cpuid = Cpuid::new(&everything, true, Layout::LEGACY);
        let get = |leaf, subleaf| cpuid.get(leaf, subleaf, CpuidContext { cr4_osxsave: true, xcr0: 7 });
        let [_, ebx, ecx, edx] = get(1, 0);
        for hidden in [3, 5, 12, 26, 27, 28, 29, 30] {
            assert_eq!(ecx >> hidden & 1, 0, "leaf 1 ECX bit {hidden}");
        }
        assert_eq!((ecx >> 21 & 1, ecx >> 24 & 1, ecx >> 31), (1, 1, 1));
        assert_eq!((ebx >> 16, edx >> 28 & 1), (1, 0));
        let [_, ebx, ecx, _] = get(7, 0);
        for hidden in [4, 5, 11, 14, 16, 18, 25] {
            assert_eq!(ebx >> hidden & 1, 0, "leaf 7 EBX bit {hidden}");
        }
        assert_eq!(ecx, 0, "RDPID");
        for leaf in [5, 0xA, 0xD, 0x14, 0x17, 0x8000_000A, 0x8000_001F, u32::MAX] {
            assert_eq!(get(leaf, 0), [0; 4], "leaf {leaf:#x}");
        }
        assert_eq!(get(0x8000_0001, 0)[2] >> 2 & 1, 0);
    }

    /// A host that claims everything, with XSAVE's areas where Intel's processors have them.
    fn with_areas(leaf: u32, subleaf: u32) -> [u32; 4] {
        match (leaf, subleaf) {
            (0xD, 2) => [256, 576, 0, 0],
            (0xD, 5) => [64, 1088, 0, 0],
            (0xD, 6) => [512, 1152, 2, 0],
            (0xD, 7) => [1024, 1664, 2, 0],
            _ => everything(leaf, subleaf),
        }
    }

    #[test]
    fn vector_units_are_shown_as_far_as_their_registers_are_saved() {
        let all = Layout::find(&with_areas);
        assert_eq!(all.components(), 0xE7);
        let features = |layout: Layout| {
            let cpuid = Cpuid::new(&with_areas, false, layout);
            let get = |leaf| cpuid.get(leaf, 0, CpuidContext::default());
            let has = |register: u32, bits: &[u32]| bits.iter().filter(|bit| register >> **bit & 1 != 0).count();
            (
                has(get(1)[2], &[26, 27]),
                has(get(1)[2], &[12, 28, 29]) + has(get(7)[1], &[5]) + has(get(7)[2], &[9, 10]),
                has(get(7)[1], &[16, 17, 21, 28, 30, 31]) + has(get(7)[2], &[1, 6, 11, 12, 14]),
            )
        };
        assert_eq!(features(Layout::LEGACY), (0, 0, 0));
        assert_eq!(features(all.within(3)), (1, 0, 0));
        assert_eq!(features(all.within(7)), (1, 6, 0));
        assert_eq!(features(all), (1, 6, 11));
        // No instruction that depends on what the processor has noticed; no component by number that is not saved.
        let cpuid = Cpuid::new(&with_areas, false, all);
        let get = |subleaf| cpuid.get(0xD, subleaf, CpuidContext { cr4_osxsave: true, xcr0: 1 });
        assert_eq!(get(0), [0xE7, 576, 2688, 0]);
        for subleaf in [1, 3, 4, 8, 9, 11, 12, 17, 18, 62, u32::MAX] {
            assert_eq!(get(subleaf), [0; 4], "subleaf {subleaf}");
        }
        assert_eq!((get(2), get(7)), ([256, 576, 0, 0], [1024, 1664, 0, 0]));
    }

    #[test]
    fn what_is_enabled_shows() {
        let cpuid = Cpuid::new(&with_areas, false, Layout::find(&with_areas));
        let get = |leaf, cr4_osxsave, xcr0| cpuid.get(leaf, 0, CpuidContext { cr4_osxsave, xcr0 });
        assert_eq!([false, true].map(|on| get(1, on, 1)[2] >> 27 & 1), [0, 1]);
        assert_eq!([1, 3, 7, 0xE7].map(|xcr0| get(0xD, true, xcr0)[1]), [576, 576, 832, 2688]);
        let legacy = Cpuid::new(&with_areas, false, Layout::LEGACY);
        let context = CpuidContext { cr4_osxsave: true, xcr0: 7 };
        assert_eq!((legacy.get(1, 0, context)[2] >> 26 & 3, legacy.get(0xD, 0, context)), (0, [0; 4]));
        // Machines with other registers are no twins.
        let digests = [Layout::LEGACY, Layout::find(&with_areas).within(7), Layout::find(&with_areas)]
            .map(|layout| Cpuid::new(&with_areas, false, layout).digest());
        assert!(digests[0] != digests[1] && digests[1] != digests[2] && digests[0] != digests[2]);
    }

    #[test]
    fn addresses_have_a_width_that_processors_have() {
        for (host, shown) in [(0, 36), (36, 36), (39, 39), (48, 48), (52, 52), (57, 52), (255, 52)] {
            let leaf = |leaf, _| if leaf == 0x8000_0008 { [0x3000 | host, 0, 0, 0] } else { everything(leaf, 0) };
            assert_eq!(Cpuid::new(&leaf, true, Layout::LEGACY).physical_bits(), shown);
        }
    }

    #[test]
    fn what_is_ours_is_there_on_the_poorest_host() {
        let cpuid = Cpuid::new(&|_, _| [0; 4], false, Layout::LEGACY);
        let get = |leaf, subleaf| cpuid.get(leaf, subleaf, CpuidContext::default());
        assert_eq!(get(0x15, 9), [1, 1, 1_000_000_000, 0]);
        assert_eq!(get(0x8000_0007, 0)[3], 1 << 8);
        assert_eq!(get(0xB, 0), [0, 1, 0x100, 0]);
        assert_eq!(get(0xB, 5), [0, 0, 5, 0]);
        for (leaf, highest, wanted) in
            [(0x4000_0000, 0x4000_0010, b"KVMKVMKVM\0\0\0"), (0x4000_0100, 0x4000_0100, b"PolluxPollux")]
        {
            let [eax, ebx, ecx, edx] = get(leaf, 0);
            let name: Vec<u8> = [ebx, ecx, edx].iter().flat_map(|part| part.to_le_bytes()).collect();
            assert_eq!((eax, name.as_slice()), (highest, &wanted[..]));
        }
        assert_eq!(get(0x8000_0001, 0)[3] >> 27 & 1, 0);
        assert_ne!(cpuid.digest(), Cpuid::new(&everything, false, Layout::LEGACY).digest());
    }
}
