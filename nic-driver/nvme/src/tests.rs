//! The driver against a model of a controller.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::testing::{BLOCK, Mischief, Port, model};
use crate::*;

const BLOCKS: usize = 2048;
/// Longer than a controller may take to stop or start.
const LONG: u64 = 600_000;

/// A command's tag, and what came of it.
type Ended = (u64, Result<Vec<u8>, Lost>);

/// A driver and the model that it drives.
struct Bench {
    nvme: Nvme<Port>,
    port: Port,
    now: u64,
    /// What has ended, and with what data.
    ended: Vec<Ended>,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut crate::testing::Hardware)) -> Self {
        let (port, memory) = model(BLOCKS);
        change(&mut port.0.borrow_mut());
        let nvme = Nvme::new(port.clone(), memory, Settings::default(), 0).unwrap();
        let mut bench = Self { nvme, port, now: 0, ended: Vec::new() };
        bench.turns(20);
        bench
    }

    /// Polls so often, without time going by.
    fn turns(&mut self, count: usize) {
        let Self { nvme, now, ended, .. } = self;
        for _ in 0..count {
            nvme.poll(*now, |tag, result| {
                let bytes = |data: Data<'_>| {
                    let mut bytes = vec![0; data.len()];
                    data.copy_to(&mut bytes);
                    bytes
                };
                ended.push((tag, result.map(bytes)));
            });
        }
    }

    /// Lets the controller carry out all that it has, the last first, and the driver see it.
    fn carry_out(&mut self) {
        loop {
            let last = self.port.0.borrow().fetched.len().saturating_sub(1);
            if !self.port.0.borrow_mut().carry_out(last) {
                break;
            }
            self.turns(1);
        }
    }

    fn mischief(&self, mischief: Mischief) {
        self.port.0.borrow_mut().mischief = mischief;
    }

    fn is_ready(&self) -> bool {
        matches!(self.nvme.condition(), Condition::Ready(_))
    }

    fn given_up(&self) -> Option<Fault> {
        match self.nvme.condition() {
            Condition::GivenUp(fault) => Some(fault),
            _ => None,
        }
    }

    fn submit(&mut self, request: Request<'_>, tag: u64) -> Result<(), SubmitError> {
        self.nvme.submit(request, tag, self.now)
    }
}

fn bytes(seed: u8, blocks: usize) -> Vec<u8> {
    (0..blocks * BLOCK).map(|at| seed.wrapping_add((at / 7) as u8)).collect()
}

const READ: Request<'static> = Request::Read { block: 0, blocks: 1 };

#[test]
fn what_was_written_is_read() {
    let mut bench = Bench::new();
    let Condition::Ready(geometry) = bench.nvme.condition() else { panic!("{:?}", bench.nvme.condition()) };
    let expected = Geometry {
        block_bytes: 512,
        blocks: BLOCKS as u64,
        most_bytes: 128 << 10,
        has_write_cache: true,
        can_zero: true,
    };
    assert_eq!(geometry, expected);
    // One page, two, and a list; not at a page's start on the drive.
    for (tag, blocks) in [(1, 1), (2, 8), (3, 9), (4, 17), (5, 256)] {
        let data = bytes(tag as u8, blocks);
        bench.submit(Request::Write { block: 3, data: &data, durable: false }, tag).unwrap();
        bench.carry_out();
        bench.submit(Request::Read { block: 3, blocks: blocks as u32 }, tag + 100).unwrap();
        bench.carry_out();
        assert_eq!(bench.ended, [(tag, Ok(Vec::new())), (tag + 100, Ok(data))]);
        bench.ended.clear();
    }
    bench.submit(Request::Zero { block: 4, blocks: 7 }, 9).unwrap();
    bench.carry_out();
    bench.submit(Request::Read { block: 3, blocks: 9 }, 10).unwrap();
    bench.carry_out();
    let Some((10, Ok(data))) = bench.ended.pop() else { panic!("{:?}", bench.ended) };
    let zero: Vec<_> = data.chunks(BLOCK).map(|block| block.iter().all(|&byte| byte == 0)).collect();
    assert_eq!(zero, [false, true, true, true, true, true, true, true, false]);
}

