//! Checksums and cut segments, against sums and a reader of packets that know nothing of how they are made.

use alloc::vec::Vec;

use proptest::prelude::*;
use proptest::sample::Index;

use super::MAX_FRAME;
use super::offload::{FEATURES, HEADER, Large, MAX_LARGE, Work, complete_checksum};

/// A TCP segment behind its headers, and where these begin.
#[derive(Debug, Clone)]
struct Packet {
    bytes: Vec<u8>,
    ipv6: bool,
    ip: usize,
    tcp: usize,
    payload: usize,
}

fn noise(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

/// With `tags` tags, and `words` words of TCP options; `options` are those of IPv4 in words, or the lengths of IPv6's
/// extension headers in units.
fn packet(ipv6: bool, tags: usize, options: &[u8], words: usize, payload: usize, seed: u32) -> Packet {
    let mut bytes = noise(12, seed);
    (0..tags).for_each(|tag| bytes.extend([[0x81, 0x88][tag % 2], [0, 0xA8][tag % 2], 0x20, 5]));
    bytes.extend(if ipv6 { [0x86, 0xDD] } else { [0x08, 0x00] });
    let ip = bytes.len();
    if ipv6 {
        bytes.extend(noise(40, seed ^ 1));
        bytes[ip] = 0x60;
        let mut next = ip + 6;
        for (&units, kind) in options.iter().zip([0, 60].into_iter().cycle()) {
            bytes[next] = kind;
            next = bytes.len();
            bytes.extend([0, units]);
            bytes.extend(noise(6 + 8 * usize::from(units), seed ^ 2));
        }
        bytes[next] = 6;
    } else {
        let len = 20 + 4 * options.len();
        bytes.extend(noise(len, seed ^ 1));
        bytes[ip] = 0x40 | (len / 4) as u8;
        // "Don't fragment" at most.
        (bytes[ip + 6], bytes[ip + 7]) = (bytes[ip + 6] & 0x40, 0);
        bytes[ip + 9] = 6;
    }
    let tcp = bytes.len();
    bytes.extend(noise(20 + 4 * words, seed ^ 3));
    bytes[tcp + 12] = ((5 + words) << 4) as u8;
    let payload_at = bytes.len();
    bytes.extend(noise(payload, seed ^ 4));
    Packet { bytes, ipv6, ip, tcp, payload: payload_at }
}

fn any_packet() -> impl Strategy<Value = Packet> {
    let payload = prop_oneof![0usize..200, 0usize..5000, 60_000usize..65_000];
    (any::<bool>(), 0usize..3, prop::collection::vec(0u8..3, 0..4), 0usize..=10, payload, any::<u32>())
        .prop_map(|(ipv6, tags, options, words, payload, seed)| packet(ipv6, tags, &options, words, payload, seed))
}

/// The sum of words as the RFC has it. See: RFC 1071, section 1.
fn plain_sum<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u16 {
    let mut total = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            total += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
            total = (total & 0xFFFF) + (total >> 16);
        }
    }
    total as u16
}

fn cut_of(packet: &Packet, size: usize) -> Work {
    Work::Cut { ipv6: packet.ipv6, start: packet.tcp, offset: 16, size }
}

fn parse(packet: &Packet, work: Work) -> Option<Large> {
    Large::parse(&packet.bytes[..packet.bytes.len().min(MAX_FRAME)], packet.bytes.len(), work)
}

/// The frame `index`, made from the headers in `scratch`.
fn frame(large: &Large, packet: &Packet, index: usize, scratch: &mut [u8; MAX_FRAME]) -> Vec<u8> {
    let (start, len) = large.part(index);
    let frame = &mut scratch[..large.headers() + len];
    frame[large.headers()..].copy_from_slice(&packet.bytes[start..start + len]);
    large.finish(index, frame);
    frame.to_vec()
}

