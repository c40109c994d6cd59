//! The machine's own drive: an NVMe controller, and the partitions on what it stores.
//!
//! * [`Nvme`] drives a controller: one namespace, one pair of I/O queues, polled or with one interrupt. Data goes through
//!   buffers of its own, one for each command that may be at work, whose lists of pages are written once; nothing is
//!   allocated after the start.
//! * [`gpt`] finds a partition, and says when a drive has a partition table at all.
//!
//! Like the cards' drivers it has no clock and does no scanning: time comes in as an argument, in microseconds, and the caller
//! hands over registers and memory. Nothing waits: start, reset and commands go on in [`Nvme::poll`], so that a drive that is
//! slow or dead keeps the machine from nothing.
//!
//! What a controller writes is not believed. A completion of a command that is not at work, of a queue that there is not, or
//! with an impossible queue head is a [`Fault`]: the controller is reset, and only when it has stopped are the commands that
//! it had ended as lost, and their buffers used again.
//!
//! `nvme-driver` 0.8 on the registry was looked at and not taken: it has no timeouts and no reset, numbers commands by their
//! slot, so that a completion that comes twice ends the next command, and comes with four crates of its own framework.
//!
//! See: NVM Express Base Specification 2.0, and NVM Command Set Specification 1.0.

#![cfg_attr(not(any(test, feature = "testing")), no_std)]

mod buffers;
mod command;
mod controller;
pub mod gpt;
mod identify;
mod outcome;
mod queue;
mod registers;
mod setup;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use buffers::{BUFFER_BYTES, COMMANDS, DMA_ALIGNMENT, DMA_BYTES, Data};
pub use command::{Request, Status};
pub use controller::Nvme;
pub use identify::{Geometry, Unusable};
pub use outcome::{Condition, Fault, Lost, OpenError, Settings, SubmitError};
pub use registers::REGISTER_BYTES;
