//! A guest that runs for clients: where it is stopped, what is logged there, and when it waits.

use super::*;
use pollux_driver::digest::Often;
use pollux_driver::{Boundary, Duty, NotTyped};
use pollux_ft::{Entry, EntryRef, Kind, Position, flow};

/// A primary that nobody follows.
fn alone(script: &[(u64, Step)], tuning: Tuning) -> Machine {
    Machine::new(Start::Primary, 1, script, tuning, config())
}

fn last_target(machine: &mut Machine) -> u64 {
    *machine.guest().targets.last().expect("it has run")
}

/// The next turn leaves the guest 123 ticks on, away from an exact stop.
fn interrupt(machine: &mut Machine) -> u64 {
    let at = machine.position() + 123;
    machine.guest().interrupted_at = Some(at);
    machine.turn();
    assert!(machine.position() == at && !machine.guest().settled);
    at
}

/// A backup's life is the primary's. (With an arbiter: `a_guest_that_waits_for_its_term_loses_no_time`.)
#[test]
fn a_guest_that_is_live_from_the_start_begins_its_life_there() {
    assert_eq!(alone(&[], tuning()).guest().began, [desk::DATE]);
    let mut pair = Pair::protected(&[], tuning());
    assert_eq!((&pair.a.guest().began[..], pair.b.guest().began.len()), (&[desk::DATE][..], 0));
}

#[test]
fn an_input_is_logged_first_and_seen_by_both_guests_at_the_earliest_exact_stop() {
    let mut pair = Pair::protected(&[], tuning());
    let at = interrupt(&mut pair.a);
    pair.a.desk.inputs.push_back(b"question".to_vec());
    pair.a.turn();
    assert_eq!((last_target(&mut pair.a), pair.a.guest().seen_at(Kind::Packet)), (at + 1, vec![]));
    pair.a.turn();
    assert_eq!(pair.a.guest().seen_at(Kind::Packet), [at + 1]);
    assert!(pair.a.desk.saw(&["Logged", "Applied(Some(Seq(2)), PacketIn", "Ran"]), "{:?}", pair.a.desk.events);
    pair.pass(20_000);
    pair.rounds(80);
    assert_eq!(pair.b.guest().seen_at(Kind::Packet), [at + 1]);
    assert!(pair.b.desk.saw(&["StateComplete", "Followed", "Replayed"]));
}

/// Whatever waits for an exact stop ends the run right ahead; a guest for which nothing waits is not stopped for nothing.
#[test]
fn a_guest_is_stopped_right_ahead_for_what_waits_and_for_nothing_else() {
    type Wait = fn(&mut Machine);
    let waits: [(&str, Wait); 5] = [
        ("a frame", |machine| machine.desk.inputs.push_back(vec![1])),
        ("text", |machine| machine.driver.type_text(b"x").unwrap()),
        ("the clock", |machine| machine.desk.now += 50_000),
        ("a switch", |machine| assert!(machine.driver.request_switch())),
        ("nothing", |_| ()),
    ];
    for (what, wait) in waits {
        let mut pair = Pair::protected(&[], tuning());
        let at = interrupt(&mut pair.a);
        wait(&mut pair.a);
        pair.a.turn();
        let target = if what == "nothing" { at + 10_000 } else { at + 1 };
        assert_eq!(last_target(&mut pair.a), target, "{what}");
        assert!(pair.a.guest().settled, "{what}");
    }
}

#[test]
fn a_long_text_is_typed_in_pieces_with_work_between_them() {
    let mut pair = Pair::protected(&[], tuning());
    assert_eq!(pair.b.driver.type_text(b"x"), Err(NotTyped::Elsewhere));
    pair.a.driver.type_text(&[b'y'; 100]).unwrap();
    assert!(pair.a.driver.request_switch() && pair.a.driver.is_switch_due());
    let from = pair.a.position();
    pair.a.turn();
    pair.a.turn();
    let typed: Vec<_> =
        pair.a.guest().seen.iter().filter(|(_, entry)| entry.borrow().kind() == Kind::Console).collect();
    let lengths: Vec<_> = typed.iter().map(|(at, entry)| (*at - from, entry.borrow().data_len())).collect();
    assert_eq!(lengths, [(0, 64), (10_000, 36)]);
    assert_eq!(pair.a.desk.count("HandsOver"), 1, "the switch waits for what was typed before it");
    assert!(!pair.a.driver.is_switch_due());
}

