//! Where the guest is, told to the client network.

use super::*;
use pollux_driver::Duty;

/// A pair whose backup has taken over, and whose former primary knows nothing of it.
fn taken_over() -> Pair {
    let mut pair = Pair::protected(&[], tuning());
    for _ in 0..300 {
        pair.b.desk.now += 10_000;
        pair.b.turn();
        if pair.b.driver.duty() == Duty::Live {
            return pair;
        }
    }
    panic!("nobody takes over");
}

/// How often it is told within `ms`, at a turn each ms.
fn told(machine: &mut Machine, ms: u64) -> usize {
    let before = machine.desk.announcements;
    for _ in 0..ms {
        machine.desk.now += 1_000;
        machine.turn();
    }
    machine.desk.announcements - before
}

#[test]
fn it_is_told_again_after_a_takeover_and_after_each_claim_of_a_former_primary() {
    let mut pair = taken_over();
    assert_eq!(pair.b.desk.announcements, 1);
    let counts = [99, 1, 99, 1, 2_500, 5_000].map(|ms| told(&mut pair.b, ms));
    assert_eq!(counts, [0, 1, 0, 1, 3, 0]);
    // The former primary was away, and says that it is there.
    pair.a.desk.now += 200_000;
    pair.a.driver.node_mut().tick(Time(pair.a.desk.now));
    let claim = pair.a.driver.node_mut().poll_datagram(Time(pair.a.desk.now)).expect("a heartbeat is due");
    pair.b.driver.node_mut().heartbeat_received(Time(pair.b.desk.now), &claim);
    assert_eq!(told(&mut pair.b, 1_000), 2);
}

#[test]
fn who_may_have_a_successor_is_silent() {
    let mut pair = Pair::protected(&[], tuning());
    pair.a.desk.now += 200_000;
    let before = pair.a.desk.announcements;
    pair.a.turn();
    assert_eq!(pair.a.desk.announcements, before + 1, "it heard its backup lately");
    pair.a.desk.now += 900_000;
    pair.a.turn();
    assert_eq!((pair.a.desk.announcements, pair.a.role()), (before + 1, Role::Protected));
}
