//! Ends of interrupts by memory: where a machine stops its guest does not matter to them.

use super::*;

/// Where the guest's word lies by which it ends interrupts.
const WORD: Gpa = Gpa(0x2000);
const LAPIC: u64 = crate::platform::lapic::DEFAULT_BASE;

/// What happens to a guest that ends interrupts by memory.
#[derive(Debug, Clone, Copy)]
enum Happening {
    /// This machine stops the guest, and its twin does not.
    Stop,
    /// The guest writes the word.
    Word(u32),
    /// It takes the interrupt that waits.
    Take,
    /// It leaves for the hypervisor, on both machines.
    Exit,
    /// The CPU misses a translation, on one of them.
    Miss,
    /// Its timer interrupts soon, with this vector.
    Timer(u8),
    /// An entry is applied; one that moves time.
    Entry,
    Clock(u64),
    Digest,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let happening = prop_oneof![
        4 => Just(Happening::Stop),
        5 => (0..2_u32).prop_map(Happening::Word),
        3 => Just(Happening::Take),
        1 => Just(Happening::Exit),
        2 => Just(Happening::Miss),
        3 => (0x30..0x33_u8).prop_map(Happening::Timer),
        1 => Just(Happening::Entry),
        2 => (0..20_u64).prop_map(Happening::Clock),
        1 => Just(Happening::Digest),
    ];
    prop::collection::vec(happening, 1..100)
}

/// What is seen of a guest to which this happens, a thing every ten ticks.
fn seen_of(happenings: &[Happening], disturbed: bool) -> Vec<(Vec<u8>, [u8; 4])> {
    let mut guest = guest(&[], false);
    write_lapic(&mut guest, 0xF0, 0x1FF);
    write_lapic(&mut guest, 0x3E0, 0xB);
    guest.platform.wrmsr(guest.now(), crate::platform::kvm::EOI, WORD.0 | 1, &mut guest.memory).unwrap();
    let leave = |guest: &mut Guest, exit| {
        let (registers, lent) = (*guest.vcpu.registers(), Lent::default());
        let (extended, mode, exits) = (MadeUp::default(), Mode::default(), [exit].into());
        guest.vcpu = Box::new(Script { exits, registers, extended, mode, lent, ..script(&[]) });
    };
    let mut seen = Vec::new();
    for (number, &happening) in (1..).zip(happenings) {
        let at = Position(10 * number);
        // What the guest does by itself ends no run.
        if disturbed || !matches!(happening, Happening::Word(_) | Happening::Take | Happening::Stop | Happening::Miss) {
            guest.run(at, &mut Nothing);
        }
        match happening {
            Happening::Stop if disturbed => drop(guest.run(at.after(5), &mut Nothing)),
            // At a stop, where the next run misses it again.
            Happening::Miss if disturbed => {
                leave(&mut guest, Exit::PageFault { linear: 0, error_code: 0 });
                guest.run(at.after(5), &mut Nothing);
            }
            Happening::Stop | Happening::Miss => {}
            Happening::Word(word) => guest.memory.write(WORD, &word.to_le_bytes()).unwrap(),
            Happening::Take => {
                if let Some(vector) = guest.platform.pending_interrupt() {
                    guest.platform.interrupt_taken(vector);
                }
            }
            Happening::Exit => {
                leave(&mut guest, out(0x80));
                guest.run(at.after(5), &mut Nothing);
            }
            Happening::Timer(vector) => {
                write_lapic(&mut guest, 0x320, u64::from(vector));
                write_lapic(&mut guest, 0x380, 3);
                guest.run(at.after(5), &mut Nothing);
            }
            Happening::Entry => guest.console_in(b"x"),
            Happening::Clock(ahead) => guest.steer_clock(guest.now().after(ahead), RATE_ONE).unwrap(),
            Happening::Digest => seen.push((guest.save(), guest.memory.read(WORD).unwrap())),
        }
    }
    guest.run(Position(10 * (happenings.len() as u64 + 1)), &mut Nothing);
    seen.push((guest.save(), guest.memory.read(WORD).unwrap()));
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Also with a guest that takes the word back.
    #[test]
    fn where_a_machine_stops_does_not_matter_to_ends_by_memory(happenings in happenings()) {
        prop_assert_eq!(seen_of(&happenings, true), seen_of(&happenings, false));
    }
}

/// The guest has ended its interrupt by memory. An entry may raise the next one, and looks at that before.
#[test]
fn an_entry_looks_first_at_ends_by_memory() {
    let entries: [fn(&mut Guest); 4] = [
        |guest| guest.console_in(b"x"),
        |guest| guest.packet_in(&[0; 60]),
        |guest| guest.disk_done(&[]).unwrap(),
        |guest| guest.steer_clock(guest.now(), RATE_ONE).unwrap(),
    ];
    for (number, entry) in entries.into_iter().enumerate() {
        let mut guest = serving();
        assert_eq!(in_service(&mut guest), 1 << 0x10, "vector 0x30");
        guest.memory.write(WORD, &[0; 4]).unwrap();
        entry(&mut guest);
        assert_eq!(in_service(&mut guest), 0, "entry {number}");
    }
}

/// A guest in the handler of vector 0x30, whose end it may tell by memory.
fn serving() -> Guest {
    let mut guest = guest(&[], false);
    for (offset, value) in [(0xF0, 0x1FF), (0x3E0, 0xB), (0x320, 0x30), (0x380, 3)] {
        write_lapic(&mut guest, offset, value);
    }
    guest.platform.wrmsr(guest.now(), crate::platform::kvm::EOI, WORD.0 | 1, &mut guest.memory).unwrap();
    guest.run(Position(100), &mut Nothing);
    assert_eq!(guest.platform.pending_interrupt(), Some(0x30));
    guest.platform.interrupt_taken(0x30);
    guest.console_in(b"");
    assert_ne!(guest.memory.read::<4>(WORD).unwrap(), [0; 4], "it may");
    guest
}

/// The vectors from 0x20 to 0x3F that the guest's local APIC has in service, a bit each.
fn in_service(guest: &mut Guest) -> u64 {
    let now = guest.now();
    guest.platform.mmio_read(now, Gpa(LAPIC + 0x110), crate::platform::Size::Dword)
}

fn write_lapic(guest: &mut Guest, offset: u64, value: u64) {
    let now = guest.now();
    let Guest { platform, memory, .. } = guest;
    platform.mmio_write(now, Gpa(LAPIC + offset), crate::platform::Size::Dword, value, memory, &mut Nothing);
}
