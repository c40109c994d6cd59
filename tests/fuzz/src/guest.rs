//! What the guest does to its devices, and what the twin says that the guest's state is.

use std::cell::RefCell;

use arbitrary::{Arbitrary, Unstructured};
use pollux_driver::{DiskEnd, DiskStatus};
use pollux_hypervisor::cpu::registers::CpuState;
use pollux_hypervisor::extended::Layout;
use pollux_hypervisor::memory::{Gpa, GuestMemory};
use pollux_hypervisor::platform::clock::{GuestTime, RATE_ONE};
use pollux_hypervisor::platform::virtio::block::{self, Storage};
use pollux_hypervisor::platform::{Outputs, Platform, PlatformConfig, PowerEvent, Size};
use pollux_hypervisor::state::{self, State};

const MEMORY: u64 = 4 << 20;
/// Where the network device's registers are, and where the rings of its queues are put.
const BAR: u64 = 0xFE00_0000;
const RINGS: u64 = 0x10_0000;
const QUEUE_SIZE: u64 = 8;
/// The same of the disk, whose queue comes behind the two of the network device.
const DISK_BAR: u64 = BAR + 0x8000;
const DISK_QUEUE: u64 = 2;
/// Size of the disk: a page and a sector.
const DISK: u64 = 4096 + 512;

/// Lends zeroed guest memory.
pub(crate) fn with_memory(test: impl FnOnce(&mut GuestMemory)) {
    thread_local! {
        static MEMORY_OF_THREAD: RefCell<GuestMemory> = RefCell::new(GuestMemory::with_disk(vec![0; (MEMORY + Storage::room(DISK)) as usize].leak(), MEMORY));
    }
    MEMORY_OF_THREAD.with_borrow_mut(|memory| {
        memory.track();
        test(memory);
        // Only what was written: all of it takes longer than most tests.
        let dirty = memory.take_dirty().expect("it was tracked");
        let mut from = 0;
        while let Some(page) = dirty.first_from(from) {
            memory.clear_page(page);
            from = page + 1;
        }
    });
}

/// Checks what the platform promises of its outputs.
struct Sink;

impl Outputs for Sink {
    fn frame(&mut self, frame: &[u8]) {
        assert!((14..=1518).contains(&frame.len()), "a frame of {} bytes", frame.len());
    }
    fn console(&mut self, _: &[u8]) {}
    fn power(&mut self, _: PowerEvent) {}
}

/// What happens to the devices: mostly what a guest does.
#[derive(Debug, Arbitrary)]
enum Step<'a> {
    In(u16, u8),
    Out(u16, u8, u32),
    Read(Place, u8),
    Write(Place, u8, u64),
    Config(u8, u8, u8, u32),
    Rdmsr(Msr),
    Wrmsr(Msr, u64),
    /// Memory in and around the rings.
    Memory(u16, &'a [u8]),
    /// A request to the disk: header, data and status.
    Ask {
        kind: u8,
        sector: u16,
        len: u16,
        write: bool,
    },
    /// A chain of one descriptor is made available.
    Offer {
        queue: Ring,
        gpa: u32,
        len: u16,
        flags: u8,
    },
    Kick(Ring),
    Packet(&'a [u8]),
    Console(&'a [u8]),
    /// Microseconds.
    Time(u32),
    Interrupt,
    Reset,
    /// The devices are saved and loaded again.
    Move,
}

/// A queue of a device.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Ring {
    Receive,
    Transmit,
    Disk,
}

/// Addresses where something is.
#[derive(Debug, Arbitrary)]
enum Place {
    Lapic(u16),
    Ioapic(u8),
    /// Network device and disk.
    Devices(u16),
    Any(u64),
}

impl Place {
    fn gpa(&self) -> Gpa {
        Gpa(match *self {
            Self::Lapic(at) => 0xFEE0_0000 + u64::from(at & 0xFFF),
            Self::Ioapic(at) => 0xFEC0_0000 + u64::from(at),
            Self::Devices(at) => BAR + u64::from(at),
            Self::Any(gpa) => gpa,
        })
    }
}

#[derive(Debug, Arbitrary)]
enum Msr {
    X2apic(u8),
    Low(u16),
    Any(u32),
}

impl Msr {
    fn number(&self) -> u32 {
        match *self {
            Self::X2apic(at) => 0x800 + u32::from(at),
            Self::Low(at) => u32::from(at),
            Self::Any(number) => number,
        }
    }
}

fn size(code: u8) -> Size {
    [Size::Byte, Size::Word, Size::Dword, Size::Qword][usize::from(code % 4)]
}

fn port_size(code: u8) -> Size {
    [Size::Byte, Size::Word, Size::Dword][usize::from(code % 3)]
}

fn platform(disk_takes_time: bool) -> Platform {
    let config = PlatformConfig {
        memory_bytes: MEMORY,
        disk_bytes: DISK,
        disk_place: if disk_takes_time { block::Place::TimedMemory } else { block::Place::Memory },
        mac: [2, 0, 0, 0, 0, 1],
        start_unix_seconds: 1_700_000_000,
        host_cpuid: &|_, _| [0; 4],
        rdtscp: false,
        extended: Layout::LEGACY,
        entropy: [0; 32],
        rate: RATE_ONE,
    };
    Platform::new(&config).expect("the configuration is sane")
}

struct Guest<'a> {
    platform: Platform,
    memory: &'a mut GuestMemory,
    now: GuestTime,
    /// Whether the disk takes its time, and its requests that the machine knows of.
    takes_time: bool,
    at_work: Vec<u64>,
}

