//! The canonical form, on made-up areas and on what the desk's own processor writes.
#![allow(unsafe_code)]

use core::arch::asm;

use proptest::prelude::*;

use super::*;
use crate::state;

/// A CPU as CPUID describes it: where AVX-512's components are, and what leaf 0DH claims.
fn cpu(claimed: u64, offsets: [u32; 3]) -> impl Fn(u32, u32) -> [u32; 4] {
    move |leaf, subleaf| match (leaf, subleaf) {
        (0, _) => [0xD, 0, 0, 0],
        (1, _) => [0, 0, 1 << 26 | 1 << 28, 0],
        (7, 0) => [0, 1 << 16, 0, 0],
        (0xD, 0) => [claimed as u32, 0, 0, (claimed >> 32) as u32],
        (0xD, 2) => [256, 576, 0, 0],
        (0xD, 5) => [64, offsets[0], 0, 0],
        (0xD, 6) => [512, offsets[1], 2, 0],
        (0xD, 7) => [1024, offsets[2], 2, 0],
        _ => [0; 4],
    }
}

const INTEL: [u32; 3] = [1088, 1152, 1664];
const AMD: [u32; 3] = [832, 896, 1408];

fn layouts() -> [Layout; 5] {
    let of = |claimed, offsets| Layout::find(&cpu(claimed, offsets)).with_mxcsr_mask(0xFFFF);
    [Layout::LEGACY, of(X87 | SSE, INTEL), of(X87 | SSE | AVX, INTEL), of(!0, INTEL), of(0x2_0000_02E7, AMD)]
}

#[test]
fn what_is_allowed_of_what_a_cpu_claims() {
    let components = layouts().map(|layout| layout.components());
    assert_eq!(components, [3, 3, 7, ALLOWED, ALLOWED]);
    assert_eq!(layouts().map(|layout| layout.has_xsave()), [false, true, true, true, true]);
    let bytes = |layout: Layout| [1, 3, 7, 0xE7].map(|xcr0| layout.bytes(xcr0));
    assert_eq!(bytes(layouts()[3]), [576, 576, 832, 2688]);
    assert_eq!(bytes(layouts()[4]), [576, 576, 832, 2432]);
    assert_eq!(bytes(layouts()[1]), [576; 4]);
    let within = |allowed| layouts()[3].within(allowed);
    assert_eq!([3, 7, 0xE7].map(|allowed| within(allowed).components()), [3, 7, 0xE7]);
    assert_eq!((within(0).components(), within(0).has_xsave(), within(3).has_xsave()), (3, false, true));
    // All of AVX-512 or none of it; none without AVX; nothing without SSE.
    for (claimed, components) in [(0x67, 7), (0xE3, 3), (0xE5, 3), (0, 3), (1 << 63 | 3, 3)] {
        assert_eq!(Layout::find(&cpu(claimed, INTEL)).components(), components, "{claimed:#x}");
    }
}

#[test]
fn what_cannot_be_is_not_believed() {
    let with = |change: fn(u32, u32, [u32; 4]) -> [u32; 4]| {
        let honest = cpu(!0, INTEL);
        Layout::find(&move |leaf, subleaf| change(leaf, subleaf, honest(leaf, subleaf)))
    };
    assert_eq!(with(|_, _, all| all).components(), ALLOWED);
    // Too old for the leaf, or without the instruction.
    assert_eq!(with(|leaf, _, all| if leaf == 0 { [0xC; 4] } else { all }), Layout::LEGACY);
    assert_eq!(with(|leaf, _, all| if leaf == 1 { [0, 0, 1 << 28, 0] } else { all }), Layout::LEGACY);
    // Registers without their instructions.
    assert_eq!(with(|leaf, _, all| if leaf == 1 { [0, 0, 1 << 26, 0] } else { all }).components(), 3);
    assert_eq!(with(|leaf, _, all| if leaf == 7 { [0; 4] } else { all }).components(), 7);
    // A size that it never has; over the header; beyond all areas, or all addresses; IA32_XSS's.
    for bad in [[255, 576, 0, 0], [256, 512, 0, 0], [256, 2700, 0, 0], [256, u32::MAX, 0, 0], [256, 576, 1, 0]] {
        let cpu = cpu(!0, INTEL);
        let layout = Layout::find(&|leaf, subleaf| if (leaf, subleaf) == (0xD, 2) { bad } else { cpu(leaf, subleaf) });
        assert_eq!(layout.components(), 3, "{bad:?}");
    }
}

