//! A state on its way: what is sent, how much of it in a turn, when the guest stands still, and what may be wrong with it.

use super::toy::Fault;
use super::*;
use pollux_driver::{CopyState, DiskEnd, DiskOperation, DiskRequest, DiskStatus};
use pollux_ft::Term;
use pollux_ft::decide::Verdict;

/// Contents in some pages; one of them becomes zeros when the guest has run for a while.
const SCRIPT: [(u64, Step); 5] = [
    (1, Step::Fill(2, 7)),
    (2, Step::Fill(3, 8)),
    (3, Step::Fill(20, 9)),
    (4, Step::Fill(39, 1)),
    (15_000, Step::Fill(3, 0)),
];

fn sent(machine: &Machine) -> String {
    machine.desk.events.iter().find(|event| event.starts_with("StateSent")).cloned().unwrap_or_default()
}

/// A primary that is about to begin the transfer, with something in every page, and a backup that waits for it.
fn about_to_begin(script: &[(u64, Step)], tuning: Tuning, config: Config) -> Pair {
    let mut pair = Pair::with(script, tuning, config);
    (0..PAGES).for_each(|page| pair.a.guest().fill(page, page as u8 + 1));
    // The names of both.
    pair.rounds(1);
    assert!(!pair.a.driver.is_transferring() && pair.a.role() == Role::Transferring);
    pair
}

#[test]
fn a_state_arrives_as_it_is_in_the_end() {
    let mut pair = Pair::new(&SCRIPT, tuning());
    // What another guest left there, in pages that are sent and in others.
    [0, 2, 3, 19, 38].into_iter().for_each(|page| pair.b.guest().fill(page, 0x55));
    let mut pair = pair.protect();
    let pages = |machine: &Machine| (0..PAGES).map(|page| machine.driver.guest().page(page)).collect::<Vec<_>>();
    assert_eq!(pages(&pair.b), pages(&pair.a));
    assert_eq!([2, 3, 20, 39].map(|page| pair.b.guest().page(page)), [7, 0, 9, 1]);
    assert_eq!(pair.a.guest().dirty, None, "nobody needs to know any more");
    assert_eq!((pair.a.desk.mode, pair.b.desk.mode), (Mode::Held, Mode::Retained));
    assert!(sent(&pair.a).starts_with("StateSent(Sent { pages: 4, machine: 56, rounds: 2"), "{}", sent(&pair.a));
    assert!(!pair.a.driver.is_transferring());
}

/// A large memory takes longer than a twin is patient: in each turn a share of it is looked at, and nothing is waited for.
#[test]
fn a_turn_sends_its_share_and_the_next_follows_at_once() {
    for used in [true, false] {
        let mut pair = about_to_begin(&[(10, Step::Sleep)], tuning(), config());
        if !used {
            (0..PAGES).for_each(|page| pair.a.guest().fill(page, 0));
        }
        for pages in [16; 6] {
            pair.a.desk.stream.clear();
            let next = pair.a.turn();
            assert_eq!(next, Next::Wait(Some(Time(pair.a.desk.now))));
            let want = if used { pages * 4096 } else { 0 };
            assert!((want..want + 200).contains(&pair.a.desk.stream.len()), "{} of {want}", pair.a.desk.stream.len());
            assert!(pair.a.driver.is_transferring());
            pair.a.desk.now += 1_000;
        }
        assert!(pair.a.turn() != Next::Wait(Some(Time(pair.a.desk.now))));
        let pages = if used { PAGES } else { 0 };
        let want =
            format!("StateSent(Sent {{ pages: {pages}, machine: 56, rounds: 2, total: Span(6000), pause: Span(0) }})");
        assert_eq!(sent(&pair.a), want);
    }
}

#[test]
fn what_has_no_room_follows_when_there_is_some() {
    let config = Config { send_buffer_bytes: 270_000, ..config() };
    let mut pair = about_to_begin(&[(10, Step::Sleep)], Tuning { pages_a_turn: 1_000, ..tuning() }, config);
    pair.a.guest().padding = 600_000;
    let at_once = |pair: &Pair| Next::Wait(Some(Time(pair.a.desk.now)));
    // Four messages of 16 pages have room; nothing leaves, and nothing is to be done until it does.
    pair.a.desk.window = 0;
    let next = pair.a.turn();
    assert_ne!(next, at_once(&pair));
    let waiting = pair.a.driver.node().transmit().len();
    assert!((262_144..263_000).contains(&waiting), "{waiting}");
    assert_ne!(pair.a.turn(), at_once(&pair));
    assert_eq!(pair.a.driver.node().transmit().len(), waiting);
    // All of it leaves, and what had no room can be sent at once.
    pair.a.desk.window = usize::MAX;
    assert_eq!(pair.a.turn(), at_once(&pair));
    let mut turns = 1;
    while pair.a.driver.is_transferring() {
        pair.a.turn();
        turns += 1;
        assert!(turns < 6);
    }
    assert!(sent(&pair.a).contains("pages: 100, machine: 600056"), "{}", sent(&pair.a));
    let mut pair = pair.protect();
    assert_eq!(pair.b.guest().page(99), 100);
}

