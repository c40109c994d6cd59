//! Rigs: machines in emulators on this desk, the networks between them, and faults on demand.
//!
//! [`Rig`] owns everything that runs and is driven by [`Rig::step`] from the main thread. Other threads only read (monitors,
//! control connections) and send it [`Event`]s.

pub mod accelerator;
pub mod arbiter;
pub mod control;
pub mod directory;
pub mod emulator;
pub mod history;
mod logs;
pub mod machine;
pub mod monitor;
pub mod network;
pub mod options;
pub mod probe;
pub mod rates;
pub mod recording;
pub mod roles;
mod serial;
pub mod snapshot;
pub mod software;
mod state;

use std::fs::File;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::Duration;

use emulator::Emulator;
pub use logs::{printable, tail};
use monitor::Line;
pub use state::Rig;

use crate::guest::{GuestFiles, Probe};
use crate::net::Forward;

/// The place of a machine in the rig. The machine that runs there may change, its name and addresses do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Starts as primary.
    Castor,
    /// Starts as backup.
    Pollux,
}

/// All places.
pub const SLOTS: [Slot; 2] = [Slot::Castor, Slot::Pollux];

impl Slot {
    /// 0 or 1.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// What a rig is made of.
#[derive(Debug)]
pub struct Config {
    /// What plays the machines.
    pub emulator: Emulator,
    /// The hypervisor's image.
    pub hypervisor: PathBuf,
    /// The guest's files.
    pub guest: GuestFiles,
    /// One machine without replication instead of a pair.
    pub solo: bool,
    /// The backup starts when the guest answers, not at once.
    pub late_backup: bool,
    /// The local ports that lead to the guest, its usual service first.
    pub forwards: Vec<Forward>,
    /// The kernel interface that takes the place of the forwarder.
    pub tap: Option<String>,
    /// Whether to write `client.pcap` and `log.pcap`.
    pub capture: bool,
    /// Where to record what the backups are told.
    pub record: Option<PathBuf>,
    /// The pair's arbiter.
    pub arbiter: arbiter::Choice,
    /// Seed of the networks' randomness.
    pub seed: u64,
    /// The machines find out by themselves what they are.
    pub auto: bool,
    /// How long a machine stays dead before it is started again as a backup; for ever if not given.
    pub revive: Option<Duration>,
    /// The services that are asked until all have answered for the first time.
    pub services: Vec<Probe>,
    /// Options of the hypervisors.
    pub options: options::Common,
}

/// What other threads tell the main loop.
#[derive(Debug)]
pub enum Event {
    /// A monitor is connected; this is for commands to it.
    Connected {
        /// The machine's place.
        slot: Slot,
        /// The process that it belongs to.
        generation: u64,
        /// The writing end.
        stream: File,
    },
    /// A machine has said something.
    Monitor {
        /// The machine's place.
        slot: Slot,
        /// The process that it belongs to.
        generation: u64,
        /// What it said.
        line: Line,
    },
    /// A machine has said something that we do not understand.
    Malformed {
        /// The machine's place.
        slot: Slot,
        /// The process that it belongs to.
        generation: u64,
        /// The line.
        text: String,
        /// Where it is wrong, from 1.
        column: usize,
        /// What is wrong with it.
        error: String,
    },
    /// Somebody asks for something at the control socket.
    Control {
        /// What.
        request: control::Request,
        /// Where the answer goes.
        reply: Sender<control::Response>,
    },
    /// The guest has answered for the first time.
    Answered,
}
