//! virtio-net through PCI, as a driver sees it.

use super::driver::*;
use super::*;
use crate::platform::virtio::net::MAX_BACKLOG;

const ALL: u64 = VERSION_1 | EVENT_IDX | INDIRECT | MERGEABLE;

#[test]
fn the_device_is_found_by_its_capabilities() {
    let mut rig = Rig::new();
    assert_eq!(rig.config_read(1, 0, Size::Dword), 0x1041_1AF4);
    assert_eq!(u64::from(rig.config_read(1, 0x10, Size::Dword)), BAR);
    let mut at = rig.config_read(1, 0x34, Size::Byte);
    let mut kinds = Vec::new();
    while at != 0 {
        let head = rig.config_read(1, at, Size::Dword);
        kinds.push((head as u8, (head >> 24) as u8));
        at = head >> 8 & 0xFF;
    }
    assert_eq!(kinds[..5], [(9, 1), (9, 3), (9, 4), (9, 2), (9, 5)]);
    assert_eq!(kinds[5].0, 0x11);
    let mac: Vec<u8> = (0..6).map(|i| rig.read(BAR + 0x2000 + i, Size::Byte) as u8).collect();
    assert_eq!((&mac[..], rig.read(BAR + 0x2006, Size::Word)), (&MAC[..], 1));
    // The same byte through the configuration window.
    rig.config_write(1, 0x8C, Size::Dword, 0x2005);
    rig.config_write(1, 0x90, Size::Dword, 1);
    assert_eq!(rig.config_read(1, 0x94, Size::Byte), u32::from(MAC[5]));
    // The BAR can be moved.
    rig.config_write(1, 0x10, Size::Dword, 0xD000_0000);
    assert_eq!(rig.read(0xD000_2006, Size::Word), 1);
    assert_eq!(rig.read(BAR + 0x2006, Size::Word), 0xFFFF);
}

#[test]
fn features_must_be_offered_and_modern() {
    let mut rig = Rig::new();
    for features in [0, VERSION_1 | 1 << 1, VERSION_1 | 1 << 50] {
        rig.write(BAR + 0x14, Size::Byte, 0);
        for (select, bits) in [(0, features & 0xFFFF_FFFF), (1, features >> 32)] {
            rig.write(BAR + 8, Size::Dword, select);
            rig.write(BAR + 12, Size::Dword, bits);
        }
        rig.write(BAR + 0x14, Size::Byte, 0xB);
        assert_eq!(rig.read(BAR + 0x14, Size::Byte), 3);
    }
}

