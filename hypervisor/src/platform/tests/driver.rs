//! A tiny virtio driver: what a guest does, in guest memory and through the BARs.

use super::*;

pub(super) const BAR: u64 = 0xFE00_0000;
pub(super) const DISK_BAR: u64 = 0xFE00_8000;
/// The disk's queue among the rings; the network device has the first two.
pub(super) const DISK_QUEUE: u64 = 2;
pub(super) const VERSION_1: u64 = 1 << 32;
pub(super) const EVENT_IDX: u64 = 1 << 29;
pub(super) const INDIRECT: u64 = 1 << 28;
pub(super) const MERGEABLE: u64 = 1 << 15;

pub(super) const SIZE: u16 = 8;
pub(super) const WRITE: u16 = 2;
pub(super) const NEXT: u16 = 1;

/// Where queue `index` lies: descriptors, driver area, device area.
pub(super) fn ring(index: u64) -> [u64; 3] {
    let base = 0x10_0000 + index * 0x1_0000;
    [base, base + 0x1000, base + 0x2000]
}

impl Rig {
    pub(super) fn put_u16(&mut self, gpa: u64, value: u16) {
        self.memory.write(Gpa(gpa), &value.to_le_bytes()).unwrap();
    }

    pub(super) fn get_u16(&self, gpa: u64) -> u16 {
        u16::from_le_bytes(self.memory.read(Gpa(gpa)).unwrap())
    }

    fn status(&mut self, bar: u64, bits: u64) -> u64 {
        self.write(bar + 0x14, Size::Byte, bits);
        self.read(bar + 0x14, Size::Byte)
    }

    /// Brings the network device up with MSI-X vectors 0x51 (receive) and 0x52 (transmit).
    pub(super) fn start_net(&mut self, features: u64) {
        self.start_device(1, BAR, 0x50, 0..2, features);
    }

    /// Brings the disk up with MSI-X vector 0x61.
    pub(super) fn start_disk(&mut self, features: u64) {
        self.start_device(2, DISK_BAR, 0x60, DISK_QUEUE..DISK_QUEUE + 1, features);
    }

    /// Brings a device up, whose queues lie at these rings and have the vectors behind `vector`.
    fn start_device(&mut self, slot: u32, bar: u64, vector: u64, rings: core::ops::Range<u64>, features: u64) {
        self.write(crate::platform::lapic::DEFAULT_BASE + 0xF0, Size::Dword, 0x1FF);
        self.config_write(slot, 4, Size::Word, 6);
        self.config_write(slot, 0x9A, Size::Word, 1 << 15);
        for number in 0..3u64 {
            let entry = bar + 0x4000 + 16 * number;
            for (at, value) in [(0, 0xFEE0_0000), (4, 0), (8, vector + number), (12, 0)] {
                self.write(entry + at, Size::Dword, value);
            }
        }
        self.write(bar + 0x14, Size::Byte, 0);
        self.status(bar, 3);
        for (select, bits) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(bar + 8, Size::Dword, select);
            self.write(bar + 12, Size::Dword, u64::from(bits));
        }
        assert_eq!(self.status(bar, 0xB), 0xB);
        self.write(bar + 0x10, Size::Word, 0);
        for (queue, place) in (0..).zip(rings) {
            self.write(bar + 0x16, Size::Word, queue);
            self.write(bar + 0x18, Size::Word, u64::from(SIZE));
            self.write(bar + 0x1A, Size::Word, queue + 1);
            for (index, address) in ring(place).into_iter().enumerate() {
                self.write(bar + 0x20 + 8 * index as u64, Size::Qword, address);
            }
            self.write(bar + 0x1C, Size::Word, 1);
        }
        assert_eq!(self.status(bar, 0xF), 0xF);
    }

    pub(super) fn descriptor(&mut self, table: u64, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&gpa.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write(Gpa(table + 16 * u64::from(index)), &raw).unwrap();
    }

    /// Makes the chain that starts at `head` available.
    pub(super) fn offer(&mut self, queue: u64, head: u16) {
        let avail = ring(queue)[1];
        let index = self.get_u16(avail + 2);
        self.put_u16(avail + 4 + 2 * u64::from(index % SIZE), head);
        self.put_u16(avail + 2, index.wrapping_add(1));
    }

    pub(super) fn kick(&mut self, queue: u64) {
        match queue {
            DISK_QUEUE => self.write(DISK_BAR + 0x3000, Size::Word, 0),
            _ => self.write(BAR + 0x3000 + 4 * queue, Size::Word, queue),
        }
    }

    pub(super) fn used_index(&self, queue: u64) -> u16 {
        self.get_u16(ring(queue)[2] + 2)
    }

    /// Head and length of the used element `index`.
    pub(super) fn used(&self, queue: u64, index: u16) -> (u32, u32) {
        let raw = self.memory.read::<8>(Gpa(ring(queue)[2] + 4 + 8 * u64::from(index % SIZE))).unwrap();
        (u32::from_le_bytes(raw[..4].try_into().unwrap()), u32::from_le_bytes(raw[4..].try_into().unwrap()))
    }

    /// Receive buffer `slot`, of `len` bytes.
    pub(super) fn offer_receive(&mut self, slot: u16, len: u32) {
        self.descriptor(ring(0)[0], slot, buffer(slot), len, WRITE, 0);
        self.offer(0, slot);
    }

    /// The same, and tells the device if that asked to be told. See: VIRTIO 1.2, 2.7.7.2.
    pub(super) fn refill_receive(&mut self, slot: u16, len: u32) {
        let old = self.get_u16(ring(0)[1] + 2);
        self.offer_receive(slot, len);
        let (new, event) = (old.wrapping_add(1), self.get_u16(ring(0)[2] + 4 + 8 * u64::from(SIZE)));
        if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
            self.kick(0);
        }
    }

    pub(super) fn packet_in(&mut self, frame: &[u8]) {
        self.platform.packet_in(&mut self.memory, frame);
    }
}

/// Where buffer `slot` lies.
pub(super) fn buffer(slot: u16) -> u64 {
    0x20_0000 + 0x1000 * u64::from(slot)
}

/// A frame of `len` bytes that differs from others.
pub(super) fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(7).wrapping_add(seed)).collect()
}
