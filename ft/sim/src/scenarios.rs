//! Stories that once ended badly, told step by step: seeds mean another story whenever the code changes, these do not.

mod arbiter;
mod keys;
mod pair;
mod switch;

use crate::check::tests::worlds::{BACKUP, PRIMARY, is_fault, protect, run, world_of};
use crate::client::Clients;
use crate::machine::Machine;
use crate::world::World;
use crate::world::event::Event;
use pollux_ft::Role;

const SECOND: u64 = 1_000_000;

fn role(world: &World, index: usize) -> Option<Role> {
    world.slots[index].machine.as_ref().map(|machine| machine.node().role())
}

/// Runs without faults until `enough`, at most for `micros`; whether it came true. No rule may be broken.
fn until(world: &mut World, micros: u64, enough: impl Fn(&World) -> bool) -> bool {
    let end = world.env.now + micros;
    let found = run(world, is_fault, |world| enough(world) || world.env.now >= end);
    assert_eq!(found, None);
    enough(world)
}

/// Frames that may leave a machine, and have not.
fn ready(world: &World, index: usize) -> usize {
    world.slots[index].machine.as_ref().map_or(0, |machine| machine.devices.gate.ready())
}

/// The guest serves and is protected, and nothing was lost on the way.
fn all_is_well(world: &mut World) {
    let since = world.env.now;
    let well = |world: &World| world.is_protected() && world.env.clients.served_since(since);
    assert!(until(world, 20 * SECOND, well), "{:?} {:?}", role(world, PRIMARY), role(world, BACKUP));
}

/// The backup holds the log, and the card did not take the frames: whatever the backup was told of them, it has to send
/// them itself when the primary is stopped.
#[test]
fn a_primary_with_a_stuck_card_is_stopped() {
    let mut world = protect(world_of(2, None));
    world.env.stuck[PRIMARY] = true;
    assert!(until(&mut world, 5 * SECOND, |world| ready(world, PRIMARY) > 0));
    until(&mut world, SECOND / 2, |_| false);
    assert!(world.stop(PRIMARY));
    world.env.stuck[PRIMARY] = false;
    all_is_well(&mut world);
    assert_eq!(world.env.figures.takeovers, 1);
}

/// The same, and it loses power.
#[test]
fn a_primary_with_a_stuck_card_crashes() {
    let mut world = protect(world_of(2, None));
    world.env.stuck[PRIMARY] = true;
    assert!(until(&mut world, 5 * SECOND, |world| ready(world, PRIMARY) > 0));
    until(&mut world, SECOND / 2, |_| false);
    world.crash(PRIMARY);
    world.env.stuck[PRIMARY] = false;
    all_is_well(&mut world);
}

/// Frames from the time without a backup wait for the card: the next backup will never make them, so that it must not
/// be complete before they have left.
#[test]
fn a_state_does_not_overtake_frames() {
    let mut world = protect(world_of(2, None));
    world.crash(BACKUP);
    assert!(until(&mut world, 9 * SECOND, |world| role(world, PRIMARY) == Some(Role::Alone)));
    world.env.stuck[PRIMARY] = true;
    assert!(until(&mut world, 9 * SECOND, |world| ready(world, PRIMARY) > 0));
    assert!(until(&mut world, 9 * SECOND, |world| role(world, BACKUP) == Some(Role::Loading)));
    assert!(!until(&mut world, SECOND, World::is_protected), "frames of before are still here");
    world.env.stuck[PRIMARY] = false;
    assert!(until(&mut world, 9 * SECOND, World::is_protected));
    world.crash(PRIMARY);
    all_is_well(&mut world);
}

/// A stream breaks when the state has left the primary and the joiner has read nothing; the primary never hears of it.
#[test]
fn a_stream_breaks_before_the_joiner_read_from_it() {
    let mut world = protect(world_of(2, None));
    world.crash(BACKUP);
    let sends = |world: &World| role(world, PRIMARY) == Some(Role::Transferring);
    assert!(until(&mut world, 9 * SECOND, sends));
    assert_eq!(role(&world, BACKUP), Some(Role::Joining));
    let stream =
        world.slots[PRIMARY].machine.as_ref().and_then(|machine| machine.devices.stream).expect("there is one");
    world.env.network.break_off(stream);
    world.env.queue.push(world.env.now, Event::Reset { stream, machine: BACKUP });
    all_is_well(&mut world);
}

