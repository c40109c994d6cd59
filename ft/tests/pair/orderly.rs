//! What is planned: roles that change, backups that are replaced, transfers while the guest runs.

use crate::world::World;
use crate::{SECOND, arbitrated, logged, protect, seeds};
use pollux_ft::{Action, Role, Start};
use std::cell::Cell;

fn switch(world: &mut World, index: usize) {
    world.machines[index].as_mut().unwrap().switch_over = true;
}

#[test]
fn roles_change_without_a_failure() {
    let body = |world: &mut World| {
        for round in 1..=4 {
            protect(world);
            let pause = world.rng.below(SECOND);
            world.run(pause);
            protect(world);
            let old = world.primary().unwrap();
            switch(world, old);
            assert!(world.run_until(SECOND, |world| world.takeovers == round), "{:?}", world.role(old));
            assert!(world.run_until(SECOND, |world| world.role(old) != Some(Role::HandingOver)));
            assert!(logged(world, old, |action| matches!(action, Action::HandedOver { .. })));
            protect(world);
            assert_eq!(world.primary(), Some(1 - old), "the old primary is the backup");
        }
    };
    seeds(10, body);
    arbitrated(10, body);
}

#[test]
fn a_backup_that_dies_in_a_switch_gives_the_guest_back() {
    arbitrated(30, |world| {
        protect(world);
        // Half of the time it dies when it holds everything and waits for its term.
        world.arbiter.cut_off[1] = true;
        switch(world, 0);
        assert!(world.run_until(SECOND, |world| world.role(0) == Some(Role::HandingOver)));
        let pause = world.rng.below(SECOND / 2);
        world.run(pause);
        world.kill(1);
        let seen = world.seen.len();
        assert!(world.run_until(4 * SECOND, |world| world.role(0) == Some(Role::Alone)), "{:?}", world.role(0));
        world.run(SECOND);
        assert!(world.seen.len() > seen && world.takeovers == 0);
        world.arbiter.cut_off = [false; 2];
        world.start(1, Start::Backup);
        protect(world);
    });
}

#[test]
fn a_primary_that_dies_in_a_switch_is_no_loss() {
    arbitrated(30, |world| {
        protect(world);
        switch(world, 0);
        assert!(world.run_until(SECOND, |world| world.role(0) == Some(Role::HandingOver)));
        let pause = world.rng.below(20_000);
        world.run(pause);
        world.kill(0);
        assert!(world.run_until(4 * SECOND, |world| world.takeovers == 1));
    });
}

#[test]
fn a_cut_stream_in_a_switch_leaves_one_primary() {
    arbitrated(40, |world| {
        protect(world);
        switch(world, 0);
        assert!(world.run_until(SECOND, |world| world.role(0) == Some(Role::HandingOver)));
        let pause = world.rng.below(20_000);
        world.run(pause);
        world.cut();
        world.run(8 * SECOND);
        crate::restart_halted(world);
        protect(world);
    });
}

#[test]
fn a_running_backup_is_replaced_in_order() {
    arbitrated(10, |world| {
        protect(world);
        let now = pollux_ft::Time(world.now);
        world.machines[1].as_mut().unwrap().node.stop(now);
        assert!(world.run_until(SECOND / 4, |world| world.role(0) == Some(Role::Alone)), "{:?}", world.role(0));
        assert_eq!(world.arbiter.winners.len(), 1, "a backup that leaves costs no question");
        world.start(1, Start::Backup);
        protect(world);
    });
}

#[test]
fn a_guest_runs_while_it_is_copied() {
    let ran = Cell::new(0);
    seeds(20, |world| {
        let mut moved = 0;
        while !world.protected() {
            let before = world.machines[0].as_ref().unwrap().guest.position;
            world.step();
            let primary = world.machines[0].as_ref().unwrap();
            if primary.is_copied_running() {
                moved += primary.guest.position - before;
                assert!(!primary.node.holds_output());
            }
        }
        ran.set(ran.get() + u64::from(moved > 0));
        // The digest was checked when the state was complete; from here on the log's digests are.
        world.run(2 * SECOND);
        assert!(world.protected());
    });
    assert!((4..=16).contains(&ran.get()), "{} of 20 transfers while the guest runs", ran.get());
}
