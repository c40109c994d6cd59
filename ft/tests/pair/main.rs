//! Two nodes in an in-memory world: random delays, lost heartbeats, cut streams, kills. Each run has a seed and
//! prints it when a rule is broken.

mod arbiter;
mod orderly;
mod world;

use pollux_ft::{Action, HaltReason, LossReason, Role, Start};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use world::World;

const SECOND: u64 = 1_000_000;

/// Runs `body` for each seed, without an arbiter; names the seed that fails.
fn seeds(count: u64, body: impl Fn(&mut World)) {
    each_seed(count, World::new, body);
}

/// The same with an arbiter.
fn arbitrated(count: u64, body: impl Fn(&mut World)) {
    each_seed(count, World::arbitrated, body);
}

fn each_seed(count: u64, world: impl Fn(u64) -> World, body: impl Fn(&mut World)) {
    for seed in 0..count {
        let result = catch_unwind(AssertUnwindSafe(|| body(&mut world(seed))));
        if let Err(panic) = result {
            eprintln!("failed with seed {seed}");
            resume_unwind(panic);
        }
    }
}

fn protect(world: &mut World) {
    assert!(world.run_until(8 * SECOND, World::protected), "not protected: {:?} {:?}", world.role(0), world.role(1));
}

fn logged(world: &World, index: usize, wanted: impl Fn(&Action) -> bool) -> bool {
    world.machines[index].as_ref().is_some_and(|machine| machine.log.iter().any(wanted))
}

#[test]
fn a_pair_runs_and_the_backup_follows() {
    seeds(5, |world| {
        protect(world);
        world.run(5 * SECOND);
        assert!(world.protected());
        let stats = world.machines[1].as_ref().unwrap().node.stats();
        assert!(stats.digests > 20 && world.seen.len() > 100, "{stats:?}");
        assert_eq!(world.duplicates, 0);
    });
}

#[test]
fn the_primary_dies_again_and_again() {
    seeds(8, |world| {
        for round in 1..=8 {
            protect(world);
            let pause = world.rng.below(SECOND);
            world.run(pause);
            let primary = world.primary().unwrap();
            world.kill(primary);
            assert!(world.run_until(3 * SECOND, |world| world.takeovers == round), "no takeover");
            let pause = world.rng.below(SECOND);
            world.run(pause);
            world.start(primary, Start::Backup);
        }
        protect(world);
    });
}

#[test]
fn faults_of_all_kinds_leave_nothing_lost() {
    seeds(25, |world| {
        for _ in 0..12 {
            let pause = world.rng.below(2 * SECOND);
            world.run(pause);
            match world.rng.below(6) {
                0 => world.cut(),
                1 => {
                    let index = world.rng.below(2) as usize;
                    // One way only, and never one way straight after the other: against a partition, also one
                    // spread over time, only an arbiter helps.
                    heal(world);
                    world.heartbeats[index] = false;
                }
                2 if world.protected() => world.kill(world.primary().unwrap()),
                3 => {
                    // Of two that think they are primaries, one is to halt: that is fault enough.
                    if let (Some(index), 1) = (world.primary(), world.primaries()) {
                        world.kill(1 - index);
                    }
                }
                4 => heal(world),
                _ => {}
            }
            if world.machines.iter().any(Option::is_none) {
                world.run_until(3 * SECOND, |world| world.primary().is_some());
                let dead = world.machines.iter().position(Option::is_none).unwrap();
                world.start(dead, Start::Backup);
            }
            restart_halted(world);
        }
        world.heartbeats = [true; 2];
        world.run(5 * SECOND);
        restart_halted(world);
        protect(world);
    });
}

fn heal(world: &mut World) {
    if world.heartbeats != [true; 2] {
        world.heartbeats = [true; 2];
        world.run(2 * SECOND);
    }
}

/// A machine that halted for a newer primary comes back as its backup.
fn restart_halted(world: &mut World) {
    for index in 0..2 {
        if world.role(index) == Some(Role::Halted) {
            let yields = |action: &Action| {
                matches!(action, Action::Halt { reason: HaltReason::Superseded(_) | HaltReason::TermTaken(_) })
            };
            assert!(logged(world, index, yields));
            world.start(index, Start::Backup);
        }
    }
}

#[test]
fn the_backup_dies_and_the_service_goes_on() {
    seeds(5, |world| {
        protect(world);
        world.kill(1);
        assert!(world.run_until(2 * SECOND, |world| world.role(0) == Some(Role::Alone)));
        let seen = world.seen.len();
        world.run(SECOND);
        assert!(world.seen.len() > seen);
        assert!(logged(world, 0, |action| *action == Action::Unprotected { reason: LossReason::Silent }));
    });
}

#[test]
fn a_cut_stream_is_no_death() {
    seeds(20, |world| {
        protect(world);
        world.cut();
        world.run(5 * SECOND);
        protect(world);
        assert_eq!((world.takeovers, world.primary()), (0, Some(0)), "taken over from a living primary");
    });
}

#[test]
fn half_a_state_never_goes_live() {
    seeds(20, |world| {
        let loading = |world: &World| {
            let sending = world.machines[0].as_ref().is_some_and(|primary| !primary.node.is_logging());
            sending && world.role(1) == Some(Role::Loading)
        };
        assert!(world.run_until(2 * SECOND, loading));
        world.kill(0);
        world.run(5 * SECOND);
        assert_eq!((world.role(1), world.takeovers), (Some(Role::Joining), 0));
    });
}

#[test]
fn power_off_ends_both_and_nobody_takes_over() {
    let body = |world: &mut World| {
        protect(world);
        let primary = world.machines[0].as_mut().unwrap();
        primary.power_off_at = Some(primary.guest.position + 50);
        world.run(4 * SECOND);
        let off = |action: &Action| *action == Action::Halt { reason: HaltReason::PoweredOff };
        assert!(logged(world, 0, off) && logged(world, 1, off));
        assert_eq!(world.takeovers, 0);
    };
    seeds(10, body);
    arbitrated(10, body);
}

#[test]
fn an_orderly_stop_hands_over_at_once() {
    let body = |world: &mut World| {
        protect(world);
        world.run(SECOND);
        let now = pollux_ft::Time(world.now);
        world.machines[0].as_mut().unwrap().node.stop(now);
        assert!(world.run_until(SECOND / 4, |world| world.role(1) == Some(Role::Alone)), "{:?}", world.role(1));
        world.start(0, Start::Backup);
        protect(world);
    };
    seeds(10, body);
    arbitrated(10, body);
}

#[test]
fn a_flipped_bit_in_the_backup_is_found() {
    seeds(5, |world| {
        protect(world);
        world.machines[1].as_mut().unwrap().guest.chain ^= 1;
        let found = catch_unwind(AssertUnwindSafe(|| world.run(SECOND)));
        assert!(found.is_err(), "the digests did not find it");
    });
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut world = World::new(seed);
        world.run(3 * SECOND);
        let stats = world.machines.each_ref().map(|machine| machine.as_ref().unwrap().node.stats().clone());
        (world.seen, stats)
    };
    assert_eq!(run(3), run(3));
}
