//! Deterministic simulation of the replication protocol.
//!
//! Under test are `pollux-ft` and `pollux-driver` themselves, behind the very gate of `pollux-nic`; what surrounds them is
//! modelled: guest, devices, networks, clients, arbiter, operators, and time. Everything in a run comes from its seed.
//!
//! | module | what |
//! |---|---|
//! | `plan`, `world` | what a seed chooses; machines, events and faults |
//! | `machine`, `guest` | the devices around a driver; the guest as a chain of all that it saw |
//! | `net`, `arbiter`, `client` | what lies between and around the machines |
//! | [`check`] | the rules, checked by somebody who sees everything |
//! | [`model`] | the decisions alone, in all orders of events |
//! | `stories` | what only a forged datagram or an evil moment brings about, step by step |
//! | [`run`], [`mutations`] | many seeds; broken rules, each of which must be noticed |
#![forbid(unsafe_code)]

mod arbiter;
pub mod check;
mod client;
mod figures;
mod frame;
mod guest;
mod machine;
pub mod model;
pub mod mutations;
mod net;
mod plan;
mod rng;
pub mod run;
#[cfg(test)]
mod scenarios;
mod stories;
mod trace;
mod world;

pub use figures::Figures;
pub use trace::Keep;
pub use world::fault::Kind;
