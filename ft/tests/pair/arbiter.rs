//! With an arbiter: whatever is cut, at most one machine is live, and service goes on where it can.

use crate::world::World;
use crate::{SECOND, arbitrated, logged, protect, restart_halted};
use pollux_ft::{Action, HaltReason, Role, Start, Term, Verdict};
use std::cell::Cell;

#[test]
fn a_primary_starts_when_its_term_is_granted() {
    arbitrated(5, |world| {
        assert_eq!(world.role(0), Some(Role::Starting));
        protect(world);
        assert!(logged(world, 0, |action| *action == Action::Started { term: Term(1) }));
    });
}

#[test]
fn a_second_primary_is_told_that_the_term_is_taken() {
    arbitrated(5, |world| {
        protect(world);
        world.start(1, Start::Primary);
        world.run(SECOND);
        assert!(logged(world, 1, |action| *action == Action::Halt { reason: HaltReason::TermTaken(Term(1)) }));
        world.start(1, Start::Backup);
        protect(world);
    });
}

#[test]
fn a_partition_leaves_one_machine_live() {
    arbitrated(40, |world| {
        for _ in 0..3 {
            protect(world);
            let pause = world.rng.below(SECOND);
            world.run(pause);
            world.partition(true);
            assert!(world.run_until(8 * SECOND, one_is_alone), "{:?} {:?}", world.role(0), world.role(1));
            world.run(3 * SECOND);
            let halted = (0..2).find(|index| world.role(*index) == Some(Role::Halted)).expect("the loser halts");
            assert!(logged(world, halted, taken));
            world.partition(false);
            world.start(halted, Start::Backup);
        }
        protect(world);
    });
}

fn one_is_alone(world: &World) -> bool {
    (0..2).any(|index| world.role(index) == Some(Role::Alone))
}

fn taken(action: &Action) -> bool {
    matches!(action, Action::Halt { reason: HaltReason::TermTaken(_) })
}

#[test]
fn without_an_answer_nobody_goes_live_and_nothing_is_lost() {
    arbitrated(20, |world| {
        protect(world);
        world.arbiter.cut_off = [true; 2];
        world.kill(0);
        world.run(10 * SECOND);
        assert_eq!((world.role(1), world.takeovers), (Some(Role::Draining), 0));
        world.arbiter.cut_off = [false; 2];
        assert!(world.run_until(SECOND, |world| world.takeovers == 1));
    });
}

#[test]
fn a_primary_without_an_answer_holds_its_output() {
    arbitrated(20, |world| {
        protect(world);
        world.arbiter.cut_off = [true; 2];
        world.kill(1);
        world.run(3 * SECOND);
        let seen = world.seen.len();
        world.run(5 * SECOND);
        assert_eq!((world.role(0), world.seen.len()), (Some(Role::Detaching), seen));
        world.arbiter.cut_off = [false; 2];
        assert!(world.run_until(SECOND, |world| world.role(0) == Some(Role::Alone)));
        assert!(world.seen.len() > seen);
    });
}

/// The winner dies before it hears of its luck: a second fault, after which nobody may go on.
#[test]
fn a_primary_that_is_refused_halts() {
    arbitrated(10, |world| {
        protect(world);
        world.arbiter.mute = true;
        world.partition(true);
        world.run_until(4 * SECOND, |world| world.arbiter.winners.contains_key(&2));
        let winner = world.arbiter.winners[&2];
        let index = usize::from(world.machines[0].as_ref().unwrap().id != winner);
        world.kill(index);
        world.arbiter.mute = false;
        world.run(3 * SECOND);
        assert!(logged(world, 1 - index, taken));
    });
}

/// The backup asks while the primary is silent, hears it again and follows on. When the answer comes at last it goes
/// live: a term that was granted never lies about.
#[test]
fn a_late_answer_still_counts() {
    arbitrated(20, |world| {
        protect(world);
        world.arbiter.cut_off = [true; 2];
        world.heartbeats[0] = false;
        world.stalled = true;
        assert!(world.run_until(4 * SECOND, |world| asks(world, 1)), "{:?}", world.role(1));
        world.heartbeats[0] = true;
        world.stalled = false;
        assert!(world.run_until(SECOND, |world| world.role(1) == Some(Role::Backup)), "{:?}", world.role(1));
        world.run(5 * SECOND);
        assert!(world.protected() && asks(world, 1));
        world.arbiter.cut_off = [false; 2];
        assert!(world.run_until(2 * SECOND, |world| world.takeovers == 1));
        world.run(2 * SECOND);
        assert_eq!(world.role(0), Some(Role::Halted));
    });
}

