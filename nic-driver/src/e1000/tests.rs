//! The driver against a model of the hardware.

use std::collections::VecDeque;

use proptest::prelude::*;
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::registers::*;
use super::testing::{Ending, OWN_MAC, bring_up, card, dma_memory};
use super::*;
use crate::DmaMemory;
use crate::frame::{FrameError, MAX_FRAME, MIN_WIRE_FRAME};

const MODELS: [Model; 2] = [Model::I82540EM, Model::I82574L];

fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![number as u8; len];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// As it appears on the wire.
fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(MIN_WIRE_FRAME), 0);
    frame
}

#[test]
fn a_card_comes_up_with_its_own_address() {
    for model in MODELS {
        let (nic, hardware) = card(model, 8);
        assert_eq!(nic.mac(), OWN_MAC);
        assert!(nic.link_up());
        let hardware = hardware.borrow();
        assert_eq!(hardware.get(RAL0), 0xAA00_5452);
        assert_eq!(hardware.get(RAH0), RAH_AV | 0xCCBB);
        assert_eq!(hardware.get(RCTL), RCTL_EN | RCTL_BAM | RCTL_MPE | RCTL_SECRC);
        assert_eq!(hardware.get(IMS), 0, "interrupts are masked");
        assert_eq!((hardware.get(RDLEN), hardware.get(RDH), hardware.get(RDT)), (128, 0, 7));
        assert_eq!(hardware.get(CTRL) & (CTRL_SLU | CTRL_RST | CTRL_GIO_MASTER_DISABLE), CTRL_SLU);
    }
}

#[test]
fn the_guests_address_can_be_programmed() {
    let mac = MacAddress([2, 1, 2, 3, 4, 5]);
    let (nic, hardware) = bring_up(Model::I82540EM, 8, Some(mac), |_| {});
    assert_eq!(nic.unwrap().mac(), mac);
    assert_eq!(hardware.borrow().get(RAL0), 0x0302_0102);
    assert_eq!(hardware.borrow().get(RAH0), RAH_AV | 0x0504);
}

#[test]
fn a_second_address_is_received_too() {
    let (guest, machine) = (MacAddress([2, 1, 2, 3, 4, 5]), MacAddress([2, 6, 7, 8, 9, 10]));
    let (nic, hardware) = bring_up(Model::I82574L, 8, Some(guest), |_| {});
    let mut nic = nic.unwrap();
    assert_eq!(nic.card_mac(), Some(OWN_MAC));
    for bad in [MacAddress::BROADCAST, MacAddress([0; 6]), MacAddress([3, 0, 0, 0, 0, 1]), guest] {
        assert_eq!(nic.receive_also(bad), Err(NicError::BadMac(bad)));
        assert_eq!(hardware.borrow().get(RAH0 + 8), 0);
    }
    nic.receive_also(machine).unwrap();
    assert_eq!(nic.mac(), guest);
    let hardware = hardware.borrow();
    assert_eq!((hardware.get(RAL0), hardware.get(RAH0)), (0x0302_0102, RAH_AV | 0x0504));
    assert_eq!((hardware.get(RAL0 + 8), hardware.get(RAH0 + 8)), (0x0807_0602, RAH_AV | 0x0A09));
}

#[test]
fn a_card_without_an_address_of_its_own_can_be_given_one() {
    let (nic, _) = bring_up(Model::I82540EM, 8, Some(OWN_MAC), |hardware| hardware.eeprom = [0; 3]);
    assert_eq!(nic.unwrap().card_mac(), None);
}

#[test]
fn what_cannot_work_is_refused() {
    let error = |mac, prepare: fn(&mut testing::Hardware)| bring_up(Model::I82574L, 8, mac, prepare).0.unwrap_err();
    assert_eq!(error(None, |hardware| hardware.eeprom = [0; 3]), NicError::NoMac);
    assert_eq!(error(None, |hardware| hardware.eeprom = [0x0101; 3]), NicError::NoMac);
    assert_eq!(error(Some(MacAddress::BROADCAST), |_| {}), NicError::BadMac(MacAddress::BROADCAST));
    assert_eq!(error(None, |hardware| hardware.reset_reads = u32::MAX), NicError::ResetTimeout);
    assert_eq!(
        error(None, |hardware| {
            hardware.registers.insert(STATUS, u32::MAX);
        }),
        NicError::Absent
    );
}

