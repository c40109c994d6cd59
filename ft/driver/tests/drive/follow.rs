//! A guest that follows a log: how far it runs, what is applied where, what shows that it is another guest, going live.

use super::*;
use pollux_driver::Duty;
use pollux_ft::{Control, Entry, EntryRef, Kind, Position};

/// A pair whose primary has not moved since the first digest; the backup is there, too.
fn level(script: &[(u64, Step)]) -> (Pair, u64) {
    let mut pair = Pair::protected(script, tuning());
    let at = pair.a.position();
    log(&mut pair, at, EntryRef::Horizon);
    for _ in 0..100 {
        pair.b.turn();
    }
    assert_eq!(pair.b.position(), at);
    (pair, at)
}

/// An entry of the primary's reaches the backup, which does nothing yet.
fn log(pair: &mut Pair, at: u64, entry: EntryRef<'_>) {
    let now = Time(pair.a.desk.now);
    let node = pair.a.driver.node_mut();
    node.append(now, Position(at), entry).unwrap();
    node.flush(now);
    let taken = pair.b.driver.node_mut().receive(now, node.transmit());
    node.transmitted(taken);
}

/// Why the backup ended.
fn why(pair: &mut Pair) -> String {
    for _ in 0..100 {
        pair.b.turn();
        if let Some(event) = pair.b.desk.events.iter().find(|event| event.starts_with("Diverged")) {
            return event.clone();
        }
    }
    String::from("nothing")
}

#[test]
fn it_runs_to_the_next_entry_in_slices_and_no_further() {
    let (mut pair, at) = level(&[]);
    log(&mut pair, at + 7_000, EntryRef::PacketIn(b"in"));
    log(&mut pair, at + 9_000, EntryRef::Horizon);
    pair.b.guest().targets.clear();
    let turns: Vec<_> =
        (0..6).map(|_| (pair.b.turn(), pair.b.position() - at, pair.b.desk.count("Replayed"))).collect();
    let steps: Vec<_> =
        turns.iter().map(|(next, position, applied)| (*next == Next::Again, *position, *applied)).collect();
    // The digest, then the packet; a turn that applies something does not run.
    assert_eq!(steps[..5], [(true, 5_000, 1), (true, 7_000, 1), (true, 7_000, 2), (true, 9_000, 2), (false, 9_000, 2)]);
    assert_eq!(pair.b.guest().targets, [at + 5_000, at + 7_000, at + 9_000]);
}

#[test]
fn its_console_is_not_the_clients_affair() {
    let (mut pair, at) = level(&[(200_000, Step::Console(b"login:"))]);
    log(&mut pair, at.max(201_000), EntryRef::Horizon);
    why(&mut pair);
    assert!(pair.b.position() > 200_000 && pair.b.desk.console.is_empty());
}

/// The log says where the guest was, and what it did there.
#[test]
fn a_guest_that_does_something_else_is_found() {
    type Change = fn(&mut Toy, u64);
    let cases: [(&str, u64, Change); 9] = [
        ("the guest sleeps at", 7_000, |guest, at| guest.script = vec![(at + 5_000, Step::Sleep)]),
        ("the guest ended at", 7_000, |guest, at| guest.script = vec![(at + 5_000, Step::Off)]),
        ("the guest ended at", 7_000, |guest, at| guest.script = vec![(at + 5_000, Step::Crash)]),
        ("nothing", 7_000, |guest, at| guest.script = vec![(at + 7_000, Step::Off)]),
        ("nothing", 7_000, |guest, at| guest.script = vec![(at + 7_000, Step::Crash)]),
        ("entry 3: CPU or platform differs", 0, |guest, _| guest.flipped = 1),
        ("entry 3: memory differs", 0, |guest, _| guest.fill(39, 1)),
        ("entry 3: CPU or platform differs", 0, |guest, _| {
            guest.flipped = 1;
            guest.fill(39, 1);
        }),
        ("nothing", 0, |_, _| ()),
    ];
    for (want, ahead, change) in cases {
        let (mut pair, at) = level(&[]);
        change(pair.b.guest(), at);
        let (guest, slice) = (pair.a.guest(), tuning().digests.slice);
        let machine = pollux_driver::Guest::hash(guest);
        let memory = pollux_driver::digest::hash_slice(pollux_driver::Guest::memory(guest), 0, slice);
        let entry = if ahead > 0 { EntryRef::Output } else { EntryRef::Digest { machine, slice: 0, memory } };
        log(&mut pair, at + ahead, entry);
        let why = why(&mut pair);
        assert!(why.contains(want), "{why} instead of {want}");
        assert_eq!(
            (pair.b.position(), pair.b.role() == Role::Halted),
            (if want.contains("at") && ahead > 0 { at + 5_000 } else { at + ahead }, want != "nothing")
        );
    }
}