impl<'a> Guest<'a> {
    fn new(platform: Platform, memory: &'a mut GuestMemory, takes_time: bool) -> Self {
        Self { platform, memory, now: GuestTime(0), takes_time, at_work: Vec::new() }
    }
}

impl Guest<'_> {
    /// Some of the requests to the disk end, oldest first; some fail.
    fn end_requests(&mut self, choice: usize) {
        while let Some(request) = self.platform.next_disk_request() {
            assert!(request.start + request.len <= DISK, "a request beyond the disk");
            self.at_work.push(request.id);
        }
        let count = choice % (self.at_work.len() + 1);
        let status = |id: u64| if id.is_multiple_of(5) { DiskStatus::Failed } else { DiskStatus::Done };
        let ends: Vec<_> = self.at_work.drain(..count).map(|id| DiskEnd { id, status: status(id) }).collect();
        assert_eq!(self.platform.disk_done(self.now, self.memory, &ends), Ok(()));
        if let Some(end) = ends.first() {
            assert_eq!(self.platform.disk_done(self.now, self.memory, &[*end]), Err(end.id), "it has ended");
        }
    }

    fn write(&mut self, gpa: u64, size: Size, value: u64) {
        self.platform.mmio_write(self.now, Gpa(gpa), size, value, self.memory, &mut Sink);
    }

    fn out(&mut self, port: u16, size: Size, value: u32) {
        self.platform.io_write(self.now, port, size, value, self.memory, &mut Sink);
    }

    /// Brings both devices up as drivers do, with those of these features that they have.
    fn start_devices(&mut self, features: u64) {
        self.write(0xFEE0_00F0, Size::Dword, 0x1FF);
        self.start_device(1, BAR, 0..2, features);
        self.start_device(2, DISK_BAR, DISK_QUEUE..DISK_QUEUE + 1, features);
    }

    fn start_device(&mut self, slot: u32, bar: u64, rings: std::ops::Range<u64>, features: u64) {
        for (at, value) in [(0x04, 6), (0x98, 1 << 31)] {
            self.out(0xCF8, Size::Dword, 1 << 31 | slot << 11 | at);
            self.out(0xCFC, Size::Dword, value);
        }
        for vector in 0..3 {
            for (at, value) in [(0, 0xFEE0_0000), (4, 0), (8, 0x50 + vector), (12, 0)] {
                self.write(bar + 0x4000 + 16 * vector + at, Size::Dword, value);
            }
        }
        self.write(bar + 0x14, Size::Byte, 3);
        for (select, bits) in [(0, features & 0xFFFF_FFFF), (1, features >> 32)] {
            self.write(bar, Size::Dword, select);
            let offered = self.platform.mmio_read(self.now, Gpa(bar + 4), Size::Dword);
            self.write(bar + 8, Size::Dword, select);
            self.write(bar + 12, Size::Dword, bits & offered);
        }
        self.write(bar + 0x14, Size::Byte, 0xB);
        for (queue, place) in (0..).zip(rings) {
            let rings = RINGS + place * 0x1_0000;
            for (at, size, value) in
                [(0x16, Size::Word, queue), (0x18, Size::Word, QUEUE_SIZE), (0x1A, Size::Word, queue + 1)]
            {
                self.write(bar + at, size, value);
            }
            for (at, part) in [(0x20, 0), (0x28, 0x1000), (0x30, 0x2000)] {
                self.write(bar + at, Size::Qword, rings + part);
            }
            self.write(bar + 0x1C, Size::Word, 1);
        }
        self.write(bar + 0x14, Size::Byte, 0xF);
    }

    /// Three descriptors in the next slots, and their chain made available.
    fn ask(&mut self, kind: u8, sector: u16, len: u16, write: bool) {
        let (header, data, status) = (0x20_0000, 0x21_0000, 0x20_0800);
        let head = [u64::from(kind), u64::from(sector)].map(u64::to_le_bytes);
        self.memory.write(Gpa(header), head.as_flattened()).expect("it is in memory");
        let rings = RINGS + DISK_QUEUE * 0x1_0000;
        let parts = [(header, 16, 1u16), (data, u32::from(len), if write { 3 } else { 1 }), (status, 1, 2)];
        for (slot, (gpa, len, flags)) in (1u16..).zip(parts) {
            let descriptor =
                [&u64::to_le_bytes(gpa)[..], &len.to_le_bytes(), &flags.to_le_bytes(), &(slot + 1).to_le_bytes()]
                    .concat();
            self.memory.write(Gpa(rings + 16 * u64::from(slot)), &descriptor).expect("rings are in memory");
        }
        self.make_available(rings, 1);
    }

    /// A descriptor in the next slot, made available; both wrap.
    fn offer(&mut self, queue: u64, gpa: u64, len: u32, flags: u16) {
        let rings = RINGS + queue * 0x1_0000;
        let index = u16::from_le_bytes(self.memory.read(Gpa(rings + 0x1002)).expect("rings are in memory"));
        let slot = u64::from(index) % QUEUE_SIZE;
        let descriptor = [&gpa.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &[slot as u8, 0]].concat();
        self.memory.write(Gpa(rings + 16 * slot), &descriptor).expect("rings are in memory");
        self.make_available(rings, slot as u16);
    }

    fn make_available(&mut self, rings: u64, head: u16) {
        let index = u16::from_le_bytes(self.memory.read(Gpa(rings + 0x1002)).expect("rings are in memory"));
        let slot = u64::from(index) % QUEUE_SIZE;
        for (at, value) in [(rings + 0x1004 + 2 * slot, head), (rings + 0x1002, index.wrapping_add(1))] {
            self.memory.write(Gpa(at), &value.to_le_bytes()).expect("rings are in memory");
        }
    }

    fn take(&mut self, step: &Step<'_>) {
        match *step {
            Step::In(port, code) => drop(self.platform.io_read(self.now, port, port_size(code))),
            Step::Out(port, code, value) => self.out(port, port_size(code), value),
            Step::Read(ref place, code) => drop(self.platform.mmio_read(self.now, place.gpa(), size(code))),
            Step::Write(ref place, code, value) => self.write(place.gpa().0, size(code), value),
            Step::Config(slot, at, code, value) => {
                self.out(0xCF8, Size::Dword, 1 << 31 | u32::from(slot) << 11 | u32::from(at & 0xFC));
                self.out(0xCFC + u16::from(at & 3), port_size(code), value);
            }
            Step::Rdmsr(ref msr) => drop(self.platform.rdmsr(self.now, msr.number())),
            Step::Wrmsr(ref msr, value) => drop(self.platform.wrmsr(self.now, msr.number(), value, self.memory)),
            Step::Memory(at, bytes) => {
                let gpa = Gpa(RINGS + u64::from(at & 0x7FFF) * 4);
                // It may reach beyond the end of memory.
                let _ = self.memory.write(gpa, bytes);
            }
            Step::Ask { kind, sector, len, write } => self.ask(kind, sector, len, write),
            Step::Offer { queue, gpa, len, flags } => {
                self.offer(queue as u64, u64::from(gpa), u32::from(len), u16::from(flags & 7));
            }
            Step::Kick(queue) => {
                let (bar, queue) = match queue {
                    Ring::Disk => (DISK_BAR, 0),
                    of_net => (BAR, of_net as u64),
                };
                self.write(bar + 0x3000 + 4 * queue, Size::Word, queue);
            }
            Step::Packet(bytes) => {
                let frame = [bytes, &[0; 14]].concat();
                self.platform.packet_in(self.memory, &frame[..frame.len().min(1518)]);
            }
            Step::Console(bytes) => drop(self.platform.console_in(bytes)),
            Step::Time(us) => {
                self.now = self.now.after(u64::from(us) * 1000);
                self.platform.advance(self.now, self.memory);
                self.end_requests(us as usize);
                let due = self.platform.next_deadline();
                assert!(due.is_none_or(|due| due > self.now), "the platform asks for the past");
            }
            Step::Interrupt => {
                if let Some(vector) = self.platform.pending_interrupt() {
                    self.platform.interrupt_taken(vector);
                }
            }
            Step::Reset => self.platform.reset(self.now),
            Step::Move => {
                let bytes = state::save(&mut self.platform);
                let mut other = platform(self.takes_time);
                assert_eq!(state::load(&mut other, &bytes), Ok(()), "what was saved loads");
                assert_eq!(state::save(&mut other), bytes, "and is the same");
                self.platform = other;
                self.platform.ask_disk_again();
                self.at_work.clear();
            }
        }
    }

    fn go(&mut self, source: &mut Unstructured<'_>) {
        while !source.is_empty()
            && let Ok(step) = source.arbitrary()
        {
            self.take(&step);
        }
    }
}

