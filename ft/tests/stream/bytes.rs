//! Bytes on the wire: cut into any pieces, damaged anywhere, arbitrary, and how many there are.

use super::*;
use pollux_ft::Kind;

/// A guest that computes: a horizon every 5 ms, a clock and a digest now and then.
#[test]
fn a_computing_guest_costs_little_on_the_wire() {
    let (mut primary, mut backup) = protected(Time(0));
    let (mut bytes, mut segments) = (0, 0);
    for ms in 1..=10_000u64 {
        let now = Time(ms * 1000);
        let position = Position(1000 + ms * 70_000);
        primary.progress(position);
        if ms % 100 == 0 {
            primary.append(now, position, EntryRef::Clock { base_ns: 1 << 42, rate: 1 << 32 }).unwrap();
        }
        if ms % 500 == 0 {
            primary.append(now, position, EntryRef::Digest { machine: ms, slice: 9, memory: ms }).unwrap();
        }
        if ms % 5 == 0 {
            primary.append(now, position, EntryRef::Horizon).unwrap();
        }
        primary.tick(now);
        backup.tick(now);
        let there = pump(now, &mut primary, &mut backup);
        drain(now, &mut backup);
        backup.progress(backup.run_limit().unwrap());
        let back = pump(now, &mut backup, &mut primary);
        bytes += there + back;
        segments += u64::from(there > 0) + u64::from(back > 0);
        for node in [&mut primary, &mut backup] {
            let beat = node.poll_datagram(now);
            assert!(beat.is_none_or(|beat| beat.len() < 160));
        }
    }
    assert_eq!((primary.role(), backup.role()), (Role::Protected, Role::Backup));
    // Each segment with Ethernet, IP and TCP headers, and a pure ack of the minimum frame size for it.
    let per_second = (bytes as u64 + segments * (54 + 60)) / 10 * 8;
    assert!(per_second <= 60_000, "{per_second} bit/s in {segments} segments of {bytes} bytes");
    assert!(primary.stats().of(Kind::Horizon).entries <= 250);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_pieces_give_the_same_records(pieces in proptest::collection::vec(1usize..50, 1..40)) {
        let now = Time(1000);
        let (mut primary, mut whole) = protected(now);
        let (_, mut cut) = protected(now);
        let bytes = sample_log(now, &mut primary);
        prop_assert_eq!(whole.receive(now, &bytes), bytes.len());
        let mut rest = &bytes[..];
        for piece in pieces.iter().cycle() {
            let (head, tail) = rest.split_at((*piece).min(rest.len()));
            prop_assert_eq!(cut.receive(now, head), head.len());
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(cut.run_limit(), whole.run_limit());
        prop_assert_eq!(drain(now, &mut cut), drain(now, &mut whole));
    }

    #[test]
    fn a_flipped_bit_never_becomes_a_record(at: prop::sample::Index, bit in 0u8..8) {
        let now = Time(1000);
        let (mut primary, mut backup) = protected(now);
        let mut bytes = sample_log(now, &mut primary);
        let (_, mut good) = protected(now);
        good.receive(now, &bytes);
        let want = drain(now, &mut good);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        backup.receive(now, &bytes);
        let got = drain(now, &mut backup);
        // What came before the damage is good; from there on nothing is taken.
        prop_assert!(want.starts_with(&got));
        prop_assert!(backup.newest() < good.newest());
        prop_assert_eq!(backup.role(), Role::Backup);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        datagram in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let now = Time(1000);
        let (mut primary, mut backup) = protected(now);
        let mut joining = node(Start::Backup, identity(3));
        joining.connected(now, joining.handshake(&MEETING));
        for node in [&mut primary, &mut backup, &mut joining] {
            let _ = node.receive(now, &bytes);
            node.heartbeat_received(now, &datagram);
            node.tick(now);
            prop_assert_eq!(node.stats().heartbeats_malformed, 1);
        }
        prop_assert_eq!(backup.next_record(), None);
        prop_assert_eq!(backup.run_limit(), Some(Position(1000)));
        prop_assert_ne!(primary.role(), Role::Alone);
    }
}
