//! Drivers for real network cards, and the output gate.
//!
//! * [`E1000`] drives the 82540EM (QEMU, Bochs) and the 82574L. It is a `smoltcp::phy::Device` and has a
//!   cheaper interface for batches beside it.
//! * [`gate`] holds the guest's frames until the twin has acknowledged the log up to them: the output rule. A backup's
//!   retains them until the primary has sent them.
//! * [`ClientNic`] joins the two so that a frame of the guest reaches the wire through the gate and in no other way.
//!
//! Descriptor rings ([`ring`]) are kept apart from register access ([`mmio`]): everything but the volatile accesses
//! themselves is tested on the host against a model of the hardware. PCI scanning, bus mastering and interrupt
//! routing belong to the caller, who hands over registers ([`MmioRegion`]) and memory ([`DmaMemory`]).
//!
//! The crate has no clock: time comes in as an argument, and waits for hardware are bounded counts of register reads.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod client;
pub mod dma;
pub mod e1000;
pub mod frame;
pub mod gate;
pub mod mmio;
pub mod ring;

pub use client::{AnnounceError, ClientNic, MachineSendError};
pub use dma::DmaMemory;
pub use e1000::{E1000, Interrupts, Model, NicError, needed_dma_bytes};
pub use frame::{FrameError, FrameSink, FrameSource, MacAddress, SendError};
pub use gate::{Gate, GateMode, HoldError, HoldOutcome, Mark};
pub use mmio::{MmioRegion, Registers};
