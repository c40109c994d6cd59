//! One connection: bytes waiting in both directions and their seals.

use crate::handshake::{Handshake, Stranger};
use crate::message::Message;
use crate::seal::{MAX_SEALED, Opener, Sealer};
use crate::stats::Stats;
use crate::types::Time;
use alloc::vec::Vec;

/// Whether there is a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// No connection.
    Down,
    /// The other end has yet to show that it has the key.
    Greeting,
    /// Messages flow; who is at the other end has yet to be said.
    Up,
    /// Both ends agreed to be twins.
    Paired,
    /// What is queued may still leave; nothing is taken any more.
    Closing,
}

/// What becomes of messages that wait when a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queued {
    /// They are handed to the stream before it ends.
    Kept,
    /// They are of no interest any more.
    Dropped,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) state: LinkState,
    /// When the connection came up or a message last arrived on it.
    pub(crate) heard: Time,
    /// While [`LinkState::Greeting`].
    handshake: Option<Handshake>,
    key: u64,
    sealer: Sealer,
    opener: Opener,
    tx: Vec<u8>,
    tx_head: usize,
    /// Received bytes that are not yet a whole message; taken out while messages are handled.
    pub(crate) rx: Vec<u8>,
}

impl Link {
    pub(crate) fn down() -> Self {
        Self {
            state: LinkState::Down,
            heard: Time(0),
            handshake: None,
            key: 0,
            sealer: Sealer::default(),
            opener: Opener::default(),
            tx: Vec::new(),
            tx_head: 0,
            rx: Vec::new(),
        }
    }

    /// A connection, as far as its `handshake` has come.
    pub(crate) fn open(now: Time, handshake: Handshake) -> Self {
        let mut link = Self { state: LinkState::Greeting, heard: now, handshake: Some(handshake), ..Self::down() };
        link.follow_handshake();
        link
    }

    /// Takes bytes before the first message; returns how many.
    pub(crate) fn greet(&mut self, bytes: &[u8]) -> Result<usize, Stranger> {
        let Some(handshake) = &mut self.handshake else { return Ok(0) };
        let taken = handshake.receive(bytes)?;
        self.follow_handshake();
        Ok(taken)
    }

    fn follow_handshake(&mut self) {
        let Some(handshake) = &mut self.handshake else { return };
        self.tx.extend_from_slice(&handshake.take_queued());
        if let Some((sealer, opener)) = handshake.finish() {
            (self.sealer, self.opener, self.key) = (sealer, opener, handshake.key());
            (self.state, self.handshake) = (LinkState::Up, None);
        }
    }

    /// The fingerprint of the key under which it was begun, once messages flow; 0 is none.
    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    /// Whether messages flow.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, LinkState::Up | LinkState::Paired)
    }

    /// Whether there is a connection that neither end has closed.
    pub(crate) fn is_open(&self) -> bool {
        self.state == LinkState::Greeting || self.is_up()
    }

    pub(crate) fn is_paired(&self) -> bool {
        self.state == LinkState::Paired
    }

    /// Both ends of this connection agreed to be twins.
    pub(crate) fn pair(&mut self) {
        self.state = LinkState::Paired;
    }

    pub(crate) fn opener(&mut self) -> &mut Opener {
        &mut self.opener
    }

    /// Queues a message; dropped when there is no connection.
    pub(crate) fn send(&mut self, stats: &mut Stats, message: &Message<'_>) {
        self.send_with(stats, message.kind(), |out| message.encode(out));
    }

    /// Queues a message whose payload `write` appends; returns its sealed size.
    pub(crate) fn send_with(&mut self, stats: &mut Stats, kind: u8, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        if !self.is_up() {
            return 0;
        }
        let start = self.tx.len();
        self.sealer.seal(&mut self.tx, kind, write);
        stats.messages_sent += 1;
        self.tx.len() - start
    }

    /// Ends the connection.
    pub(crate) fn close(&mut self, queued: Queued) {
        self.state = LinkState::Closing;
        self.rx.clear();
        self.handshake = None;
        if queued == Queued::Dropped {
            self.tx.clear();
            self.tx_head = 0;
        }
    }

    pub(crate) fn queued(&self) -> &[u8] {
        &self.tx[self.tx_head..]
    }

    /// Forgets `count` queued bytes. Copies only when as much is forgotten as is kept.
    pub(crate) fn sent(&mut self, count: usize) {
        assert!(count <= self.queued().len(), "more bytes transmitted than were queued");
        self.tx_head += count;
        if self.tx_head * 2 >= self.tx.len() {
            self.tx.drain(..self.tx_head);
            self.tx_head = 0;
        }
    }

    /// How many bytes may be received, at most one message beyond what was handled.
    pub(crate) fn receive_room(&self) -> usize {
        if self.is_open() { MAX_SEALED.saturating_sub(self.rx.len()) } else { 0 }
    }
}
