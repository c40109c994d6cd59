//! virtio-blk through PCI, as a driver sees it.

use super::driver::*;
use super::*;
use pollux_driver::{DiskEnd, DiskOperation, DiskStatus};

use crate::platform::virtio::block::{DiskStats, MAX_DATA, MAX_ZEROED, Place, WORK};

const ALL: u64 = VERSION_1 | EVENT_IDX | INDIRECT | 1 << 1 | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 13 | 1 << 14;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Where header, data and status of a request are put.
const HEADER_AT: u64 = 0x20_0000;
const STATUS_AT: u64 = 0x20_0800;
const DATA_AT: u64 = 0x20_1000;

impl Rig {
    /// Puts a request of three descriptors, or two when there is no data, at slot `head`. Its data is in guest memory.
    fn put_request(&mut self, head: u16, kind: u32, sector: u64, sent: u32, room: u32) {
        let table = ring(DISK_QUEUE)[0];
        let at = HEADER_AT + 16 * u64::from(head);
        self.memory.write(Gpa(at), &u64::from(kind).to_le_bytes()).unwrap();
        self.memory.write(Gpa(at + 8), &sector.to_le_bytes()).unwrap();
        let (len, flags) = if room > 0 { (room, WRITE) } else { (sent, 0) };
        let data = if len > 0 { head + 1 } else { head + 2 };
        self.descriptor(table, head, at, 16, NEXT, data);
        self.descriptor(table, head + 1, DATA_AT, len, NEXT | flags, head + 2);
        self.descriptor(table, head + 2, STATUS_AT + u64::from(head), 1, WRITE, 0);
        self.memory.write(Gpa(STATUS_AT + u64::from(head)), &[0xEE]).unwrap();
        self.offer(DISK_QUEUE, head);
    }

    fn status_of(&self, head: u16) -> u8 {
        self.memory.read::<1>(Gpa(STATUS_AT + u64::from(head))).unwrap()[0]
    }

    /// One request with `sent` as its data, or room for `room` bytes. Its status, if it was answered, and what came.
    pub(super) fn request(&mut self, kind: u32, sector: u64, sent: &[u8], room: u32) -> (Option<u8>, Vec<u8>) {
        let before = self.used_index(DISK_QUEUE);
        self.memory.write(Gpa(DATA_AT), sent).unwrap();
        self.put_request(0, kind, sector, sent.len() as u32, room);
        self.kick(DISK_QUEUE);
        let answered = self.used_index(DISK_QUEUE) == before.wrapping_add(1);
        let data = self.memory.slice(Gpa(DATA_AT), u64::from(room)).unwrap().to_vec();
        (answered.then(|| self.status_of(0)), data)
    }

    fn stats(&self) -> DiskStats {
        self.platform.disk().unwrap().1
    }
}