#[test]
fn what_is_durable_is_said() {
    let mut bench = Bench::new();
    let data = bytes(1, 1);
    bench.submit(Request::Write { block: 0, data: &data, durable: false }, 1).unwrap();
    bench.submit(Request::Write { block: 1, data: &data, durable: true }, 2).unwrap();
    bench.carry_out();
    let durable = |bench: &Bench, block: usize| bench.port.0.borrow().durable[block * BLOCK] == data[0];
    assert!(!durable(&bench, 0) && durable(&bench, 1));
    bench.submit(Request::Flush, 3).unwrap();
    bench.carry_out();
    assert!(durable(&bench, 0));
}

#[test]
fn nonsense_is_not_asked() {
    let mut bench = Bench::new();
    let last = BLOCKS as u64;
    let many = bytes(0, 257);
    for request in [
        Request::Read { block: last, blocks: 1 },
        Request::Read { block: 0, blocks: 0 },
        Request::Read { block: 0, blocks: 257 },
        Request::Read { block: u64::MAX, blocks: 1 },
        Request::Zero { block: last - 1, blocks: 2 },
        Request::Zero { block: 0, blocks: 65_537 },
        Request::Write { block: 0, data: &[], durable: false },
        Request::Write { block: 0, data: &many, durable: false },
        Request::Write { block: 0, data: &many[..513], durable: false },
    ] {
        assert_eq!(bench.submit(request, 1), Err(SubmitError::OutOfRange), "{request:?}");
    }
    assert_eq!(bench.nvme.at_work(), 0);
    let mut without = Bench::with(|model| model.identity[0][520] = 0);
    assert_eq!(without.submit(Request::Zero { block: 0, blocks: 1 }, 1), Err(SubmitError::Unsupported));
}

#[test]
fn no_more_commands_than_there_are_slots() {
    for (entries, room) in [(128, COMMANDS), (8, 7)] {
        let mut bench = Bench::with(|model| model.capabilities = model.capabilities & !0xFFFF | (entries - 1));
        for tag in 0..room as u64 {
            bench.submit(READ, tag).unwrap();
        }
        assert_eq!(bench.submit(READ, 99), Err(SubmitError::Full));
        bench.carry_out();
        // The last one first.
        assert_eq!(bench.ended[0].0, room as u64 - 1);
        assert_eq!(bench.ended.len(), room);
        bench.submit(READ, 99).unwrap();
    }
}

/// A command in whose completion the drive lies, and what is found.
fn after(mischief: Mischief) -> (Bench, Vec<Ended>) {
    let mut bench = Bench::new();
    bench.submit(READ, 1).unwrap();
    bench.submit(READ, 2).unwrap();
    bench.mischief(mischief);
    bench.port.0.borrow_mut().carry_out(0);
    bench.turns(20);
    bench.now += 20_000;
    bench.turns(20);
    bench.now += Settings::default().patience;
    bench.turns(20);
    let ended = std::mem::take(&mut bench.ended);
    (bench, ended)
}

#[test]
fn a_drive_that_lies_is_reset() {
    for (mischief, fault) in [
        (Mischief::Swallowed, Fault::Timeout),
        (Mischief::Fatal, Fault::Fatal),
        (Mischief::Queue(7), Fault::UnknownQueue(7)),
        (Mischief::Queue(0), Fault::UnknownQueue(0)),
        (Mischief::Head(64), Fault::QueueHead(64)),
        (Mischief::Id(32), Fault::UnknownCommand(0)),
        (Mischief::Id(2), Fault::UnknownCommand(34)),
        (Mischief::Id(0x8000), Fault::UnknownCommand(0x8020)),
    ] {
        let (mut bench, ended) = after(mischief);
        assert_eq!(ended, [(1, Err(Lost::Reset(fault))), (2, Err(Lost::Reset(fault)))], "{mischief:?}");
        assert!(bench.is_ready(), "{mischief:?}");
        assert_eq!((bench.nvme.faults(), bench.port.0.borrow().starts_seen), (1, 2));
        bench.submit(READ, 3).unwrap();
        bench.carry_out();
        assert_eq!(bench.ended, [(3, Ok(vec![0; BLOCK]))]);
    }
}

