//! With an arbiter: whatever is cut, at most one machine is live, and service goes on where it can.

use super::pair::{Story, tell};
use super::{SECOND, role};
use crate::arbiter::Mood;
use crate::check::tests::worlds::hears;
use crate::world::World;
use crate::world::event::{Event, Lasting};
use pollux_ft::{Role, Start, Term};

/// Nothing gets through between the machines in one direction.
fn cut(story: &mut Story, from: usize) {
    story.world.env.network.set_cut(from, 1 - from, true);
}

fn heal(story: &mut Story, from: usize) {
    let now = story.world.env.now;
    story.world.happen(now, Event::Over(Lasting::Cut { from, to: 1 - from }));
}

fn asks(world: &World, index: usize) -> bool {
    world.slots[index].machine.as_ref().is_some_and(|machine| machine.node().asks_for().is_some())
}

fn is_alone(world: &World) -> bool {
    (0..2).any(|index| role(world, index) == Some(Role::Alone))
}

#[test]
fn a_primary_starts_when_its_term_is_granted() {
    tell(10, true, |story| {
        assert_eq!(story.role(0), Some(Role::Starting));
        story.world.env.arbiter.cut = [true; 3];
        story.run(SECOND);
        assert_eq!((story.role(0), story.world.env.audit.frames()), (Some(Role::Starting), 0));
        story.world.env.arbiter.cut = [false; 3];
        story.protect();
    });
}

#[test]
fn a_second_primary_is_told_that_the_term_is_taken() {
    tell(10, true, |story| {
        story.protect();
        story.stay_off = true;
        story.world.crash(1);
        story.world.start(1, Start::Primary);
        assert!(story.until(2 * SECOND, |world| role(world, 1) == Some(Role::Halted)), "{:?}", story.role(1));
        story.switch_on(1);
        story.protect();
    });
}

#[test]
fn a_partition_leaves_one_machine_live() {
    tell(40, true, |story| {
        for _ in 0..3 {
            story.protect();
            story.pause(SECOND);
            story.protect();
            story.stay_off = true;
            (0..2).for_each(|from| cut(story, from));
            assert!(story.until(12 * SECOND, is_alone), "{:?} {:?}", story.role(0), story.role(1));
            story.run(4 * SECOND);
            let halted = (0..2).find(|index| story.role(*index) == Some(Role::Halted)).expect("the loser halts");
            story.serves();
            (0..2).for_each(|from| heal(story, from));
            story.stay_off = false;
            story.switch_on(halted);
        }
        story.protect();
    });
}

#[test]
fn without_an_answer_nobody_goes_live_and_nothing_is_lost() {
    tell(20, true, |story| {
        story.protect();
        story.world.env.arbiter.cut = [true; 3];
        story.stay_off = true;
        story.world.crash(0);
        story.run(10 * SECOND);
        assert_eq!((story.role(1), story.world.env.figures.takeovers), (Some(Role::Draining), 0));
        story.world.env.arbiter.cut = [false; 3];
        story.takes_over(1);
        story.serves();
    });
}

#[test]
fn a_primary_without_an_answer_holds_its_output() {
    tell(20, true, |story| {
        story.protect();
        story.world.env.arbiter.cut = [true; 3];
        story.stay_off = true;
        story.world.crash(1);
        story.run(3 * SECOND);
        let frames = story.world.env.audit.frames();
        story.run(5 * SECOND);
        assert_eq!((story.role(0), story.world.env.audit.frames()), (Some(Role::Detaching), frames));
        story.world.env.arbiter.cut = [false; 3];
        assert!(story.until(2 * SECOND, |world| role(world, 0) == Some(Role::Alone)));
        story.serves();
    });
}