/// A guest that stands for its transfer waits for the link, and does not ask again and again.
#[test]
fn a_full_link_says_when_it_has_room() {
    let config = Config { send_buffer_bytes: 270_000, ..config() };
    let tuning = Tuning { transfer_stops: true, pages_a_turn: 1_000, ..tuning() };
    let mut pair = about_to_begin(&[], tuning, config);
    pair.a.desk.window = 0;
    let timeout = pair.a.driver.node().next_timeout();
    pair.a.turn();
    let next = pair.a.turn();
    assert!(matches!(next, Next::Wait(Some(at)) if at > Time(pair.a.desk.now + 700)), "{next:?}, {timeout:?}");
}

#[test]
fn a_guest_may_have_to_stand_for_all_of_its_transfer() {
    let mut pair = about_to_begin(&[], Tuning { transfer_stops: true, ..tuning() }, config());
    let at = pair.a.position();
    for _ in 0..6 {
        assert_eq!(pair.a.turn(), Next::Wait(Some(Time(pair.a.desk.now))));
        assert_eq!((pair.a.position(), &pair.a.guest().dirty), (at, &None), "who stands still changes nothing");
        pair.a.desk.now += 1_000;
    }
    assert_eq!((pair.a.turn(), pair.a.position()), (Next::Again, at));
    assert!(
        sent(&pair.a).contains("pages: 100, machine: 56, rounds: 1, total: Span(6000), pause: Span(6000)"),
        "{}",
        sent(&pair.a)
    );
    let mut pair = pair.protect();
    assert!(pair.a.position() > at && pair.b.guest().page(39) == 40);
}

/// What the guest has said leaves before its state does, unless the card takes nothing for too long.
#[test]
fn a_guest_stands_for_its_frames_but_not_for_ever() {
    for freed in [true, false] {
        let tuning = Tuning { transfer_stops: true, card_patience: Span(5_000), pages_a_turn: 1_000, ..tuning() };
        let mut pair = about_to_begin(&[(30_000, Step::Frame(b"reply"))], tuning, config());
        (pair.a.desk.stuck, pair.a.desk.mode) = (true, Mode::Open);
        pollux_driver::Outlet::transmit(&mut pair.a.desk, b"reply");
        let begun = pair.a.desk.now;
        assert_eq!(pair.a.turn(), Next::Wait(Some(Time(begun + 700))));
        assert_eq!(pair.a.desk.mode, Mode::Held);
        pair.a.desk.now += 4_999;
        assert_eq!((pair.a.turn(), sent(&pair.a)), (Next::Wait(Some(Time(begun + 4_999 + 700))), String::new()));
        if freed {
            pair.a.desk.stuck = false;
        } else {
            pair.a.desk.now += 1;
        }
        pair.a.turn();
        assert!(!sent(&pair.a).is_empty());
        assert_eq!(pair.a.desk.left.len(), usize::from(freed));
    }
}

/// A transfer that stops an unsettled guest lets it run to the earliest exact stop.
#[test]
fn a_guest_is_copied_at_an_exact_stop() {
    let tuning = Tuning { transfer_stops: true, pages_a_turn: 1_000, ..tuning() };
    let mut pair = about_to_begin(&[], tuning, config());
    let at = pair.a.position() + 123;
    (pair.a.guest().position, pair.a.guest().settled) = (at, false);
    pair.a.turn();
    assert_eq!((pair.a.position(), sent(&pair.a)), (at + 1, String::new()));
    pair.a.turn();
    assert_eq!(pair.a.position(), at + 1);
    assert!(!sent(&pair.a).is_empty());
}