/// Checks one frame of a cut packet, whose payload begins at `skip` in the packet's. Returns the payload.
fn check_frame<'a>(packet: &Packet, frame: &'a [u8], index: usize, skip: usize, is_last: bool) -> &'a [u8] {
    let Packet { ref bytes, ip, tcp, payload, ipv6 } = *packet;
    let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let mut expected = bytes[..payload].to_vec();
    if ipv6 {
        assert_eq!(usize::from(word(frame, ip + 4)), frame.len() - ip - 40);
        expected[ip + 4..ip + 6].copy_from_slice(&frame[ip + 4..ip + 6]);
    } else {
        assert_eq!(usize::from(word(frame, ip + 2)), frame.len() - ip);
        assert_eq!(word(frame, ip + 4), word(bytes, ip + 4).wrapping_add(index as u16));
        assert_eq!(plain_sum([&frame[ip..tcp]]), 0xFFFF);
        expected[ip + 2..ip + 6].copy_from_slice(&frame[ip + 2..ip + 6]);
        expected[ip + 10..ip + 12].copy_from_slice(&frame[ip + 10..ip + 12]);
    }
    let sequence = |bytes: &[u8]| u32::from_be_bytes(bytes[tcp + 4..tcp + 8].try_into().unwrap());
    assert_eq!(sequence(frame), sequence(bytes).wrapping_add(skip as u32));
    expected[tcp + 4..tcp + 8].copy_from_slice(&frame[tcp + 4..tcp + 8]);
    // FIN and PSH at the end, CWR at the beginning.
    expected[tcp + 13] &= if is_last { 0xFF } else { !0x09 } & if index == 0 { 0xFF } else { !0x80 };
    expected[tcp + 16..tcp + 18].copy_from_slice(&frame[tcp + 16..tcp + 18]);
    assert_eq!(frame[..payload], expected);
    let addresses = if ipv6 { ip + 8..ip + 40 } else { ip + 12..ip + 20 };
    let pseudo = [&[0, 6][..], &((frame.len() - tcp) as u16).to_be_bytes()].concat();
    assert_eq!(plain_sum([&frame[addresses], &pseudo, &frame[tcp..]]), 0xFFFF);
    &frame[payload..]
}

proptest! {
    #[test]
    fn segments_are_cut_into_frames_that_say_the_same(packet in any_packet(), size in 1usize..1600) {
        let total = packet.bytes.len() - packet.payload;
        let fits = packet.payload + total.min(size) <= MAX_FRAME && packet.payload <= MAX_FRAME;
        let large = parse(&packet, cut_of(&packet, size));
        prop_assert_eq!(large.is_some(), fits);
        let Some(large) = large else { return Ok(()) };
        let mut scratch = [0; MAX_FRAME];
        scratch[..packet.payload].copy_from_slice(&packet.bytes[..packet.payload]);
        let mut payload: Vec<u8> = Vec::new();
        let count = large.frames();
        for index in 0..count {
            let frame = frame(&large, &packet, index, &mut scratch);
            payload.extend(check_frame(&packet, &frame, index, payload.len(), index + 1 == count));
        }
        prop_assert!(payload == packet.bytes[packet.payload..]);
        prop_assert!(count == total.div_ceil(size).max(1));
    }

    /// Whatever the headers say: refused, or frames of a length that is allowed, from bytes that are there.
    #[test]
    fn hostile_segments_stay_within_their_bytes(
        packet in any_packet(),
        flips in prop::collection::vec((any::<Index>(), any::<u8>()), 0..6),
        keep in prop::option::of(any::<Index>()),
        ipv6 in any::<bool>(),
        start in prop_oneof![3 => Just(None), 1 => (0usize..0x1_0000).prop_map(Some)],
        offset in prop_oneof![7 => Just(16), 1 => 0usize..0x1_0000],
        size in prop_oneof![0usize..3, 0usize..1500, 0usize..0x1_0000],
    ) {
        let mut packet = packet;
        packet.bytes.truncate(keep.map_or(usize::MAX, |keep| 14 + keep.index(packet.bytes.len() - 13)));
        let headers = packet.payload.min(packet.bytes.len());
        for (index, value) in flips {
            *index.get_mut(&mut packet.bytes[..headers]) = value;
        }
        let work = Work::Cut { ipv6, start: start.unwrap_or(packet.tcp), offset, size };
        let Some(large) = parse(&packet, work) else { return Ok(()) };
        prop_assert!(size > 0 && offset == 16 && large.frames() <= packet.bytes.len());
        let mut scratch = [0; MAX_FRAME];
        let head = packet.bytes.len().min(MAX_FRAME);
        scratch[..head].copy_from_slice(&packet.bytes[..head]);
        for index in [0, 1, large.frames() / 2, large.frames() - 1] {
            if index < large.frames() {
                prop_assert!(frame(&large, &packet, index, &mut scratch).len() >= 54);
            }
        }
    }

    /// The sum over the pseudo-header, which lies where the checksum comes, is counted; nothing else changes.
    #[test]
    fn checksums_are_completed_in_place(
        len in 14usize..=MAX_FRAME, seed in any::<u32>(), zeros in any::<bool>(),
        start in 0usize..1600, offset in prop_oneof![Just(6usize), Just(16), 0usize..1600, 0usize..0x1_0000],
    ) {
        let before = if zeros { alloc::vec![0; len] } else { noise(len, seed) };
        let mut after = before.clone();
        let at = start + offset;
        let done = complete_checksum(&mut after, start, offset);
        prop_assert_eq!(done.is_some(), at + 2 <= len);
        if done.is_none() {
            prop_assert_eq!(before, after);
            return Ok(());
        }
        if offset.is_multiple_of(2) {
            prop_assert_eq!(plain_sum([&before[at..at + 2], &after[start..]]), 0xFFFF);
            prop_assert_ne!(&after[at..at + 2], &[0, 0]);
        }
        after[at..at + 2].copy_from_slice(&before[at..at + 2]);
        prop_assert_eq!(before, after);
    }
}