#[test]
fn so_much_text_waits_and_no_more() {
    let mut machine = alone(&[], tuning());
    assert_eq!(machine.driver.type_text(&[b'x'; 64 << 10]), Ok(()));
    assert_eq!(machine.driver.type_text(b"x"), Err(NotTyped::TooMuch));
    assert!(!machine.driver.request_switch() && !machine.driver.is_switch_due(), "there is nobody to hand over to");
    for reason in [NotTyped::Elsewhere, NotTyped::TooMuch] {
        assert!(reason.to_string().contains("the guest"));
    }
}

#[test]
fn a_run_ends_at_the_first_thing_that_is_due() {
    // The slice.
    let mut machine = alone(&[], tuning());
    machine.turn();
    machine.turn();
    assert_eq!(machine.guest().targets, [10_000, 20_000]);
    // The entry for output that waits: for a guest that goes on 3000 ticks after its frame, once one waits for it.
    let mut pair = Pair::protected(&[(200_000, Step::Frame(b"reply"))], tuning());
    while pair.a.position() < 200_000 {
        pair.a.turn();
    }
    pair.a.turn();
    assert_eq!((last_target(&mut pair.a), pair.a.desk.held.len()), (203_000, 0));
    pair.a.turn();
    assert_eq!(pair.a.desk.held, [(2, b"reply".to_vec())]);
    // The next digest of who is followed.
    let digests = Often { ticks: 4_000, slice: 40 * 1024, ..Often::default() };
    let mut pair = Pair::protected(&[], Tuning { digests, ..tuning() });
    pair.a.turn();
    pair.a.turn();
    let at = pair.a.guest().seen_at(Kind::Digest);
    assert_eq!(last_target(&mut pair.a), at.last().unwrap() + 4_000);
    // At a fixed rate, the step of a guest whose time is behind.
    let rate = toy::TICK_NS << 32;
    let mut machine = alone(&[], Tuning { rates: rate..=rate, slice: 100_000, ..tuning() });
    machine.desk.now += 7_000;
    machine.turn();
    assert_eq!(last_target(&mut machine), 20_000);
    machine.turn();
    assert_eq!(machine.guest().seen_at(Kind::Clock), [20_000]);
}

#[test]
fn a_twin_that_is_behind_slows_the_guest_down() {
    let mut pair = Pair::protected(&[], Tuning { lag_bound_ns: 60_300_000, ..tuning() });
    assert_eq!(pair.a.driver.share(), flow::FULL);
    // The speed is a guess: a tick may take 200 ns. Nobody tells the backup that it may run.
    let lag = |pair: &Pair| pair.a.driver.node().lag(Time(pair.a.desk.now)).ticks;
    let (mut waits, mut steps) = (0, Vec::new());
    for _ in 0..60 {
        let before = pair.a.position();
        let next = pair.a.turn();
        if next == Next::Again {
            assert_eq!(waits, 0);
            steps.push(pair.a.position() - before);
        } else {
            assert!(matches!(next, Next::Wait(Some(until)) if until > Time(pair.a.desk.now)), "{next:?}");
            assert_eq!(pair.a.position(), before);
            waits += 1;
        }
    }
    // Whole slices up to the bound; once there, it may look around once more, a tick ahead.
    let slices = steps.iter().take_while(|step| **step == 10_000).count();
    assert!(
        slices > 10 && steps[slices..].len() <= 2 && steps[slices + 1..].iter().all(|step| *step == 1),
        "{steps:?}"
    );
    assert!((301_500..=301_501).contains(&lag(&pair)), "{}", lag(&pair));
    assert_eq!((pair.a.driver.share(), pair.a.desk.count("HeldBack")), (0, waits));
    assert!(waits > 0);
    let from = pair.a.position();
    // It is told where the guest is, and runs there.
    for _ in 0..2 {
        pair.pass(50_000);
        pair.a.turn();
    }
    pair.carry();
    (0..100).for_each(|_| _ = pair.b.turn());
    for _ in 0..3 {
        pair.pass(50_000);
        pair.b.turn();
    }
    pair.carry();
    pair.a.turn();
    assert!(pair.b.position() >= from && pair.a.position() > from);
    assert_eq!(pair.a.driver.share(), flow::FULL);
}

