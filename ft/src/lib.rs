//! Replication as a sans-IO state machine.
//!
//! A [`Node`] is one of the two machines of a pair. It has no clock, no NIC and no CPU: time, received bytes and
//! the guest's progress come in as arguments, and what is to be done comes out as bytes to transmit, datagrams and
//! [`Action`]s. So the same code runs on metal, in a simulator and under a model checker.
//!
//! | module | what it decides |
//! |---|---|
//! | [`decide`] | the rules: who may run, whom to believe; pure functions over small types |
//! | [`node`] | the state machine that asks these rules |
//! | [`entry`], [`disk`], [`batch`] | the log and how it looks on the wire |
//! | [`handshake`] | how two machines with a key begin a stream |
//! | [`seal`], [`message`] | messages on the stream, and how they are protected |
//! | [`heartbeat`] | signs of life, sent as datagrams |
//! | [`key`] | the pair's key, and how it protects datagrams |
//! | [`pairing`] | may these two machines be twins? |
//! | [`flow`] | how much a lagging backup slows the primary down |
//! | [`arbiter`] | asking for a term: request and response, without the connection |
//!
//! # Bounds
//!
//! A primary takes no entry while [`Config::send_buffer_bytes`] wait for the stream or [`Config::max_entries`] are not
//! applied yet: the guest stops. A backup takes no byte off the stream while entries, or state to load, of
//! [`Config::receive_buffer_bytes`] wait, and at most one message more: the stream's own window then stops the primary.
//! Long before that [`flow`] slows the guest down.
//!
//! # Use
//!
//! `examples/pair.rs` is two nodes and a loop: hand a node what happened, then drain what it says and what it wants done.
//!
//! What is absent: nothing here reads a clock, draws a random number, or knows what a guest is.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod arbiter;
pub mod batch;
pub mod config;
pub mod decide;
pub mod disk;
pub mod entry;
pub mod flow;
pub mod handshake;
pub mod heartbeat;
pub mod key;
mod link;
pub mod message;
mod mutation;
pub mod node;
mod noise;
pub mod pairing;
pub mod record;
mod replay_log;
pub mod seal;
mod send_log;
pub mod stats;
pub mod types;
pub mod wire;

pub use config::Config;
pub use decide::Verdict;
pub use entry::{Control, Entry, EntryRef, Kind, Record};
pub use handshake::{Handshake, Meeting, Stranger};
pub use key::{KeyError, PairKey, Protection, RecordKey};
pub use mutation::Mutation;
pub use node::{Action, AppendError, HaltReason, LossReason, Node, NotLive, Start, TakenOver, WaitsFor};
pub use pairing::Identity;
pub use send_log::Lag;
pub use stats::Stats;
pub use types::{NodeId, Position, Role, Seq, SessionId, Span, Term, Time};
