//! Whatever a guest does: no panic, an end, the same on every machine, and a state that loads.

use super::driver::*;
use super::*;
use crate::platform::CpuidContext;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    In(u16, Size),
    Out(u16, Size, u32),
    Read(u64, Size),
    Write(u64, Size, u64),
    Rdmsr(u32),
    Wrmsr(u32, u64),
    Memory(u64, u64),
    Packet(usize, u8),
    Console(u8),
    Time(u64),
    Interrupt,
}

fn size() -> impl Strategy<Value = Size> {
    prop_oneof![Just(Size::Byte), Just(Size::Word), Just(Size::Dword)]
}

/// Ports and addresses where something is, with all neighbours.
fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        0x3F8u16..0x400,
        0xCF8u16..0xD00,
        0x600u16..0x60C,
        0x40u16..0x44,
        Just(0x61),
        0x70u16..0x72,
        0x20u16..0x22,
        Just(0x64),
        any::<u16>()
    ]
}

fn mmio() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0u64..0x40).prop_map(|reg| 0xFEE0_0000 + 16 * reg),
        (0u64..5).prop_map(|dword| 0xFEC0_0000 + 4 * dword),
        (0u64..0x40).prop_map(|at| BAR + at),
        (0u64..3).prop_map(|queue| BAR + 0x3000 + 4 * queue),
        (0u64..0x50).prop_map(|at| BAR + 0x4000 + at),
        (0u64..0x8000).prop_map(|at| BAR + at),
        Just(DISK_BAR + 0x3000),
        (0u64..0x40).prop_map(|at| DISK_BAR + at),
        (0u64..0x8000).prop_map(|at| DISK_BAR + at),
        any::<u64>()
    ]
}

fn msr() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0x10), Just(0x1B), Just(0x3B), Just(0x6E0), 0x800u32..0x840, 0x200u32..0x280, any::<u32>()]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0u64..0x400, any::<u32>().prop_map(u64::from)]
}

/// Addresses in and around the rings.
fn ring_byte() -> impl Strategy<Value = u64> {
    (0..DISK_QUEUE + 1, 0usize..3, 0u64..0x90).prop_map(|(queue, part, at)| ring(queue)[part] + at)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (port(), size()).prop_map(|(p, s)| Step::In(p, s)),
        2 => (port(), size(), value()).prop_map(|(p, s, v)| Step::Out(p, s, v as u32)),
        1 => (mmio(), size()).prop_map(|(a, s)| Step::Read(a, s)),
        4 => (mmio(), size(), value()).prop_map(|(a, s, v)| Step::Write(a, s, v)),
        1 => msr().prop_map(Step::Rdmsr),
        2 => (msr(), value()).prop_map(|(m, v)| Step::Wrmsr(m, v)),
        4 => (ring_byte(), value()).prop_map(|(a, v)| Step::Memory(a, v)),
        1 => (0usize..1600, any::<u8>()).prop_map(|(l, s)| Step::Packet(l, s)),
        1 => any::<u8>().prop_map(Step::Console),
        1 => (0u64..100_000_000).prop_map(Step::Time),
        1 => Just(Step::Interrupt),
    ]
}

fn apply(rig: &mut Rig, step: &Step) -> u64 {
    match *step {
        Step::In(port, size) => u64::from(rig.inp(port, size)),
        Step::Out(port, size, value) => {
            rig.outp(port, size, value);
            0
        }
        Step::Read(gpa, size) => rig.read(gpa, size),
        Step::Write(gpa, size, value) => {
            rig.write(gpa, size, value);
            0
        }
        Step::Rdmsr(msr) => rig.platform.rdmsr(rig.now, msr).unwrap_or(1),
        Step::Wrmsr(msr, value) => u64::from(rig.wrmsr(msr, value).is_ok()),
        Step::Memory(gpa, value) => {
            rig.memory.write(Gpa(gpa), &value.to_le_bytes()).unwrap();
            0
        }
        Step::Packet(len, seed) => {
            rig.packet_in(&frame(len, seed));
            0
        }
        Step::Console(byte) => rig.platform.console_in(&[byte]) as u64,
        Step::Time(ns) => {
            rig.now = rig.now.after(ns);
            rig.platform.advance(rig.now, &mut rig.memory);
            // What is due was done: the machine never asks for the past.
            assert!(rig.platform.next_deadline().is_none_or(|due| due > rig.now));
            0
        }
        Step::Interrupt => {
            let vector = rig.platform.pending_interrupt();
            vector.inspect(|&vector| rig.platform.interrupt_taken(vector)).map_or(0, u64::from)
        }
    }
}

/// Every field of the devices, also one that a `visit` forgot.
fn fields(platform: &Platform) -> String {
    let Platform { clock, msrs, lapic, ioapic, pic, pit, rtc, uart, power, config_address, bridge, .. } = platform;
    format!(
        "{clock:?} {msrs:?} {lapic:?} {ioapic:?} {pic:?} {pit:?} {rtc:?} {uart:?} {power:?} {config_address:?} {bridge:?}"
    )
}

