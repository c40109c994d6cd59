//! What a driver leaves to the network device: checksums, and cutting large segments.

use proptest::prelude::*;

use super::driver::*;
use super::*;
use crate::platform::virtio::net::{BURST, MAX_FRAME};

const NEEDS_CSUM: u8 = 1;
const TCP4: u8 = 1;
/// Checksums, and TCP over IPv4 and IPv6 with ECN.
const OFFLOADS: u64 = 1 << 0 | 1 << 11 | 1 << 12 | 1 << 13;
/// Where a packet of TCP over IPv4 without options has TCP's header and its payload.
const TCP: usize = 34;
const PAYLOAD: usize = 54;

/// The device's header, Ethernet, IPv4, TCP and payload, to be cut into segments of `size` bytes.
fn large(payload: usize, size: u16) -> Vec<u8> {
    let mut bytes = frame(12 + PAYLOAD + payload, 3);
    bytes[..12].fill(0);
    (bytes[0], bytes[1]) = (NEEDS_CSUM, TCP4);
    bytes[4..6].copy_from_slice(&size.to_le_bytes());
    (bytes[6], bytes[8]) = (TCP as u8, 16);
    let frame = &mut bytes[12..];
    frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    frame[20..24].copy_from_slice(&[0x40, 0, 64, 6]);
    frame[TCP + 12..TCP + 14].copy_from_slice(&[0x50, 0x18]);
    bytes
}

impl Rig {
    /// Offers `bytes` for sending as chain `slot`, in pieces of `piece` bytes behind an indirect table. They lie at `at`.
    fn offer_pieces(&mut self, slot: u16, at: u64, bytes: &[u8], piece: usize) {
        self.memory.write(Gpa(at), bytes).unwrap();
        let table = buffer(slot);
        let count = bytes.len().div_ceil(piece);
        for (index, part) in bytes.chunks(piece).enumerate() {
            let flags = if index + 1 < count { NEXT } else { 0 };
            let gpa = at + (index * piece) as u64;
            self.descriptor(table, index as u16, gpa, part.len() as u32, flags, index as u16 + 1);
        }
        self.descriptor(ring(1)[0], slot, table, 16 * count as u32, 4, 0);
        self.offer(1, slot);
    }
}

/// Where what is sent lies.
const BYTES: u64 = 0x30_0000;

#[test]
fn large_segments_leave_as_frames_from_any_layout() {
    for piece in [500, 700, 4096] {
        let mut rig = Rig::new();
        rig.start_net(VERSION_1 | INDIRECT | OFFLOADS);
        let sent = large(3000, 1400);
        rig.offer_pieces(0, BYTES, &sent, piece);
        // What was agreed on is known to another machine, too.
        rig.move_platform();
        rig.kick(1);
        assert_eq!(rig.out.frames.iter().map(Vec::len).collect::<Vec<_>>(), [1454, 1454, 254]);
        let payload: Vec<u8> = rig.out.frames.iter().flat_map(|frame| &frame[PAYLOAD..]).copied().collect();
        assert_eq!(payload, sent[12 + PAYLOAD..]);
        assert_eq!((rig.used_index(1), rig.used(1, 0), rig.interrupt()), (1, (0, 0), Some(0x52)));
        let stats = rig.platform.net_stats();
        assert_eq!((stats.sent, stats.bad_sent), (3, 0));
    }
}

#[test]
fn checksums_are_completed_and_the_guests_memory_is_left() {
    let mut rig = Rig::new();
    rig.start_net(VERSION_1 | INDIRECT | 1);
    let mut sent = large(100, 0);
    sent[1] = 0;
    rig.offer_pieces(0, BYTES, &sent, 4096);
    // TCP's header begins beyond the frame.
    sent[7] = 1;
    rig.offer_pieces(1, BYTES + 0x1000, &sent, 4096);
    rig.kick(1);
    sent[7] = 0;
    assert_eq!(rig.memory.slice(Gpa(BYTES), sent.len() as u64).unwrap(), sent);
    let [left] = &rig.out.frames[..] else { panic!("{} frames", rig.out.frames.len()) };
    let checksum = TCP + 16..TCP + 18;
    assert_ne!(left[checksum.clone()], sent[12..][checksum.clone()]);
    assert_eq!(
        (&left[..checksum.start], &left[checksum.end..]),
        (&sent[12..][..checksum.start], &sent[12..][checksum.end..])
    );
    assert_eq!((rig.platform.net_stats().bad_sent, rig.used_index(1)), (1, 2));
}

#[test]
fn what_was_not_agreed_on_is_refused() {
    for features in [0, 1] {
        let mut rig = Rig::new();
        rig.start_net(VERSION_1 | INDIRECT | features);
        rig.offer_pieces(0, BYTES, &large(3000, 1400), 4096);
        rig.kick(1);
        assert_eq!((rig.out.frames.len(), rig.platform.net_stats().bad_sent, rig.used_index(1)), (0, 1, 1));
    }
}

/// Segments of next to nothing: the frames of one notification are bounded, and plain ones still leave.
#[test]
fn one_notification_makes_no_more_frames_than_there_is_room_for() {
    let mut rig = Rig::new();
    rig.start_net(VERSION_1 | INDIRECT | OFFLOADS);
    // One byte each is too much at once; of 48 there is room for one segment, and not for another.
    for (slot, size) in [(0, 1), (1, 48), (2, 48), (3, 1400)] {
        rig.offer_pieces(slot, BYTES + 0x1_1000 * u64::from(slot), &large(65_481, size), 0x4000);
    }
    let mut plain = frame(12 + 60, 1);
    plain[..12].fill(0);
    rig.offer_pieces(4, BYTES + 0x8_0000, &plain, 4096);
    rig.kick(1);
    assert_eq!(rig.out.frames.len(), 65_481usize.div_ceil(48) + 65_481usize.div_ceil(1400) + 1);
    assert!(rig.out.frames.len() <= BURST);
    assert_eq!(rig.out.frames.last().unwrap()[..], plain[12..]);
    assert_eq!((rig.used_index(1), rig.platform.net_stats().bad_sent), (5, 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any header before any bytes, with any features.
    #[test]
    fn hostile_headers_are_survived(
        features in any::<u16>(),
        packets in prop::collection::vec((0usize..70_000, 0u16..2000, prop::collection::vec((0usize..90, any::<u8>()), 0..6), 300usize..5000), 1..6),
    ) {
        let mut rig = Rig::new();
        rig.start_net(VERSION_1 | INDIRECT | u64::from(features) & OFFLOADS);
        let count = packets.len() as u16;
        for (slot, (payload, size, edits, piece)) in (0..).zip(packets) {
            let mut bytes = large(payload, size);
            for (at, value) in edits {
                bytes.get_mut(at).into_iter().for_each(|byte| *byte = value);
            }
            // No more pieces than the queue has entries.
            let piece = piece.max(bytes.len().div_ceil(usize::from(SIZE)));
            rig.offer_pieces(slot, BYTES + 0x1_2000 * u64::from(slot), &bytes, piece);
        }
        rig.kick(1);
        let stats = rig.platform.net_stats();
        prop_assert_eq!((rig.used_index(1), rig.platform.malformed_queues()), (count, 0));
        prop_assert_eq!(stats.sent, rig.out.frames.len() as u64);
        prop_assert!(rig.out.frames.len() <= BURST && stats.bad_sent <= u64::from(count));
        prop_assert!(rig.out.frames.iter().all(|frame| (14..=MAX_FRAME).contains(&frame.len())));
    }
}
