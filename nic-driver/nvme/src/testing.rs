//! The controller's side of registers and queues, played by the host: an honest one, or one that is told how to misbehave.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use pollux_nic::{DmaMemory, Registers};

use crate::buffers::{BUFFER_BYTES, DMA_ALIGNMENT, DMA_BYTES};
use crate::command::{admin, io};
use crate::registers::*;

/// Where the controller sees the memory: above 4 GiB and apart from the CPU's addresses, so that a mix-up is noticed.
const PHYSICAL: u64 = 0x12_3456_0000;
/// Bytes of its blocks.
pub const BLOCK: usize = 512;

/// The same memory twice: for the driver, and for the model. Both only make volatile accesses.
fn dma_memory() -> (DmaMemory, DmaMemory) {
    let layout = Layout::from_size_align(DMA_BYTES, DMA_ALIGNMENT).unwrap();
    // SAFETY: the layout is not empty.
    let base = unsafe { alloc_zeroed(layout) };
    assert!(!base.is_null());
    // SAFETY: freshly allocated, zeroed and never freed; `DmaMemory` keeps a pointer, and no reference to it.
    let make = || unsafe { DmaMemory::new(PHYSICAL, std::slice::from_raw_parts_mut(base, DMA_BYTES)) };
    (make(), make())
}

/// What becomes of the next command that is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mischief {
    /// What should.
    None,
    /// It never ends.
    Swallowed,
    /// It ends with this status.
    Status(u16),
    /// The completion is about another command.
    Id(u16),
    /// The completion is about another queue.
    Queue(u16),
    /// The queue's head is nonsense.
    Head(u16),
    /// It ends twice.
    Twice,
    /// The controller reports a fatal error instead.
    Fatal,
    /// It is not there any more.
    Gone,
}

#[derive(Debug, Clone, Copy)]
struct Queue {
    address: u64,
    entries: u16,
    at: u16,
}

impl Queue {
    const fn new(address: u64, entries: u16) -> Self {
        Self { address, entries, at: 0 }
    }

    fn advance(&mut self) -> u16 {
        let at = self.at;
        self.at = (self.at + 1) % self.entries;
        at
    }
}

/// A pair of queues.
#[derive(Debug)]
struct Pair {
    submissions: Queue,
    completions: Queue,
    phase: bool,
}

/// A controller, its one namespace, and its memory.
#[derive(Debug)]
pub struct Hardware {
    memory: DmaMemory,
    registers: BTreeMap<usize, u32>,
    pairs: [Option<Pair>; 2],
    /// Fetched I/O commands that were not carried out.
    pub fetched: VecDeque<[u64; 8]>,
    /// What is stored.
    pub disk: Vec<u8>,
    /// What is durable of it.
    pub durable: Vec<u8>,
    /// What becomes of the next command.
    pub mischief: Mischief,
    /// Its register of that name.
    pub capabilities: u64,
    /// Bytes 0 to 4095 of what it says of itself, and of its namespace.
    pub identity: [Vec<u8>; 2],
    /// Whether it becomes ready.
    pub starts: bool,
    /// Whether it stops.
    pub stops: bool,
    /// Admin commands are answered with this status.
    pub admin_status: u16,
    /// How often it has interrupted.
    pub interrupts: u32,
    masked: bool,
    /// How often it was started.
    pub starts_seen: u32,
}

/// Registers that the driver holds, shared with the test.
#[derive(Debug, Clone)]
pub struct Port(pub Rc<RefCell<Hardware>>);

impl Registers for Port {
    fn read32(&self, offset: usize) -> u32 {
        self.0.borrow_mut().read(offset)
    }

    fn write32(&mut self, offset: usize, value: u32) {
        self.0.borrow_mut().write(offset, value);
    }

    fn len(&self) -> usize {
        0x2000
    }
}

