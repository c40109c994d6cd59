//! Child processes that never outlive us.
//!
//! Every process is started here: in a group of its own, which is ended as a whole, and with a parent-death signal, so that
//! even a SIGKILL of xtask leaves nothing behind. That signal is tied to the *thread* that forks (see prctl(2)), therefore
//! only the main thread may start processes.
#![expect(unsafe_code, reason = "pre_exec is the only way to set the parent-death signal")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpid, getppid, gettid};

use crate::interrupt;

/// How often a running child is looked at; bounds how late its end is noticed.
pub const POLL: Duration = Duration::from_millis(20);

/// How long a group may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A child and its process group. Dropping it kills the group.
#[derive(Debug)]
pub struct Process {
    child: Child,
    ended: bool,
}

impl Process {
    /// Starts `command`, which must not have been given other hooks. Main thread only.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        assert_eq!(gettid(), getpid(), "processes are started by the main thread only");
        let us = getpid();
        command.process_group(0);
        // SAFETY: the hook runs between fork and exec in a child with one thread; it makes two system calls and neither
        // allocates nor takes locks.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                // We may have died before the signal was set.
                if getppid() == us { Ok(()) } else { Err(io::Error::from(nix::Error::ESRCH)) }
            });
        }
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        Ok(Self { child, ended: false })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child's pipes.
    pub fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }

    /// The exit status, if the child has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait().context("cannot wait for a child process")?;
        self.ended |= status.is_some();
        Ok(status)
    }

    /// Ends the whole group at once and collects the child.
    pub fn kill(&mut self) {
        if !self.ended {
            self.signal(Signal::SIGKILL);
            // An error means that there is nothing left to collect.
            let _ = self.child.wait();
            self.ended = true;
        }
    }

    /// Asks the group to end, and kills it when it does not.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + GRACE;
        while self.try_wait()?.is_none() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        self.kill();
        Ok(())
    }

    /// Waits for the end; gives up, ending the group, when we are interrupted or `limit` has passed.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if interrupt::pending() {
                self.terminate()?;
                interrupt::check()?;
            }
            if Instant::now() >= deadline {
                self.terminate()?;
                bail!("not finished after {} s: ended", limit.as_secs());
            }
            std::thread::sleep(POLL);
        }
    }

    fn signal(&self, signal: Signal) {
        // A child that has not been waited for keeps its id, so this never reaches a stranger.
        if let Ok(id) = i32::try_from(self.child.id()) {
            // ESRCH: the group has ended by itself.
            let _ = killpg(Pid::from_raw(id), signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a short command to its end and returns what it wrote; `None` when the program does not exist.
pub fn output(command: &mut Command) -> Result<Option<Output>> {
    command.stdin(Stdio::null());
    let program = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) => Ok(Some(output)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot run {program}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_program_is_no_error() {
        assert!(output(&mut Command::new("pollux-no-such-program")).unwrap().is_none());
    }
}
