//! Whatever the CPU's TLB does, the guest sees the same; and a guest that flushes what it changes sees no TLB at all.

mod model;

use alloc::vec::Vec;
use proptest::prelude::*;

use self::model::{NoTlb, PAGES, Seen, Tlb, Touch, Translator, World, address, put};
use super::*;

const FORMATS: [Format; 3] = [Format::Legacy, Format::Pae, Format::Long];

/// An instruction of a random program.
#[derive(Debug, Clone, Copy)]
enum Op {
    Touch(Touch),
    /// A table's entry is written; by the guest, or by a device.
    Edit {
        page: u64,
        index: u64,
        entry: u64,
    },
    Invalidate(u64),
    /// CR3.
    Switch(u64),
    /// CR0.WP, CR4.SMEP and SMAP.
    Protect(u64),
}

fn access() -> impl Strategy<Value = Access> {
    let kind = prop_oneof![Just(AccessKind::Read), Just(AccessKind::Write), Just(AccessKind::Fetch)];
    (kind, any::<bool>(), any::<bool>()).prop_map(|(kind, user, smap_off)| Access { kind, user, smap_off })
}

/// An entry: mostly one that is present and allows much.
fn entry() -> impl Strategy<Value = u64> {
    let common =
        prop_oneof![Just(0x67_u64), Just(0x27), Just(0x07), Just(0x65), Just(0x63), Just(0x61), Just(0x06), 0_u64..256];
    (0..PAGES, common, prop_oneof![9 => Just(0_u64), 1 => Just(NO_EXECUTE), 1 => Just(1 << 45)])
        .prop_map(|(page, flags, high)| page * PAGE_SIZE + flags + high)
}