fn rig(bytes: u64) -> Rig {
    let mut rig = Rig::with_disk(bytes);
    rig.start_disk(ALL);
    rig
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn the_disk_says_what_it_is() {
    let mut rig = Rig::with_disk(DISK);
    assert_eq!(rig.config_read(2, 0, Size::Dword), 0x1042_1AF4);
    assert_eq!(rig.config_read(2, 8, Size::Dword), 0x0180_0001);
    assert_eq!(u64::from(rig.config_read(2, 0x10, Size::Dword)), DISK_BAR);
    let mut config = |at| rig.read(DISK_BAR + 0x2000 + at, Size::Dword);
    assert_eq!((config(0), config(4)), (DISK / 512, 0));
    assert!(config(8) * config(12) <= MAX_DATA, "who keeps to the limits is never refused");
    assert_eq!((config(20), config(36), config(48)), (512, MAX_ZEROED / 512, MAX_ZEROED / 512));
    assert_eq!((config(40), config(52), config(56)), (1, 1, 1));
    assert_eq!(config(60), 0);
    rig.start_disk(ALL);
    let mut none = Rig::new();
    assert_eq!(none.config_read(2, 0, Size::Dword), u32::MAX);
    assert_eq!(none.read(DISK_BAR, Size::Dword), 0xFFFF_FFFF);
}

#[test]
fn what_is_written_is_read_again_and_interrupts() {
    let mut rig = rig(DISK);
    let last = DISK / 512 - 2;
    let data = frame(1024, 3);
    assert_eq!(rig.request(OUT, last, &data, 0), (Some(0), vec![]));
    assert_eq!((rig.interrupt(), rig.used(DISK_QUEUE, 0)), (Some(0x61), (0, 1)));
    assert_eq!(rig.memory.disk(DISK - 1024, 1024), data);
    assert_eq!(rig.request(IN, last - 1, &[], 1536), (Some(0), [&[0; 512][..], &data].concat()));
    assert_eq!(rig.used(DISK_QUEUE, 1), (0, 1537));
    assert_eq!(rig.request(FLUSH, 0, &[], 0).0, Some(0));
    assert_eq!(rig.request(WRITE_ZEROES, 0, &segment(last, 1, 1), 0).0, Some(0));
    assert_eq!(rig.request(IN, last, &[], 1024), (Some(0), [&[0; 512][..], &data[512..]].concat()));
    assert_eq!(rig.request(DISCARD, 0, &segment(0, (DISK / 512) as u32, 0), 0).0, Some(0));
    assert!(rig.memory.disk(0, DISK).iter().all(|&byte| byte == 0));
    let stats = rig.stats();
    assert_eq!((stats.reads, stats.read_bytes, stats.writes, stats.written_bytes), (2, 2560, 1, 1024));
    assert_eq!((stats.flushes, stats.zeroed, stats.failed, stats.unsupported), (1, 2, 0, 0));
}

#[test]
fn impossible_requests_fail_and_are_counted() {
    let mut rig = rig(2 * MAX_DATA);
    let sectors = 2 * MAX_DATA / 512;
    let (failed, unsupported) = (Some(1), Some(2));
    /// Type, sector, what is sent, room for the answer, and the status that is expected.
    type Case<'a> = (u32, u64, &'a [u8], u32, Option<u8>);
    let cases: &[Case<'_>] = &[
        (IN, sectors, &[], 512, failed),
        (IN, sectors - 1, &[], 1024, failed),
        (IN, u64::MAX, &[], 512, failed),
        (IN, u64::MAX / 512, &[], 512, failed),
        (IN, 0, &[], 511, failed),
        (IN, 0, &[], MAX_DATA as u32 + 512, failed),
        (OUT, sectors, &[7; 512], 0, failed),
        (OUT, 0, &[7; 100], 0, failed),
        (DISCARD, 0, &segment(0, 1, 1), 0, unsupported),
        (DISCARD, 0, &segment(0, (MAX_ZEROED / 512) as u32 + 1, 0), 0, failed),
        (DISCARD, 0, &segment(sectors, 1, 0), 0, failed),
        (DISCARD, 0, &[0; 32], 0, failed),
        (DISCARD, 0, &[0; 15], 0, failed),
        (WRITE_ZEROES, 0, &segment(0, 1, 2), 0, unsupported),
        (WRITE_ZEROES, 0, &segment(0, u32::MAX, 0), 0, failed),
        (2, 0, &[], 512, unsupported),
        (u32::MAX, 0, &[7; 512], 0, unsupported),
    ];
    for &(kind, sector, sent, room, expected) in cases {
        let (status, _) = rig.request(kind, sector, sent, room);
        assert_eq!(status, expected, "type {kind}, sector {sector}, {} bytes sent, room for {room}", sent.len());
    }
    let stats = rig.stats();
    assert_eq!((stats.failed, stats.unsupported, rig.platform.malformed_queues()), (13, 4, 0));
    assert_eq!((stats.reads, stats.writes, stats.zeroed), (0, 0, 0));
    assert!(rig.memory.disk(0, 2 * MAX_DATA).iter().all(|&byte| byte == 0));
    // What was not written is not claimed.
    assert_eq!(rig.used(DISK_QUEUE, 15), (0, 0));
}

