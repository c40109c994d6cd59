//! A disk that takes its time: what is in flight, in which order, and on which machine it ends.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use proptest::prelude::*;

use super::*;
use crate::memory::Gpa;
use crate::state;

const SECTORS: usize = 12;
const QUEUE_SIZE: u16 = 64;
/// Where descriptors, available and used ring are, and what requests consist of.
const RINGS: [u64; 3] = [0x1000, 0x2000, 0x3000];
const HEADERS: u64 = 0x4000;
const STATUS: u64 = 0x5000;
const DATA: u64 = 0x8000;
/// Bytes of data that a request has room for.
const ROOM: usize = 4 * SECTOR as usize;

/// What is begun is done when the test says so.
#[derive(Clone, Default)]
struct Slow(Rc<RefCell<Medium>>);

#[derive(Default)]
struct Medium {
    content: Vec<u8>,
    begun: Vec<(u64, Request)>,
}

impl Backend for Slow {
    const MAX_IN_FLIGHT: usize = 5;

    fn sectors(&self) -> u64 {
        SECTORS as u64
    }

    fn begin(&mut self, id: u64, request: &mut Request, _: &mut GuestMemory) -> Option<Status> {
        self.0.borrow_mut().begun.push((id, request.clone()));
        None
    }
}

impl Medium {
    /// Carries out one of those begun, of which none is in the way of another.
    fn end(&mut self, which: usize) -> Option<Completion> {
        let at = which.checked_rem(self.begun.len())?;
        let (id, mut request) = self.begun.remove(at);
        let clashes = self.begun.iter().any(|(_, other)| other.conflicts(&request));
        assert!(!clashes, "{request:?} in flight with {:?}", self.begun);
        let range = request.start as usize..(request.start + request.len) as usize;
        match request.operation {
            Operation::Write => self.content[range].copy_from_slice(&request.data),
            Operation::Read => request.data = self.content[range].to_vec(),
            _ => {}
        }
        Some(Completion { id, status: Status::Ok, data: request.data })
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A request for so many sectors from one on; the kind is 0 for reads, 1 for writes, 4 for flushes.
    Ask { kind: u32, sector: usize, sectors: usize },
    /// One of those in flight ends.
    End(usize),
    /// Another machine takes over, with a disk of its own that is as far as this one.
    TakeOver,
}

fn step() -> impl Strategy<Value = Step> {
    let ask = |(kind, sector, sectors)| Step::Ask { kind, sector, sectors };
    prop_oneof![
        4 => (prop_oneof![Just(0u32), Just(1), Just(1), Just(4)], 0..SECTORS - 4, 1usize..=4).prop_map(ask),
        3 => any::<usize>().prop_map(Step::End),
        1 => Just(Step::TakeOver),
    ]
}

/// A driver that puts each request into slots of its own.
struct Bench {
    memory: GuestMemory,
    queues: [Queue; 1],
    block: Block<Slow>,
    medium: Slow,
    asked: u16,
}

impl Bench {
    fn new() -> Self {
        let mut queue = Queue::new();
        queue.set_size(QUEUE_SIZE);
        (0..3).for_each(|index| *queue.address_mut(index) = RINGS[index]);
        queue.enable(F_VERSION_1);
        let medium = Slow::default();
        medium.0.borrow_mut().content = alloc::vec![0; SECTORS * SECTOR as usize];
        let memory = GuestMemory::for_test(0x2_0000);
        Self { memory, queues: [queue], block: Block::new(medium.clone()), medium, asked: 0 }
    }

    fn put(&mut self, gpa: u64, bytes: &[u8]) {
        self.memory.write(Gpa(gpa), bytes).unwrap();
    }

    fn data(&self, number: u16, len: usize) -> &[u8] {
        self.memory.slice(Gpa(DATA + (usize::from(number) * ROOM) as u64), len as u64).unwrap()
    }

    fn ask(&mut self, kind: u32, sector: usize, data: &[u8]) {
        let (number, wide) = (self.asked, u64::from(self.asked));
        let (header, content, status) = (HEADERS + 16 * wide, DATA + wide * ROOM as u64, STATUS + wide);
        self.put(header, [u64::from(kind), sector as u64].map(u64::to_le_bytes).as_flattened());
        self.put(content, data);
        self.put(status, &[0xEE]);
        // Flags: there is a next one, the device writes.
        let parts = [(header, 16, 1), (content, data.len(), if kind == 0 { 3 } else { 1 }), (status, 1, 2)];
        for (index, (gpa, len, flags)) in (3 * number..).zip(parts) {
            let descriptor =
                [&gpa.to_le_bytes()[..], &(len as u32).to_le_bytes(), &[flags, 0], &(index + 1).to_le_bytes()].concat();
            self.put(RINGS[0] + 16 * u64::from(index), &descriptor);
        }
        self.put(RINGS[1] + 4 + 2 * wide, &(3 * number).to_le_bytes());
        self.asked += 1;
        self.put(RINGS[1] + 2, &self.asked.to_le_bytes());
        self.block.resume(&mut self.queues, &mut self.memory).unwrap();
    }

