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
    /// Shorter than 14 or longer than 1514 bytes.
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
pub struct PortCounters {
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

/// One network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkCounters {
    /// Which.
    pub network: Network,
    /// The machines' ports.
    pub slots: [PortCounters; SLOTS],
    /// The forwarder or the tap; always zero on the log network.
    pub host: PortCounters,
    /// Frames that a full capture file did not take.
    pub not_captured: u64,
}

impl NetworkCounters {
    /// All ports summed up.
    pub fn total(&self) -> PortCounters {
        self.slots.iter().chain([&self.host]).fold(PortCounters::default(), |sum, port| PortCounters {
            sent_frames: sum.sent_frames + port.sent_frames,
            sent_bytes: sum.sent_bytes + port.sent_bytes,
            received_frames: sum.received_frames + port.received_frames,
            received_bytes: sum.received_bytes + port.received_bytes,
            dropped: Drops {
                absent: sum.dropped.absent + port.dropped.absent,
                queue_full: sum.dropped.queue_full + port.dropped.queue_full,
                down: sum.dropped.down + port.dropped.down,
                lost: sum.dropped.lost + port.dropped.lost,
                malformed: sum.dropped.malformed + port.dropped.malformed,
            },
        })
    }
}

/// The forwarder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardCounters {
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

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricCounters {
    /// The client network, then the log network.
    pub networks: [NetworkCounters; 2],
    /// The forwarder, if there is one.
    pub forward: Option<ForwardCounters>,
}