#[test]
fn memory_must_suffice_and_be_aligned() {
    let refused = |memory: DmaMemory| {
        let hardware = testing::Hardware::new(Model::I82540EM, memory.alias());
        let port = testing::Port(std::rc::Rc::new(std::cell::RefCell::new(hardware)));
        let error = E1000::new(Model::I82540EM, port.clone(), memory, None).unwrap_err();
        assert_eq!(*port.0.borrow().accesses.borrow(), 0, "the card was not touched");
        error
    };
    assert!(matches!(refused(dma_memory(needed_dma_bytes() - 1)), NicError::Memory(RingError::TooSmall(_))));
    assert!(matches!(refused(dma_memory(100)), NicError::Memory(RingError::TooSmall(100))));
    let (_, shifted) = dma_memory(needed_dma_bytes() + 16).split(16).unwrap();
    assert_eq!(refused(shifted), NicError::Memory(RingError::Misaligned));
}

#[test]
fn bad_frames_are_dropped_and_counted() {
    let (mut nic, hardware) = card(Model::I82540EM, 16);
    let bad = [
        Ending { len: 100, errors: 0x01, end_of_packet: true },
        Ending { len: 100, errors: 0x80, end_of_packet: true },
        Ending { len: 13, errors: 0, end_of_packet: true },
        Ending { len: 0, errors: 0, end_of_packet: true },
        Ending { len: 1519, errors: 0, end_of_packet: true },
        Ending { len: u16::MAX, errors: 0, end_of_packet: true },
        // One frame in three buffers; its end looks like a good frame.
        Ending { len: 2048, errors: 0, end_of_packet: false },
        Ending { len: 2048, errors: 0, end_of_packet: false },
        Ending { len: 100, errors: 0, end_of_packet: true },
    ];
    for ending in bad {
        assert!(hardware.borrow_mut().deliver_raw(&[0xEE; 100], ending));
    }
    assert!(hardware.borrow_mut().deliver(&frame(1, 100)));
    assert_eq!(nic.receive(<[u8]>::to_vec), Some(frame(1, 100)));
    assert_eq!(nic.receive(|_| ()), None);
    let expected = RxStats { frames: 1, bytes: 100, hardware_errors: 2, too_short: 2, too_long: 2, fragmented: 1 };
    assert_eq!(nic.stats().rx, expected);
    assert_eq!(hardware.borrow().rx_room(), 15, "buffers of bad frames are given back");
}

#[test]
fn checksum_flags_are_not_errors() {
    let (mut nic, hardware) = card(Model::I82574L, 8);
    hardware.borrow_mut().deliver_raw(&frame(1, 60), Ending { len: 60, errors: 0x60, end_of_packet: true });
    assert_eq!(nic.receive(<[u8]>::len), Some(60));
}

#[test]
fn frames_to_send_have_bounds_and_padding() {
    let (mut nic, hardware) = card(Model::I82540EM, 8);
    // A long frame first, so that padding shows what was there before.
    for _ in 0..8 {
        nic.send(&[0xFF; MAX_FRAME]).unwrap();
        nic.flush();
        hardware.borrow_mut().transmit(8);
        assert!(nic.tx_free() == 7);
    }
    hardware.borrow_mut().sent.clear();
    assert_eq!(nic.send(&[0; 13]), Err(SendError::Invalid(FrameError::TooShort(13))));
    assert_eq!(nic.send(&[0; 1519]), Err(SendError::Invalid(FrameError::TooLong(1519))));
    nic.send(&frame(1, 14)).unwrap();
    assert_eq!(hardware.borrow_mut().transmit(8), 0, "not before the flush");
    nic.flush();
    assert_eq!(hardware.borrow_mut().transmit(8), 1);
    assert_eq!(hardware.borrow().sent, [padded(frame(1, 14))]);
    assert_eq!(nic.stats().tx.invalid, 2);
}

#[test]
fn a_full_ring_drains_without_a_flush_by_the_caller() {
    let (mut nic, hardware) = card(Model::I82540EM, 8);
    for number in 0..7 {
        nic.send(&frame(number, 60)).unwrap();
    }
    assert_eq!(nic.send(&frame(7, 60)), Err(SendError::Full));
    hardware.borrow_mut().tx_errors = 0b0010;
    assert_eq!(hardware.borrow_mut().transmit(100), 7);
    assert_eq!(nic.tx_free(), 7);
    assert_eq!(nic.stats().tx.hardware_errors, 7);
    assert_eq!(nic.stats().tx.full, 1);
}

#[test]
fn polling_and_batches_cost_no_register_access() {
    let (mut nic, hardware) = card(Model::I82574L, 64);
    let accesses = || *hardware.borrow().accesses.borrow();
    let before = accesses();
    for number in 0..10 {
        hardware.borrow_mut().deliver(&frame(number, 60));
        assert!(nic.receive(|_| ()).is_some());
        assert!(nic.receive(|_| ()).is_none());
        nic.send(&frame(number, 60)).unwrap();
        nic.tx_free();
    }
    assert_eq!(accesses(), before);
    nic.flush();
    nic.flush();
    assert_eq!(accesses(), before + 1, "the transmit tail");
    for number in 10..16 {
        hardware.borrow_mut().deliver(&frame(number, 60));
        assert!(nic.receive(|_| ()).is_some());
    }
    assert_eq!(accesses(), before + 2, "the receive tail, as a quarter was read");
}