/// A command that the drive has lost, while others go well all the time.
#[test]
fn a_lost_command_is_noticed_among_others_that_end() {
    let mut bench = Bench::new();
    bench.submit(READ, 1).unwrap();
    bench.mischief(Mischief::Swallowed);
    bench.carry_out();
    let until = bench.now + Settings::default().patience + 20_000;
    for tag in 2.. {
        if bench.nvme.faults() > 0 {
            break;
        }
        assert!(bench.now < until, "it is never noticed");
        bench.submit(READ, tag).unwrap();
        bench.now += 5_000;
        bench.carry_out();
    }
    bench.turns(20);
    assert!(bench.ended.contains(&(1, Err(Lost::Reset(Fault::Timeout)))) && bench.is_ready());
}

/// While it is reset it is looked at often, and not all the time.
#[test]
fn a_controller_that_is_reset_is_waited_for() {
    let mut bench = Bench::new();
    bench.port.0.borrow_mut().stops = false;
    bench.submit(READ, 1).unwrap();
    bench.mischief(Mischief::Queue(3));
    bench.port.0.borrow_mut().carry_out(0);
    bench.turns(1);
    assert_eq!(bench.nvme.next_look(), Some(bench.now));
    bench.turns(1);
    assert_eq!(bench.nvme.next_look(), Some(bench.now + 1_000));
    // Given up, it can interrupt nobody.
    bench.now += LONG;
    bench.turns(1);
    assert_eq!(bench.given_up(), Some(Fault::DoesNotStop));
    assert!(bench.port.0.borrow().is_masked());
}

/// What a drive that answers without data does not say is not what it said before.
#[test]
fn an_answer_without_data_says_nothing() {
    let mut bench = Bench::with(|model| {
        model.identity[0][..3].fill(1);
        model.identity[0][130] = 9;
        model.identity[1] = Vec::new();
    });
    bench.turns(100);
    assert_eq!(bench.given_up(), Some(Fault::Unusable(Unusable::NoNamespace(1))));
}

#[test]
fn a_completion_that_comes_twice_ends_nothing_else() {
    let mut bench = Bench::new();
    bench.submit(READ, 1).unwrap();
    bench.mischief(Mischief::Twice);
    bench.port.0.borrow_mut().carry_out(0);
    // The slot is in use again before the second one is looked at.
    bench.now += 1;
    bench.turns(20);
    assert_eq!(bench.ended, [(1, Ok(vec![0; BLOCK]))]);
    assert_eq!((bench.nvme.faults(), bench.is_ready()), (1, true));
}

#[test]
fn a_failed_command_is_no_fault() {
    let (bench, ended) = after(Mischief::Status(0x281));
    assert_eq!(ended[0], (1, Err(Lost::Failed(Status(0x281)))));
    // The other one was never carried out.
    assert_eq!(ended[1].1, Err(Lost::Reset(Fault::Timeout)));
    assert!(bench.is_ready());
    assert_eq!(Lost::Failed(Status(0x281)).to_string(), "unrecovered read error (status 2/81)");
}

#[test]
fn a_drive_that_is_gone_is_given_up() {
    let (mut bench, ended) = after(Mischief::Gone);
    assert_eq!(bench.given_up(), Some(Fault::Gone));
    assert_eq!(ended.iter().filter(|(_, result)| *result == Err(Lost::Reset(Fault::Gone))).count(), 2);
    assert_eq!(bench.submit(READ, 3), Err(SubmitError::GivenUp));
    assert_eq!(bench.nvme.next_look(), None);
}