#[test]
fn a_guest_waits_for_room_in_the_card() {
    let mut machine = alone(&[], tuning());
    machine.desk.full = true;
    assert_eq!(machine.turn(), Next::Wait(Some(Time(START + 700))));
    assert_eq!((machine.position(), machine.desk.count("HeldBack")), (0, 1));
}

/// A backup may run to the newest entry: one that hears of none for 50 ms is told how far the guest is.
#[test]
fn a_guest_without_entries_is_followed_by_horizons() {
    let mut pair = Pair::protected(&[], tuning());
    let (at, logged) = (pair.a.position(), pair.a.desk.count("Logged"));
    pair.pass(29_999);
    pair.round();
    assert_eq!((pair.a.desk.count("Logged"), logged), (1, 1), "the digest was 49.999 ms ago");
    pair.pass(1);
    pair.round();
    assert_eq!(pair.a.desk.count("Logged"), 2);
    pair.pass(50_000);
    pair.rounds(80);
    assert!(pair.b.position() > at, "{} of {at}", pair.b.position());
    // With nobody to tell, nothing is told.
    let mut machine = alone(&[], tuning());
    machine.turn();
    machine.desk.now += 49_000;
    machine.turn();
    machine.desk.now += 1_000;
    machine.turn();
    assert_eq!(machine.desk.count("Logged"), 0);
}

#[test]
fn a_sleeper_waits_for_the_first_that_may_wake_it() {
    let mut machine = alone(&[(5_000, Step::Sleep)], tuning());
    machine.guest().deadline = Some(7_000_000);
    assert_eq!(machine.rest(), Next::Wait(Some(Time(START + 7_000))));
    assert_eq!(machine.desk.console, b"");
    machine.desk.disk_ends_at = Some(START + 6_000);
    assert_eq!(machine.rest(), Next::Wait(Some(Time(START + 7_000))), "it asked nothing of its disk");
    // It wakes at wall time, which its own time is told first.
    machine.desk.now += 6_999;
    machine.turn();
    assert_eq!((machine.position(), machine.guest().seen.len()), (5_000, 0));
    machine.desk.now += 1;
    machine.turn();
    let seen = machine.guest().seen.clone();
    assert!(matches!(seen[..], [(5_000, Entry::Clock { base_ns: 7_000_000, .. })]), "{seen:?}");
    assert!(machine.position() > 5_000);
    // One that somebody follows tells first where it sleeps.
    let mut pair = Pair::protected(&[(200_000, Step::Sleep)], tuning());
    assert_eq!(pair.a.rest(), Next::Wait(Some(Time(START + 50_000))), "50 ms after the first digest");
}

#[test]
fn a_sleeper_that_is_woken_by_a_frame_hears_of_the_time_only_if_it_slept_for_long() {
    for (slept, clocks) in [(2_499, 0), (2_500, 1)] {
        let mut machine = alone(&[(5_000, Step::Sleep)], tuning());
        machine.rest();
        machine.desk.now += slept;
        machine.turn();
        assert_eq!(machine.guest().seen_at(Kind::Clock), [], "nobody wakes it");
        machine.desk.inputs.push_back(vec![1]);
        machine.turn();
        assert_eq!(machine.guest().seen_at(Kind::Clock).len(), clocks, "{slept}");
        assert_eq!(
            machine.guest().seen.last().map(|(at, entry)| (*at, entry.borrow().kind())),
            Some((5_000, Kind::Packet))
        );
    }
}

#[test]
fn a_running_guest_is_told_the_time_every_50_ms() {
    let mut machine = alone(&[(5_000, Step::Console(b"login:"))], tuning());
    machine.turn();
    assert_eq!(machine.desk.console, b"login:");
    assert_eq!(machine.driver.clock_lag_ns(), 0, "1 ms ahead");
    machine.desk.now += 49_999;
    machine.turn();
    assert_eq!((machine.driver.clock_lag_ns(), machine.guest().seen.len()), (47_999_000, 0));
    machine.desk.now += 1;
    machine.turn();
    assert_eq!(machine.guest().seen_at(Kind::Clock), [20_000]);
    // Who sleeps is not behind.
    let mut machine = alone(&[(0, Step::Sleep)], tuning());
    machine.desk.now += 10_000;
    machine.rest();
    assert_eq!(machine.driver.clock_lag_ns(), 0);
}

