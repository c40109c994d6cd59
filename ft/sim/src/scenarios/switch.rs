//! Roles that change by plan, and what can go wrong meanwhile.

use super::pair::{Story, tell};
use super::{SECOND, role};
use crate::client::Clients;
use crate::world::World;
use pollux_driver::NotTyped;
use pollux_ft::{Role, Term};

/// Lets the first machine hand over.
fn hand_over(story: &mut Story) {
    assert!(story.world.slots[0].machine.as_mut().expect("it runs").request_switch());
    let hands_over = story.until(SECOND, |world| role(world, 0) == Some(Role::HandingOver));
    assert!(hands_over, "{:?}", story.role(0));
}

#[test]
fn roles_change_without_a_failure() {
    for arbiter in [false, true] {
        tell(10, arbiter, |story| {
            for round in 1..=4 {
                story.protect();
                story.pause(SECOND);
                story.protect();
                let old = story.world.primary().expect("somebody serves");
                assert!(story.world.slots[old].machine.as_mut().expect("it runs").request_switch());
                story.takes_over(round);
                assert!(story.until(4 * SECOND, |world| world.env.figures.switch_overs == round));
                story.protect();
                assert_eq!(story.world.primary(), Some(1 - old), "the old primary is the backup");
            }
            story.serves();
        });
    }
}

/// What is typed elsewhere would come to the guest whenever it came there.
#[test]
fn text_is_typed_only_where_the_guest_runs() {
    tell(10, false, |story| {
        story.protect();
        for round in 1..=2 {
            let primary = story.world.primary().expect("somebody serves");
            let mut types = |machine: usize, length| {
                let machine = story.world.slots[machine].machine.as_mut().expect("it runs");
                machine.type_text(&vec![b'x'; length])
            };
            assert_eq!(types(1 - primary, 1), Err(NotTyped::Elsewhere));
            assert_eq!((types(primary, 1), types(primary, 1 << 20)), (Ok(()), Err(NotTyped::TooMuch)));
            assert!(story.world.slots[primary].machine.as_mut().expect("it runs").request_switch());
            story.takes_over(round);
            story.protect();
        }
        story.serves();
    });
}

#[test]
fn a_backup_that_dies_in_a_switch_gives_the_guest_back() {
    tell(30, true, |story| {
        story.protect();
        // Half of the time it dies when it holds everything and waits for its term.
        story.world.env.arbiter.cut[1] = true;
        hand_over(story);
        story.pause(SECOND / 2);
        story.stay_off = true;
        story.world.crash(1);
        assert!(story.until(8 * SECOND, |world| role(world, 0) == Some(Role::Alone)), "{:?}", story.role(0));
        story.serves();
        assert_eq!(story.world.env.figures.takeovers, 0);
        story.world.env.arbiter.cut[1] = false;
        story.switch_on(1);
        story.protect();
    });
}

#[test]
fn a_primary_that_dies_in_a_switch_is_no_loss() {
    tell(30, true, |story| {
        story.protect();
        hand_over(story);
        story.pause(20_000);
        story.world.crash(0);
        story.takes_over(1);
        story.serves();
    });
}

#[test]
fn a_cut_stream_in_a_switch_leaves_one_primary() {
    tell(40, true, |story| {
        story.protect();
        hand_over(story);
        story.pause(20_000);
        story.cut_stream();
        story.run(8 * SECOND);
        story.protect();
        story.serves();
    });
}

/// The first machine hands over and hears no heartbeat of its successor, whose guest switches itself off as soon as it
/// is live. The stream may break right then.
fn ends_unheard(story: &mut Story, breaks: bool) {
    story.protect();
    hand_over(story);
    story.world.env.network.quality.loss = 1000;
    story.stay_off = true;
    story.takes_over(1);
    if breaks {
        story.cut_stream();
    }
    let successor = story.world.slots[1].machine.as_mut().expect("it runs");
    successor.devices.ingress.push_back(Clients::power_off());
    story.world.turn(1);
    assert!(story.until(SECOND, |world| role(world, 1) == Some(Role::Halted)), "{:?}", story.role(1));
}

fn term(world: &World, index: usize) -> Option<Term> {
    world.slots[index].machine.as_ref().map(|machine| machine.node().term())
}

#[test]
fn a_hand_over_is_known_before_the_successor_ends() {
    for arbiter in [false, true] {
        tell(30, arbiter, |story| {
            ends_unheard(story, false);
            assert!(story.until(SECOND, |world| role(world, 0) == Some(Role::Joining)), "{:?}", story.role(0));
            assert_eq!(term(&story.world, 0), term(&story.world, 1));
            // Nobody has the guest, and nobody takes it up again.
            story.run(8 * SECOND);
            assert_eq!((story.role(0), story.world.env.figures.takeovers), (Some(Role::Joining), 1));
        });
    }
}

/// The stream breaks, perhaps before the last word has arrived on it: then the arbiter tells.
#[test]
fn a_hand_over_that_nobody_said_is_told_by_the_arbiter() {
    let mut told = 0;
    tell(30, true, |story| {
        ends_unheard(story, true);
        let knows = |world: &World| matches!(role(world, 0), Some(Role::Joining | Role::Halted));
        assert!(story.until(8 * SECOND, knows), "{:?}", story.role(0));
        assert_eq!(story.world.env.figures.takeovers, 1);
        told += u64::from(story.role(0) == Some(Role::Halted));
    });
    assert!(told > 5, "{told} of 30");
}