#[test]
fn a_transfer_whose_backup_is_lost_leaves_nothing_behind() {
    let mut pair = about_to_begin(&[], tuning(), config());
    pair.a.turn();
    assert!(pair.a.driver.is_transferring() && pair.a.guest().dirty.is_some());
    pair.a.driver.node_mut().disconnected(Time(START));
    pair.a.turn();
    assert!(!pair.a.driver.is_transferring() && pair.a.guest().dirty.is_none());
    assert_eq!((pair.a.role(), pair.a.desk.mode), (Role::Alone, Mode::Open));
}

/// Clearing takes long, too, and may still be under way when the state arrives.
#[test]
fn old_memory_is_cleared_in_shares() {
    let mut pair = about_to_begin(&[], tuning(), config());
    (0..PAGES).for_each(|page| pair.b.guest().fill(page, 0x55));
    pair.b.desk.inputs.push_back(vec![1]);
    // The beginning arrives, and no whole page.
    pair.a.desk.window = 1_000;
    pair.a.turn();
    pair.carry();
    let cleared = |pair: &Pair| (0..PAGES).filter(|&page| pair.b.driver.guest().page(page) == 0).count();
    for want in [16, 32, 48, 64, 80, 96] {
        assert_eq!((pair.b.turn(), cleared(&pair)), (Next::Wait(Some(Time(START))), want));
    }
    assert!(pair.b.turn() != Next::Wait(Some(Time(START))) || cleared(&pair) < 100);
    assert_eq!((cleared(&pair), pair.b.desk.inputs.len()), (100, 0));
    assert!(pair.b.turn() != Next::Wait(Some(Time(START))));
    pair.a.desk.window = usize::MAX;
    let mut pair = pair.protect();
    assert_eq!(pair.b.guest().page(39), 40);
}

#[test]
fn a_state_that_is_not_the_one_that_was_sent_is_refused() {
    type Damage = fn(&mut Toy);
    let cases: [(&str, Damage); 4] = [
        ("cannot be loaded: no state today", |guest| guest.fault = Some(Fault::Load)),
        ("is not the one that was sent", |guest| guest.fault = Some(Fault::Position)),
        ("is not the one that was sent", |guest| guest.fault = Some(Fault::Machine)),
        ("does not fit: 16384 bytes at 0x60000", |guest| guest.shrink(99)),
    ];
    for (want, damage) in cases {
        let mut pair = about_to_begin(&[], tuning(), config());
        damage(pair.b.guest());
        pair.rounds(20);
        let why = pair.b.desk.events.iter().find(|event| event.starts_with("Diverged")).cloned().unwrap_or_default();
        assert!(why.contains(want), "{why} instead of {want}");
        assert_eq!((pair.a.role(), pair.b.role()), (Role::Alone, Role::Halted));
        assert!(pair.a.desk.count("Asked(Unprotected") == 1 && pair.a.desk.mode == Mode::Open);
        assert_eq!(pair.b.desk.count("StateComplete"), 0);
        assert_eq!((pair.a.desk.hang_ups, pair.b.desk.hang_ups), (1, 1));
    }
}

/// Whoever looks on hears once of what changed in a turn, and not of the everyday.
#[test]
fn changes_are_told_and_the_everyday_is_not() {
    let mut pair = about_to_begin(&[(200_000, Step::Frame(b"reply"))], tuning(), config());
    pair.a.turn();
    assert_eq!(pair.a.desk.events.last().map(String::as_str), Some("Ran"));
    assert_eq!(pair.a.desk.count("Changed"), 1, "a transfer begins");
    let mut pair = pair.protect();
    let changes = pair.a.desk.count("Changed");
    pair.rounds(40);
    assert_eq!((pair.a.desk.count("Asked(Release"), pair.a.desk.count("Changed")), (1, changes));
    // Two things in one turn are a change.
    pair.b.driver.stop(&mut pair.b.desk);
    pair.b.turn();
    pair.carry();
    pair.a.turn();
    assert_eq!(pair.a.desk.count("Changed"), changes + 1, "{:?}", pair.a.desk.events);
}

/// A primary that asks for its first term stands still meanwhile, and that is no time that its guest has missed.
#[test]
fn a_guest_that_waits_for_its_term_loses_no_time() {
    let config = Config { arbiter: true, ..config() };
    let mut machine = Machine::new(Start::Primary, 1, &[], tuning(), config);
    machine.rest();
    assert_eq!((&machine.desk.asked[..], machine.position(), machine.desk.mode), (&[Term(1)][..], 0, Mode::Closed));
    machine.desk.now += 5_000_000;
    assert!(machine.guest().began.is_empty());
    machine.driver.node_mut().arbiter_answered(Time(machine.desk.now), Term(1), Verdict::Granted);
    machine.turn();
    assert_eq!((machine.position(), machine.desk.mode, machine.driver.clock_lag_ns()), (10_000, Mode::Open, 0));
    assert_eq!((machine.desk.announcements, &machine.guest().began[..]), (1, &[desk::DATE][..]));
}

