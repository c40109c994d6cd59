//! Rules that seeds cannot or hardly tell from their opposite, each told as a story of one or two nodes: what breaks them is
//! a forged or damaged message, or a moment that is too short to be met by chance.

mod arbiter;
mod keys;

use crate::machine::identity;
use core::net::Ipv4Addr;
use pollux_ft::heartbeat::{Heartbeat, pair_digest};
use pollux_ft::message::Message;
use pollux_ft::seal::Sealer;
use pollux_ft::{
    Config, EntryRef, Identity, Meeting, Mutation, Node, NodeId, PairKey, Position, Protection, Role, Seq, SessionId,
    Start, Term, Time, Verdict,
};

/// A story: whether the rule that it is about holds, with `Some` broken rule in all nodes.
type Tell = fn(Option<Mutation>) -> Result<(), &'static str>;

/// The stories, and the rule that each is about.
const STORIES: [(Mutation, Tell); 23] = [
    (Mutation::JoinedOfAnySession, joined_of_another_session),
    (Mutation::OldHeartbeatCounts, a_heartbeat_comes_again),
    (Mutation::NumbersRestart, a_log_goes_on_after_a_takeover),
    (Mutation::HandOverAckedEarly, a_stream_breaks_before_the_hand_over_arrived),
    (Mutation::PowerOffAckedEarly, an_ack_comes_before_the_power_off_arrived),
    (Mutation::AcksNotMissed, a_backup_that_lives_and_acks_nothing),
    (Mutation::OwnPauseIgnored, both_stood_still),
    (Mutation::PairingSkipped, a_machine_with_another_memory_joins),
    (Mutation::HandOverToAnybody, a_stranger_claims_the_next_term_in_a_hand_over),
    (Mutation::OldSessionDrops, a_heartbeat_of_the_session_before),
    (Mutation::BidBeforeDrained, a_backup_with_entries_left),
    (Mutation::NewerJoinerAccepted, a_joiner_of_a_newer_reign),
    (Mutation::StreamTagNotChecked, a_bit_of_the_log_is_changed_on_the_way),
    (Mutation::PrologueIgnored, a_joiner_is_led_to_another_machine),
    (Mutation::GreetingIgnored, a_joiner_is_recorded_and_comes_again),
    (Mutation::ArbiterTagNotChecked, arbiter::a_refusal_is_changed_on_the_way),
    (Mutation::ArbiterNonceNotCompared, arbiter::a_good_answer_is_sent_again),
    (Mutation::ArbiterTermNotCompared, arbiter::a_nonce_comes_twice),
    (Mutation::OldPromiseCounts, a_promise_of_a_former_life),
    (Mutation::OldKeyFallsSilent, keys::one_machine_has_the_next_key),
    (Mutation::KeyForgottenUnseen, keys::the_old_key_is_to_be_forgotten_too_early),
    (Mutation::ForgottenKeyOpens, keys::a_key_is_forgotten_in_a_handshake),
    (Mutation::OtherKeyUnheard, keys::a_machine_starts_with_the_old_key_alone),
];

/// Between whom a connection is; without a key nobody asks.
const MEETING: Meeting = Meeting { dialer: Ipv4Addr::LOCALHOST, listener: Ipv4Addr::LOCALHOST, random: [0; 32] };
const PRIMARY: NodeId = NodeId(1);
const BACKUP: NodeId = NodeId(2);
const STRANGER: NodeId = NodeId(77);
/// The guest's memory position when its state was sent.
const START: Position = Position(1000);

/// Tells the story about `rule`, if there is one, with it broken: what went wrong then.
#[must_use]
pub fn told_of(rule: Mutation) -> Option<&'static str> {
    let (_, tell) = STORIES.iter().find(|(about, _)| *about == rule)?;
    tell(Some(rule)).err()
}

/// Whether there is a story about `rule`.
#[must_use]
pub fn is_told(rule: Mutation) -> bool {
    STORIES.iter().any(|(about, _)| *about == rule)
}

