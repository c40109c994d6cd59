//! Whatever bytes the guest executes, in whatever state: no panic, and only well-formed accesses.

use proptest::prelude::*;

use super::*;
use crate::emulate::decode;

/// A register: often an address of something, sometimes any value.
fn register() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(DATA),
        Just(DEVICE),
        Just(RAM - 3),
        Just(DEVICE + 0xFFD),
        Just(SMALL + 0xFFC),
        0_u64..16,
        any::<u64>(),
    ]
}

/// Instructions that are implemented and arbitrary ones, with and without prefixes.
fn code() -> impl Strategy<Value = Vec<u8>> {
    let prefix = prop_oneof![
        Just(0x66_u8),
        Just(0x67),
        Just(0xF2),
        Just(0xF3),
        Just(0xF0),
        Just(0x48),
        Just(0x4F),
        Just(0x64),
        Just(0x2E)
    ];
    let prefixes = prop::collection::vec(prefix, 0..4);
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 16),
        prop::collection::vec(any::<u8>(), 14).prop_map(|mut bytes| {
            bytes.insert(0, 0x0F);
            bytes
        }),
    ];
    (prefixes, body).prop_map(|(mut prefixes, body)| {
        prefixes.extend(body);
        prefixes
    })
}

fn rig(mode: u8) -> Rig {
    match mode {
        0 => Rig::real(),
        1 => Rig::flat(),
        2 => Rig::long(),
        _ => {
            // Compatibility mode: the same page tables, 32-bit code.
            let mut rig = Rig::long();
            rig.mode.segments.cs.attributes = 0xC9B;
            rig
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn any_bytes(
        mode in 0_u8..4,
        code in code(),
        registers in prop::array::uniform16(register()),
        flags in 0_u64..1 << 22,
        user: bool,
    ) {
        let mut rig = rig(mode);
        rig.map_small(0, 0xA000 | 7);
        rig.registers.gpr = registers;
        rig.registers.rflags = flags & !(1 << 17) | RFLAGS_FIXED;
        if user {
            rig.drop_to_user();
        }
        let before = rig.registers;
        match rig.run(&code) {
            Ok(Emulated::Retired) => prop_assert_ne!(rig.registers.rip, before.rip),
            Ok(Emulated::Iteration) => {
                prop_assert_eq!(rig.registers.rip, before.rip);
                prop_assert_ne!(rig.registers.gpr[1], before.gpr[1]);
            }
            Err(fault) => {
                prop_assert_eq!(rig.registers, before);
                prop_assert!(rig.bus.reads.is_empty() && rig.bus.writes.is_empty(), "{:?}", fault);
            }
        }
        let writes = rig.bus.writes.iter().map(|&(gpa, size, value)| (gpa, size, value));
        for (gpa, size, value) in writes.chain(rig.bus.reads.iter().map(|&(gpa, size)| (gpa, size, 0))) {
            prop_assert!(matches!(size, 1 | 2 | 4 | 8) && gpa.is_multiple_of(u64::from(size)));
            prop_assert!(gpa >= RAM);
            prop_assert!(size == 8 || value >> (8 * size) == 0);
        }
    }

    /// The fast path for fixed forms agrees with the decoder.
    #[test]
    fn lengths_agree(mode in 0_u8..4, code in code()) {
        let mut rig = rig(mode);
        rig.put(CODE, &code);
        let fast = decode::instruction_length(&rig.mode, &rig.registers, &mut rig.bus);
        let slow = decode::decode(&rig.mode, &rig.registers, &mut rig.bus).map(|(found, _)| found.len() as u8);
        prop_assert_eq!(fast, slow);
    }

    #[test]
    fn any_page_tables(
        tables in prop::collection::vec((0_u64..0x800, any::<u64>()), 0..64),
        cr3 in prop_oneof![Just(0x1000_u64), any::<u64>()],
        gva: u64,
        legacy: bool,
    ) {
        let mut rig = Rig::long();
        for (slot, value) in tables {
            rig.entry(0x1000 + 8 * slot, value);
        }
        rig.mode.cr3 = cr3;
        if legacy {
            rig.mode.efer = 0;
            rig.mode.segments.cs.attributes = 0xC9B;
            rig.mode.cr4 = cr3 & 0x30;
        }
        rig.registers.rip = gva;
        // Whatever it finds, it must end in a value.
        let _ = rig.step();
    }
}
