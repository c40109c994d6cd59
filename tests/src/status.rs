//! What `cargo xtask rig status --json` says, as far as the tests look at it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

/// Everything about a rig.
#[derive(Debug, Clone, Deserialize)]
pub struct RigStatus {
    /// Whether a backup follows the primary.
    pub protected: bool,
    /// The machines.
    pub machines: Vec<Machine>,
    /// All takeovers so far.
    pub takeovers: Vec<Value>,
    /// The arbiter, if there is one.
    pub arbiter: Option<Arbiter>,
    /// The last things that happened.
    pub notices: Vec<Notice>,
    /// What the switches have counted.
    pub network: Value,
}

/// The arbiter as the rig sees it.
#[derive(Debug, Clone, Deserialize)]
pub struct Arbiter {
    /// Where it listens.
    pub address: String,
    /// The newest term that it gave to the pair.
    pub newest_term: Option<u64>,
    /// Who got it: node and name of the machine.
    pub winner: Option<String>,
}

/// A machine of it.
#[derive(Debug, Clone, Deserialize)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// `primary`, `backup`, `joining` or `dead`.
    pub role: String,
    /// Its process.
    pub pid: Option<i32>,
    /// The file with its log.
    pub serial: PathBuf,
    /// What it says its role is.
    pub claim: Option<String>,
    /// What its hypervisor said last.
    pub status: Option<Status>,
}

/// What a hypervisor says about itself.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// The guest's position.
    pub position: u64,
    /// Wall clock since the machine's start in milliseconds: no two reports have the same.
    pub wall_ms: u64,
    /// The term that it is in.
    #[serde(default)]
    pub term: u64,
    /// The fingerprint of its newest key ...
    #[serde(default)]
    pub key: String,
    /// ... of the old one, while it has two ...
    #[serde(default)]
    pub old_key: String,
    /// ... and why that one cannot be forgotten yet.
    #[serde(default)]
    pub old_key_is_needed: String,
    /// What it asks the arbiter.
    #[serde(default)]
    pub arbiter: Asking,
    /// State digests compared.
    pub digests: u64,
    /// By how many ticks the backup lags.
    pub lag_ticks: u64,
    /// The output gate.
    pub gate: Gate,
    /// Refused input and other errors by name.
    pub errors: BTreeMap<String, u64>,
    /// Everything else.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A machine's questions to the arbiter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Asking {
    /// The term that it asks for now; 0 if it asks for none.
    pub asks_for: u64,
    /// Tries that brought no answer.
    pub failures: u64,
    /// How long the last answer took, in microseconds.
    pub answer_us: u64,
    /// Why the arbiter would give no term now.
    pub trouble: String,
}

/// The output gate.
#[derive(Debug, Clone, Deserialize)]
pub struct Gate {
    /// Frames held now.
    pub held: u64,
    /// Frames sent so far.
    pub released: u64,
}

/// Something that happened.
#[derive(Debug, Clone, Deserialize)]
pub struct Notice {
    /// What.
    pub text: String,
}

impl RigStatus {
    /// How often the guest's address was heard at another machine than before.
    #[must_use]
    pub fn guest_moves(&self) -> u64 {
        self.network["networks"][0]["moves"].as_u64().unwrap_or(u64::MAX)
    }

    /// The machine in `role`, or with that name.
    #[must_use]
    pub fn machine(&self, role: &str) -> Option<&Machine> {
        self.machines.iter().find(|machine| machine.role == role || machine.name == role)
    }

    /// What the machine in `role` said last.
    #[must_use]
    pub fn of(&self, role: &str) -> Option<&Status> {
        self.machine(role)?.status.as_ref()
    }

    /// Whom the arbiter gave the newest term, and which that is.
    #[must_use]
    pub fn reign(&self) -> Option<(u64, &str)> {
        let arbiter = self.arbiter.as_ref()?;
        let name = arbiter.winner.as_ref()?.split_whitespace().next_back()?;
        Some((arbiter.newest_term?, name))
    }

    /// The first notice that contains `text`.
    #[must_use]
    pub fn notice(&self, text: &str) -> Option<&str> {
        self.notices.iter().map(|notice| notice.text.as_str()).find(|notice| notice.contains(text))
    }
}

impl Status {
    /// A counter that has no field here; 0 when there is none of this name.
    #[must_use]
    pub fn counter(&self, name: &str) -> u64 {
        self.more.get(name).and_then(Value::as_u64).unwrap_or(0)
    }
}
