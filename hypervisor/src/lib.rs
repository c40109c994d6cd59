//! Pollux, the hypervisor: everything of it that can be tested on the host.
//!
//! The binary (`main.rs`) is a thin shell around this library; see `ARCHITECTURE.md` for the map.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod boot_files;
pub mod config;
pub mod counter;
pub mod cpu;
pub mod emulate;
pub mod extended;
pub mod guest;
pub mod host;
pub mod memory;
pub mod platform;
pub mod replica;
pub mod state;
pub mod stops;
