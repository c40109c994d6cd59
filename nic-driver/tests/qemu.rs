//! The driver against QEMU's models of the cards.
//!
//! Skipped, with a message, where there is no `qemu-system-x86_64`; `cargo xtask test` repeats it at its end.

mod support;

use pollux_nic::{E1000, Interrupts, MacAddress, Model, needed_dma_bytes};
use support::{Machine, Port};

const CARD_MAC: MacAddress = MacAddress([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);
const GUEST_MAC: MacAddress = MacAddress([0x02, 0x00, 0x00, 0x00, 0x00, 0x07]);

fn frame(to: MacAddress, number: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![number as u8; len];
    bytes[..6].copy_from_slice(&to.0);
    bytes[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    bytes[12..14].copy_from_slice(&[0x88, 0xB5]);
    bytes[14..18].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn bring_up(device: &str, model: Model, mac: Option<MacAddress>) -> Option<(Machine, E1000<Port>)> {
    let Some(machine) = Machine::start(device, "52:54:00:12:34:56") else {
        println!("SKIPPED: there is no qemu-system-x86_64 (cargo xtask doctor --yes)");
        return None;
    };
    let (vendor, id) = machine.pci_ids();
    assert_eq!(Model::from_pci_ids(vendor, id), Some(model));
    let nic = E1000::new(model, machine.registers(), machine.dma_memory(needed_dma_bytes()), mac).unwrap();
    machine.wait("the link", || nic.link_up().then_some(()));
    Some((machine, nic))
}

fn next(machine: &Machine, nic: &mut E1000<Port>) -> Vec<u8> {
    machine.wait("reception", || nic.receive(<[u8]>::to_vec))
}

fn card_address(device: &str, model: Model) {
    let Some((_machine, nic)) = bring_up(device, model, None) else { return };
    assert_eq!((nic.mac(), nic.card_mac()), (CARD_MAC, Some(CARD_MAC)));
}

/// More frames than the rings have descriptors, in both directions.
fn traffic(device: &str, model: Model) {
    let Some((machine, mut nic)) = bring_up(device, model, Some(GUEST_MAC)) else { return };
    let lengths = [60, 61, 64, 590, 1500, 1514, 1518];
    for number in 0..700 {
        let sent = frame(CARD_MAC, number, lengths[number as usize % lengths.len()]);
        nic.transmit(sent.len(), |buffer| buffer.copy_from_slice(&sent)).unwrap();
        // Single frames and batches.
        if number % 8 < 4 || number % 8 == 7 {
            nic.flush();
        }
        if number % 8 == 7 {
            for earlier in number - 7..=number {
                assert_eq!(machine.receive(), frame(CARD_MAC, earlier, lengths[earlier as usize % lengths.len()]));
            }
        }
    }
    nic.flush();
    for number in 0..700 {
        machine.send(&frame(GUEST_MAC, number, lengths[number as usize % lengths.len()]));
        if number % 50 == 49 {
            for earlier in number - 49..=number {
                let expected = frame(GUEST_MAC, earlier, lengths[earlier as usize % lengths.len()]);
                assert_eq!(next(&machine, &mut nic), expected);
            }
        }
    }
    let stats = nic.stats();
    assert_eq!((stats.rx.frames, stats.tx.frames), (700, 700));
    assert_eq!((stats.rx.hardware_errors, stats.tx.hardware_errors), (0, 0));
    assert_eq!((stats.rx.too_long, stats.rx.too_short, stats.rx.fragmented), (0, 0, 0));
}

fn short_frames_are_padded(device: &str, model: Model) {
    let Some((machine, mut nic)) = bring_up(device, model, None) else { return };
    nic.transmit(20, |buffer| buffer.fill(0xAA)).unwrap();
    nic.flush();
    let mut expected = [0; 60];
    expected[..20].fill(0xAA);
    assert_eq!(machine.receive(), expected);
}

fn filter(device: &str, model: Model) {
    let Some((machine, mut nic)) = bring_up(device, model, Some(GUEST_MAC)) else { return };
    let multicast = MacAddress([0x33, 0x33, 0, 0, 0, 1]);
    let stranger = MacAddress([2, 9, 9, 9, 9, 9]);
    for (number, to) in [stranger, CARD_MAC, MacAddress::BROADCAST, multicast, GUEST_MAC].into_iter().enumerate() {
        machine.send(&frame(to, number as u32, 100));
    }
    for (number, to) in [(2, MacAddress::BROADCAST), (3, multicast), (4, GUEST_MAC)] {
        assert_eq!(next(&machine, &mut nic), frame(to, number, 100));
    }
    nic.receive_also(CARD_MAC).unwrap();
    for (number, to) in [(5, stranger), (6, CARD_MAC), (7, GUEST_MAC)] {
        machine.send(&frame(to, number, 100));
    }
    assert_eq!(next(&machine, &mut nic), frame(CARD_MAC, 6, 100));
    assert_eq!(next(&machine, &mut nic), frame(GUEST_MAC, 7, 100));
    nic.set_promiscuous(true);
    machine.send(&frame(stranger, 8, 100));
    assert_eq!(next(&machine, &mut nic), frame(stranger, 8, 100));
}

/// More frames than buffers: they stay whole and in order, and the card recovers.
fn overrun(device: &str, model: Model) {
    let Some((machine, mut nic)) = bring_up(device, model, Some(GUEST_MAC)) else { return };
    // The ring takes 255, however slowly QEMU reads them; the others stay before it until the wire is jammed: by
    // net.unix.max_dgram_qlen, of which kernels have 10 and systemd makes 512, or by the memory that a socket may use.
    const MOST: u32 = 10_000;
    (0..255).for_each(|number| machine.send(&frame(GUEST_MAC, number, 60)));
    let more = (255..MOST).take_while(|&number| machine.try_send(&frame(GUEST_MAC, number, 60))).count() as u32;
    let taken = 255 + more;
    assert!(taken < MOST, "no frame found the wire jammed");
    for number in 0..taken {
        assert_eq!(next(&machine, &mut nic), frame(GUEST_MAC, number, 60), "QEMU keeps what finds no buffer");
    }
    machine.send(&frame(GUEST_MAC, taken, 60));
    assert_eq!(next(&machine, &mut nic), frame(GUEST_MAC, taken, 60));
}

fn interrupts(device: &str, model: Model) {
    let Some((machine, mut nic)) = bring_up(device, model, Some(GUEST_MAC)) else { return };
    nic.interrupt_cause();
    nic.enable_interrupts(Interrupts::RECEIVE);
    machine.send(&frame(GUEST_MAC, 1, 60));
    next(&machine, &mut nic);
    let cause = machine.wait("a cause", || Some(nic.interrupt_cause()).filter(|cause| !cause.is_empty()));
    assert!(cause.contains(Interrupts::RECEIVED));
    assert!(nic.interrupt_cause().is_empty(), "the read acknowledged it");
}

fn silence(device: &str, model: Model) {
    let Some((machine, mut nic)) = bring_up(device, model, None) else { return };
    nic.stop();
    nic.transmit(60, |buffer| buffer.fill(0)).unwrap();
    nic.flush();
    drop(nic);
    // A new driver takes over a card in any state, and the first frame on the wire is its own.
    let memory = machine.dma_memory(needed_dma_bytes());
    let mut nic = E1000::new(model, machine.registers(), memory, None).unwrap();
    nic.transmit(60, |buffer| buffer.fill(7)).unwrap();
    nic.flush();
    assert_eq!(machine.receive(), [7; 60]);
}

macro_rules! on_both_cards {
    ($($test:ident),*) => {
        mod e1000 {
            $(#[test]
            fn $test() {
                super::$test("e1000", super::Model::I82540EM);
            })*
        }
        mod e1000e {
            $(#[test]
            fn $test() {
                super::$test("e1000e", super::Model::I82574L);
            })*
        }
    };
}

on_both_cards!(card_address, traffic, short_frames_are_padded, filter, overrun, interrupts, silence);
