//! A backup whose machine is slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::driven::DrivenRig;
use crate::rig::roles::Role;

/// Stops a backup's emulator most of the time, until it is dropped.
pub struct Brake {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Brake {
    /// On the backup of this rig, which runs for so long, and then stands still for so long, again and again.
    pub fn on(rig: &mut DrivenRig, runs: Duration, stands: Duration) -> Result<Self> {
        let snapshot = rig.snapshot()?;
        let backup = snapshot.machine(Role::Backup).and_then(|machine| machine.pid).context("there is no backup")?;
        let pid = Pid::from_raw(i32::try_from(backup).context("a process id")?);
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let brake = move || {
            while !flag.load(Ordering::Relaxed) {
                // A process that has ended needs no brake.
                if kill(pid, Signal::SIGSTOP).is_err() {
                    return;
                }
                std::thread::sleep(stands);
                let _ = kill(pid, Signal::SIGCONT);
                std::thread::sleep(runs);
            }
        };
        Ok(Self { stop, thread: Some(std::thread::spawn(brake)) })
    }
}

impl Drop for Brake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It ends within one round.
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}