#[test]
fn xcr0_is_what_the_manual_allows() {
    let allowed = |layout: Layout| (0..=0x3FF).filter(|value| layout.allows(*value)).collect::<Vec<u64>>();
    let [legacy, sse, avx, intel, amd] = layouts();
    assert_eq!((allowed(legacy), allowed(sse), allowed(avx)), (vec![1, 3], vec![1, 3], vec![1, 3, 7]));
    assert_eq!((allowed(intel), allowed(amd)), (vec![1, 3, 7, 0xE7], vec![1, 3, 7, 0xE7]));
    assert!(!intel.allows(1 << 63 | 7) && !intel.allows(0));
}

/// Any state that a CPU with `layout` can have.
fn any_state(layout: Layout) -> impl Strategy<Value = ExtendedState> {
    let legacy = proptest::collection::vec(any::<u8>(), LEGACY_BYTES);
    let rest = proptest::collection::vec(any::<u8>(), COMPONENT_BYTES);
    let xcr0 = proptest::sample::select((0..=0xFF).filter(|value| layout.allows(*value)).collect::<Vec<u64>>());
    // Parts that are as at first are what a CPU leaves out.
    (legacy, rest, xcr0, any::<[bool; 6]>()).prop_map(move |(legacy, rest, xcr0, used)| {
        let initial = ExtendedState::initial(&layout);
        let mut state = ExtendedState { xcr0, ..initial };
        if used[0] {
            state.legacy[..MXCSR].copy_from_slice(&legacy[..MXCSR]);
            state.legacy[ST..XMM].copy_from_slice(&legacy[ST..XMM]);
        }
        if used[1] {
            state.legacy[XMM..].copy_from_slice(&legacy[XMM..]);
            let mxcsr = u32::from(legacy[MXCSR]) | u32::from(legacy[MXCSR + 1]) << 8;
            state.legacy[MXCSR..MXCSR + 4].copy_from_slice(&(mxcsr & layout.mxcsr_mask).to_le_bytes());
        }
        for ((number, _), _) in COMPONENTS.into_iter().zip(&used[2..]).filter(|(_, used)| **used) {
            let place = place_in_rest(number);
            state.rest[place.clone()].copy_from_slice(&rest[place]);
        }
        state.clear_what_is_absent();
        state.clear_reserved();
        state
    })
}

fn any_layout_and_state() -> impl Strategy<Value = (Layout, ExtendedState)> {
    (0..layouts().len()).prop_flat_map(|index| {
        let layout = layouts()[index];
        any_state(layout).prop_map(move |state| (layout, state))
    })
}