/// Fragments, another protocol, headers that end elsewhere, routing headers: nothing that could be cut.
#[test]
fn what_is_no_whole_tcp_segment_is_refused() {
    let v4 = packet(false, 1, &[], 3, 4000, 1);
    let v6 = packet(true, 0, &[0, 1], 0, 4000, 2);
    for whole in [&v4, &v6] {
        assert!(parse(whole, cut_of(whole, 1400)).is_some());
        assert!(parse(whole, Work::Cut { ipv6: !whole.ipv6, start: whole.tcp, offset: 16, size: 1400 }).is_none());
        assert!(parse(whole, Work::Checksum { start: whole.tcp, offset: 16 }).is_none());
        for (size, tcp, offset) in [(0, 0, 16), (1500, 0, 16), (1400, 2, 16), (1400, 0, 6)] {
            let work = Work::Cut { ipv6: whole.ipv6, start: whole.tcp + tcp, offset, size };
            assert!(parse(whole, work).is_none(), "{work:?}");
        }
    }
    let break_it: [(&Packet, usize, u8); 9] = [
        (&v4, v4.ip, 0x65),
        (&v4, v4.ip, 0x44),
        (&v4, v4.ip, 0x46),
        (&v4, v4.ip + 6, 0x20),
        (&v4, v4.ip + 7, 1),
        (&v4, v4.ip + 9, 17),
        (&v4, v4.tcp + 12, 0x40),
        (&v6, v6.ip, 0x45),
        (&v6, v6.ip + 6, 43),
    ];
    for (whole, at, value) in break_it {
        let mut broken = whole.clone();
        broken.bytes[at] = value;
        assert!(parse(&broken, cut_of(&broken, 1400)).is_none(), "{value:#x} at {at}");
    }
}

#[test]
fn nothing_is_done_that_was_not_agreed_on() {
    let header = |flags: u8, kind: u8| {
        let mut header = [0x11; HEADER];
        (header[0], header[1]) = (flags, kind);
        header
    };
    for bits in 0..16u64 {
        // Checksums, TCP over IPv4, over IPv6, ECN.
        let features = (0..4).filter(|bit| bits >> bit & 1 != 0).map(|bit| [1, 1 << 11, 1 << 12, 1 << 13][bit]).sum();
        for flags in 0..=255 {
            for kind in 0..=255 {
                let allowed = match (kind & 0x7F, kind & 0x80 != 0) {
                    (0, ecn) => !ecn && (flags & 1 == 0 || bits & 1 != 0),
                    (1, ecn) => flags & 1 != 0 && bits & 3 == 3 && (!ecn || bits & 8 != 0),
                    (4, ecn) => flags & 1 != 0 && bits & 5 == 5 && (!ecn || bits & 8 != 0),
                    _ => false,
                };
                let work = Work::asked(&header(flags, kind), features);
                assert_eq!(work.is_some(), allowed, "flags {flags:#x}, kind {kind:#x}, features {features:#x}");
            }
        }
    }
    let asked = |flags, kind| Work::asked(&header(flags, kind), FEATURES);
    assert_eq!(asked(6, 0), Some(Work::Nothing), "flags of another meaning");
    assert_eq!(asked(1, 0), Some(Work::Checksum { start: 0x1111, offset: 0x1111 }));
    assert_eq!(asked(1, 0x84), Some(Work::Cut { ipv6: true, start: 0x1111, offset: 0x1111, size: 0x1111 }));
    const { assert!(MAX_LARGE < 1 << 17) };
}