fn holds(what: bool, else_: &'static str) -> Result<(), &'static str> {
    if what { Ok(()) } else { Err(else_) }
}

fn ms(ms: u64) -> Time {
    Time(ms * 1000)
}

fn node(start: Start, mutation: Option<Mutation>, identity: Identity) -> Node {
    let config = Config { mutation, ..Config::default() };
    Node::new(ms(0), start, config, identity).expect("the defaults make sense")
}

/// Moves what `from` has for `to`, once.
fn pump(now: Time, from: &mut Node, to: &mut Node) {
    let taken = to.receive(now, from.transmit());
    from.transmitted(taken);
    while from.poll_action().is_some() {}
    while to.poll_action().is_some() {}
}

/// Two nodes that met, the second as joiner; the state is not sent yet.
fn met(mutation: Option<Mutation>, joiner: Identity) -> (Node, Node) {
    let mut primary = node(Start::Primary, mutation, identity(PRIMARY));
    let mut backup = node(Start::Backup, mutation, joiner);
    primary.connected(ms(0), primary.handshake(&MEETING));
    backup.connected(ms(0), backup.handshake(&MEETING));
    pump(ms(0), &mut backup, &mut primary);
    (primary, backup)
}

/// They become a protected pair, in its first session.
fn protect(primary: &mut Node, backup: &mut Node) {
    primary.finish_state(START, 0).expect("it sends the state");
    pump(ms(0), primary, backup);
    backup.joined(ms(0));
    pump(ms(0), backup, primary);
    assert_eq!((primary.role(), backup.role()), (Role::Protected, Role::Backup));
}

/// A protected pair without an arbiter.
fn protected(mutation: Option<Mutation>) -> (Node, Node) {
    let (mut primary, mut backup) = met(mutation, identity(BACKUP));
    protect(&mut primary, &mut backup);
    (primary, backup)
}

/// A protected pair with an arbiter.
fn arbitrated(mutation: Option<Mutation>) -> (Node, Node) {
    let config = Config { mutation, arbiter: true, ..Config::default() };
    let mut primary = Node::new(ms(0), Start::Primary, config.clone(), identity(PRIMARY)).expect("it makes sense");
    let mut backup = Node::new(ms(0), Start::Backup, config, identity(BACKUP)).expect("it makes sense");
    primary.arbiter_answered(ms(0), Term(1), Verdict::Granted);
    primary.connected(ms(0), primary.handshake(&MEETING));
    backup.connected(ms(0), backup.handshake(&MEETING));
    pump(ms(0), &mut backup, &mut primary);
    protect(&mut primary, &mut backup);
    (primary, backup)
}

fn beat(node: NodeId, peer: NodeId, counter: u64, role: Role, term: u64, session: u64) -> Heartbeat {
    Heartbeat {
        pair: pair_digest("gemini"),
        node,
        peer,
        counter,
        heard: [PRIMARY, BACKUP, NodeId(0), NodeId(0)],
        echo: 0,
        answers: 0,
        creator: NodeId(0),
        term: Term(term),
        role,
        session: SessionId(session),
        linked: true,
        seq: Seq(0),
        position: Position(0),
        time: ms(0),
    }
}

fn append(primary: &mut Node, entry: EntryRef<'_>) {
    primary.append(ms(0), START, entry).expect("there is room");
}

/// Ticks every 50 ms, both ends included.
fn tick(node: &mut Node, from: u64, to: u64) {
    (from..=to).step_by(50).for_each(|at| node.tick(ms(at)));
}

fn joined_of_another_session(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let (mut primary, mut backup) =
        (node(Start::Primary, mutation, identity(PRIMARY)), node(Start::Backup, None, identity(BACKUP)));
    primary.connected(ms(0), primary.handshake(&MEETING));
    backup.connected(ms(0), backup.handshake(&MEETING));
    // The joiner's end of the stream is ours behind its Hello.
    let (mut sealer, mut bytes, mut hello) = (Sealer::default(), Vec::new(), backup.transmit().to_vec());
    let opened =
        pollux_ft::seal::Opener::default().open(&mut hello).ok().flatten().map(|opened| opened.payload.to_vec());
    sealer.seal(&mut bytes, 1, |out| out.extend_from_slice(&opened.expect("a node says Hello")));
    primary.receive(ms(0), &bytes);
    primary.finish_state(START, 0).expect("it sends the state");
    primary.transmitted(primary.transmit().len());
    bytes.clear();
    let joined = Message::Joined(SessionId(9));
    sealer.seal(&mut bytes, joined.kind(), |out| joined.encode(out));
    primary.receive(ms(0), &bytes);
    holds(primary.role() != Role::Protected, "a joiner of session 9 is taken for the backup of session 1")
}

fn a_heartbeat_comes_again(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let (mut primary, mut backup) = protected(mutation);
    primary.tick(ms(0));
    let datagram = primary.poll_datagram(ms(0)).expect("one is due");
    backup.heartbeat_received(ms(0), &datagram);
    backup.heartbeat_received(ms(900), &datagram);
    holds(backup.last_heard() == ms(0), "a heartbeat of 900 ms ago is a sign of life")
}

fn a_log_goes_on_after_a_takeover(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let (mut primary, mut backup) = protected(mutation);
    append(&mut primary, EntryRef::Output);
    pump(ms(0), &mut primary, &mut backup);
    let held = backup.newest();
    tick(&mut backup, 0, 1000);
    backup.go_live(ms(1000), START).expect("there is no arbiter, and the log is drained");
    holds(held == Seq(1) && backup.newest() == held, "two entries of a guest have the same number")
}

fn a_stream_breaks_before_the_hand_over_arrived(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let (mut primary, mut backup) = protected(mutation);
    append(&mut primary, EntryRef::Output);
    pump(ms(0), &mut primary, &mut backup);
    primary.switch_over(ms(0), START).expect("there is a backup");
    pump(ms(0), &mut backup, &mut primary);
    primary.disconnected(ms(0));
    holds(primary.role() == Role::Detaching, "the guest stands still for ever: the backup never had the hand-over")
}

fn an_ack_comes_before_the_power_off_arrived(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let (mut primary, mut backup) = protected(mutation);
    append(&mut primary, EntryRef::Output);
    pump(ms(0), &mut primary, &mut backup);
    append(&mut primary, EntryRef::Control(pollux_ft::Control::PowerOff));
    pump(ms(0), &mut backup, &mut primary);
    holds(primary.role() == Role::Protected, "the backup knows nothing of the power-off and takes over")
}

fn a_backup_that_lives_and_acks_nothing(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let (mut primary, mut backup) = protected(mutation);
    // A mark where the guest stands: there is nothing for it to do.
    append(&mut primary, EntryRef::Output);
    primary.transmitted(primary.transmit().len());
    for at in (0..=3500).step_by(50) {
        backup.tick(ms(at));
        if let Some(datagram) = backup.poll_datagram(ms(at)) {
            primary.heartbeat_received(ms(at), &datagram);
        }
        primary.tick(ms(at));
        if at < 3000 && primary.role() != Role::Protected {
            return Err("it is let go of too early");
        }
    }
    holds(primary.role() == Role::Detaching, "output waits for ever for a backup that acks nothing")
}

fn both_stood_still(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let (mut primary, mut backup) = protected(mutation);
    tick(&mut primary, 0, 100);
    tick(&mut backup, 0, 100);
    primary.tick(ms(60_000));
    backup.tick(ms(60_000));
    let roles = (primary.role(), backup.role());
    holds(roles == (Role::Protected, Role::Backup), "a machine that slept takes its twin for dead")
}

fn a_machine_with_another_memory_joins(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let (primary, _) = met(mutation, Identity { guest_memory: 4096, ..identity(BACKUP) });
    holds(primary.role() == Role::Alone, "a state is sent to a machine whose memory has another size")
}

fn a_stranger_claims_the_next_term_in_a_hand_over(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let (mut primary, _) = protected(mutation);
    primary.switch_over(ms(0), START).expect("there is a backup");
    primary.heartbeat_received(ms(0), &beat(STRANGER, NodeId(0), 5, Role::Alone, 2, 0).encode(&Protection::default()));
    holds(primary.role() == Role::Halted, "a stranger is said to have taken the guest over")
}

fn a_heartbeat_of_the_session_before(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let (_, mut backup) = protected(mutation);
    backup.heartbeat_received(ms(0), &beat(PRIMARY, BACKUP, 100, Role::Alone, 1, 0).encode(&Protection::default()));
    holds(backup.role() == Role::Backup, "a backup throws its guest away for a heartbeat from before its session")
}

fn a_backup_with_entries_left(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let (mut primary, mut backup) = arbitrated(mutation);
    append(&mut primary, EntryRef::PacketIn(&[1; 60]));
    primary.flush(ms(0));
    pump(ms(0), &mut primary, &mut backup);
    tick(&mut backup, 0, 1000);
    let live = backup.go_live(ms(1000), START);
    holds(live.is_err() && backup.asks_for().is_none(), "a term is asked for that the backup cannot use yet")
}

fn a_joiner_of_a_newer_reign(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let mut primary = node(Start::Primary, mutation, identity(PRIMARY));
    let mut newer = node(Start::Backup, None, identity(BACKUP));
    // It was the backup of a primary of term 9.
    let config = Config { first_term: Term(9), ..Config::default() };
    let mut other = Node::new(ms(0), Start::Primary, config, identity(STRANGER)).expect("it makes sense");
    other.connected(ms(0), other.handshake(&MEETING));
    newer.connected(ms(0), newer.handshake(&MEETING));
    pump(ms(0), &mut newer, &mut other);
    pump(ms(0), &mut other, &mut newer);
    newer.disconnected(ms(0));
    while newer.poll_action().is_some() {}
    primary.connected(ms(0), primary.handshake(&MEETING));
    newer.connected(ms(0), newer.handshake(&MEETING));
    pump(ms(0), &mut newer, &mut primary);
    holds(primary.role() == Role::Halted, "a primary goes on that met a machine of a newer reign")
}

/// A node with a key.
fn keyed(start: Start, mutation: Option<Mutation>, id: NodeId) -> Node {
    let config = Config { mutation, protection: Protection::from(PairKey::new(&[1; 32])), ..Config::default() };
    Node::new(ms(0), start, config, identity(id)).expect("the defaults make sense")
}

/// A protected pair with a key.
fn protected_by_key(mutation: Option<Mutation>) -> (Node, Node) {
    let mut primary = keyed(Start::Primary, mutation, PRIMARY);
    let mut backup = keyed(Start::Backup, mutation, BACKUP);
    primary.connected(ms(0), primary.handshake(&MEETING));
    backup.connected(ms(0), backup.handshake(&MEETING));
    for _ in 0..3 {
        pump(ms(0), &mut primary, &mut backup);
        pump(ms(0), &mut backup, &mut primary);
    }
    protect(&mut primary, &mut backup);
    (primary, backup)
}

fn a_bit_of_the_log_is_changed_on_the_way(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let (mut primary, mut backup) = protected_by_key(mutation);
    append(&mut primary, EntryRef::PacketIn(&[1; 60]));
    primary.flush(ms(0));
    let mut bytes = primary.transmit().to_vec();
    let frame = bytes.len() - 30;
    bytes[frame] ^= 1;
    backup.receive(ms(0), &bytes);
    holds(backup.next_record().is_none(), "a frame is logged that nobody sent")
}

/// What a joiner that dials as `theirs` says to a primary that listens as `ours`; whether the door opens.
fn opens(primary: &Node, ours: &Meeting, joiner: &Node, theirs: &Meeting) -> (bool, Vec<u8>) {
    let (mut door, mut guest, mut said) = (primary.handshake(ours), joiner.handshake(theirs), Vec::new());
    for _ in 0..2 {
        let (of_door, of_guest) = (door.transmit().to_vec(), guest.transmit().to_vec());
        door.transmitted(of_door.len());
        guest.transmitted(of_guest.len());
        // Either may find that the other is a stranger.
        let _ = (guest.receive(&of_door), door.receive(&of_guest));
        said.extend(of_guest);
    }
    (door.is_done(), said)
}

fn a_joiner_is_led_to_another_machine(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let primary = keyed(Start::Primary, mutation, PRIMARY);
    let joiner = keyed(Start::Backup, mutation, BACKUP);
    let elsewhere = Meeting { listener: Ipv4Addr::new(10, 0, 1, 9), ..MEETING };
    let (opens, _) = opens(&primary, &MEETING, &joiner, &elsewhere);
    holds(!opens, "a joiner is taken in that dialled another machine")
}

fn a_joiner_is_recorded_and_comes_again(mutation: Option<Mutation>) -> Result<(), &'static str> {
    let primary = keyed(Start::Primary, mutation, PRIMARY);
    let joiner = keyed(Start::Backup, mutation, BACKUP);
    let (opened, said) = opens(&primary, &MEETING, &joiner, &MEETING);
    holds(opened, "a joiner with the key is a stranger")?;
    let mut door = primary.handshake(&Meeting { random: [9; 32], ..MEETING });
    let taken = door.receive(&said);
    holds(taken.is_err() && !door.is_done(), "what a joiner said once opens the door again")
}

