//! What happens to every pair: machines die, streams break, states are sent, guests end. Many seeds, one story.

use super::{SECOND, role};
use crate::check::tests::worlds::{STRANGER, hears};
use crate::plan::{Faults, Plan};
use crate::rng::Rng;
use crate::trace::Keep;
use crate::world::World;
use crate::world::event::Event;
use pollux_driver::Guest;
use pollux_ft::{Role, Span, Term};

/// A story in a world of two machines, whose seeds vary all but the story.
pub(super) struct Story {
    pub(super) world: World,
    /// Varies the story itself.
    pub(super) rng: Rng,
    /// Machines that are off or halted stay so.
    pub(super) stay_off: bool,
    seed: u64,
}

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with seed {}", self.seed);
        }
    }
}

/// Tells a story in so many worlds.
pub(super) fn tell(seeds: u64, arbiter: bool, mut story: impl FnMut(&mut Story)) {
    for seed in 0..seeds {
        let mut plan = Plan::new(&mut Rng::new(seed, 1));
        (plan.machines, plan.arbiter, plan.config.arbiter) = (2, arbiter, arbiter);
        // No faults but those of the story, and no end before its own.
        (plan.faults, plan.power_off, plan.duration) = (Faults::Storm, false, u64::MAX);
        plan.config.ack_timeout = Span(3 * plan.config.suspect_after.0);
        // A guest does what it is told at once: it has nothing to commit before.
        plan.disk = false;
        let world = World::new(seed, plan, Keep::Nothing);
        story(&mut Story { world, rng: Rng::new(seed, 7), stay_off: false, seed });
    }
}

impl Story {
    pub(super) fn role(&self, index: usize) -> Option<Role> {
        role(&self.world, index)
    }

    /// Runs until `enough`, at most for `micros`; whether it came true. No rule may be broken.
    pub(super) fn until(&mut self, micros: u64, enough: impl Fn(&World) -> bool) -> bool {
        let end = self.world.env.now + micros;
        while !enough(&self.world) && self.world.env.now < end {
            let (at, event) = self.world.env.queue.pop().expect("the world looks at itself again and again");
            let unwanted = matches!(event, Event::Fault) || (self.stay_off && matches!(event, Event::Restart { .. }));
            if !unwanted {
                self.world.happen(at, event);
            }
            assert_eq!(self.world.env.audit.violation(), None);
        }
        enough(&self.world)
    }

    pub(super) fn run(&mut self, micros: u64) {
        self.until(micros, |_| false);
    }

    /// Runs for a time that varies.
    pub(super) fn pause(&mut self, most: u64) {
        let micros = self.rng.below(most);
        self.run(micros);
    }

    pub(super) fn protect(&mut self) {
        let done = self.until(12 * SECOND, World::is_protected);
        assert!(done, "not protected: {:?} {:?}", self.role(0), self.role(1));
    }

    /// The guest answers its clients.
    pub(super) fn serves(&mut self) {
        let since = self.world.env.now;
        assert!(self.until(6 * SECOND, |world| world.env.clients.served_since(since)), "nobody is served");
    }

    pub(super) fn takes_over(&mut self, times: u64) {
        let done = self.until(8 * SECOND, |world| world.env.figures.takeovers == times);
        assert!(done, "no takeover: {:?} {:?}", self.role(0), self.role(1));
    }

    /// The stream between the machines breaks, if there is one.
    pub(super) fn cut_stream(&mut self) {
        if let Some(stream) = self.world.slots[0].machine.as_ref().and_then(|machine| machine.devices.stream) {
            self.world.break_stream(stream);
        }
    }

    /// A machine that is off is switched on again.
    pub(super) fn switch_on(&mut self, machine: usize) {
        let now = self.world.env.now;
        self.world.happen(now, Event::Restart { machine });
    }

