//! This machine: its interrupts, clock, serial lines, PCI bus and memory.
//!
//! Everything runs in one thread with interrupts off; they are let in only between guest runs (see [`interrupts`]).

pub mod apic;
pub mod aspm;
pub mod clock;
pub mod entropy;
pub mod interrupts;
pub mod logger;
pub mod memory;
pub mod msr;
pub mod nic;
pub mod nvme;
pub mod pci;
pub mod pic;
pub mod reset;
pub mod serial;
pub mod watchdog;
