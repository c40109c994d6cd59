//! What the fabric counts, from its start on.

use serde::{Deserialize, Serialize};

use super::link::Refusal;
use super::{Network, SLOTS};

/// Frames that were not delivered, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// Nobody listens at the port.
    pub absent: u64,
    /// The receiver is there but does not take frames fast enough.
    pub queue_full: u64,
    /// A link on the way is down.
    pub down: u64,
    /// Lost on purpose, by a link's loss setting.
    pub lost: u64,
    /// Shorter than 14 or longer than 1518 bytes.
    pub malformed: u64,
}

impl Drops {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.absent + self.queue_full + self.down + self.lost + self.malformed
    }

    pub(super) fn refuse(&mut self, refusal: Refusal) {
        match refusal {
            Refusal::Down => self.down += 1,
            Refusal::Lost => self.lost += 1,
        }
    }
}

/// One port of a switch. "Sent" and "received" as the attached machine sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStats {
    /// Frames that the machine sent and the switch took.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames delivered to the machine.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames from this machine that the switch refused or its cable lost (`malformed`, `down`, `lost`), and frames
    /// for this machine that did not arrive.
    pub dropped: Drops,
}

impl PortStats {
    /// The sum with another port's.
    pub fn plus(&self, other: &Self) -> Self {
        let (own, others) = (self.dropped, other.dropped);
        Self {
            sent_frames: self.sent_frames + other.sent_frames,
            sent_bytes: self.sent_bytes + other.sent_bytes,
            received_frames: self.received_frames + other.received_frames,
            received_bytes: self.received_bytes + other.received_bytes,
            dropped: Drops {
                absent: own.absent + others.absent,
                queue_full: own.queue_full + others.queue_full,
                down: own.down + others.down,
                lost: own.lost + others.lost,
                malformed: own.malformed + others.malformed,
            },
        }
    }
}

/// One network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStats {
    /// Which.
    pub network: Network,
    /// The machines' ports.
    pub slots: [PortStats; SLOTS],
    /// The forwarder or the tap; always zero on the log network.
    pub host: PortStats,
    /// The arbiter's host.
    pub arbiter: PortStats,
    /// Frames that a full capture file did not take.
    pub not_captured: u64,
    /// Times that an address was heard at another port than before: on the client network, that the guest moved.
    pub moves: u64,
}

impl NetworkStats {
    /// All ports summed up.
    pub fn total(&self) -> PortStats {
        self.slots.iter().chain([&self.host, &self.arbiter]).fold(PortStats::default(), |sum, port| sum.plus(port))
    }
}

/// The forwarder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardStats {
    /// TCP connections accepted.
    pub accepted: u64,
    /// TCP connections open now.
    pub open: u64,
    /// Connections that the guest reset.
    pub reset_by_guest: u64,
    /// Connections that the client reset.
    pub reset_by_client: u64,
    /// Times that everything unacknowledged was sent again because the guest had been silent or had moved.
    pub nudges: u64,
    /// UDP datagrams that did not fit in a frame or found no room.
    pub udp_dropped: u64,
}

/// The arbiter's hosts on both networks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayStats {
    /// TCP connections accepted from machines.
    pub accepted: u64,
    /// Connections that the arbiter did not take, or reset.
    pub failed: u64,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricStats {
    /// The client network, then the log network.
    pub networks: [NetworkStats; 2],
    /// The forwarder, if there is one.
    pub forward: Option<ForwardStats>,
    /// The arbiter's hosts, if there is an arbiter.
    pub relay: Option<RelayStats>,
}