    /// A part of the state has come from the first machine to the second.
    pub(super) fn send_half_a_state(&mut self) {
        self.world.env.network.quality.window = 4096;
        let halfway = |world: &World| {
            let has_more = world.slots[0].machine.as_ref().is_some_and(|machine| !machine.node().transmit().is_empty());
            has_more && role(world, 1) == Some(Role::Loading)
        };
        assert!(self.until(8 * SECOND, halfway), "{:?} {:?}", self.role(0), self.role(1));
    }
}

/// With an arbiter and without.
fn tell_both(seeds: u64, story: impl Fn(&mut Story)) {
    tell(seeds, false, &story);
    tell(seeds, true, &story);
}

#[test]
fn a_pair_runs_and_the_backup_follows() {
    tell_both(10, |story| {
        story.protect();
        story.run(5 * SECOND);
        assert!(story.world.is_protected());
        story.serves();
        let backup = story.world.slots[1].machine.as_ref().expect("it runs");
        assert!(backup.node().stats().digests > 20, "{:?}", backup.node().stats());
        assert_eq!(story.world.env.audit.duplicates, 0);
    });
}

#[test]
fn the_primary_dies_again_and_again() {
    tell_both(10, |story| {
        for round in 1..=8 {
            story.protect();
            story.pause(SECOND);
            let primary = story.world.primary().expect("somebody serves");
            story.world.crash(primary);
            story.takes_over(round);
            story.pause(SECOND);
        }
        story.protect();
        story.serves();
    });
}

#[test]
fn the_backup_dies_and_the_service_goes_on() {
    tell_both(10, |story| {
        story.protect();
        story.stay_off = true;
        story.world.crash(1);
        assert!(story.until(8 * SECOND, |world| role(world, 0) == Some(Role::Alone)), "{:?}", story.role(0));
        story.serves();
    });
}

#[test]
fn a_cut_stream_is_no_death() {
    tell_both(30, |story| {
        story.protect();
        story.cut_stream();
        story.run(8 * SECOND);
        story.protect();
        let (takeovers, terms) = (story.world.env.figures.takeovers, story.world.env.arbiter.terms());
        assert_eq!((takeovers, story.world.primary()), (0, Some(0)), "taken over from a living primary");
        assert!(terms <= 1, "a question was asked, and both lived");
    });
}

#[test]
fn half_a_state_never_goes_live() {
    tell_both(20, |story| {
        story.send_half_a_state();
        story.stay_off = true;
        story.world.crash(0);
        story.run(8 * SECOND);
        assert_eq!((story.role(1), story.world.env.figures.takeovers), (Some(Role::Joining), 0));
    });
}

#[test]
fn a_guest_runs_while_it_is_copied() {
    let mut ran = 0;
    tell(20, false, |story| {
        let mut moved = 0;
        while !story.world.is_protected() {
            let position =
                |world: &World| world.slots[0].machine.as_ref().map(|machine| machine.driver.guest().position());
            let before = position(&story.world);
            let now = story.world.env.now;
            story.until(SECOND, |world| world.env.now > now);
            let primary = story.world.slots[0].machine.as_ref().expect("it runs");
            if primary.driver.is_transferring() {
                moved += u64::from(position(&story.world) > before);
                assert!(!primary.node().holds_output() || primary.devices.gate.ready() == 0);
            }
        }
        ran += u64::from(moved > 0);
        story.run(2 * SECOND);
        assert!(story.world.is_protected());
    });
    assert!(ran > 2, "{ran} of 20 transfers while the guest runs");
}

#[test]
fn a_flipped_bit_in_the_backup_is_found() {
    tell_both(10, |story| {
        story.protect();
        let backup = story.world.slots[1].machine.as_mut().expect("it runs");
        backup.devices.flipped = true;
        backup.driver.guest_mut().flip(story.rng.below(1 << 40));
        assert!(story.until(6 * SECOND, |world| world.env.figures.flips_found == 1), "the digests did not find it");
    });
}

#[test]
fn an_orderly_stop_hands_over_at_once() {
    tell_both(20, |story| {
        story.protect();
        story.run(SECOND);
        assert!(story.world.stop(0));
        let before = story.world.env.now;
        story.takes_over(1);
        // An answer of the arbiter may get lost.
        assert!(story.world.env.now - before < SECOND, "{} us", story.world.env.now - before);
        story.protect();
    });
}