#[test]
fn received_frames_arrive_whole_and_interrupt() {
    let mut rig = Rig::new();
    rig.start_net(ALL);
    rig.offer_receive(0, 2048);
    rig.offer_receive(1, 2048);
    let sent = frame(100, 1);
    rig.packet_in(&sent);
    assert_eq!(rig.interrupt(), Some(0x51));
    assert_eq!((rig.used_index(0), rig.used(0, 0)), (1, (0, 112)));
    assert_eq!(rig.memory.slice(Gpa(buffer(0)), 12).unwrap(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(rig.memory.slice(Gpa(buffer(0) + 12), 100).unwrap(), sent);
    // The driver has not moved its event index: it still works on the first one.
    rig.packet_in(&sent);
    assert_eq!((rig.interrupt(), rig.used_index(0)), (None, 2));
}

#[test]
fn half_of_a_frame_says_nothing_and_takes_no_buffer() {
    let mut rig = Rig::new();
    rig.start_net(ALL);
    let sent = frame(100, 1);
    assert!(!rig.platform.packet_half_in(&mut rig.memory, &sent), "there is no buffer");
    rig.offer_receive(0, 2048);
    assert!(rig.platform.packet_half_in(&mut rig.memory, &sent));
    assert_eq!((rig.interrupt(), rig.used_index(0)), (None, 0));
    assert_eq!(rig.memory.slice(Gpa(buffer(0) + 12), 50).unwrap(), &sent[..50]);
    assert_eq!(rig.memory.slice(Gpa(buffer(0) + 62), 50).unwrap(), [0; 50]);
    rig.packet_in(&sent);
    assert_eq!((rig.interrupt(), rig.used_index(0), rig.used(0, 0)), (Some(0x51), 1, (0, 112)));
    assert_eq!(rig.memory.slice(Gpa(buffer(0) + 12), 100).unwrap(), sent);
}

#[test]
fn frames_wait_for_buffers_in_order_and_then_overflow() {
    let mut rig = Rig::new();
    rig.start_net(VERSION_1 | EVENT_IDX);
    let event = ring(0)[2] + 4 + 8 * u64::from(SIZE);
    assert_eq!(rig.get_u16(event), SIZE, "no notification wanted while nothing waits");
    for seed in 0..=MAX_BACKLOG {
        rig.packet_in(&frame(60, seed as u8));
    }
    assert_eq!((rig.platform.net_backlog(), rig.platform.net_stats().overflow), (MAX_BACKLOG, 1));
    assert_eq!(rig.get_u16(event), 0);
    // A new backup has the waiting frames too.
    let bytes = state::save(&mut rig.platform);
    rig.platform = Platform::new(&config()).unwrap();
    state::load(&mut rig.platform, &bytes).unwrap();
    for seed in 0..3 {
        rig.offer_receive(seed, 2048);
    }
    rig.kick(0);
    assert_eq!((rig.used_index(0), rig.platform.net_backlog()), (3, MAX_BACKLOG - 3));
    for seed in 0..3 {
        let got = rig.memory.slice(Gpa(buffer(seed) + 12), 60).unwrap();
        assert_eq!(got, frame(60, seed as u8));
    }
}

#[test]
fn mergeable_buffers_share_a_frame_or_wait_together() {
    let mut rig = Rig::new();
    rig.start_net(ALL);
    let sent = frame(1000, 9);
    rig.offer_receive(0, 512);
    rig.packet_in(&sent);
    assert_eq!((rig.used_index(0), rig.platform.net_backlog()), (0, 1));
    rig.offer_receive(1, 512);
    rig.kick(0);
    assert_eq!((rig.used_index(0), rig.used(0, 0), rig.used(0, 1)), (2, (0, 512), (1, 500)));
    assert_eq!(rig.get_u16(buffer(0) + 10), 2);
    let mut got = rig.memory.slice(Gpa(buffer(0) + 12), 500).unwrap().to_vec();
    got.extend_from_slice(rig.memory.slice(Gpa(buffer(1)), 500).unwrap());
    assert_eq!(got, sent);
}

/// A driver that does as the event index says brings all that a frame waits for.
#[test]
fn a_frame_that_waits_for_several_buffers_is_told_of_each() {
    let mut rig = Rig::new();
    rig.start_net(ALL);
    for round in 0..100 {
        rig.refill_receive(0, 512);
        rig.packet_in(&frame(1500, round as u8));
        assert_eq!(rig.platform.net_backlog(), 1);
        rig.refill_receive(1, 512);
        rig.refill_receive(2, 512);
        assert_eq!((rig.used_index(0), rig.platform.net_backlog()), (3 * (round + 1), 0));
    }
}

/// All the buffers that the driver can have there are too small together.
#[test]
fn a_frame_that_no_ring_could_hold_is_dropped() {
    for (len, slots) in [(100, 0..SIZE), (50, 0..SIZE / 2)] {
        let mut rig = Rig::new();
        rig.start_net(ALL);
        for slot in slots.clone() {
            // Chains of two descriptors where half as many fill the table.
            if slots.end == SIZE {
                rig.offer_receive(slot, len);
            } else {
                rig.descriptor(ring(0)[0], 2 * slot, buffer(2 * slot), len, WRITE | NEXT, 2 * slot + 1);
                rig.descriptor(ring(0)[0], 2 * slot + 1, buffer(2 * slot + 1), len, WRITE, 0);
                rig.offer(0, 2 * slot);
            }
        }
        rig.packet_in(&frame(1000, 1));
        assert_eq!((rig.used_index(0), rig.platform.net_backlog(), rig.platform.net_stats().bad_size), (0, 0, 1));
        rig.packet_in(&frame(60, 2));
        assert_eq!(rig.platform.net_stats().received, 1, "others still fit");
    }
}

#[test]
fn without_mergeable_buffers_small_ones_lose_the_frame_only() {
    let mut rig = Rig::new();
    rig.start_net(VERSION_1);
    rig.offer_receive(0, 50);
    rig.offer_receive(1, 2048);
    rig.packet_in(&frame(100, 1));
    rig.packet_in(&frame(100, 2));
    assert_eq!((rig.used(0, 0), rig.used(0, 1)), ((0, 0), (1, 112)));
    assert_eq!(rig.platform.net_stats().bad_size, 1);
}

/// A tagged frame of full size passes both ways; what is longer is refused and counted.
#[test]
fn frames_have_room_for_a_vlan_tag() {
    let mut rig = Rig::new();
    // The buffers of Linux' driver without mergeable ones: header, Ethernet header, tag, 1500 bytes.
    rig.start_net(VERSION_1);
    rig.offer_receive(0, 12 + 1518);
    let mut tagged = frame(1518, 7);
    tagged[12..16].copy_from_slice(&[0x81, 0, 0, 5]);
    rig.packet_in(&tagged);
    rig.packet_in(&frame(1519, 8));
    assert_eq!(rig.used(0, 0), (0, 12 + 1518));
    assert_eq!(rig.memory.slice(Gpa(buffer(0) + 12), 1518).unwrap(), tagged);
    assert_eq!(rig.platform.net_stats().bad_size, 1);
    let table = ring(1)[0];
    rig.memory.write(Gpa(buffer(4)), &[0; 12]).unwrap();
    for (number, len) in [(0, 1518), (1, 1519)] {
        rig.memory.write(Gpa(buffer(4) + 12), &frame(len, 9)).unwrap();
        rig.descriptor(table, number, buffer(4), 12 + len as u32, 0, 0);
        rig.offer(1, number);
        rig.kick(1);
    }
    assert_eq!(rig.out.frames.iter().map(Vec::len).collect::<Vec<_>>(), [1518]);
    assert_eq!(rig.platform.net_stats().bad_sent, 1);
}

#[test]
fn frames_are_sent_from_any_layout() {
    let mut rig = Rig::new();
    rig.start_net(ALL);
    let sent = frame(300, 3);
    let table = ring(1)[0];
    rig.memory.write(Gpa(buffer(0) + 12), &sent).unwrap();
    // One piece.
    rig.descriptor(table, 0, buffer(0), 312, 0, 0);
    rig.offer(1, 0);
    // Header apart.
    rig.descriptor(table, 1, buffer(0), 12, NEXT, 2);
    rig.descriptor(table, 2, buffer(0) + 12, 300, 0, 0);
    rig.offer(1, 1);
    // Cut in the middle of the header and of the frame, in an indirect table.
    for (index, (start, len, flags)) in [(0, 5, NEXT), (5, 100, NEXT), (105, 207, 0)].into_iter().enumerate() {
        rig.descriptor(buffer(7), index as u16, buffer(0) + start, len, flags, index as u16 + 1);
    }
    rig.descriptor(table, 3, buffer(7), 48, 4, 0);
    rig.offer(1, 3);
    rig.kick(1);
    assert_eq!(rig.out.frames, [&sent[..]; 3]);
    assert_eq!((rig.used_index(1), rig.interrupt()), (3, Some(0x52)));
}

#[test]
fn bad_frames_are_counted_and_given_back() {
    let mut rig = Rig::new();
    rig.start_net(VERSION_1);
    let table = ring(1)[0];
    rig.memory.write(Gpa(buffer(1)), &[1]).unwrap();
    for (slot, gpa, len) in [(0, buffer(0), 20), (1, buffer(0), 1531), (2, buffer(1), 100), (3, 0, u32::MAX)] {
        rig.descriptor(table, slot, gpa, len, 0, 0);
        rig.offer(1, slot);
    }
    rig.kick(1);
    assert_eq!((rig.out.frames.len(), rig.used_index(1), rig.platform.net_stats().bad_sent), (0, 4, 4));
    assert_eq!(rig.read(BAR + 0x14, Size::Byte), 0xF);
}

#[test]
fn malformed_rings_ask_for_a_reset_and_a_reset_helps() {
    let break_it: [fn(&mut Rig); 6] = [
        |rig| rig.put_u16(ring(1)[1] + 2, SIZE + 1),
        |rig| rig.offer(1, SIZE),
        |rig| {
            rig.descriptor(ring(1)[0], 0, buffer(0), 20, NEXT, 0);
            rig.offer(1, 0);
        },
        |rig| {
            rig.descriptor(ring(1)[0], 0, MEMORY - 50, 100, 0, 0);
            rig.offer(1, 0);
        },
        |rig| {
            rig.descriptor(ring(1)[0], 0, u64::MAX - 15, 32, 4, 0);
            rig.offer(1, 0);
        },
        |rig| {
            rig.descriptor(ring(1)[0], 0, buffer(0), 20, NEXT | WRITE, 1);
            rig.descriptor(ring(1)[0], 1, buffer(0), 20, 0, 0);
            rig.offer(1, 0);
        },
    ];
    for (index, malform) in break_it.into_iter().enumerate() {
        let mut rig = Rig::new();
        rig.start_net(ALL);
        malform(&mut rig);
        rig.kick(1);
        assert_eq!(rig.read(BAR + 0x14, Size::Byte), 0x4F, "case {index}");
        assert_eq!((rig.platform.malformed_queues(), rig.interrupt()), (1, Some(0x50)));
        rig.kick(1);
        assert_eq!(rig.platform.malformed_queues(), 1, "a broken device does nothing");
        for queue in 0..2 {
            rig.put_u16(ring(queue)[1] + 2, 0);
        }
        rig.start_net(ALL);
        rig.offer_receive(0, 2048);
        rig.packet_in(&frame(60, 0));
        assert_eq!(rig.used_index(0), 1);
    }
}

#[test]
fn masked_vectors_wait_and_intx_serves_drivers_without_msix() {
    let mut rig = Rig::new();
    rig.start_net(VERSION_1);
    rig.write(BAR + 0x4000 + 16 + 12, Size::Dword, 1);
    rig.offer_receive(0, 2048);
    rig.packet_in(&frame(60, 0));
    assert_eq!((rig.interrupt(), rig.read(BAR + 0x5000, Size::Dword)), (None, 2));
    rig.write(BAR + 0x4000 + 16 + 12, Size::Dword, 0);
    assert_eq!((rig.interrupt(), rig.read(BAR + 0x5000, Size::Dword)), (Some(0x51), 0));

    rig.config_write(1, 0x9A, Size::Word, 0);
    rig.write(0xFEC0_0000, Size::Dword, 0x10 + 2 * 16);
    rig.write(0xFEC0_0010, Size::Dword, 0x8066);
    rig.offer_receive(1, 2048);
    rig.packet_in(&frame(60, 0));
    assert_eq!(rig.config_read(1, 6, Size::Word) & 8, 8);
    assert_eq!(rig.platform.pending_interrupt(), Some(0x66));
    assert_eq!(rig.read(BAR + 0x1000, Size::Byte), 1);
    assert_eq!((rig.interrupt(), rig.interrupt()), (Some(0x66), None));
}

#[test]
fn without_bus_mastering_nothing_is_touched() {
    let mut rig = Rig::new();
    rig.start_net(VERSION_1);
    rig.offer_receive(0, 2048);
    rig.config_write(1, 4, Size::Word, 2);
    rig.packet_in(&frame(60, 0));
    assert_eq!((rig.used_index(0), rig.platform.net_stats().not_ready), (0, 1));
}