const BLOCK: usize = 64 << 10;

/// A drive whose last block is a part of one; some blocks are zeros. The other one has something else on it.
fn with_drives(mut pair: Pair) -> Pair {
    let bytes = 40 * BLOCK + 1024;
    let byte = |at: usize| if (5 * BLOCK..30 * BLOCK).contains(&at) { 0 } else { (at / 1000) as u8 | 1 };
    pair.a.desk.drive = (0..bytes).map(byte).collect();
    pair.b.desk.drive = vec![0x77; bytes];
    pair
}

#[test]
fn a_drive_arrives_with_what_was_written_meanwhile() {
    let mut pair = with_drives(Pair::new(&[(10, Step::Sleep)], tuning()));
    pair.b.desk.copy = CopyState::Busy;
    pair.rounds(1);
    // Of a block that is copied already.
    let request =
        DiskRequest { id: 7, operation: DiskOperation::Write, start: BLOCK as u64 + 512, len: 512, durable: false };
    for round in 0..60 {
        pair.round();
        if round == 3 {
            assert!(pair.a.driver.is_transferring());
            pair.a.guest().asked.push_back(request);
            pair.a.turn();
            pair.a.desk.drive[BLOCK + 512..BLOCK + 1024].fill(0xEE);
            pair.a.desk.ends.push_back(DiskEnd { id: 7, status: DiskStatus::Done });
        }
    }
    assert!(pair.a.desk.drive == pair.b.desk.drive);
    // It is not a backup before its drive has all.
    assert_eq!((pair.b.role(), pair.a.driver.is_protected()), (Role::Loading, false));
    pair.b.desk.copy = CopyState::Done;
    pair.rounds(5);
    assert!(pair.a.driver.is_protected());
    // Nobody went on alone.
    assert!(pair.a.desk.reigns.is_empty() && pair.b.desk.reigns.is_empty());
}

#[test]
fn a_drive_that_fails_or_must_not_be_overwritten_ends_it() {
    let mut pair = with_drives(Pair::new(&[(10, Step::Sleep)], tuning()));
    pair.a.desk.unreadable = Some(33 * BLOCK as u64);
    pair.rounds(40);
    assert!(pair.a.desk.saw(&["DiskFailed(\"a new backup"]) && !pair.a.driver.is_protected());
    assert!(pair.a.desk.hang_ups > 0);
    // The guest goes on, with a drive of its own.
    assert_eq!((pair.a.role(), pair.a.desk.reigns.last()), (Role::Alone, Some(&(Term(1), false))));
    for (refused, copy, why) in [(true, CopyState::Done, "never"), (false, CopyState::Failed, "drive failed")] {
        let mut pair = with_drives(Pair::new(&[(10, Step::Sleep)], tuning()));
        (pair.b.desk.refuses_copy, pair.b.desk.copy) = (refused, copy);
        pair.rounds(60);
        assert!(pair.b.desk.events.iter().any(|event| event.starts_with("Diverged") && event.contains(why)));
        assert!(pair.a.role() == Role::Alone && pair.b.role() == Role::Halted);
        assert!(!refused || pair.b.desk.drive.iter().all(|&byte| byte == 0x77));
    }
}

/// The label of a disk that must not become this one's may arrive together with content.
#[test]
fn what_arrives_with_a_label_that_is_refused_is_not_stored() {
    let mut pair = with_drives(Pair::new(&[(10, Step::Sleep)], tuning()));
    pair.b.desk.refuses_copy = true;
    pair.rounds(1);
    (0..5).for_each(|_| _ = pair.a.turn());
    assert!(pair.a.desk.stream.len() > 2 * BLOCK);
    pair.carry();
    pair.b.turn();
    assert!(pair.b.desk.drive.iter().all(|&byte| byte == 0x77));
    assert_eq!((pair.b.desk.count("Diverged"), pair.b.role()), (1, Role::Halted));
}

/// The first machine is gone; what the second does last of what comes of that.
fn lose_a(pair: &mut Pair) -> Next {
    let now = Time(pair.b.desk.now);
    pair.b.driver.node_mut().disconnected(now);
    let mut next = Next::Again;
    for _ in 0..50 {
        pair.b.desk.now += 100_000;
        next = pair.b.turn();
    }
    next
}

