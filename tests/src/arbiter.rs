//! Arbiters of a test's own, and what machines see of theirs.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::rig::{Rig, START_LIMIT};
use crate::xtask;

/// An address that was free a moment ago.
///
/// # Errors
/// When none is.
pub fn free() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// What the machines see of the arbiter contains `part`; nothing if that is empty.
///
/// # Errors
/// When it does not in time.
pub fn wait_trouble(rig: &mut Rig, machines: &[&str], part: &str) -> Result<()> {
    rig.wait(&format!("the arbiter's trouble `{part}`"), START_LIMIT, |rig| {
        let status = rig.status()?;
        let seen = |name: &&str| {
            let trouble = status.of(name).map_or("none yet", |status| status.arbiter.trouble.as_str());
            if part.is_empty() { trouble.is_empty() } else { trouble.contains(part) }
        };
        Ok(machines.iter().all(seen).then_some(()))
    })
}

/// The pair's key and the folder with what the arbiter has of it, in `directory`.
///
/// # Errors
/// When they cannot be made.
pub fn keys(directory: &Path) -> Result<(PathBuf, PathBuf)> {
    let (key, folder) = (directory.join("key"), directory.join("keys"));
    fs::DirBuilder::new().mode(0o700).create(&folder)?;
    let mut make = xtask::command();
    ensure!(make.args(["key", "new"]).arg(&key).stdout(Stdio::null()).status()?.success(), "no key");
    // The program is built now, which may take longer than its start.
    let mut derive = xtask::command();
    derive.args(["arbiter", "key", "--key"]).arg(&key).arg(folder.join("pair"));
    ensure!(derive.status()?.success(), "no arbiter's key");
    Ok((key, folder))
}

/// An arbiter of its own; ended when dropped.
#[derive(Debug)]
pub struct Desk(Child);

impl Desk {
    /// At this address, with these keys and its terms in `file`.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn start(address: &str, file: &Path, keys: &Path) -> Result<Self> {
        Self::with(address, &["--file".to_owned(), file.display().to_string()], keys)
    }

    /// One whose terms are where `place` says.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn with(address: &str, place: &[String], keys: &Path) -> Result<Self> {
        let mut command = xtask::command();
        command.args(["arbiter", "serve", "--listen", address]).args(place).arg("--keys").arg(keys);
        command.stdout(Stdio::null());
        let desk = Self(command.spawn().context("the arbiter")?);
        let deadline = Instant::now() + START_LIMIT;
        while TcpStream::connect(address).is_err() {
            ensure!(Instant::now() < deadline, "the arbiter does not listen at {address}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(desk)
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