#[test]
fn chains_that_are_no_requests_need_a_reset() {
    type Put = fn(&mut Rig, u64);
    let broken: [Put; 4] = [
        |rig, table| rig.descriptor(table, 0, HEADER_AT, 15, NEXT, 2),
        |rig, table| {
            rig.descriptor(table, 0, HEADER_AT, 16, NEXT, 2);
            rig.descriptor(table, 2, STATUS_AT, 0, WRITE, 0);
        },
        |rig, table| rig.descriptor(table, 2, STATUS_AT, 1, 0, 0),
        |rig, table| rig.descriptor(table, 1, MEMORY - 100, 512, NEXT | WRITE, 2),
    ];
    for put in broken {
        let mut rig = rig(DISK);
        rig.put_request(0, IN, 0, 0, 512);
        put(&mut rig, ring(DISK_QUEUE)[0]);
        rig.kick(DISK_QUEUE);
        assert_eq!((rig.platform.malformed_queues(), rig.used_index(DISK_QUEUE)), (1, 0));
        assert_eq!((rig.read(DISK_BAR + 0x14, Size::Byte), rig.interrupt()), (0x4F, Some(0x60)));
        // It does nothing until it is reset.
        assert_eq!(rig.request(IN, 0, &[], 512).0, None);
        rig.memory.write(Gpa(ring(DISK_QUEUE)[0]), &[0; 0x3000]).unwrap();
        rig.start_disk(ALL);
        assert_eq!(rig.request(IN, 0, &[], 512).0, Some(0));
    }
}

#[test]
fn much_work_is_done_in_parts_on_whichever_machine() {
    let mut rig = rig(8 << 20);
    // As much as is worth doing at once, three times.
    rig.put_request(0, WRITE_ZEROES, 0, 16, 0);
    rig.memory.write(Gpa(DATA_AT), &segment(0, (MAX_ZEROED / 512) as u32, 0)).unwrap();
    rig.offer(DISK_QUEUE, 0);
    rig.offer(DISK_QUEUE, 0);
    rig.kick(DISK_QUEUE);
    const { assert!(WORK == MAX_ZEROED) };
    assert_eq!(rig.used_index(DISK_QUEUE), 1);
    for expected in [2, 3, 3] {
        let due = rig.platform.next_deadline().expect("it goes on by itself");
        assert!(due > rig.now);
        rig.move_platform();
        assert_eq!(rig.platform.next_deadline(), Some(due));
        rig.now = due;
        rig.platform.advance(due, &mut rig.memory);
        assert_eq!(rig.used_index(DISK_QUEUE), expected);
    }
    assert_eq!(rig.platform.next_deadline(), None);
    // A reset, or a driver that forbids memory accesses, ends it.
    for end in [0, 1] {
        (0..2).for_each(|_| rig.offer(DISK_QUEUE, 0));
        rig.kick(DISK_QUEUE);
        let due = rig.platform.next_deadline().expect("it goes on by itself");
        match end {
            0 => rig.config_write(2, 4, Size::Word, 2),
            _ => rig.write(DISK_BAR + 0x14, Size::Byte, 0),
        }
        rig.now = due;
        rig.platform.advance(due, &mut rig.memory);
        assert_eq!(rig.platform.next_deadline(), None);
        rig.config_write(2, 4, Size::Word, 6);
    }
}

#[test]
fn a_reset_of_the_guest_leaves_the_disk() {
    let mut rig = rig(DISK);
    rig.request(OUT, 0, &frame(512, 1), 0);
    let written = state::hash(&mut rig.platform);
    rig.memory.clear(0..rig.memory.len());
    rig.platform.reset(rig.now);
    rig.start_disk(ALL);
    assert_eq!(rig.request(IN, 0, &[], 512), (Some(0), frame(512, 1)));
    // What was written is known by more than what is there.
    let mut other = super::block::rig(DISK);
    other.memory.disk_mut(0, 512).copy_from_slice(&frame(512, 1));
    other.request(IN, 0, &[], 512);
    assert_ne!(state::hash(&mut other.platform), written);
}