#[test]
fn a_drive_that_does_not_recover_is_given_up() {
    let mut bench = Bench::new();
    for tag in 0..10 {
        if bench.submit(READ, tag).is_err() {
            break;
        }
        bench.mischief(Mischief::Queue(3));
        bench.port.0.borrow_mut().carry_out(0);
        bench.turns(20);
    }
    assert_eq!((bench.given_up(), bench.nvme.faults()), (Some(Fault::UnknownQueue(3)), 4));
    assert_eq!(bench.ended.len(), 4);
}

#[test]
fn a_drive_that_does_not_start_or_stop_is_given_up() {
    let mut bench = Bench::with(|model| model.starts = false);
    for _ in 0..10 {
        bench.now += LONG;
        bench.turns(20);
    }
    assert_eq!(bench.given_up(), Some(Fault::DoesNotStart));
    let mut bench = Bench::new();
    bench.port.0.borrow_mut().stops = false;
    bench.submit(READ, 1).unwrap();
    bench.now += Settings::default().patience;
    bench.turns(20);
    assert!(bench.ended.is_empty(), "its buffer may still be written to");
    bench.now += LONG;
    bench.turns(20);
    assert_eq!(bench.given_up(), Some(Fault::DoesNotStop));
    assert_eq!(bench.ended.len(), 1);
}

#[test]
fn a_drive_that_cannot_be_used_says_why() {
    let fault = |change: fn(&mut crate::testing::Hardware)| {
        let mut bench = Bench::with(change);
        bench.turns(100);
        bench.given_up()
    };
    let unusable = |why| Some(Fault::Unusable(why));
    assert_eq!(fault(|model| model.identity[0][516] = 0), unusable(Unusable::NoNamespace(1)));
    assert_eq!(fault(|model| model.identity[1][..8].fill(0)), unusable(Unusable::NoNamespace(1)));
    assert_eq!(fault(|model| model.identity[1][130] = 13), unusable(Unusable::BlockBytes(13)));
    assert_eq!(fault(|model| model.identity[1][..8].fill(0xFF)), unusable(Unusable::BlockBytes(9)));
    assert_eq!(fault(|model| model.identity[1][128] = 8), unusable(Unusable::Metadata(8)));
    assert_eq!(fault(|model| model.admin_status = 2), Some(Fault::Refused("to say what it is", Status(2))));
}

#[test]
fn nothing_interrupts_before_it_may() {
    let (port, memory) = model(BLOCKS);
    let nvme = Nvme::new(port.clone(), memory, Settings { interrupts: true, ..Settings::default() }, 0).unwrap();
    let mut bench = Bench { nvme, port, now: 0, ended: Vec::new() };
    bench.turns(20);
    bench.submit(READ, 1).unwrap();
    bench.carry_out();
    assert_eq!(bench.port.0.borrow().interrupts, 0);
    bench.nvme.let_interrupt();
    bench.submit(READ, 2).unwrap();
    bench.carry_out();
    assert_eq!(bench.port.0.borrow().interrupts, 1);
    // After a reset it is as before, and the reset itself is silent.
    bench.submit(READ, 3).unwrap();
    bench.mischief(Mischief::Fatal);
    bench.carry_out();
    bench.now += 20_000;
    bench.turns(20);
    assert_eq!(bench.port.0.borrow().interrupts, 1);
    bench.submit(READ, 4).unwrap();
    bench.carry_out();
    assert_eq!(bench.port.0.borrow().interrupts, 2);
}

#[test]
fn another_drive_in_its_place_is_not_written_to() {
    let mut bench = Bench::new();
    bench.port.0.borrow_mut().identity[1][0] ^= 1;
    bench.submit(READ, 1).unwrap();
    bench.mischief(Mischief::Fatal);
    bench.port.0.borrow_mut().carry_out(0);
    bench.now += 20_000;
    bench.turns(20);
    assert_eq!(bench.given_up(), Some(Fault::Unusable(Unusable::Changed)));
}

