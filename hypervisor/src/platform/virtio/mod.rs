//! Virtio devices, modern only.
//! See: OASIS Virtual I/O Device (VIRTIO) version 1.2.

pub mod block;
mod msix;
pub mod net;
pub mod queue;
pub mod transport;

use super::access::Outputs;
use crate::memory::GuestMemory;
use crate::state::State;
use queue::{Queue, QueueError};

/// Feature: the device obeys version 1.
pub const F_VERSION_1: u64 = 1 << 32;
/// Feature: chains may point to a table of descriptors.
pub const F_INDIRECT: u64 = 1 << 28;
/// Feature: notifications are suppressed by index.
pub const F_EVENT_IDX: u64 = 1 << 29;

/// Bit `n` set: queue `n` has used buffers of which the driver wants to hear.
pub type Signals = u32;

/// What a device adds to the transport. The guest never runs during a call, so a call sees and leaves memory whole.
pub trait Device: State {
    /// Device type. See: section 5.
    const ID: u16;
    /// PCI class code: class, subclass, programming interface.
    const CLASS: [u8; 3];
    /// Number of queues, at most 32.
    const QUEUES: u16;
    /// Length of the device-specific configuration in bytes.
    const CONFIG_LEN: usize;

    /// Features offered.
    fn features(&self) -> u64;
    /// Writes the device-specific configuration into `bytes`, which has [`CONFIG_LEN`](Self::CONFIG_LEN) bytes.
    fn config(&self, bytes: &mut [u8]);
    /// The driver is ready; `features` are those negotiated.
    ///
    /// # Errors
    /// The queues are malformed.
    fn start(&mut self, features: u64, queues: &mut [Queue], memory: &mut GuestMemory) -> Result<(), QueueError>;
    /// The driver made buffers available in queue `index`.
    ///
    /// # Errors
    /// The queue is malformed.
    fn notify(
        &mut self,
        index: u16,
        queues: &mut [Queue],
        memory: &mut GuestMemory,
        out: &mut dyn Outputs,
    ) -> Result<Signals, QueueError>;
    /// Back to the state before the driver came.
    fn reset(&mut self);
}
