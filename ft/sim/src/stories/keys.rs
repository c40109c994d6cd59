//! Stories of a pair that changes its key.

use super::{BACKUP, MEETING, PRIMARY, holds, identity, keyed, ms, protected_by_key, pump};
use pollux_ft::{Config, Mutation, Node, PairKey, Protection, Role, Span, Start};

fn old() -> u64 {
    PairKey::new(&[1; 32]).fingerprint()
}

fn next() -> PairKey {
    PairKey::new(&[2; 32])
}

/// From one time to another, in milliseconds, all heartbeats arrive, and nothing of the stream does.
fn live(from: u64, to: u64, one: &mut Node, other: &mut Node) {
    for at in (from..to).step_by(50).map(ms) {
        one.tick(at);
        other.tick(at);
        while let Some(datagram) = one.poll_datagram(at) {
            other.heartbeat_received(at, &datagram);
        }
        while let Some(datagram) = other.poll_datagram(at) {
            one.heartbeat_received(at, &datagram);
        }
    }
}

pub(super) fn one_machine_has_the_next_key(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let (mut primary, mut backup) = protected_by_key(mutation);
    live(0, 500, &mut primary, &mut backup);
    primary.add_key(next()).expect("there is room");
    live(500, 2500, &mut primary, &mut backup);
    holds(backup.role() == Role::Backup, "a backup that has the old key alone takes its primary for dead")
}

pub(super) fn the_old_key_is_to_be_forgotten_too_early(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let (mut primary, mut backup) = protected_by_key(mutation);
    live(0, 500, &mut primary, &mut backup);
    primary.add_key(next()).expect("there is room");
    let forgot = primary.forget_key(ms(500), old()).is_ok();
    live(500, 2500, &mut primary, &mut backup);
    holds(
        !forgot && backup.role() == Role::Backup,
        "a key is forgotten that the twin needs, and its protection is lost",
    )
}

pub(super) fn a_key_is_forgotten_in_a_handshake(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let mut primary = keyed(Start::Primary, mutation, PRIMARY);
    let mut joiner = keyed(Start::Backup, mutation, BACKUP);
    primary.add_key(next()).expect("there is room");
    primary.connected(ms(0), primary.handshake(&MEETING));
    primary.forget_key(ms(0), old()).expect("nobody is heard");
    joiner.connected(ms(0), joiner.handshake(&MEETING));
    for _ in 0..4 {
        pump(ms(0), &mut joiner, &mut primary);
        pump(ms(0), &mut primary, &mut joiner);
    }
    holds(primary.role() == Role::Alone, "a machine is taken in by a key that was forgotten")
}

pub(super) fn a_machine_starts_with_the_old_key_alone(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let key = Protection::from(next());
    let running = Config { mutation, protection: key, ..Config::default() };
    let mut running = Node::new(ms(0), Start::Primary, running, identity(PRIMARY)).expect("it is right");
    let old = Protection::from(PairKey::new(&[1; 32]));
    let alone_after = Some(Span::from_millis(5000));
    let starts = Config { mutation, alone_after, protection: old, ..Config::default() };
    let mut starts = Node::new(ms(0), Start::Auto, starts, identity(BACKUP)).expect("it is right");
    live(0, 20_000, &mut running, &mut starts);
    holds(starts.role() == Role::Joining, "a machine that has the old key alone creates a second guest")
}
