//! The directory of a rig, which outside scripts read, and the private one for its sockets.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::roles::Role;
use crate::artefacts;
use crate::net::{Forward, Protocol};

/// The longest path of a unix socket; see unix(7).
const MAX_SOCKET_PATH: usize = 107;
/// The longest file name used in the private directory.
const MAX_SOCKET_NAME: usize = 24;
/// How private directories are called, before the random part.
const PRIVATE_PREFIX: &str = "pollux-rig-";
/// Locked for as long as a private directory is in use.
const PRIVATE_LOCK: &str = "lock";

/// One machine in `rig.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineEntry {
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Its emulator's process; none while it does not run.
    pub pid: Option<u32>,
    /// The file with its log (COM1).
    pub serial: PathBuf,
    /// Where it answers by HTTP: `address:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
}

/// The guest's port that `--udp` leads to.
pub const UDP_PORT: u16 = 7;

/// One forwarded port in `rig.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardEntry {
    /// Where clients come: `address:port`.
    pub address: String,
    /// `tcp` or `udp`.
    pub protocol: Protocol,
    /// The guest's port.
    pub guest_port: u16,
}

impl From<&Forward> for ForwardEntry {
    fn from(forward: &Forward) -> Self {
        let Forward { protocol, local, guest_port } = *forward;
        Self { address: local.to_string(), protocol, guest_port }
    }
}

impl ForwardEntry {
    /// Whether it is what `udp` in `rig.json` tells of.
    pub fn is_udp_echo(&self) -> bool {
        self.protocol == Protocol::Udp && self.guest_port == UDP_PORT
    }
}

/// What stands in `rig.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RigFile {
    /// Where clients reach the guest: `address:port`.
    pub service: String,
    /// The same for the guest's UDP port 7, if it is forwarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<String>,
    /// All forwarded ports.
    #[serde(default)]
    pub forwards: Vec<ForwardEntry>,
    /// The machines.
    pub machines: Vec<MachineEntry>,
    /// Whether a backup follows the primary.
    pub protected: bool,
    /// The socket that `cargo xtask rig` talks to; none when the rig has ended.
    pub control: Option<PathBuf>,
    /// The process that runs the rig; none when it has ended.
    pub rig_pid: Option<u32>,
}

/// The rig's directory, locked.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    written: Option<RigFile>,
    _lock: File,
}

impl Directory {
    /// Takes `path`, or a fresh directory beside what cargo builds.
    pub fn take(path: Option<&Path>) -> Result<Self> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => fresh(),
        };
        fs::create_dir_all(&path).with_context(|| format!("cannot create the rig's directory {}", path.display()))?;
        let path = path.canonicalize()?;
        let lock = path.join("rig.lock");
        let file = File::create(&lock).with_context(|| format!("cannot write {}", lock.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path, written: None, _lock: file }),
            Err(TryLockError::WouldBlock) => {
                bail!("another rig runs in {}: stop it, or give another --dir", path.display())
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", lock.display())),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `rig.json` if it changes; readers see the old or the new one, never a part.
    pub fn write(&mut self, content: RigFile) -> Result<()> {
        if self.written.as_ref() != Some(&content) {
            let text = serde_json::to_string_pretty(&content).context("rig.json")? + "\n";
            replace(&self.path.join("rig.json"), &text)?;
            self.written = Some(content);
        }
        Ok(())
    }

    /// Says in `rig.json` that the rig has ended.
    pub fn close(&mut self) -> Result<()> {
        let Some(mut content) = self.written.clone() else { return Ok(()) };
        for machine in &mut content.machines {
            (machine.role, machine.pid) = (Role::Dead, None);
        }
        (content.protected, content.control, content.rig_pid) = (false, None, None);
        self.write(content)
    }
}

/// Where rigs live by default.
pub fn default_parent() -> PathBuf {
    artefacts::target_directory().join("rig")
}

/// Where the newest rig in the default place is, for `cargo xtask rig` without `--dir`.
pub fn latest_link() -> PathBuf {
    default_parent().join("latest")
}

fn fresh() -> PathBuf {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    default_parent().join(format!("{}-{}", now.as_secs(), std::process::id()))
}

fn replace(path: &Path, text: &str) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let attempt = || -> std::io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(".rig-").permissions(readable()).tempfile_in(directory)?;
        file.write_all(text.as_bytes())?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    attempt().with_context(|| format!("cannot write {}", path.display()))
}

