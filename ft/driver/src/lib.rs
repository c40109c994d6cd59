//! What drives a guest and its node: who does what, at which exact stop, in which order.
//!
//! A [`Driver`] owns a [`Node`](pollux_ft::Node), which decides, and a [`Guest`], which runs. What is around them comes
//! in as a [`Host`]: clock, client card with its gate, link, line to the arbiter, and somebody who looks on. So the same
//! code drives real machines and simulated ones.
//!
//! In each turn the caller hands in to the node what has arrived, and calls [`Driver::turn`], which says whether to go on
//! at once or to sleep.
//!
//! | module | what |
//! |---|---|
//! | `live`, `follow` | one step of a primary, one step of a backup |
//! | `actions` | what the node asks for |
//! | [`transfer`], [`rounds`], `receive` | a state on its way to a new backup, round by round; the other end |
//! | [`takeover`] | going live, and how long it took |
//! | [`disk`] | requests to the guest's disk: when they may be begun, and when the guest sees their end |
//! | [`marks`], [`digest`], [`steering`] | when which entry is due; pure |
//! | [`guest`], [`host`] | what a guest and a machine must be able to do |
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod actions;
mod announce;
pub mod clock;
pub mod digest;
pub mod disk;
mod disk_copy;
mod driver;
mod follow;
pub mod guest;
pub mod host;
mod live;
pub mod marks;
pub mod pages;
mod receive;
mod reign;
pub mod rounds;
pub mod steering;
pub mod takeover;
pub mod transfer;
pub mod tuning;

pub use clock::GuestTime;
pub use disk::{DiskEnd, DiskOperation, DiskRequest, DiskStatus};
pub use driver::{Driver, Duty, Next, NotTyped};
pub use guest::{Guest, Output, PowerEvent, Stop};
pub use host::{ArbiterLine, Boundary, Clock, CopyState, Disk, Event, Host, LogLink, Observer, Outlet};
pub use tuning::Tuning;