#[test]
fn controllers_that_cannot_be_driven_are_refused() {
    let open = |change: fn(&mut crate::testing::Hardware)| {
        let (port, memory) = model(8);
        change(&mut port.0.borrow_mut());
        Nvme::new(port, memory, Settings::default(), 0).err()
    };
    assert_eq!(open(|model| model.mischief = Mischief::Gone), Some(OpenError::Absent));
    assert_eq!(open(|model| model.capabilities &= !(1 << 37)), Some(OpenError::NoCommandSet));
    assert_eq!(open(|model| model.capabilities |= 1 << 48), Some(OpenError::PageBytes(13)));
    assert_eq!(open(|model| model.capabilities &= !0xFFFF), Some(OpenError::Entries(1)));
    assert_eq!(open(|model| model.capabilities |= 15 << 32), Some(OpenError::RegistersTooSmall(0x2000)));
    let (port, memory) = model(8);
    let (small, _) = memory.split(4096).unwrap();
    assert_eq!(Nvme::new(port, small, Settings::default(), 0).err(), Some(OpenError::Memory(4096)));
}

/// What a test does next.
#[derive(Debug, Clone)]
enum Deed {
    Submit { write: bool, block: u64, blocks: u32 },
    CarryOut(usize),
    Misbehave(Mischief),
    Wait(u64),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let mischief = prop_oneof![
        4 => Just(Mischief::None),
        1 => Just(Mischief::Swallowed),
        2 => (1u16..0x800).prop_map(Mischief::Status),
        // Never that of another command at work, whose end the drive could tell without our noticing.
        1 => (0x8000u16..).prop_map(Mischief::Id),
        1 => any::<u16>().prop_map(Mischief::Queue),
        1 => any::<u16>().prop_map(Mischief::Head),
        1 => Just(Mischief::Twice),
        1 => Just(Mischief::Fatal),
    ];
    let deed = prop_oneof![
        8 => (any::<bool>(), 0u64..40, 1u32..40).prop_map(|(write, block, blocks)| Deed::Submit { write, block, blocks }),
        8 => (0usize..40).prop_map(Deed::CarryOut),
        2 => mischief.prop_map(Deed::Misbehave),
        1 => prop_oneof![Just(100), Just(20_000), Just(20_000_000)].prop_map(Deed::Wait),
    ];
    prop::collection::vec(deed, 1..120)
}

proptest! {
    /// Whatever the controller does: every command that was taken ends once, what is read is what the drive held, and in the
    /// end the drive is at work or given up.
    #[test]
    fn every_command_ends_once(deeds in deeds()) {
        let mut bench = Bench::new();
        let mut taken = BTreeMap::new();
        for (tag, deed) in deeds.into_iter().enumerate() {
            let tag = tag as u64;
            match deed {
                Deed::Submit { write, block, blocks } => {
                    let data = bytes(tag as u8, blocks as usize);
                    let request = if write {
                        Request::Write { block, data: &data, durable: false }
                    } else {
                        Request::Read { block, blocks }
                    };
                    if bench.submit(request, tag).is_ok() {
                        taken.insert(tag, (write, block as usize, blocks as usize));
                    }
                }
                Deed::CarryOut(which) => {
                    bench.port.0.borrow_mut().carry_out(which);
                }
                Deed::Misbehave(mischief) => bench.mischief(mischief),
                Deed::Wait(time) => bench.now += time,
            }
            bench.turns(1);
            let disk = bench.port.0.borrow().disk.clone();
            for (tag, result) in bench.ended.drain(..) {
                let (write, block, blocks) = taken.remove(&tag).expect("it was at work");
                match result {
                    Ok(data) if write => prop_assert!(data.is_empty()),
                    Ok(data) => prop_assert_eq!(&data[..], &disk[block * BLOCK..(block + blocks) * BLOCK]),
                    Err(_) => {}
                }
            }
        }
        bench.mischief(Mischief::None);
        bench.turns(20);
        bench.carry_out();
        for _ in 0..4 {
            bench.now += 20_000_000;
            bench.turns(20);
        }
        for (tag, _) in bench.ended.drain(..) {
            prop_assert!(taken.remove(&tag).is_some());
        }
        prop_assert!(taken.is_empty(), "{taken:?}");
        prop_assert!(bench.is_ready() || bench.given_up().is_some());
    }
}
