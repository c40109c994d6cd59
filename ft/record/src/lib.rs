//! Recordings: all that is needed to run a guest again, instruction by instruction.
//!
//! A backup gets a state and then every entry of the log. A recording is these messages in a file ([`mod@file`]), with the
//! software that the machines ran, so that it can be played long after that was built anew. [`Player`] is the primary of a
//! machine that plays it: it says what the file says, by the protocol's own code, and hears whether the machine agrees.
//!
//! A recording consists of sessions, each from a state on to the end of that backup; in between the guest ran without one,
//! and nobody can tell what it did. [`scan`] looks through a file without playing it.
#![forbid(unsafe_code)]

mod collector;
pub mod file;
mod player;
mod scan;

pub use collector::Collector;
pub use file::{Reader, Record, Writer};
pub use player::{Outcome, Player, Progress};
pub use scan::{Contents, Session, scan};
