//! Rules that are switched off do what they are for, and nothing without that.

use super::*;
use crate::broken::BrokenRule;

fn broken(exits: &[Exit], rule: BrokenRule) -> Guest {
    let mut guest = guest(exits, false);
    guest.break_rule(rule, || 0x1_0007);
    guest
}

/// The guest as a machine that follows has it.
fn follower(rule: BrokenRule) -> (Guest, usize) {
    let mut first = guest(&[], false);
    assert_eq!(first.run(Position(10), &mut Nothing), Stop::Target);
    let state = first.save();
    let exits = [Exit::Cpuid, Exit::Cpuid];
    let mut guest = broken(&exits, rule);
    guest.load(&state).unwrap();
    (guest, exits.len())
}

/// How many instructions the guest has executed is seen by the exits that are left: the script has one for each entry.
fn entries(rule: BrokenRule, act: impl FnOnce(&mut Guest)) -> u64 {
    let (mut guest, before) = follower(rule);
    act(&mut guest);
    assert_eq!(guest.position(), Position(10), "nobody counts it");
    // Each Cpuid that is left exits once more.
    let _ = guest.run(Position(10 + before as u64), &mut Nothing);
    before as u64 - guest.exits().0[Exit::Cpuid.kind()]
}

#[test]
fn inputs_are_late_by_an_instruction_where_exact_stops_are_switched_off() {
    assert_eq!(entries(BrokenRule::ExactStop, |guest| guest.packet_in(&[0; 60])), 1);
    assert_eq!(entries(BrokenRule::ExactStop, |guest| guest.console_in(b"x")), 1);
    assert_eq!(entries(BrokenRule::ExactStop, |_| {}), 0);
    assert_eq!(entries(BrokenRule::Time, |guest| guest.packet_in(&[0; 60])), 0);
    // The machine that created the guest is right.
    let mut first = broken(&[], BrokenRule::ExactStop);
    first.packet_in(&[0; 60]);
    assert_eq!((first.position(), first.exits().0.iter().sum::<u64>()), (Position(0), 0));
}

#[test]
fn reads_of_the_clock_are_the_machines_own_where_time_is_switched_off() {
    let read = |rule: Option<BrokenRule>| {
        let mut guest = guest(&[Exit::Rdtsc, Exit::Rdtsc], false);
        if let Some(rule) = rule {
            guest.break_rule(rule, || 0x1_0007);
        }
        let mut tsc = || {
            let target = guest.position().after(1);
            assert_eq!(guest.run(target, &mut Nothing), Stop::Target);
            let registers = guest.vcpu.registers();
            registers.gpr[gpr::RDX] << 32 | registers.gpr[gpr::RAX]
        };
        [tsc(), tsc()]
    };
    let right = read(None);
    assert_eq!(read(Some(BrokenRule::Time)), [right[0] + 7, right[1] + 14]);
    assert_eq!(read(Some(BrokenRule::Drain)), right);
    let mut guest = guest(&[], false);
    guest.counter.lends_tsc = true;
    guest.break_rule(BrokenRule::Time, || 0);
    assert!(!guest.counter.lends_tsc, "or it would not be asked");
}