fn touch() -> impl Strategy<Value = Touch> {
    (0..64_u64, 0..8_u64, access(), entry()).prop_map(|(page, offset, access, value)| Touch {
        page,
        offset,
        access,
        value,
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => touch().prop_map(Op::Touch),
        6 => (0..PAGES, 0..4_u64, entry()).prop_map(|(page, index, entry)| Op::Edit { page, index, entry }),
        2 => (0..64_u64).prop_map(Op::Invalidate),
        2 => (0..PAGES).prop_map(Op::Switch),
        1 => (0..8_u64).prop_map(Op::Protect),
    ]
}

/// Runs a program. A careful one flushes what it changes: by INVLPG, or by writing CR3 again.
fn run<T: Translator>(world: &mut World<T>, program: &[Op], careful: bool) -> Vec<Seen> {
    let format = world.format();
    let mut seen = Vec::new();
    for (number, op) in program.iter().enumerate() {
        seen.push(match *op {
            Op::Touch(touch) => {
                let what = world.touch(&touch);
                // A write may hit a table; and an accessed bit is a reserved one where the same table holds pointers.
                if careful && (touch.access.kind == AccessKind::Write || format == Format::Pae) {
                    world.reload();
                }
                what
            }
            Op::Edit { page, index, entry } => {
                let table = page * PAGE_SIZE;
                let users = world.users(Gpa(table + index * format.entry_size()));
                put(format, &mut world.memory, table, index, entry);
                if careful && number % 3 == 0 {
                    world.reload();
                } else if careful {
                    users.iter().for_each(|&gva| world.translator.invalidate(&world.memory, gva));
                }
                Seen::Nothing
            }
            Op::Invalidate(page) => {
                world.translator.invalidate(&world.memory, address(page));
                Seen::Nothing
            }
            Op::Switch(page) => {
                world.paging.cr3 = page * PAGE_SIZE;
                world.reload();
                Seen::Nothing
            }
            Op::Protect(bits) => {
                let set = |value: u64, mask: u64, on: bool| if on { value | mask } else { value & !mask };
                world.paging.cr0 = set(world.paging.cr0, CR0_WP, bits & 1 == 0);
                world.paging.cr4 = set(world.paging.cr4, CR4_SMEP, bits & 2 != 0);
                world.paging.cr4 = set(world.paging.cr4, CR4_SMAP, bits & 4 != 0);
                world.reload();
                Seen::Nothing
            }
        });
    }
    seen
}

/// What is left of a run: what was seen, memory, what the tables went through.
type Left = (Vec<Seen>, Vec<u8>, u64);

fn tracked(format: Format, program: &[Op], careful: bool, chance: u64) -> Left {
    let mut world = World::new(format, Tlb::new(chance));
    let seen = run(&mut world, program, careful);
    let memory = world.memory.slice(Gpa(0), world.memory.len()).unwrap().to_vec();
    (seen, memory, world.translator.mmu.history())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn evictions_and_speculation_leave_no_trace(
        program in prop::collection::vec(op(), 1..120), format in 0..3_usize, chance: [u64; 2],
    ) {
        let [one, other] = chance.map(|chance| tracked(FORMATS[format], &program, false, chance));
        prop_assert_eq!(one, other);
    }

    #[test]
    fn who_flushes_sees_no_tlb(
        program in prop::collection::vec(op(), 1..120), format in 0..3_usize, chance: u64,
    ) {
        let (seen, memory, _) = tracked(FORMATS[format], &program, true, chance);
        let mut world = World::new(FORMATS[format], NoTlb::default());
        let expected = run(&mut world, &program, true);
        prop_assert_eq!(seen, expected);
        prop_assert_eq!(&memory[..], world.memory.slice(Gpa(0), world.memory.len()).unwrap());
    }
}

/// Without CR0.WP the system writes to a read-only page of the user's; SMEP and SMAP protect that page all the same.
#[test]
fn a_page_lent_to_the_system_stays_the_users() {
    let touch = |kind, smap_off| {
        let access = Access { kind, user: false, smap_off };
        Op::Touch(Touch { page: 33, offset: 0, access, value: 0x67 })
    };
    for (format, protection) in FORMATS.into_iter().flat_map(|format| [2, 4, 6].map(|bits| (format, bits | 1))) {
        for kind in [AccessKind::Read, AccessKind::Fetch] {
            let program = [
                Op::Edit { page: 10, index: 3, entry: 0x65 },
                Op::Switch(5),
                Op::Protect(protection),
                touch(AccessKind::Write, true),
                touch(kind, false),
            ];
            let (seen, ..) = tracked(format, &program, true, 0);
            assert_eq!(seen, run(&mut World::new(format, NoTlb::default()), &program, true), "{format:?} {protection}");
        }
    }
}

const READ: Access = Access { kind: AccessKind::Read, user: false, smap_off: false };
const WRITE: Access = Access { kind: AccessKind::Write, ..READ };

fn at(page: u64, access: Access) -> Op {
    Op::Touch(Touch { page, offset: 0, access, value: 0 })
}

/// A process whose tables are pages 1 to 4 and whose memory is pages 8 to 11, none of them used yet.
fn process() -> World<Tlb> {
    let format = Format::Long;
    let mut world = World::new(format, Tlb::new(1));
    for level in 1..4 {
        put(format, &mut world.memory, level * PAGE_SIZE, 0, (level + 1) * PAGE_SIZE + 7);
    }
    for index in 0..4 {
        put(format, &mut world.memory, 4 * PAGE_SIZE, index, (8 + index) * PAGE_SIZE + 7);
    }
    world.reload();
    world
}

fn leaf(world: &World<Tlb>, index: u64) -> u64 {
    Format::Long.entry(&world.memory, 4 * PAGE_SIZE, index) & 0x60
}

#[test]
fn bits_are_set_by_what_the_program_does() {
    let mut world = process();
    run(&mut world, &[at(0, READ)], false);
    assert_eq!([0, 1].map(|index| leaf(&world, index)), [ACCESSED, 0], "only what was touched");
    run(&mut world, &[at(0, WRITE), at(1, WRITE)], false);
    assert_eq!([0, 1].map(|index| leaf(&world, index)), [ACCESSED | DIRTY; 2]);
    let fills = world.translator.fills;
    run(
        &mut world,
        &[at(0, WRITE), at(1, READ), Op::Switch(1), at(0, WRITE), at(1, READ), Op::Invalidate(0), at(0, WRITE)],
        false,
    );
    assert_eq!(world.translator.fills, fills, "nothing changed: nothing is filled");
    let clean = Op::Edit { page: 4, index: 0, entry: 8 * PAGE_SIZE + 7 };
    run(&mut world, &[clean, at(0, WRITE)], false);
    assert_eq!(leaf(&world, 0), 0, "used until it is flushed");
    run(&mut world, &[Op::Invalidate(0), at(0, READ)], false);
    assert_eq!(leaf(&world, 0), ACCESSED);
    run(&mut world, &[at(0, WRITE)], false);
    assert_eq!(leaf(&world, 0), ACCESSED | DIRTY);
}

/// An emulated MOV SS marks its descriptor as accessed by a write of one byte, CPUs by one of four: which byte of a page missed
/// its translation changes nothing.
#[test]
fn it_does_not_matter_which_byte_of_a_page_was_missed() {
    let [one, other] = [4, 5].map(|offset| {
        let mut world = process();
        for gva in [offset, PAGE_SIZE + offset] {
            world.translator.mmu.fault(&mut world.memory, gva, WRITE).unwrap();
        }
        world.translator.mmu.invalidate(&world.memory, offset);
        world.translator.mmu.history()
    });
    assert_eq!(one, other);
}

#[test]
fn neighbours_are_entered_ahead_if_no_bit_changes() {
    let mut world = process();
    for index in 1..4 {
        put(Format::Long, &mut world.memory, 4 * PAGE_SIZE, index, (8 + index) * PAGE_SIZE + 0x67);
    }
    run(&mut world, &[at(0, READ)], false);
    let fills = world.translator.fills;
    run(&mut world, &[at(1, WRITE), at(32, READ), at(33, WRITE)], false);
    assert_eq!(world.translator.fills, fills);
}

#[test]
fn nothing_leads_to_the_window() {
    let key = |level| Key { table: 0, level, rights: WRITABLE | USER, no_execute: false };
    let paging = Paging::default();
    let ends = WINDOW.0 + TABLES as u64 * PAGE_SIZE;
    for (format, level) in
        [(Format::Legacy, 1), (Format::Legacy, 2), (Format::Pae, 2), (Format::Long, 1), (Format::Long, 3)]
    {
        let size = 1 << format.shift(level);
        let large = if level > 1 { LARGE } else { 0 };
        for start in [WINDOW.0 - 1, WINDOW.0, ends - 1, ends].map(|at| at & !(size - 1)) {
            let entry = page(format, &paging, &key(level), start | large | 0x67, None);
            let leads = format.frame(entry, level) & !(size - 1);
            assert!(leads + size <= WINDOW.0 || leads >= ends, "{format:?} {level} {start:#x}: {leads:#x}");
            assert!(start + size <= WINDOW.0 || start >= ends || leads != start);
        }
    }
}

/// The CPU is led elsewhere; the guest's access is to the device behind its own entry.
#[test]
fn a_page_over_the_window_leads_to_the_devices_in_it() {
    for (format, level, start, device) in [
        (Format::Legacy, 1, 0xF010_0000, 0xF010_0123),
        (Format::Legacy, 2, 0xF000_0000, 0xF010_0123),
        (Format::Pae, 2, 0xF020_0000, 0xF030_0123),
        (Format::Long, 1, 0xF010_0000, 0xF010_0123),
        (Format::Long, 3, 0xC000_0000, 0xFEE0_0020),
    ] {
        let mut world = World::new(format, NoTlb::default());
        let mut mmu = Mmu::new(8, 40);
        for (table, above) in (1..).zip((level + 1..=format.levels()).rev()) {
            let flags = if format.is_pointer(above) { 1 } else { 7 };
            put(format, &mut world.memory, table * PAGE_SIZE, 0, (table + 1) * PAGE_SIZE + flags);
        }
        let lowest = u64::from(format.levels() - level) + 1;
        put(format, &mut world.memory, lowest * PAGE_SIZE, 0, start | if level > 1 { LARGE } else { 0 } | 7);
        let paging = Paging { cr3: PAGE_SIZE, ..world.paging };
        mmu.load(&world.memory, &paging).unwrap();
        for access in [READ, WRITE, READ] {
            let (gpa, _) = mmu.translate(&mut world.memory, device - start, access).unwrap();
            assert_eq!(gpa, Gpa(device), "{format:?} {level}");
        }
    }
}

#[test]
fn a_pool_that_is_used_up_begins_anew() {
    let mut world = process();
    let before = world.translator.mmu.history();
    for root in 0..PAGES {
        let touches: Vec<Op> = (0..64).map(|page| at(page, READ)).collect();
        run(&mut world, &[Op::Switch(root)], false);
        run(&mut world, &touches, false);
    }
    assert_ne!(world.translator.mmu.history(), before);
    world.translator.mmu.reset();
    assert_eq!(world.translator.mmu.history(), 0);
}