proptest! {
    #[test]
    fn a_state_survives_area_and_wire((layout, state) in any_layout_and_state()) {
        prop_assert_eq!(state.check(&layout), Ok(()));
        let area = state.to_area(&layout);
        prop_assert!(ExtendedState::from_area(&area, &layout, state.xcr0) == state);
        let mut sent = state;
        let bytes = state::save(&mut sent);
        let mut received = ExtendedState::pattern(&layouts()[3]);
        prop_assert_eq!(state::load(&mut received, &bytes), Ok(()));
        prop_assert!(received == state);
        prop_assert_eq!(state::hash(&mut received), state::hash(&mut sent));
    }

    /// A CPU may call a component that is as at first in use or not, may have written it or left what was there, and may
    /// write anything to what is reserved: it is the same state.
    #[test]
    fn how_it_was_saved_does_not_matter(
        (layout, state) in any_layout_and_state(),
        called_used in any::<u64>(),
        garbage in proptest::collection::vec(any::<u8>(), AREA_BYTES),
    ) {
        prop_assume!(layout.has_xsave());
        let mut area = state.to_area(&layout);
        let used = area.header() | called_used & layout.components();
        area.0[HEADER..HEADER + 8].copy_from_slice(&used.to_le_bytes());
        let reserved = layout.mxcsr_mask.to_le_bytes().map(|mask| !mask);
        for (at, reserved) in (MXCSR..).zip(reserved) {
            area.0[at] |= garbage[at] & reserved;
        }
        let mut spoil = |place: core::ops::Range<usize>| area.0[place.clone()].copy_from_slice(&garbage[place]);
        spoil(LEGACY_BYTES..HEADER);
        spoil(HEADER + 8..HEADER + HEADER_BYTES);
        spoil(5..6);
        spoil(MXCSR_MASK..ST);
        (0..8).for_each(|register| spoil(ST + 16 * register + 10..ST + 16 * register + 16));
        if used & X87 == 0 {
            spoil(0..MXCSR);
            spoil(ST..XMM);
        }
        if used & SSE == 0 {
            spoil(XMM..LEGACY_BYTES);
        }
        for (number, place) in layout.places() {
            if used & 1 << number == 0 {
                spoil(place);
            }
        }
        prop_assert!(ExtendedState::from_area(&area, &layout, state.xcr0) == state);
    }

    /// What comes off the wire is refused, or it is a state that XRSTOR and XSETBV take.
    #[test]
    fn any_bytes_are_refused_or_harmless(
        mut bytes in proptest::collection::vec(any::<u8>(), 16 + LEGACY_BYTES + COMPONENT_BYTES),
        header in any::<bool>(),
        components in 0..=0xFFu64,
        xcr0 in 0..=0xFFu64,
        index in 0..5usize,
    ) {
        let layout = layouts()[index];
        if header {
            bytes[..8].copy_from_slice(&components.to_le_bytes());
            bytes[8..16].copy_from_slice(&xcr0.to_le_bytes());
        }
        let mut state = ExtendedState::default();
        if state::load(&mut state, &bytes).is_ok() && state.check(&layout).is_ok() {
            prop_assert!(layout.allows(state.xcr0));
            prop_assert_eq!(state.mxcsr() & !layout.mxcsr_mask, 0);
            let area = state.to_area(&layout);
            prop_assert_eq!(area.header() & !layout.components(), 0);
            prop_assert!(area.0[HEADER + 8..HEADER + HEADER_BYTES].iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn a_state_that_the_cpu_cannot_take_is_refused() {
    let [legacy, sse, avx, intel, amd] = layouts();
    let of = |layout: Layout| ExtendedState::initial(&layout);
    assert_eq!(of(avx).check(&avx), Ok(()));
    // Components, not their places, must be equal.
    assert_eq!((of(intel).check(&amd), of(sse).check(&legacy)), (Ok(()), Ok(())));
    let error = of(intel).check(&avx).unwrap_err();
    assert_eq!(error, StateError::OtherComponents { state: 0xE7, cpu: 7 });
    assert!(error.to_string().contains("0xe7") && error.to_string().contains("0x7"));
    assert!(of(sse).check(&avx).is_err());
    for xcr0 in [0, 2, 5, 0xE7, 1 << 9 | 3] {
        assert_eq!(ExtendedState { xcr0, ..of(avx) }.check(&avx), Err(StateError::BadValue("XCR0")));
    }
    let mut state = of(avx);
    state.legacy[MXCSR + 2] = 1;
    assert_eq!(state.check(&avx), Err(StateError::BadValue("MXCSR")));
    // Denormals are zeros, which not all processors have.
    let mut state = of(avx);
    state.legacy[MXCSR] |= 1 << 6;
    assert_eq!((state.check(&avx), state.check(&avx.with_mxcsr_mask(0))), (Ok(()), Err(StateError::BadValue("MXCSR"))));
    let mut state = of(avx);
    state.legacy[ST + 10] = 1;
    assert!(state.check(&avx).is_err());
}

#[test]
fn a_pattern_differs_from_the_first_state_everywhere() {
    for layout in layouts() {
        let pattern = ExtendedState::pattern(&layout);
        assert_eq!(pattern.check(&layout), Ok(()));
        assert!(pattern.legacy[XMM..].iter().all(|byte| *byte != 0));
        for (number, _) in layout.places() {
            assert!(pattern.component(number).iter().all(|byte| *byte != 0));
        }
    }
}

/// The desk's own processor, if its XSAVE saves YMM registers.
fn desk() -> Option<Layout> {
    let cpuid = |leaf, subleaf| {
        let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
        [result.eax, result.ebx, result.ecx, result.edx]
    };
    let layout = Layout::find(&cpuid).within(X87 | SSE | AVX);
    let found = std::is_x86_feature_detected!("xsave") && layout.components() == X87 | SSE | AVX;
    if !found {
        println!("SKIPPED: this desk's processor has no AVX");
    }
    found.then(|| layout.with_mxcsr_mask(0xFFFF))
}

/// Loads `state`, then runs `$code`, then saves into an area of zeros; the program's own registers come back.
macro_rules! saved_after {
    ($layout:expr, $state:expr, $save:literal, $($code:literal),*) => {{
        let layout: &Layout = $layout;
        let (mut own, mut area) = (Area::EMPTY, Area::EMPTY);
        let loaded = $state.to_area(layout);
        // SAFETY: the areas are aligned and large enough; what was in the registers comes back at the end.
        unsafe {
            asm!(
                "xsave64 [{own}]", "xrstor64 [{loaded}]", $($code,)* concat!($save, " [{area}]"), "xrstor64 [{own}]",
                own = in(reg) own.0.as_mut_ptr(), loaded = in(reg) loaded.0.as_ptr(), area = in(reg) area.0.as_mut_ptr(),
                in("eax") 7, in("edx") 0, options(nostack)
            );
        }
        ExtendedState::from_area(&area, layout, 7)
    }};
}

#[test]
fn a_processor_saves_what_was_loaded() {
    let Some(layout) = desk() else { return };
    let pattern = ExtendedState { xcr0: 7, ..ExtendedState::pattern(&layout) };
    assert!(saved_after!(&layout, pattern, "xsave64",) == pattern);
    let initial = ExtendedState { xcr0: 7, ..ExtendedState::initial(&layout) };
    assert!(saved_after!(&layout, initial, "xsave64",) == initial);
    // FXSAVE has another idea of what comes first: the same below the header.
    assert!(saved_after!(&layout, pattern, "fxsave64",).legacy[..5] == initial.legacy[..5]);
}

/// Registers that hold the same are the same state, whether the processor calls them used or not.
#[test]
fn the_way_to_the_same_registers_does_not_matter() {
    let Some(layout) = desk() else { return };
    let pattern = ExtendedState { xcr0: 7, ..ExtendedState::pattern(&layout) };
    let zeroed = saved_after!(&layout, pattern, "xsave64", "vzeroall", "fninit");
    let by_moves = saved_after!(
        &layout,
        pattern,
        "xsave64",
        "vzeroupper",
        "fninit",
        "xorps xmm0, xmm0",
        "xorps xmm1, xmm1",
        "xorps xmm2, xmm2",
        "xorps xmm3, xmm3",
        "xorps xmm4, xmm4",
        "xorps xmm5, xmm5",
        "xorps xmm6, xmm6",
        "xorps xmm7, xmm7",
        "xorps xmm8, xmm8",
        "xorps xmm9, xmm9",
        "xorps xmm10, xmm10",
        "xorps xmm11, xmm11",
        "xorps xmm12, xmm12",
        "xorps xmm13, xmm13",
        "xorps xmm14, xmm14",
        "xorps xmm15, xmm15"
    );
    assert!(zeroed == by_moves);
    if std::is_x86_feature_detected!("xsaveopt") {
        assert!(saved_after!(&layout, pattern, "xsaveopt64", "vzeroall", "fninit") == zeroed);
    }
    // FNINIT leaves the contents of the registers alone.
    let initial = ExtendedState { xcr0: 7, ..ExtendedState::initial(&layout) };
    assert!(zeroed.rest == initial.rest && zeroed.legacy[..MXCSR] == initial.legacy[..MXCSR]);
}
