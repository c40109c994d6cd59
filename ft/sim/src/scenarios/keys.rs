//! The pair changes its key, and somebody goes on with the old one.

use super::pair::{Story, tell};
use super::{SECOND, role};
use pollux_ft::{PairKey, Role, Span, Start};

/// A moment passes.
fn until_later(story: &mut Story) -> bool {
    story.run(SECOND / 20);
    false
}

/// Both machines change their key; the arbiter and the second machine's medium still have the old one.
fn change_key(story: &mut Story) {
    let old = story.world.env.plan.config.protection.fingerprint();
    for index in 0..2 {
        let machine = story.world.slots[index].machine.as_mut().expect("it runs");
        machine.driver.node_mut().add_key(PairKey::new(&[99; 32])).expect("there is room");
    }
    story.run(2 * SECOND);
    for index in 0..2 {
        let forgets = |story: &mut Story| {
            let now = story.world.env.now;
            story.world.slots[index].machine.as_mut().expect("it runs").forget_key(now, old)
        };
        // A heartbeat may be lost.
        let done = (0..100).any(|_| forgets(story) || until_later(story));
        assert!(done, "both have shown the new one");
    }
}

/// It cannot read what the running machine says, and is given any term that it asks for.
#[test]
fn a_machine_that_starts_with_the_old_key_creates_no_second_guest() {
    let mut told = 0;
    tell(100, true, |story| {
        if !story.world.env.plan.config.protection.is_secure() || story.world.env.operator.is_here() {
            return;
        }
        told += 1;
        story.protect();
        change_key(story);
        story.stay_off = true;
        story.world.crash(1);
        assert!(story.until(12 * SECOND, |world| role(world, 0) == Some(Role::Alone)));
        story.world.env.plan.config.alone_after = Some(Span(2 * story.world.env.plan.config.suspect_after.0));
        story.world.start(1, Start::Auto);
        story.run(30 * SECOND);
        assert_eq!((story.role(0), story.role(1)), (Some(Role::Alone), Some(Role::Joining)));
        story.serves();
        // It is taken in once it gets the new one.
        let machine = story.world.slots[1].machine.as_mut().expect("it runs");
        machine.driver.node_mut().add_key(PairKey::new(&[99; 32])).expect("there is room");
        story.protect();
    });
    assert!(told > 5, "{told}");
}