/// What the guest says and a life that it begins wait until its drive says whose it is.
#[test]
fn the_gate_opens_when_the_drive_says_so() {
    let mut pair = with_drives(Pair::new(&[(10, Step::Sleep)], tuning())).protect();
    pair.b.desk.reign = CopyState::Busy;
    pair.b.desk.disk_ends_at = Some(START * 1000);
    let next = lose_a(&mut pair);
    assert_eq!((pair.b.role(), &pair.b.desk.reigns[..]), (Role::Alone, &[(Term(2), false)][..]));
    assert_eq!((pair.b.desk.mode, pair.b.desk.count("TookOver")), (Mode::Retained, 0));
    assert!(matches!(next, Next::Wait(Some(_))));
    let at = pair.b.position();
    pair.b.desk.reign = CopyState::Done;
    pair.b.rest();
    assert_eq!((pair.b.desk.mode, pair.b.desk.count("TookOver"), pair.b.desk.announcements), (Mode::Open, 1, 1));
    assert!(pair.b.position() >= at);
}

/// What its drive ends meanwhile is taken: else it would be due all the time, and the machine would never wait.
#[test]
fn a_guest_that_waits_for_its_drive_has_its_requests_looked_after() {
    let mut pair = with_drives(Pair::new(&[(10, Step::Sleep)], tuning())).protect();
    let request = DiskRequest { id: 7, operation: DiskOperation::Write, start: 0, len: 512, durable: false };
    pair.b.guest().asked.push_back(request);
    pair.b.desk.reign = CopyState::Busy;
    lose_a(&mut pair);
    assert_eq!((pair.b.role(), &pair.b.desk.begun[..]), (Role::Alone, &[request][..]));
    pair.b.desk.ends.push_back(DiskEnd { id: 7, status: DiskStatus::Done });
    pair.b.turn();
    assert!(pair.b.desk.ends.is_empty(), "the machine has heard of the end");
    assert_eq!(pair.b.desk.mode, Mode::Retained, "and still waits");
}

#[test]
fn a_drive_that_cannot_say_whose_it_is_ends_the_guest() {
    for refuses in [false, true] {
        let mut pair = with_drives(Pair::new(&[(10, Step::Sleep)], tuning())).protect();
        (pair.b.desk.reign, pair.b.desk.refuses_reign) = (CopyState::Failed, refuses);
        lose_a(&mut pair);
        assert_eq!((pair.b.role(), pair.b.desk.mode), (Role::Halted, Mode::Closed));
        assert_eq!((pair.b.desk.count("TookOver"), pair.b.desk.announcements), (0, 0));
        assert_eq!(pair.b.desk.count("Ended"), 1, "{:?}", pair.b.desk.events);
    }
    let config = Config { arbiter: true, ..config() };
    let mut machine = Machine::new(Start::Primary, 1, &[], tuning(), config);
    machine.desk.drive = vec![0; 4096];
    machine.desk.refuses_reign = true;
    machine.rest();
    machine.driver.node_mut().arbiter_answered(Time(machine.desk.now), Term(1), Verdict::Granted);
    machine.turn();
    assert!(machine.guest().began.is_empty());
    assert_eq!((machine.position(), machine.desk.mode, machine.desk.announcements), (0, Mode::Closed, 0));
}

#[test]
fn blocks_that_nobody_wants_any_more_are_forgotten() {
    let mut pair = with_drives(Pair::new(&[(10, Step::Sleep)], tuning()));
    pair.rounds(2);
    assert!(pair.a.driver.is_transferring());
    let before = pair.a.desk.forgotten_fetches;
    pair.a.driver.node_mut().disconnected(Time(START));
    pair.a.turn();
    assert_eq!((pair.a.driver.is_transferring(), pair.a.desk.forgotten_fetches), (false, before + 1));
}

#[test]
fn drives_on_one_side_alone_are_no_pair() {
    for side in [true, false] {
        let mut pair = with_drives(Pair::new(&[(10, Step::Sleep)], tuning()));
        if side {
            pair.a.desk.drive.clear()
        } else {
            pair.b.desk.drive.clear()
        }
        pair.rounds(60);
        assert!(pair.b.desk.count("Diverged") > 0 && pair.b.role() == Role::Halted, "{:?}", pair.b.desk.events);
    }
}