/// What the guest said before it ends leaves, if need be with the backup's leave.
#[test]
fn a_guest_that_switches_itself_off_ends_both_machines_once() {
    let script = [(200_000, Step::Frame(b"bye")), (200_001, Step::Off)];
    let mut pair = Pair::protected(&script, tuning());
    while pair.a.position() < 200_001 {
        pair.a.turn();
    }
    pair.a.turn();
    assert_eq!((pair.a.role(), pair.a.driver.duty()), (Role::Protected, Duty::Wait), "until its twin knows");
    pair.rounds(80);
    for machine in [&mut pair.a, &mut pair.b] {
        assert_eq!((machine.role(), machine.driver.duty()), (Role::Halted, Duty::Wait));
        assert_eq!(machine.desk.count("Ended"), 1, "{:?}", machine.desk.events);
        assert!(machine.driver.has_ended() && machine.desk.mode == Mode::Closed);
        assert_eq!(machine.guest().seen_at(Kind::Control), [200_001]);
    }
    assert_eq!(pair.a.desk.left.concat(), b"bye");
    assert!(pair.a.desk.saw(&["Applied(Some(Seq(3)), Control(PowerOff)", "Ended"]), "{:?}", pair.a.desk.events);
    // Alone, too; one that is stopped says so.
    let mut machine = alone(&script[1..], tuning());
    while machine.position() < 200_001 {
        machine.turn();
    }
    machine.rest();
    assert!(machine.driver.has_ended() && machine.role() == Role::Halted);
    let mut machine = alone(&[], tuning());
    assert!(!machine.driver.has_ended());
    machine.driver.stop(&mut machine.desk);
    assert_eq!(machine.desk.events, ["Ended(\"stopped by command\")"]);
    machine.rest();
    assert_eq!(machine.desk.count("Ended"), 1);
}

/// A reset takes several turns, and is the same on both sides; so is a crash.
#[test]
fn a_reset_is_prepared_in_shares_and_happens_at_one_position() {
    for step in [Step::Reset, Step::Crash] {
        let mut pair = Pair::protected(&[(200_000, Step::Frame(b"last")), (200_001, step)], tuning());
        pair.a.guest().shares = 3;
        while pair.a.position() < 200_001 {
            pair.a.turn();
        }
        assert_eq!(pair.a.turn(), Next::Again);
        assert_eq!(pair.a.guest().seen_at(Kind::Control), [], "only a share is done");
        pair.rounds(80);
        for machine in [&mut pair.a, &mut pair.b] {
            assert_eq!(machine.guest().seen_at(Kind::Control), [200_001], "{step:?}");
            assert!(!machine.driver.has_ended());
        }
        assert!(pair.a.position() > 200_001 && pair.b.role() == Role::Backup);
        assert_eq!(pair.a.desk.left.concat(), b"last");
    }
    let mut machine = alone(&[(100, Step::Reset)], tuning());
    machine.guest().fault = Some(toy::Fault::Reset);
    machine.rest();
    assert_eq!((machine.desk.count("Ended(\"no reset today"), machine.role()), (1, Role::Halted));
}

#[test]
fn a_switch_hands_the_guest_over_where_it_stands() {
    let script = [(200_000, Step::Frame(b"mine")), (210_000, Step::Frame(b"yours"))];
    let mut pair = Pair::protected(&script, tuning());
    while pair.a.position() < 200_000 {
        pair.a.turn();
    }
    assert!(pair.a.driver.request_switch());
    pair.a.desk.inputs.push_back(vec![1]);
    pair.round();
    assert!(pair.a.desk.saw(&["HandsOver(Seq(4))"]), "packet, output, hand-over: {:?}", pair.a.desk.events);
    pair.rounds(80);
    assert!(pair.b.driver.duty() == Duty::Live && pair.b.position() > 210_000);
    assert_eq!([pair.a.desk.left.concat(), pair.b.desk.left.concat()].concat(), b"mineyours");
    assert_eq!((pair.a.desk.mode, pair.a.desk.forgotten_inputs), (Mode::Closed, 1));
    assert!(!pair.a.driver.is_switch_due());
}

#[test]
fn a_switch_whose_backup_is_lost_before_it_does_not_happen() {
    let mut pair = Pair::protected(&[], tuning());
    assert!(pair.a.driver.request_switch());
    pair.a.driver.node_mut().disconnected(Time(START));
    pair.a.turn();
    assert_eq!((pair.a.desk.count("HandOverFailed"), pair.a.driver.is_switch_due()), (1, false));
    pair.a.turn();
    assert_eq!(pair.a.desk.count("HandOverFailed"), 1);
    assert!(pair.a.driver.duty() == Duty::Live);
}