/// The winner dies before it hears of its luck: a second fault, after which nobody may go on.
#[test]
fn a_primary_that_is_refused_halts() {
    tell(20, true, |story| {
        story.protect();
        story.world.env.arbiter.mood = Mood::Mute;
        story.stay_off = true;
        (0..2).for_each(|from| cut(story, from));
        assert!(story.until(8 * SECOND, |world| world.env.arbiter.terms() == 2));
        let winner = story.world.env.arbiter.winner(Term(2));
        let index = story.world.find(|machine| Some(machine.devices.id) == winner).expect("it lives");
        story.world.crash(index);
        story.world.env.arbiter.mood = Mood::Well;
        assert!(story.until(6 * SECOND, |world| role(world, 1 - index) == Some(Role::Halted)));
    });
}

/// The backup asks while the primary is silent and the arbiter away, hears it again and follows on. When the arbiter is
/// back, hours later, nothing is taken over: the pair has burnt the term, and has another one when it needs it.
#[test]
fn a_late_answer_takes_nothing_over() {
    tell(20, true, |story| {
        story.protect();
        story.world.env.arbiter.cut = [true; 3];
        story.stay_off = true;
        cut(story, 0);
        assert!(story.until(8 * SECOND, |world| asks(world, 1)), "{:?}", story.role(1));
        heal(story, 0);
        assert!(story.until(SECOND, |world| role(world, 1) == Some(Role::Backup)), "{:?}", story.role(1));
        story.run(5 * SECOND);
        assert!(story.world.is_protected() && !asks(&story.world, 1));
        story.world.env.arbiter.cut = [false; 3];
        story.run(5 * SECOND);
        assert_eq!((story.world.primary(), story.world.env.figures.takeovers), (Some(0), 0));
        story.world.crash(0);
        story.takes_over(1);
        story.serves();
    });
}

/// The same, and the stream broke meanwhile, which only the backup knows, for the primary stands still. The two cannot
/// agree to burn the term, and the primary will want it when it finds out: whoever was granted it goes live.
#[test]
fn a_late_answer_to_a_broken_pair_counts() {
    tell(20, true, |story| {
        story.protect();
        story.world.env.arbiter.cut = [true; 3];
        story.stay_off = true;
        story.world.freeze(0, 60 * SECOND);
        assert!(story.until(8 * SECOND, |world| asks(world, 1)), "{:?}", story.role(1));
        let machine = story.world.slots[1].machine.as_ref().expect("it runs");
        let stream = machine.devices.stream.expect("there is one");
        story.world.env.network.break_off(stream);
        let now = story.world.env.now;
        story.world.happen(now, Event::Reset { stream, machine: 1 });
        // A sign of life that was long under way.
        let primary = story.world.slots[0].machine.as_ref().expect("it runs").devices.id;
        hears(&mut story.world, 1, primary, Role::Protected, Term(1));
        assert_eq!(story.role(1), Some(Role::Backup));
        assert_eq!(story.role(0), Some(Role::Protected));
        story.world.env.arbiter.cut = [false; 3];
        story.takes_over(1);
        story.serves();
    });
}

#[test]
fn a_transfer_that_breaks_off_costs_no_question() {
    tell(20, true, |story| {
        story.send_half_a_state();
        story.world.env.arbiter.cut = [true; 3];
        story.stay_off = true;
        story.world.crash(1);
        assert!(story.until(6 * SECOND, |world| role(world, 0) == Some(Role::Alone)));
        story.switch_on(1);
        story.protect();
        let stats = story.world.slots[0].machine.as_ref().expect("it runs").node().stats();
        assert_eq!((story.world.env.arbiter.terms(), stats.terms_asked), (1, 1));
    });
}

#[test]
fn answers_to_stale_questions_are_ignored() {
    tell(10, true, |story| {
        story.protect();
        let now = story.world.env.now;
        for machine in story.world.slots.iter_mut().filter_map(|slot| slot.machine.as_mut()) {
            for (term, granted) in [(1, false), (1, true), (2, false), (2, true)] {
                machine.arbiter_answered(now, Term(term), granted);
            }
            assert_eq!(machine.node().stats().answers_stale, 4);
        }
        story.run(2 * SECOND);
        assert!(story.world.is_protected());
    });
}
