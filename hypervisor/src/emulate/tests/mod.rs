//! Tests on a small machine: RAM at 0, devices from [`DEVICE`] on, and three modes of the CPU.

mod instructions;
mod paging;
mod properties;
mod shadow;
mod strings;
mod vectors;

use alloc::vec::Vec;

use super::{Bus, CpuView, Emulated, Fault, Vectors, io, mmio};
use crate::cpu::registers::{CR0_PE, CR0_PG, EFER_LMA, EFER_LME, RFLAGS_FIXED, Registers, Segment, Segments};
use crate::cpu::{IoExit, Mode};
use crate::memory::{Gpa, GuestMemory};

/// Size of RAM.
const RAM: u64 = 0x10_0000;
/// A device's page.
const DEVICE: u64 = 0xFEE0_0000;
/// Where code is put.
const CODE: u64 = 0x8000;
/// Data in RAM.
const DATA: u64 = 0x9000;

/// In the page tables of [`Rig::long`]: the table that maps 4 KiB pages from [`SMALL`] on.
const SMALL_TABLE: u64 = 0x4000;
/// First linear address that is mapped by small pages, all of them absent at first.
const SMALL: u64 = 0x20_0000;

/// The bus, which notes what reaches devices.
struct TestBus {
    memory: GuestMemory,
    /// What a device answers at offset 0; each further byte of address adds one to the byte read there.
    reads: Vec<(u64, u8)>,
    writes: Vec<(u64, u8, u64)>,
    port_reads: Vec<(u16, u8)>,
    port_writes: Vec<(u16, u8, u32)>,
}

/// Byte that devices answer at an address.
fn device_byte(gpa: u64) -> u8 {
    (gpa as u8).wrapping_mul(0x11).wrapping_add(0x81)
}

/// What devices answer at an address, little-endian.
fn device_value(gpa: u64, size: u8) -> u64 {
    (0..u64::from(size)).map(|at| u64::from(device_byte(gpa + at)) << (8 * at)).sum()
}

impl Bus for TestBus {
    fn mmio_read(&mut self, gpa: Gpa, size: u8) -> u64 {
        self.reads.push((gpa.0, size));
        device_value(gpa.0, size)
    }

    fn mmio_write(&mut self, gpa: Gpa, size: u8, value: u64) {
        self.writes.push((gpa.0, size, value));
    }

    fn memory(&mut self) -> &mut GuestMemory {
        &mut self.memory
    }
}

impl io::PortBus for TestBus {
    fn port_read(&mut self, port: u16, size: u8) -> u32 {
        self.port_reads.push((port, size));
        0x8765_4321
    }

    fn port_write(&mut self, port: u16, size: u8, value: u32) {
        self.port_writes.push((port, size, value));
    }
}

struct Rig {
    bus: TestBus,
    registers: Registers,
    mode: Mode,
    vectors: TestVectors,
}

/// Vector registers, the upper halves of those for AVX, and whether it is disabled.
#[derive(Default)]
struct TestVectors([u128; 16], [u128; 16], bool);

impl Vectors for TestVectors {
    fn get(&self, index: usize) -> u128 {
        self.0[index]
    }

    fn set(&mut self, index: usize, value: u128) {
        self.0[index] = value;
    }

    fn is_wide(&self) -> bool {
        !self.2
    }

    fn get_wide(&self, index: usize) -> [u128; 2] {
        [self.0[index], self.1[index]]
    }

    fn set_wide(&mut self, index: usize, value: [u128; 2]) {
        [self.0[index], self.1[index]] = value;
    }
}

impl Rig {
    fn new(mode: Mode) -> Self {
        let memory = GuestMemory::for_test(RAM as usize);
        let registers = Registers { rip: CODE, rflags: RFLAGS_FIXED, ..Registers::default() };
        let (reads, writes, port_reads, port_writes) = Default::default();
        let bus = TestBus { memory, reads, writes, port_reads, port_writes };
        Self { bus, registers, mode, vectors: TestVectors::default() }
    }