#[test]
fn work_arounds_for_lost_completions_are_on_where_they_exist() {
    let (_nic, hardware) = card(Model::I82574L, 8);
    assert_eq!((hardware.borrow().get(GCR), hardware.borrow().get(GCR2)), (1 << 22, 1));
    let (_nic, hardware) = card(Model::I82540EM, 8);
    assert!(!hardware.borrow().registers.contains_key(&GCR) && !hardware.borrow().registers.contains_key(&GCR2));
}

#[test]
fn causes_are_acknowledged_and_counted() {
    let (mut nic, hardware) = card(Model::I82540EM, 8);
    nic.enable_interrupts(Interrupts::RECEIVE);
    assert_eq!(hardware.borrow().get(IMS), 0xD4);
    hardware.borrow_mut().registers.insert(ICR, 0x8000_0044);
    assert_eq!(nic.interrupt_cause(), Interrupts::RX_OVERRUN | Interrupts::LINK_CHANGE);
    assert!(nic.interrupt_cause().is_empty());
    hardware.borrow_mut().registers.insert(MPC, 5);
    hardware.borrow_mut().registers.insert(ROC, 3);
    nic.update_counters();
    let stats = nic.stats();
    assert_eq!((stats.rx_overruns, stats.link_changes, stats.rx_missed), (1, 1, 5));
    assert_eq!(stats.rx_oversize, 3);
    nic.disable_interrupts();
    assert_eq!(hardware.borrow().get(IMS), 0);
}

#[test]
fn promiscuous_mode_and_stop() {
    let (mut nic, hardware) = card(Model::I82540EM, 8);
    nic.set_promiscuous(true);
    assert_ne!(hardware.borrow().get(RCTL) & RCTL_UPE, 0);
    nic.set_promiscuous(false);
    assert_eq!(hardware.borrow().get(RCTL) & RCTL_UPE, 0);
    nic.stop();
    assert_eq!(hardware.borrow().get(RCTL) & RCTL_EN, 0);
    assert_eq!(hardware.borrow().get(TCTL) & TCTL_EN, 0);
}

#[derive(Debug, Clone)]
enum Step {
    Deliver { len: usize, bad: bool },
    Receive,
    Send { len: usize },
    HardwareSends { limit: usize },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (14usize..=MAX_FRAME, prop::bool::weighted(0.2)).prop_map(|(len, bad)| Step::Deliver { len, bad }),
        4 => Just(Step::Receive),
        4 => (14usize..=MAX_FRAME).prop_map(|len| Step::Send { len }),
        2 => (0usize..6).prop_map(|limit| Step::HardwareSends { limit }),
        1 => Just(Step::Flush),
    ]
}

proptest! {
    /// Any interleaving of driver and hardware: each frame arrives once, whole and in order, in both directions.
    #[test]
    fn no_frame_is_lost_doubled_or_reordered(
        second in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..300),
    ) {
        let (mut nic, hardware) = card(MODELS[usize::from(second)], 8);
        let (mut incoming, mut outgoing) = (VecDeque::new(), Vec::new());
        let mut bad_frames = 0;
        for (number, step) in steps.into_iter().enumerate() {
            let number = number as u32;
            match step {
                Step::Deliver { len, bad } => {
                    let bytes = frame(number, len);
                    let ending = Ending { len: len as u16, errors: u8::from(bad), end_of_packet: true };
                    let taken = hardware.borrow_mut().deliver_raw(&bytes, ending);
                    if taken && bad {
                        bad_frames += 1;
                    } else if taken {
                        incoming.push_back(bytes);
                    }
                }
                Step::Receive => {
                    let waiting = nic.has_received();
                    let got = nic.receive(<[u8]>::to_vec);
                    prop_assert_eq!(waiting, got.is_some());
                    prop_assert_eq!(got, incoming.pop_front());
                }
                Step::Send { len } => {
                    let free = nic.tx_free();
                    match nic.send(&frame(number, len)) {
                        Ok(()) => outgoing.push(padded(frame(number, len))),
                        Err(error) => {
                            prop_assert_eq!(error, SendError::Full);
                            prop_assert_eq!(free, 0);
                        }
                    }
                }
                Step::HardwareSends { limit } => {
                    hardware.borrow_mut().transmit(limit);
                    let sent = hardware.borrow().sent.len();
                    prop_assert_eq!(nic.tx_free(), 7 - (outgoing.len() - sent));
                }
                Step::Flush => {
                    nic.flush();
                    let unread = incoming.len();
                    prop_assert!(hardware.borrow().rx_room() as usize + unread <= 7);
                }
            }
        }
        while let Some(bytes) = nic.receive(<[u8]>::to_vec) {
            prop_assert_eq!(Some(bytes), incoming.pop_front());
        }
        prop_assert!(incoming.is_empty());
        nic.flush();
        hardware.borrow_mut().transmit(usize::MAX);
        prop_assert_eq!(&hardware.borrow().sent, &outgoing);
        prop_assert_eq!(nic.tx_free(), 7);
        prop_assert!(hardware.borrow().rx_room() > 7 - 2, "all buffers but less than a quarter are with the card");
        prop_assert_eq!(nic.stats().rx.hardware_errors, bad_frames);
    }

    /// Whatever the hardware writes into descriptors, the driver ends and hands out only frames of valid length.
    #[test]
    fn any_descriptor_is_survived(endings in proptest::collection::vec(any::<(u16, u8, bool)>(), 1..100)) {
        let (mut nic, hardware) = card(Model::I82574L, 8);
        for (len, errors, end_of_packet) in endings {
            hardware.borrow_mut().deliver_raw(&[0; 64], Ending { len, errors, end_of_packet });
            while let Some(len) = nic.receive(<[u8]>::len) {
                prop_assert!((14..=MAX_FRAME).contains(&len));
            }
        }
    }
}