/// A model of a drive of `blocks` blocks, and memory for a driver of it.
#[must_use]
pub fn model(blocks: usize) -> (Port, DmaMemory) {
    let (driver, memory) = dma_memory();
    let mut controller = vec![0; 4096];
    // Data of at most 2^5 pages; one namespace; writes of zeros; a cache.
    controller[77] = 5;
    controller[516] = 1;
    controller[520] = 1 << 3;
    controller[525] = 1;
    let mut namespace = vec![0; 4096];
    namespace[..8].copy_from_slice(&(blocks as u64).to_le_bytes());
    namespace[130] = 9;
    let hardware = Hardware {
        memory,
        registers: BTreeMap::new(),
        pairs: [None, None],
        fetched: VecDeque::new(),
        disk: vec![0; blocks * BLOCK],
        durable: vec![0; blocks * BLOCK],
        mischief: Mischief::None,
        // 128 entries, 500 ms, the NVM command set.
        capabilities: 127 | 1 << 24 | 1 << 37,
        identity: [controller, namespace],
        starts: true,
        stops: true,
        admin_status: 0,
        interrupts: 0,
        masked: false,
        starts_seen: 0,
    };
    (Port(Rc::new(RefCell::new(hardware))), driver)
}

impl Hardware {
    /// Whether it may not interrupt.
    #[must_use]
    pub const fn is_masked(&self) -> bool {
        self.masked
    }

    fn read(&self, offset: usize) -> u32 {
        if self.mischief == Mischief::Gone {
            return u32::MAX;
        }
        match offset {
            CAP => self.capabilities as u32,
            CAP_HIGH => (self.capabilities >> 32) as u32,
            _ => self.registers.get(&offset).copied().unwrap_or(0),
        }
    }

    fn write(&mut self, offset: usize, value: u32) {
        match offset {
            CC if value & 1 == 0 => {
                self.masked = false;
                if self.stops {
                    self.registers.insert(CSTS, 0);
                    self.pairs = [None, None];
                    self.fetched.clear();
                }
            }
            CC => {
                assert_eq!(value, CC_ENABLED);
                assert_eq!(self.read(CSTS) & CSTS_READY, 0, "it was enabled before it had stopped");
                self.starts_seen += 1;
                if self.starts {
                    let (sizes, address) =
                        (self.read(AQA), |low| u64::from(self.read(low + 4)) << 32 | u64::from(self.read(low)));
                    self.pairs[0] = Some(Pair {
                        submissions: Queue::new(address(ASQ), sizes as u16 + 1),
                        completions: Queue::new(address(ACQ), (sizes >> 16) as u16 + 1),
                        phase: true,
                    });
                    self.registers.insert(CSTS, CSTS_READY);
                }
            }
            INTMS => self.masked = true,
            INTMC => self.masked = false,
            0x1000 => self.admin(value as u16),
            0x1008 => self.fetch(value as u16),
            _ => {
                self.registers.insert(offset, value);
            }
        }
    }

    fn offset(address: u64) -> usize {
        let offset = address.checked_sub(PHYSICAL).expect("an address of the driver's memory");
        usize::try_from(offset).unwrap()
    }

    fn next(&mut self, pair: usize, tail: u16) -> Option<[u64; 8]> {
        let submissions = &mut self.pairs[pair].as_mut().expect("a queue").submissions;
        assert!(tail < submissions.entries);
        if submissions.at == tail {
            return None;
        }
        let start = Self::offset(submissions.address) + usize::from(submissions.advance()) * 64;
        Some(std::array::from_fn(|word| self.memory.read64(start + 8 * word)))
    }

    fn complete(&mut self, pair: usize, id: u16, status: u16, queue: u16, head: Option<u16>) {
        let Some(Pair { submissions, completions, phase }) = &mut self.pairs[pair] else { return };
        let start = Self::offset(completions.address) + usize::from(completions.advance()) * 16;
        let head = head.unwrap_or(submissions.at);
        let tail = u64::from(*phase) | u64::from(status) << 1;
        let word = u64::from(head) | u64::from(queue) << 16 | u64::from(id) << 32 | tail << 48;
        if completions.at == 0 {
            *phase = !*phase;
        }
        self.memory.write64(start + 8, word);
        self.interrupts += u32::from(!self.masked);
    }