#[test]
fn a_time_that_no_guest_lives_to_see_is_none() {
    for (base_ns, want) in [(1 << 62, "nothing"), ((1 << 62) + 1, "is absurd"), (0, "guest time would run backwards")] {
        let (mut pair, at) = level(&[]);
        log(&mut pair, at, EntryRef::Clock { base_ns, rate: 1 << 32 });
        let why = why(&mut pair);
        assert!(why.contains(want), "{base_ns}: {why}");
        assert_eq!(pair.b.role() == Role::Halted, want != "nothing");
    }
}

#[test]
fn a_reset_waits_for_its_shares_at_its_position() {
    let (mut pair, at) = level(&[]);
    pair.b.guest().shares = 3;
    log(&mut pair, at + 1_000, EntryRef::Control(Control::Reset));
    log(&mut pair, at + 2_000, EntryRef::Horizon);
    pair.b.turn();
    for _ in 0..2 {
        assert_eq!(pair.b.turn(), Next::Again);
        assert_eq!((pair.b.position(), pair.b.guest().seen_at(Kind::Control)), (at + 1_000, vec![]));
    }
    pair.b.turn();
    assert_eq!(pair.b.guest().seen_at(Kind::Control), [at + 1_000]);
    pair.b.turn();
    assert_eq!(pair.b.position(), at + 2_000);
}

/// Nobody says any more what the guest did at the end of its log: whoever takes it over does it.
#[test]
fn a_guest_that_ended_at_the_end_of_the_log_ends_with_its_new_primary() {
    for (step, kind) in [(Step::Off, "PowerOff"), (Step::Crash, "Reset"), (Step::Reset, "Reset")] {
        let (mut pair, at) = level(&[]);
        pair.b.guest().script = vec![(at + 1_000, step)];
        log(&mut pair, at + 1_000, EntryRef::Horizon);
        pair.b.rest();
        take_over(&mut pair);
        (0..5).for_each(|_| _ = pair.b.turn());
        let seen = pair.b.guest().seen.last().cloned();
        assert!(seen.is_some_and(|(position, entry)| position == at + 1_000 && format!("{entry:?}").contains(kind)));
        assert_eq!(pair.b.driver.has_ended(), step == Step::Off);
    }
}

/// The primary falls silent until the backup takes it for dead; when that is.
fn suspect(pair: &mut Pair) -> u64 {
    while pair.b.role() == Role::Backup {
        pair.b.desk.now += 10_000;
        pair.b.driver.node_mut().tick(Time(pair.b.desk.now));
    }
    pair.b.desk.now
}

/// The primary falls silent until the backup is live.
fn take_over(pair: &mut Pair) {
    for _ in 0..200 {
        pair.b.desk.now += 10_000;
        while pair.b.turn() == Next::Again {
            if pair.b.driver.duty() == Duty::Live {
                return;
            }
        }
    }
    panic!("nobody takes over: {:?}", pair.b.desk.events);
}

