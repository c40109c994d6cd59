//! Virtio queues as no driver would set them up, for the guest `hostile`.
#![allow(unsafe_code)]

use alloc::boxed::Box;

use virtio_drivers::transport::{DeviceStatus, Transport};

use crate::virtio::{Doorbells, PciTransport};
use crate::{clock, cpu, println};

const SIZE: u16 = 16;
const RX: u16 = 0;
const TX: u16 = 1;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// VERSION_1, MAC and INDIRECT_DESC.
const FEATURES: u64 = 1 << 32 | 1 << 28 | 1 << 5;

/// Names and functions of the cases.
pub const CASES: [(&str, fn()); 12] = [
    ("ring-outside", ring_outside),
    ("ring-unaligned", ring_unaligned),
    ("queue-size", queue_size),
    ("descriptor-outside", descriptor_outside),
    ("descriptor-loop", descriptor_loop),
    ("descriptor-index", descriptor_index),
    ("available-jump", available_jump),
    ("indirect", indirect),
    ("wrong-direction", wrong_direction),
    ("short-frames", short_frames),
    ("long-frame", long_frame),
    ("registers", registers),
];

/// A descriptor (2.7.5).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A queue's memory; more than is needed, all of it ours.
#[repr(C, align(4096))]
struct Rings {
    descriptors: [Descriptor; SIZE as usize],
    available: [u16; 64],
    used: [u16; 256],
    data: [u8; 4096],
}

/// A queue that this module fills by hand, leaked: the device may write to it for ever.
struct Queue {
    rings: *mut Rings,
    doorbells: Doorbells,
    number: u16,
}

/// The device with features agreed, not started.
fn device() -> Option<PciTransport> {
    let Ok(mut transport) = PciTransport::find_net(None) else {
        println!("  no device");
        return None;
    };
    transport.set_status(DeviceStatus::empty());
    transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    let features = transport.read_device_features() & FEATURES;
    transport.write_driver_features(features);
    transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK);
    Some(transport)
}

fn start(transport: &mut PciTransport) {
    let features_ok = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK;
    transport.set_status(features_ok | DeviceStatus::DRIVER_OK);
}

/// Gives the device a little time, prints what it says of itself, and resets it.
fn finish(mut transport: PciTransport) {
    let end = cpu::rdtsc() + clock::microseconds_to_ticks(1000);
    while cpu::rdtsc() < end {}
    println!("  status {:?}", transport.get_status());
    transport.set_status(DeviceStatus::empty());
}

/// Address of the device's common configuration.
pub fn device_config() -> Option<u64> {
    PciTransport::find_net(None).ok().map(|transport| transport.common_config())
}

impl Queue {
    fn new(transport: &mut PciTransport, number: u16) -> Self {
        let empty = Descriptor { address: 0, len: 0, flags: 0, next: 0 };
        let rings = Box::into_raw(Box::new(Rings {
            descriptors: [empty; SIZE as usize],
            available: [0; 64],
            used: [0; 256],
            data: [0; 4096],
        }));
        // SAFETY: only addresses of fields are taken.
        let (descriptors, available, used) = unsafe {
            (
                &raw const (*rings).descriptors as u64,
                &raw const (*rings).available as u64,
                &raw const (*rings).used as u64,
            )
        };
        transport.queue_set(number, SIZE.into(), descriptors, available, used);
        Self { rings, doorbells: transport.doorbells(), number }
    }

    fn data(&self) -> u64 {
        // SAFETY: only an address is taken.
        unsafe { &raw const (*self.rings).data as u64 }
    }

    fn set(&self, index: usize, address: u64, len: u32, flags: u16, next: u16) {
        // SAFETY: the rings are never freed; the index is checked.
        unsafe { (&raw mut (*self.rings).descriptors[index]).write_volatile(Descriptor { address, len, flags, next }) };
    }

    /// Writes to the available ring: slot 0 holds `head`, and the index becomes `index`. Then rings the doorbell.
    fn offer(&self, head: u16, index: u16) {
        // SAFETY: as for `set`.
        unsafe {
            (&raw mut (*self.rings).available[2]).write_volatile(head);
            (&raw mut (*self.rings).available[1]).write_volatile(index);
        }
        self.doorbells.ring(self.number);
    }
}

/// Runs one transmit queue whose descriptors `fill` sets; `head` and `index` are offered.
fn transmit(head: u16, index: u16, fill: impl Fn(&Queue)) {
    let Some(mut transport) = device() else { return };
    let queue = Queue::new(&mut transport, TX);
    start(&mut transport);
    fill(&queue);
    queue.offer(head, index);
    finish(transport);
}

