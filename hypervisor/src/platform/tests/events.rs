//! How often a driver and a device tell each other of buffers, with the event index.

use super::driver::*;
use super::*;

/// Where what is sent lies.
const BYTES: u64 = 0x30_0000;

/// Whether the side that published an index up to `new`, from `old` on, has to tell the other. See: VIRTIO 1.2, 2.7.10.
fn crosses(event: u16, old: u16, new: u16) -> bool {
    (0..new.wrapping_sub(old)).any(|index| old.wrapping_add(index) == event)
}

/// A driver that notifies as the device asks and is told as it asks loses nothing, and neither tells the other without need:
/// in the queue `queue`, whose chains have `heads`, for more rounds than an index has values.
fn check_events(rig: &mut Rig, queue: u64, heads: &[u16], vector: u8) {
    let [_, avail, used] = ring(queue);
    let (used_event, avail_event) = (avail + 4 + 2 * u64::from(SIZE), used + 4 + 8 * u64::from(SIZE));
    let mut sent = 0u16;
    for round in 0..30_000u32 {
        // The driver wants to hear of one of the next buffers, or of one long ago.
        let event = sent.wrapping_add((round % 11) as u16).wrapping_sub(3);
        rig.put_u16(used_event, event);
        let count = 1 + (round % heads.len() as u32) as u16;
        for index in 0..count {
            rig.offer(queue, heads[usize::from(sent.wrapping_add(index)) % heads.len()]);
        }
        let new = sent.wrapping_add(count);
        assert!(crosses(rig.get_u16(avail_event), sent, new), "round {round}: the device must hear of it");
        rig.kick(queue);
        assert_eq!(rig.used_index(queue), new);
        let wanted = crosses(event, sent, new).then_some(vector);
        assert_eq!(rig.interrupt(), wanted, "round {round}: {sent} to {new}, event {event}");
        // Told without cause it does nothing.
        rig.kick(queue);
        assert_eq!((rig.used_index(queue), rig.interrupt()), (new, None));
        rig.out.frames.clear();
        if round % 5000 == 0 {
            rig.move_platform();
        }
        sent = new;
    }
}

#[test]
fn sender_and_driver_tell_each_other_what_they_must() {
    let mut rig = Rig::new();
    rig.start_net(VERSION_1 | EVENT_IDX);
    rig.memory.write(Gpa(BYTES), &[0; 72]).unwrap();
    (0..SIZE).for_each(|slot| rig.descriptor(ring(1)[0], slot, BYTES, 72, 0, 0));
    check_events(&mut rig, 1, &[0, 1, 2, 3, 4, 5, 6, 7], 0x52);
}

#[test]
fn disk_and_driver_tell_each_other_what_they_must() {
    let mut rig = Rig::with_disk(DISK);
    rig.start_disk(VERSION_1 | EVENT_IDX);
    // Flushes: header and status.
    rig.memory.write(Gpa(BYTES), &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    let heads = [0, 2, 4, 6];
    for head in heads {
        rig.descriptor(ring(DISK_QUEUE)[0], head, BYTES, 16, NEXT, head + 1);
        rig.descriptor(ring(DISK_QUEUE)[0], head + 1, BYTES + 16, 1, WRITE, 0);
    }
    check_events(&mut rig, DISK_QUEUE, &heads, 0x61);
}

/// While nothing waits for buffers, no number of new ones is worth a notification; and each frame is told of as asked.
#[test]
fn receiver_and_driver_tell_each_other_what_they_must() {
    let mut rig = Rig::new();
    rig.start_net(VERSION_1 | EVENT_IDX);
    let [_, avail, used] = ring(0);
    let (used_event, avail_event) = (avail + 4 + 2 * u64::from(SIZE), used + 4 + 8 * u64::from(SIZE));
    let mut received = 0u16;
    for round in 0..20_000u32 {
        let offered = rig.get_u16(avail + 2);
        let count = SIZE - offered.wrapping_sub(received);
        (0..count).for_each(|index| rig.offer_receive(offered.wrapping_add(index) % SIZE, 100));
        let full = offered.wrapping_add(count);
        assert!(!crosses(rig.get_u16(avail_event), offered, full), "round {round}: no need to tell");
        for _ in 0..=round % u32::from(SIZE) {
            let event = received.wrapping_add((round % 3) as u16).wrapping_sub(1);
            rig.put_u16(used_event, event);
            rig.packet_in(&frame(60, round as u8));
            received = received.wrapping_add(1);
            assert_eq!(rig.used_index(0), received);
            assert_eq!(rig.interrupt().is_some(), event == received.wrapping_sub(1), "round {round}");
        }
    }
}
