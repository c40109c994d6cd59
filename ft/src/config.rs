//! What can be tuned.

use crate::key::Protection;
use crate::mutation::Mutation;
use crate::seal::MAX_SEALED;
use crate::types::{Span, Term};

/// Times and sizes of a node. Both twins should use the same values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Distance between two heartbeats. Default 100 ms.
    pub heartbeat_interval: Span,
    /// Total silence after which the twin is taken for dead. Default 1 s; several heartbeat intervals.
    pub suspect_after: Span,
    /// How long a living twin may leave sent entries without any new ack before the primary lets go of it.
    /// Default 3 s.
    pub ack_timeout: Span,
    /// How long an ack may wait for company when no output depends on it. Default 50 ms.
    pub ack_delay: Span,
    /// How long other entries than those below may wait in an open batch, those of a guest that hardly runs: for another the
    /// driver has them sent. Default 250 ms.
    pub batch_delay: Span,
    /// How long a packet or console bytes may wait in an open batch. Default 10 ms.
    pub packet_delay: Span,
    /// An open batch is sent when it holds this many bytes. Default 8 KiB.
    pub batch_bytes: usize,
    /// Bound on bytes waiting for transmission. Default 512 KiB; not less than two of the largest messages.
    pub send_buffer_bytes: usize,
    /// The backup reads no more while so many bytes of entries, or of state to load, wait. Default 4 MiB.
    pub receive_buffer_bytes: usize,
    /// Bound on entries that are appended but not applied by the backup. Default 65536.
    pub max_entries: u64,
    /// Whether there is an arbiter to ask for terms. Without one each question is granted at once, and a partition can
    /// leave two machines live. Default false.
    pub arbiter: bool,
    /// Whether it is asked in sealed words, so that nobody else can answer. Default false.
    pub sealed_arbiter: bool,
    /// The term that a machine started as primary bids for. Default 1; higher where the arbiter remembers more.
    pub first_term: Term,
    /// After how long without a sign of life of any machine one that started by itself takes its twin for dead, and creates
    /// the guest: an operator's word that the twin has none, which is not checked. Default: it waits.
    pub alone_after: Option<Span>,
    /// Bytes of what a backup is told that may wait for a recorder, see [`crate::record`]. Default 0: nothing is recorded.
    pub record_bytes: usize,
    /// Whether this machine only follows: whatever becomes of the primary, it never goes live, but halts. Default false.
    pub follows_only: bool,
    /// Whether a backup whose primary falls silent executes no more of its log, and goes live with what is left of it.
    /// **Wrong**: only to show what comes of it. Default false.
    pub goes_live_undrained: bool,
    /// What protects the machines' words. Default: a checksum.
    pub protection: Protection,
    /// The rule to break.
    #[cfg(feature = "mutations")]
    pub mutation: Option<Mutation>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat_interval: Span::from_millis(100),
            suspect_after: Span::from_millis(1000),
            ack_timeout: Span::from_millis(3000),
            ack_delay: Span::from_millis(50),
            batch_delay: Span::from_millis(250),
            packet_delay: Span::from_millis(10),
            batch_bytes: 8 * 1024,
            send_buffer_bytes: 512 * 1024,
            receive_buffer_bytes: 4 * 1024 * 1024,
            max_entries: 65536,
            arbiter: false,
            sealed_arbiter: false,
            first_term: Term(1),
            alone_after: None,
            record_bytes: 0,
            follows_only: false,
            goes_live_undrained: false,
            protection: Protection::default(),
            #[cfg(feature = "mutations")]
            mutation: None,
        }
    }
}

impl Config {
    /// Checks that the values make sense together.
    ///
    /// # Errors
    /// A sentence that says what does not.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.heartbeat_interval.0 == 0 {
            return Err("the heartbeat interval must not be zero");
        }
        if self.suspect_after.0 < self.heartbeat_interval.0.saturating_mul(3) {
            return Err("suspicion must take at least three heartbeat intervals");
        }
        if self.ack_timeout < self.suspect_after {
            return Err("the ack timeout must not be shorter than the time to suspicion");
        }
        if self.ack_delay >= self.suspect_after || self.batch_delay >= self.suspect_after {
            return Err("suspicion must take longer than acks and batches wait");
        }
        if self.packet_delay >= self.suspect_after {
            return Err("packets must not wait as long as suspicion takes");
        }
        if self.batch_bytes == 0 || self.batch_bytes > MAX_SEALED / 2 {
            return Err("the batch size must lie between 1 byte and half of the largest message");
        }
        if self.send_buffer_bytes < 2 * MAX_SEALED {
            return Err("the send buffer must hold two of the largest messages");
        }
        if self.receive_buffer_bytes == 0 || self.max_entries < 16 {
            return Err("the log buffers are too small");
        }
        if self.alone_after.is_some_and(|after| after.0 < self.suspect_after.0.saturating_mul(2)) {
            return Err("a twin must not be declared dead before twice the time to suspicion");
        }
        if self.first_term == Term(0) {
            return Err("terms start at 1");
        }
        Ok(())
    }

    /// Whether `rule` is broken on purpose.
    #[cfg(feature = "mutations")]
    #[must_use]
    pub fn broken(&self, rule: Mutation) -> bool {
        self.mutation == Some(rule)
    }

    /// No rule is ever broken: the feature `mutations` is off.
    #[cfg(not(feature = "mutations"))]
    #[must_use]
    pub const fn broken(&self, _: Mutation) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_pass_and_nonsense_does_not() {
        assert_eq!(Config::default().check(), Ok(()));
        assert!(Config { heartbeat_interval: Span(0), ..Config::default() }.check().is_err());
        assert!(Config { suspect_after: Span(100), ..Config::default() }.check().is_err());
        assert!(Config { send_buffer_bytes: 1000, ..Config::default() }.check().is_err());
        assert!(Config { first_term: Term(0), ..Config::default() }.check().is_err());
        assert!(Config { batch_bytes: MAX_SEALED, ..Config::default() }.check().is_err());
    }
}