/// Network device and disk are up; in their rings are chains that make sense, as far as they go.
fn rig(features: u64) -> Rig {
    let mut rig = Rig::with_disk(DISK);
    rig.start_net(VERSION_1 | features);
    rig.start_disk(VERSION_1 | features & (EVENT_IDX | INDIRECT));
    for slot in 0..SIZE {
        // Header, data, status: reads and writes, sectors with and without what is asked for.
        let header = [u64::from(slot % 2), u64::from(slot) * 300].map(u64::to_le_bytes);
        rig.memory.write(Gpa(buffer(slot) + 0x800), header.as_flattened()).unwrap();
        let next = (slot + 1) % SIZE;
        match slot % 3 {
            0 => rig.descriptor(ring(DISK_QUEUE)[0], slot, buffer(slot) + 0x800, 16, NEXT, next),
            1 => rig.descriptor(ring(DISK_QUEUE)[0], slot, buffer(slot), 1024, NEXT | (WRITE * (slot % 2)), next),
            _ => rig.descriptor(ring(DISK_QUEUE)[0], slot, buffer(slot), 1, WRITE, 0),
        }
        rig.offer(DISK_QUEUE, slot);
    }
    for slot in 0..SIZE {
        rig.offer_receive(slot, 600);
        rig.descriptor(ring(1)[0], slot, buffer(slot), 100, slot % 2, (slot + 1) % SIZE);
    }
    rig
}

fn features() -> impl Strategy<Value = u64> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(event, indirect, mergeable)| {
        [(event, EVENT_IDX), (indirect, INDIRECT), (mergeable, MERGEABLE)]
            .into_iter()
            .filter_map(|(on, bit)| on.then_some(bit))
            .sum()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Equal steps leave equal machines, also when one was saved and loaded on the way.
    #[test]
    fn equal_steps_leave_equal_machines(
        features in features(), steps in prop::collection::vec(step(), 1..80), cut in any::<prop::sample::Index>()
    ) {
        let (mut one, mut two) = (rig(features), rig(features));
        let cut = cut.index(steps.len());
        for (index, step) in steps.iter().enumerate() {
            if index == cut {
                two.move_platform();
                prop_assert_eq!(fields(&one.platform), fields(&two.platform));
            }
            prop_assert_eq!(apply(&mut one, step), apply(&mut two, step));
            // Asking costs nothing.
            let before = state::hash(&mut one.platform);
            let _ = (one.platform.next_deadline(), one.platform.pending_interrupt());
            let _ = one.platform.cpuid(7, 0, CpuidContext::default());
            prop_assert_eq!(state::hash(&mut one.platform), before);
        }
        prop_assert_eq!(state::hash(&mut one.platform), state::hash(&mut two.platform));
        prop_assert!(one.memory.all() == two.memory.all());
        prop_assert_eq!(one.out, two.out);
    }

    /// Rings full of noise: every call ends and leaves the machine able to start again.
    #[test]
    fn noise_in_the_rings_is_survived(
        features in features(),
        noise in prop::collection::vec((ring_byte(), any::<u64>()), 0..60),
        kicks in prop::collection::vec((0..DISK_QUEUE + 1, 14usize..1515), 1..6),
    ) {
        let mut rig = rig(features);
        for (gpa, value) in noise {
            rig.memory.write(Gpa(gpa), &value.to_le_bytes()).unwrap();
        }
        for (queue, len) in kicks {
            rig.kick(queue);
            rig.packet_in(&frame(len, 0));
        }
        for bar in [BAR, DISK_BAR] {
            rig.write(bar + 0x14, Size::Byte, 0);
            prop_assert_eq!(rig.read(bar + 0x14, Size::Byte), 0);
        }
        for queue in 0..=DISK_QUEUE {
            rig.memory.write(Gpa(ring(queue)[0]), &[0; 0x3000]).unwrap();
        }
        rig.config_write(1, 0x10, Size::Dword, BAR as u32);
        rig.start_net(VERSION_1);
        rig.offer_receive(0, 2048);
        rig.packet_in(&frame(60, 0));
        prop_assert_eq!(rig.used_index(0), 1);
        rig.config_write(2, 0x10, Size::Dword, DISK_BAR as u32);
        rig.start_disk(VERSION_1);
        prop_assert_eq!(rig.request(8, 0, &[], 20), (Some(0), b"pollux-disk\0\0\0\0\0\0\0\0\0".to_vec()));
    }

    /// Bytes from another machine are loaded or refused, never more.
    #[test]
    fn any_state_is_loaded_or_refused(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        steps in prop::collection::vec(step(), 0..20),
    ) {
        let mut rig = rig(EVENT_IDX);
        let mut bytes = state::save(&mut rig.platform);
        for (index, value) in flips {
            *index.get_mut(&mut bytes[..]) = value;
        }
        if state::load(&mut rig.platform, &bytes).is_ok() {
            for step in steps {
                match step {
                    // Such a machine may ask for the past.
                    Step::Time(ns) => {
                        rig.now = rig.now.after(ns);
                        rig.platform.advance(rig.now, &mut rig.memory);
                    }
                    step => {
                        apply(&mut rig, &step);
                    }
                }
            }
        }
    }
}
