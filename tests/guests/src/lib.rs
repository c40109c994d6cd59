//! The runtime of the guests in `src/bin`: small PVH kernels, each for one property.
//!
//! They run on Pollux as well as on plain QEMU. What is pure logic is tested on the host; everything that touches the machine
//! exists only for the bare-metal target.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod ballast;
pub mod command;
pub mod connection;
pub mod exchange;
pub mod observe;
pub mod options;
pub mod random;
pub mod reflect;
pub mod reply;
pub mod resp;
pub mod session;
pub mod sieve;
pub mod store;
pub mod transaction;

#[cfg(target_os = "none")]
pub mod absurd_rings;
#[cfg(target_os = "none")]
pub mod clock;
#[cfg(target_os = "none")]
pub mod compat;
#[cfg(target_os = "none")]
pub mod cpu;
#[cfg(target_os = "none")]
pub mod disk;
#[cfg(target_os = "none")]
pub mod interrupts;
#[cfg(target_os = "none")]
pub mod lapic;
#[cfg(target_os = "none")]
pub mod net;
#[cfg(target_os = "none")]
pub mod nic;
#[cfg(target_os = "none")]
pub mod pages;
#[cfg(target_os = "none")]
pub mod pci;
#[cfg(target_os = "none")]
pub mod runtime;
#[cfg(target_os = "none")]
pub mod rx_poll;
#[cfg(target_os = "none")]
pub mod segments;
#[cfg(target_os = "none")]
pub mod serial;
#[cfg(target_os = "none")]
pub mod tables;
#[cfg(target_os = "none")]
pub mod virtio;
pub mod work;
#[cfg(target_os = "none")]
pub mod xsave;
