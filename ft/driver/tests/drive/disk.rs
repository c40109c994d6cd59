//! Requests to a guest's disk, and disks that fail.

use super::*;
use pollux_driver::{DiskEnd, DiskOperation, DiskRequest, DiskStatus};
use pollux_ft::{Entry, EntryRef, Kind, Position, disk};

const WRITE: DiskRequest = DiskRequest { id: 7, operation: DiskOperation::Write, start: 0, len: 512, durable: false };
const ASKED: u64 = 200_000;
const SCRIPT: [(u64, Step); 1] = [(ASKED, Step::Ask(WRITE))];
const DONE: DiskEnd = DiskEnd { id: 7, status: DiskStatus::Done };
const FAILED: DiskEnd = DiskEnd { id: 7, status: DiskStatus::Failed };

/// A pair whose guest has just asked for the write on the primary.
fn asked() -> Pair {
    let mut pair = Pair::protected(&SCRIPT, tuning());
    while pair.a.desk.begun.is_empty() {
        pair.a.turn();
    }
    assert_eq!((&pair.a.desk.begun[..], pair.a.driver.disk_requests().len()), (&[WRITE][..], 1));
    pair
}

/// What the guest on a machine heard of its disk.
fn heard(machine: &Machine) -> Vec<DiskEnd> {
    let ends = machine.driver.guest().seen.iter().filter_map(|(_, entry)| match entry {
        Entry::DiskDone(data) => Some(disk::decode(data).unwrap()),
        _ => None,
    });
    ends.flatten().collect()
}

/// The batch with the newest entries reaches the backup, which takes turns until it waits.
fn tell(pair: &mut Pair) -> Next {
    pair.pass(50_000);
    pair.a.turn();
    pair.pass(50_000);
    pair.a.turn();
    pair.carry();
    pair.b.rest()
}

#[test]
fn a_guest_hears_of_its_disk_at_one_position_and_when_both_disks_are_done() {
    let mut pair = asked();
    assert_eq!(pair.b.desk.begun, [], "its guest has not asked yet");
    pair.a.desk.ends.push_back(DONE);
    pair.a.turn();
    let at = pair.a.guest().seen_at(Kind::Disk)[0];
    assert_eq!((heard(&pair.a), pair.a.driver.disk_requests().len()), (vec![DONE], 0));
    pair.b.desk.disk_ends_at = Some(pair.b.desk.now + 123_456);
    let until = tell(&mut pair);
    assert_eq!((&pair.b.desk.begun[..], pair.b.position(), heard(&pair.b)), (&[WRITE][..], at, vec![]));
    assert!(matches!(until, Next::Wait(Some(at)) if at <= Time(pair.b.desk.disk_ends_at.unwrap())));
    pair.b.desk.ends.push_back(DONE);
    pair.b.rest();
    assert_eq!((heard(&pair.b), pair.b.guest().seen_at(Kind::Disk)), (vec![DONE], vec![at]));
    assert_eq!((pair.b.role(), pair.b.driver.disk_requests().is_empty()), (Role::Backup, true));
}

#[test]
fn a_sleeper_wakes_for_its_disk() {
    let script = [(10, Step::Ask(WRITE)), (11, Step::Sleep)];
    let mut machine = Machine::new(Start::Primary, 1, &script, tuning(), config());
    machine.desk.disk_ends_at = Some(START + 5_000);
    assert_eq!(machine.rest(), Next::Wait(Some(Time(START + 5_000))));
    machine.desk.ends.push_back(FAILED);
    machine.turn();
    assert_eq!(heard(&machine), [FAILED], "nobody else has a better disk");
    assert!(!machine.guest().halted && !machine.driver.is_switch_due() && machine.desk.count("DiskFailed") == 0);
}

#[test]
fn a_guest_is_handed_over_to_the_better_disk() {
    let mut pair = asked();
    pair.a.desk.ends.push_back(FAILED);
    pair.a.turn();
    assert_eq!((pair.a.desk.count("DiskFailed(\"the guest is handed over"), pair.a.desk.count("HandsOver")), (1, 1));
    pair.carry();
    for _ in 0..80 {
        pair.b.turn();
    }
    assert_eq!((heard(&pair.a), pair.a.desk.count("DiskFailed")), (vec![], 1));
    assert!(pair.b.role().runs_guest() && pair.b.desk.begun == [WRITE], "{:?}", pair.b.role());
    pair.b.desk.ends.push_back(DONE);
    pair.b.turn();
    assert_eq!(heard(&pair.b), [DONE]);
    pair.rounds(3);
    assert_eq!(pair.a.desk.forgotten_disks, 1, "what was at work is nobody's any more");
    assert!(pair.a.driver.disk_requests().is_empty());
}

/// A request of an unsettled guest fails: the guest is handed over at the earliest exact stop, and the failure told once.
#[test]
fn a_failed_disk_is_told_once() {
    let mut pair = asked();
    pair.a.guest().interrupted_at = Some(pair.a.position() + 5);
    pair.a.turn();
    pair.a.desk.ends.push_back(FAILED);
    let at = pair.a.position();
    pair.a.turn();
    pair.a.turn();
    assert_eq!((pair.a.position(), pair.a.desk.count("DiskFailed"), pair.a.desk.count("HandsOver")), (at + 1, 1, 1));
}

#[test]
fn a_backup_whose_disk_fails_what_the_primary_has_done_ends() {
    let mut pair = asked();
    pair.a.desk.ends.push_back(DONE);
    pair.a.turn();
    pair.b.desk.ends.push_back(FAILED);
    tell(&mut pair);
    pair.b.desk.ends.push_back(FAILED);
    pair.b.rest();
    pair.rounds(3);
    assert_eq!((heard(&pair.b), pair.b.role(), pair.a.role()), (vec![], Role::Halted, Role::Alone));
    assert!(pair.b.desk.saw(&["DiskFailed(\"this backup ends", "Ended(\"the disk failed"]), "{:?}", pair.b.desk.events);
    assert_eq!(pair.a.desk.count("Asked(Unprotected { reason: GaveUp"), 1);
}

#[test]
fn a_guest_is_not_handed_over_to_a_failed_disk() {
    let mut pair = asked();
    tell(&mut pair);
    pair.b.desk.ends.push_back(FAILED);
    pair.b.rest();
    assert_eq!((pair.b.desk.begun.len(), pair.b.role()), (1, Role::Backup), "the primary's may fail as well");
    assert!(pair.a.driver.request_switch());
    pair.rounds(40);
    assert_eq!((pair.a.role(), pair.b.role()), (Role::Alone, Role::Halted));
    assert!(pair.a.driver.duty() == pollux_driver::Duty::Live && pair.b.desk.count("WentLive") == 0);
}

#[test]
fn the_end_of_a_request_that_was_never_made_is_found() {
    let mut pair = Pair::protected(&[], tuning());
    let (at, now) = (pair.a.position(), Time(pair.a.desk.now));
    let entry = disk::encode(&[DONE]);
    pair.a.driver.node_mut().append(now, Position(at), EntryRef::DiskDone(&entry)).unwrap();
    tell(&mut pair);
    assert!(pair.b.desk.saw(&["Diverged(\"entry 2: disk request 7 was never made"]), "{:?}", pair.b.desk.events);
}
