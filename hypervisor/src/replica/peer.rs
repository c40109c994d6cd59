//! The twin: the replication node and the link that carries its bytes.

use pollux_ft::{Node, NodeId, Time};

use super::link::{Change, End, Link};
use crate::host::interrupts::Fired;

/// The protocol's state machine and its wire.
pub struct Peer {
    /// What to do.
    pub node: Node,
    /// Which node it is.
    pub id: NodeId,
    /// How bytes get across.
    pub link: Link,
}

impl Peer {
    /// Serves the card's interrupt if `fired` has it.
    pub fn interrupted(&mut self, fired: Fired) {
        self.link.interrupted(fired);
    }

    /// Moves everything that waits: frames, stream bytes, heartbeats, timers.
    pub fn poll(&mut self, now_us: u64) {
        let now = Time(now_us);
        self.link.set_end(if self.node.role().is_primary() { End::Listen } else { End::Connect });
        self.link.set_wanted(self.node.wants_connection());
        match self.link.poll(now_us) {
            Change::None => {}
            Change::Connected => self.node.connected(now),
            Change::Disconnected => self.node.disconnected(now),
        }
        let node = &mut self.node;
        self.link.receive(|bytes| {
            let room = node.receive_room().min(bytes.len());
            if room == 0 { 0 } else { node.receive(now, &bytes[..room]) }
        });
        self.link.receive_datagrams(|datagram| node.heartbeat_received(now, datagram));
        if self.node.next_timeout().is_some_and(|at| at <= now) {
            self.node.tick(now);
        }
        self.push(now_us);
    }

    /// Sends what the node has to say.
    pub fn push(&mut self, now_us: u64) {
        while let Some(datagram) = self.node.poll_datagram(Time(now_us)) {
            self.link.send_datagram(&datagram);
        }
        loop {
            let sent = self.link.send(self.node.transmit());
            if sent == 0 {
                break;
            }
            self.node.transmitted(sent);
        }
        self.link.push(now_us);
    }

    /// Sends what is left and drops the connection.
    pub fn close(&mut self, now_us: u64) {
        self.push(now_us);
        self.link.reset();
        self.node.disconnected(Time(now_us));
    }

    /// When [`poll`](Self::poll) has something to do by itself, in microseconds.
    #[must_use]
    pub fn poll_at(&self) -> Option<u64> {
        let node = self.node.next_timeout().map(|time| time.0);
        [node, self.link.poll_at()].into_iter().flatten().min()
    }
}
