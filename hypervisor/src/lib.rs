//! Pollux, the hypervisor: everything of it that can be tested on the host. The binary (`main.rs`) is a thin shell around
//! this library.
//!
//! # Map
//!
//! | to see | start at |
//! |---|---|
//! | how a machine starts, and what its options are | [`boot_files`], [`config`], [`pollux_boot`] |
//! | how the guest is stopped at exactly the chosen instruction | [`counter`], then [`guest::Guest::run`] |
//! | how a processor runs the guest, by vendor | [`cpu`], its [`svm`](cpu::svm) and [`vmx`](cpu::vmx) |
//! | what machine the guest sees | [`platform`], and [`emulate`] for instructions that reach a device |
//! | what is saved, sent to the twin and hashed | [`state`], [`memory`] |
//! | who may run the guest, and when output may leave | [`pollux_ft::decide`], asked by [`pollux_ft::Node`] |
//! | what is done when: inputs, log, state transfer, takeover | [`pollux_driver::Driver`] |
//! | how a frame is held until the twin has the log | [`pollux_nic::Gate`] |
//! | how all that is joined on a machine | [`replica`], over the devices in [`host`] |
//! | whether the stops are exact on this machine | [`stops`], [`counter::selftest`] |
//! | whether a machine can run Pollux at all | [`probe`] |
//!
//! The replication crates know nothing of this one: `pollux_ft` decides and does no I/O, `pollux_driver` obeys it and
//! knows guest and machine as traits, `pollux_nic` has the cards and the gate. `ARCHITECTURE.md` has the borders, the life
//! of a packet, a stop, a backup and a takeover, and the invariants.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod boot_files;
pub mod broken;
pub mod config;
pub mod counter;
pub mod cpu;
pub mod emulate;
pub mod extended;
pub mod guest;
pub mod host;
pub mod memory;
pub mod mmu;
pub mod platform;
pub mod probe;
pub mod random;
pub mod replica;
pub mod state;
pub mod stops;
