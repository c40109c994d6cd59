use pollux_driver::CopyState;
use pollux_ft::Term;
use pollux_nvme::testing::{BLOCK, Hardware, Mischief, Port, model};
use pollux_nvme::{Settings, Status};
use proptest::prelude::*;

use super::*;

const BLOCKS: usize = 8192;
/// The disk begins in the drive's middle.
const EXTENT: Extent = Extent { start: 100 * BLOCK as u64, bytes: 4096 * BLOCK as u64, label: 8000 * BLOCK as u64 };
const PATIENCE: u64 = 20_000_000;

struct Bench {
    drive: Drive<Port>,
    port: Port,
    now: Time,
    next_id: u64,
    durable: bool,
}

impl Bench {
    fn new(can_zero: bool) -> Self {
        Self::with(|port| {
            if !can_zero {
                port.identity[0][520] = 0;
            }
        })
    }

    fn with(change: impl FnOnce(&mut Hardware)) -> Self {
        let (port, memory) = model(BLOCKS);
        change(&mut port.0.borrow_mut());
        let mut nvme = Nvme::new(port.clone(), memory, Settings::default(), 0).unwrap();
        (0..20).for_each(|_| nvme.poll(0, |_, _| {}));
        Self {
            drive: Drive::new(nvme, EXTENT, Label::fresh(7, EXTENT.bytes), false),
            port,
            now: Time(0),
            next_id: 0,
            durable: false,
        }
    }

    fn begin(&mut self, operation: DiskOperation, start: u64, len: u64, data: &[u8]) -> u64 {
        self.next_id += 1;
        let request = DiskRequest { id: self.next_id, operation, start, len, durable: self.durable };
        self.drive.begin(&request, data, self.now);
        self.next_id
    }

    /// Lets the drive carry out everything; what has ended, by rising numbers.
    fn run(&mut self) -> Vec<(u64, DiskStatus, Vec<u8>)> {
        let mut ended = Vec::new();
        for _ in 0..300 {
            let any = self.port.0.borrow_mut().carry_out(0);
            self.drive.work(self.now);
            while let Some((end, data)) = self.drive.next_end() {
                ended.push((end.id, end.status, data));
            }
            if !any {
                self.now = self.now.after(pollux_ft::Span(PATIENCE / 100));
            }
        }
        ended.sort_unstable_by_key(|(id, ..)| *id);
        ended
    }
}

fn bytes(seed: u8, len: u64) -> Vec<u8> {
    (0..len).map(|at| seed.wrapping_add((at / 3) as u8)).collect()
}

const DONE: DiskStatus = DiskStatus::Done;