/// A backup stands still. Its primary lets go of it, takes the third machine for its backup, and hands over to it.
#[test]
fn a_backup_stands_still_while_its_primary_hands_over_to_another() {
    let mut world = protect(world_of(3, None));
    let backup = world.find(|machine| machine.node().role() == Role::Backup).expect("it is protected");
    let third = PRIMARY + BACKUP + 2 - backup;
    assert_ne!(third, backup);
    world.freeze(backup, 60 * SECOND);
    assert!(until(&mut world, 20 * SECOND, |world| role(world, third) == Some(Role::Backup)));
    assert!(until(&mut world, SECOND, |world| role(world, PRIMARY) == Some(Role::Protected)));
    assert!(world.slots[PRIMARY].machine.as_mut().expect("it runs").request_switch());
    assert!(until(&mut world, 9 * SECOND, |world| role(world, PRIMARY) == Some(Role::Joining)));
    assert_eq!(role(&world, backup), Some(Role::Backup));
    let now = world.env.now;
    world.happen(now, Event::Thaw { machine: backup });
    let out = |world: &World| role(world, backup) != Some(Role::Backup);
    assert!(until(&mut world, 9 * SECOND, out), "it follows a machine that is no primary any more");
}

/// A primary stands still. Its backup takes over, hands over to the third machine, and follows that one. The primary
/// hears of all this from its former backup only, which is no backup of its any more: and yet it must not go on.
#[test]
fn a_primary_stood_still_while_its_backup_reigned() {
    let mut world = protect(world_of(3, None));
    let backup = world.find(|machine| machine.node().role() == Role::Backup).expect("it is protected");
    let third = PRIMARY + BACKUP + 2 - backup;
    world.freeze(PRIMARY, 60 * SECOND);
    assert!(until(&mut world, 20 * SECOND, |world| role(world, third) == Some(Role::Backup)));
    assert!(until(&mut world, SECOND, |world| role(world, backup) == Some(Role::Protected)));
    assert!(world.slots[backup].machine.as_mut().expect("it runs").request_switch());
    assert!(until(&mut world, 20 * SECOND, |world| role(world, backup) == Some(Role::Backup)));
    assert!(until(&mut world, SECOND, |world| role(world, third) == Some(Role::Protected)));
    world.env.network.set_cut(third, PRIMARY, true);
    world.env.arbiter.cut[PRIMARY] = true;
    until(&mut world, SECOND / 2, |_| false);
    // What arrived while it stood still is lost.
    world.slots[PRIMARY].inbox.clear();
    let now = world.env.now;
    world.happen(now, Event::Thaw { machine: PRIMARY });
    let halted = |world: &World| matches!(role(world, PRIMARY), Some(Role::Halted) | None);
    assert!(until(&mut world, 9 * SECOND, halted), "{:?}", role(&world, PRIMARY));
}

/// Gives the guest of the primary a frame, which no network can lose.
fn tell_guest(world: &mut World, frame: Vec<u8>) {
    let machine = world.slots[PRIMARY].machine.as_mut().expect("it runs");
    machine.devices.ingress.push_back(frame);
    world.turn(PRIMARY);
}

#[test]
fn a_guest_that_powers_off_ends_all_nodes() {
    for alone in [false, true] {
        let mut world = protect(world_of(2, None));
        if alone {
            world.crash(BACKUP);
            assert!(until(&mut world, 9 * SECOND, |world| role(world, PRIMARY) == Some(Role::Alone)));
        }
        tell_guest(&mut world, Clients::power_off());
        let halted = |world: &World, index| role(world, index).is_none_or(|role| role == Role::Halted);
        let all = |world: &World| halted(world, PRIMARY) && (alone || halted(world, BACKUP));
        assert!(until(&mut world, SECOND, all), "{:?} {:?}", role(&world, PRIMARY), role(&world, BACKUP));
        let joinable = |machine: &Machine| machine.node().role().is_primary() && machine.node().wants_connection();
        assert_eq!(world.find(joinable), None, "a joiner would never be fed");
        assert!(world.env.audit.is_powered_off());
    }
}