#[test]
fn a_takeover_says_how_long_its_parts_took() {
    let (mut pair, at) = level(&[(200_000, Step::Frame(b"reply"))]);
    log(&mut pair, 200_100, EntryRef::Horizon);
    let heard = pair.b.driver.node().last_heard().0;
    pair.b.desk.open_takes = 40;
    let turns = (200_100 - at).div_ceil(5_000);
    let suspected = suspect(&mut pair);
    // 10 ms a turn from here on.
    for _ in 0..turns + 10 {
        pair.b.turn();
        pair.b.desk.now += 10_000;
        if pair.b.driver.duty() == Duty::Live {
            break;
        }
    }
    let said = pair.b.desk.events.iter().find(|event| event.starts_with("TookOver")).cloned().unwrap();
    let (detect, drain) = (suspected - heard, turns * 10_000);
    let want = format!(
        "TookOver(TakeoverTimes {{ term: Term(2), planned: false, detect: Span({detect}), drain: Span({drain})"
    );
    assert!(said.starts_with(&want), "{said}\n{want}");
    assert!(said.ends_with("arbiter: Span(0), announce: Span(40) })"), "{said}");
    assert!(pair.b.desk.saw(&["AskedToGoLive", "WentLive", "TookOver"]));
    assert_eq!(pair.b.desk.left, [b"reply"], "what the primary is not known to have sent leaves");
    assert_eq!((pair.b.desk.mode, pair.b.desk.announcements), (Mode::Open, 1));
}

/// The newcomer goes on from the time at which the log ended, at the speed that the guest had on its primary.
#[test]
fn guest_time_goes_on_after_a_takeover() {
    let (mut pair, at) = level(&[]);
    let base = pollux_driver::Guest::time(pair.b.driver.guest()).0;
    for _ in 0..40 {
        log(&mut pair, at, EntryRef::Clock { base_ns: base, rate: 50 << 32 });
    }
    pair.b.rest();
    take_over(&mut pair);
    assert_eq!(pair.b.driver.clock_lag_ns(), 0, "however long it stood still");
    pair.b.guest().interrupted_at = Some(pair.b.position());
    pair.b.desk.now += 50_000;
    (0..3).for_each(|_| _ = pair.b.turn());
    let clock = pair.b.guest().seen.iter().rev().find_map(|(position, entry)| match entry {
        Entry::Clock { rate, base_ns } => Some((*position, *rate, *base_ns)),
        _ => None,
    });
    let (position, rate, base_now) = clock.unwrap();
    assert!(position <= at + 20_000 && base_now < base + 2_000_000, "{position} {base_now}");
    // It has 100 ms of time to make up in 50 ms, at 50 ns a tick.
    let wanted = 100_000_000 - (base_now - base);
    let want = u128::from(50u64 << 32) * u128::from(wanted) / 50_000_000;
    assert!(u128::from(rate).abs_diff(want) < want / 50, "{rate:x} {want:x}");
}

#[test]
fn a_takeover_that_is_called_off_leaves_a_backup() {
    let (mut pair, at) = level(&[]);
    log(&mut pair, at + 50_000, EntryRef::Horizon);
    suspect(&mut pair);
    pair.b.turn();
    assert_eq!((pair.b.role(), pair.b.position()), (Role::Draining, at + 5_000));
    pair.a.driver.node_mut().tick(Time(START + 200_000));
    pair.a.turn();
    pair.carry();
    pair.b.turn();
    assert_eq!((pair.b.role(), pair.b.position()), (Role::Backup, at + 10_000));
}

/// Heartbeats must not wait for a long log.
#[test]
fn so_many_entries_are_applied_in_a_turn() {
    let (mut pair, at) = level(&[]);
    for _ in 0..100 {
        log(&mut pair, at, EntryRef::ConsoleIn(b"x"));
    }
    for want in [64, 100] {
        assert_eq!((pair.b.turn(), pair.b.guest().seen_at(Kind::Console).len()), (Next::Again, want));
    }
}