    fn admin(&mut self, tail: u16) {
        while let Some(command) = self.next(0, tail) {
            let (opcode, id) = (command[0] as u8, (command[0] >> 16) as u16);
            let (ten, eleven) = (command[5] as u32, (command[5] >> 32) as u32);
            let entries = (ten >> 16) as u16 + 1;
            match opcode {
                admin::IDENTIFY => {
                    let data = self.identity[usize::from(ten == 0)].clone();
                    self.memory.copy_in(Self::offset(command[3]), &data);
                }
                admin::CREATE_COMPLETION_QUEUE => {
                    let completions = Queue::new(command[3], entries);
                    self.pairs[1] = Some(Pair { submissions: Queue::new(0, 1), completions, phase: true });
                }
                admin::CREATE_SUBMISSION_QUEUE => {
                    assert_eq!((ten & 0xFFFF, eleven), (1, 1 | 1 << 16));
                    self.pairs[1].as_mut().expect("a queue for completions").submissions =
                        Queue::new(command[3], entries);
                }
                admin::SET_FEATURES => assert_eq!((ten, eleven), (7, 0)),
                _ => panic!("admin operation {opcode:#x}"),
            }
            self.complete(0, id, self.admin_status, 0, None);
        }
    }

    fn fetch(&mut self, tail: u16) {
        while let Some(command) = self.next(1, tail) {
            self.fetched.push_back(command);
        }
    }

    /// The pieces of memory of a command's data.
    fn pages(&self, command: &[u64; 8], len: usize) -> Vec<(usize, usize)> {
        let pages = len.div_ceil(4096);
        let address = |page: usize| match page {
            0 => command[3],
            1 if pages == 2 => command[4],
            _ => self.memory.read64(Self::offset(command[4]) + (page - 1) * 8),
        };
        (0..pages).map(|page| (Self::offset(address(page)), (len - page * 4096).min(4096))).collect()
    }

    /// Carries out one of the commands that were fetched, with the current mischief. Whether there was one.
    pub fn carry_out(&mut self, which: usize) -> bool {
        if self.fetched.is_empty() {
            return false;
        }
        let which = which % self.fetched.len();
        let command = self.fetched.remove(which).expect("there is one");
        let (opcode, id) = (command[0] as u8, (command[0] >> 16) as u16);
        assert_eq!((command[0] >> 32) as u32, 1, "the namespace");
        let mischief = std::mem::replace(&mut self.mischief, Mischief::None);
        if !matches!(mischief, Mischief::Swallowed | Mischief::Status(_) | Mischief::Fatal) {
            self.transfer(opcode, &command);
        }
        match mischief {
            Mischief::None => self.complete(1, id, 0, 1, None),
            Mischief::Swallowed => {}
            Mischief::Status(status) => self.complete(1, id, status, 1, None),
            Mischief::Id(other) => self.complete(1, id ^ other, 0, 1, None),
            Mischief::Queue(queue) => self.complete(1, id, 0, queue, None),
            Mischief::Head(head) => self.complete(1, id, 0, 1, Some(head)),
            Mischief::Twice => (0..2).for_each(|_| self.complete(1, id, 0, 1, None)),
            Mischief::Fatal => {
                self.registers.insert(CSTS, CSTS_READY | CSTS_FATAL);
            }
            Mischief::Gone => self.mischief = Mischief::Gone,
        }
        true
    }

    fn transfer(&mut self, opcode: u8, command: &[u64; 8]) {
        let twelve = command[6] as u32;
        let (start, len) = (command[5] as usize * BLOCK, ((twelve & 0xFFFF) as usize + 1) * BLOCK);
        match opcode {
            io::FLUSH => self.durable.clone_from(&self.disk),
            io::READ | io::WRITE => {
                assert!(len <= BUFFER_BYTES && start + len <= self.disk.len());
                let mut at = start;
                for (page, len) in self.pages(command, len) {
                    if opcode == io::READ {
                        self.memory.copy_in(page, &self.disk[at..at + len]);
                    } else {
                        self.memory.copy_out(page, &mut self.disk[at..at + len]);
                    }
                    at += len;
                }
                if opcode == io::WRITE && twelve & 1 << 30 != 0 {
                    let range = start..start + len;
                    self.durable[range.clone()].copy_from_slice(&self.disk[range]);
                }
            }
            io::WRITE_ZEROES => self.disk[start..start + len].fill(0),
            _ => panic!("operation {opcode:#x}"),
        }
    }
}