fn readable() -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o644)
}

/// Reads `rig.json` in `directory`.
pub fn read(directory: &Path) -> Result<RigFile> {
    let path = directory.join("rig.json");
    let text = fs::read_to_string(&path)
        .with_context(|| format!("no rig in {}: cannot read rig.json", directory.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is malformed", path.display()))
}

/// A directory for sockets, for this user only, with a path short enough. Removed when dropped.
#[derive(Debug)]
pub struct PrivateDirectory {
    directory: TempDir,
    _lock: File,
}

impl PrivateDirectory {
    /// Creates one, and removes those of rigs that were killed.
    pub fn create() -> Result<Self> {
        let temporary = std::env::temp_dir();
        let fits =
            |path: &Path| path.as_os_str().len() + 1 + PRIVATE_PREFIX.len() + 8 + MAX_SOCKET_NAME <= MAX_SOCKET_PATH;
        let parent = if fits(&temporary) { temporary } else { PathBuf::from("/tmp") };
        remove_abandoned(&parent);
        let directory = tempfile::Builder::new().prefix(PRIVATE_PREFIX).tempdir_in(&parent);
        let directory = directory.with_context(|| format!("cannot create a directory in {}", parent.display()))?;
        let lock = File::create(directory.path().join(PRIVATE_LOCK)).context("cannot lock the private directory")?;
        lock.lock().context("cannot lock the private directory")?;
        Ok(Self { directory, _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Only directories whose lock is free are ours to remove. A rig that is just being started has created its directory but
/// may not hold the lock yet: without a lock file nothing is removed.
fn remove_abandoned(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let ours = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PRIVATE_PREFIX));
    for entry in ours {
        let age = entry.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|time| time.elapsed().ok());
        let old_enough = age.is_some_and(|age| age.as_secs() >= 10);
        let abandoned = File::open(entry.path().join(PRIVATE_LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
        if old_enough && abandoned {
            // Another rig may be faster; a directory that cannot be removed disturbs nobody.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(role: Role) -> RigFile {
        let machine =
            MachineEntry { name: "castor".into(), role, pid: Some(1), serial: "/x/castor.log".into(), http: None };
        RigFile {
            service: "127.0.0.1:7777".into(),
            udp: None,
            forwards: Vec::new(),
            machines: vec![machine],
            protected: true,
            control: Some("/tmp/x".into()),
            rig_pid: Some(7),
        }
    }

    #[test]
    fn two_rigs_do_not_share_a_directory() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("new/one");
        let first = Directory::take(Some(&path)).unwrap();
        let error = Directory::take(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("another rig runs in"), "{error}");
        drop(first);
        Directory::take(Some(&path)).unwrap();
    }

    #[test]
    fn rig_json_has_the_promised_form_and_ends_dead() {
        let parent = tempfile::tempdir().unwrap();
        let mut directory = Directory::take(Some(parent.path())).unwrap();
        directory.write(example(Role::Primary)).unwrap();
        let json: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(parent.path().join("rig.json")).unwrap()).unwrap();
        let machine = serde_json::json!({"name": "castor", "role": "primary", "pid": 1, "serial": "/x/castor.log"});
        assert_eq!(json["machines"][0], machine);
        assert_eq!((&json["service"], &json["protected"]), (&"127.0.0.1:7777".into(), &true.into()));
        directory.close().unwrap();
        let file = read(parent.path()).unwrap();
        assert_eq!((file.machines[0].role, file.machines[0].pid, file.protected), (Role::Dead, None, false));
        let names: Vec<_> = fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn rig_json_is_written_only_when_it_changes() {
        let parent = tempfile::tempdir().unwrap();
        let mut directory = Directory::take(Some(parent.path())).unwrap();
        directory.write(example(Role::Primary)).unwrap();
        fs::remove_file(parent.path().join("rig.json")).unwrap();
        directory.write(example(Role::Primary)).unwrap();
        assert!(read(parent.path()).is_err());
        directory.write(example(Role::Backup)).unwrap();
        assert!(read(parent.path()).is_ok());
    }

    #[test]
    fn sockets_fit() {
        let private = PrivateDirectory::create().unwrap();
        assert!(private.path().as_os_str().len() + 1 + MAX_SOCKET_NAME <= MAX_SOCKET_PATH);
        let path = private.path().to_owned();
        drop(private);
        assert!(!path.exists());
    }
}