/// A guest with devices that are up, and their rings.
pub(crate) fn devices(data: &[u8]) {
    with_memory(|memory| {
        let mut source = Unstructured::new(data);
        let features = 1 << 32 | u64::from(source.arbitrary::<u32>().unwrap_or(0));
        // No device offers this bit.
        let takes_time = features & 1 << 31 != 0;
        let mut guest = Guest::new(platform(takes_time), memory, takes_time);
        guest.start_devices(features);
        guest.go(&mut source);
    });
}

/// A change of a saved state: some bytes of this number, at this place.
#[derive(Debug, Arbitrary)]
struct Edit {
    at: u16,
    value: u64,
    len: u8,
}

/// Saved, changed or replaced, and loaded again; whether it was taken. What is taken can be saved and loaded.
fn load_changed<T: State>(part: &mut T, mut fresh: T, changes: &Changes<'_>) -> bool {
    let mut bytes = state::save(part);
    match changes {
        Changes::Edits(edits) => {
            for edit in edits {
                let start = usize::from(edit.at) % bytes.len();
                let value = &edit.value.to_le_bytes()[..1 + usize::from(edit.len % 8)];
                for (byte, new) in bytes[start..].iter_mut().zip(value) {
                    *byte = *new;
                }
            }
        }
        Changes::Other(other) => bytes = other.to_vec(),
    }
    if state::load(part, &bytes).is_err() {
        return false;
    }
    let saved = state::save(part);
    assert_eq!(state::load(&mut fresh, &saved), Ok(()), "what was saved loads");
    assert_eq!(state::save(&mut fresh), saved, "and is the same");
    true
}

#[derive(Debug, Arbitrary)]
enum Changes<'a> {
    Edits(Vec<Edit>),
    Other(&'a [u8]),
}

/// The state of CPU and devices off the wire: refused, or such that the guest runs on.
pub(crate) fn state(data: &[u8]) {
    let mut source = Unstructured::new(data);
    let Ok((steps, changes)) = source.arbitrary::<(&[u8], Changes<'_>)>() else { return };
    load_changed(&mut CpuState::default(), CpuState::default(), &changes);
    let mut loaded = platform(true);
    if load_changed(&mut loaded, platform(true), &changes) {
        loaded.ask_disk_again();
        with_memory(|memory| Guest::new(loaded, memory, true).go(&mut Unstructured::new(steps)));
    }
}
