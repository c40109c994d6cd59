//! Counters; all cumulative since the node was made.

use crate::entry::Kind;

/// Entries of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KindCount {
    /// How many were logged.
    pub entries: u64,
    /// Their encoded size with data, without the share of the batch's head and seal.
    pub bytes: u64,
    /// Data in them (frames, console input).
    pub data: u64,
}

/// What a node counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Logged entries by [`Kind::index`], as primary.
    pub logged: [KindCount; Kind::ALL.len()],
    /// Batches sent.
    pub batches: u64,
    /// Bytes of sealed batches, all overhead above TCP included.
    pub batch_bytes: u64,
    /// Entries received, as backup.
    pub received_entries: u64,
    /// Entries applied, as backup, marks included.
    pub applied_entries: u64,
    /// Digests handed out to be compared, as backup.
    pub digests: u64,
    /// Acks sent.
    pub acks_sent: u64,
    /// Acks received.
    pub acks_received: u64,
    /// Messages sent on the stream, all types.
    pub messages_sent: u64,
    /// Messages received on the stream that passed their check.
    pub messages_received: u64,
    /// Bytes handed to the stream.
    pub stream_sent: u64,
    /// Bytes taken from the stream.
    pub stream_received: u64,
    /// Heartbeats made.
    pub heartbeats_sent: u64,
    /// Heartbeats of the twin taken.
    pub heartbeats_received: u64,
    /// Datagrams that are no heartbeat of anybody with the key.
    pub heartbeats_malformed: u64,
    /// Heartbeats that do not name this machine: of old, or of a machine that has not heard it yet.
    pub heartbeats_unanswered: u64,
    /// Heartbeats that came before, or too late.
    pub heartbeats_late: u64,
    /// Heartbeats of another pair or of a machine that is not the twin, and our own come back.
    pub heartbeats_ignored: u64,
    /// Connections of somebody without the key, or who meant another one.
    pub refused_handshakes: u64,
    /// Messages refused by the check: damaged, lost, doubled, out of order.
    pub refused_seal: u64,
    /// Messages refused because their content is malformed.
    pub refused_content: u64,
    /// Messages refused because of a gap or a step back in the log.
    pub refused_order: u64,
    /// Messages refused because they do not belong here in this role.
    pub refused_unexpected: u64,
    /// Pairings refused by either side.
    pub refused_pairings: u64,
    /// Appends refused because a buffer was full.
    pub log_full: u64,
    /// Bytes of state sent, as primary: payload of memory and machine messages.
    pub state_bytes: u64,
    /// Pages sent, as primary; one that is sent again counts again.
    pub state_pages: u64,
    /// State transfers begun, as primary.
    pub transfers: u64,
    /// Times protection was reached.
    pub protections: u64,
    /// Times protection, or a transfer, was lost.
    pub losses: u64,
    /// Times this node went live.
    pub takeovers: u64,
    /// Times this node handed its guest over in order.
    pub switch_overs: u64,
    /// Questions to the arbiter.
    pub terms_asked: u64,
    /// Terms that became ours, with or without an arbiter.
    pub terms_won: u64,
    /// Questions that the arbiter answered with another machine's name.
    pub terms_lost: u64,
    /// Terms that this node bid for as backup until it heard its primary again, and that nobody will act in.
    pub terms_burnt: u64,
    /// Answers of the arbiter that nobody waited for any more.
    pub answers_stale: u64,
    /// Takeovers called off because the primary was heard again.
    pub takeovers_cancelled: u64,
    /// Times this node noticed that it had been stopped itself.
    pub own_pauses: u64,
}

impl Stats {
    /// Count of one kind of entry.
    #[must_use]
    pub fn of(&self, kind: Kind) -> KindCount {
        self.logged[kind.index()]
    }
}