/// Frames that could not be sent yet are not reported, and those that may leave do as soon as they can.
#[test]
fn frames_leave_when_the_backup_has_their_entry() {
    let mut pair = Pair::protected(&[(200_000, Step::Frame(b"reply")), (200_001, Step::Sleep)], tuning());
    while pair.a.position() < 200_001 {
        pair.a.turn();
    }
    pair.a.turn();
    assert_eq!((pair.a.desk.held.len(), pair.a.desk.left.len()), (1, 0), "a sleeper makes no more");
    pair.rounds(80);
    assert_eq!((pair.a.desk.held.len(), pair.a.desk.left.concat()), (0, b"reply".to_vec()));
    // The backup keeps it until it knows that it has left.
    assert_eq!(pair.b.desk.held, [(200_000, b"reply".to_vec())]);
    pair.a.desk.inputs.push_back(vec![1]);
    pair.a.turn();
    pair.pass(10_000);
    pair.rounds(5);
    assert_eq!(pair.b.desk.held, []);
}

/// The frames of a guest whose log is full stay held, and it runs on until something does not go without an entry.
#[test]
fn a_full_log_stops_what_needs_an_entry() {
    let config = Config { max_entries: 16, ..config() };
    let mut pair = Pair::with(&[(200_000, Step::Frame(b"reply"))], tuning(), config).protect();
    while pair.a.position() < 200_000 {
        pair.a.turn();
    }
    let now = Time(pair.a.desk.now);
    while pair.a.driver.node_mut().append(now, Position(200_000), EntryRef::ConsoleIn(b"x")).is_ok() {}
    (0..5).for_each(|_| assert_eq!(pair.a.turn(), Next::Again));
    assert!(pair.a.position() > 210_000 && pair.a.desk.unsealed.len() == 1, "{}", pair.a.position());
    let (at, retry) = (pair.a.position(), Next::Wait(Some(now.after(Span(700)))));
    pair.a.desk.inputs.push_back(b"one".to_vec());
    assert_eq!((pair.a.turn(), pair.a.desk.inputs.len(), pair.a.position()), (retry, 1, at));
    pair.a.desk.inputs.clear();
    pair.a.driver.type_text(b"two").unwrap();
    assert_eq!((pair.a.turn(), pair.a.position()), (retry, at));
    assert!(pair.a.guest().seen_at(Kind::Console).is_empty());
    // When the backup has caught up, all of it finds its place.
    pair.pass(50_000);
    pair.rounds(60);
    pair.pass(50_000);
    pair.rounds(10);
    assert_eq!((pair.a.guest().seen_at(Kind::Console), pair.a.desk.left.concat()), (vec![at], b"reply".to_vec()));
}

/// A machine that goes out says nothing more.
#[test]
fn nothing_is_sent_when_the_power_fails() {
    let mut pair = Pair::protected(&[], tuning());
    pair.a.desk.power = Some(Boundary::Send);
    for _ in 0..3 {
        pair.pass(100_000);
        pair.a.turn();
    }
    assert!(pair.a.desk.datagrams.is_empty() && pair.a.desk.stream.is_empty());
    assert!(!pair.a.driver.node().transmit().is_empty());
    pair.a.desk.power = None;
    pair.a.turn();
    assert!(!pair.a.desk.datagrams.is_empty() && !pair.a.desk.stream.is_empty());
}

/// A log that waits for company is sent when the guest has run for long enough.
#[test]
fn a_guest_that_runs_is_told_of() {
    let tuning = tuning();
    let marks = Waits { untold: Span(6_000), ..tuning.marks };
    let mut pair = Pair::protected(&[], Tuning { marks, ..tuning });
    // A tick may take 200 ns: three slices are 6 ms.
    let told = |pair: &mut Pair| {
        let (at, now) = (pair.a.position(), Time(pair.a.desk.now));
        pair.a.driver.node_mut().append(now, Position(at), EntryRef::Horizon).unwrap();
        let turns = (1..10).find(|_| pair.a.turn() == Next::Again && !pair.a.desk.stream.is_empty());
        pair.a.desk.stream.clear();
        turns
    };
    told(&mut pair);
    assert_eq!([told(&mut pair), told(&mut pair)], [Some(3); 2]);
}