/// A machine that starts by itself, and two lives of its twin's: it promises the second one to leave the guest to that, and
/// then hears what the first one had promised.
fn a_promise_of_a_former_life(mutation: Option<Mutation>) -> Result<(), &'static str> {
    const FORMER: NodeId = NodeId(9);
    let mut own = node(Start::Auto, mutation, identity(BACKUP));
    let say = |own: &mut Node, node: NodeId, counter: u64, answers: u64, creator: NodeId| {
        let beat = Heartbeat { answers, creator, ..beat(node, NodeId(0), counter, Role::Joining, 0, 0) };
        own.heartbeat_received(ms(2000), &Heartbeat { heard: [BACKUP; 4], ..beat }.encode(&Protection::default()));
        while own.poll_action().is_some() {}
    };
    tick(&mut own, 0, 2000);
    while own.poll_datagram(ms(2000)).is_some() {}
    say(&mut own, FORMER, 1, 1, NodeId(0));
    // Of the lower id, which is thus the one to create the guest.
    say(&mut own, PRIMARY, 1, u64::MAX, PRIMARY);
    for counter in 2..6 {
        say(&mut own, FORMER, counter, 1, BACKUP);
    }
    holds(own.role() == Role::Joining, "a guest is created that was promised to be the twin's")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_holds_unless_it_is_broken() {
        for (rule, tell) in STORIES {
            assert_eq!(tell(None), Ok(()), "{rule:?}");
            assert!(told_of(rule).is_some(), "{rule:?} is broken, and the story ends well");
        }
    }
}