    fn end(&mut self, which: usize) -> bool {
        let Some(done) = self.medium.0.borrow_mut().end(which) else { return false };
        self.block.complete(&[done], &mut self.queues, &mut self.memory).unwrap();
        true
    }

    fn take_over(&mut self) {
        let saved = state::save(&mut self.block);
        let medium = Slow::default();
        medium.0.borrow_mut().content = self.medium.0.borrow().content.clone();
        let mut block = Block::new(medium.clone());
        state::load(&mut block, &saved).unwrap();
        assert_eq!(state::save(&mut block), saved);
        assert_eq!(block.begin_again(&mut self.memory), []);
        // What the old machine's disk does now, nobody hears of.
        (self.block, self.medium) = (block, medium);
    }

    fn answers(&self) -> Vec<u32> {
        let count = u16::from_le_bytes(self.memory.read(Gpa(RINGS[2] + 2)).unwrap());
        let head = |index| u32::from_le_bytes(self.memory.read(Gpa(RINGS[2] + 4 + 8 * u64::from(index))).unwrap());
        (0..count).map(head).collect()
    }
}

proptest! {
    /// However long requests take and wherever they end: each is answered once, and everything is as if they had been carried
    /// out one after the other.
    #[test]
    fn overlapping_requests_keep_the_order_of_the_ring(steps in prop::collection::vec(step(), 1..30)) {
        let mut bench = Bench::new();
        let mut model = alloc::vec![0; SECTORS * SECTOR as usize];
        let mut reads = Vec::new();
        for step in steps {
            match step {
                Step::Ask { kind, sector, sectors } if bench.asked < 16 => {
                    let (from, len) = (sector * SECTOR as usize, sectors * SECTOR as usize);
                    let stamp = bench.asked as u8 + 1;
                    match kind {
                        0 => reads.push((bench.asked, model[from..from + len].to_vec())),
                        1 => model[from..from + len].fill(stamp),
                        _ => {}
                    }
                    let content = match kind {
                        0 => alloc::vec![0xDD; len],
                        1 => alloc::vec![stamp; len],
                        _ => Vec::new(),
                    };
                    bench.ask(kind, sector, &content);
                }
                Step::Ask { .. } => {}
                Step::End(which) => drop(bench.end(which)),
                Step::TakeOver => bench.take_over(),
            }
        }
        while bench.end(0) {}
        let mut answers = bench.answers();
        answers.sort_unstable();
        prop_assert_eq!(answers, (0..u32::from(bench.asked)).map(|number| 3 * number).collect::<Vec<_>>());
        prop_assert_eq!(&bench.medium.0.borrow().content, &model);
        for (number, expected) in reads {
            prop_assert_eq!(bench.data(number, expected.len()), &expected[..]);
            prop_assert_eq!(bench.memory.read::<1>(Gpa(STATUS + u64::from(number))).unwrap(), [0]);
        }
    }

    /// Whatever another machine sends is loaded such that it can end, or refused.
    #[test]
    fn any_state_in_flight_is_loaded_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), which in any::<usize>()
    ) {
        let mut bench = Bench::new();
        bench.ask(1, 2, &[7; ROOM]);
        bench.ask(0, 7, &[0; ROOM]);
        bench.ask(1, 2, &[8; ROOM]);
        let mut bytes = state::save(&mut bench.block);
        for (index, value) in changes {
            *index.get_mut(&mut bytes[..]) = value;
        }
        if state::load(&mut bench.block, &bytes).is_ok() {
            bench.medium.0.borrow_mut().begun.clear();
            bench.block.begin_again(&mut bench.memory);
            let begun: Vec<_> = bench.medium.0.borrow().begun.iter().map(|(id, _)| *id).collect();
            let done = begun.get(which % 3).map(|&id| Completion { id, status: Status::Failed, data: Vec::new() });
            let _ = bench.block.complete(done.as_slice(), &mut bench.queues, &mut bench.memory);
        }
    }
}

#[test]
fn an_error_of_the_disk_is_the_guests_and_counted() {
    let mut bench = Bench::new();
    bench.ask(0, 0, &[0xDD; 512]);
    let (id, _) = bench.medium.0.borrow_mut().begun.remove(0);
    let done = |id| Completion { id, status: Status::Failed, data: Vec::new() };
    // Of one that was never begun, or has ended, nothing is heard.
    for id in [id + 1, id, id] {
        bench.block.complete(&[done(id)], &mut bench.queues, &mut bench.memory).unwrap();
    }
    assert_eq!((bench.answers(), bench.block.stats().failed), (alloc::vec![0], 1));
    assert_eq!((bench.memory.read(Gpa(STATUS)).unwrap(), bench.data(0, 512)), ([1], &[0xDD; 512][..]));
}

#[test]
fn a_reset_forgets_what_is_in_flight() {
    let mut bench = Bench::new();
    bench.ask(1, 0, &[1; 512]);
    bench.block.reset();
    assert!(bench.end(0));
    assert_eq!(bench.answers(), []);
}