#[test]
fn a_disk_that_takes_its_time_answers_when_it_is_said_so() {
    let mut rig = Rig::with_disk_in(DISK, Place::TimedMemory);
    rig.start_disk(ALL);
    let data = frame(512, 3);
    assert_eq!(rig.request(OUT, 1, &data, 0).0, None);
    let asked = rig.platform.next_disk_request().unwrap();
    assert_eq!((asked.operation, asked.start, asked.len), (DiskOperation::Write, 512, 512));
    assert!(!rig.platform.has_disk_request() && rig.platform.next_disk_request().is_none());
    // Until then neither what the guest does to its memory nor what is on the disk counts.
    rig.memory.write(Gpa(DATA_AT), &[0; 512]).unwrap();
    assert_eq!((rig.interrupt(), rig.memory.disk(512, 1)), (None, &[0][..]));
    let end = |id| [DiskEnd { id, status: DiskStatus::Done }];
    // The driver says of each request what it has read: this one nothing.
    rig.platform.disk_read_came(asked.id, &[]);
    assert_eq!(rig.platform.disk_done(rig.now, &mut rig.memory, &end(asked.id + 1)), Err(asked.id + 1));
    assert_eq!(rig.platform.disk_done(rig.now, &mut rig.memory, &end(asked.id)), Ok(()));
    assert_eq!((rig.interrupt(), rig.status_of(0)), (Some(0x61), 0));
    assert_eq!(rig.memory.disk(512, 512), data);
    assert_eq!(rig.platform.disk_done(rig.now, &mut rig.memory, &end(asked.id)), Err(asked.id));
    // A guest that forbids memory accesses meanwhile hears nothing, but what it asked for is done.
    assert_eq!(rig.request(WRITE_ZEROES, 0, &segment(1, 1, 0), 0).0, None);
    rig.config_write(2, 4, Size::Word, 2);
    let id = rig.platform.next_disk_request().unwrap().id;
    assert_eq!(rig.platform.disk_done(rig.now, &mut rig.memory, &end(id)), Ok(()));
    assert_eq!((rig.status_of(0), rig.memory.disk(512, 1)), (0xEE, &[0][..]));
}

/// A driver that took no flushes is told of a write when it is durable. See: VIRTIO 1.2, 5.2.6.2.
#[test]
fn who_has_no_flushes_writes_through() {
    for (features, durable) in [(VERSION_1, true), (VERSION_1 | 1 << 9, false)] {
        let mut rig = Rig::with_disk_in(DISK, Place::Drive);
        rig.start_disk(features);
        for (kind, data, writes) in [(OUT, frame(512, 5), true), (WRITE_ZEROES, segment(1, 1, 0).to_vec(), true)] {
            assert_eq!(rig.request(kind, 0, &data, 0).0, None);
            let asked = rig.platform.next_disk_request().unwrap();
            assert_eq!((asked.operation.writes(), asked.durable), (writes, durable && writes));
            rig.platform
                .disk_done(rig.now, &mut rig.memory, &[DiskEnd { id: asked.id, status: DiskStatus::Done }])
                .unwrap();
        }
    }
}

/// What a drive has read reaches guest memory when the end is applied, and is no part of the state before; what it writes is
/// what the guest asked for then.
#[test]
fn a_drive_is_told_what_to_write_and_says_what_it_read() {
    let mut rig = Rig::with_disk_in(DISK, Place::Drive);
    rig.start_disk(ALL);
    let data = frame(512, 5);
    assert_eq!(rig.request(OUT, 1, &data, 0).0, None);
    let write = rig.platform.next_disk_request().unwrap();
    rig.memory.write(Gpa(DATA_AT), &[0; 512]).unwrap();
    assert_eq!(rig.platform.disk_data(write.id), data);
    let end = |id| [DiskEnd { id, status: DiskStatus::Done }];
    rig.platform.disk_done(rig.now, &mut rig.memory, &end(write.id)).unwrap();
    assert_eq!((rig.interrupt(), rig.status_of(0)), (Some(0x61), 0));
    assert_eq!(rig.memory.disk(512, 1), [0], "nothing is in memory");
    assert_eq!(rig.request(IN, 1, &[], 512).0, None);
    let read = rig.platform.next_disk_request().unwrap();
    assert!(rig.platform.disk_data(read.id).is_empty());
    let before = state::hash(&mut rig.platform);
    rig.platform.disk_read_came(read.id, &data);
    let seen: [u8; 512] = rig.memory.read(Gpa(DATA_AT)).unwrap();
    assert_eq!((state::hash(&mut rig.platform), seen), (before, [0; 512]));
    rig.platform.disk_done(rig.now, &mut rig.memory, &end(read.id)).unwrap();
    let seen: [u8; 512] = rig.memory.read(Gpa(DATA_AT)).unwrap();
    assert_eq!(seen[..], data);
}