/// Two interfaces of smoltcp over two cards: what a user of the `Device` sees.
#[test]
fn tcp_runs_over_two_cards() {
    const BYTES: usize = 200_000;
    let now = Instant::from_millis;
    let mut ends = [(Model::I82540EM, 1), (Model::I82574L, 2)].map(|(model, host)| {
        let mac = MacAddress([2, 0, 0, 0, 0, host]);
        let (nic, hardware) = bring_up(model, 16, Some(mac), |_| {});
        let mut nic = nic.unwrap();
        let mut interface = Interface::new(Config::new(HardwareAddress::Ethernet(mac)), &mut nic, now(0));
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::v4(10, 0, 0, host), 24)).unwrap();
        });
        let socket =
            tcp::Socket::new(tcp::SocketBuffer::new(vec![0; 32 * 1024]), tcp::SocketBuffer::new(vec![0; 32 * 1024]));
        let mut sockets = SocketSet::new(vec![]);
        let handle = sockets.add(socket);
        (nic, hardware, interface, sockets, handle)
    });
    let [client, server] = &mut ends;
    server.3.get_mut::<tcp::Socket>(server.4).listen(7).unwrap();
    let connection = client.3.get_mut::<tcp::Socket>(client.4);
    connection.connect(client.2.context(), (IpAddress::v4(10, 0, 0, 2), 7), 50_000).unwrap();

    let (mut sent, mut received) = (0, 0);
    for tick in 0..20_000 {
        for (nic, _, interface, sockets, _) in &mut ends {
            interface.poll(now(tick), nic, sockets);
            nic.flush();
        }
        let [client, server] = &mut ends;
        let socket = client.3.get_mut::<tcp::Socket>(client.4);
        if socket.can_send() && sent < BYTES {
            sent += socket
                .send(|buffer| {
                    let len = buffer.len().min(BYTES - sent);
                    buffer[..len].iter_mut().enumerate().for_each(|(i, byte)| *byte = ((sent + i) % 251) as u8);
                    (len, len)
                })
                .unwrap();
        }
        let socket = server.3.get_mut::<tcp::Socket>(server.4);
        if socket.can_recv() {
            socket
                .recv(|buffer| {
                    assert!(buffer.iter().enumerate().all(|(i, &byte)| byte == ((received + i) % 251) as u8));
                    received += buffer.len();
                    (buffer.len(), ())
                })
                .unwrap();
        }
        for (from, to) in [(0, 1), (1, 0)] {
            let mut hardware = ends[from].1.borrow_mut();
            hardware.transmit(usize::MAX);
            for frame in hardware.sent.drain(..) {
                // A full ring drops, as a wire does.
                ends[to].1.borrow_mut().deliver(&frame);
            }
        }
        if received == BYTES {
            return;
        }
    }
    panic!("{received} of {BYTES} bytes arrived");
}

/// A card that claims to have sent what it was not told of does not make the driver forget it.
#[test]
fn a_premature_done_bit_means_nothing() {
    let (mut nic, hardware) = card(Model::I82540EM, 8);
    nic.send(&frame(1, 60)).unwrap();
    hardware.borrow_mut().set_done(0);
    assert_eq!(nic.tx_free(), 6);
    nic.flush();
    assert_eq!(nic.tx_free(), 7);
}