#[test]
fn large_requests_are_cut_and_put_together() {
    for can_zero in [true, false] {
        let mut bench = Bench::new(can_zero);
        // More than all commands together carry, at an odd place.
        let len = (1 << 20) - 512;
        let data = bytes(3, len);
        bench.begin(DiskOperation::Write, 512, len, &data);
        assert_eq!(bench.run(), [(1, DONE, Vec::new())]);
        let start = EXTENT.start as usize + 512;
        assert_eq!(bench.port.0.borrow().disk[start..start + data.len()], data);
        assert_eq!(bench.port.0.borrow().disk[..start], vec![0; start]);
        bench.begin(DiskOperation::Read, 512, len, &[]);
        bench.begin(DiskOperation::Flush, 0, 0, &[]);
        assert_eq!(bench.run(), [(2, DONE, data), (3, DONE, Vec::new())]);
        assert_eq!(bench.port.0.borrow().disk, bench.port.0.borrow().durable);
        bench.begin(DiskOperation::Zero, 512, len, &[]);
        assert_eq!(bench.run(), [(4, DONE, Vec::new())]);
        assert!(bench.port.0.borrow().disk.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn what_a_reset_has_lost_is_asked_for_again() {
    let mut bench = Bench::new(true);
    let data = bytes(9, 600 << 10);
    bench.port.0.borrow_mut().mischief = Mischief::Swallowed;
    bench.begin(DiskOperation::Write, 0, data.len() as u64, &data);
    assert_eq!(bench.run(), [(1, DONE, Vec::new())]);
    bench.begin(DiskOperation::Read, 0, data.len() as u64, &[]);
    bench.port.0.borrow_mut().mischief = Mischief::Fatal;
    assert_eq!(bench.run(), [(2, DONE, data)]);
}

#[test]
fn what_the_drive_fails_has_failed_and_nothing_else() {
    let mut bench = Bench::new(true);
    bench.begin(DiskOperation::Read, 0, 600 << 10, &[]);
    bench.begin(DiskOperation::Read, 0, 512, &[]);
    bench.port.0.borrow_mut().mischief = Mischief::Status(Status(0x281).0);
    assert_eq!(bench.run(), [(1, DiskStatus::Failed, Vec::new()), (2, DONE, vec![0; 512])]);
    // One that is gone fails all, then and later.
    bench.begin(DiskOperation::Flush, 0, 0, &[]);
    bench.port.0.borrow_mut().mischief = Mischief::Gone;
    assert_eq!(bench.run(), [(3, DiskStatus::Failed, Vec::new())]);
    bench.begin(DiskOperation::Flush, 0, 0, &[]);
    assert_eq!(bench.run(), [(4, DiskStatus::Failed, Vec::new())]);
}

#[test]
fn what_comes_after_forgotten_requests_waits_for_them() {
    let mut bench = Bench::new(true);
    bench.begin(DiskOperation::Write, 0, 1 << 20, &bytes(1, 1 << 20));
    bench.drive.forget();
    let after = bytes(2, 1024);
    bench.next_id = 0;
    bench.begin(DiskOperation::Write, 0, 1024, &after);
    let fetched = bench.port.0.borrow().fetched.len();
    assert_eq!(fetched, 8, "only the old ones");
    assert_eq!(bench.run(), [(1, DONE, Vec::new())]);
    let start = EXTENT.start as usize;
    assert_eq!(bench.port.0.borrow().disk[start..start + 1024], after);
}

#[test]
fn a_region_has_room_for_a_disk_and_for_us() {
    assert_eq!(guest_bytes(RESERVED + 8192 + 17, None), Ok(8192));
    assert_eq!(guest_bytes(RESERVED + 8192, Some(512)), Ok(512));
    assert_eq!(guest_bytes(RESERVED + 8192, Some(8704)), Err(TooSmall { room: 8192, wanted: 8704 }));
    assert!(guest_bytes(RESERVED + 4095, None).is_err() && guest_bytes(0, None).is_err());
}

/// What the drive says of itself, durably.
fn label_of(port: &Port) -> Option<Label> {
    let page = |copy: usize| port.0.borrow().durable[EXTENT.label as usize + copy * 4096..][..4096].to_vec();
    (0..2).filter_map(|copy| Label::decode(&page(copy))).max_by_key(|label| label.sequence)
}

#[test]
fn a_reign_is_on_the_drive_before_anything_is_written() {
    let mut bench = Bench::new(true);
    bench.drive.reign(Term(1), true, 11, bench.now).unwrap();
    bench.begin(DiskOperation::Write, 0, 512, &bytes(1, 512));
    let port = bench.port.clone();
    for _ in 0..3 {
        assert!(port.0.borrow().disk[EXTENT.start as usize..][..512].iter().all(|&byte| byte == 0));
        port.0.borrow_mut().carry_out(0);
        bench.drive.work(bench.now);
    }
    let first = label_of(&port).unwrap();
    assert_eq!((bench.run(), first), (alloc::vec![(1, DONE, Vec::new())], *bench.drive.label()));
    // A backup that was lost before it had all makes no difference; one that may have had all does.
    bench.drive.reign(Term(1), false, 12, bench.now).unwrap();
    bench.run();
    assert_eq!(label_of(&port), Some(first));
    bench.drive.share();
    bench.drive.reign(Term(1), false, 13, bench.now).unwrap();
    bench.run();
    let second = label_of(&port).unwrap();
    assert!(first.may_become(&second).is_ok() && second.may_become(&first).is_err());
}

#[test]
fn a_copy_is_whole_when_all_of_it_is_durable() {
    let mut source = Bench::new(true);
    source.drive.reign(Term(1), true, 11, source.now).unwrap();
    let data = bytes(5, 200 << 10);
    source.begin(DiskOperation::Write, 1 << 20, data.len() as u64, &data);
    source.run();
    let mut copy = Bench::new(false);
    copy.drive.begin_copy(&source.drive.label().encode(), copy.now).unwrap();
    copy.run();
    assert!(label_of(&copy.port).unwrap().may_begin(1, true).is_err());
    for start in (0..EXTENT.bytes).step_by(64 << 10) {
        source.drive.fetch(start, 64 << 10, source.now);
        source.run();
        let (at, block) = source.drive.fetched().unwrap();
        let block = block.unwrap();
        assert_eq!(at, start);
        let zero = block.iter().all(|&byte| byte == 0);
        copy.drive.store(start, 64 << 10, if zero { &[] } else { &block }, copy.now);
        // Once more, as of a block that was written meanwhile.
        copy.drive.store(start, 64 << 10, &block, copy.now);
    }
    copy.drive.end_copy(copy.now);
    assert_eq!(copy.drive.copy_state(), CopyState::Busy);
    copy.run();
    assert_eq!(copy.drive.copy_state(), CopyState::Done);
    let disk = |bench: &Bench| bench.port.0.borrow().durable[EXTENT.start as usize..][..EXTENT.bytes as usize].to_vec();
    assert!(disk(&copy) == source.port.0.borrow().disk[EXTENT.start as usize..][..EXTENT.bytes as usize]);
    assert!(label_of(&copy.port).unwrap().may_become(source.drive.label()).is_ok());
    // A drive that fails one of them is none.
    copy.drive.begin_copy(&source.drive.label().encode(), copy.now).unwrap();
    copy.run();
    copy.port.0.borrow_mut().mischief = Mischief::Status(0x280);
    copy.drive.store(0, 512, &bytes(1, 512), copy.now);
    copy.run();
    copy.drive.end_copy(copy.now);
    copy.run();
    assert_eq!(copy.drive.copy_state(), CopyState::Failed);
    assert!(copy.drive.begin_copy(&[0; 4096], copy.now).is_err());
}

/// A guest that has no flushes.
#[test]
fn what_is_to_be_durable_is_when_it_ends() {
    for can_zero in [true, false] {
        let mut bench = Bench::new(can_zero);
        let disk = |bench: &Bench| bench.port.0.borrow().durable[EXTENT.start as usize..][..300 << 10].to_vec();
        let data = bytes(3, 300 << 10);
        bench.durable = true;
        bench.begin(DiskOperation::Write, 0, 300 << 10, &data);
        assert_eq!((bench.run(), disk(&bench) == data), (vec![(1, DONE, Vec::new())], true));
        bench.begin(DiskOperation::Zero, 0, 300 << 10, &[]);
        assert_eq!((bench.run(), disk(&bench)), (vec![(2, DONE, Vec::new())], vec![0; 300 << 10]));
    }
}

/// A drive to which a copy was begun, and the label of the disk that is copied.
fn copying() -> (Bench, Label) {
    let mut source = Label::fresh(7, EXTENT.bytes);
    source.reign(1, 11);
    let mut bench = Bench::new(true);
    bench.drive.begin_copy(&source.encode(), bench.now).unwrap();
    (bench, source)
}

fn is_whole(port: &Port) -> bool {
    label_of(port).is_some_and(|label| label.may_begin(1, true).is_ok())
}

#[test]
fn a_copy_that_failed_or_broke_off_is_not_whole() {
    // A block that the drive fails, after the end of the copy was asked for.
    let (mut bench, _) = copying();
    bench.run();
    assert!(!is_whole(&bench.port));
    bench.drive.store(0, 512, &bytes(1, 512), bench.now);
    bench.drive.end_copy(bench.now);
    bench.port.0.borrow_mut().mischief = Mischief::Status(0x280);
    bench.run();
    assert_eq!((bench.drive.copy_state(), is_whole(&bench.port)), (CopyState::Failed, false));
    // Nobody waits for it any more, and not all of it is on the drive.
    let (mut bench, _) = copying();
    bench.run();
    for start in (0..1 << 20).step_by(64 << 10) {
        bench.drive.store(start, 64 << 10, &bytes(1, 64 << 10), bench.now);
        // As of a later round: it waits for the first.
        bench.drive.store(start, 64 << 10, &bytes(2, 64 << 10), bench.now);
    }
    bench.drive.end_copy(bench.now);
    bench.drive.forget();
    bench.run();
    assert!(!is_whole(&bench.port));
}

#[test]
fn nothing_is_stored_on_a_drive_that_does_not_say_so() {
    let start = EXTENT.start as usize;
    // Nobody began a copy.
    let mut bench = Bench::new(true);
    bench.drive.store(0, 512, &bytes(1, 512), bench.now);
    bench.run();
    assert!(bench.port.0.borrow().disk[start..start + 512].iter().all(|&byte| byte == 0));
    // The flush before the label fails; so do both of its copies.
    for commands in [&[0][..], &[1, 2]] {
        let (mut bench, _) = copying();
        bench.drive.store(0, 512, &bytes(1, 512), bench.now);
        for command in 0..4 {
            if commands.contains(&command) {
                bench.port.0.borrow_mut().mischief = Mischief::Status(0x280);
            }
            bench.port.0.borrow_mut().carry_out(0);
            bench.drive.work(bench.now);
            if command == 1 && commands.contains(&1) {
                // The other copy, behind a flush of its own.
                bench.port.0.borrow_mut().carry_out(0);
                bench.drive.work(bench.now);
            }
        }
        bench.drive.store(512, 512, &bytes(1, 512), bench.now);
        bench.run();
        assert!(bench.port.0.borrow().disk[start..start + 1024].iter().all(|&byte| byte == 0), "{commands:?}");
        assert_eq!((bench.drive.copy_state(), bench.drive.is_behind()), (CopyState::Failed, false));
    }
}

#[test]
fn a_label_has_two_places_and_a_drive_that_takes_neither_is_told_of() {
    for failing in [1, 2] {
        let mut bench = Bench::new(true);
        bench.drive.reign(Term(1), true, 11, bench.now).unwrap();
        bench.begin(DiskOperation::Write, 0, 512, &bytes(1, 512));
        assert_eq!(bench.drive.reign_state(), CopyState::Busy);
        for _ in 0..failing {
            bench.port.0.borrow_mut().carry_out(0);
            bench.port.0.borrow_mut().mischief = Mischief::Status(0x280);
            bench.drive.work(bench.now);
            bench.port.0.borrow_mut().carry_out(0);
            bench.drive.work(bench.now);
        }
        let state = if failing == 1 { CopyState::Busy } else { CopyState::Failed };
        assert_eq!(bench.drive.reign_state(), state);
        bench.run();
        if failing == 1 {
            assert_eq!(bench.drive.reign_state(), CopyState::Done);
            assert_eq!(label_of(&bench.port), Some(*bench.drive.label()));
        }
    }
}

/// One reset is one, however many commands it has lost.
#[test]
fn a_reset_may_lose_all_that_a_request_has_at_work() {
    for page_bits in [5, 1] {
        let mut bench = Bench::with(|port| port.identity[0][77] = page_bits);
        let data = bytes(4, 1 << 20);
        bench.begin(DiskOperation::Write, 0, data.len() as u64, &data);
        for _ in 0..3 {
            assert!(bench.port.0.borrow().fetched.len() > 3);
            bench.port.0.borrow_mut().mischief = Mischief::Fatal;
            bench.port.0.borrow_mut().carry_out(0);
            bench.now = bench.now.after(pollux_ft::Span(PATIENCE / 100));
            (0..20).for_each(|_| bench.drive.work(bench.now));
            // One that goes well, or the drive would be given up.
            bench.port.0.borrow_mut().carry_out(0);
            bench.drive.work(bench.now);
        }
        assert_eq!(bench.run(), [(1, DONE, Vec::new())]);
        let start = EXTENT.start as usize;
        assert!(bench.port.0.borrow().disk[start..start + data.len()] == data);
        // More than that it does not survive.
        bench.begin(DiskOperation::Write, 0, data.len() as u64, &data);
        for _ in 0..4 {
            bench.port.0.borrow_mut().mischief = Mischief::Fatal;
            bench.port.0.borrow_mut().carry_out(0);
            bench.now = bench.now.after(pollux_ft::Span(PATIENCE / 100));
            (0..20).for_each(|_| bench.drive.work(bench.now));
            bench.port.0.borrow_mut().carry_out(0);
            bench.drive.work(bench.now);
        }
        assert_eq!(bench.run(), [(2, DiskStatus::Failed, Vec::new())]);
    }
}

fn any_request() -> impl Strategy<Value = (u8, u64, u64)> {
    (0u8..4, 0u64..1000, 1u64..700)
}

proptest! {
    /// Whatever a drive does that loses nothing of what it has ended: each request ends once, and what is read is what was
    /// written last.
    #[test]
    fn the_disk_is_what_was_written(
        requests in prop::collection::vec((any_request(), 0u8..6), 1..12), can_zero in any::<bool>()
    ) {
        let mut bench = Bench::new(can_zero);
        let mut expected = vec![0; EXTENT.bytes as usize];
        for ((kind, block, blocks), mischief) in requests {
            bench.port.0.borrow_mut().mischief = match mischief {
                0 => Mischief::Swallowed,
                1 => Mischief::Fatal,
                2 => Mischief::Twice,
                3 => Mischief::Head(999),
                _ => Mischief::None,
            };
            let (start, len) = (block * BLOCK as u64, blocks * BLOCK as u64);
            let range = start as usize..(start + len) as usize;
            let data = bytes(mischief.wrapping_add(block as u8), len);
            let id = match kind {
                0 => bench.begin(DiskOperation::Read, start, len, &[]),
                1 => {
                    expected[range.clone()].copy_from_slice(&data);
                    bench.begin(DiskOperation::Write, start, len, &data)
                }
                2 => {
                    expected[range.clone()].fill(0);
                    bench.begin(DiskOperation::Zero, start, len, &[])
                }
                _ => bench.begin(DiskOperation::Flush, 0, 0, &[]),
            };
            let read = if kind == 0 { expected[range].to_vec() } else { Vec::new() };
            prop_assert_eq!(bench.run(), [(id, DONE, read)]);
        }
        let start = EXTENT.start as usize;
        prop_assert!(bench.port.0.borrow().disk[start..start + expected.len()] == expected[..]);
    }
}
