//! A disk that takes its time: what is in flight, in which order, and on which machine it ends.

use alloc::vec::Vec;

use pollux_driver::DiskStatus;
use pollux_driver::disk::DiskRequests;
use pollux_ft::Config;
use proptest::prelude::*;

use super::*;
use crate::memory::Gpa;
use crate::state;

const SECTORS: usize = 12;
const QUEUE_SIZE: u16 = 256;
/// Where descriptors, available and used ring are, and what requests consist of.
const RINGS: [u64; 3] = [0x1000, 0x2000, 0x3000];
const HEADERS: u64 = 0x4000;
const STATUS: u64 = 0x5000;
const DATA: u64 = 0x8000;
/// Bytes of data that a request has room for.
const ROOM: usize = 4 * SECTOR as usize;

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

/// A driver that puts each request into slots of its own, and a machine that carries them out.
struct Bench {
    memory: GuestMemory,
    queues: [Queue; 1],
    block: Block<Storage>,
    requests: DiskRequests,
    at_work: Vec<u64>,
    asked: u16,
}

fn disk() -> Block<Storage> {
    Block::new(Storage::new(SECTORS as u64, Place::TimedMemory))
}

impl Bench {
    fn new() -> Self {
        let mut queue = Queue::new();
        queue.set_size(QUEUE_SIZE);
        (0..3).for_each(|index| *queue.address_mut(index) = RINGS[index]);
        queue.enable(F_VERSION_1);
        let memory = GuestMemory::for_test_with_disk(0x2_0000, Storage::room(SECTORS as u64 * SECTOR) as usize);
        let (requests, at_work) = (DiskRequests::default(), Vec::new());
        Self { memory, queues: [queue], block: disk(), requests, at_work, asked: 0 }
    }

    /// The machine's disk gets to know what it may begin.
    fn begin(&mut self) {
        while let Some(request) = self.block.next_request() {
            assert!(self.block.is_in_flight(request.id));
            self.requests.add(request);
        }
        assert!(!self.block.has_request());
        while let Some(request) = self.requests.begin(&Config::default()) {
            self.at_work.push(request.id);
        }
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
        self.begin();
    }

    fn end(&mut self, which: usize, status: DiskStatus) -> bool {
        let Some(at) = which.checked_rem(self.at_work.len()) else { return false };
        self.requests.ended(DiskEnd { id: self.at_work.remove(at), status });
        let ends = self.requests.due(true, &Config::default());
        self.block.complete(&ends, &mut self.queues, &mut self.memory).unwrap();
        self.requests.applied(&ends);
        self.begin();
        true
    }

    /// What the old machine's disk does from here on, nobody hears of.
    fn take_over(&mut self) {
        let saved = state::save(&mut self.block);
        let mut block = disk();
        state::load(&mut block, &saved).unwrap();
        block.ask_again();
        assert_eq!(state::save(&mut block), saved);
        self.block = block;
        (self.requests, self.at_work) = (DiskRequests::default(), Vec::new());
        self.begin();
    }

    fn content(&self) -> &[u8] {
        self.memory.disk(0, SECTORS as u64 * SECTOR)
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
                Step::End(which) => drop(bench.end(which, DiskStatus::Done)),
                Step::TakeOver => bench.take_over(),
            }
        }
        while bench.end(0, DiskStatus::Done) {}
        let mut answers = bench.answers();
        answers.sort_unstable();
        prop_assert_eq!(answers, (0..u32::from(bench.asked)).map(|number| 3 * number).collect::<Vec<_>>());
        prop_assert_eq!(bench.content(), &model[..]);
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
            bench.block.ask_again();
            let ids: Vec<_> = core::iter::from_fn(|| bench.block.next_request()).map(|request| request.id).collect();
            prop_assert!(ids.is_sorted() && ids.iter().all(|&id| bench.block.is_in_flight(id)));
            let ends: Vec<_> = ids.iter().map(|&id| DiskEnd { id, status: DiskStatus::Done }).collect();
            let some = &ends[..which % (ends.len() + 1)];
            let _ = bench.block.complete(some, &mut bench.queues, &mut bench.memory);
            prop_assert!(some.iter().all(|end| !bench.block.is_in_flight(end.id)));
        }
    }
}

#[test]
fn an_error_of_the_disk_is_the_guests_and_counted() {
    let mut bench = Bench::new();
    bench.ask(1, 0, &[0xDD; 512]);
    assert_eq!(bench.answers(), []);
    bench.end(0, DiskStatus::Failed);
    assert_eq!((bench.answers(), bench.block.stats().failed), (alloc::vec![0], 1));
    assert_eq!((bench.memory.read(Gpa(STATUS)).unwrap(), bench.content()[0]), ([1], 0));
    // Of one that has ended nothing is heard again.
    let again = [DiskEnd { id: 0, status: DiskStatus::Done }];
    bench.block.complete(&again, &mut bench.queues, &mut bench.memory).unwrap();
    assert_eq!((bench.answers().len(), bench.content()[0]), (1, 0));
}

/// What nobody waits for any more is done all the same, before what overlaps with it, whoever asks for that.
#[test]
fn a_reset_leaves_what_is_in_flight_in_its_order() {
    let mut bench = Bench::new();
    bench.ask(1, 0, &[1; 512]);
    bench.block.reset();
    bench.ask(1, 0, &[2; 512]);
    bench.ask(0, 0, &[0; 512]);
    bench.take_over();
    assert_eq!(bench.at_work.len(), 1, "the others wait for the first one");
    while bench.end(0, DiskStatus::Done) {}
    assert_eq!((bench.answers(), bench.content()[0], bench.data(2, 512)), (alloc::vec![3, 6], 2, &[2; 512][..]));
}

#[test]
fn no_more_are_in_flight_than_may_be() {
    let mut bench = Bench::new();
    for _ in 0..Storage::IN_FLIGHT + 5 {
        bench.ask(0, 0, &[0; 512]);
    }
    assert_eq!(bench.at_work.len(), Storage::IN_FLIGHT);
    bench.end(7, DiskStatus::Done);
    assert_eq!((bench.at_work.len(), bench.answers()), (Storage::IN_FLIGHT, alloc::vec![21]));
    while bench.end(0, DiskStatus::Done) {}
    assert_eq!(bench.answers().len(), Storage::IN_FLIGHT + 5);
    // Nor is more data than is moved at once; what the disk knows by heart, it tells at once.
    bench.ask(8, 0, &[]);
    assert_eq!((bench.at_work.len(), bench.answers().len()), (0, Storage::IN_FLIGHT + 6));
}
