//! The arbiter of pairs: gives each term to at most one machine, and remembers it.
//!
//! It answers sealed questions ([`pollux_ft::arbiter::sealed`]) of the pairs whose keys it has, and nobody else's. For pairs
//! without a key it can speak a piece of etcd's v3 JSON gateway instead, so that a real etcd can take its place; then
//! whoever reaches it decides. Terms are kept in a file of its own, or in an etcd cluster over TLS ([`cluster`]), in any case under
//! the same names.

#![forbid(unsafe_code)]

mod ask;
pub mod cluster;
mod http;
pub mod keys;
mod kv;
mod ledger;
pub mod random;
mod range;
mod sealed;
mod service;
mod store;

pub use ask::newest_at;
pub use ledger::{Holding, Judgement, Ledger};
pub use range::newest_at as newest_in_etcd;
pub use service::{Service, Words};
pub use store::Store;