    /// Real mode, all segments at 0.
    fn real() -> Self {
        Self::new(Mode { segments: segments(Segment::real(0, 0x9B), Segment::real(0, 0x93)), ..Mode::default() })
    }

    /// 32-bit protected mode, flat, without paging.
    fn flat() -> Self {
        let segments = segments(Segment::flat(8, 0xC9B), Segment::flat(16, 0xC93));
        Self::new(Mode { segments, cr0: CR0_PE, ..Mode::default() })
    }

    /// 64-bit mode. RAM and the upper quarter of 4 GiB are mapped to themselves for everybody.
    fn long() -> Self {
        let segments = segments(Segment::flat(8, 0xA9B), Segment::flat(16, 0xC93));
        let mut rig = Self::new(Mode {
            segments,
            cr0: CR0_PE | CR0_PG,
            cr3: 0x1000,
            cr4: 1 << 5,
            efer: EFER_LME | EFER_LMA | 1 << 11,
        });
        rig.entry(0x1000, 0x2000 | 7);
        rig.entry(0x2000, 0x3000 | 7);
        rig.entry(0x2018, 0xC000_0000 | 0x87);
        rig.entry(0x3000, 0x87);
        rig.entry(0x3008, SMALL_TABLE | 7);
        rig
    }

    /// Writes an entry of a page table.
    fn entry(&mut self, at: u64, value: u64) {
        self.bus.memory.write(Gpa(at), &value.to_le_bytes()).unwrap();
    }

    /// Maps the small page `index` pages after [`SMALL`].
    fn map_small(&mut self, index: u64, entry: u64) {
        self.entry(SMALL_TABLE + 8 * index, entry);
    }

    fn entry_at(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bus.memory.read(Gpa(at)).unwrap())
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.bus.memory.write(Gpa(at), bytes).unwrap();
    }

    fn at(&self, at: u64, size: usize) -> u64 {
        let mut value = [0; 8];
        value[..size].copy_from_slice(self.bus.memory.slice(Gpa(at), size as u64).unwrap());
        u64::from_le_bytes(value)
    }

    /// Puts an instruction at RIP and carries it out.
    fn run(&mut self, code: &[u8]) -> Result<Emulated, Fault> {
        self.put(self.registers.rip, code);
        self.step()
    }

    fn step(&mut self) -> Result<Emulated, Fault> {
        let mut cpu = CpuView { registers: &mut self.registers, mode: &self.mode, vectors: &mut self.vectors };
        mmio::step(&mut cpu, &mut self.bus)
    }

    fn string_io(&mut self, port: u16, size: u8, input: bool) -> Result<Emulated, Fault> {
        let exit = IoExit { port, size, input, string: true, next_rip: 0 };
        let mut cpu = CpuView { registers: &mut self.registers, mode: &self.mode, vectors: &mut self.vectors };
        io::string_io(&mut cpu, &mut self.bus, &exit)
    }

    /// Runs with user rights from now on.
    fn drop_to_user(&mut self) {
        self.mode.segments.ss.attributes |= 3 << 5;
    }
}

fn segments(cs: Segment, data: Segment) -> Segments {
    Segments { es: data, cs, ss: data, ds: data, fs: data, gs: data, ..Segments::default() }
}

/// The page fault that a result tells of: error code and address.
fn page_fault(result: Result<Emulated, Fault>) -> (u32, u64) {
    match result {
        Err(Fault::Exception(exception)) if exception.vector == 14 => {
            (exception.error_code.unwrap(), exception.cr2.unwrap())
        }
        other => panic!("no page fault: {other:?}"),
    }
}

/// The vector of the exception that a result tells of.
fn vector(result: Result<Emulated, Fault>) -> u8 {
    match result {
        Err(Fault::Exception(exception)) => exception.vector,
        other => panic!("no exception: {other:?}"),
    }
}