#[test]
fn a_running_backup_is_replaced_in_order() {
    tell(20, true, |story| {
        story.protect();
        assert!(story.world.stop(1));
        assert!(story.until(SECOND / 4, |world| role(world, 0) == Some(Role::Alone)), "{:?}", story.role(0));
        assert_eq!(story.world.env.arbiter.terms(), 1, "a backup that leaves costs no question");
        story.protect();
    });
}

/// A primary stands still with frames that were acked, and acks under way. When it goes on its backup is live: what it
/// has to say has been said, and would draw the guest's traffic back to it.
#[test]
fn a_primary_that_stood_still_says_nothing_more() {
    tell(30, true, |story| {
        story.protect();
        story.pause(SECOND);
        story.protect();
        story.world.env.stuck[0] = story.rng.chance(500);
        story.pause(SECOND / 2);
        story.world.freeze(0, 60 * SECOND);
        story.takes_over(1);
        story.world.env.stuck[0] = false;
        // What reached it before the takeover comes first.
        let now = story.world.env.now;
        story.world.happen(now, Event::Thaw { machine: 0 });
        story.run(4 * SECOND);
        assert_eq!(story.world.env.port, Some(1));
        story.serves();
    });
}

#[test]
fn the_network_is_told_again_and_again_where_the_guest_is() {
    tell_both(10, |story| {
        story.protect();
        let before = story.world.env.figures.announcements;
        story.world.crash(0);
        story.takes_over(1);
        story.stay_off = true;
        story.run(4 * SECOND);
        let told = story.world.env.figures.announcements - before;
        assert!((4..=6).contains(&told), "{told} times");
        // A former primary is heard: it may have sent something.
        let before = story.world.env.figures.announcements;
        story.world.env.port = Some(0);
        hears(&mut story.world, 1, STRANGER, Role::Protected, Term(1));
        assert!(story.until(SECOND, |world| world.env.figures.announcements > before));
        assert_eq!(story.world.env.port, Some(1));
    });
}

#[test]
fn a_backup_whose_guest_hangs_is_replaced() {
    tell_both(10, |story| {
        story.protect();
        story.world.slots[1].machine.as_mut().expect("it runs").devices.hangs = true;
        assert!(story.until(SECOND, |world| !world.is_protected()));
        story.protect();
        assert_eq!(story.world.env.figures.takeovers, 0);
    });
}

/// A machine whose settings differ is refused: its driver ends with its node. Nothing dials afterwards, nobody takes it for
/// a backup, and one that is switched on with the right settings is the backup.
#[test]
fn a_machine_that_is_refused_ends() {
    tell(20, true, |story| {
        story.protect();
        story.world.crash(1);
        let config = story.world.env.plan.config.clone();
        story.world.env.plan.config.receive_buffer_bytes += 1;
        story.stay_off = true;
        story.switch_on(1);
        story.world.env.plan.config = config;
        let ended = |world: &World| world.slots[1].machine.as_ref().is_some_and(|machine| machine.driver.has_ended());
        assert!(story.until(20 * SECOND, ended), "{:?}", story.role(1));
        assert_eq!(story.role(1), Some(Role::Halted));
        assert!(story.until(8 * SECOND, |world| role(world, 0) == Some(Role::Alone)), "{:?}", story.role(0));
        let refusals = story.world.env.figures.refusals;
        let dials = |world: &World| {
            let stream = world.slots[1].machine.as_ref().and_then(|machine| machine.devices.stream);
            stream.is_some() || role(world, 1) != Some(Role::Halted) || role(world, 0) != Some(Role::Alone)
        };
        story.run(SECOND);
        assert!(!story.until(4 * SECOND, dials), "{:?} {:?}", story.role(0), story.role(1));
        assert_eq!(story.world.env.figures.refusals, refusals);
        story.serves();
        story.world.crash(1);
        story.switch_on(1);
        story.protect();
    });
}