fn asks(world: &World, index: usize) -> bool {
    world.machines[index].as_ref().is_some_and(|machine| machine.node.asks_for().is_some())
}

#[test]
fn a_transfer_that_breaks_off_costs_no_question() {
    arbitrated(20, |world| {
        let loading = |world: &World| {
            let sending = world.machines[0].as_ref().is_some_and(|primary| !primary.node.is_logging());
            sending && world.role(1) == Some(Role::Loading)
        };
        assert!(world.run_until(4 * SECOND, loading));
        world.arbiter.cut_off = [true; 2];
        world.kill(1);
        assert!(world.run_until(3 * SECOND, |world| world.role(0) == Some(Role::Alone)));
        world.start(1, Start::Backup);
        protect(world);
        assert_eq!(world.arbiter.winners.len(), 1);
        assert_eq!(world.machines[0].as_ref().unwrap().node.stats().terms_asked, 1);
    });
}

#[test]
fn a_cut_stream_costs_no_question_while_both_live() {
    arbitrated(20, |world| {
        protect(world);
        world.cut();
        world.run(5 * SECOND);
        protect(world);
        assert_eq!((world.takeovers, world.primary(), world.arbiter.winners.len()), (0, Some(0), 1));
    });
}

#[test]
fn answers_to_stale_questions_are_ignored() {
    arbitrated(5, |world| {
        protect(world);
        let now = pollux_ft::Time(world.now);
        for machine in world.machines.iter_mut().flatten() {
            for verdict in [Verdict::Granted, Verdict::Taken] {
                machine.node.arbiter_answered(now, Term(1), verdict);
                machine.node.arbiter_answered(now, Term(2), verdict);
            }
            assert_eq!(machine.node.stats().answers_stale, 4);
        }
        world.run(2 * SECOND);
        assert!(world.protected());
    });
}

/// Everything at once: partitions of both machines and of the arbiter, lost answers, kills, planned switches.
#[test]
fn faults_of_all_kinds_never_make_two_live() {
    let protected = Cell::new(0);
    arbitrated(60, |world| {
        for _ in 0..12 {
            let pause = world.rng.below(2 * SECOND);
            world.run(pause);
            match world.rng.below(9) {
                0 => world.cut(),
                1 => world.partition(true),
                2 => world.partition(false),
                3 => {
                    let index = world.rng.below(2) as usize;
                    world.heartbeats[index] = !world.heartbeats[index];
                }
                4 => {
                    let index = world.rng.below(2) as usize;
                    world.arbiter.cut_off[index] = !world.arbiter.cut_off[index];
                }
                5 => world.arbiter.mute = !world.arbiter.mute,
                6 if world.protected() => world.kill(world.primary().unwrap()),
                7 if world.protected() => world.kill(1 - world.primary().unwrap()),
                8 => {
                    let index = world.rng.below(2) as usize;
                    if let Some(machine) = world.machines[index].as_mut().filter(|m| m.node.role() == Role::Protected) {
                        machine.switch_over = true;
                    }
                }
                _ => {}
            }
        }
        world.partition(false);
        world.heartbeats = [true; 2];
        world.arbiter.cut_off = [false; 2];
        world.arbiter.mute = false;
        world.run(5 * SECOND);
        if world.primary().is_none() {
            // The arbiter's winner was killed: the guest is lost, and nobody pretends otherwise.
            return;
        }
        for index in 0..2 {
            if world.machines[index].is_none() {
                world.start(index, Start::Backup);
            }
        }
        restart_halted(world);
        world.run(SECOND);
        restart_halted(world);
        protect(world);
        protected.set(protected.get() + 1);
    });
    assert!(protected.get() >= 30, "{} of 60 guests survived", protected.get());
}