fn ring_outside() {
    for address in [0x4000_0000u64, 0xfee0_0000, 0xffff_ffff_ffff_f000, 1 << 46] {
        let Some(mut transport) = device() else { return };
        for queue in [RX, TX] {
            transport.queue_set(queue, SIZE.into(), address, address + 0x400, address + 0x800);
        }
        start(&mut transport);
        for queue in [RX, TX] {
            transport.doorbells().ring(queue);
        }
        finish(transport);
    }
}

fn ring_unaligned() {
    let Some(mut transport) = device() else { return };
    let queue = Queue::new(&mut transport, TX);
    let base = queue.data();
    transport.queue_set(TX, SIZE.into(), base + 1, base + 0x401, base + 0x803);
    start(&mut transport);
    transport.doorbells().ring(TX);
    finish(transport);
}

fn queue_size() {
    for size in [0u32, 3, 0x8000, 0xffff] {
        let Some(mut transport) = device() else { return };
        let queue = Queue::new(&mut transport, TX);
        let base = queue.data();
        transport.queue_set(TX, size, base, base + 0x400, base + 0x800);
        start(&mut transport);
        transport.doorbells().ring(TX);
        finish(transport);
    }
}

fn descriptor_outside() {
    for (address, len) in
        [(0x4000_0000, 100), (u64::MAX - 50, 100), (0x1000, u32::MAX), (0xfee0_0000, 64), (1 << 50, 64)]
    {
        transmit(0, 1, |queue| queue.set(0, address, len, 0, 0));
    }
}

fn descriptor_loop() {
    transmit(0, 1, |queue| queue.set(0, queue.data(), 100, NEXT, 0));
    transmit(0, 1, |queue| {
        for index in 0..SIZE {
            queue.set(index.into(), queue.data(), 10, NEXT, (index + 1) % SIZE);
        }
    });
}

fn descriptor_index() {
    transmit(SIZE, 1, |_| {});
    transmit(0xffff, 1, |_| {});
    transmit(0, 1, |queue| queue.set(0, queue.data(), 100, NEXT, 0xfff0));
}

fn available_jump() {
    for index in [SIZE + 1, 0x7fff, 0xffff] {
        transmit(0, index, |queue| queue.set(0, queue.data(), 100, 0, 0));
    }
}

fn indirect() {
    for (len, flags) in
        [(0, INDIRECT), (7, INDIRECT), (16, INDIRECT | NEXT), (0xffff_fff0, INDIRECT), (16, INDIRECT | WRITE)]
    {
        transmit(0, 1, |queue| {
            // The table's own descriptor is an indirect one again.
            queue.set(1, queue.data(), 16, INDIRECT, 0);
            // SAFETY: only an address is taken.
            let table = unsafe { &raw const (*queue.rings).descriptors[1] as u64 };
            queue.set(0, table, len, flags, 2);
        });
    }
}

/// Buffers to be written where the device reads, and the other way round.
fn wrong_direction() {
    transmit(0, 1, |queue| queue.set(0, queue.data(), 100, WRITE, 0));
    let Some(mut transport) = device() else { return };
    let queue = Queue::new(&mut transport, RX);
    start(&mut transport);
    queue.set(0, queue.data(), 2048, 0, 0);
    queue.offer(0, 1);
    finish(transport);
}

/// Frames that are shorter than a header, or hold nothing more. QEMU 7.2 ends itself with an assertion.
fn short_frames() {
    for len in [0, 1, 11, 12, 13, 25, 26] {
        transmit(0, 1, |queue| queue.set(0, queue.data(), len, 0, 0));
    }
}

/// A frame of 64 KiB.
fn long_frame() {
    transmit(0, 1, |queue| {
        for index in 0..SIZE {
            queue.set(index.into(), queue.data(), 4096, if index + 1 < SIZE { NEXT } else { 0 }, index + 1);
        }
    });
}

/// Register accesses out of order: queues that do not exist, doorbells before the start, features after it.
fn registers() {
    let Some(mut transport) = device() else { return };
    let queue = Queue::new(&mut transport, TX);
    queue.offer(0, 1);
    start(&mut transport);
    transport.write_driver_features(u64::MAX);
    println!("  queue 999 has size {}, used {}", transport.max_queue_size(999), transport.queue_used(999));
    transport.queue_set(999, 8, 0, 0, 0);
    transport.queue_set(TX, 8, 0, 0, 0);
    queue.doorbells.ring(TX);
    finish(transport);
}
