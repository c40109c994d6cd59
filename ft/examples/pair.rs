//! Two machines and a loop: how a [`Node`] is driven. `cargo run -p pollux-ft --example pair`
//!
//! The contract: hand a node what happened (bytes, datagrams, the time, how far the guest ran), then drain what it has to
//! say ([`Node::transmit`], [`Node::poll_datagram`]) and what is to be done ([`Node::poll_action`]). It does no I/O.

use core::net::Ipv4Addr;
use pollux_ft::{Action, Config, EntryRef, Identity, Meeting, Node, NodeId, Position, Role, Span, Start, Time};

/// There is no key here, and no network.
const MEETING: Meeting = Meeting { dialer: Ipv4Addr::LOCALHOST, listener: Ipv4Addr::LOCALHOST, random: [0; 32] };

fn node(id: u64, start: Start) -> Node {
    let identity = Identity { node: NodeId(id), pair: "example".into(), guest_memory: 4096, ..Identity::default() };
    Node::new(Time(0), start, Config::default(), identity).expect("the defaults make sense")
}

/// Carries what `from` has to say to `to`, as a network would.
fn carry(now: Time, from: &mut Node, to: &mut Node) {
    let taken = to.receive(now, from.transmit());
    from.transmitted(taken);
    if let Some(heartbeat) = from.poll_datagram(now) {
        to.heartbeat_received(now, &heartbeat);
    }
}

/// Does what a node asks for. This guest is nothing but its position.
fn act(now: Time, node: &mut Node, released: &mut u64) {
    while let Some(action) = node.poll_action() {
        match action {
            Action::BeginTransfer => node.finish_state(Position(0), 7).expect("a backup has just asked"),
            Action::StateLoaded { digest: 7, .. } => node.joined(now),
            Action::Release(entry) => *released = entry.0,
            _ => {}
        }
    }
}

fn main() {
    let (mut castor, mut pollux) = (node(1, Start::Primary), node(2, Start::Backup));
    let (mut now, mut released) = (Time(0), 0);
    castor.connected(now, castor.handshake(&MEETING));
    pollux.connected(now, pollux.handshake(&MEETING));
    let mut castor_lives = true;
    while pollux.role() != Role::Alone {
        now = now.after(Span::from_millis(10));
        pollux.tick(now);
        act(now, &mut pollux, &mut 0);
        if castor_lives {
            castor.tick(now);
            // Ten milliseconds of guest, and something that it says.
            castor.progress(Position(now.0));
            let said = castor.append(now, Position(now.0), EntryRef::Output);
            carry(now, &mut castor, &mut pollux);
            carry(now, &mut pollux, &mut castor);
            act(now, &mut castor, &mut released);
            println!("{now:?}: castor {:?}, said {said:?}, may leave up to {released}", castor.role());
            castor_lives = released < 10;
        } else if let (Role::Draining, Some(end)) = (pollux.role(), pollux.run_limit()) {
            pollux.progress(end);
            // Asked for until the log is drained and the term is won.
            let _ = pollux.go_live(now, end);
        }
    }
    println!("{now:?}: castor is dead, pollux goes on in term {} at entry {}", pollux.term().0, pollux.newest().0);
    assert!(pollux.newest().0 >= released, "what clients saw is in its past");
}

#[test]
fn a_backup_takes_over() {
    main();
}
