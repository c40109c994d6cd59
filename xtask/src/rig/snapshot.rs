//! What is known about a running rig at one moment, for the live view, `rig status` and the benchmarks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::arbiter::ArbiterSnapshot;
use super::monitor::{Claim, Status, Takeover};
use super::network::{FabricStats, LinkSnapshot};
use super::rates::Rates;
use super::roles::Role;

/// Everything about a rig.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Snapshot {
    /// Where clients reach the guest.
    pub service: String,
    /// Where the rig's files are.
    pub directory: PathBuf,
    /// Seconds since the machines were started.
    pub uptime_s: f64,
    /// Whether a backup follows the primary.
    pub protected: bool,
    /// Fingerprints of the pair's keys, the newest one first.
    #[serde(default)]
    pub keys: Vec<String>,
    /// For how many seconds that has not changed.
    pub protected_s: f64,
    /// Seconds from the start until a backup followed for the first time.
    pub first_protected_s: Option<f64>,
    /// Seconds from the start until the guest answered for the first time.
    pub first_answer_s: Option<f64>,
    /// The machines.
    pub machines: Vec<MachineSnapshot>,
    /// All takeovers so far.
    pub takeovers: Vec<TakeoverEntry>,
    /// The arbiter, if there is one.
    #[serde(default)]
    pub arbiter: Option<ArbiterSnapshot>,
    /// The networks.
    pub links: Vec<LinkSnapshot>,
    /// What the switch has counted.
    pub network: Option<FabricStats>,
    /// The last things that happened.
    pub notices: Vec<Notice>,
}

impl Snapshot {
    /// The machine in `role`.
    pub fn machine(&self, role: Role) -> Option<&MachineSnapshot> {
        self.machines.iter().find(|machine| machine.role == role)
    }
}

/// Everything about a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MachineSnapshot {
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Its process, while it runs.
    pub pid: Option<u32>,
    /// The file with its log.
    pub serial: PathBuf,
    /// What it says its role is.
    pub claim: Option<Claim>,
    /// Milliseconds since it said anything, while it runs.
    pub silent_ms: Option<u64>,
    /// How the last process in this place ended.
    pub last_end: Option<String>,
    /// Lines of its monitor that were not understood.
    pub malformed: u64,
    /// Its last status.
    pub status: Option<Status>,
    /// Rates of its stats.
    pub rates: Option<Rates>,
}

/// A takeover and when it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TakeoverEntry {
    /// Seconds since the start of the rig.
    pub at_s: f64,
    /// The machine that is primary since.
    pub name: String,
    /// How long it took.
    #[serde(flatten)]
    pub times: Takeover,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// Seconds since the start of the rig.
    pub at_s: f64,
    /// What.
    pub text: String,
}
