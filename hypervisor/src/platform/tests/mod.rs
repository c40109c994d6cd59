//! Tests of the platform through its outer interface, as a guest would use it.

mod apic;
mod block;
mod driver;
mod eoi;
mod events;
mod fuzz;
mod load;
mod net;
mod offload;
mod watch;

use super::access::testing::Recorder;
use super::virtio::block::{Place, Storage};
use super::{Gp, GuestTime, Platform, PlatformConfig, PlatformError, Size};
use crate::extended::Layout;
use crate::memory::{Gpa, GuestMemory};
use crate::state;

const MEMORY: u64 = 4 << 20;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Not a whole number of pages.
const DISK: u64 = (1 << 20) + 512;

fn config() -> PlatformConfig<'static> {
    PlatformConfig {
        memory_bytes: MEMORY,
        disk_bytes: 0,
        disk_place: Place::Memory,
        mac: MAC,
        start_unix_seconds: 1_700_000_000,
        host_cpuid: &|_, _| [0; 4],
        rdtscp: false,
        extended: Layout::LEGACY,
        entropy: [0; 32],
        rate: super::clock::RATE_ONE,
    }
}

/// A machine, its memory and what came out of it.
struct Rig {
    platform: Platform,
    memory: GuestMemory,
    out: Recorder,
    now: GuestTime,
}

impl Rig {
    fn new() -> Self {
        Self::with_disk(0)
    }

    fn with_disk(disk: u64) -> Self {
        Self::with_disk_in(disk, Place::Memory)
    }

    fn with_disk_in(disk: u64, disk_place: Place) -> Self {
        let config = PlatformConfig { disk_bytes: disk, disk_place, ..config() };
        let platform = Platform::new(&config).unwrap();
        let memory = GuestMemory::for_test_with_disk(MEMORY as usize, Storage::room(disk) as usize);
        Self { platform, memory, out: Recorder::default(), now: GuestTime(0) }
    }

    /// Another machine takes the guest over.
    fn move_platform(&mut self) {
        let bytes = state::save(&mut self.platform);
        let disk_bytes = self.platform.disk().map_or(0, |(bytes, _)| bytes);
        self.platform = Platform::new(&PlatformConfig { disk_bytes, ..config() }).unwrap();
        state::load(&mut self.platform, &bytes).unwrap();
    }

    fn read(&mut self, gpa: u64, size: Size) -> u64 {
        self.platform.mmio_read(self.now, Gpa(gpa), size)
    }

    fn write(&mut self, gpa: u64, size: Size, value: u64) {
        self.platform.mmio_write(self.now, Gpa(gpa), size, value, &mut self.memory, &mut self.out);
    }

    fn inp(&mut self, port: u16, size: Size) -> u32 {
        self.platform.io_read(self.now, port, size)
    }

    fn outp(&mut self, port: u16, size: Size, value: u32) {
        self.platform.io_write(self.now, port, size, value, &mut self.memory, &mut self.out);
    }

    fn config_read(&mut self, slot: u32, at: u32, size: Size) -> u32 {
        self.outp(0xCF8, Size::Dword, 1 << 31 | slot << 11 | at & 0xFC);
        self.inp(0xCFC + (at & 3) as u16, size)
    }

    fn config_write(&mut self, slot: u32, at: u32, size: Size, value: u32) {
        self.outp(0xCF8, Size::Dword, 1 << 31 | slot << 11 | at & 0xFC);
        self.outp(0xCFC + (at & 3) as u16, size, value);
    }

    fn wrmsr(&mut self, msr: u32, value: u64) -> Result<(), Gp> {
        self.platform.wrmsr(self.now, msr, value, &mut self.memory)
    }

    /// Takes the pending interrupt, if there is one, and ends it at once.
    fn interrupt(&mut self) -> Option<u8> {
        let vector = self.platform.pending_interrupt()?;
        self.platform.interrupt_taken(vector);
        self.write(super::lapic::DEFAULT_BASE + 0xB0, Size::Dword, 0);
        Some(vector)
    }
}

#[test]
fn impossible_memory_sizes_are_refused() {
    for bytes in [0, 4096, MEMORY + 1, 3 << 30 | 4096, u64::MAX] {
        let result = Platform::new(&PlatformConfig { memory_bytes: bytes, ..config() });
        assert_eq!(result.err(), Some(PlatformError::MemorySize(bytes)));
    }
    assert!(Platform::new(&PlatformConfig { memory_bytes: 3 << 30, ..config() }).is_ok());
    let result = Platform::new(&PlatformConfig { disk_bytes: 513, ..config() });
    assert_eq!(result.err(), Some(PlatformError::DiskSize(513)));
}

#[test]
fn nothing_there_reads_as_ones() {
    let mut rig = Rig::new();
    assert_eq!(rig.inp(0x1234, Size::Word), 0xFFFF);
    assert_eq!(rig.read(0xD000_0000, Size::Qword), u64::MAX);
    assert_eq!(rig.config_read(2, 0, Size::Dword), u32::MAX);
    assert_eq!(rig.config_read(0, 0, Size::Dword), 0x0D57_8086);
    assert_eq!(rig.config_read(1, 0, Size::Word), 0x1AF4);
}

#[test]
fn machines_that_differ_do_not_load_each_other() {
    let mut one = Platform::new(&config()).unwrap();
    let bytes = state::save(&mut one);
    let mut other = Platform::new(&PlatformConfig { memory_bytes: 2 * MEMORY, ..config() }).unwrap();
    assert!(state::load(&mut other, &bytes).is_err());
    let mut other = Platform::new(&PlatformConfig { host_cpuid: &|_, _| [1; 4], ..config() }).unwrap();
    assert!(state::load(&mut other, &bytes).is_err());
    let mut other = Platform::new(&PlatformConfig { disk_bytes: 512, ..config() }).unwrap();
    assert!(state::load(&mut other, &bytes).is_err());
    let with_disk = state::save(&mut other);
    let mut larger = Platform::new(&PlatformConfig { disk_bytes: 1024, ..config() }).unwrap();
    assert!(state::load(&mut larger, &with_disk).is_err());
    let mut same = Platform::new(&config()).unwrap();
    state::load(&mut same, &bytes).unwrap();
    assert_eq!(state::hash(&mut same), state::hash(&mut one));
}

#[test]
fn the_tsc_is_guest_time_plus_what_the_guest_wrote() {
    let mut rig = Rig::new();
    rig.now = GuestTime(1000);
    assert_eq!(rig.platform.rdmsr(rig.now, 0x10), Ok(1000));
    rig.wrmsr(0x10, 5).unwrap();
    assert_eq!(rig.platform.tsc(GuestTime(1010)), 15);
    assert_eq!(rig.platform.rdmsr(rig.now, 0x3B), Ok(5u64.wrapping_sub(1000)));
    rig.wrmsr(0x3B, 7).unwrap();
    assert_eq!(rig.platform.rdmsr(GuestTime(2000), 0x10), Ok(2007));
}
